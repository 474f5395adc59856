"""The spaces that a config can name; see `espalier.search.spaces.space` for what they have in common."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from espalier.pruning.graph.costs import Floats, Ints
from espalier.search.spaces.space import Ranking, Space


class _Scaled(Space):
    """Log-multipliers of the ranking: x = 0 is greedy global pruning, or uniform pruning at evenness 1."""

    @abstractmethod
    def ties(self) -> list[str]:
        """What each free group shares its multiplier with, (F,)."""

    def axes(self) -> dict[str, BaseDistribution]:
        """Natural logarithms: scores are scaled by up to e^width either way."""
        ties = self.ties()
        names = list(dict.fromkeys(ties))
        self._axis_of = np.array([names.index(tie) for tie in ties], dtype=np.int64)
        return {name: FloatDistribution(-self.width, self.width) for name in names}

    def moves(self) -> dict[str, list[int]]:
        """The groups that share it."""
        found: dict[str, list[int]] = {}
        for tie, group in zip(self.ties(), self.free.tolist(), strict=True):
            found.setdefault(tie, []).append(group)
        return found

    def scores(self, ranking: Ranking, x: Floats) -> Floats:
        """exp(x_g) times the ranking."""
        scores: Floats = np.exp(self.spread(x))[self.graph.group_of] * self.ranked(ranking)
        return scores

    def spread(self, x: Floats) -> Floats:
        """A number per axis -> per group, (G,), zero for those without one."""
        groups = np.zeros(len(self.graph.groups))
        groups[self.free] = x[self._axis_of]
        return groups

    def at_widths(self, widths: Ints) -> Floats | None:
        """None: evenness and normalisation say it."""
        return None

    def nearest(self, widths: Ints, rung: int) -> Floats:
        """Multipliers that bring the last channel that is kept, and the first that is not, to one threshold."""
        if not self.free.size:
            return self.origin()
        ranked = self.ranked(Ranking(rung))
        logarithms = []
        for group in self.free.tolist():
            falling = np.sort(ranked[self.graph.group_of == group])[::-1]
            edge = falling[max(widths[group] - 1, 0) : widths[group] + 1]
            logarithms.append(-np.log(np.maximum(edge, np.finfo(np.float64).tiny)).mean())
        x = np.bincount(self._axis_of, logarithms) / np.bincount(self._axis_of)
        found: Floats = np.clip(x - (x.max() + x.min()) / 2, -self.width, self.width)
        return found


class Multipliers(_Scaled):
    """One multiplier per group."""

    def ties(self) -> list[str]:
        """Every group for itself."""
        return [self.graph.groups[group].name for group in self.free]


class StageMultipliers(_Scaled):
    """One multiplier for all groups at one resolution: few numbers for large networks."""

    def ties(self) -> list[str]:
        """Number of positions that the group's channels are computed at."""
        return [f"stage{positions}" for positions in self._positions()]

    def _positions(self) -> list[int]:
        shapes: dict[str, int] = {}
        for operation in self.graph.operations:
            fixed = [
                length
                for length, size in zip(operation.shape, operation.sizes, strict=True)
                if all(not monomial for monomial in size)
            ]
            if len(fixed) < len(operation.shape):
                shapes.setdefault(operation.layer, int(np.prod(fixed)))
        return [shapes.get(self.graph.groups[group].name, 0) for group in self.free]


class BlockMultipliers(StageMultipliers):
    """One multiplier for all groups of a module at one resolution, such as a residual block's inner widths."""

    def ties(self) -> list[str]:
        """Module that holds the layer which first writes the group, and the resolution."""
        parents = [self.graph.groups[group].name.rpartition(".")[0] or "top" for group in self.free]
        return [f"{parent}@{stage}" for parent, stage in zip(parents, super().ties(), strict=True)]


class Affine(Multipliers):
    """Affine maps of the ranking, exp(alpha_g) s + kappa_g (LeGR: Chin et al., CVPR 2020, arXiv 1904.12368).

    The shift is in units of the ranking's mean, so that it means the same for raw and normalised energies.
    """

    def axes(self) -> dict[str, BaseDistribution]:
        """A factor and a shift per group."""
        alphas = super().axes()
        kappas = {f"{name} shift": FloatDistribution(-self.width, self.width) for name in alphas}
        return alphas | kappas

    def moves(self) -> dict[str, list[int]]:
        """The group of a factor and of a shift."""
        alphas = super().moves()
        return alphas | {f"{name} shift": groups for name, groups in alphas.items()}

    def nearest(self, widths: Ints, rung: int) -> Floats:
        """By factors alone."""
        factors = super().nearest(widths, rung)
        return np.concatenate([factors, np.zeros(len(factors))])

    def scores(self, ranking: Ranking, x: Floats) -> Floats:
        """exp(alpha_g) times the ranking, plus kappa_g."""
        alphas, kappas = np.split(x, 2)
        base = self.ranked(ranking)
        factors, shifts = np.exp(self.spread(alphas)), self.spread(kappas) * base.mean()
        scores: Floats = factors[self.graph.group_of] * base + shifts[self.graph.group_of]
        return scores


class Ratios(Space):
    """Keep ratios per group, scaled by one common factor until the budget is met: equal ratios are uniform."""

    ranks_by_energy = False

    def axes(self) -> dict[str, BaseDistribution]:
        """Fractions kept, one channel at least."""
        groups = [self.graph.groups[group] for group in self.free]
        return {group.name: FloatDistribution(1 / group.size, 1.0) for group in groups}

    def scores(self, ranking: Ranking, x: Floats) -> Floats:
        """A channel at place p in (0, 1) of its group stays while p < x_g / t, whatever the threshold t."""
        ratios = np.ones(len(self.graph.groups))
        ratios[self.free] = x
        scores: Floats = ratios[self.graph.group_of] * self.evenly(ranking.rung)
        return scores

    def at_widths(self, widths: Ints) -> Floats:
        """The share that each group keeps, of one channel where its branch is out."""
        shares: Floats = np.maximum(widths, 1) / self.graph.sizes
        return shares[self.free]


class Widths(Ratios):
    """Whole widths per group; those that fill the budget are taken as they are, others scaled until they do."""

    def axes(self) -> dict[str, BaseDistribution]:
        """Channels kept."""
        names, sizes = [group.name for group in self.graph.groups], self.graph.sizes.tolist()
        return {names[group]: IntDistribution(int(self.floor[group]), sizes[group]) for group in self.free}

    def scores(self, ranking: Ranking, x: Floats) -> Floats:
        """As of the ratios that the widths are."""
        return super().scores(ranking, x / self.graph.sizes[self.free])

    def at_widths(self, widths: Ints) -> Floats:
        """The widths themselves, the least that there is where the branch is out."""
        return np.maximum(widths, self.floor)[self.free].astype(np.float64)


SPACES: dict[str, type[Space]] = {
    "multipliers": Multipliers,
    "block_multipliers": BlockMultipliers,
    "stage_multipliers": StageMultipliers,
    "affine": Affine,
    "ratios": Ratios,
    "widths": Widths,
}
"""Name in a config -> class."""
