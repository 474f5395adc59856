"""Which strength serves a budget: baselines cut from every rung of the ladder are fine-tuned, and the best decides.

The stronger the regulariser, the less a network loses when it is cut, and that tells little of what it is worth
once it is fine-tuned. A proxy that takes no step of training ranks the widths of one rung well, and rungs wrongly,
which cost ten points on CIFAR-10 (docs/search.md). So it is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from espalier.errors import EspalierError
from espalier.pruning.graph.budget import Budget
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.space import Space
from espalier.search.training.contest import Contest, halve
from espalier.search.training.finetune import FineTuner
from espalier.search.training.strengths import Rung


def finetuned_baselines(finetuner: FineTuner, space: Space, halvings: int, seed: int) -> dict[str, float]:
    """Key of each baseline that successive halving leaves -> what it is worth on held-out examples once fine-tuned.

    Args:
        finetuner: of the whole fine-tuning.
        space: whose greedy and uniform candidates are the baselines.
        halvings: rounds of successive halving.
        seed: of the fine-tunings.
    """
    baselines = list(dict.fromkeys([*space.greedy_candidates(), *space.uniform_candidates()]))
    (left,) = halve(finetuner, [Contest(baselines, (seed,))], halvings)
    runs = finetuner.titled("fine-tuning to choose the strength").finished(left.candidates, [seed])
    judged = {run.candidate.key: run.judged for run in runs if math.isfinite(run.judged)}
    if not judged:
        raise EspalierError(
            f"the {finetuner.spec.metric.title} of all of {len(runs)} networks pruned to the budget and fine-tuned "
            "is no finite number: nothing can be compared by it; correct the score, or what it divides by"
        )
    return judged


def ranked_rungs(judged: Mapping[str, float], metric: Metric) -> dict[int, float]:
    """Rung -> what its best baseline is worth, the best rung first; of equal ones the weaker."""
    best: dict[int, float] = {}
    for key, number in judged.items():
        rung = Candidate.from_key(key).rung
        best[rung] = max(number, best.get(rung, number), key=metric.order)
    return dict(sorted(best.items(), key=lambda item: (-metric.order(item[1]), item[0])))


def words(budget: Budget, ranked: Mapping[int, float], rungs: Sequence[Rung], metric: Metric) -> str:
    """Says which strength serves a budget, and how far the others are behind."""
    (best, judged), *others = ranked.items()
    rest = "".join(f", {metric.text(other)} at {rungs[rung].strength:g}" for rung, other in others)
    return (
        f"strength {rungs[best].strength:g} for {budget}: the better of greedy and uniform pruning has a held-out "
        f"{metric.words(judged)} once fine-tuned{rest}"
    )
