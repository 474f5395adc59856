"""Intervals, tests and the verdict: by hand, against SciPy, and on made-up results."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import (
    SMALLEST,
    Answer,
    Array,
    Sample,
    answer,
    common,
    holm,
    hypervolume,
    paired,
    verdict,
)
from espalier.search.tasks.classification.measures import MEASURES

TOP1 = MEASURES["top1"]
SEEDS = range(5)
GREEDY = dict(zip(SEEDS, (90.0, 90.2, 89.9, 90.1, 90.3), strict=True))


def plus(*differences: float) -> Sample:
    """Greedy's numbers with something added, seed by seed."""
    return {seed: GREEDY[seed] + each for seed, each in enumerate(differences)}


def judged(**searches: Sample) -> Answer:
    return answer("15 % of the MACs", {"greedy": GREEDY} | searches, list(searches), "greedy")


# ---------------------------------------------------------------------------------------------- differences


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(50, 100), st.floats(50, 100)), min_size=2, max_size=8).filter(
        lambda pairs: float(np.std([a - b for a, b in pairs])) > 1e-3
    )
)
def test_interval_and_p_are_those_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found, expected = paired(first, second), scipy.stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(float(np.mean(first) - np.mean(second)), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)
    assert found.p == found.seed_p == pytest.approx(max(expected.pvalue, SMALLEST), rel=1e-6)


def test_an_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027."""
    found = paired([91, 92, 93], [90, 90, 90])
    half = 4.302652729749462 / math.sqrt(3)
    assert (found.mean, found.sd) == (2, 1)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


def normal(draw: np.random.Generator, shape: tuple[int, int]) -> Array:
    return draw.standard_normal(shape)


def skewed(draw: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Gamma with shape 4: skewness 1."""
    return draw.gamma(4.0, size=shape) - 4.0


def heavy(draw: np.random.Generator, shape: tuple[int, int]) -> Array:
    return draw.standard_t(3, size=shape)


@pytest.mark.parametrize("seeds", [3, 5, 8, 20])
@pytest.mark.parametrize("draw", [normal, skewed, heavy])
def test_an_interval_holds_what_it_claims(
    draw: Callable[[np.random.Generator, tuple[int, int]], Array], seeds: int
) -> None:
    """95 % of intervals contain the true mean; 93 to 97 % where differences are skewed or have heavy tails.

    The interval of every sample is the same multiple of its own standard deviation, which is read off one.
    """
    found = paired([float(n) for n in range(seeds)], [0.0] * seeds)
    multiple = (found.high - found.mean) / found.sd
    samples = draw(np.random.default_rng(0), (100_000, seeds))
    held = 100 * float((np.abs(samples.mean(1)) <= multiple * samples.std(1, ddof=1)).mean())
    assert 93 <= held <= 97
    for sample in samples[:20].tolist():  # the multiple is that of every sample
        own = paired(sample, [0.0] * seeds)
        assert (own.high - own.mean) / own.sd == pytest.approx(multiple)


def crossed(draw: np.random.Generator, seeds: int, images: int, of_seeds: float, of_images: float) -> Array:
    """(seeds, images) differences of two methods that are alike: chance of seeds, of images, and of both."""
    share = draw.standard_normal((seeds, 1)) * (of_seeds / images) ** 0.5
    hard = draw.standard_normal((1, images)) * (of_images / seeds) ** 0.5
    found: Array = share + hard + 0.5 * draw.standard_normal((seeds, images))
    return found


@pytest.mark.parametrize(
    ("seeds", "of_seeds"),
    [(3, 0.0), (3, 0.1), (3, 0.5), (3, 0.75), (3, 0.9), (3, 1.0), (5, 0.5), (5, 0.9)],
)
def test_false_verdicts_are_rare_for_every_mix_of_seeds_and_images(seeds: int, of_seeds: float) -> None:
    """At most 5 in 100, and what the simulation itself may err by, three of its standard errors.

    By Satterthwaite's degrees of freedom it would be 8 with three seeds; by asking seeds and images separately, 8.
    """
    draw, runs, wrong = np.random.default_rng(0), 4000, 0
    for _ in range(runs):
        marks = crossed(draw, seeds, 60, of_seeds, 1 - of_seeds)
        wrong += paired(marks.mean(1).tolist(), [0.0] * seeds, marks).finding() != "not distinguishable"
    assert wrong / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_variance_of_a_crossed_table_by_hand() -> None:
    """Seeds in rows, images in columns: MS_S = 3, MS_I = 3.5, MS_E = 0.5, so (3 + 3.5 - 0.5) / 6 = 1."""
    marks = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 5.0]])
    found = paired(marks.mean(1).tolist(), [0.0, 0.0], marks)
    rows, columns = marks.mean(1), marks.mean(0)
    of_seeds = 3 * float(rows.var(ddof=1))
    of_images = 2 * float(columns.var(ddof=1))
    residual = float(((marks - rows[:, None] - columns + marks.mean()) ** 2).sum()) / 2
    error = ((of_seeds + of_images - residual) / 6) ** 0.5
    weights = of_seeds, of_images - residual
    critical = sum(
        weight * float(scipy.stats.t.isf(0.025, freedom)) for weight, freedom in zip(weights, (1, 2), strict=True)
    ) / sum(weights)
    assert (found.low, found.high) == pytest.approx((found.mean - critical * error, found.mean + critical * error))
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_one_pair_says_nothing_about_chance() -> None:
    found = paired([91.0], [90.5])
    assert (found.mean, found.low, found.high, found.p) == (0.5, -math.inf, math.inf, 1.0)
    assert found.finding() == "too few seeds"


def test_ranks_are_tested_from_six_seeds_on() -> None:
    values = [0.3, 0.1, 0.5, 0.2, 0.4, 0.6]
    assert paired(values[:5], [0.0] * 5).rank_p is None
    assert paired(values, [0.0] * 6).rank_p == pytest.approx(2 / 2**6)
    assert paired([1.0] * 6, [1.0] * 6).rank_p == 1.0


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nothing to pair"):
        paired([], [])


def test_only_seeds_that_both_have_are_paired() -> None:
    found = common({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.5, 0: 1.0, 3: 4.0})
    assert found is not None and (found.seeds, found.mean) == (2, 0.25)
    assert common({0: 1.0}, {1: 1.0}) is None


def test_seeds_that_agree_on_two_images_say_nothing_of_others() -> None:
    """Every seed is ahead on the same two images of 359: sure of the seeds, unsure of the images."""
    other = np.zeros(359)
    other[:340] = 100
    ahead = other.copy()
    ahead[340:342] = 100
    tops = {seed: ahead.mean() for seed in SEEDS}, {seed: other.mean() for seed in SEEDS}
    found = common(*tops, dict.fromkeys(SEEDS, ahead), dict.fromkeys(SEEDS, other))
    assert found is not None and found.seed_p == 0
    expected = scipy.stats.ttest_rel(ahead, other).pvalue
    assert found.p == pytest.approx(expected) and found.p > 0.05 and found.low < 0
    assert found.finding() == "not distinguishable" and found.hangs_on_images
    marks = {"greedy": dict.fromkeys(SEEDS, other), "auto": dict.fromkeys(SEEDS, ahead)}
    judged_both = answer("x", {"greedy": tops[1], "auto": tops[0]}, ["auto"], "greedy", marks)
    assert "; the seeds of auto agree, but the test examples are too few to tell." in verdict(
        [judged_both], "greedy", TOP1
    )
    many = common(*tops, *(dict.fromkeys(SEEDS, np.tile(marks, 20)) for marks in (ahead, other)))
    assert many is not None and many.finding() == "better"


def test_holm_by_hand() -> None:
    """0.01 x 3, then 0.02 x 2, then the greater of 0.04 and 0.03 x 1."""
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


# ---------------------------------------------------------------------------------------------- hypervolume


def test_a_hypervolume_by_hand() -> None:
    """From .2 to .5 top-1 60, from there on 80, above a floor of 10: (.3 * 50 + .5 * 70) / 90."""
    expected = 100 * (0.3 * 50 + 0.5 * 70) / 90
    assert hypervolume([(0.5, 80.0), (0.2, 60.0)], 10) == pytest.approx(expected)
    assert hypervolume([(0.5, 80.0), (0.2, 60.0), (0.7, 70.0), (0.9, 5.0)], 10) == pytest.approx(expected)


def test_the_best_hypervolume_is_a_hundred() -> None:
    assert hypervolume([(0.0, 100.0)], 10) == pytest.approx(100)
    assert hypervolume([], 10) == 0
    assert hypervolume([(0.1, 10.0)], 10) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(10, 100)), max_size=6))
def test_a_hypervolume_is_that_of_a_fine_grid(points: list[tuple[float, float]]) -> None:
    shares = (np.arange(4000) + 0.5) / 4000
    heights = np.full(4000, 10.0)
    for share, top1 in points:
        heights = np.where(shares >= share, np.maximum(heights, top1), heights)
    assert hypervolume(points, 10) == pytest.approx(100 * float((heights - 10).mean()) / 90, abs=0.2)


# ---------------------------------------------------------------------------------------------- the verdict


def test_a_clear_win() -> None:
    found = judged(auto=plus(0.6, 0.7, 0.5, 0.6, 0.8))
    assert (found.finding, found.leader) == ("better", "auto")
    said = verdict([found], "greedy", TOP1)
    assert said.startswith(
        "The search is worth it at 15 % of the MACs: against greedy, in points of test top-1 after fine-tuning, "
        "auto +0.64 (95 % interval +0.50 to +0.78, 5 paired seeds, p = 0.00023)."
    )


def test_a_clear_loss() -> None:
    found = judged(auto=plus(-0.6, -0.7, -0.5, -0.6, -0.8))
    assert found.finding == "worse"
    assert verdict([found], "greedy", TOP1).startswith(
        "The search is not worth it at 15 % of the MACs, where even the best is behind greedy: auto -0.64 ("
    )


METHODS = [
    ((0.6, 0.7, 0.5, 0.6, 0.8), "Another method is better at x: against greedy, in points of "),
    (
        (-0.6, -0.7, -0.5, -0.6, -0.8),
        "No other method is better at x, where even the best is behind greedy: fpgm ",
    ),
    ((0.6, -0.5, 0.1, -0.3, 0.4), "At x the best other method and greedy are not distinguishable: in points of "),
    ((0.0,) * 5, "At x no other method is better than greedy: the same top-1 with every seed."),
    ((0.6, 0.7), "Too few seeds to tell at x, where 3 pairs are the least: fpgm +0.65 (2 paired seeds) points of "),
    ((), "Nothing can be said at x: no seed has both greedy and a method finished."),
]


@pytest.mark.parametrize(("ahead", "words"), METHODS)
def test_where_nothing_searches_the_verdict_is_about_others(ahead: tuple[float, ...], words: str) -> None:
    """The best of them, by p that are corrected for their number."""
    tops = {
        "greedy": plus(*[0.0] * 5),
        "l1": plus(*(each - 1 - n / 50 for n, each in enumerate(ahead))),
        "fpgm": plus(*ahead),
    }
    found = answer("x", tops, ["l1", "fpgm"], "greedy")
    said = verdict([found], "greedy", TOP1, subject="method")
    assert said.startswith(words) and "search" not in said
    if found.leader and len(ahead) == 5:
        assert found.leader == "fpgm" and set(found.p_values) == {"l1", "fpgm"}
        assert found.p_values["fpgm"] >= found.differences["fpgm"].p
        assert "Of the other methods, l1 is worse." in said


def test_noise_is_not_distinguishable() -> None:
    found = judged(auto=plus(0.6, -0.5, 0.1, -0.3, 0.4))
    assert found.finding == "not distinguishable"
    assert verdict([found], "greedy", TOP1).startswith(
        "At 15 % of the MACs the search and greedy are not distinguishable: in points of test top-1 after "
        "fine-tuning, auto +0.06 (95 % interval "
    )


def test_differences_of_a_loss_have_its_own_sign_and_name() -> None:
    """They are judged as values, of which more is better, and told as what somebody reads off the networks."""
    loss = Metric("score", "RMSE", "m", greater_is_better=False)
    found = answer(
        "x",
        {"greedy": dict.fromkeys(SEEDS, -0.05), "auto": {seed: -0.045 + 1e-4 * (seed % 2) for seed in SEEDS}},
        ["auto"],
        "greedy",
    )
    assert found.finding == "better"
    assert verdict([found], "greedy", loss).startswith(
        "The search is worth it at x: against greedy, in m of test RMSE after fine-tuning, auto -0.00504 "
        "(95 % interval -0.0051"
    )


def test_seeds_that_vary_nothing_tell_nothing_of_chance() -> None:
    """As of a training that does not use its seed: three copies of one number are no three runs."""
    found = judged(auto=plus(*[0.4] * 5))
    difference = found.differences["auto"]
    assert difference.constant and (difference.p, difference.low, difference.high) == (1.0, -math.inf, math.inf)
    assert found.finding == "not distinguishable"
    assert verdict([found], "greedy", TOP1).startswith(
        "At 15 % of the MACs the search and greedy are not distinguishable: in points of test top-1 after "
        "fine-tuning, auto +0.40 (the same with each of 5 paired seeds, which tells no chance)."
    )
    same = judged(auto=plus(*[0.0] * 5))
    assert same.finding == "identical" and not same.differences["auto"].constant


def test_three_seeds_that_agree_in_sign_do_not_win() -> None:
    """Every resample of them is above zero, so that a bootstrap of their mean would leave zero out."""
    found = judged(auto=plus(0.1, 0.9, 0.2))
    difference = found.differences["auto"]
    assert difference.low < 0 < difference.mean
    assert found.finding == "not distinguishable"


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds(seeds: int) -> None:
    found = judged(auto=plus(*[5.0] * seeds))
    assert found.finding == "too few seeds"
    said = verdict([found], "greedy", TOP1)
    assert said.startswith("Too few seeds to tell at 15 % of the MACs, where 3 pairs are the least: auto +5.00 (")
    assert said.endswith("Set compare.seeds to 5 or more: what is finished is kept.")


def test_identical_results() -> None:
    found = judged(auto=GREEDY)
    assert found.finding == "identical"
    assert verdict([found], "greedy", TOP1).startswith(
        "At 15 % of the MACs the search found nothing better than greedy: the same top-1 with every seed."
    )


def test_missing_cells() -> None:
    """Seeds without a partner are left out; where none is left, nothing is said."""
    sample = {0: 91.0, 1: 91.2, 2: 90.8, 9: 50.0}
    found = judged(auto=sample)
    assert found.finding == "better" and found.differences["auto"].seeds == 3
    assert judged(auto={9: 50.0}).finding == "missing"
    assert judged().finding == "missing"
    alone = answer("5 % of the MACs", {"auto": GREEDY}, ["auto"], "greedy")
    assert alone.finding == "missing"
    assert verdict([alone], "greedy", TOP1) == (
        "Nothing can be said at 5 % of the MACs: no seed has both greedy and a search finished. "
        "The same command goes on with the cells that are missing."
    )
    assert verdict([], "greedy", TOP1) == "Nothing was compared."


def test_many_searches_must_win_by_more() -> None:
    """One of twenty searches that are noise, p = 0.02 by itself, is no win."""
    sample = plus(0.25, 0.6, 0.05, 0.4, 0.2)
    alone = judged(auto=sample)
    assert 0.01 < alone.differences["auto"].p < 0.05 and alone.finding == "better"
    draw = np.random.default_rng(0)
    noise = {f"s{n}": plus(*(0.3 * draw.standard_normal(5)).tolist()) for n in range(19)}
    assert judged(auto=sample, **noise).findings["auto"] == "not distinguishable"


def test_methods_without_search_are_paired_but_are_not_the_answer() -> None:
    tops = {
        "greedy": GREEDY,
        "uniform": plus(-2.0, -2.1, -1.9, -2.2, -2.0),
        "auto": plus(0.1, -0.1, 0.2, -0.2, 0.0),
    }
    found = answer("x", tops, ["auto"], "greedy")
    assert found.findings == {"uniform": "worse", "auto": "not distinguishable"}
    assert found.leader == "auto" and set(found.p_values) == {"auto"}


def test_the_leader_is_the_best_of_those_with_the_best_finding() -> None:
    found = judged(
        wild=plus(4.0, -3.0, 5.0, -2.0, 1.5),
        steady=plus(0.5, 0.6, 0.5, 0.6, 0.5),
        bad=plus(-1.0, -1.1, -0.9, -1.0, -1.1),
    )
    assert (found.leader, found.finding) == ("steady", "better")
    assert verdict([found], "greedy", TOP1).endswith(
        "Of the other searches, bad is worse, and wild is not distinguishable."
    )


def test_several_budgets_in_two_sentences() -> None:
    win, level = judged(auto=plus(0.6, 0.7, 0.5, 0.6, 0.8)), judged(auto=plus(0.6, -0.5, 0.1, -0.3, 0.4))
    few = answer("5 % of the MACs", {"greedy": {0: 1.0}, "auto": {0: 2.0}}, ["auto"], "greedy")
    said = verdict([win, level, few], "greedy", TOP1)
    assert said.startswith("The search is worth it at 15 % of the MACs: ")
    assert "). At 15 % of the MACs the search and greedy are not distinguishable" in said
    assert "; too few seeds to tell at 5 % of the MACs" in said
    both = verdict([win, win], "greedy", TOP1)
    assert both.startswith("The search is worth it at 15 % of the MACs and 15 % of the MACs: ")
