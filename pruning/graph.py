"""The channel graph: which channels live and die together, and what every choice of widths costs.

Notation:
    group      a set of channels that have the same members; its *width* is how many of them are kept
    member     one tensor (parameter or buffer), one dimension of it, and which channel each position holds
    G          number of prunable groups; widths are integer vectors (G,), a batch of policies (n, G)
    channels   all channels of all prunable groups, numbered 0 .. n_channels - 1, group after group

Every operation's MACs are bilinear in the widths that it reads and writes,

    macs(w) = sum_op c_op (R_op w + r_op) (W_op w + s_op),

so that the cost of a batch of policies is two matrix products. The same form gives the parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from espalier.errors import ConfigError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Role = Literal["out", "in", "depthwise", "norm", "bias", "scale", "buffer"]
"""What a member does to a channel: writes it (out), reads it (in), filters it alone (depthwise),
normalises it, shifts it (bias), enters an element-wise operation (scale), or is a buffer."""

WEIGHT_ROLES: tuple[Role, ...] = ("out", "in", "depthwise")
"""The roles whose slices make up an out-in-channel (Li et al., CVPR 2019, arXiv 1905.11664)."""


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor that belongs to a group.

    Attributes:
        tensor: name of the parameter or buffer, as in ``state_dict``.
        dim: the dimension that the channels lie along.
        role: what the slices do.
        length: size of the dense tensor along `dim`; positions that no group names stay.
        channels: (k,) channel of the group, 0 .. size - 1, at each of the positions.
        positions: (k,) indices along `dim`.
    """

    tensor: str
    dim: int
    role: Role
    length: int
    channels: Ints = field(repr=False)
    positions: Ints = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Channels that are removed together, one by one, through all the same members.

    Attributes:
        name: the layer that first writes the channels.
        size: number of channels of the dense network.
        members: every slice that writes, reads or carries them.
        frozen: why the group cannot be pruned, or None.
    """

    name: str
    size: int
    members: tuple[Member, ...] = field(repr=False)
    frozen: str | None = None


@dataclass(frozen=True)
class Slot:
    """A dimension of a tensor with the global channel at each position: (dim size,), -1 where fixed."""

    tensor: str
    dim: int
    role: Role
    channels: Tensor


@dataclass(frozen=True)
class BilinearCost:
    """sum_k c_k (R_k w + r_k)(W_k w + s_k) over terms k, in whole numbers.

    Attributes:
        names: (K,) what each term is: a layer or a parameter.
        coefficient: (K,) c.
        reads: (K, G) R.
        reads_fixed: (K,) r.
        writes: (K, G) W.
        writes_fixed: (K,) s.
    """

    names: tuple[str, ...]
    coefficient: Floats
    reads: Floats
    reads_fixed: Floats
    writes: Floats
    writes_fixed: Floats

    def terms(self, widths: Floats) -> Floats:
        """Cost per term, (n, K), of widths (n, G). Doubles hold whole numbers to 2^53 exactly."""
        reads = widths @ self.reads.T + self.reads_fixed  # (n, K)
        writes = widths @ self.writes.T + self.writes_fixed  # (n, K)
        product: Floats = reads * writes * self.coefficient
        return product

    def total(self, widths: Floats) -> Ints:
        """Cost (n,) of widths (n, G)."""
        reads = widths @ self.reads.T + self.reads_fixed
        reads *= widths @ self.writes.T + self.writes_fixed
        return np.rint(reads @ self.coefficient).astype(np.int64)


class ChannelGraph:
    """Groups of coupled channels of one network, with its costs in closed form.

    Made by `espalier.trace`; holds no weights, pickles small, and serves every network of the same structure.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        frozen: Sequence[Group],
        macs: BilinearCost,
        params: BilinearCost,
    ) -> None:
        self.groups = tuple(groups)
        self.frozen = tuple(frozen)
        self.mac_terms = macs
        self.param_terms = params

    @cached_property
    def sizes(self) -> Ints:
        """Width of every group of the dense network: (G,)."""
        return np.array([group.size for group in self.groups], dtype=np.int64)

    @cached_property
    def offsets(self) -> Ints:
        """First global channel of every group, and the number of channels at the end: (G + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def n_channels(self) -> int:
        """Number of prunable channels."""
        return int(self.offsets[-1])

    @cached_property
    def group_of(self) -> Ints:
        """Group of every channel: (n_channels,)."""
        return np.repeat(np.arange(len(self.groups)), self.sizes)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every (tensor, dimension) with prunable channels along it, members of all groups merged."""
        slots: dict[tuple[str, int], Slot] = {}
        for group, offset in zip(self.groups, self.offsets.tolist(), strict=False):
            for member in group.members:
                key = (member.tensor, member.dim)
                if key not in slots:
                    slots[key] = Slot(*key, member.role, torch.full((member.length,), -1))
                slots[key].channels[member.positions] = torch.from_numpy(member.channels + offset)
        return tuple(slots.values())

    def macs(self, widths: npt.ArrayLike) -> Ints:
        """Multiply-adds of one forward pass on one example (FLOPs = 2 x MACs).

        Args:
            widths: (n, G) channels kept per group, or one policy (G,).

        Returns:
            (n,) whole numbers; convolutions and linear layers, as usual for pruning. A scalar array for (G,).
        """
        return self._cost(self.mac_terms, widths)

    def params(self, widths: npt.ArrayLike) -> Ints:
        """Number of parameters, buffers not counted: widths (n, G) -> (n,), or (G,) -> scalar array."""
        return self._cost(self.param_terms, widths)

    def channel_costs(self) -> Ints:
        """MACs that one channel of each group costs in the dense network: (G,)."""
        one_less = self.sizes - np.eye(len(self.groups), dtype=np.int64)
        return self.macs(self.sizes) - self.macs(one_less)

    def _cost(self, cost: BilinearCost, widths: npt.ArrayLike) -> Ints:
        policies = np.asarray(widths, dtype=np.float64)
        if policies.shape[-1:] != (len(self.groups),) or policies.ndim > 2:
            raise ConfigError(
                f"widths must have shape (n, {len(self.groups)}) or ({len(self.groups)},), one number per group, "
                f"got {policies.shape}"
            )
        totals = cost.total(np.atleast_2d(policies))
        return totals if policies.ndim == 2 else totals[0]

    def ranks(self, scores: npt.NDArray[np.floating]) -> Ints:
        """Place of every channel inside its group, 0 for the highest score: (n_channels,) -> (n_channels,).

        Equal scores keep the order of the channels.
        """
        order = np.lexsort((np.arange(self.n_channels), -scores, self.group_of))
        ranks = np.empty(self.n_channels, dtype=np.int64)
        ranks[order] = np.arange(self.n_channels) - self.offsets[self.group_of]
        return ranks

    def keep_best(self, scores: npt.NDArray[np.floating], widths: npt.ArrayLike) -> Tensor:
        """Which channels stay when each group keeps its best-scored ones: bool (n_channels,).

        Args:
            scores: (n_channels,) higher is kept.
            widths: (G,).
        """
        return torch.from_numpy(self.ranks(scores) < np.asarray(widths)[self.group_of])

    def widths(self, keep: Tensor) -> Ints:
        """Kept channels per group, (G,), of a keep mask (n_channels,)."""
        return np.bincount(self.group_of[keep.numpy()], minlength=len(self.groups)).astype(np.int64)

    def kept_indices(self, keep: Tensor) -> dict[str, list[int]]:
        """Group name -> its kept channels in rising order, of a keep mask (n_channels,)."""
        parts = torch.split(keep, self.sizes.tolist())
        return {group.name: part.nonzero()[:, 0].tolist() for group, part in zip(self.groups, parts, strict=True)}

    @cached_property
    def digest(self) -> str:
        """Names what a policy means on this graph: equal digests, equal groups and costs."""
        state = hashlib.sha256()
        for group in self.groups:
            state.update(f"{group.name}:{group.size};".encode())
            for member in group.members:
                state.update(f"{member.tensor}:{member.dim}:{member.role}".encode())
                state.update(member.channels.tobytes() + member.positions.tobytes())
        for array in (self.mac_terms.coefficient, self.mac_terms.reads, self.mac_terms.writes):
            state.update(array.tobytes())
        return state.hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"ChannelGraph({len(self.groups)} groups, {self.n_channels} channels, "
            f"{int(self.macs(self.sizes)):,} MACs, {len(self.frozen)} frozen)"
        )
