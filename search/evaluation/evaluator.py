"""Evaluation of candidates: a proxy's network on held-out training images, or its signal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.spaces.candidate import Candidate, Measure, Score
from espalier.search.tasks.classification.temperature import calibrated_cross_entropy
from espalier.search.tasks.device import device_here

MEASURES: tuple[Measure, ...] = get_args(Measure)
"""What may be compared."""
RACED: tuple[Measure, ...] = ("top1", "cross_entropy", "distillation")
"""The measures that are means over images, in the order of columns of losses."""
BOUND = 3.0
"""Standard errors by which a candidate must be behind to lose a race."""
LEAST = 100
"""Images before a race can be lost."""


class Evaluator:
    """Scores candidates, one after another, on one device.

    In a race, a candidate stops after the first scoring images on which it is behind the best one so far by more
    than `BOUND` standard errors of the paired difference. "So far" is among those that this evaluator has scored.

    Args:
        spec: networks and images, the proxy and the race.
        device: where to run.
    """

    def __init__(self, spec: EvaluationSpec, device: str = "cpu") -> None:
        self.bench, self._race = CandidateNetworks(spec, device), spec.race
        self._best: tuple[str, Tensor] | None = None  # key and losses (n, 3) of the leader

    def __call__(self, candidate: Candidate, proxy: str | None = None) -> Score:
        """The score of one candidate, by this proxy or the spec's; only the latter races."""
        start = time.perf_counter()
        prepared = PROXIES[proxy or self.bench.spec.proxy].prepare(self.bench, candidate)
        if not isinstance(prepared, nn.Module):
            return Score(math.nan, math.nan, time.perf_counter() - start, signal=prepared)
        racing = self._race is not None and proxy is None
        leader = self._best if racing else None
        losses = torch.zeros(0, len(RACED), dtype=torch.float64)
        given: list[Tensor] = []
        lost = False
        with closing(self.bench.logits(prepared, self.bench.scoring)) as batches:
            for logits in batches:
                losses = torch.cat([losses, self._losses(logits, len(losses))])
                given.append(logits)
                lost = leader is not None and self._is_behind(losses, leader[1])
                if lost:
                    break
        means = losses.mean(0)
        if leader is not None and lost:
            means = leader[1].mean(0) + (losses - leader[1][: len(losses)]).mean(0)
        elif racing and self._mean(losses) < (math.inf if leader is None else self._mean(leader[1])):
            self._best = candidate.key, losses
        wrong, cross_entropy, distillation = means.tolist()
        calibrated = math.nan if lost else calibrated_cross_entropy(torch.cat(given), self.bench.labels)
        return Score(
            100 - 100 * wrong,
            cross_entropy,
            time.perf_counter() - start,
            distillation,
            calibrated,
            images=len(losses),
            against=leader[0] if leader is not None and lost else "",
        )

    def _losses(self, logits: Tensor, done: int) -> Tensor:
        """Of the next images: wrong or not, cross-entropy, divergence from the dense network, (b, 3)."""
        labels = self.bench.labels[done : done + len(logits)]
        teacher = self.bench.teacher[done : done + len(logits)].log_softmax(1)
        wrong = (logits.argmax(1) != labels).float()
        distillation = F.kl_div(logits.log_softmax(1), teacher, reduction="none", log_target=True).sum(1)
        return (
            torch.stack([wrong, F.cross_entropy(logits, labels, reduction="none"), distillation], 1).double().cpu()
        )

    def _mean(self, losses: Tensor) -> float:
        assert self._race is not None
        return float(losses[:, RACED.index(self._race)].mean())

    def _is_behind(self, losses: Tensor, leader: Tensor) -> bool:
        assert self._race is not None
        if not LEAST <= len(losses) < len(leader):
            return False
        column = RACED.index(self._race)
        behind = losses[:, column] - leader[: len(losses), column]
        return bool(behind.mean() > BOUND * behind.std() / len(behind) ** 0.5)


def score_all(spec: EvaluationSpec, jobs: Sequence[tuple[str, Candidate]]) -> list[Score]:
    """Scores of candidates by proxies, in order, with the processor's seconds; a job for `Workers`."""
    evaluator = Evaluator(spec, device_here())
    scores = []
    for proxy, candidate in jobs:
        start = time.process_time()
        score = evaluator(candidate, proxy)
        scores.append(replace(score, seconds=time.process_time() - start))
    return scores
