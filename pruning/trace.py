"""From a network to its ChannelGraph: the exported graph is run on channel labels."""

from __future__ import annotations

import operator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from espalier.errors import TraceError, VerificationError
from espalier.pruning.calls import Call, Stored, Value, freeze, operation_name
from espalier.pruning.export import Inputs, Program, export
from espalier.pruning.graph import ChannelGraph, Group, Role
from espalier.pruning.grouping import Contraction, Step, Tie, channel_graph
from espalier.pruning.labels import Ints, Labelled, LabelStore
from espalier.pruning.provenance import TracedInt, leaves
from espalier.pruning.rules import rule_for
from espalier.pruning.sizes import Sizes
from espalier.pruning.torch_private import OpOverload, schema_of
from espalier.pruning.verification import is_in_place, is_view


def trace(model: nn.Module, example_inputs: Inputs) -> ChannelGraph:
    """Finds which channels of a network live and die together, and what they cost.

    Args:
        model: any module that `torch.export` can export; it is traced in eval mode and left as it was.
        example_inputs: one input tensor, the tuple of arguments, or a dict of named ones; dimension 0 of the
            first tensor is the batch, and all costs are per example.

    Returns:
        The groups, prunable and frozen, and the costs in closed form. It keeps the example, on which `slim`
        verifies what it makes.

    Raises:
        TraceError: the network cannot be exported, or nothing in it can be pruned; names the operation.
    """
    run = LabelRun(export(model, example_inputs))
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    graph = channel_graph(run, parameters, example_inputs)
    while run.code_sees_widths() and (groups := _misunderstood(model, graph)):
        for group in groups:
            run.freeze_group(group, "its width changes what the code computes, in a way that cannot be followed")
        graph = channel_graph(run, parameters, example_inputs)
    if not graph.groups:
        reasons = "; ".join(f"{group.name}: {group.frozen}" for group in graph.frozen) or "it has no channels"
        raise TraceError(f"nothing in {type(model).__name__} can be pruned: {reasons}")
    return graph


def _misunderstood(model: nn.Module, graph: ChannelGraph) -> list[Group]:
    """Groups that cannot be halved without the network computing something else: found by trying.

    Integers are followed as far as Python lets them; ``1.0 / x.shape[1]`` or ``range(x.shape[1])`` is out of reach.
    """
    from espalier.pruning.surgery import slim  # which traces where a graph was pickled

    halves = graph.ranks(np.random.default_rng(0).random(graph.n_channels)) < (graph.sizes[graph.group_of] + 1) // 2

    def fail(groups: list[int]) -> bool:
        keep = halves | ~np.isin(graph.group_of, groups)
        try:
            slim(model, graph, torch.from_numpy(keep))
        except VerificationError:
            return True
        return False

    def among(groups: list[int]) -> list[int]:
        if not fail(groups):
            return []
        if len(groups) == 1:
            return groups
        middle = len(groups) // 2
        return among(groups[:middle]) + among(groups[middle:]) or groups

    everything = list(range(len(graph.groups)))
    if not everything or not fail(everything) or fail([]):  # what differs from itself tells nothing
        return []
    return [graph.groups[number] for number in among(everything)]


class LabelRun:
    """Runs a program on labels; implements `calls.Tracer`.

    Attributes:
        program: what was run.
        store: the labels.
        ties: the channels along the dimensions of stored tensors.
        sizes: the integers of the network's code.
        contractions: what costs MACs.
        steps: what makes tensors, in the order of execution.
        labels: the labels of every node's outputs.
        unwritten: labels of indices that are no channels, for no layer writes them: tokens, kernel positions.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.store = LabelStore()
        self.ties: dict[tuple[str, int], Tie] = {}
        self.sizes = Sizes(program, self.store, self.ties)
        self.contractions: list[Contraction] = []
        self.steps: list[Step] = []
        self.labels: dict[fx.Node, Value] = {}
        self._pinned: dict[str, str] = {}
        self._from_input: set[fx.Node] = set()
        self._weights: set[int] = set()  # ids of labels that no input went into
        self._node = program.nodes[0]
        self._where = ""
        for node in program.nodes:
            self._run(node)
        self.steps = [replace(step, per_example=step.node in self._from_input) for step in self.steps]
        self.unwritten = self._settle_written()
        self._settle_pinned()
        self.sizes.settle()
        self.unwritten -= self._written()  # a size that must be followed may have coupled them

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
        atoms = set(np.unique(self.store.atoms(rows)).tolist()) - {0}
        stored = {stored.name: stored for stored in self.program.stored.values()}
        return [
            (name, dim)
            for (name, dim), tie in self.ties.items()
            if tie.role == "scale"
            and prod(stored[name].shape) == prod(shape)
            and atoms & set(np.unique(self.store.atoms(tie.rows)).tolist())
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

    def contract(self, coefficient: int, sides: list[Ints]) -> None:
        """See `calls.Tracer`."""
        per = self.program.batch if self._node in self._from_input else 1
        self.contractions.append(Contraction(len(self.steps), coefficient / per, tuple(sides)))

    # -- the run

    def _run(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.labels[node] = self.program.stored.get(node) or _fixed(node)
            if node not in self.program.stored and node not in self.program.constants:
                self._from_input.add(node)
                self._note(node, "input")
            return
        if any(source in self._from_input for source in node.all_input_nodes):
            self._from_input.add(node)
        if node.op == "output":
            for value in _flat(fx.node.map_arg(node.args, lambda n: self.labels[n])):
                if isinstance(value, Labelled):
                    self._freeze(value, "network output")
                elif isinstance(value, Stored):
                    self.pin(value, "network output")
        elif node.op == "get_attr":
            self.labels[node] = _fixed(node)
        elif node.target is operator.getitem:
            self.labels[node] = self.labels[node.args[0]][node.args[1]]  # type: ignore[index]
        else:
            shapes = _shapes(node)
            if shapes is None or not isinstance(node.target, OpOverload):
                self._run_foreign(node, shapes or ())
            else:
                self._run_operation(node, node.target, shapes)
        if node in self.labels and node not in self._from_input:
            self._weights.update(map(id, _flat(self.labels[node])))
        number = self.program.call_of(node)
        if number is not None and node in self.labels:
            self.sizes.returned(number, self.labels[node])

    def _run_operation(self, node: fx.Node, target: OpOverload, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._node, name, layer = node, operation_name(target), layer_of(node)
        self._where = f"{name} in {layer}" if layer else name
        given = self.program.followed(node, self._bound(node, target))
        called = Call(name, target, given, shapes, self._where, _used(node))
        try:
            self.labels[node] = rule_for(target)(self, called)
            understood = _fits(self.labels[node], shapes)
        except Exception:  # a form of the operation that its rule does not know
            understood = False
        if not understood:
            self.labels[node] = freeze(self, called)
        if node in self._from_input and is_in_place(target):
            self._now_from_input(node.args[0])
        elif name in ("expand", "expand_as", "repeat") and shapes[0][:1] == (self.program.batch,) != (1,):
            self._from_input.add(node)  # something stored, as a learned query, for every example
        self.sizes.hold(_integers(given), f"{self._where}: depends on their number")
        self._note(node, name)

    def _now_from_input(self, source: Any) -> None:
        """What is written in place, as a tensor of zeros, and what it is a view of, hold inputs from now on."""
        while isinstance(source, fx.Node):
            self._from_input.add(source)
            self._weights.difference_update(map(id, _flat(self.labels[source])))
            source = source.args[0] if source.args and is_view(source.target) else None

    def _run_foreign(self, node: fx.Node, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Anything that is not ATen: control flow, symbolic arithmetic, foreign calls."""
        for source in node.all_input_nodes:
            for value in _flat(self.labels.get(source)):
                if isinstance(value, Stored):
                    self.pin(value, f"{node.target} is not understood")
                elif isinstance(value, Labelled):
                    self._freeze(value, f"{node.target} is not understood")
        fixed = [Labelled.fixed(shape) for shape in shapes]
        self.labels[node] = fixed if isinstance(node.meta.get("val"), list | tuple) else fixed[0] if fixed else None
        self._note(node, str(node.target))

    def _freeze(self, value: Labelled, reason: str) -> None:
        for rows in value.all_rows():
            self.store.freeze(rows, reason)

    def _note(self, node: fx.Node, name: str) -> None:
        if any(isinstance(value, Labelled) for value in _flat(self.labels[node])):
            self.steps.append(Step(node, name, layer_of(node), node in self._from_input))

    def _bound(self, node: fx.Node, target: OpOverload) -> dict[str, Value]:
        """Arguments by name, defaults filled in, nodes replaced by their values."""
        args = fx.node.map_arg(node.args, lambda n: self.labels[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.labels[n])
        bound: dict[str, Value] = {}
        for number, argument in enumerate(schema_of(target).arguments):
            if number < len(args):
                bound[argument.name] = args[number]
            elif argument.name in kwargs:
                bound[argument.name] = kwargs[argument.name]
        given = self.program.followed(node, bound)
        for argument in schema_of(target).arguments:
            if argument.name not in given and argument.has_default_value():
                given[argument.name] = argument.default_value
        return dict(given)

    def code_sees_widths(self) -> bool:
        """Whether the code has looked at the number of channels of a group, and no call shows what for."""
        return self.sizes.seen(besides=set(self.store.frozen()) | self.unwritten | {0})

    def freeze_group(self, group: Group, reason: str) -> None:
        """Freezes all channels of a group, and with them what shares a dimension with them."""
        for member in group.members:
            self.store.freeze(self.ties[member.tensor, member.dim].rows[member.positions], reason)

    # -- what is left to settle

    def _written(self) -> set[int]:
        """The atoms of what a layer writes."""
        found: set[int] = set()
        for tie in self.ties.values():
            if tie.role == "out":
                found |= set(np.unique(self.store.atoms(tie.rows)).tolist())
        return found

    def _settle_written(self) -> set[int]:
        """What no layer writes, as the tokens of a learned prompt, is no channel."""
        written = self._written() | {0}
        unwritten: set[int] = set()
        for tie in self.ties.values():
            unwritten |= set(np.unique(self.store.atoms(tie.rows)).tolist()) - written
        self.store.freeze(np.array(sorted(unwritten), dtype=np.int64), "no layer writes it")
        return unwritten

    def _settle_pinned(self) -> None:
        """What an operation without a rule reads is not sliced for the sake of another layer that shares it."""
        for (name, _), tie in self.ties.items():
            if name in self._pinned:
                self.store.freeze(tie.rows, self._pinned[name])


def _used(node: fx.Node) -> frozenset[int]:
    """Which outputs of a node are read."""
    return frozenset(
        int(user.args[1]) if user.target is operator.getitem else 0  # type: ignore[arg-type]
        for user in node.users
        if user.users
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


def layer_of(node: fx.Node) -> str:
    """Path of the innermost module that the node runs in."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _fixed(node: fx.Node) -> Value:
    shapes = _shapes(node)
    return Labelled.fixed(shapes[0]) if shapes else node.meta.get("val")


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...] | None:
    """Shapes of a node's output tensors; None where a size depends on data."""
    tensors = [v for v in _flat(node.meta.get("val")) if isinstance(v, Tensor)]
    if not all(isinstance(size, int) for tensor in tensors for size in tensor.shape):
        return None
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]


def _integers(value: Any) -> list[int]:
    return [leaf for leaf in _flat(value) if isinstance(leaf, int)]
