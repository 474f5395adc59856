"""Attention without a scale of its own: that follows from the size of a head, and so changes as channels go.

``softmax(Q K^T / sqrt(d))`` stays what it was if Q is multiplied by ``sqrt(kept d / dense d)``, that is, if the
weights that write Q are. They are found by going back from the query through what is linear in it, and they may
write nothing else: going forward again, the same numbers must arrive nowhere but at queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.pruning.graph.groups import Rescaling
from espalier.pruning.tracing.labels import Ints
from espalier.pruning.tracing.recording import Node, Stored, is_in_place, mapped, operation_name

MOVES = frozenset(
    "view reshape _unsafe_view unflatten flatten transpose permute movedim swapaxes t contiguous clone unbind "
    "select split split_with_sizes unsafe_split chunk slice narrow squeeze unsqueeze expand alias detach to "
    "_to_copy neg cat stack add sub mul".split()
)
"""Operations that are linear in one operand; of two factors, one must be constant."""
WRITERS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), 1),
    **dict.fromkeys(("layer_norm", "rms_norm"), 2),
}
"""Operations whose weights write channels -> the place of the weight among the arguments; a bias follows it."""


@dataclass(frozen=True)
class Slices:
    """Some indices along the first dimension of a stored tensor."""

    tensor: str
    positions: Ints = field(repr=False)


def query_slices(query: Node, stored: Mapping[Node, Stored]) -> list[Slices] | None:
    """The weights and biases by which a query, and nothing else, may be multiplied; None if there are none."""
    writers = _writers(query)
    if not writers:
        return None
    sharing = {user: None for writer in writers for source in _weights(writer) for user in source.users}
    if any(_kind(node) not in WRITERS for node in sharing) or any(not _stored(node, stored) for node in sharing):
        return None
    region, ends = _forward(list(sharing))
    if not any(_is_query(*end) for end in ends):
        return None
    reached = _reached(list(sharing), region, ends)
    found: dict[str, Ints] = {}
    for writer in sharing:
        wanted = np.logical_or.reduce([rows[writer] for end, rows in reached.items() if _is_query(*end)])
        others = [rows[writer] for end, rows in reached.items() if not _is_query(*end)]
        if any((wanted & rows).any() for rows in others):
            return None
        weight, *rest = _weights(writer)
        for source in (weight, *rest):
            size = stored[source].shape[0]
            if len(wanted) % size:
                return None
            positions = wanted.reshape(-1, size)
            if not (positions == positions[:1]).all():
                return None
            known = found.setdefault(stored[source].name, positions[0])
            if not np.array_equal(known, positions[0]):
                return None
    return [Slices(name, np.flatnonzero(rows)) for name, rows in found.items() if rows.any()]


def rescalings(
    found: Mapping[tuple[str, bytes], tuple[Slices, Ints]], channels: Callable[[Ints], Tensor]
) -> list[Rescaling]:
    """Those whose factor can change, with the channels that it depends on."""
    all_of = [(slices, channels(rows)) for slices, rows in found.values()]
    return [
        Rescaling(slices.tensor, torch.from_numpy(slices.positions), counted)
        for slices, counted in all_of
        if bool((counted >= 0).any())
    ]


def _kind(node: Node) -> str:
    return operation_name(node.target) if node.kind == "call" else node.kind


def _weights(writer: Node) -> list[Node]:
    """The nodes of a writer's weight and bias."""
    place = WRITERS[_kind(writer)]
    return [source for source in writer.args[place : place + 2] if isinstance(source, Node)]


def _stored(writer: Node, stored: Mapping[Node, Stored]) -> bool:
    weights = _weights(writer)
    return bool(weights) and all(source in stored for source in weights) and writer.sources[0] not in weights


def _is_linear(node: Node, depends: Callable[[Node], bool]) -> bool:
    """Whether a node is linear in those of its sources that depend on a writer."""
    kind = _kind(node)
    if kind == "item":
        return True
    if kind not in MOVES or is_in_place(node.target):
        return False
    return kind != "mul" or sum(map(depends, node.sources)) == 1


def _writers(query: Node) -> list[Node] | None:
    """The nodes that write a query, through what is linear in it; None if another operation has a part in it."""
    found: dict[Node, None] = {}
    pending, seen = [query], {query}
    while pending:
        node = pending.pop()
        kind = _kind(node)
        if kind in WRITERS:
            found[node] = None
            continue
        if kind != "item" and (kind not in MOVES or is_in_place(node.target)):
            return None
        sources = list(node.sources)
        if kind == "mul":
            sources = [source for source in sources if _leads_to_writer(source)]
            if len(sources) != 1:
                return None
        for source in sources:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return list(found)


def _leads_to_writer(node: Node) -> bool:
    while _kind(node) not in WRITERS:
        if (_kind(node) != "item" and _kind(node) not in MOVES) or not node.sources:
            return False
        node = node.sources[0]
    return True


_End = tuple[Node, Node]
"""A node that is not linear, and the source that it reads."""


def _forward(writers: Sequence[Node]) -> tuple[list[Node], list[_End]]:
    """The linear nodes behind writers, in the order of execution, and where these lead."""
    region: set[Node] = set(writers)
    ends: list[_End] = []
    for node in _descendants(writers):
        inside = [source for source in node.sources if source in region]
        if inside and _is_linear(node, region.__contains__):
            region.add(node)
        else:
            ends += [(node, source) for source in inside]
    return sorted(region - set(writers), key=lambda node: node.number), ends


def _descendants(writers: Sequence[Node]) -> list[Node]:
    """What reads writers, through linear operations, in the order of execution."""
    found: set[Node] = set()
    pending = [user for writer in writers for user in writer.users]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            if _kind(node) == "item" or _kind(node) in MOVES:
                pending += node.users
    return sorted(found - set(writers), key=lambda node: node.number)


def _is_query(node: Node, source: Node) -> bool:
    """Whether a node is attention that has no scale of its own and reads a source as its query, and only so."""
    if _kind(node) != "scaled_dot_product_attention" or node.kwargs.get("scale") is not None:
        return False
    return node.args[0] is source and source not in node.args[1:]


def _reached(
    writers: Sequence[Node], region: Sequence[Node], ends: Sequence[_End]
) -> dict[_End, dict[Node, np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    """Per end and writer the channels that arrive there: found by differentiating."""
    generator = torch.Generator().manual_seed(0)

    def stand_in(node: Node) -> Tensor:
        return 0.5 + torch.rand(node.made.shape, generator=generator)

    with torch.enable_grad():
        values: dict[Node, Any] = {writer: stand_in(writer).requires_grad_() for writer in writers}
        for node in region:
            if node.kind == "item":
                values[node] = values[node.args[0]][node.args[1]]
                continue
            for source in node.sources:
                if source not in values:
                    values[source] = stand_in(source)
            args, kwargs = mapped((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
        found = {}
        leaves = [values[writer] for writer in writers]
        for end in ends:
            arriving = values[end[1]]
            weighted = (arriving * stand_in(end[1])).sum() if arriving.requires_grad else None
            gradients = (
                [None] * len(leaves)
                if weighted is None
                else torch.autograd.grad(weighted, leaves, retain_graph=True, allow_unused=True)
            )
            found[end] = {
                writer: _channels_of(writer, gradient) for writer, gradient in zip(writers, gradients, strict=True)
            }
    return found


def _channels_of(writer: Node, gradient: Tensor | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Along the dimension of a writer's channels, where a gradient is not zero."""
    dim = 1 if _kind(writer).startswith("conv") else len(writer.made.shape) - 1
    if gradient is None:
        return np.zeros(writer.made.shape[dim], dtype=bool)
    rows: np.ndarray[tuple[int], np.dtype[np.bool_]] = (gradient != 0).movedim(dim, 0).flatten(1).any(1).numpy()
    return rows
