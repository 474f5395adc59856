"""`espalier headroom`: policies are fine-tuned once, and what is there is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.errors import ConfigError
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Lines
from espalier.search.run.headroom import study_headroom


def test_a_study_runs_and_goes_on_from_what_it_has(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(tiny, "tiny")
    found = study_headroom(config, tmp_path, Lines(), policies=8)
    said = capsys.readouterr().out
    assert "some 16 fine-tunings" in said
    assert found.policies == 8 and found.runs >= 16
    estimate = found.headroom
    assert estimate.trials == config.search.trials
    assert estimate.low <= estimate.high and estimate.found_low < estimate.found < estimate.found_high
    written = json.loads((tmp_path / "headroom.json").read_text())
    assert written["headroom"]["expected"] == estimate.expected and len(written["values"]) == 8
    for paragraph in found.words():
        assert "nan" not in paragraph and paragraph.endswith(".")

    again = study_headroom(config, tmp_path, Lines(), policies=8)
    assert again.headroom == estimate
    assert ", best held-out" not in capsys.readouterr().out  # nothing is fine-tuned again
    more = study_headroom(config, tmp_path, Lines(), policies=10)
    assert more.policies == 10
    values = json.loads((tmp_path / "headroom.json").read_text())["values"]
    assert np.array_equal(values[:8], written["values"])


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        ({"policies": 7}, [], "headroom takes 8 policies and 2 seeds or more, got 7 and 2"),
        ({"seeds": 1}, [], "got 24 and 1"),
        ({}, ["finetune.epochs=0"], r"this config has finetune\.epochs of 0"),
    ],
)
def test_what_cannot_be_asked(
    tiny: dict[str, Any], tmp_path: Path, options: dict[str, int], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study_headroom(parse_config(tiny, "tiny", overrides), tmp_path / "out", Lines(), **options)
    assert not (tmp_path / "out").exists()
