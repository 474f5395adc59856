"""A file of what was found out once: it goes on, begins anew for other inputs, and older ones are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.search.analysis.kept_file import KeptFile

INPUTS: dict[str, Any] = {"rungs": ("a", "b"), "config": {"seed": 0, "search.proxy": "ridge"}}


def forbidden() -> dict[str, Any]:
    raise AssertionError("it was made before")


def test_what_is_made_once_stays_for_the_same_inputs(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    kept = KeptFile(path, INPUTS)
    assert kept.once("execution", lambda: {"precision": "bf16"}) == {"precision": "bf16"}
    kept.part("scores")["ridge 0:1"] = 2.5
    kept.write()
    again = KeptFile(path, INPUTS)
    assert again.once("execution", forbidden) == {"precision": "bf16"} and again.part("scores") == {
        "ridge 0:1": 2.5
    }
    for other in ({"rungs": ("a", "c")}, {"config": INPUTS["config"] | {"seed": 1}}):
        anew = KeptFile(path, INPUTS | other)
        assert anew.part("scores") == {}
        with pytest.raises(AssertionError, match="made before"):
            anew.once("execution", forbidden)
    assert json.loads(path.read_text())["inputs"]["rungs"] == ["a", "b"], "nothing is written before there is more"


def test_scores_of_before_are_read(tmp_path: Path) -> None:
    """0.1 kept scores alone, of a fingerprint with fewer keys."""
    path = tmp_path / "proxy_scores.json"
    content = {"inputs": {"rungs": ["a", "b"], "config": {"seed": 0}}, "scores": {"ridge 0:1": 2.5}}
    path.write_text(json.dumps(content))
    newer = INPUTS | {"config": {"seed": 0, "training.optimizer": "sgd"}}
    kept = KeptFile(path, newer)
    assert kept.part("scores") == {"ridge 0:1": 2.5}
    assert kept.once("execution", lambda: {"precision": "fp32"}) == {"precision": "fp32"}
    written = json.loads(path.read_text())
    assert written == content | {"kept": {"execution": {"precision": "fp32"}}}
