"""Which residual branches can be taken out of a recorded network.

With no channel of a group, a call gives one of these:
    nothing    a tensor without elements, for all indices along a dimension hold channels of the group
    constant   what does not depend on the network's input any more
    fixed      what never did, as what is computed of weights alone
    live       anything else

A call *goes* if it gives nothing or a constant, or if only calls that go read it. The branch can be taken out if
what does not go reads only constants of it, in sums with something that lives. Modules that run nothing but calls
that go are replaced; what is left of a module's own code runs on a number in place of each tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.pruning.graph.branches import Branch
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.tracing.constants import RecordedConstants, constants_of, operation_name_of
from espalier.pruning.tracing.label_run import LabelRun
from espalier.pruning.tracing.recording import Node, is_in_place, mapped
from espalier.pruning.tracing.reference import Dims, Reference

Bools = npt.NDArray[np.bool_]

_NOTHING, _CONSTANT, _FIXED, _LIVE = range(4)


class _Refused(Exception):
    """A group cannot be removed."""


class BranchFinder:
    """Looks for branches in a recording.

    Args:
        model: the traced network.
        run: its labels.
        graph: made of them.
    """

    def __init__(self, model: nn.Module, run: LabelRun, graph: ChannelGraph) -> None:
        self._graph, self._recording = graph, run.recording
        self._reference: Reference = graph.reference
        self._steps = [step.node for step in run.steps]
        self._calls = [node for node in self._recording.forward if node.kind in ("call", "item")]
        self._readers = {
            node: [user for user in node.users if user.number < self._recording.evaluation]
            for node in self._recording.forward
        }
        self._at_work = {run.steps[contraction.step].node for contraction in run.contractions}
        groups = torch.from_numpy(graph.group_of)
        self._held: dict[Node, frozenset[int]] = {}  # the groups of whose channels a call's result has some
        known: dict[int, frozenset[int]] = {}
        for node in self._calls:
            for channels in _all_channels(self._reference.channels.get(node, ())):
                if id(channels) not in known:
                    known[id(channels)] = frozenset(groups[channels[channels >= 0]].unique().tolist())
                self._held[node] = self._held.get(node, frozenset()) | known[id(channels)]
        self._under: dict[str, set[Node]] = {}  # path of a module -> the calls that it runs
        self._runs: dict[str, set[int]] = {}  # path -> numbers of its runs
        for node in self._calls:
            for path, number in node.layers:
                self._under.setdefault(path, set()).add(node)
                self._runs.setdefault(path, set()).add(number)
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._names: dict[int, list[str]] = {}  # of one tensor
        for name, tensor in tensors:
            self._names.setdefault(id(tensor), []).append(name)
        self._state = {name: _drawn(tensor) for name, tensor in tensors}

    def graph_with(self, branches: Sequence[Branch]) -> ChannelGraph:
        """The graph of which these can be taken out."""
        return self._graph.with_branches(branches, self._needs(branches)) if branches else self._graph

    def branches(self) -> list[Branch]:
        """All that there are."""
        found: dict[tuple[int, ...], Branch] = {}
        for group in range(len(self._graph.groups)):
            branch = self._branch(group)
            if branch is not None:
                before = found.get(branch.groups, branch).triggers
                found[branch.groups] = replace(branch, triggers=(*before, group))
        return list(found.values())

    def _branch(self, group: int) -> Branch | None:
        """What goes with a group, or None where it cannot be removed."""
        groups = frozenset({group})
        if not any(group in held for held in self._held.values()):
            return None
        while True:
            status, going = self._without(groups)
            others = {each for node, held in self._held.items() if node not in going for each in held}
            together = groups | {each for held in self._held.values() for each in held} - others
            if group in others:
                return None
            if together == groups:
                break
            groups = frozenset(together)
        try:
            return self._checked(tuple(sorted(groups)), status, going)
        except _Refused:
            return None

    def _needs(self, branches: Sequence[Branch]) -> tuple[Bools, Bools, Bools]:
        """See `ChannelGraph.with_branches`."""
        graph, size = self._graph, len(self._graph.groups)
        macs = np.zeros((len(graph.mac_terms.names), size), dtype=np.bool_)
        params = np.zeros((len(graph.param_terms.names), size), dtype=np.bool_)
        sizes = np.zeros((len(graph.memory.born), size), dtype=np.bool_)
        makers: Ints = graph.memory.born
        inputs = sum(operation.kind == "input" for operation in graph.operations)
        for branch in branches:
            triggers = np.array(branch.triggers)
            goes = [node.number in branch.nodes for node in self._steps]
            spared = self._spared(branch)
            free = [node in spared for node in self._steps]
            for rows, terms in (
                (macs, [goes[step] for step in graph.mac_operations]),
                (params, [branch.holds(name) for name in graph.param_terms.names]),
                (sizes, [number >= inputs and free[step] for number, step in enumerate(makers.tolist())]),
            ):
                rows[np.ix_(np.flatnonzero(terms), triggers)] = True
        return macs, params, sizes

    def _spared(self, branch: Branch) -> set[Node]:
        """The calls that make no tensor any more, or one of a single number, in place of what they made."""
        # What writes into a tensor of the branch holds that one's memory.
        stays = {made.storage for node in self._calls if node.number not in branch.nodes for made in node.tensors}
        found: set[Node] = set()
        for node in self._calls:
            read = (source for source in node.sources if source.kind != "stored" and source.kind != "constant")
            if node.number in branch.nodes and not stays & {made.storage for made in node.tensors}:
                if self._is_replaced(node, branch.modules) or found.issuperset(read):
                    found.add(node)
        return found

    # -- what goes

    def _without(self, groups: frozenset[int]) -> tuple[dict[Node, int], set[Node]]:
        """What each call gives without these groups, and the calls that go."""
        gone = torch.from_numpy(np.isin(self._graph.group_of, list(groups)))
        known: dict[int, bool] = {}

        def is_nothing(dims: Dims) -> bool:
            for channels in dims:
                if channels is None:
                    continue
                if id(channels) not in known:
                    known[id(channels)] = bool((gone[channels.clamp(min=0)] & (channels >= 0)).any(1).all())
                if known[id(channels)]:
                    return True
            return False

        status: dict[Node, int] = {}
        for node in self._recording.forward:
            outputs = self._reference.channels.get(node, ())
            read = {status[source] for source in node.sources}
            if node.kind == "input":
                status[node] = _LIVE
            elif node.kind not in ("call", "item"):
                status[node] = _FIXED
            elif outputs and all(map(is_nothing, outputs)):
                status[node] = _NOTHING
            elif node.kind == "item" or _LIVE in read:
                status[node] = _LIVE if _LIVE in read else min(read)
                if node.kind == "item" and status[node] == _NOTHING:
                    status[node] = _CONSTANT
            else:
                status[node] = _CONSTANT if read & {_NOTHING, _CONSTANT} else _FIXED
        going: set[Node] = set()
        for node in reversed(self._calls):
            readers = self._readers[node]
            if status[node] < _FIXED or (readers and going.issuperset(readers)):
                going.add(node)
        for node in self._calls:  # what nothing reads goes with what it is made of
            made_of = [source for source in node.sources if status[source] != _FIXED]
            if not self._readers[node] and made_of and going.issuperset(made_of):
                going.add(node)
        return status, going

    def _checked(self, groups: tuple[int, ...], status: dict[Node, int], going: set[Node]) -> Branch:
        """The branch of calls that go.

        Raises:
            _Refused: it is none.
        """
        ends: list[Node] = []
        in_place = False
        for node in self._calls:
            if node in going:
                self._refuse_writing(node, going)
                readers = [reader for reader in self._readers[node] if reader not in going]
                for reader in readers:
                    self._refuse_reader(node, reader, status)
                    in_place |= is_in_place(reader.target) and reader.args[0] is node
                ends += [node] if readers else []
        if not ends:
            raise _Refused
        modules = self._modules(going)
        for node in going:
            if node in self._at_work and not self._is_replaced(node, modules):
                raise _Refused  # in the code of a module that stays: it would cost something
        self._refuse_shared(modules, going)
        returned = {path: self._recording.returned[path, min(self._runs[path])] for path in modules}
        given = self._given(ends, modules, returned, status)
        nothing = {node for node, found in status.items() if found == _NOTHING}
        floats = [name for name, tensor in self._state.items() if tensor.is_floating_point()]
        keep = torch.from_numpy(~np.isin(self._graph.group_of, groups))
        constants = constants_of(given, nothing, floats, self._reference).settled(self._state, keep)
        if constants is None:
            raise _Refused
        names: list[str] = []
        places: list[tuple[int, bool]] = []
        results: dict[str, Any] = {}
        for path in modules:
            leaves = _Leaves(self, path, given, constants, in_place)
            results[path] = leaves.of(returned[path])
            names += [f"{path}.{name}" for name in leaves.names]
            places += leaves.constants
        if {number for number, _ in places} != set(range(len(given))):
            raise _Refused
        numbers = frozenset(node.number for node in going)
        return Branch(groups, (), results, tuple(names), replace(constants, order=tuple(places)), numbers)

    def _refuse_writing(self, node: Node, going: set[Node]) -> None:
        """A call that goes must not write into what stays."""
        if node.kind == "call" and is_in_place(node.target):
            written = {made.storage for made in node.tensors}
            for other in self._recording.forward[: node.number]:
                if other not in going and other.kind != "output" and written & {m.storage for m in other.tensors}:
                    raise _Refused

    def _refuse_reader(self, node: Node, reader: Node, status: dict[Node, int]) -> None:
        """What stays may only add a constant to what lives, and has the latter's shape."""
        if operation_name_of(reader) != "add" or status[node] != _CONSTANT:
            raise _Refused
        others = [source for source in reader.sources if source is not node]
        if len(others) != 1 or status[others[0]] != _LIVE or others[0].made.shape != reader.made.shape:
            raise _Refused

    # -- which modules are replaced

    def _modules(self, going: set[Node]) -> list[str]:
        """The outermost modules that run once, run nothing but calls that go, and return what these make."""
        found: list[str] = []
        for path in sorted(self._under, key=lambda path: path.count(".")):
            runs = self._runs[path]
            if not path or len(runs) != 1 or not going.issuperset(self._under[path]):
                continue
            if any(path.startswith(f"{outer}.") for outer in found):
                continue
            key = path, min(runs)
            returned = self._recording.returned.get(key, _Refused)
            if returned is not _Refused and going.issuperset(_nodes(returned)):
                found.append(path)
        return found

    def _is_replaced(self, node: Node, modules: Collection[str]) -> bool:
        return any(path in modules for path, _ in node.layers)

    def _refuse_shared(self, modules: Sequence[str], going: set[Node]) -> None:
        """What the modules hold must be read by calls that go alone, and by no name of another module's."""

        def inside(name: str) -> bool:
            return any(name.startswith(f"{path}.") for path in modules)

        for names in self._names.values():
            if any(map(inside, names)) and not all(map(inside, names)):
                raise _Refused
        for node, stored in self._recording.stored.items():
            if inside(stored.name) and not going.issuperset(self._readers[node]):
                raise _Refused

    def _given(
        self, ends: Sequence[Node], modules: Sequence[str], returned: Mapping[str, Any], status: dict[Node, int]
    ) -> list[Node]:
        """The constants that modules must give, so that the code around them computes what ends the branch."""
        given: dict[Node, None] = {}
        waiting, seen = list(ends), set(ends)
        while waiting:
            node = waiting.pop()
            if status[node] != _CONSTANT:
                raise _Refused
            if self._is_replaced(node, modules):
                if not any(node in _nodes(value) for value in returned.values()):
                    raise _Refused
                given[node] = None
                continue
            for source in node.sources:
                if status[source] != _FIXED and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return list(given)

    def source_of(self, path: str) -> Node | None:
        """What a module reads first, of what others make."""
        under = self._under[path]
        outside = (
            source
            for node in sorted(under, key=lambda node: node.number)
            for source in node.sources
            if source not in under and source.kind in ("call", "item", "input")
        )
        return next(outside, None)

    def dims_of(self, node: Node) -> Dims:
        """The channels along a result's dimensions."""
        found = self._reference.channels.get(node)
        return found[0] if found else (None,) * len(node.made.shape)


class _Leaves:
    """What a replaced module gives, as `Removed` takes it; notes the names of the constants in it."""

    def __init__(
        self,
        finder: BranchFinder,
        path: str,
        given: Sequence[Node],
        constants: RecordedConstants,
        in_place: bool,
    ) -> None:
        self._finder, self._given, self._dims = finder, given, constants.dims
        self._kinds = {"constant": False} | ({"recalibrated": True} if constants.recalibrated is not None else {})
        source = finder.source_of(path)
        self._read = source.made.shape if in_place and source is not None else None
        self.names: list[str] = []
        self.constants: list[tuple[int, bool]] = []

    def of(self, value: Any) -> Any:
        """JSON of what a module returned."""
        if isinstance(value, Node):
            return self._tensor(value)
        if isinstance(value, list | tuple):
            return {type(value).__name__: [self.of(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": {name: self.of(item) for name, item in value.items()}}
        return {"value": value}

    def _tensor(self, node: Node) -> dict[str, Any]:
        constant = self._given.index(node) if node in self._given else None
        shape, channels = node.made.shape, self._finder.dims_of(node)
        found: dict[str, Any] = {"sizes": [1] * len(shape)}
        if constant is not None:
            for kind, again in self._kinds.items():
                found[kind] = f"{kind}{len(self.names) // len(self._kinds)}"
                self.names.append(found[kind])
                self.constants.append((constant, again))
        if self._read is not None and len(self._read) == len(shape):
            sizes: list[Any] = []
            for dim, (size, read) in enumerate(zip(shape, self._read, strict=True)):
                if constant is not None and dim == self._dims[constant]:
                    sizes.append(0)  # the constant's own
                elif channels[dim] is not None:
                    sizes.append(1)
                else:
                    sizes.append([size, read])
            found["sizes"] = sizes
        elif self._read is not None:
            raise _Refused
        return found


def _all_channels(outputs: Iterable[Dims]) -> Iterable[Tensor]:
    return (channels for dims in outputs for channels in dims if channels is not None)


def _nodes(value: Any) -> set[Node]:
    """The calls whose results a module returned."""
    found: set[Node] = set()
    mapped(value, lambda node: found.add(node))
    return found


def _drawn(tensor: Tensor) -> Tensor:
    """Numbers of which no two are equal, above zero as variances are, in place of a tensor's own."""
    if not tensor.is_floating_point():
        return tensor.detach()
    generator = torch.Generator().manual_seed(tensor.numel())
    return (0.5 + torch.rand(tensor.shape, generator=generator)).to(tensor)
