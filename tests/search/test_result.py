"""The verdict and its interval, against hand-made numbers and SciPy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from espalier.search.result import Outcome, Result, paired_difference, verdict


@given(
    st.lists(st.tuples(st.floats(50, 100), st.floats(50, 100)), min_size=2, max_size=8).filter(
        lambda pairs: float(np.std([a - b for a, b in pairs])) > 1e-3
    )
)
def test_the_interval_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    mean, low, high = paired_difference(first, second)
    expected = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    assert mean == pytest.approx(float(np.mean(first) - np.mean(second)), abs=1e-9)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_an_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027."""
    mean, low, high = paired_difference([91, 92, 93], [90, 90, 90])
    half = 4.302652729749462 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half))


def test_one_pair_says_nothing_about_chance() -> None:
    assert paired_difference([91.0], [90.5]) == (0.5, -math.inf, math.inf)
    sentence = (
        "Searched against greedy: +0.50 points of test top-1 after fine-tuning on one seed, which says nothing"
    )
    assert verdict([91.0], [90.5], same=False).startswith(sentence)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


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
