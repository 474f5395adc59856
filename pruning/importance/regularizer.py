"""What a regulariser is: a penalty on the weights that one graph describes, and its proximal step.

Notation:
    c          a prunable channel, one of n_channels
    W_c        its slices, stacked: those that write it and, out-in-channel, those that read it
    q_c        weight of its norm: 1, or the square root of the number of weights in W_c
    n_c        q_c ||W_c||_2
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.graph.groups import WEIGHT_ROLES, Role
from espalier.pruning.importance.energy import ChannelNorms, widened
from espalier.pruning.paper import Paper

Weighting = Literal["none", "sqrt_size"]
"""What the norm of a channel is multiplied by: nothing, or the square root of its number of weights."""


class Regularizer(ABC):
    """A penalty on the weights of the networks that one graph describes.

    Args:
        graph: the groups.
        weighting: weights of the channels' norms.
        with_norms: whether scale and shift of batch norms belong to a channel.

    Attributes:
        paper: where it is from.
        subgradients_only: why there is no proximal step; empty where there is one.
    """

    paper: ClassVar[Paper | None] = None
    subgradients_only: ClassVar[str] = ""

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        if weighting not in ("none", "sqrt_size"):
            raise ConfigError(f"weighting must be none or sqrt_size, got {weighting!r}")
        self.graph, self.weighting, self.with_norms = graph, weighting, with_norms

    @property
    @abstractmethod
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with beside the graph, weighting and norms, as JSON."""
        return {}

    def begin(self, weights: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Told the parameters that a training starts with, by name, before it takes a step or goes on with one."""

    @abstractmethod
    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Penalty, a scalar, of parameters by name; differentiable, the subgradient 0 being taken at zero."""

    @abstractmethod
    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Replaces V by argmin_W 1/2 ||W - V||^2 + step R(W), in place.

        Args:
            weights: parameters by name.
            step: learning rate x strength.

        Raises:
            ConfigError: there is no such step.
        """


class GroupNorms(Regularizer):
    """Penalties on the norms of channels."""

    roles: tuple[Role, ...] = WEIGHT_ROLES
    ITERATIONS = 100
    TOLERANCE = 1e-6

    def __init__(self, graph: ChannelGraph, weighting: Weighting = "none", with_norms: bool = False) -> None:
        super().__init__(graph, weighting, with_norms)
        roles = (*self.roles, "norm", "shift") if with_norms else self.roles
        self._norms = ChannelNorms(graph, roles)
        self._colours = [ChannelNorms(graph, roles, groups) for groups in _disjoint(graph, roles)]
        self._q: Tensor | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty is on."""
        return self._norms.tensors

    @abstractmethod
    def combine(self, norms: Tensor) -> Tensor:
        """R, a scalar, of n (n_channels,)."""

    @abstractmethod
    def shrink(self, norms: Floats, step: Floats, q: Floats) -> Floats:
        """The lengths that minimise 1/2 ||m - norms||^2 + s R(q m) over m >= 0, where step = s q: (n_channels,)."""

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """R of the weighted norms."""
        squares = self._norms(weights)
        alive = squares > 0
        norms = torch.where(alive, squares, 1.0).sqrt().where(alive, 0.0)
        return self.combine(norms * self._weights_of(weights, norms))

    def proximal_step(self, weights: Mapping[str, Tensor], step: float) -> None:
        """Closed form where channels share no weight; else Dykstra's algorithm over sets of channels that do not.

        Out-in-channels of consecutive layers overlap: W[o, i] belongs to o and to i. Alternating the closed forms
        of disjoint sets, each with its own correction, converges to the proximal point of the sum (Bauschke and
        Combettes 2008, doi 10.1287/moor.1070.0287).
        """
        with torch.no_grad():
            tensors = {name: weights[name] for name in self._norms.tensors}
            if len(self._colours) < 2:
                for norms in self._colours:
                    self._shrink(norms, tensors, step)
                return
            corrections = [{name: torch.zeros_like(w) for name, w in tensors.items()} for _ in self._colours]
            for _ in range(self.ITERATIONS):
                moved = 0.0
                for norms, correction in zip(self._colours, corrections, strict=True):
                    before = {name: tensors[name].clone() for name in norms.tensors}
                    for name in norms.tensors:
                        tensors[name].add_(correction[name])
                        correction[name].copy_(tensors[name])
                    self._shrink(norms, tensors, step)
                    for name in norms.tensors:
                        correction[name].sub_(tensors[name])
                        moved = max(moved, float((tensors[name] - before[name]).abs().max()))
                if moved <= self.TOLERANCE * max(float(w.abs().max()) for w in tensors.values()):
                    return

    def _shrink(self, norms: ChannelNorms, tensors: Mapping[str, Tensor], step: float) -> None:
        lengths = norms(tensors).sqrt()
        q = self._weights_of(tensors, lengths)
        small = self.shrink(*(each.double().cpu().numpy() for each in (lengths, step * q, q)))
        factors = torch.from_numpy(small).to(lengths) / torch.where(lengths > 0, lengths, 1.0)
        norms.scale(tensors, factors)

    def _weights_of(self, weights: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """q, (n_channels,)."""
        if self._q is None or self._q.device != like.device:
            self._q = torch.ones(self.graph.n_channels, device=like.device)
            if self.weighting == "sqrt_size":
                ones = {name: widened(torch.ones_like(weights[name])) for name in self._norms.tensors}
                self._q = self._norms.sums(ones).sqrt().to(self._q).detach()
        return self._q


def check_step(kind: type[Regularizer], proximal: bool) -> None:
    """Refuses proximal steps of a regulariser that has none.

    Raises:
        ConfigError: says why.
    """
    if proximal and kind.subgradients_only:
        raise ConfigError(f"{kind.__name__} takes subgradients only: {kind.subgradients_only}")


def _disjoint(graph: ChannelGraph, roles: tuple[Role, ...]) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Sets of groups, bool (G,) each, of which no two channels share a weight: a greedy colouring."""
    group_of = torch.from_numpy(graph.group_of)
    by_tensor: dict[str, list[list[int]]] = {}  # tensor -> per dimension (and per column) the groups along it
    for slot in graph.slots:
        if slot.role in roles:
            for column in slot.channels.T:
                by_tensor.setdefault(slot.tensor, []).append(group_of[column[column >= 0]].unique().tolist())
    meets: list[set[int]] = [set() for _ in graph.groups]
    for sides in by_tensor.values():
        for number, side in enumerate(sides):
            for other in sides[number + 1 :]:
                for one in side:
                    meets[one] |= set(other)
                for one in other:
                    meets[one] |= set(side)
    colours: Ints = np.full(len(graph.groups), -1, dtype=np.int64)
    for group in sorted(range(len(graph.groups)), key=lambda g: -len(meets[g])):
        taken = {int(colours[other]) for other in meets[group] if other != group}
        colours[group] = next(colour for colour in range(len(graph.groups)) if colour not in taken)
    return [colours == colour for colour in range(int(colours.max(initial=-1)) + 1)]
