"""The verdict of a search, on hand-made numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.search.result import Outcome, Result, verdict


def test_one_pair_says_nothing_about_chance() -> None:
    sentence = (
        "Searched against greedy: +0.50 points of test top-1 after fine-tuning on one seed, which says nothing"
    )
    assert verdict([91.0], [90.5], same=False).startswith(sentence)


@pytest.mark.parametrize(
    ("searched", "greedy", "same", "sentence"),
    [
        (
            [91.0, 91.1, 91.2],
            [90.0, 90.2, 90.1],
            False,
            "The searched network is better than greedy global pruning: +1.00 points of test top-1 "
            "after fine-tuning (95 % interval +0.75 to +1.25, 3 paired seeds).",
        ),
        (
            [90.0, 90.2, 90.1],
            [91.0, 91.1, 91.2],
            False,
            "The searched network is worse than greedy global pruning: -1.00 points of test top-1 "
            "after fine-tuning (95 % interval -1.25 to -0.75, 3 paired seeds).",
        ),
        (
            [91.0, 92.0, 93.0],
            [90.0, 93.0, 92.0],
            False,
            "Searched and greedy are not distinguishable: +0.33 points of test top-1 "
            "after fine-tuning (95 % interval -2.54 to +3.20, 3 paired seeds).",
        ),
        (
            [90.0, 91.0],
            [90.0, 91.0],
            True,
            "The search found nothing better than greedy global pruning, and keeps its widths.",
        ),
    ],
)
def test_the_verdict(searched: list[float], greedy: list[float], same: bool, sentence: str) -> None:
    assert verdict(searched, greedy, same) == sentence


def test_equal_differences_have_no_spread() -> None:
    assert verdict([90.5, 91.5], [90.0, 91.0], False).startswith("The searched network is better")
    assert verdict([90.0, 91.0], [90.0, 91.0], False).startswith(
        "Searched and greedy are not distinguishable: +0.00"
    )


def test_a_result_is_written_as_json(tmp_path: Path) -> None:
    outcome = Outcome(10, 20, 50.0, 51.0, 52.0, (52.0, 52.0), {"conv1": 3}, 0.5)
    result = Result(
        dense=outcome,
        greedy=outcome,
        searched=outcome,
        budget={"macs": 11},
        binding="macs",
        promotion=[],
        verdict="so so",
        trials=4,
        seeds={"study": 0, "finetune": [0, 1]},
        execution={},
        seconds={"search": 1.5},
        versions={"python": "3"},
        study="s",
        artefact="pruned.espalier",
    )
    result.write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert content["searched"] == {
        "macs": 10,
        "params": 20,
        "top1_proxy": 50.0,
        "top1_before_finetune": 51.0,
        "top1_after_finetune": 52.0,
        "top1_after_finetune_seeds": [52.0, 52.0],
        "widths": {"conv1": 3},
        "strength": 0.5,
    }
    assert (content["budget"], content["trials"], content["verdict"]) == ({"macs": 11}, 4, "so so")
