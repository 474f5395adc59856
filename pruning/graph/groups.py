"""What a channel graph is made of: groups and their members, slices of tensors, operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from espalier.pruning.graph.costs import Count, Ints

Role = Literal["out", "in", "depthwise", "norm", "shift", "bias", "scale", "buffer"]
"""What a member does to a channel: writes it (out), reads it (in), filters it alone (depthwise), scales it in a
norm (norm), shifts it in a norm (shift) or in the layer that writes it (bias), enters an element-wise operation
(scale), or is a buffer."""

WEIGHT_ROLES: tuple[Role, ...] = ("out", "in", "depthwise")
"""The roles whose slices make up an out-in-channel (Li et al., CVPR 2019, arXiv 1905.11664)."""

WRITING_ROLES: tuple[Role, ...] = ("out", "depthwise")
"""The roles whose slices write a channel: its filters."""

SCALE_ROLES: tuple[Role, ...] = ("norm",)
"""The role of the scales of norms."""


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
    """A dimension of a tensor with global channels of each position: (dim size, k), -1 where there are fewer."""

    tensor: str
    dim: int
    role: Role
    channels: Tensor


@dataclass(frozen=True)
class ModuleInteger:
    """An integer attribute of a module that counts channels: number of heads, size of a head, groups.

    Attributes:
        path: the module, as in ``named_modules``.
        name: the attribute.
        index: which item of it, where it is a tuple.
        channels: (n, k) global channels, -1 where there are fewer; the attribute is the number of rows kept.
    """

    path: str
    name: str
    index: int | None
    channels: Tensor = field(repr=False)


@dataclass(frozen=True)
class Rescaling:
    """Indices along the first dimension of a tensor that are multiplied as channels go.

    Attributes:
        tensor: that writes the query of attention whose scale follows from the size of a head.
        positions: (p,) the indices.
        channels: (n, k) global channels of the places in a head, -1 where there are fewer; the factor is the square
            root of the share of rows kept.
    """

    tensor: str
    positions: Tensor = field(repr=False)
    channels: Tensor = field(repr=False)

    def scaled(self, value: Tensor, keep: Tensor) -> Tensor:
        """The tensor of which only the channels `keep`, bool (n_channels,), are left."""
        share = float((keep[self.channels.clamp(min=0)] | (self.channels < 0)).all(1).double().mean())
        if share == 1:
            return value
        factor = torch.ones(len(value), dtype=torch.float64)
        factor[self.positions] = share**0.5
        return value * factor.to(value).view(-1, *[1] * (value.dim() - 1))


@dataclass(frozen=True)
class Operation:
    """One step of the forward pass.

    Attributes:
        kind: the ATen operation, e.g. ``conv2d``; ``input`` for the network's own inputs.
        layer: path of the module that runs it.
        inputs: numbers of the operations whose results it reads.
        shape: shape of its first output in the dense network.
        sizes: per dimension of that shape the number of indices as a polynomial in the widths.
        tensors: the parameters and buffers that it reads itself.
    """

    kind: str
    layer: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    sizes: tuple[Count, ...] = field(repr=False)
    tensors: tuple[str, ...] = ()

    def shape_at(self, widths: npt.ArrayLike) -> tuple[int, ...]:
        """Shape of the first output for widths (G,)."""
        kept = np.asarray(widths)
        return tuple(
            round(sum(c * float(np.prod(kept[list(monomial)])) for monomial, c in size.items()))
            for size in self.sizes
        )


OUTPUT_REASON = "network output"
"""Why channels are frozen that the network returns."""
