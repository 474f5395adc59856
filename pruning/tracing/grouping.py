"""From labels to the channel graph: channels with the same members form a group, and costs follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import BilinearCost, Count, Ints, PeakMemory
from espalier.pruning.graph.groups import WEIGHT_ROLES, Group, Member, ModuleInteger, Operation, Role
from espalier.pruning.tracing.label_run import LabelRun
from espalier.pruning.tracing.labels import Labelled
from espalier.pruning.tracing.recording import Node, record
from espalier.pruning.tracing.reference import Reference
from espalier.pruning.tracing.rescaling import rescalings


def channel_graph(run: LabelRun, parameters: dict[str, tuple[int, ...]], example: Any) -> ChannelGraph:
    """The graph of a finished run.

    Args:
        run: the labels.
        parameters: shape of every parameter.
        example: the inputs of the traced network.
    """
    while (unfit := (grouping := _Grouping(run, parameters)).unfit()) is not None:
        run.store.freeze(*unfit)
    steps = _operations(run, grouping)
    macs = BilinearCost.of(
        [(run.steps[c.step].layer, c.coefficient, *grouping.two_sides(c.sides)) for c in run.contractions],
        len(grouping.groups),
    )
    rescaled = rescalings(run.rescalings, grouping.channels)
    return ChannelGraph(
        grouping.groups,
        grouping.frozen,
        macs,
        _parameter_cost(run, grouping, parameters),
        _memory(run, grouping),
        steps,
        [c.step for c in run.contractions],
        _integers(run, grouping),
        example,
        Reference(run.recording, _channels(run, grouping), rescaled),
        _returned(run),
        rescaled,
        [grouping.reasons(c.sides) for c in run.contractions],
    )


REFUSED = "its width changes what the code computes, in a way that cannot be followed"
"""Why a group is frozen that was found by trying."""


def reference_of(model: nn.Module, graph: ChannelGraph) -> Reference:
    """The masked network; recorded anew where the graph has been pickled.

    Args:
        model: the dense network.
        graph: its channel graph.
    """
    if graph.reference is None:
        run = LabelRun(record(model, graph.example))
        for group in graph.frozen:
            if group.frozen == REFUSED:
                run.freeze_group(group, REFUSED)
        graph.reference = channel_graph(run, parameter_shapes(model), graph.example).reference
    reference: Reference = graph.reference
    return reference


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


class _Grouping:
    """Numbers atoms by group and channel.

    Attributes:
        groups: the prunable ones.
        frozen: the others.
        single: labels of groups that have but one channel.
    """

    def __init__(self, run: LabelRun, parameters: dict[str, tuple[int, ...]]) -> None:
        self._store = run.store
        slots: list[_Slot] = []
        for (name, dim), tie in run.ties.items():
            # A filter in a buffer is cut as a weight is, but nothing trains it.
            role: Role = "buffer" if tie.role in WEIGHT_ROLES and name not in parameters else tie.role
            slots.append((name, dim, role, run.store.atoms(tie.rows)))
        sides = [run.store.atoms(side) for contraction in run.contractions for side in contraction.sides]
        self._vectors = list({id(rows): rows for rows in (*(slot[3] for slot in slots), *sides)}.values())
        reason_of, reasons = run.store.reasons()
        classes = _classes([slot[3] for slot in slots if slot[0] in parameters] + sides, len(reason_of))
        classes[run.unwritten] = 0
        gathered = _alike(classes, reason_of)
        found = np.full(len(reason_of), -1, dtype=np.int64)  # atom -> its place in `gathered`
        place = np.full(len(reason_of), -1, dtype=np.int64)  # atom -> its place among those gathered with it
        for number, atoms in enumerate(gathered):
            found[atoms], place[atoms] = number, np.arange(len(atoms))
        homes = _homes(slots, found, place, len(gathered))
        groups: list[Group] = []
        self.frozen: list[Group] = []
        self.single: list[int] = []  # atoms of groups of one channel
        numbers = np.full(len(gathered) + 1, -1, dtype=np.int64)
        for number, (atoms, home) in enumerate(zip(gathered, homes, strict=True)):
            reason = reasons[reason_of[atoms[0]]] or None
            if reason is None:
                self.single += atoms.tolist() if len(atoms) == 1 else []
                numbers[number] = len(groups)
            members = [(slots[slot], *among) for slot, among in home]
            (groups if reason is None else self.frozen).append(_group(len(atoms), reason, members))
        self._group_of = numbers[found]  # atom -> group, -1 where it is frozen
        self._channel_of = np.where(self._group_of < 0, -1, place)  # atom -> channel in its group
        names = _unique_names([group.name for group in groups])
        self.groups = [Group(n, g.size, g.members) for n, g in zip(names, groups, strict=True)]
        self._offsets = np.concatenate([[0], np.cumsum([g.size for g in groups], dtype=np.int64)]).astype(np.int64)
        self._counted: dict[int, tuple[Ints, Count]] = {}

    def _located(self, rows: Ints) -> tuple[Ints, Ints]:
        """Group and channel of every label of rows, -1 where it is fixed: twice (n, k)."""
        atoms = self._store.atoms(rows)
        return self._group_of[atoms], self._channel_of[atoms]

    def channels(self, rows: Ints) -> Tensor:
        """Global channels of rows, -1 where there are fewer: (n, k)."""
        groups, channels = self._located(rows)
        found = np.where(groups < 0, -1, channels + self._offsets[groups])
        used = (found >= 0).any(0)
        return torch.from_numpy(np.ascontiguousarray(found[:, used] if used.any() else found[:, :1]))

    def count(self, rows: Ints) -> Count:
        """The number of rows kept, as a polynomial in the widths."""
        if id(rows) not in self._counted:
            counted: dict[tuple[int, ...], float] = {}
            for monomial, chosen in self._kinds(rows):
                pairs = np.prod([self.groups[group].size for group in monomial]) if monomial else 1
                counted[monomial] = int(chosen.sum()) / float(pairs)
            self._counted[id(rows)] = (rows, counted)  # holds the rows, so that their id stays theirs
        return self._counted[id(rows)][1]

    def _kinds(self, rows: Ints) -> Iterable[tuple[tuple[int, ...], Any]]:
        """Which rows belong to which groups: (groups in rising order, bool (n,))."""
        groups = np.sort(self._located(rows)[0], axis=1)
        keys = groups @ (len(self.groups) + 1) ** np.arange(groups.shape[1])[::-1]
        first = (
            np.unique(keys, return_index=True)[1] if len(keys) and (keys != keys[0]).any() else range(len(keys))[:1]
        )
        for kind in first:
            yield tuple(groups[kind][groups[kind] >= 0].tolist()), keys == keys[kind]

    def two_sides(self, sides: Iterable[Ints]) -> tuple[Count, Count]:
        """The product of the counts of all sides, as two factors."""
        counts = [self.count(side) for side in sides]
        counts += [{(): 1.0}] * (2 - len(counts))
        first = counts[0]
        for other in counts[1:-1]:
            first = _times(first, other)
        return first, counts[-1]

    def reasons(self, sides: Iterable[Ints]) -> list[str]:
        """Why channels among these rows are frozen."""
        numbers, reasons = self._store.reasons()
        found = {number for side in sides for number in np.unique(numbers[self._store.atoms(side)]).tolist()}
        return [reasons[number] for number in sorted(found - {0})]

    def unfit(self) -> tuple[Ints, str] | None:
        """Labels that cannot be pruned after all, and why; None where all can."""
        if self.single:
            return np.array(self.single, dtype=np.int64), "all of it is one channel"
        for rows in self._vectors:
            if rows.shape[1] == 1 and rows.size:
                continue
            groups, channels = self._located(rows)
            for monomial, chosen in self._kinds(rows):
                if not monomial:
                    continue
                place = np.zeros(int(chosen.sum()), dtype=np.int64)
                for group in monomial:
                    own = np.where(groups[chosen] == group, channels[chosen], -1).max(1)
                    place = place * self.groups[group].size + own
                sizes = [self.groups[group].size for group in monomial]
                met = np.bincount(place, minlength=int(np.prod(sizes)))
                if len(set(monomial)) < len(monomial) or met.min() != met.max():
                    return rows[chosen], "its channels meet unequal numbers of another group's"
        return None


def _times(first: Count, second: Count) -> Count:
    product: dict[tuple[int, ...], float] = defaultdict(float)
    for one, factor in first.items():
        for other, by in second.items():
            product[tuple(sorted(one + other))] += factor * by
    return dict(product)


_Slot = tuple[str, int, Role, Ints]
"""Tensor, dimension, role, atoms along it."""


def _classes(vectors: list[Ints], size: int) -> Ints:
    """Numbers atoms alike that occur as often in each vector: (size,), 0 for those in none and for atom 0.

    An atom's number is the sum over all vectors of how often it occurs in it times a random number of 64 bits.
    """
    generator = np.random.default_rng(0)
    classes = np.zeros(size, dtype=np.int64)
    known = {id(vector): vector for vector in vectors}.values()
    for vector in {vector.tobytes(): vector for vector in known}.values():  # a layer and its norm have the same
        np.add.at(classes, vector.reshape(-1), generator.integers(-(2**63), 2**63))
    classes[0] = 0
    return classes


def _alike(classes: Ints, reasons: Ints) -> list[Ints]:
    """Atoms of one class and one reason, each in rising order; by the first atom of each."""
    atoms = np.flatnonzero(classes)
    order = np.lexsort((reasons[atoms], classes[atoms]))  # stable
    atoms = atoms[order]
    ends = np.flatnonzero(np.diff(classes[atoms]).astype(bool) | np.diff(reasons[atoms]).astype(bool)) + 1
    return sorted(np.split(atoms, ends), key=lambda alike: int(alike[0])) if len(atoms) else []


_Among = tuple[Ints, Ints]
"""Channels, and the positions of a slot that hold them."""


def _homes(slots: list[_Slot], found: Ints, place: Ints, count: int) -> list[list[tuple[int, _Among]]]:
    """Per group of atoms the slots that it occurs in, and where."""
    homes: list[list[tuple[int, _Among]]] = [[] for _ in range(count)]
    known: dict[int, list[tuple[int, _Among]]] = {}  # a layer and its norm have the same
    for number, (_, _, _, rows) in enumerate(slots):
        if id(rows) not in known:
            known[id(rows)] = list(_occurring(found[rows], place[rows]))
        for group, among in known[id(rows)]:
            homes[group].append((number, among))
    return homes


def _occurring(groups: Ints, channels: Ints) -> Iterable[tuple[int, _Among]]:
    """Every group among those of rows, (n, k), with its channels and their positions."""
    for group in np.unique(groups if (groups != groups[:1]).any() else groups[:1]).tolist():
        if group >= 0:
            own = np.where(groups == group, channels, -1).max(1)
            positions = np.flatnonzero(own >= 0)
            yield group, (own[positions], positions)


def _group(size: int, reason: str | None, home: list[tuple[_Slot, Ints, Ints]]) -> Group:
    members = tuple(
        Member(tensor, dim, role, len(rows), channels, positions)
        for (tensor, dim, role, rows), channels, positions in home
    )
    named = [member.tensor for member in members if member.role in ("out", "scale")] or [m.tensor for m in members]
    name = named[0] if named else "unnamed"
    return Group(name.rpartition(".")[0] or name, size, members, reason)


def _unique_names(names: list[str]) -> list[str]:
    """Appends #2, #3, ... where one layer writes channels of several groups."""
    seen: dict[str, int] = defaultdict(int)
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def _parameter_cost(run: LabelRun, grouping: _Grouping, parameters: dict[str, tuple[int, ...]]) -> BilinearCost:
    terms = []
    for name, shape in parameters.items():
        tied = {dim: run.ties[name, dim].rows for dim in range(len(shape)) if (name, dim) in run.ties}
        rest = float(np.prod([size for dim, size in enumerate(shape) if dim not in tied]))
        terms.append((name, rest, *grouping.two_sides(tied.values())))
    return BilinearCost.of(terms, len(grouping.groups))


def _integers(run: LabelRun, grouping: _Grouping) -> list[ModuleInteger]:
    found = [
        ModuleInteger(attribute.path, attribute.name, attribute.item, grouping.channels(rows))
        for attribute, rows in run.sizes.attributes.items()
    ]
    return [integer for integer in found if bool((integer.channels >= 0).any())]


def _outputs(run: LabelRun, node: Node) -> list[Labelled]:
    value = run.labels[node]
    return [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Labelled)]


def _sources(node: Node, numbers: dict[Node, int]) -> set[int]:
    """The steps whose results a node reads, through what only picks one of several outputs."""
    found = set()
    for source in node.sources:
        found |= {numbers[source]} if source in numbers else _sources(source, numbers)
    return found


def _operations(run: LabelRun, grouping: _Grouping) -> list[Operation]:
    numbers = {step.node: number for number, step in enumerate(run.steps)}
    operations = []
    for step in run.steps:
        output = _outputs(run, step.node)[0]
        sizes: tuple[Count, ...] = tuple(
            {(): float(size)} if rows is None else grouping.count(rows)
            for size, rows in zip(output.shape, output.dims, strict=True)
        )
        inputs = tuple(sorted(_sources(step.node, numbers)))
        stored = (run.recording.stored.get(source) for source in step.node.sources)
        tensors = tuple(tensor.name for tensor in stored if tensor is not None)
        operations.append(Operation(step.kind, step.layer, inputs, output.shape, sizes, tensors))
    return operations


def _returned(run: LabelRun) -> list[int]:
    """The steps whose results the network returns."""
    numbers = {step.node: number for number, step in enumerate(run.steps)}
    return sorted(_sources(run.recording.forward[-1], numbers))


def _memory(run: LabelRun, grouping: _Grouping) -> PeakMemory:
    """Every new tensor, from the step that makes it to the last that reads it or a view of it."""
    numbers = {step.node: number for number, step in enumerate(run.steps)}
    storage = list(range(len(run.steps)))  # step -> the step that made what it is a view of
    dies = list(range(len(run.steps)))
    makers: dict[int, int] = {}  # storage -> that step; a reshape that copies has one of its own
    for number, step in enumerate(run.steps):
        if step.node.tensors:
            storage[number] = makers.setdefault(step.node.tensors[0].storage, number)
        for source in _sources(step.node, numbers):
            dies[storage[source]] = max(dies[storage[source]], number)
    for source in _returned(run):
        dies[storage[source]] = len(run.steps) - 1
    terms, born, died = [], [], []
    for number, step in enumerate(run.steps):
        if storage[number] != number:
            continue
        for output, made in zip(_outputs(run, step.node), step.node.tensors, strict=False):
            sides = output.all_rows()
            fixed = float(np.prod([s for s, rows in zip(output.shape, output.dims, strict=True) if rows is None]))
            per_example = run.recording.batch if step.per_example else 1
            terms.append((step.layer, fixed * made.itemsize / per_example, *grouping.two_sides(sides)))
            born.append(0 if step.kind == "input" else number)
            died.append(dies[number])
    sizes = BilinearCost.of(terms, len(grouping.groups))
    return PeakMemory(sizes, np.array(born, dtype=np.int64), np.array(died, dtype=np.int64), len(run.steps))


def _channels(run: LabelRun, grouping: _Grouping) -> dict[Node, list[tuple[Tensor | None, ...]]]:
    """Node -> per output and dimension the global channels (n, k), None where all are fixed."""
    known: dict[int, Tensor | None] = {}

    def resolved(rows: Ints | None) -> Tensor | None:
        if rows is None:
            return None
        if id(rows) not in known:
            channels = grouping.channels(rows)
            known[id(rows)] = channels if bool((channels >= 0).any()) else None
        return known[id(rows)]

    found = {}
    for node, value in run.labels.items():
        outputs = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(output, Labelled) for output in outputs):
            found[node] = [tuple(map(resolved, o.dims)) for o in outputs if isinstance(o, Labelled)]
    for node, stored in run.recording.stored.items():
        ties = [run.ties.get((stored.name, dim)) for dim in range(len(stored.shape))]
        found[node] = [tuple(None if tie is None else resolved(tie.rows) for tie in ties)]
    return found
