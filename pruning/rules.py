"""What each ATen operation does to channel labels.

Most operations need no rule of their own. Element-wise ones (PyTorch tags them ``pointwise``) unify the labels
of what they combine; views (their schema says that they alias their input) and data movement are executed as they
are, on the labels. What is left are contractions, norms, pooling and reductions. An operation that appears
nowhere here freezes the channels that it touches, and the graph says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from espalier.pruning.graph import Role
from espalier.pruning.labels import Labelled, LabelStore

Value = Any
"""A node's value: `Labelled`, `Stored`, a list of them, or a plain Python object."""


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer that is not yet tied to labels."""

    name: str
    shape: tuple[int, ...]


class Tracer(Protocol):
    """What a rule may do."""

    store: LabelStore

    def tie(self, stored: Stored, dim: int, labels: Tensor, role: Role) -> None:
        """States that position i of a stored tensor's dimension holds channel labels[i]."""

    def labels_of(self, value: Value) -> Labelled:
        """The labels of an operand; a stored tensor gets fresh ones, tied when the tracing ends."""

    def pin(self, stored: Stored, reason: str) -> None:
        """Freezes every channel of a stored tensor, wherever else it is or will be tied."""

    def contract(self, coefficient: int, reads: Tensor, writes: Tensor) -> None:
        """Adds coefficient x (kept positions of reads) x (kept positions of writes) MACs."""


@dataclass(frozen=True)
class Call:
    """One node of the exported graph.

    Attributes:
        name: the operation, e.g. ``conv2d``.
        target: the ATen overload.
        args: its arguments in schema order, defaults filled in, tensors as `Labelled` or `Stored`.
        shapes: shape of each output tensor.
        where: a phrase for reports: "conv2d in layer1.0.conv1".
    """

    name: str
    target: Any
    args: dict[str, Value]
    shapes: tuple[tuple[int, ...], ...]
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the one output."""
        return self.shapes[0]


Rule = Callable[[Tracer, Call], Value]


def freeze(tracer: Tracer, call: Call) -> Value:
    """Freezes the channels of every input: the rule for what has none of its own."""
    for value in _tensors(call.args.values()):
        if isinstance(value, Stored):
            tracer.pin(value, call.where)  # another layer may share it
        else:
            tracer.store.freeze(value.compact, call.where)
    outputs = [Labelled.fixed(shape) for shape in call.shapes]
    return outputs[0] if len(outputs) == 1 else outputs


def channels_of(tracer: Tracer, call: Call, value: Value, dim: int) -> Tensor:
    """Labels along one dimension, (size,); frozen and 0 where they depend on another dimension too."""
    labelled = tracer.labels_of(value)
    vector = labelled.vector(dim)
    if vector is None:
        tracer.store.freeze(labelled.compact, f"{call.where}: channels do not lie along dimension {dim}")
        return torch.zeros(labelled.shape[dim], dtype=torch.int64)
    return vector


# --- element-wise ---------------------------------------------------------------------------------------------


def pointwise(tracer: Tracer, call: Call) -> Labelled:
    """Unifies the labels of all tensors that meet at a position."""
    operands = [tracer.labels_of(value) for value in _tensors(call.args.values())]
    rank = len(call.shape)
    result, met = Labelled.fixed(call.shape).compact, (1,) * rank
    for operand in operands:
        padded = operand.compact.reshape((1,) * (rank - operand.compact.dim()) + operand.compact.shape)
        sizes = (1,) * (rank - len(operand.shape)) + operand.shape
        result = _meet(tracer, call, (padded, sizes), (result, met))
        met = tuple(map(max, met, sizes))
    return Labelled(result, call.shape)


def _meet(
    tracer: Tracer, call: Call, new: tuple[Tensor, tuple[int, ...]], old: tuple[Tensor, tuple[int, ...]]
) -> Tensor:
    """Unifies two compact label tensors of one rank; one that is broadcast over the other's channels freezes."""
    (labels, sizes), (others, other_sizes) = new, old
    if not labels.any() or not others.any():
        labelled, plain = (labels, other_sizes) if labels.any() else (others, sizes)
        meets = any(plain[dim] > 1 for dim, size in enumerate(labelled.shape) if size > 1)
        if meets:
            tracer.store.freeze(labelled, f"{call.where}: meets a tensor whose channels are fixed")
        return labelled
    broadcast = [_stretched(sizes, others), _stretched(other_sizes, labels)]
    for stretched, narrow in zip(broadcast, (labels, others), strict=True):
        if stretched:
            tracer.store.freeze(narrow, f"{call.where}: is broadcast over channels")
    if all(broadcast):
        return labels.new_zeros((1,) * labels.dim())
    if any(broadcast):
        return others if broadcast[0] else labels
    tracer.store.unify(labels, others, call.where)
    return torch.maximum(*torch.broadcast_tensors(labels, others))


def _stretched(sizes: tuple[int, ...], others: Tensor) -> bool:
    """Whether a tensor of these sizes is repeated along a dimension on which the other's labels depend."""
    return any(size == 1 < other for size, other in zip(sizes, others.shape, strict=True))


# --- views and data movement ----------------------------------------------------------------------------------


def execute(tracer: Tracer, call: Call) -> Value:
    """Runs the operation itself on the labels, then couples what a later view would take apart."""
    inputs = [tracer.labels_of(value) for value in _tensors(call.args.values())]
    if not any(value.compact.any() for value in inputs):
        outputs = [Labelled.fixed(shape) for shape in call.shapes]
    else:
        arguments = {name: _filled(tracer, value) for name, value in call.args.items()}
        result = call.target(**arguments)
        tensors = list(result) if isinstance(result, list | tuple) else [result]
        outputs = [Labelled.squashed(tensor, tracer.store) for tensor in tensors]
        _forbid_cuts(tracer, call, inputs, outputs)
        outputs = [_rectangular(tracer, call, output) for output in outputs]
    return outputs if len(call.shapes) > 1 or call.name in LISTS else outputs[0]


def _forbid_cuts(tracer: Tracer, call: Call, inputs: Sequence[Labelled], outputs: Sequence[Labelled]) -> None:
    """A cut through channels at a constant place would fall elsewhere once channels are gone."""
    if call.name in EVEN_PARTS and len({output.shape for output in outputs}) == 1:
        for output in outputs[1:]:
            tracer.store.unify(outputs[0].compact, output.compact, call.where)
        return
    if call.name not in CUTS | EVEN_PARTS:
        return
    for value in inputs:
        dim = int(call.args.get("dim", 0))
        if dim % len(value.shape) in value.varying and any(o.shape != value.shape for o in outputs):
            tracer.store.freeze(value.compact, f"{call.where}: cuts channels at a constant place")


def _rectangular(tracer: Tracer, call: Call, value: Labelled) -> Labelled:
    """Channels split over two dimensions: each slice of the outer one keeps the same inner channels."""
    if len(value.varying) < 2:
        return value
    compact = value.compact
    for dim in value.varying[:-1]:
        first = compact.narrow(dim, 0, 1)
        tracer.store.unify(compact, first.expand_as(compact), call.where)
        compact = first
    return Labelled(tracer.store.find(compact.contiguous()), value.shape)


def _filled(tracer: Tracer, value: Value) -> Value:
    if isinstance(value, Labelled | Stored):
        return tracer.labels_of(value).full
    if isinstance(value, list | tuple):
        return [_filled(tracer, item) for item in value]
    return value


# --- contractions ---------------------------------------------------------------------------------------------


def linear(tracer: Tracer, call: Call) -> Labelled:
    """Y = x W^T + b over the last dimension; W is (out, in)."""
    weight: Stored = call.args["weight"]
    if not isinstance(weight, Stored):
        return freeze(tracer, call)  # a weight that is itself computed cannot be sliced
    reads = channels_of(tracer, call, call.args["input"], -1)
    writes = tracer.store.fresh(weight.shape[0])
    tracer.tie(weight, 1, reads, "in")
    tracer.tie(weight, 0, writes, "out")
    _tie_vector(tracer, call.args["bias"], writes, "bias")
    tracer.contract(prod(call.shape[:-1]), reads, writes)
    return Labelled.along(len(call.shape) - 1, writes, call.shape)


def convolution(tracer: Tracer, call: Call) -> Labelled:
    """A convolution of any rank; W is (out, in / groups, ...)."""
    weight: Stored = call.args["weight"]
    if not isinstance(weight, Stored):
        return freeze(tracer, call)  # a weight that is itself computed cannot be sliced
    groups = int(call.args["groups"])
    positions = call.shape[0] * prod(call.shape[2:]) * prod(weight.shape[2:])
    reads = channels_of(tracer, call, call.args["input"], 1)
    out, per_group = weight.shape[0], weight.shape[1]
    if per_group == 1 and groups > 1:  # depthwise, with or without a multiplier: whole groups come and go
        writes = reads.repeat_interleave(out // groups)
        tracer.tie(weight, 0, writes, "depthwise")
        tracer.contract(positions, torch.zeros(1, dtype=torch.int64), writes)
    else:
        writes = tracer.store.fresh(out)
        if groups > 1:  # every group keeps the same places, inputs and outputs alike
            reads = _coupled(tracer, call, reads.reshape(groups, per_group))
            _coupled(tracer, call, writes.reshape(groups, out // groups))
        tracer.tie(weight, 1, reads, "in")
        tracer.tie(weight, 0, writes, "out")
        tracer.contract(positions, reads, writes)
    _tie_vector(tracer, call.args["bias"], writes, "bias")
    return Labelled.along(1, writes, call.shape)


def _coupled(tracer: Tracer, call: Call, labels: Tensor) -> Tensor:
    """Unifies the rows of (groups, per_group) labels and returns the first: (per_group,)."""
    tracer.store.unify(labels, labels[:1].expand_as(labels), call.where)
    return labels[0]


def _tie_vector(tracer: Tracer, value: Value, labels: Tensor, role: Role) -> None:
    if isinstance(value, Stored):
        tracer.tie(value, 0, labels, role)
    elif isinstance(value, Labelled):
        tracer.store.unify(value.full, labels, "a bias that is computed")


# --- norms, pooling, reductions -------------------------------------------------------------------------------


def batch_norm(tracer: Tracer, call: Call) -> Labelled:
    """Batch and instance norm: one scale, shift, mean and variance per channel."""
    labels = channels_of(tracer, call, call.args["input"], 1)
    for name in ("weight", "bias"):
        _tie_vector(tracer, call.args[name], labels, "norm")
    for name in ("running_mean", "running_var"):
        _tie_vector(tracer, call.args[name], labels, "buffer")
    return Labelled.along(1, labels, call.shape)


def spatial(tracer: Tracer, call: Call) -> Value:
    """Pooling and resizing: positions change, channels (dimension 1 of a batch) stay."""
    first = next(iter(_tensors(call.args.values())))
    labels = channels_of(tracer, call, first, 1)
    outputs = [Labelled.along(1, labels, shape) for shape in call.shapes]
    return outputs[0] if len(outputs) == 1 else outputs


def reduction(tracer: Tracer, call: Call) -> Labelled:
    """Mean, sum, max over dimensions; over the channels themselves they freeze them."""
    value = tracer.labels_of(next(iter(_tensors(call.args.values()))))
    dims = _dims(call, len(value.shape))
    if dims & set(value.varying):
        freeze(tracer, call)
        return Labelled.fixed(call.shape)
    keepdim = bool(call.args.get("keepdim", False))
    sizes = [s for d, s in enumerate(value.compact.shape) if keepdim or d not in dims]
    return Labelled(value.compact.reshape(sizes), call.shape)


def along_dim(tracer: Tracer, call: Call) -> Labelled:
    """Softmax, roll and their kin: shape kept, but positions along `dim` depend on each other."""
    value = tracer.labels_of(next(iter(_tensors(call.args.values()))))
    if _dims(call, len(value.shape)) & set(value.varying):
        tracer.store.freeze(value.compact, call.where)
    return value


def channel_shuffle(tracer: Tracer, call: Call) -> Labelled:
    """A view as (groups, channels per group), transposed: every group keeps the same places."""
    labels = channels_of(tracer, call, call.args["self"], 1).reshape(int(call.args["groups"]), -1)
    _coupled(tracer, call, labels)
    return Labelled.along(1, labels.t().reshape(-1), call.shape)


def _dims(call: Call, rank: int) -> set[int]:
    """The dimensions that an operation names; none named are all of them."""
    chosen = call.args.get("dim", call.args.get("dims"))
    return {d % rank for d in ([chosen] if isinstance(chosen, int) else chosen or range(rank))}


def prelu(tracer: Tracer, call: Call) -> Labelled:
    """One slope per channel, or one for all."""
    value = tracer.labels_of(call.args["self"])
    weight = call.args["weight"]
    if isinstance(weight, Stored) and prod(weight.shape) > 1:
        tracer.tie(weight, 0, channels_of(tracer, call, value, 1), "norm")
    return value


def _tensors(values: Any) -> list[Labelled | Stored]:
    found: list[Labelled | Stored] = []
    for value in values:
        if isinstance(value, Labelled | Stored):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_tensors(value))
    return found


EVEN_PARTS = frozenset({"chunk", "unbind"})
"""Cuts into equal parts: the parts are coupled, so that the cuts stay equal."""

CUTS = frozenset({"slice", "split", "split_with_sizes", "narrow", "select", "index_select"})
"""Cuts at places written as constants in the network's code."""

LISTS = frozenset({"chunk", "unbind", "split", "split_with_sizes"})

RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), convolution),
    "linear": linear,
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    **dict.fromkeys(
        (
            *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            *("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
        ),
        spatial,
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), reduction),
    **dict.fromkeys(("softmax", "log_softmax", "roll"), along_dim),
    "channel_shuffle": channel_shuffle,
    "prelu": prelu,
    **dict.fromkeys(("dropout", "feature_dropout", "hardswish", "contiguous", "to", "detach"), pointwise),
    **dict.fromkeys(
        ("cat", "stack", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle", "tile"),
        execute,
    ),
}
"""Operation -> rule, for what is neither element-wise nor a view."""


def rule_for(target: Any) -> Rule:
    """The rule of an ATen overload."""
    name = operation_name(target)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in target.tags:
        return pointwise
    if any(argument.alias_info and not argument.alias_info.is_write for argument in target._schema.arguments):
        return execute
    return freeze


def operation_name(target: Any) -> str:
    """``conv2d`` of ``aten.conv2d.default``, ``relu`` of ``aten.relu_.default``."""
    return str(target._schema.name).partition("::")[2].rstrip("_")
