"""Readings of networks beside each other."""

from __future__ import annotations

from collections.abc import Mapping

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
    marks = []
    for seed in seeds:
        a, b = first[seed].examples, second[seed].examples
        if a is not None and b is not None and a.shape == b.shape:
            marks.append((100 if metric.unit == "%" else 1) * metric.value(1) * (a.astype(np.float64) - b))
    return paired(
        one,
        other,
        np.stack(marks) if len(marks) == len(seeds) and len({len(each) for each in marks}) == 1 else None,
    )
