"""Which of several candidates fine-tuning prefers, on held-out images: finalists, strengths, greedy prunings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from espalier.errors import EspalierError
from espalier.search.cluster.jobs import Workers
from espalier.search.progress.reporter import Reporter
from espalier.search.spaces.candidate import Candidate
from espalier.search.training.finetune import TITLE, Finetuned, FinetuneSpec, finetune_pairs


@dataclass(frozen=True)
class Contest:
    """Candidates of which fine-tuning chooses one.

    Attributes:
        candidates: each once; of equal ones the first wins.
        seeds: of the fine-tunings; successive halving takes the first.
        baseline: enters the last round, and wins where no other is better; None for none.
        seconds: of the processor, that the fine-tunings took so far.
        failure: why one of the fine-tunings failed, where none of a round did not.
    """

    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    baseline: Candidate | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def winner(self) -> Candidate:
        """The first of the candidates: of contests that are decided.

        Raises:
            EspalierError: all fine-tunings of a round failed.
        """
        if self.failure:
            raise EspalierError(
                f"all fine-tunings failed, one of them with {self.failure}; what is finished is kept, and the same "
                "command, or `espalier resume`, tries them again"
            )
        return self.candidates[0]


def decide(
    spec: FinetuneSpec,
    contests: Sequence[Contest],
    halvings: int,
    folder: Path,
    rungs: Sequence[str],
    workers: Workers,
    reporter: Reporter,
    *,
    title: str = "fine-tuning finalists",
) -> list[Contest]:
    """Contests with their winner first: the best once fine-tuned, mean over seeds, on held-out images.

    Where one candidate is left, it is not fine-tuned; those whose fine-tunings fail are out. Arguments are those of
    `halve`.
    """
    where = folder, rungs, workers, reporter
    last = [
        contest
        if contest.baseline is None or contest.failure
        else replace(contest, candidates=list(dict.fromkeys((contest.baseline, *contest.candidates))))
        for contest in halve(spec, contests, halvings, *where)
    ]
    return _ranked(spec, last, *where, title=title)


def best_greedy(
    spec: FinetuneSpec,
    candidates: Sequence[Candidate],
    halvings: int,
    seed: int,
    folder: Path,
    rungs: Sequence[str],
    workers: Workers,
    reporter: Reporter,
) -> Contest:
    """The baseline called greedy: of all greedy prunings, that which fine-tuning prefers, wins on held-out images.

    Arguments are those of `halve`.
    """
    contest, title = Contest(list(dict.fromkeys(candidates)), (seed,)), "fine-tuning greedy pruning"
    return decide(spec, [contest], halvings, folder, rungs, workers, reporter, title=title)[0]


def halve(
    spec: FinetuneSpec,
    contests: Sequence[Contest],
    halvings: int,
    folder: Path,
    rungs: Sequence[str],
    workers: Workers,
    reporter: Reporter,
) -> list[Contest]:
    """Successive halving: short fine-tunings, of which the better half goes on to one of twice the length.

    Args:
        spec: the task, and the last and longest fine-tuning, which is not run here.
        contests: all at once, so that every worker has something to do.
        halvings: how often; the first fine-tuning takes 1 / 2^halvings of the epochs.
        folder: where fine-tuned networks are kept.
        rungs: digest of every rung.
        workers: where the jobs run.
        reporter: told the progress.

    Returns:
        The contests with those that are left, the best first.
    """
    left = list(contests)
    for halving in range(halvings, 0, -1):
        short = replace(spec, stage=replace(spec.stage, epochs=spec.stage.epochs / 2**halving))
        once = [replace(contest, seeds=contest.seeds[:1]) for contest in left]
        ranked = _ranked(short, once, folder, rungs, workers, reporter)
        left = [
            replace(own, candidates=own.candidates[: math.ceil(len(own.candidates) / 2)], seeds=contest.seeds)
            for own, contest in zip(ranked, contests, strict=True)
        ]
    return left


def _ranked(
    spec: FinetuneSpec,
    contests: Sequence[Contest],
    folder: Path,
    rungs: Sequence[str],
    workers: Workers,
    reporter: Reporter,
    *,
    title: str = TITLE,
) -> list[Contest]:
    """Contests with their candidates by what they are worth once fine-tuned, the best first; none that failed."""
    several = [contest for contest in contests if len(contest.candidates) > 1]
    pairs = dict.fromkeys((c, seed) for contest in several for c in contest.candidates for seed in contest.seeds)
    found = finetune_pairs(spec, list(pairs), folder, rungs, workers, reporter, title=title)

    def ranked(contest: Contest) -> Contest:
        own = {c: [found[c, seed] for seed in contest.seeds] for c in contest.candidates}
        runs = {c: [run for run in each if isinstance(run, Finetuned)] for c, each in own.items()}
        worth = {c: np.mean([spec.metric.order(run.judged) for run in each]) for c, each in runs.items() if each}
        reasons = [run for each in own.values() for run in each if isinstance(run, str)]
        return replace(
            contest,
            candidates=sorted(worth, key=lambda candidate: -worth[candidate]),
            seconds=contest.seconds + sum(run.seconds for each in runs.values() for run in each),
            failure=reasons[0] if not worth else "",
        )

    return [ranked(contest) if len(contest.candidates) > 1 else contest for contest in contests]
