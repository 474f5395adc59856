"""Which strength serves a budget: baselines cut from every rung of the ladder are fine-tuned, and the best decides.

The stronger the regulariser, the less a network loses when it is cut, and that tells little of what it is worth
once it is fine-tuned. A proxy that takes no step of training ranks the widths of one rung well, and rungs wrongly,
which cost ten points on CIFAR-10 (docs/search.md). So it is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from espalier.pruning.budget import Budget
from espalier.search.spaces.candidate import Candidate
from espalier.search.training.ladder import Rung


def ranked_rungs(tops: Mapping[str, float]) -> dict[int, float]:
    """Rung -> top-1 of its best baseline, the best rung first; of equal ones the weaker."""
    best: dict[int, float] = {}
    for key, top1 in tops.items():
        rung = Candidate.from_key(key).rung
        best[rung] = max(top1, best.get(rung, 0.0))
    return dict(sorted(best.items(), key=lambda item: (-item[1], item[0])))


def words(budget: Budget, ranked: Mapping[int, float], rungs: Sequence[Rung]) -> str:
    """Says which strength serves a budget, and how far the others are behind."""
    (best, top1), *others = ranked.items()
    rest = "".join(f", {other:.2f} at {rungs[rung].strength:g}" for rung, other in others)
    return (
        f"strength {rungs[best].strength:g} for {budget}: the better of greedy and uniform pruning has "
        f"{top1:.2f} % of held-out images right once fine-tuned{rest}"
    )
