"""Penalties on the channels that are to go: a share of every group, those whose filters have the smallest norms.

Notation, beside that of `regularizer`:
    s          share of every group that is to go; one channel stays in any case
    P          the channels that are to go; the others are kept

    selective decay      R(W) = 1/2 sum over c in P of n_c^2               P as the weights are now
    growing              R(W) = 1/2 sum over c in P of n_c^2               P as they were when training began
    auto-balanced        R(W) = 1/2 sum over c in P of lambda_c n_c^2 + t/2 sum over the others of lambda_c n_c^2
                         lambda_c = 1 + log(h / n_c) in P, -1 - log(n_c / h) elsewhere
                         h the least norm that is kept in the group, t such that R(W) is zero; all as training began

Their papers let the strength grow: `ramp` says over which part of the training, linearly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.graph.groups import WRITING_ROLES
from espalier.pruning.importance.regularizer import GroupNorms, Weighting, check_step
from espalier.pruning.paper import Paper

LEAST = 1e-3
"""Of h, below which a norm counts as this much: lambda stays finite at zero."""


class _Selective(GroupNorms):
    """A weighted sum of squares of the filters' norms.

    Args:
        graph: the groups.
        weighting: weights of the channels' norms.
        with_norms: whether scale and shift of batch norms belong to a channel.
        share: of every group, that is to go.

    Raises:
        ConfigError: the share is not between 0 and 1.
    """

    roles = WRITING_ROLES

    def __init__(
        self,
        graph: ChannelGraph,
        weighting: Weighting = "none",
        with_norms: bool = False,
        share: float = 0.5,
    ) -> None:
        super().__init__(graph, weighting, with_norms)
        if not 0 < share < 1:
            raise ConfigError(
                f"share must lie between 0 and 1, got {share}: it is the part of a group that is to go"
            )
        self.share = share
        self._going = torch.from_numpy(np.minimum((share * graph.sizes).astype(np.int64), graph.sizes - 1))
        self._group_of = torch.from_numpy(graph.group_of.copy())
        self._place = torch.from_numpy(np.arange(graph.n_channels) - graph.offsets[graph.group_of])

    @property
    def settings(self) -> dict[str, Any]:
        """The share."""
        return {"share": self.share}

    def factors(self, norms: Tensor) -> Tensor:
        """What the squares of norms (n_channels,) are weighted by: (n_channels,)."""
        return self.to_go(norms).to(norms)

    def combine(self, norms: Tensor) -> Tensor:
        """Half the weighted sum of squares."""
        return 0.5 * (self.factors(norms.detach()) * norms.square()).sum()

    def shrink(self, norms: Floats, step: Floats, q: Floats) -> Floats:
        """N / (1 + s factor q^2)."""
        factors = self.factors(torch.from_numpy(norms * q)).numpy()
        found: Floats = norms / (1 + step * q * factors)
        return found

    def to_go(self, norms: Tensor) -> Tensor:
        """The channels with the smallest norms of every group: bool (n_channels,)."""
        group_of = self._group_of.to(norms.device)
        order = norms.argsort(stable=True)
        order = order[group_of[order].argsort(stable=True)]  # group after group, the smallest first
        chosen = torch.zeros_like(norms, dtype=torch.bool)
        chosen[order] = self._place.to(norms.device) < self._going.to(norms.device)[group_of]
        return chosen


class SelectiveWeightDecay(_Selective):
    """Selective weight decay: half the squares of the filters that would go if the network were cut now."""

    paper = Paper("Tessier et al.", "J. Imaging 2022", "arXiv 2011.10520")


class _Settled(_Selective):
    """Factors that are settled as training begins."""

    _factors: Tensor | None = None

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Settles them by the weights as they are."""
        with torch.no_grad():
            norms = self._norms({name: weights[name].detach() for name in self.tensors}).sqrt()
            self._factors = self.settled(norms * self._weights_of(weights, norms))

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """As of any norms, once the factors are settled."""
        if self._factors is None:
            self.begin(weights)
        super().proximal_step(weights, step)

    def settled(self, norms: Tensor) -> Tensor:
        """The factors that norms (n_channels,) call for."""
        return self.to_go(norms).to(norms)

    def factors(self, norms: Tensor) -> Tensor:
        """As they were settled, or else by these norms from now on."""
        if self._factors is None:
            self._factors = self.settled(norms)
        return self._factors.to(norms)


class GrowingRegularization(_Settled):
    """GReg-1: half the squares of the filters that were the smallest as training began, with growing strength."""

    paper = Paper("Wang et al.", "ICLR 2021", "arXiv 2012.09243")


class AutoBalanced(_Settled):
    """Auto-balanced: small filters decay, and great ones grow by as much.

    The paper renews t as it trains, so that R stays zero.
    """

    paper = Paper("Ding et al.", "AAAI 2018")
    subgradients_only = "great filters are to grow, so that the proximal problem has no minimum"

    def settled(self, norms: Tensor) -> Tensor:
        """lambda, times t for those that are kept."""
        going = self.to_go(norms)
        infinite = torch.full_like(norms, torch.inf)
        group_of = self._group_of.to(norms.device)
        least = infinite[: len(self.graph.groups)].scatter_reduce(
            0, group_of, torch.where(going, infinite, norms), "amin"
        )[group_of]
        share = torch.where(least > 0, norms / least.clamp(min=torch.finfo(norms.dtype).tiny), 1.0)
        factors = torch.where(going, 1 - share.clamp(min=LEAST).log(), -1 - share.clamp(min=1).log())
        sums = factors * norms.square()
        kept = sums[~going].sum()
        balance = torch.where(kept < 0, -sums[going].sum() / kept, 0.0)
        return torch.where(going, factors, balance * factors)

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Refuses."""
        check_step(type(self), True)
