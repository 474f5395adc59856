"""Which strength serves a budget: baselines cut from every rung of the ladder are fine-tuned, and the best decides.

The stronger the regulariser, the less a network loses when it is cut, and that tells little of what it is worth
once it is fine-tuned. A proxy that takes no step of training ranks the widths of one rung well, and rungs wrongly,
which cost ten points on CIFAR-10 (docs/search.md). So it is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from espalier.pruning.budget import Budget
from espalier.pruning.costs import Floats
from espalier.search.cluster.jobs import Workers
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.run.experiment import Assembly
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space
from espalier.search.study.keys import STRENGTH
from espalier.search.training.finalists import halve
from espalier.search.training.finetune import finetune_all
from espalier.search.training.ladder import Rung
from espalier.search.training.seeds import selection_seeds

Once = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""Name, and how to make it -> what is on record by that name, made where there is none."""


def spaces_under(
    budgets: Iterable[Budget],
    parts: Assembly,
    energies: Sequence[Floats],
    rungs: Sequence[Rung],
    spec: EvaluationSpec,
    workers: Workers,
    once: Once,
) -> dict[Budget, Space]:
    """What is open under each budget: the rung that serves it, or all where the config searches strengths.

    Args:
        budgets: of the config's.
        parts: of the search.
        energies: of every rung.
        rungs: the ladder.
        spec: what fine-tuning starts from.
        workers: where it runs.
        once: of the record, so that a study goes on with what was chosen for it.
    """
    every = {budget: parts.space(energies, budget) for budget in budgets}
    if parts.config.search.strength == "searched" or len(rungs) == 1:
        return every
    found = {}
    for budget, space in every.items():
        tops = once(STRENGTH + budget.key, partial(_finetuned, parts, space, rungs, spec, workers))
        ranked = _ranked(tops)
        parts.reporter.say(_words(budget, ranked, rungs))
        found[budget] = parts.space(energies, budget, [next(iter(ranked))])
    return found


def _finetuned(
    parts: Assembly, space: Space, rungs: Sequence[Rung], spec: EvaluationSpec, workers: Workers
) -> dict[str, float]:
    """Key of each baseline -> top-1 on held-out images once fine-tuned; of those that successive halving leaves."""
    config, tuning, digests = parts.config, parts.finetuning(spec), [rung.digest for rung in rungs]
    (seed,) = selection_seeds(config.seed)
    folder, baselines = parts.out / "finetuned", [*space.greedy_candidates(), *space.uniform_candidates()]
    left = halve(
        tuning,
        list(dict.fromkeys(baselines)),
        config.finetune.halvings,
        seed,
        folder,
        digests,
        workers,
        parts.reporter,
    )
    runs = finetune_all(tuning, left, [seed], folder, digests, workers, parts.reporter)
    return {run.candidate.key: run.top1 for run in runs}


def _ranked(tops: Mapping[str, float]) -> dict[int, float]:
    """Rung -> top-1 of its best baseline, the best rung first; of equal ones the weaker."""
    best: dict[int, float] = {}
    for key, top1 in tops.items():
        rung = Candidate.from_key(key).rung
        best[rung] = max(top1, best.get(rung, 0.0))
    return dict(sorted(best.items(), key=lambda item: (-item[1], item[0])))


def _words(budget: Budget, ranked: Mapping[int, float], rungs: Sequence[Rung]) -> str:
    (best, top1), *others = ranked.items()
    rest = "".join(f", {other:.2f} at {rungs[rung].strength:g}" for rung, other in others)
    return (
        f"strength {rungs[best].strength:g} for {budget}: the better of greedy and uniform pruning has "
        f"{top1:.2f} % of held-out images right once fine-tuned{rest}"
    )
