"""Evaluation of candidates: a proxy's network on held-out training examples, or its signal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.spaces.candidate import Candidate, Score

BOUND = 3.0
"""Standard errors by which a candidate must be behind to lose a race."""
LEAST = 100
"""Examples before a race can be lost."""


class Evaluator:
    """Scores candidates, one after another, on one device.

    In a race, a candidate stops after the first scoring examples on which it is behind the best one so far by more
    than `BOUND` standard errors of the paired difference. "So far" is among those that this evaluator has scored.

    Args:
        spec: networks and examples, the proxy and the race.
        device: where to run; by default, where this process computes.
    """

    def __init__(self, spec: EvaluationSpec, device: str | None = None) -> None:
        self.networks, self._scoring = CandidateNetworks(spec, device), spec.scoring
        self._column = None if spec.race is None else spec.scoring.raced.index(spec.race)
        self._best: tuple[str, Tensor] | None = None  # key and losses of the leader

    def __call__(self, candidate: Candidate, proxy: str | None = None) -> Score:
        """The score of one candidate, by this proxy or the spec's; only the latter races."""
        start = time.perf_counter()
        prepared = PROXIES[proxy or self.networks.spec.proxy].prepare(self.networks, candidate)
        if not isinstance(prepared, nn.Module):
            return Score({}, time.perf_counter() - start, signal=prepared)
        column = self._column if proxy is None else None
        key, leader = self._best if self._best is not None and column is not None else ("", None)

        def lost(losses: Tensor) -> bool:
            return leader is not None and _is_behind(losses[:, column], leader[:, column])

        found = self._scoring.score(self.networks.runner, prepared, lost)
        losses = found.losses
        against = key if lost(losses) else ""
        means = losses.mean(0)
        if leader is not None and against:
            means = leader.mean(0) + (losses - leader[: len(losses)]).mean(0)
        elif column is not None and losses[:, column].mean() < (
            math.inf if leader is None else leader[:, column].mean()
        ):
            self._best = candidate.key, losses
        measures = self._scoring.means(means) | dict(found.measures)
        return Score(measures, time.perf_counter() - start, images=len(losses), against=against)


def _is_behind(losses: Tensor, leader: Tensor) -> bool:
    """Of losses (n,) and the leader's on all examples."""
    if not LEAST <= len(losses) < len(leader):
        return False
    behind = losses - leader[: len(losses)]
    return bool(behind.mean() > BOUND * behind.std() / len(behind) ** 0.5)


def score_all(spec: EvaluationSpec, jobs: Sequence[tuple[str, Candidate]]) -> list[Score]:
    """Scores of candidates by proxies, in order, with the processor's seconds; a job for `Workers`."""
    evaluator = Evaluator(spec)
    scores = []
    for proxy, candidate in jobs:
        start = time.process_time()
        score = evaluator(candidate, proxy)
        scores.append(replace(score, seconds=time.process_time() - start))
    return scores
