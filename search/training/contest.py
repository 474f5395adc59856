"""Which of several candidates fine-tuning prefers, on held-out images: finalists, strengths, greedy prunings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from espalier.errors import EspalierError
from espalier.search.spaces.candidate import Candidate
from espalier.search.training.finetune import Finetuned, FineTuner


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
    finetuner: FineTuner, contests: Sequence[Contest], halvings: int, *, title: str = "fine-tuning finalists"
) -> list[Contest]:
    """Contests with their winner first: the best once fine-tuned, mean over seeds, on held-out images.

    Where one candidate is left, it is not fine-tuned; those whose fine-tunings fail are out.

    Args:
        finetuner: of the last and longest fine-tuning.
        contests: all at once, so that every worker has something to do.
        halvings: rounds of successive halving before it.
        title: what the last round is called.
    """
    if finetuner.spec.task.steps(finetuner.spec.stage) and (said := cost_of(contests, halvings)):
        finetuner.reporter.say(f"{title}: {said}")
    last = [
        contest
        if contest.baseline is None or contest.failure
        else replace(contest, candidates=list(dict.fromkeys((contest.baseline, *contest.candidates))))
        for contest in halve(finetuner, contests, halvings)
    ]
    return _ranked(finetuner.titled(title), last)


def best_greedy(finetuner: FineTuner, candidates: Sequence[Candidate], halvings: int, seed: int) -> Contest:
    """The baseline called greedy: of all greedy prunings, that which fine-tuning prefers, wins on held-out images.

    Arguments are those of `decide`.
    """
    contest = Contest(list(dict.fromkeys(candidates)), (seed,))
    return decide(finetuner, [contest], halvings, title="fine-tuning greedy pruning")[0]


def halve(finetuner: FineTuner, contests: Sequence[Contest], halvings: int) -> list[Contest]:
    """Successive halving: short fine-tunings, of which the better half goes on to one of twice the length.

    Args:
        finetuner: of the last and longest fine-tuning, which is not run here.
        contests: all at once.
        halvings: how often; the first fine-tuning takes 1 / 2^halvings of the epochs.

    Returns:
        The contests with those that are left, the best first.
    """
    left = list(contests)
    for halving in range(halvings, 0, -1):
        once = [replace(contest, seeds=contest.seeds[:1]) for contest in left]
        ranked = _ranked(finetuner.for_share(1 / 2**halving), once)
        left = [
            replace(own, candidates=own.candidates[: math.ceil(len(own.candidates) / 2)], seeds=contest.seeds)
            for own, contest in zip(ranked, contests, strict=True)
        ]
    return left


def cost_of(contests: Sequence[Contest], halvings: int) -> str:
    """What it takes to decide, in words; nothing where there is nothing to decide."""
    rounds, whole, left = [], 0.0, [len(contest.candidates) for contest in contests]
    for halving in range(halvings, 0, -1):
        if runs := sum(count for count in left if count > 1):
            rounds.append(f"{runs} runs of 1/{2**halving} of the epochs")
            whole += runs / 2**halving
        left = [math.ceil(count / 2) for count in left]
    last = 0
    for contest, count in zip(contests, left, strict=True):
        dropped = count < len(contest.candidates) or contest.baseline not in contest.candidates
        entered = count + (contest.baseline is not None and dropped)
        last += entered * len(contest.seeds) if entered > 1 else 0
    rounds += [_runs(last)] if last else []
    effort = f": as much training as {_runs(whole + last)}" if whole else ""
    return f"{', then '.join(rounds)}, at most{effort}" if rounds else ""


def _runs(count: float) -> str:
    return f"{count:g} whole run{'s' if count != 1 else ''}"


def _ranked(finetuner: FineTuner, contests: Sequence[Contest]) -> list[Contest]:
    """Contests with their candidates by what they are worth once fine-tuned, the best first; none that failed."""
    several = [contest for contest in contests if len(contest.candidates) > 1]
    pairs = dict.fromkeys((c, seed) for contest in several for c in contest.candidates for seed in contest.seeds)
    found, order = finetuner(list(pairs)), finetuner.spec.metric.order

    def ranked(contest: Contest) -> Contest:
        own = {c: [found[c, seed] for seed in contest.seeds] for c in contest.candidates}
        runs = {c: [run for run in each if isinstance(run, Finetuned)] for c, each in own.items()}
        whole = {c: each for c, each in runs.items() if len(each) == len(contest.seeds)}
        worth = {c: np.mean([order(run.judged) for run in each]) for c, each in whole.items()}
        reasons = [run for each in own.values() for run in each if isinstance(run, str)]
        return replace(
            contest,
            candidates=sorted(worth, key=lambda candidate: -worth[candidate]),
            seconds=contest.seconds + sum(run.seconds for each in runs.values() for run in each),
            failure=reasons[0] if not worth else "",
        )

    return [ranked(contest) if len(contest.candidates) > 1 else contest for contest in contests]
