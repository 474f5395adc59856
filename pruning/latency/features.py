"""What the time of a pass is made of, for any widths: numbers that a runtime's time is linear in.

Notation:
    n, G       policies, groups
    K          terms of the graph's cost in MACs: one per contraction (convolution, linear layer, matrix product)
    class      contractions of one kind, resolution, kernel and grouping
    F          number of features

For each class of contractions: MACs of widths rounded up to each of `ROUNDED`, as kernels work on blocks of
channels, and what it reads and writes. For all of them, where channels are no multiple of a block: MACs and traffic
once more, as runtimes then fall back to slower kernels, or reorder what they read. Where branches can be taken out:
how many contractions of each class are left, as each takes time at any width. Where layers can have fewer bits: all
of this twice, for those in float32 and for the others. For the rest: bytes of the
results of each kind of operation, the number of parameters, and a constant.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection
from operator import attrgetter, methodcaller

import numpy as np

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints

ROUNDED = (1, 8, 16)
"""Widths are rounded up to multiples of these."""
BLOCKS = (8, 16)
"""Channels that fast kernels take at once."""


def timing_digest(graph: ChannelGraph) -> str:
    """Names what latency depends on, beside widths: groups and costs, operations, and the types of activations."""
    state = hashlib.sha256(graph.digest.encode())
    for operation in graph.operations:
        state.update(f"{operation.kind}{operation.inputs}{operation.shape};".encode())
    state.update(graph.memory.sizes.coefficient.tobytes())
    return state.hexdigest()[:16]


Column = Callable[["_Policies"], Floats]
"""Policies -> one feature of each, (n,), not negative."""


class Features:
    """The features of one graph's networks, by name; equal names mean the same in every graph.

    Args:
        graph: groups and costs.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        cost = graph.mac_terms
        classes: dict[str, list[int]] = {}
        pixels = np.ones(len(cost.names))
        alone = np.logical_not(cost.reads.any(1)) & (cost.reads_fixed == 1)  # depthwise: each channel by itself
        for term, number in enumerate(graph.mac_operations):
            operation = graph.operations[number]
            places = _places(operation.shape)
            pixels[term] = np.prod(places)
            kernel = round(cost.coefficient[term] / pixels[term])
            kind = f"{operation.kind}{' depthwise' if alone[term] else ''} {kernel} at {_product(places)}"
            classes.setdefault(kind, []).append(term)
        self.columns: dict[str, Column] = {}
        parts: dict[str, Callable[[_Policies], Floats] | None] = {"": None}
        if graph.precisions:
            parts = {"": lambda p: 1 - p.in_bits, " in 8 bits": attrgetter("in_bits")}
        for (kind, terms), (ending, part) in itertools.product(classes.items(), parts.items()):
            kind += ending
            for step in ROUNDED:
                self.columns[f"MACs of {kind} to {step}"] = _summed(methodcaller("macs", step), terms, part)
            self.columns[f"reads of {kind}"] = _summed(attrgetter("reads"), terms, part)
            self.columns[f"writes of {kind}"] = _summed(attrgetter("writes"), terms, part)
            if graph.branches or part is not None:  # elsewhere it is a part of the constant
                self.columns[f"layers of {kind}"] = _summed(attrgetter("there"), terms, part)
        for block in BLOCKS:
            for what, chosen in (("contractions", ~alone), ("depthwise", alone)):
                self._add_off(block, what, np.flatnonzero(chosen), pixels, reads=what == "contractions")
        kinds: dict[str, list[int]] = {}
        for number, maker in enumerate(graph.memory.born.tolist()):
            operation = graph.operations[maker]
            kinds.setdefault(f"{operation.kind} at {_product(_places(operation.shape))}", []).append(number)
        for kind, numbers in kinds.items():
            self.columns[f"bytes of {kind}"] = _summed(attrgetter("bytes"), numbers)
        self.columns["parameters"] = lambda p: graph.param_terms.terms(p.widths).sum(1)
        self.columns["constant"] = lambda p: np.ones(len(p.widths))

    def _add_off(self, block: int, what: str, terms: Ints, pixels: Floats, reads: bool) -> None:
        """Features of contractions that read or write channels which are no multiple of a block."""

        def off(p: _Policies) -> tuple[Floats, Floats, Floats]:
            written = p.writes[:, terms] % block != 0
            read = (p.reads[:, terms] % block != 0) & reads
            return written, read, written | read

        volume = pixels[terms]
        added: dict[str, Column] = {
            "MACs of {}": lambda p: (p.macs(1)[:, terms] * off(p)[2]).sum(1),
            "MACs of {} written": lambda p: (p.macs(1)[:, terms] * off(p)[0]).sum(1),
            "values of {} written": lambda p: (p.writes[:, terms] * volume * off(p)[0]).sum(1),
            "values of {} read": lambda p: (p.reads[:, terms] * volume * off(p)[1]).sum(1),
            "values read by {}": lambda p: (p.reads[:, terms] * volume * off(p)[2]).sum(1),
            "{}": lambda p: off(p)[2].sum(1).astype(np.float64),
        }
        self.columns |= {f"{name.format(what)} off {block}": column for name, column in added.items()}

    def __call__(self, widths: Floats, names: Collection[str] | None = None) -> Floats:
        """Of widths (n, G): (n, F), or of some of the features, in their order."""
        policies = _Policies(self._graph, widths)
        return np.stack([self.columns[name](policies) for name in names or self.columns], axis=1)


class _Policies:
    """Widths (n, G), and what several features need of them."""

    def __init__(self, graph: ChannelGraph, widths: Floats) -> None:
        self.widths, self._graph = widths, graph
        self.reads, self.writes = graph.mac_terms.sides(widths)
        self._macs: dict[int, Floats] = {}

    def macs(self, step: int) -> Floats:
        """Per contraction, of widths rounded up to multiples of the step: (n, K)."""
        if step not in self._macs:
            rounded = np.minimum(np.ceil(self.widths / step) * step, self._graph.sizes)
            self._macs[step] = self._graph.mac_terms.terms(rounded)
        return self._macs[step]

    @property
    def in_bits(self) -> Floats:
        """One for every contraction of a layer in fewer bits, else zero."""
        return self._graph.in_bits(self.widths).astype(np.float64)

    @property
    def there(self) -> Floats:
        """One for every contraction that is of no branch that is out, else zero."""
        return self._graph.mac_terms.there(self.widths).astype(np.float64)

    @property
    def bytes(self) -> Floats:
        """Of every activation."""
        return self._graph.memory.sizes.terms(self.widths)


def _summed(side: Callable[[_Policies], Floats], terms: list[int], part: Column | None = None) -> Column:
    """The sum over some terms, or of those of them that a part counts."""
    if part is None:
        return lambda policies: side(policies)[:, terms].sum(1)
    return lambda policies: (side(policies)[:, terms] * part(policies)[:, terms]).sum(1)


def _places(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels of images, (b, c, h, w), and tokens of sequences, (b, t, c)."""
    return shape[2:] if len(shape) >= 4 else shape[1:-1]


def _product(places: tuple[int, ...]) -> str:
    return "x".join(map(str, places)) or "1"
