"""The verdict of a search, on hand-made numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.search.run.result import Outcome, Result, verdict
from espalier.search.run.summary import text_of
from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import paired
from espalier.search.tasks.classification.measures import MEASURES

TOP1 = MEASURES["top1"]


def test_too_few_pairs_say_nothing_about_chance() -> None:
    for count in (1, 2):
        said = verdict(paired([91.0, 91.5][:count], [90.5, 91.0][:count]), False, TOP1)
        assert said.startswith("Searched against greedy: +0.50 points of test top-1 after fine-tuning with ")
        assert said.endswith("too few to tell it from chance, which takes finetune.seeds of 3 or more.")


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
            [90.0, 91.0, 92.0],
            [90.0, 91.0, 92.0],
            False,
            "Searched and greedy have the same test top-1 after fine-tuning with every one of 3 paired seeds.",
        ),
        (
            [90.0, 91.0],
            [90.0, 91.0],
            True,
            "The search keeps the widths of greedy global pruning: on held-out data no candidate was better once "
            "fine-tuned.",
        ),
    ],
)
def test_the_verdict(searched: list[float], greedy: list[float], same: bool, sentence: str) -> None:
    assert verdict(paired(searched, greedy), same, TOP1) == sentence


def test_seeds_that_agree_on_few_test_images_prove_nothing() -> None:
    marks = np.tile([100.0, *[0.0] * 199], (3, 1))  # one of 200, the same with every seed
    found = paired([90.5, 91.5, 92.5], [90.0, 91.0, 92.0], marks)
    assert verdict(found, False, TOP1) == (
        "Searched and greedy are not distinguishable: +0.50 points of test top-1 after fine-tuning (95 % interval "
        "-0.49 to +1.49, 3 paired seeds); the seeds agree, but the test examples are too few to tell."
    )
    assert verdict(paired([90.5, 91.5, 92.5], [90.0, 91.0, 92.0]), False, TOP1) == (
        "Searched and greedy are not distinguishable: +0.50 points of test top-1 after fine-tuning, the same with "
        "each of 3 paired seeds, which tells no chance."
    )


def result_of(**other: Any) -> Result:
    outcome = Outcome(10, 20, math.nan, 51.0, 52.0, (52.0, 52.0), {"conv1": 3}, 0.5)
    given: dict[str, Any] = dict(
        metric=TOP1,
        tested=True,
        finetuned=True,
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
    return Result(**given | other)


@pytest.mark.parametrize(
    ("title", "shown"), [("top-1", "Top-1"), ("mAP50-95", "mAP50-95"), ("map of boxes", "Map of boxes")]
)
def test_the_table_says_what_its_numbers_are(title: str, shown: str) -> None:
    said = " ".join(text_of(result_of(metric=Metric("score", title))).split())
    assert f"{shown}. Held-out:" in said and "(2 seeds, mean ± sd; dense is not fine-tuned)" in said
    assert "(1 seed; dense is not fine-tuned)" in " ".join(text_of(result_of(seeds={"finetune": [0]})).split())


def test_the_table_says_where_fine_tuning_made_a_network_worse_with_every_seed() -> None:
    good = result_of().greedy
    said = "Fine-tuning made the searched network worse than it was right after the cut: check its settings."
    for seeds in ((52.0, 50.0), (50.9, 50.0), (50.0,)):
        assert "Fine-tuning made" not in text_of(result_of(searched=replace(good, after_seeds=seeds)))
    spoiled = replace(good, after_seeds=(50.1, 50.0))
    assert said in text_of(result_of(searched=spoiled))
    assert said not in text_of(result_of(searched=spoiled, finetuned=False))
    less = Metric("loss", "loss", greater_is_better=False)
    assert said.replace("searched", "greedy") in text_of(result_of(metric=less))


def test_a_remark_stands_behind_the_verdict() -> None:
    assert "so so\nBut all 3 candidates have the same score." in text_of(
        result_of(remark="all 3 candidates have the same score")
    )


def test_a_result_is_written_as_json(tmp_path: Path) -> None:
    result_of().write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert content["searched"] == {
        "macs": 10,
        "params": 20,
        "held_out": None,
        "before": 51.0,
        "after": 52.0,
        "after_seeds": [52.0, 52.0],
        "widths": {"conv1": 3},
        "strength": 0.5,
        "bits": {},
    }
    assert (content["budget"], content["trials"], content["verdict"]) == ({"macs": 11}, 4, "so so")
    assert content["metric"]["title"] == "top-1" and content["tested"]


def test_a_verdict_by_another_metric_names_it() -> None:
    perplexity = Metric("score", "perplexity", greater_is_better=False)
    found = paired([-11.0, -11.1, -11.2], [-12.0, -12.2, -12.1])
    assert verdict(found, False, perplexity, tested=False) == (
        "The searched network is better than greedy global pruning: -1 in perplexity after fine-tuning "
        "(95 % interval -1.248 to -0.7516, 3 paired seeds)."
    )
    said = verdict(paired([0.5], [0.25]), False, Metric("score", "score"), tested=False, finetuned=False)
    assert (
        said
        == "Searched against greedy: +0.25 in score. Nothing was fine-tuned: there is no spread to judge it by."
    )
