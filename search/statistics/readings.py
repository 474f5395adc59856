"""Readings of networks beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import Paired, paired
from espalier.search.tasks.task import Reading


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
    scale = scale_of([own[seed] for own in (first, second) for seed in seeds])
    marks = []
    for seed in seeds:
        a, b = first[seed].examples, second[seed].examples
        if scale and a is not None and b is not None and a.shape == b.shape:
            marks.append(metric.value(scale) * (a.astype(np.float64) - b))
    return paired(
        one,
        other,
        np.stack(marks) if len(marks) == len(seeds) and len({len(each) for each in marks}) == 1 else None,
    )


def scale_of(readings: Sequence[Reading]) -> float:
    """What numbers of examples are multiplied by so that their mean is the reading.

    1; 100 where right ones are counted in percent; 0 where readings are no means of their examples.
    """
    known = [(float(each.examples.mean()), each.value) for each in readings if each.examples is not None]
    for scale in (1.0, 100.0):
        if all(math.isclose(scale * mean, value, rel_tol=1e-4, abs_tol=1e-6) for mean, value in known):
            return scale
    return 0.0
