"""What each ATen operation does to channel labels.

Element-wise operations (PyTorch tags them ``pointwise``) unify the labels of what they combine. Data movement is
run as it is, on the coordinates of its input (`moving`), contractions are described by their index letters
(`contractions`). What is left are convolutions, norms, pooling and reductions. An operation that appears nowhere
freezes the channels that it touches, and the graph says so.
"""

from __future__ import annotations

from functools import cache
from math import prod

import numpy as np
import torch

from espalier.pruning.torch_private import OpOverload, schema_of
from espalier.pruning.tracing.labels import Ints, Labelled
from espalier.pruning.tracing.recording import Stored, operation_name
from espalier.pruning.tracing.rules import contractions, joins, recurrent, views
from espalier.pruning.tracing.rules.calls import FIXED, Call, Rule, Tracer, Value, freeze, tensors_in
from espalier.pruning.tracing.rules.moving import coupled, move


def pointwise(tracer: Tracer, call: Call) -> Labelled:
    """Unifies the labels of all tensors that meet at an index."""
    return meet(tracer, call, [tracer.labels_of(value) for value in tensors_in(call.args)])


def meet(tracer: Tracer, call: Call, operands: list[Labelled]) -> Labelled:
    """Broadcasts operands against each other; one that is repeated over the channels of others freezes."""
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    dims: list[Ints | None] = []
    for back in range(-len(shape), 0):
        met, plain = [], False
        for operand in operands:
            if -back > len(operand.shape):
                continue
            rows, size = operand.dims[back], operand.shape[back]
            if size < shape[back]:
                if rows is not None:
                    tracer.store.freeze(rows, f"{call.where}: is broadcast over channels")
            elif rows is not None:
                met.append(rows)
            else:
                plain |= size > 1
        for other in met[1:]:
            tracer.store.unify(met[0], other, f"{call.where}: {FIXED}")
        if met and plain:
            tracer.store.freeze(met[0], f"{call.where}: {FIXED}")
        dims.append(met[0] if met else None)
    return Labelled(tuple(dims), tuple(shape))


# --- convolutions ---------------------------------------------------------------------------------------------


def convolution(tracer: Tracer, call: Call) -> Labelled:
    """A convolution of any rank; W is (out, in / groups, ...), transposed (in, out / groups, ...)."""
    weight: Stored | Labelled = call.args["weight"]
    rank = len(weight.shape) - 2
    groups, transposed = call.args["groups"], "transpose" in call.name
    value = _keeping(tracer, call, tracer.labels_of(call.args["input"]), rank)
    channel = len(call.shape) - rank - 1
    reads, out = value.rows(channel), call.shape[channel]
    wide = call.args["input"].shape if transposed else call.shape
    positions = prod(wide[:channel]) * prod(wide[channel + 1 :]) * prod(weight.shape[2:])
    if isinstance(weight, Labelled):
        for dim in range(2, len(weight.shape)):
            tracer.store.freeze(weight.rows(dim), f"{call.where}: a dimension of its kernel")
    if groups > 1 and groups == value.shape[channel]:  # depthwise, with or without a multiplier
        writes = reads.repeat(out // groups, axis=0)
        tracer.bind(weight, 0, reads if transposed else writes, "depthwise")
        tracer.require(groups, reads, call.where)
        tracer.contract(positions, [writes])
    else:
        inner = _coupled(tracer, call, reads, groups)  # every group of channels keeps the same places
        written = tracer.store.fresh(out // groups)
        writes = np.tile(written, (groups, 1))
        tracer.bind(weight, 0 if transposed else 1, reads if transposed else inner, "in")
        tracer.bind(weight, 1 if transposed else 0, written if transposed else writes, "out")
        tracer.contract(positions, [reads, written] if transposed else [inner, writes])
    tracer.bind(call.args["bias"], 0, writes, "bias")
    return Labelled(value.dims, call.shape).with_dims({channel: writes})


def _coupled(tracer: Tracer, call: Call, rows: Ints, groups: int) -> Ints:
    """Unifies the same places of `groups` equal runs of rows and returns the first run."""
    return coupled(tracer, call, rows, groups)[0]


def _keeping(tracer: Tracer, call: Call, value: Labelled, rank: int) -> Labelled:
    """Labels of an input whose last `rank` dimensions are mixed: labels along those freeze."""
    for dim in value.labelled:
        if dim >= len(value.shape) - rank:
            tracer.store.freeze(value.rows(dim), f"{call.where}: works along dimension {dim} of its channels")
    kept = len(value.shape) - rank
    return Labelled((*value.dims[:kept], *(None,) * rank), value.shape)


# --- norms ----------------------------------------------------------------------------------------------------


def batch_norm(tracer: Tracer, call: Call) -> Labelled:
    """Batch and instance norm: one scale, shift, mean and variance per channel."""
    value = tracer.labels_of(call.args["input"])
    tracer.bind(call.args["weight"], 0, value.rows(1), "norm")
    tracer.bind(call.args["bias"], 0, value.rows(1), "shift")
    for name in ("running_mean", "running_var"):
        tracer.bind(call.args[name], 0, value.rows(1), "buffer")
    return value


def layer_norm(tracer: Tracer, call: Call) -> Labelled:
    """Layer and RMS norm over the last dimensions: over the channels that are left."""
    value = tracer.labels_of(call.args["input"])
    sizes = call.args["normalized_shape"]
    for number, size in enumerate(sizes):
        rows = value.dims[number - len(sizes)]
        if rows is not None:
            tracer.require(size, rows, call.where)
            tracer.bind(call.args.get("weight"), number, rows, "norm")
            tracer.bind(call.args.get("bias"), number, rows, "shift")
    return value


def group_norm(tracer: Tracer, call: Call) -> Labelled:
    """Every group of channels keeps the same places; with a group per channel, groups come and go."""
    value = tracer.labels_of(call.args["input"])
    rows, groups = value.rows(1), call.args["num_groups"]
    if groups > 1 and groups == len(rows):
        tracer.require(groups, rows, call.where)
    else:
        _coupled(tracer, call, rows, groups)
    tracer.bind(call.args["weight"], 0, rows, "norm")
    tracer.bind(call.args["bias"], 0, rows, "shift")
    return value


def prelu(tracer: Tracer, call: Call) -> Labelled:
    """One slope per channel, or one for all."""
    value = tracer.labels_of(call.args["self"])
    weight = call.args["weight"]
    if prod(weight.shape) > 1:
        tracer.bind(weight, 0, value.rows(1 if len(value.shape) > 1 else 0), "norm")
    return value


# --- pooling, resizing, reductions ----------------------------------------------------------------------------


def spatial(tracer: Tracer, call: Call) -> Value:
    """Pooling, padding and resizing: the last dimensions change, the channels before them stay."""
    first = tracer.labels_of(tensors_in(call.args)[0])
    changed = sum(a != b for a, b in zip(first.shape, call.shape, strict=True))
    rank = next((int(digit) for digit in call.name if digit in "123"), max(changed, len(first.shape) - 2))
    value = _keeping(tracer, call, first, rank)
    outputs = [Labelled(value.dims, shape) for shape in call.shapes]
    return outputs[0] if len(outputs) == 1 else outputs


def max_unpool(tracer: Tracer, call: Call) -> Labelled:
    """Values to the places that pooling took them from: channel by channel."""
    value, places = (tracer.labels_of(call.args[name]) for name in ("self", "indices"))
    rank = int(call.name[-2])
    for dim in range(len(value.shape) - rank):
        if places.dims[dim] is None or value.dims[dim] is None:
            tracer.store.freeze(value.rows(dim), f"{call.where}: {FIXED}")
            tracer.store.freeze(places.rows(dim), f"{call.where}: {FIXED}")
        else:
            tracer.store.unify(value.rows(dim), places.rows(dim), call.where)
    return Labelled(_keeping(tracer, call, value, rank).dims, call.shape)


def grid_sample(tracer: Tracer, call: Call) -> Labelled:
    """Resampling along a grid: (n, c, ...) keeps its channels."""
    value, grid = (tracer.labels_of(call.args[name]) for name in ("input", "grid"))
    for rows in grid.all_rows():
        tracer.store.freeze(rows, call.where)
    return Labelled(_keeping(tracer, call, value, len(value.shape) - 2).dims, call.shape)


def reduction(tracer: Tracer, call: Call) -> Value:
    """Mean, sum, maximum over dimensions; over channels, they are taken over those that are left."""
    if "other" in call.args:  # max(a, b)
        return pointwise(tracer, call)
    value = tracer.labels_of(tensors_in(call.args)[0])
    dims = reduced_dims(call, len(value.shape))
    if call.name in ("max", "min") and 1 in call.used:  # the place of the maximum shifts with what is removed
        for dim in dims:
            tracer.store.freeze(value.rows(dim), call.where)
    keepdim = len(call.shape) == len(value.shape)
    kept = [None if dim in dims else rows for dim, rows in enumerate(value.dims) if keepdim or dim not in dims]
    outputs = [Labelled(tuple(kept), shape) for shape in call.shapes]
    return outputs[0] if len(outputs) == 1 else outputs


def position_reduction(tracer: Tracer, call: Call) -> Value:
    """Arg-maximum: its result is a place, which shifts with what is removed."""
    value = tracer.labels_of(tensors_in(call.args)[0])
    for dim in reduced_dims(call, len(value.shape)):
        tracer.store.freeze(value.rows(dim), call.where)
    return reduction(tracer, call)


def softmax(tracer: Tracer, call: Call) -> Labelled:
    """Over channels, it is taken over those that are left."""
    return tracer.labels_of(tensors_in(call.args)[0])


def along_dim(tracer: Tracer, call: Call) -> Value:
    """Roll, cumulative sum, sort: shape kept, but places along the dimension depend on each other."""
    value = tracer.labels_of(tensors_in(call.args)[0])
    for dim in reduced_dims(call, len(value.shape)):
        tracer.store.freeze(value.rows(dim), call.where)
    outputs = [Labelled(value.dims, shape) for shape in call.shapes]
    return outputs[0] if len(outputs) == 1 else outputs


def reduced_dims(call: Call, rank: int) -> set[int]:
    """The dimensions that an operation names; none named are all of them."""
    chosen = call.args.get("dim", call.args.get("dims"))
    return {d % rank for d in ([chosen] if isinstance(chosen, int) else chosen or range(rank))} if rank else set()


def weight_norm(tracer: Tracer, call: Call) -> Labelled:
    """G v / ||v||: v has all dimensions, g one."""
    v, g = (tracer.labels_of(call.args[name]) for name in ("v", "g"))
    for dim, rows in enumerate(g.dims):
        if rows is not None:
            tracer.store.unify(v.rows(dim), rows, call.where)
    return v


def nothing(tracer: Tracer, call: Call) -> Value:
    """Assertions on metadata."""
    return None


def zeros_like(tracer: Tracer, call: Call) -> Labelled:
    """A tensor of the first one's shape, whatever else is looked at."""
    return tracer.labels_of(tensors_in(call.args)[0])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), convolution),
    **contractions.RULES,
    **views.RULES,
    **joins.RULES,
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "prelu": prelu,
    **dict.fromkeys(
        (
            *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
            *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
            *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
            *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "fractional_max_pool2d", "lp_pool2d"),
            *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
            *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
        ),
        spatial,
    ),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), max_unpool),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), grid_sample),
    **dict.fromkeys(
        (
            *("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp"),
            *("norm", "linalg_vector_norm", "max", "min", "nansum", "nanmean", "all", "any"),
        ),
        reduction,
    ),
    **dict.fromkeys(("argmax", "argmin"), position_reduction),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    **dict.fromkeys(("roll", "cumsum", "cumprod", "sort", "argsort"), along_dim),
    "_weight_norm": weight_norm,
    **recurrent.RULES,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "contiguous", "to", "detach"), pointwise),
    **dict.fromkeys(("clone", "hardswish", "_to_copy", "masked_fill", "where", "fill", "copy"), pointwise),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"), zeros_like),
    "type_as": zeros_like,
    **dict.fromkeys(("_assert_tensor_metadata", "_assert_async"), nothing),
}
"""Operation -> rule, for what is neither element-wise nor a view."""


@cache
def rule_for(target: OpOverload) -> Rule:
    """The rule of an ATen overload."""
    name = operation_name(target)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in target.tags:
        return pointwise
    if any(argument.alias_info and not argument.alias_info.is_write for argument in schema_of(target).arguments):
        return move
    return freeze
