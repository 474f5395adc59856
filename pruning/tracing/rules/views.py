"""Rules of what gives a tensor another shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from espalier.pruning.tracing.labels import Ints, Labelled
from espalier.pruning.tracing.rules.calls import Call, Rule, Tracer, Value, freeze, tensors_in
from espalier.pruning.tracing.rules.moving import CONSTANT, move


def view(tracer: Tracer, call: Call) -> Value:
    """View, reshape: sizes that follow the channels may change, constants may not."""
    value = tracer.labels_of(tensors_in(call.args)[0])
    sizes = call.args.get("size", call.args.get("shape"))
    if sizes is None:  # unflatten
        dim, sizes = call.args["dim"] % len(value.shape), call.args["sizes"]
        sizes = [-1] * dim + list(sizes) + [-1] * (len(call.shape) - dim - len(sizes))
    # The labels' own strides may not allow a view where the tensor's do.
    shaped = Call(
        call.name, torch.ops.aten.reshape.default, {"self": value, "shape": call.shape}, call.shapes, call.where
    )
    return _resized(tracer, call, move(tracer, shaped, _free(tracer, sizes)), sizes)


def _free(tracer: Tracer, sizes: Sequence[int]) -> frozenset[int]:
    return frozenset(dim for dim, size in enumerate(sizes) if size == -1 or tracer.follows(size))


def _resized(tracer: Tracer, call: Call, output: Labelled, sizes: Sequence[int]) -> Labelled:
    for size, rows in zip(sizes, output.dims, strict=True):
        if size != -1 and rows is not None:
            tracer.require(size, rows, f"{call.where}: {CONSTANT}")
    return output


def view_like(tracer: Tracer, call: Call) -> Value:
    """View as another tensor: takes its sizes, which follow its channels."""
    value, other = (tracer.labels_of(given) for given in tensors_in(call.args))
    if value.shape == other.shape:
        return value
    arguments = {"self": value, "shape": list(other.shape)}
    outputs = Call("view", torch.ops.aten.reshape.default, arguments, call.shapes, call.where)
    free = frozenset(dim for dim, rows in enumerate(other.dims) if rows is not None)
    moved = move(tracer, outputs, free)
    for own, its in zip(moved.dims, other.dims, strict=True):
        if own is not None and its is not None:
            tracer.store.unify(own, its, call.where)
        elif own is not None:
            tracer.store.freeze(own, f"{call.where}: {CONSTANT}")
    return moved


def expand(tracer: Tracer, call: Call) -> Labelled:
    """Dimensions of size one are repeated; a size that follows channels makes a dimension that does."""
    value = tracer.labels_of(tensors_in(call.args)[0])
    if call.name == "expand_as":
        sizes: Sequence[int] = tensors_in(call.args)[1].shape
        targets = tracer.labels_of(tensors_in(call.args)[1]).dims
    else:
        sizes, targets = call.args["size"], (None,) * len(call.shape)
    added = len(call.shape) - len(value.shape)
    dims: list[Ints | None] = []
    for dim, (size, target) in enumerate(zip(sizes, targets, strict=True)):
        rows = None if dim < added else value.dims[dim - added]
        if dim >= added and value.shape[dim - added] == call.shape[dim]:
            if rows is not None and target is not None:
                tracer.store.unify(rows, target, call.where)
            elif rows is not None and size != -1:
                tracer.require(size, rows, f"{call.where}: {CONSTANT}")
            dims.append(rows)
            continue
        if rows is not None:
            tracer.store.freeze(rows, f"{call.where}: is broadcast over channels")
        dims.append(target if target is not None else tracer.sized(size, call.where))
    return Labelled(tuple(dims), call.shape)


def as_complex(tracer: Tracer, call: Call) -> Labelled:
    """The last dimension holds real and imaginary parts."""
    value = tracer.labels_of(call.args["self"])
    tracer.store.freeze(value.rows(-1), f"{call.where}: real and imaginary parts")
    return Labelled(value.dims[:-1], call.shape)


def as_real(tracer: Tracer, call: Call) -> Labelled:
    """Real and imaginary parts along a new last dimension."""
    return Labelled((*tracer.labels_of(call.args["self"]).dims, None), call.shape)


def new_constant(tracer: Tracer, call: Call) -> Labelled:
    """zeros, ones, full: a size that follows channels makes a dimension that does."""
    sizes = call.args.get("size", ())
    return Labelled(tuple(tracer.sized(size, call.where) for size in sizes), call.shape)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "unflatten"), view),
    **dict.fromkeys(("view_as", "reshape_as"), view_like),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(
        ("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty"),
        new_constant,
    ),
    "view_as_complex": as_complex,
    "view_as_real": as_real,
    **dict.fromkeys(("flatten", "pixel_unshuffle", "flip", "diagonal"), move),
    "as_strided": freeze,
}
"""Operation -> rule."""
