"""Samplers that work from the record: all that they know is the space, the seed and the study's trials."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from espalier.optuna_private import FIXED, id_of_trial, storage_of
from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.cube import Cube
from espalier.search.samplers.per_trial import trial_seed
from espalier.search.spaces.space import Space
from espalier.search.study.keys import CANDIDATE

MARK = "espalier:sampler"
"""System attribute of a trial: what the sampler noted when it proposed it."""
TRIES = 6
"""Proposals drawn for a trial while they mean candidates that earlier trials had."""
SHAKE = 0.25
"""Standard deviation, in ranges, of what is added to the last of them, so that no search stands still."""


@dataclass(frozen=True)
class Observations:
    """The trials of a study when another one is asked for, as points of the cube, in the order of their numbers.

    Attributes:
        number: of the trial that is asked for.
        numbers: (n) of those that are COMPLETE.
        points: (n, d) theirs.
        values: (n,) theirs; greater is better.
        marks: (n) what was noted of each when it was proposed, or None.
        candidates: (n) keys of what they meant.
        known: keys of the candidates of all trials, also of those that run, failed or were stopped.
    """

    number: int
    numbers: Sequence[int]
    points: Floats
    values: Floats
    marks: Sequence[Any]
    candidates: Sequence[str]
    known: Set[str]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def best(self) -> int:
        """Index of the greatest value, the earliest among equals."""
        return int(np.argmax(self.values))

    def at(self, point: Floats) -> int | None:
        """Index of the earliest COMPLETE trial at a point, or None."""
        found = np.flatnonzero((np.abs(self.points - point) < 1e-9).all(axis=1))
        return int(found[0]) if len(found) else None


class RecordSampler(BaseSampler, ABC):
    """A sampler that proposes whole vectors of a space from the record.

    In a study of other parameters than the space's, those that it knows are proposed and others drawn at random;
    trials that lack some of the space's numbers are not learned from.

    Args:
        space: what is searched.
        seed: of the study.

    Attributes:
        anchors: (k, d) points of greedy pruning, where searches begin.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed
        self.cube = Cube(space.distributions())
        anchors = [self.cube.encode(params) for params in space.greedy_params()]
        self.anchors: Floats = np.array(list({tuple(anchor.tolist()): anchor for anchor in anchors}.values()))
        self._points: dict[int, Floats | None] = {}  # of finished trials, by id; only ever saves time
        self._keys: dict[int, str] = {}  # candidates of finished trials, likewise

    @abstractmethod
    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """The point of the next trial, (d,), and what to note of it, or None.

        Args:
            record: the trials so far.
            rng: seeded by the study's seed and the trial's number.
        """

    def draw(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """A proposal that means a candidate which no trial had; the last of `TRIES`, shaken, where none does."""
        for _ in range(TRIES):
            point, mark = self.propose(record, rng)
            if not record.known or self.key(point) not in record.known:
                return point, mark
        return self.cube.mutated(point, self.cube.some(0.5, rng), SHAKE, rng), mark

    def key(self, point: Floats) -> str:
        """Key of the candidate that a point means."""
        return self.space.decode(self.cube.decode(point)).key

    def start(self, record: Observations) -> Floats:
        """The point of greedy pruning with the greatest value so far; of the first one where none has finished."""
        found = [index for anchor in self.anchors if (index := record.at(anchor)) is not None]
        best: Floats = record.points[found[int(record.values[found].argmax())]] if found else self.anchors[0]
        return best

    # -- what Optuna calls

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All numbers of the space."""
        return dict(self.cube.ranges)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A whole vector; nothing for a trial that was enqueued with one."""
        if search_space.keys() <= trial.system_attrs.get(FIXED, {}).keys():
            return {}
        trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        record = self._record(trial.number, trials, 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0)
        point, mark = self.draw(record, np.random.default_rng(trial_seed(self.seed, trial.number)))
        params = self.cube.decode(point)
        if mark is not None:
            storage_of(study).set_trial_system_attr(id_of_trial(trial), MARK, mark)
        elsewhere = _ranges(trials)
        return {name: params[name] for name, own in search_space.items() if elsewhere.get(name, own) == own}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random: parameters that the space lacks."""
        seed = trial_seed(trial_seed(self.seed, trial.number), zlib.crc32(param_name.encode()))
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    # -- the record

    def _record(self, number: int, trials: Sequence[FrozenTrial], sign: float) -> Observations:
        numbers, points, values, marks, candidates, known = [], [], [], [], [], set()
        for trial in trials:
            point = self._point(trial)
            if point is None:
                continue
            key = self._key(trial, point)
            known.add(key)
            if trial.state is TrialState.COMPLETE and trial.value is not None:
                numbers.append(trial.number)
                points.append(point)
                values.append(sign * trial.value)
                marks.append(trial.system_attrs.get(MARK))
                candidates.append(key)
        together = np.reshape(points, (-1, self.cube.dim))
        return Observations(number, numbers, together, np.array(values), marks, candidates, known)

    def _point(self, trial: FrozenTrial) -> Floats | None:
        """Where a trial lies, or None: it is of another space, or not drawn yet."""
        if id_of_trial(trial) in self._points:
            return self._points[id_of_trial(trial)]
        whole = all(trial.distributions.get(name) == found for name, found in self.cube.ranges.items())
        point = self.cube.encode(trial.params) if whole else None
        if trial.state.is_finished():
            self._points[id_of_trial(trial)] = point
        return point

    def _key(self, trial: FrozenTrial, point: Floats) -> str:
        key = self._keys.get(id_of_trial(trial)) or trial.user_attrs.get(CANDIDATE)
        if key is None:
            key = self.key(point)
        if trial.state.is_finished():
            self._keys[id_of_trial(trial)] = key
        return str(key)


def _ranges(trials: Sequence[FrozenTrial]) -> Mapping[str, BaseDistribution]:
    """Name -> range that the latest trial which has it was drawn from."""
    return {name: found for trial in trials for name, found in trial.distributions.items()}
