"""What the best of many policies would win: the interval covers it, and the advice follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.errors import EspalierError
from espalier.search.statistics.headroom import Headroom, expected_greatest, headroom

TRIALS, SEEDS = 200, 3


def drawn(draw: np.random.Generator, spread: float, chance: float, greedy: float, count: int = 24) -> Headroom:
    """From policies of mean 0 and such a spread."""
    worth = spread * draw.standard_normal(count)
    first = worth + chance * draw.standard_normal(count)
    best = np.argsort(-first)[:3]
    again = worth[best, None] + chance * draw.standard_normal((3, 2))
    baseline = greedy + chance * draw.standard_normal(2)
    return headroom(first, again, baseline, trials=TRIALS, seeds=SEEDS, seed=int(draw.integers(2**31)))


def test_the_greatest_of_normals() -> None:
    assert expected_greatest(1) == pytest.approx(0, abs=1e-9)
    assert expected_greatest(2) == pytest.approx(1 / np.sqrt(np.pi), abs=1e-6)
    draw = np.random.default_rng(0).standard_normal((20000, 200)).max(1).mean()
    assert expected_greatest(200) == pytest.approx(draw, abs=0.01)


@pytest.mark.parametrize(
    ("spread", "chance", "greedy"), [(1.0, 0.3, 1.0), (0.5, 0.5, 0.0), (2.0, 0.1, 3.0), (0.0, 1.0, 0.0)]
)
def test_the_interval_holds_the_headroom(spread: float, chance: float, greedy: float) -> None:
    """95 % nominal; 400 draws have a standard error of one per cent."""
    draw, truth = np.random.default_rng(1), spread * expected_greatest(TRIALS) - greedy
    found = [drawn(draw, spread, chance, greedy) for _ in range(400)]
    held = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.9 <= held <= 0.99
    expected = np.mean([each.expected for each in found])
    assert expected == pytest.approx(truth, abs=0.35 * spread + (0.3 if spread else 1.5))


def test_policies_that_are_far_worse_say_nothing_of_the_best() -> None:
    """Half of them fail, as those far from greedy do: the interval holds what the best of the others would win."""
    draw, held = np.random.default_rng(5), 0
    truth = expected_greatest(TRIALS // 2) - 1.0
    for _ in range(400):
        worth = np.where(draw.random(24) < 0.5, draw.normal(0, 1, 24), draw.normal(-15, 6, 24))
        best = np.argsort(-worth)[:3]
        again, baseline = worth[best, None] + 0.4 * draw.normal(size=(3, 2)), 1.0 + 0.4 * draw.normal(size=2)
        first = worth + 0.4 * draw.normal(size=24)
        found = headroom(first, again, baseline, trials=TRIALS, seeds=SEEDS, seed=int(draw.integers(2**31)))
        held += found.low <= truth <= found.high
    assert 0.9 <= held / 400 <= 0.99


def test_networks_at_chance_do_not_stretch_the_scale() -> None:
    """Log-odds grow without limit at the floor, where nothing tells networks apart."""
    draw = np.random.default_rng(0)
    first = np.where(np.arange(24) % 2, 10.0, 10.0 + 0.2 * np.abs(draw.standard_normal(24)))
    again = 10 + 0.1 * draw.random((3, 2))
    found = headroom(first, again, np.array([10.0, 10.05]), trials=100, seeds=3, seed=0, bounds=(10.0, 100.0))
    assert -1 < found.low < found.expected < 1 and found.high < 5


def test_nothing_is_better_than_the_ceiling() -> None:
    """As on the digits: most of what is near 97 % differs by chance."""
    draw = np.random.default_rng(6)
    first = np.append(draw.uniform(20, 90, 12), np.minimum(100.0, 95.5 + draw.normal(0, 1, 12)))
    again, greedy = np.array([[96.0, 97.0], [95.0, 96.5], [94.5, 96.0]]), np.array([97.7, 96.6])
    given = {"trials": TRIALS, "seeds": SEEDS, "seed": 0}
    found = headroom(first, again, greedy, bounds=(10.0, 100.0), **given)
    assert found.high < 100 - greedy.mean() and found.low < 0.5
    at_the_top = headroom(np.full(24, 100.0), np.full((3, 2), 100.0), greedy, bounds=(10.0, 100.0), **given)
    assert at_the_top.expected == pytest.approx(100 - greedy.mean(), abs=0.3)


def test_what_was_found_is_judged_by_seeds_that_did_not_choose_it() -> None:
    """Where all policies are worth the same, the best of them is ahead by nothing, and greedy is enough."""
    draw = np.random.default_rng(2)
    found = [drawn(draw, 0.0, 1.0, 0.0) for _ in range(300)]
    assert abs(np.mean([each.found for each in found])) < 0.15
    assert np.mean([each.found_low > 0 for each in found]) < 0.05
    assert np.mean([each.advice == "search" for each in found]) < 0.08


@pytest.mark.parametrize(("spread", "greedy", "advice"), [(3.0, 0.0, "search"), (0.05, 1.5, "greedy")])
def test_the_advice(spread: float, greedy: float, advice: str) -> None:
    draw = np.random.default_rng(3)
    given = [drawn(draw, spread, 0.3, greedy).advice for _ in range(100)]
    assert given.count(advice) > 90


def test_a_search_whose_best_would_be_worse_is_not_recommended() -> None:
    draw = np.random.default_rng(7)
    found = [drawn(draw, 0.5, 0.3, 1.4) for _ in range(100)]
    for each in found:
        worse = each.expected <= 0 and each.found <= 0
        assert (each.advice in ("greedy", "doubtful")) == (worse or each.high < each.noticed)
    assert {each.advice for each in found} >= {"open", "doubtful"}


def test_policies_that_are_worth_the_same_and_none() -> None:
    """Most reach the top, so that nothing lies above the median."""
    first = np.array([1.0] * 18 + [0.5] * 6)
    found = headroom(first, np.ones((3, 2)), np.ones(2), trials=TRIALS, seeds=SEEDS, seed=0)
    assert found.low <= found.expected <= found.high and found.expected == pytest.approx(0, abs=1e-3)
    with pytest.raises(EspalierError, match="no finite number"):
        headroom(np.append(first, np.nan), np.ones((3, 2)), np.ones(2), trials=TRIALS, seeds=SEEDS, seed=0)
