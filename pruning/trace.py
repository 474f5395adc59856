"""From a network to its ChannelGraph: `torch.export` gives the ATen graph, which is run on channel labels."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from espalier.errors import TraceError
from espalier.pruning.graph import BilinearCost, ChannelGraph, Floats, Group, Ints, Member, Role
from espalier.pruning.labels import Labelled, LabelStore
from espalier.pruning.rules import Call, Stored, Value, operation_name, rule_for

MAX_ELEMENTWISE = 1 << 20
"""Parameters above this many numbers are not labelled position by position, but frozen."""


def trace(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> ChannelGraph:
    """Finds which channels of a network live and die together, and what they cost.

    Args:
        model: any module that `torch.export` can export; it is traced in eval mode and left as it was.
        example_inputs: one input tensor, or the tuple of arguments; dimension 0 of the first is the batch, and
            all costs are per example.

    Returns:
        The groups, prunable and frozen, and the costs in closed form.

    Raises:
        TraceError: the network cannot be exported, or nothing in it can be pruned; names the operation.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    run = _LabelRun(_export(model, inputs), _first_names(model), batch=inputs[0].shape[0])
    graph = run.channel_graph({name: tuple(p.shape) for name, p in model.named_parameters()})
    if not graph.groups:
        reasons = "; ".join(f"{group.name}: {group.frozen}" for group in graph.frozen) or "it has no channels"
        raise TraceError(f"nothing in {type(model).__name__} can be pruned: {reasons}")
    return graph


def _export(model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            model(*inputs)  # a network that cannot run is told so in its own words
            with _quietly():
                return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        raise TraceError(f"cannot trace {type(model).__name__}: {_what_failed(error)}") from error
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A failing export prints the graph that it had and logs what it could not find: the error says it all."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor: layers may share one."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _what_failed(error: Exception) -> str:
    """One line of an export's failure, with the operation or the place in forward() that it names."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    head = lines[0] if lines else type(error).__name__
    for number, line in enumerate(lines):
        if line.startswith("File ") and "in forward" in line and number + 1 < len(lines):
            return f"{head} at `{lines[number + 1]}` ({line.removeprefix('File ')})"
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name == "forward" and "/torch/" not in code.co_filename:
            head = f"{head} ({code.co_filename}:{traceback.tb_lineno} in forward)"
            break
        traceback = traceback.tb_next
    return head


class _LabelRun:
    """Interprets an exported program on labels; implements `rules.Tracer`."""

    def __init__(self, program: torch.export.ExportedProgram, names: dict[str, str], batch: int) -> None:
        self.store = LabelStore()
        self._names = names
        self._batch = batch
        self._ties: dict[tuple[str, int], tuple[Tensor, Role]] = {}
        self._loose: dict[str, Tensor] = {}  # stored tensors labelled position by position
        self._pinned: dict[str, str] = {}
        self._contractions: list[tuple[str, int, Tensor, Tensor]] = []
        self._call = Call("", None, {}, (), "")
        self._layer = ""
        self._run(program)
        self._settle_loose()
        self._settle_pinned()

    # -- what rules may do

    def tie(self, stored: Stored, dim: int, labels: Tensor, role: Role) -> None:
        key = (stored.name, dim)
        if key in self._ties:  # a weight that several layers share
            self.store.unify(self._ties[key][0], labels, f"{self._call.where}: shares {stored.name}")
        else:
            self._ties[key] = (labels, role)

    def labels_of(self, value: Value) -> Labelled:
        if isinstance(value, Labelled):
            return value
        if value.name not in self._loose:
            count = int(np.prod(value.shape))
            if count > MAX_ELEMENTWISE:
                return Labelled.fixed(value.shape)
            self._loose[value.name] = self.store.fresh(count).reshape(value.shape)
        return Labelled(self._loose[value.name], value.shape)

    def pin(self, stored: Stored, reason: str) -> None:
        self._pinned.setdefault(stored.name, reason)

    def contract(self, coefficient: int, reads: Tensor, writes: Tensor) -> None:
        self._contractions.append((self._layer, coefficient // self._batch, reads, writes))

    # -- the run

    def _run(self, program: torch.export.ExportedProgram) -> None:
        signature = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        values: dict[torch.fx.Node, Value] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                values[node] = _placeholder(node, signature[node.name], self._names)
            elif node.op == "output":
                self._freeze_outputs(torch.fx.node.map_arg(node.args, lambda n: values[n]))
            elif node.target is operator.getitem:
                values[node] = values[node.args[0]][node.args[1]]
            elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                values[node] = self._step(node, values)
            elif node.op == "call_function":
                self._freeze_foreign(node, values)
            else:  # get_attr: a lifted constant
                values[node] = Labelled.fixed(_shapes(node)[0])

    def _step(self, node: torch.fx.Node, values: dict[torch.fx.Node, Value]) -> Value:
        assert isinstance(node.target, torch._ops.OpOverload)
        arguments = _bound(node, values)
        name, self._layer = operation_name(node.target), _layer(node)
        where = f"{name} in {self._layer}" if self._layer else name
        self._call = Call(name, node.target, arguments, _shapes(node), where)
        return rule_for(node.target)(self, self._call)

    def _freeze_foreign(self, node: torch.fx.Node, values: dict[torch.fx.Node, Value]) -> None:
        """Anything that is not ATen: control flow, symbolic arithmetic, foreign calls."""
        for source in node.all_input_nodes:
            for value in _flat(values[source]):
                if isinstance(value, Labelled):
                    self.store.freeze(value.compact, f"{node.target} is not understood")
        shapes = _shapes(node)
        fixed = [Labelled.fixed(shape) for shape in shapes]
        values[node] = fixed[0] if len(fixed) == 1 else fixed

    def _freeze_outputs(self, outputs: Any) -> None:
        for value in _flat(outputs):
            if isinstance(value, Labelled):
                self.store.freeze(value.compact, "network output")

    def _settle_loose(self) -> None:
        """A stored tensor that met channels: its labels lie along one dimension, or freeze."""
        for name, labels in self._loose.items():
            settled = Labelled.squashed(labels, self.store)
            varying = settled.varying
            if len(varying) == 1:
                dim = varying[0]
            elif not varying and labels.dim() and labels.numel() == 1:
                dim = labels.dim() - 1
            else:
                reason = f"{name} differs along several dimensions"
                self.store.freeze(settled.compact, reason)
                self._pinned.setdefault(name, reason)
                continue
            vector = settled.vector(dim)
            assert vector is not None
            if (name, dim) in self._ties:
                self.store.unify(self._ties[name, dim][0], vector, f"{name} is used in two ways")
            else:
                self._ties[name, dim] = (vector, "scale")

    def _settle_pinned(self) -> None:
        """What an operation without a rule reads is not sliced for the sake of another layer that shares it."""
        for (name, _), (labels, _) in self._ties.items():
            if name in self._pinned:
                self.store.freeze(labels, self._pinned[name])

    # -- from labels to groups

    def channel_graph(self, parameters: dict[str, tuple[int, ...]]) -> ChannelGraph:
        """Groups the classes by what they belong to, and writes the costs over the groups."""
        slots = [(name, dim, role, self.store.roots(v.numpy())) for (name, dim), (v, role) in self._ties.items()]
        sides = [self.store.roots(v.numpy()) for _, _, reads, writes in self._contractions for v in (reads, writes)]
        belongs = self._signatures([s[3] for s in slots if s[0] in parameters] + sides)
        reasons = self.store.frozen()
        gathered: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for root in sorted(belongs):
            gathered[(reasons.get(root), *belongs[root])].append(root)

        groups: list[Group] = []
        frozen: list[Group] = []
        group_of: dict[int, int] = {}
        for key, roots in gathered.items():
            if key[0] is None:
                group_of.update(dict.fromkeys(roots, len(groups)))
            (groups if key[0] is None else frozen).append(_group(roots, key[0], slots))
        names = _unique_names([group.name for group in groups])
        groups = [Group(n, g.size, g.members) for n, g in zip(names, groups, strict=True)]
        macs = self._mac_terms(len(groups), group_of)
        return ChannelGraph(groups, frozen, macs, _param_terms(parameters, slots, len(groups), group_of))

    @staticmethod
    def _signatures(vectors: list[Ints]) -> dict[int, tuple[tuple[int, int], ...]]:
        """Root -> how often it occurs in which vector."""
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, vector in enumerate(vectors):
            for root, count in zip(*np.unique(vector, return_counts=True), strict=True):
                if root:
                    found[int(root)].append((number, int(count)))
        return {root: tuple(places) for root, places in found.items()}

    def _mac_terms(self, n_groups: int, group_of: dict[int, int]) -> BilinearCost:
        sides = [
            _counts(self.store.roots(side.numpy()), n_groups, group_of)
            for _, _, reads, writes in self._contractions
            for side in (reads, writes)
        ]
        return _bilinear([(c[0], c[1]) for c in self._contractions], sides[::2], sides[1::2], n_groups)


def _param_terms(
    parameters: dict[str, tuple[int, ...]],
    slots: list[tuple[str, int, Role, Ints]],
    n_groups: int,
    group_of: dict[int, int],
) -> BilinearCost:
    tied: dict[str, list[tuple[int, Ints]]] = defaultdict(list)
    for name, dim, _, roots in slots:
        tied[name].append((dim, roots))
    terms, reads, writes = [], [], []
    for name, shape in parameters.items():
        sides = [_counts(roots, n_groups, group_of) for _, roots in tied[name][:2]]
        rest = int(np.prod([size for dim, size in enumerate(shape) if dim not in {d for d, _ in tied[name][:2]}]))
        sides += [(np.zeros(n_groups), 1.0)] * (2 - len(sides))
        terms.append((name, rest))
        reads.append(sides[0])
        writes.append(sides[1])
    return _bilinear(terms, reads, writes, n_groups)


def _counts(roots: Ints, n_groups: int, group_of: dict[int, int]) -> tuple[Floats, float]:
    """How many positions one channel of each group fills, (G,), and how many are fixed."""
    groups = np.array([group_of.get(root, -1) for root in roots.tolist()], dtype=np.int64)
    free = groups >= 0
    positions = np.bincount(groups[free], minlength=n_groups).astype(np.float64)
    channels = np.zeros(n_groups)
    for group in np.unique(groups[free]):
        channels[group] = len(np.unique(roots[groups == group]))
    per_channel = np.divide(positions, channels, out=np.zeros(n_groups), where=channels > 0)
    return per_channel, float((~free).sum())


def _bilinear(
    terms: list[tuple[str, int]],
    reads: list[tuple[Floats, float]],
    writes: list[tuple[Floats, float]],
    n_groups: int,
) -> BilinearCost:
    def matrix(sides: list[tuple[Floats, float]]) -> Floats:
        return np.array([side[0] for side in sides], dtype=np.float64).reshape(len(sides), n_groups)

    return BilinearCost(
        names=tuple(name for name, _ in terms),
        coefficient=np.array([c for _, c in terms], dtype=np.float64),
        reads=matrix(reads),
        reads_fixed=np.array([side[1] for side in reads]),
        writes=matrix(writes),
        writes_fixed=np.array([side[1] for side in writes]),
    )


def _group(roots: list[int], reason: str | None, slots: list[tuple[str, int, Role, Ints]]) -> Group:
    channel_of = {root: number for number, root in enumerate(roots)}
    members, name = [], ""
    for tensor, dim, role, vector in slots:
        positions = np.flatnonzero(np.isin(vector, roots))
        if len(positions):
            channels = np.array([channel_of[root] for root in vector[positions].tolist()], dtype=np.int64)
            members.append(Member(tensor, dim, role, len(vector), channels, positions.astype(np.int64)))
            if not name and role in ("out", "scale"):
                name = tensor
    name = name or (members[0].tensor if members else "unnamed")
    return Group(name.rpartition(".")[0] or name, len(roots), tuple(members), reason)


def _unique_names(names: list[str]) -> list[str]:
    """Appends #2, #3, ... where one layer writes channels of several groups."""
    seen: dict[str, int] = defaultdict(int)
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def _placeholder(node: torch.fx.Node, spec: Any, names: dict[str, str]) -> Value:
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return Stored(names.get(spec.target, spec.target), _shapes(node)[0])
    shapes = _shapes(node)
    return Labelled.fixed(shapes[0]) if shapes else node.meta.get("val")


def _bound(node: torch.fx.Node, values: dict[torch.fx.Node, Value]) -> dict[str, Value]:
    """Arguments by name, defaults filled in, nodes replaced by their values."""
    assert isinstance(node.target, torch._ops.OpOverload)
    args = torch.fx.node.map_arg(node.args, lambda n: values[n])
    kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: values[n])
    bound: dict[str, Value] = {}
    for number, argument in enumerate(node.target._schema.arguments):
        if number < len(args):
            bound[argument.name] = args[number]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def _shapes(node: torch.fx.Node) -> tuple[tuple[int, ...], ...]:
    value = node.meta.get("val")
    return tuple(tuple(int(s) for s in v.shape) for v in _flat(value) if isinstance(v, Tensor))


def _layer(node: torch.fx.Node) -> str:
    """Path of the innermost module that the node runs in."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]
