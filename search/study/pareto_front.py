"""The front of a search between budgets: what no other candidate beats in value at the same or fewer MACs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import optuna

from espalier.search.spaces.space import Space
from espalier.search.study.ledger import Record, record_of

BAND = 1.25
"""Factor of MACs within which a vector is worth a try under another budget than its own."""


@dataclass(frozen=True)
class Point:
    """A candidate of the front, or of greedy pruning beside it.

    Attributes:
        trial: its number.
        macs: per image.
        value: by the study's measure, higher is better.
        greedy: whether this is greedy pruning under one of the budgets asked for.
        beaten: whether another candidate has no more MACs and no less value.
    """

    trial: int
    macs: int
    value: float
    greedy: bool
    beaten: bool


def front(study: optuna.Study, space: Space) -> list[Point]:
    """The front, and every greedy candidate, by rising MACs; of equal candidates the first trial."""
    greedy = set(space.greedy_candidates())
    unbeaten = {trial.number for trial in study.best_trials}
    points, seen = [], set()
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        record = record_of(trial)
        candidate = record.candidate
        if candidate not in seen and (trial.number in unbeaten or candidate in greedy):
            seen.add(candidate)
            macs = int(space.graph.macs(candidate.widths))
            beaten = trial.number not in unbeaten
            points.append(Point(trial.number, macs, record.value, candidate in greedy, beaten))
    return sorted(points, key=lambda point: (point.macs, point.value))


def near(records: Sequence[Record], space: Space) -> list[Record]:
    """Those of MACs within `BAND` of a budget's, as the candidates that their vectors mean under it.

    Args:
        records: of a search between budgets.
        space: under one of them.
    """
    assert space.budget.macs is not None, "a front lies between budgets of MACs"
    low, high = space.budget.macs / BAND, space.budget.macs * BAND
    return [
        replace(record, candidate=space.decode(record.params))
        for record in records
        if low <= int(space.graph.macs(record.candidate.widths)) <= high
    ]
