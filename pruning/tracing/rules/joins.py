"""Rules of what cuts tensors, joins them, repeats them or picks from them."""

from __future__ import annotations

import numpy as np

from espalier.pruning.tracing.labels import Ints, Labelled
from espalier.pruning.tracing.rules.calls import Call, Rule, Tracer, Value, freeze, shared, tensors_in
from espalier.pruning.tracing.rules.moving import coupled, move, unify


def concatenate(tracer: Tracer, call: Call) -> Labelled:
    """One dimension holds the channels of all; along the others they are the same."""
    values = [tracer.labels_of(value) for value in call.args["tensors"]]
    values = [value for value in values if len(value.shape) == len(call.shape)]  # an empty one may be flat
    dim = call.args["dim"] % len(call.shape)
    dims: list[Ints | None] = []
    for other in range(len(call.shape)):
        if other != dim:
            dims.append(shared(tracer, call, [value.dims[other] for value in values]))
            continue
        parts = [value.rows(dim) for value in values]
        width = max(part.shape[1] for part in parts)
        padded = [np.pad(part, ((0, 0), (width - part.shape[1], 0))) for part in parts]
        dims.append(np.concatenate(padded) if any(value.dims[dim] is not None for value in values) else None)
    return Labelled(tuple(dims), call.shape)


def stack(tracer: Tracer, call: Call) -> Labelled:
    """A new dimension without channels."""
    values = [tracer.labels_of(value) for value in call.args["tensors"]]
    dims = [shared(tracer, call, [value.dims[d] for value in values]) for d in range(len(values[0].shape))]
    dims.insert(call.args["dim"] % len(call.shape), None)
    return Labelled(tuple(dims), call.shape)


def chunk(tracer: Tracer, call: Call) -> list[Labelled]:
    """Equal parts keep the same places, so that the cuts stay equal; unequal ones freeze."""
    value = tracer.labels_of(tensors_in(call.args)[0])
    dim = call.args.get("dim", 0) % len(value.shape)
    rows = value.dims[dim]
    if rows is None:
        return [Labelled(value.dims, shape) for shape in call.shapes]
    if len({shape[dim] for shape in call.shapes}) == 1 and "indices" not in call.args:
        parts = coupled(tracer, call, rows, len(call.shapes))
    else:
        tracer.store.freeze(rows, f"{call.where}: cuts channels at a constant place")
        parts = np.split(rows, np.cumsum([shape[dim] for shape in call.shapes])[:-1])
    return [value.with_dims({dim: part}, shape) for part, shape in zip(parts, call.shapes, strict=True)]


def split(tracer: Tracer, call: Call) -> list[Labelled]:
    """Parts whose sizes follow the channels come and go; constants freeze."""
    value = tracer.labels_of(call.args["self"])
    dim = call.args["dim"] % len(value.shape)
    rows = value.dims[dim]
    given = call.args["split_size" if "split_size" in call.args else "split_sizes"]
    if rows is None:
        return [Labelled(value.dims, shape) for shape in call.shapes]
    parts = np.split(rows, np.cumsum([shape[dim] for shape in call.shapes])[:-1])
    sizes = [given] * len(parts) if isinstance(given, int) else given
    alike = len({len(part) for part in parts}) == 1
    if isinstance(given, int) and alike and tracer.follows(given):
        parts = coupled(tracer, call, rows, len(parts))
    for size, part in zip(sizes, parts, strict=True):
        if len(part) == size:
            tracer.require(size, part, f"{call.where}: cuts channels at a constant place")
        else:  # the rest, shorter than the size
            tracer.store.freeze(rows, f"{call.where}: cuts channels at a constant place")
    return [value.with_dims({dim: part}, shape) for part, shape in zip(parts, call.shapes, strict=True)]


def cut(tracer: Tracer, call: Call) -> Labelled:
    """Slices: a cut at a constant place freezes the channels before it, one that follows the channels none.

    Every n-th channel stays that if the n channels of a run come and go together.
    """
    value = tracer.labels_of(call.args["self"])
    dim = call.args.get("dim", 0) % len(value.shape)
    rows = value.dims[dim]
    if rows is None:
        return Labelled(value.dims, call.shape)
    size = value.shape[dim]
    start, end = call.args.get("start"), call.args.get("end")
    if call.name == "narrow":
        end = start + call.args["length"]
    reason = f"{call.where}: cuts channels at a constant place"
    step = call.args.get("step", 1)
    if step != 1 and size % step == 0 and 0 <= (start or 0) < step and (end is None or end >= size):
        runs = rows.reshape(-1, step, rows.shape[1])  # one of every run, which comes and goes as a whole
        unify(tracer, call, runs, np.broadcast_to(runs[:, :1], runs.shape))
        return value.with_dims({dim: rows[start or 0 :: step]}, call.shape)
    if step != 1:
        tracer.store.freeze(rows, reason)
    for place in (start, end):
        whole = call.name == "narrow" and place == size  # a slice may end beyond what is left, this one not
        if place is None or (place >= size and not whole) or place == 0 or place <= -size:
            continue
        part = rows[:place] if place > 0 else rows[place:]
        length = place if place > 0 else -place
        if tracer.follows(place) and size % len(part) == 0:
            coupled(tracer, call, rows, size // len(part))
        tracer.require(length, part, reason)
    return value.with_dims({dim: rows[slice(start, end, call.args.get("step", 1))]}, call.shape)


def select(tracer: Tracer, call: Call) -> Labelled:
    """One index along a dimension: along channels, at a constant place, which freezes those before it."""
    value = tracer.labels_of(call.args["self"])
    dim = call.args["dim"] % len(value.shape)
    rows, index = value.dims[dim], call.args["index"]
    if rows is not None:
        part = rows[: index + 1] if index >= 0 else rows[index:]
        tracer.store.freeze(part, f"{call.where}: cuts channels at a constant place")
    return Labelled(value.dims[:dim] + value.dims[dim + 1 :], call.shape)


def unbind(tracer: Tracer, call: Call) -> list[Labelled]:
    """Every index along a dimension: as many as the code names."""
    value = tracer.labels_of(call.args["self"])
    dim = call.args["dim"] % len(value.shape)
    if value.dims[dim] is not None:
        tracer.store.freeze(value.rows(dim), f"{call.where}: cuts channels at a constant place")
    return [Labelled(value.dims[:dim] + value.dims[dim + 1 :], shape) for shape in call.shapes]


def index_select(tracer: Tracer, call: Call) -> Labelled:
    """Constant indices along a dimension; along channels they freeze."""
    value = tracer.labels_of(call.args["self"])
    dim = call.args["dim"] % len(value.shape)
    tracer.store.freeze(value.rows(dim), f"{call.where}: picks channels by number")
    return value.with_dims({dim: None}, call.shape)


def index(tracer: Tracer, call: Call) -> Labelled:
    """Constant indices along some dimensions; along channels they freeze, the others keep theirs."""
    value = tracer.labels_of(call.args["self"])
    indices = call.args["indices"]
    for given in tensors_in(indices):
        for rows in tracer.labels_of(given).all_rows() if isinstance(given, Labelled) else ():
            tracer.store.freeze(rows, f"{call.where}: is used as an index")
    chosen = {dim for dim, given in enumerate(indices) if given is not None}
    for dim in chosen & set(value.labelled):
        tracer.store.freeze(value.rows(dim), f"{call.where}: picks channels by number")
    kept = [rows for dim, rows in enumerate(value.dims) if dim not in chosen]
    together = max(chosen) - min(chosen) + 1 == len(chosen)
    place = min(chosen) if together else 0  # where the dimensions of the indices go
    added = (None,) * (len(call.shape) - len(kept))
    return Labelled((*kept[:place], *added, *kept[place:]), call.shape)


def embedding(tracer: Tracer, call: Call) -> Labelled:
    """Rows of a table by number: the table's columns are channels."""
    weight, indices = call.args["weight"], call.args["indices"]
    columns = tracer.store.fresh(weight.shape[1])
    tracer.bind(weight, 1, columns, "out")
    return Labelled((*(None,) * len(indices.shape), columns), call.shape)


def repeat(tracer: Tracer, call: Call) -> Labelled:
    """A number of copies along each dimension."""
    value = tracer.labels_of(tensors_in(call.args)[0])
    times = call.args["repeats" if "repeats" in call.args else "dims"]
    rank = max(len(value.shape), len(times))
    rows = (None,) * (rank - len(value.shape)) + value.dims
    times = [1] * (rank - len(times)) + list(times)
    dims = tuple(None if own is None else np.tile(own, (n, 1)) for own, n in zip(rows, times, strict=True))
    return Labelled(dims, call.shape)


def repeat_interleave(tracer: Tracer, call: Call) -> Value:
    """Every index a number of times."""
    value = tracer.labels_of(call.args["self"])
    times, dim = call.args["repeats"], call.args.get("dim")
    if not isinstance(times, int) or dim is None:
        return freeze(tracer, call)
    rows = value.dims[dim % len(value.shape)]
    return value.with_dims({dim: None if rows is None else rows.repeat(times, axis=0)}, call.shape)


def pad(tracer: Tracer, call: Call) -> Value:
    """Constant padding: what is added along channels is always there."""
    value = tracer.labels_of(call.args["self"])
    amounts = call.args["pad"]
    dims = list(value.dims)
    for number, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        dim = len(dims) - 1 - number
        rows = dims[dim]
        if rows is None or not (before or after):
            continue
        if before < 0 or after < 0 or call.args.get("mode", "constant") != "constant":
            tracer.store.freeze(rows, f"{call.where}: cuts or mirrors channels")
            rows = rows[max(-before, 0) : len(rows) - max(-after, 0)]
        dims[dim] = np.pad(rows, ((max(before, 0), max(after, 0)), (0, 0)))
    return Labelled(tuple(dims), call.shape)


def glu(tracer: Tracer, call: Call) -> Labelled:
    """First half times sigmoid of the second: both keep the same places."""
    value = tracer.labels_of(call.args["self"])
    rows = value.dims[call.args["dim"]]
    first = None if rows is None else coupled(tracer, call, rows, 2)[0]
    return value.with_dims({call.args["dim"]: first}, call.shape)


def channel_shuffle(tracer: Tracer, call: Call) -> Labelled:
    """A view as (groups, channels per group), transposed: every group keeps the same places."""
    value = tracer.labels_of(call.args["self"])
    rows, groups = value.rows(1), call.args["groups"]
    coupled(tracer, call, rows, groups)
    return value.with_dims({1: rows.reshape(groups, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)})


def pixel_shuffle(tracer: Tracer, call: Call) -> Value:
    """(c r^2, h, w) -> (c, r h, r w): runs of r^2 channels come and go."""
    return move(tracer, call, frozenset({len(call.shape) - 3}))


def unfold(tracer: Tracer, call: Call) -> Labelled:
    """im2col: (n, c, h, w) -> (n, c k^2, l)."""
    value = tracer.labels_of(call.args["self"])
    for dim in set(value.labelled) - {0, 1}:
        tracer.store.freeze(value.rows(dim), f"{call.where}: works along dimension {dim} of its channels")
    rows, times = value.dims[1], call.shape[1] // value.shape[1]
    return Labelled((value.dims[0], None if rows is None else rows.repeat(times, axis=0), None), call.shape)


def fold(tracer: Tracer, call: Call) -> Labelled:
    """col2im: (n, c k^2, l) -> (n, c, h, w): runs of k^2 rows come and go."""
    value = tracer.labels_of(call.args["self"])
    rows = value.rows(1)
    runs = rows.reshape(call.shape[1], -1, rows.shape[1])
    unify(tracer, call, runs, np.broadcast_to(runs[:, :1], runs.shape))
    return Labelled((value.dims[0], runs[:, 0], None, None), call.shape)


def scatter(tracer: Tracer, call: Call) -> Labelled:
    """Rows of one tensor added or written to rows of another, as along the edges of a graph."""
    value = tracer.labels_of(call.args["self"])
    dim = call.args["dim"] % len(value.shape)
    others = [tracer.labels_of(call.args[name]) for name in ("src", "source", "index") if _is_tensor(call, name)]
    others = [other for other in others if len(other.shape) == len(value.shape)]
    for tensor in (value, *others):
        tracer.store.freeze(tensor.rows(dim), f"{call.where}: picks channels by number")
    dims = [
        None if along == dim else shared(tracer, call, [tensor.dims[along] for tensor in (value, *others)])
        for along in range(len(value.shape))
    ]
    return Labelled(tuple(dims), call.shape)


def _is_tensor(call: Call, name: str) -> bool:
    return isinstance(call.args.get(name), Labelled)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce", "index_add", "index_reduce"), scatter),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    "stack": stack,
    **dict.fromkeys(("hsplit", "vsplit", "dsplit"), freeze),
    **dict.fromkeys(("chunk", "unsafe_chunk", "tensor_split"), chunk),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), split),
    **dict.fromkeys(("slice", "narrow"), cut),
    "select": select,
    "unbind": unbind,
    "index_select": index_select,
    "index": index,
    "embedding": embedding,
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "glu": glu,
    "channel_shuffle": channel_shuffle,
    "pixel_shuffle": pixel_shuffle,
    "im2col": unfold,
    "col2im": fold,
}
"""Operation -> rule."""
