"""CMA-ES, the evolution strategy that adapts its covariance matrix.

A generation is sampled from a normal distribution, whose mean and covariance then move towards its better half.
The distribution is not stored: what was told is replayed from the record, and each trial is marked with the
generation that it was drawn in. Optuna's CmaEsSampler pickles the distribution into attributes of the study, which
takes tens of milliseconds per trial on SQLite, and is about to lose the argument that says where it begins.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from espalier.pruning.graph.costs import Floats
from espalier.search.samplers.record import Observations, RecordSampler
from espalier.search.spaces.space import Space

SIGMA = 1 / 6
"""First standard deviation, in ranges."""


class CmaEs(RecordSampler):
    """CMA-ES from the best trial that others proposed before: greedy pruning, or what a portfolio found.

    Args:
        space: what is searched.
        seed: of the study.
        separable: learn variances alone, no covariances: faster with many numbers.
    """

    def __init__(self, space: Space, seed: int, *, separable: bool = False, sigma: float = SIGMA) -> None:
        super().__init__(space, seed)
        self._separable, self._sigma = separable, sigma
        self._optimizer: Any = None
        self._told: list[tuple[float, ...]] = []  # where it began, then numbers of the trials that it was told

    def propose(self, record: Observations, rng: np.random.Generator) -> tuple[Floats, Any]:
        """Replays what is new in the record, then draws."""
        generation = self._replay(record)
        self._optimizer.reseed_rng(int(rng.integers(2**31)))
        return np.asarray(self._optimizer.ask(), dtype=np.float64), generation

    def _replay(self, record: Observations) -> int:
        begin = self._begin(record)
        generations: dict[int, list[int]] = {}
        for index, mark in enumerate(record.marks):
            if isinstance(mark, int):
                generations.setdefault(mark, []).append(index)
        size = self._size()
        batches: list[list[int]] = []
        while len(generations.get(len(batches), ())) >= size:
            batches.append(generations[len(batches)][:size])
        wanted = [tuple(begin.tolist()), *(tuple(record.numbers[i] for i in batch) for batch in batches)]
        if self._optimizer is None or wanted[: len(self._told)] != self._told:
            self._optimizer, self._told = self._make(begin), wanted[:1]
        for batch in batches[len(self._told) - 1 :]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                self._optimizer.tell([(record.points[i], -float(record.values[i])) for i in batch])
        self._told = wanted
        return len(batches)

    def _begin(self, record: Observations) -> Floats:
        others = [i for i, mark in enumerate(record.marks) if not isinstance(mark, int)]
        first = next((i for i, mark in enumerate(record.marks) if isinstance(mark, int)), len(record))
        before = [i for i in others if i < first]
        point = record.points[max(before, key=lambda i: (record.values[i], -i))] if before else self.anchors[0]
        begin: Floats = np.clip(point, self._sigma / 2, 1 - self._sigma / 2)
        return begin

    def _size(self) -> int:
        return 4 + int(3 * np.log(self.cube.dim))

    def _make(self, begin: Floats) -> Any:
        import cmaes

        kind = cmaes.SepCMA if self._separable and self.cube.dim > 1 else cmaes.CMA
        bounds = np.tile([0.0, 1.0], (self.cube.dim, 1))
        return kind(
            mean=begin,
            sigma=self._sigma,
            bounds=bounds,
            n_max_resampling=10 * self.cube.dim,
            population_size=self._size(),
            seed=0,
        )
