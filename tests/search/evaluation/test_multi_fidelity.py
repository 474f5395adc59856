"""Which candidates rise to a dearer proxy, and when the others stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from espalier.search.evaluation.multi_fidelity import Values, agreement, order, promote
from espalier.search.spaces.candidate import Candidate


def candidates(count: int) -> list[Candidate]:
    return [Candidate(0, (number + 1,)) for number in range(count)]


def judge(values: Values, asked: list[int]) -> Callable[[Sequence[Candidate]], Values]:
    """A dear proxy that counts how many it is asked for at a time."""

    def call(block: Sequence[Candidate]) -> Values:
        asked.append(len(block))
        return {candidate: values[candidate] for candidate in block}

    return call


def rungs(noise: float, count: int = 200, seed: int = 0) -> tuple[Values, Values]:
    """A cheap proxy, and the dear one it tells of through noise."""
    draw = np.random.default_rng(seed)
    dear = draw.normal(size=count)
    cheap = dear + noise * draw.normal(size=count)
    found = candidates(count)
    return dict(zip(found, cheap.tolist(), strict=True)), dict(zip(found, dear.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_better_the_rungs_agree_the_fewer_rise(seed: int) -> None:
    risen = []
    for noise in (0.01, 0.3, 3.0):
        below, dear = rungs(noise, seed=seed)
        rise = promote(below, judge(dear, []), proxy="dear", share=0.5, wanted=3)
        risen.append(len(rise.values))
        best = sorted(below, key=lambda candidate: -below[candidate])[: len(rise.values)]
        assert set(best) == rise.values.keys()
    assert risen == sorted(risen)
    assert risen[0] <= 25 < risen[-1]


@pytest.mark.parametrize("seed", range(5))
def test_those_who_stay_would_not_have_won(seed: int) -> None:
    below, dear = rungs(0.2, seed=seed)
    rise = promote(below, judge(dear, []), proxy="dear", share=1.0, wanted=3)
    assert len(rise.values) < 200
    assert max(dear, key=lambda candidate: dear[candidate]) in rise.values


def test_so_many_rise_at_least_and_the_baseline_does(monkeypatch: pytest.MonkeyPatch) -> None:
    below, dear = rungs(0.1, count=20)
    worst = min(below, key=lambda candidate: below[candidate])
    asked: list[int] = []
    rise = promote(below, judge(dear, asked), proxy="dear", share=0.05, wanted=6, always=[worst])
    assert len(rise.values) == 7 and worst in rise.values
    assert asked == [7]


def test_one_that_cannot_be_scored_ends_nothing() -> None:
    below, dear = rungs(0.5, count=100)
    clean = promote(below, judge(dear, []), proxy="dear", share=0.5, wanted=3)
    third = sorted(below, key=lambda candidate: -below[candidate])[2]
    marred = promote(below, judge({**dear, third: -math.inf}, []), proxy="dear", share=0.5, wanted=3)
    assert len(clean.values) > 13
    assert len(marred.values) == pytest.approx(len(clean.values), abs=13)
    assert len(marred.values) > 13


def test_no_agreement_lets_the_whole_share_rise() -> None:
    below, _ = rungs(1.0, count=60)
    upside_down = {candidate: -value for candidate, value in below.items()}
    rise = promote(below, judge(upside_down, []), proxy="dear", share=0.5, wanted=2)
    assert len(rise.values) == 30
    assert rise.agreement == -1.0


def test_the_highest_rung_decides_and_the_others_follow() -> None:
    a, b, c, d = candidates(4)
    assert order([{a: 4.0, b: 3.0, c: 2.0, d: 1.0}, {a: 0.0, b: 5.0, c: 1.0}, {c: 7.0, a: 8.0}]) == [a, c, b, d]


def test_agreement_needs_something_to_rank() -> None:
    assert agreement([1, 2, 3], [10, 20, 25]) == 1.0
    assert math.isnan(agreement([1, 2], [1, 2])) and math.isnan(agreement([1, 1, 1], [1, 2, 3]))
