"""FastNAS: what every group loses alone, and one threshold on that for all."""

from __future__ import annotations

import numpy as np

from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.methods.method import Choice, Material, Method, filled
from espalier.search.spaces.candidate import Candidate

MOST_WIDTHS = 16
"""Per group that FastNAS judges; those in between are interpolated."""


class FastNas(Method):
    """Sensitivity of every group alone, and one threshold on the damage for all, as in NVIDIA's Model Optimizer.

    A group is made narrower with all others whole, and its damage made monotone. Ranking a channel by the damage of
    the width that lacks it, globally, is then bisection of the worst damage, and fills the budget.
    """

    words = "every group narrowed alone, then one threshold on the damage for all (FastNAS)"

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Judges some widths of every group on every rung that is open, interpolates, and fills the budget."""
        space, spec = material.spaces[budget], material.spec
        evaluator = Evaluator(spec)
        each = material.trials // (len(space.rungs) * max(1, len(space.free)))
        candidates, spent = [], 0
        for rung in space.rungs:
            whole = evaluator(Candidate(rung, tuple(space.graph.sizes.tolist()))).value(material.measure)
            damages = np.zeros(space.graph.n_channels)
            spent += 1
            for group in space.free.tolist():
                size = int(space.graph.sizes[group])
                widths = _spread(int(space.floor[group]), size - 1, min(max(2, each), MOST_WIDTHS))
                found = []
                for width in widths:
                    kept = space.graph.sizes.copy()
                    kept[group] = width
                    found.append(whole - evaluator(Candidate(rung, tuple(kept.tolist()))).value(material.measure))
                spent += len(widths)
                monotone = np.maximum.accumulate(np.maximum(found, 0.0)[::-1])[::-1]
                inside = space.graph.group_of == group
                damages[inside] = np.interp(spec.ranks[rung][inside], [*widths, size], [*monotone, 0.0])
            candidates.append(filled(space, rung, damages))
        return material.best(candidates, spent=spent)


def _spread(low: int, high: int, count: int) -> list[int]:
    """Whole widths from low to high, evenly by ratio."""
    return sorted({round(width) for width in np.geomspace(max(low, 1), max(high, 1), count).tolist()})
