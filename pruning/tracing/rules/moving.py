"""Data movement: where what an operation gives comes from.

Operations on one tensor are run as they are, on the coordinates of their input: where along a labelled dimension
does each index of the output come from? What comes from one dimension alone carries its labels on; where one
dimension is split over several, their sizes say what may come and go:

    x.view(b, c // 2, 2, h, w)    c // 2 follows the channels, 2 is written in the code: pairs come and go
    x.view(b, n, -1, head_dim)    heads come and go; channels of a head too, if head_dim is an attribute of the
                                  module, which slimming can set
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from espalier.pruning.tracing.labels import Ints, Labelled
from espalier.pruning.tracing.recording import Stored
from espalier.pruning.tracing.rules.calls import Call, Tracer, Value, returns_several, tensors_in

CONSTANT = "its size is written as a constant"


def move(tracer: Tracer, call: Call, free: frozenset[int] = frozenset()) -> Value:
    """Runs the operation on coordinates.

    Args:
        tracer: where labels are unified.
        call: an operation on one tensor.
        free: the output dimensions whose sizes may follow the channels, where one dimension is split over several.
    """
    value = tracer.labels_of(tensors_in(call.args)[0])
    name = next(name for name, given in call.args.items() if isinstance(given, Labelled | Stored))
    pieces: list[list[list[Ints]]] = [[[] for _ in shape] for shape in call.shapes]
    for dim in value.labelled:
        size = value.shape[dim]
        sizes = [size if d == dim else 1 for d in range(len(value.shape))]
        coordinates = torch.arange(size, dtype=torch.int32).view(sizes).expand(value.shape)
        moved = call.target(**(call.args | {name: coordinates}))
        for number, output in enumerate(moved if isinstance(moved, list | tuple) else [moved]):
            _carry(tracer, call, value.rows(dim), output, pieces[number], free)
    outputs = [
        Labelled(tuple(np.concatenate(found, axis=1) if found else None for found in dims), shape)
        for dims, shape in zip(pieces, call.shapes, strict=True)
    ]
    return outputs if returns_several(call.target) else outputs[0]


def _carry(
    tracer: Tracer, call: Call, rows: Ints, output: Tensor, dims: list[list[Ints]], free: frozenset[int]
) -> None:
    """Adds the labels of one input dimension to the output dimensions that its coordinates ended up along."""
    compact = _squashed(output)
    varying = [dim for dim, size in enumerate(compact.shape) if size > 1]
    found = rows[compact.reshape(-1).numpy()].reshape(*compact.shape, rows.shape[1])
    if not varying:
        tracer.store.freeze(found.reshape(-1, rows.shape[1]), f"{call.where}: picks one channel")
        return
    for dim in varying if len(varying) > 1 else ():
        if dim not in free:  # a size that is a constant: each of its indices keeps the same places
            first = found.take([0], axis=dim)
            unify(tracer, call, found, np.broadcast_to(first, found.shape))
            found = first
    varying = [dim for dim in varying if found.shape[dim] > 1]
    if not varying:
        tracer.store.freeze(found.reshape(-1, rows.shape[1]), f"{call.where}: {CONSTANT}")
    elif len(varying) == 1:
        dims[varying[0]].append(found.reshape(-1, rows.shape[1]))
    else:
        _factor(tracer, call, found, varying, dims)


def _squashed(coordinates: Tensor) -> Tensor:
    """Drops to size one every dimension on which the coordinates do not depend."""
    compact = coordinates
    for dim, (size, stride) in enumerate(zip(coordinates.shape, coordinates.stride(), strict=True)):
        if size > 1 and stride == 0:
            compact = compact.narrow(dim, 0, 1)
    for dim, size in enumerate(compact.shape):
        if size > 1 and bool((compact == (first := compact.narrow(dim, 0, 1))).all()):
            compact = first
    return compact


def unify(tracer: Tracer, call: Call, found: Ints, other: Ints) -> None:
    """Couples two arrays of rows, (..., row), one by one."""
    width = found.shape[-1]
    tracer.store.unify(found.reshape(-1, width), other.reshape(-1, width), call.where)


def _factor(tracer: Tracer, call: Call, found: Ints, varying: list[int], dims: list[list[Ints]]) -> None:
    """Labels over a block of several dimensions: an index of the block is kept if its indices along all are."""
    sizes = [found.shape[dim] for dim in varying]
    block = tracer.store.atoms(found.reshape(-1, found.shape[-1]))
    block = block.reshape(*sizes, block.shape[-1])
    parts: list[list[Ints]] = [[] for _ in varying]
    separable = True
    for column in np.moveaxis(block, -1, 0):  # merged before: split along the same lines
        along = [axis for axis in range(len(sizes)) if (column != column.take([0], axis=axis)).any()]
        separable &= len(along) == 1
        if separable:
            index = tuple(slice(None) if axis == along[0] else 0 for axis in range(len(sizes)))
            parts[along[0]].append(column[index][:, None])
    if not separable:
        parts = [[tracer.store.fresh(size)] for size in sizes]
        rows = merged([part for (part,) in parts])
        tracer.store.unify(block.reshape(-1, block.shape[-1]), rows, call.where)
    for dim, own in zip(varying, parts, strict=True):
        dims[dim] += own  # nothing along what was merged in without channels, as examples are with heads


def merged(rows: Sequence[Ints]) -> Ints:
    """Rows of dimensions that are merged into one, the last running fastest."""
    result = rows[0]
    for inner in rows[1:]:
        outer = result.repeat(len(inner), axis=0)
        result = np.concatenate([outer, np.tile(inner, (len(result), 1))], axis=1)
    return result


def coupled(tracer: Tracer, call: Call, rows: Ints, parts: int) -> list[Ints]:
    """Cuts rows into equal parts that keep the same places."""
    pieces = np.split(rows, parts)
    for piece in pieces[1:]:
        tracer.store.unify(pieces[0], piece, call.where)
    return pieces
