"""`espalier headroom`: policies are fine-tuned once, and what is there is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.errors import ConfigError
from espalier.search.analysis.headroom import study_headroom
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Lines
from espalier.search.run.search_run import run
from espalier.search.run.share_of_headroom import words_of_share
from espalier.search.run.summary import text_of
from espalier.search.spaces.metric import Metric

BETTER = "10.00 points better than greedy pruning"


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


def test_searches_and_comparisons_say_what_they_took(tiny: dict[str, Any], tmp_path: Path) -> None:
    content = tiny | {"finetune": tiny["finetune"] | {"seeds": 3}}
    config, out = parse_config(content, "tiny"), tmp_path / "out"
    study_headroom(config, out, Lines(), policies=8)
    known = json.loads((out / "headroom.json").read_text())
    planted = known | {"headroom": known["headroom"] | {"expected": 10.0, "low": 5.0, "high": 15.0}}
    (out / "headroom.json").write_text(json.dumps(planted))
    result = run(config, study="s", out=out)
    gain = np.mean(np.subtract(result.searched.after_seeds, result.greedy.after_seeds))
    ends = "5.00 points better to 15.00 points better"
    said = f"The best policies were to be {BETTER} (95 % interval: {ends}): the search took"
    assert result.headroom == f"{said} {round(10 * gain)} % of it."
    assert result.headroom in " ".join(text_of(result).split())

    asked = parse_config(content | {"compare": {"methods": ["greedy", "random"], "seeds": 3}}, "tiny")
    found = compare(asked, name="c", out=out, command="").comparison
    (sentence,) = found.shares_of_headroom
    assert sentence.startswith(f"40 % of the MACs: The best policies were to be {BETTER}")
    assert "random took " in sentence and found.to_json()["headroom"] == [sentence]
    (out / "headroom.json").write_text(json.dumps(planted | {"made": known["made"] | {"rungs": ["others"]}}))
    assert run(config, study="s", out=out).headroom == ""


def test_where_there_is_nothing_to_take() -> None:
    known = {"expected": -0.1, "low": -0.5, "high": 0.3}
    assert words_of_share(known, {"auto": 0.2}, Metric("top1", "top-1", "%")) == (
        "The best policies were to be 0.10 points worse than greedy pruning "
        "(95 % interval: 0.50 points worse to 0.30 points better): "
        "there was nothing to take."
    )


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
