"""Readings of networks beside each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import Paired, paired
from espalier.search.tasks.task import Array, Reading


def differences_of(first: Mapping[int, Reading], second: Mapping[int, Reading], metric: Metric) -> Paired | None:
    """The difference over the seeds that both have, greater is better; None where they share none.

    Args:
        first: by seed.
        second: likewise.
        metric: what they are readings of.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    one, other = ([metric.value(own[seed].value) for seed in seeds] for own in (first, second))
    marks = []
    for seed in seeds:
        a, b = first[seed].examples, second[seed].examples
        if a is not None and b is not None and a.shape == b.shape:
            marks.append(metric.value(1) * (_in_unit(first[seed]) - _in_unit(second[seed])))
    return paired(
        one,
        other,
        np.stack(marks) if len(marks) == len(seeds) and len({len(each) for each in marks}) == 1 else None,
    )


def _in_unit(reading: Reading) -> Array:
    """What a network is worth on each example, in the unit of its value: of right or wrong ones, in percent."""
    assert reading.examples is not None
    examples = reading.examples.astype(np.float64)
    mean = float(examples.mean())
    return 100 * examples if abs(100 * mean - reading.value) < abs(mean - reading.value) else examples
