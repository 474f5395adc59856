"""Readings on single examples say the same in whichever unit they come."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.search.compare.cells import packed, unpacked
from espalier.search.spaces.metric import Metric
from espalier.search.statistics.readings import differences_of
from espalier.search.tasks.task import Reading


def test_right_and_wrong_are_the_same_as_numbers_in_percent() -> None:
    """The task in the box gives bits and a percentage, a function of one's own numbers of which it is the mean."""
    draw, percent = np.random.default_rng(0), Metric("top1", "top-1", "%", True)
    right = {(name, seed): draw.random(50) < share for name, share in (("a", 0.9), ("b", 0.6)) for seed in range(3)}

    def readings(name: str, scale: float) -> dict[int, Reading]:
        own = {seed: right[name, seed] for seed in range(3)}
        return {
            seed: Reading(100 * float(bits.mean()), bits if scale == 1 else 100.0 * bits)
            for seed, bits in own.items()
        }

    bits, numbers = (differences_of(readings("a", scale), readings("b", scale), percent) for scale in (1, 100))
    assert bits is not None and numbers is not None
    assert numbers == bits and 10 < bits.high - bits.low < 100  # of points


def test_an_error_on_each_example_is_in_its_own_unit() -> None:
    draw, error = np.random.default_rng(0), Metric("score", "squared error", "", False)
    first = {seed: draw.random(40) for seed in range(4)}
    second = {seed: own + 0.5 + 0.01 * draw.random(40) for seed, own in first.items()}
    one, other = ({seed: Reading(float(own.mean()), own) for seed, own in each.items()} for each in (first, second))
    found = differences_of(one, other, error)
    assert found is not None and found.finding() == "better" and found.mean == pytest.approx(0.505, abs=0.005)
    assert found.high - found.low < 0.02


def test_bits_and_numbers_are_kept() -> None:
    bits = np.array([True, False, True])
    assert unpacked(packed(bits), 0).tolist() == bits.tolist()  # a task need not say how many there are
    assert unpacked("oA==", 3).tolist() == bits.tolist()  # as older comparisons keep them
    numbers = np.array([100.0, 0.25, -3.0])
    assert unpacked(packed(numbers), 3).tolist() == numbers.tolist() and packed(None) == ""


def test_readings_that_are_no_means_have_no_marks() -> None:
    """Such as a perplexity, with losses on the examples: only seeds speak then."""
    draw, metric = np.random.default_rng(0), Metric("score", "perplexity", "", False)
    first, second = (
        {seed: Reading(float(np.exp(own.mean())), own) for seed, own in enumerate(draw.random((4, 40)) + ahead)}
        for ahead in (0.0, 0.2)
    )
    plain, bare = (
        {seed: Reading(each.value, None) for seed, each in readings.items()} for readings in (first, second)
    )
    assert differences_of(first, second, metric) == differences_of(plain, bare, metric)
