"""A recorded forward pass, run on channel labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from espalier.pruning.graph.groups import OUTPUT_REASON, Group, Role
from espalier.pruning.tracing.integers import Size, TracedInt, integers_in, leaves
from espalier.pruning.tracing.labels import Ints, Labelled, LabelStore, Tie
from espalier.pruning.tracing.recording import (
    Node,
    Recording,
    Stored,
    is_in_place,
    mapped,
    operation_name,
    parameters_of,
)
from espalier.pruning.tracing.rescaling import Slices, query_slices
from espalier.pruning.tracing.rules.calls import Call, Value, freeze
from espalier.pruning.tracing.rules.rules import rule_for
from espalier.pruning.tracing.sizes import Sizes


@dataclass(frozen=True)
class Contraction:
    """coefficient x the product of the numbers of rows kept on each side, MACs per example, in step `step`."""

    step: int
    coefficient: float
    sides: tuple[Ints, ...]


@dataclass(frozen=True)
class Step:
    """A node that makes tensors."""

    node: Node
    kind: str
    layer: str
    per_example: bool


class LabelRun:
    """Runs a recorded forward pass on labels; implements `calls.Tracer`.

    Attributes:
        recording: what was run.
        store: the labels.
        ties: the channels along the dimensions of stored tensors.
        sizes: the integers of the network's code.
        contractions: what costs MACs.
        steps: what makes tensors, in the order of execution.
        labels: the labels of every node's outputs.
        rescalings: the slices that write queries of attention, with the rows of a head that their scale follows.
        unwritten: labels of indices that are no channels, for no layer writes them: tokens, kernel positions.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.store = LabelStore()
        self.ties: dict[tuple[str, int], Tie] = {}
        self.contractions: list[Contraction] = []
        self.steps: list[Step] = []
        self.rescalings: dict[tuple[str, bytes], tuple[Slices, Ints]] = {}
        self.labels: dict[Node, Value] = {}
        self.sizes = Sizes(recording, self.store, self.labels, self.ties)
        self._pinned: dict[str, str] = {}
        self._from_input: set[Node] = set()
        self._weights: set[int] = set()  # ids of labels that no input went into
        self._node = recording.nodes[0]
        self._where = ""
        for node in recording.nodes:
            self._run(node)
        self.steps = [replace(step, per_example=step.node in self._from_input) for step in self.steps]
        unwritten = self._unwritten()
        self.store.freeze(unwritten, "no layer writes it")
        self._settle_pinned()
        self.sizes.settle()
        self.unwritten = np.intersect1d(
            unwritten, self._unwritten()
        )  # a size that must be followed may have coupled them

    # -- what rules may do

    def labels_of(self, value: Value) -> Labelled:
        """See `calls.Tracer`."""
        if isinstance(value, Labelled):
            return value
        dims: list[Ints | None] = []
        for dim, size in enumerate(value.shape):
            if size > 1 and (value.name, dim) not in self.ties:
                self.ties[value.name, dim] = Tie(self.store.fresh(size), "scale")
            tie = self.ties.get((value.name, dim))
            dims.append(None if tie is None else tie.rows)
        return Labelled(tuple(dims), value.shape)

    def is_weight(self, value: Value) -> bool:
        """See `calls.Tracer`."""
        return isinstance(value, Stored) or id(value) in self._weights

    def bind(self, value: Value, dim: int, rows: Ints, role: Role) -> None:
        """See `calls.Tracer`."""
        if isinstance(value, Stored):
            tie = self.ties.get((value.name, dim))
            if tie is not None:  # a weight that several layers share
                self.store.unify(tie.rows, rows, f"{self._where}: shares {value.name}")
                if tie.role == "scale":
                    self.ties[value.name, dim] = Tie(tie.rows, role)
            else:
                self.ties[value.name, dim] = Tie(rows, role)
        elif isinstance(value, Labelled):
            self.store.unify(value.rows(dim), rows, f"{self._where}: a weight that is computed")
            for name, along in self._computed_from(rows, value.shape):
                self.ties[name, along] = Tie(self.ties[name, along].rows, role)

    def _computed_from(self, rows: Ints, shape: tuple[int, ...]) -> list[tuple[str, int]]:
        """The stored tensors of as many numbers that a computed weight has its channels from."""
        atoms = self.store.marked([rows])
        stored = {stored.name: stored for stored in self.recording.stored.values()}
        return [
            (name, dim)
            for (name, dim), tie in self.ties.items()
            if tie.role == "scale"
            and prod(stored[name].shape) == prod(shape)
            and atoms[self.store.atoms(tie.rows)].any()
        ]

    def pin(self, stored: Stored, reason: str) -> None:
        """See `calls.Tracer`."""
        self._pinned.setdefault(stored.name, reason)

    def follows(self, size: int) -> bool:
        """See `calls.Tracer`."""
        return isinstance(size, TracedInt) and bool(leaves(size.expression))

    def require(self, size: int, rows: Ints, where: str) -> None:
        """See `calls.Tracer`."""
        self.sizes.require(size, rows, where)

    def sized(self, size: int, where: str) -> Ints | None:
        """See `calls.Tracer`."""
        return self.sizes.sized(size, where)

    def rescale_query(self, rows: Ints) -> bool:
        """See `calls.Tracer`."""
        found = query_slices(self._node.args[0], self.recording.stored)
        for slices in found or ():
            key = slices.tensor, slices.positions.tobytes()
            if key in self.rescalings:
                self.store.unify(self.rescalings[key][1], rows, self._where)
            else:
                self.rescalings[key] = slices, rows
        return bool(found)

    def contract(self, coefficient: int, sides: list[Ints]) -> None:
        """See `calls.Tracer`."""
        if self._node.number < self.recording.evaluation:
            self.contractions.append(Contraction(len(self.steps), coefficient / self._examples, tuple(sides)))

    @property
    def _examples(self) -> int:
        """By how many examples a call's costs are shared."""
        return self.recording.batch if self._node in self._from_input else 1

    # -- the run

    def _run(self, node: Node) -> None:
        match node.kind:
            case "stored":
                self.labels[node] = self.recording.stored[node]
            case "input" | "constant":
                self.labels[node] = Labelled.fixed(node.made.shape)
                if node.kind == "input":
                    self._from_input.add(node)
                    self._note(node, "input")
            case "item":
                self.labels[node] = self._item(*node.args)
            case "call":
                self._run_call(node)
            case "output":
                for value in (self.labels[source] for source in node.args):
                    if isinstance(value, Labelled):
                        self._freeze(value, OUTPUT_REASON)
                    elif isinstance(value, Stored):
                        self.pin(value, OUTPUT_REASON)
        if node.kind in ("call", "item"):
            if any(source in self._from_input for source in node.sources):
                self._from_input.add(node)
            if node not in self._from_input:
                self._weights.update(map(id, _flat(self.labels[node])))

    def _item(self, several: Node, number: int) -> Value:
        value = self.labels[several]
        return value[number] if isinstance(value, list | tuple) else value

    def _run_call(self, node: Node) -> None:
        shapes = tuple(made.shape for made in node.tensors)
        self._node, name = node, operation_name(node.target)
        self._where = f"{name} in {node.layer}" if node.layer else name
        if any(source in self._from_input for source in node.sources) or self._is_per_example(node):
            self._from_input.add(node)
        given = self._bound(node)
        before = len(self.contractions)
        called = Call(name, node.target, given, shapes, self._where, _used(node))
        try:
            self.labels[node] = rule_for(node.target)(self, called)
            understood = _fits(self.labels[node], shapes) and node.vmapped is None
        except Exception:  # a form of the operation that its rule does not know
            understood = False
        if not understood:
            del self.contractions[before:]
            self.labels[node] = freeze(self, called)
        if not any(c.sides for c in self.contractions[before:]):  # without channels, PyTorch's count is right
            del self.contractions[before:]
        told = sum(c.coefficient * prod(map(len, c.sides)) for c in self.contractions[before:]) * self._examples
        if round(node.macs - told) > 0:  # what is frozen costs all the same
            self.contract(round(node.macs - told), [])
        if node in self._from_input and is_in_place(node.target):
            self._now_from_input(node.args[0])
        self.sizes.hold(_integers(given), f"{self._where}: depends on their number")
        self._note(node, name)

    def _is_per_example(self, node: Node) -> bool:
        """Whether the number of examples is among a call's integers, as where a learned query is repeated."""
        for size in integers_in((node.args, node.kwargs)):
            for leaf in leaves(size.expression) if isinstance(size, TracedInt) else ():
                if isinstance(leaf, Size) and isinstance(leaf.tensor, int) and int(size) == self.recording.batch:
                    source = self.recording.nodes[leaf.tensor]
                    value = self.labels.get(source)
                    if source in self._from_input and isinstance(value, Labelled) and value.dims[leaf.dim] is None:
                        return leaf.dim == 0 or source.kind != "input"
        return False

    def _now_from_input(self, source: Any) -> None:
        """What is written in place, as a tensor of zeros, and what it is a view of, hold inputs from now on."""
        while isinstance(source, Node):
            self._from_input.add(source)
            self._weights.difference_update(map(id, _flat(self.labels[source])))
            source = source.args[0] if source.is_view and source.args else None

    def _freeze(self, value: Labelled, reason: str) -> None:
        for rows in value.all_rows():
            self.store.freeze(rows, reason)

    def _note(self, node: Node, name: str) -> None:
        labelled = any(isinstance(value, Labelled) for value in _flat(self.labels[node]))
        if labelled and node.number < self.recording.evaluation:
            self.steps.append(Step(node, name, node.layer, node in self._from_input))

    def _bound(self, node: Node) -> dict[str, Value]:
        """Arguments by name, defaults filled in, nodes replaced by their values."""
        args, kwargs = mapped((node.args, node.kwargs), lambda source: self.labels[source])
        declared = parameters_of(node.target)
        bound: dict[str, Value] = {
            name: value for (name, _, _), value in zip(declared, args, strict=False)
        } | kwargs
        return bound | {name: value for name, defaults, value in declared if defaults and name not in bound}

    def code_sees_widths(self) -> bool:
        """Whether the code has looked at the number of channels of a group, and no call shows what for.

        Or at numbers in tensors: its way may depend on them.
        """
        fixed = self.store.reasons()[0] > 0
        fixed[self.unwritten] = True
        return self.recording.reads_values or self.sizes.seen(besides=fixed)

    def freeze_group(self, group: Group, reason: str) -> None:
        """Freezes all channels of a group, and with them what shares a dimension with them."""
        for member in group.members:
            self.store.freeze(self.ties[member.tensor, member.dim].rows[member.positions], reason)

    # -- what is left to settle

    def _unwritten(self) -> Ints:
        """The atoms of what no layer writes, as the tokens of a learned prompt: these are no channels."""
        written = self.store.marked(tie.rows for tie in self.ties.values() if tie.role == "out")
        return np.flatnonzero(self.store.marked(tie.rows for tie in self.ties.values()) & ~written)

    def _settle_pinned(self) -> None:
        """What an operation without a rule reads is not sliced for the sake of another layer that shares it."""
        for (name, _), tie in self.ties.items():
            if name in self._pinned:
                self.store.freeze(tie.rows, self._pinned[name])


def _used(node: Node) -> frozenset[int]:
    """Which outputs of a node are read."""
    return frozenset(
        user.args[1] if user.kind == "item" else 0 for user in node.users if user.kind != "item" or user.users
    )


def _fits(value: Value, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether labels are of the shapes of a node's outputs."""
    if value is None:
        return True
    labelled = [output for output in _flat(value) if isinstance(output, Labelled)]
    return [output.shape for output in labelled] == list(shapes) and all(
        len(rows) == size
        for output in labelled
        for rows, size in zip(output.dims, output.shape, strict=True)
        if rows is not None
    )


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]


def _integers(value: Any) -> list[int]:
    return [leaf for leaf in _flat(value) if isinstance(leaf, int)]
