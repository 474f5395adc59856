"""What a network consists of and costs, operation by operation: the data behind ``espalier inspect``.

MACs are multiply-adds of one example (FLOPs = 2 x MACs), activations are bytes of one example. A *kept* number
is that of the network with fewer channels, beside the dense one.

The layout of the JSON document, `FORMAT` 1; numbers only grow in it, and a change of meaning raises `FORMAT`:

    format       1
    network      name of the network
    units        what the numbers of each kind count
    dense, kept  totals: macs, parameters, activation_bytes (the peak), channels; kept is null without --keep
    keep         the fraction of the MACs asked for, or null
    operations   in the order of execution: number, kind (ATen), layer, inputs (numbers), shape, tensors (what it
                 reads of the state dict), reads and writes (numbers in groups), dense and kept: macs, parameters,
                 activation_bytes (those that it makes)
    outputs      numbers of the operations whose results the network returns
    groups       prunable ones first: number, name, width, kept (width or null), frozen (reason or null),
                 macs_of_one (of one channel in the dense network, null where frozen), members (tensor, dim, role)
    integers     attributes of modules that count channels: module, attribute, item, value, kept
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier.errors import BudgetInfeasible, ConfigError
from espalier.pruning.graph.allocation import uniform
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.graph.groups import Group, Operation, Role

FORMAT = 1

WRITES: tuple[Role, ...] = ("out", "depthwise", "norm", "scale")
READS: tuple[Role, ...] = ("in", "depthwise", "norm", "scale")


@dataclass(frozen=True)
class Cost:
    """What one operation, or a whole network, costs per example.

    Attributes:
        macs: multiply-adds.
        parameters: numbers that it learns; those that several operations share count at the first.
        activation_bytes: bytes of the activations that the operation makes; of a network, the most alive at once.
    """

    macs: int
    parameters: int
    activation_bytes: int


@dataclass(frozen=True)
class OperationReport:
    """One operation.

    Attributes:
        number: its place in the order of execution.
        kind: the ATen operation; ``input`` for the network's own inputs.
        layer: path of the module that runs it.
        inputs: numbers of the operations whose results it reads.
        shape: of its first output, dense.
        tensors: parameters and buffers that it reads.
        reads: numbers of the groups that its inputs hold, the frozen ones among them where a parameter tells.
        writes: numbers of the groups that its output holds.
        dense: cost.
        kept: cost in the network with fewer channels, if one was asked for.
    """

    number: int
    kind: str
    layer: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    dense: Cost
    kept: Cost | None

    @property
    def matters(self) -> bool:
        """Whether it costs MACs or holds parameters."""
        return bool(self.dense.macs or self.dense.parameters)


@dataclass(frozen=True)
class Inspection:
    """A network, dense and perhaps with fewer channels.

    Attributes:
        network: its name.
        graph: its channel graph.
        operations: in the order of execution.
        dense: totals.
        keep: the fraction of the MACs that was asked for, if any.
        widths: (G,) the widths that meet it.
        kept: totals at these widths.
    """

    network: str
    graph: ChannelGraph
    operations: tuple[OperationReport, ...]
    dense: Cost
    keep: float | None = None
    widths: Ints | None = None
    kept: Cost | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, the prunable ones first: what `reads` and `writes` number."""
        return (*self.graph.groups, *self.graph.frozen)

    def width(self, group: int) -> int:
        """Channels of a group, by number, in the dense network."""
        return self.groups[group].size

    def kept_width(self, group: int) -> int | None:
        """Channels of a group, by number, in the network with fewer channels."""
        if self.widths is None or group >= len(self.widths):
            return None if self.widths is None else self.width(group)
        return int(self.widths[group])

    def document(self) -> dict[str, Any]:
        """Everything in the layout that this module describes, ready for `json.dump`."""
        costs = self.graph.channel_costs().tolist()
        return {
            "format": FORMAT,
            "network": self.network,
            "units": {
                "macs": "multiply-adds of one example; FLOPs = 2 x MACs",
                "activation_bytes": "bytes of one example in eval mode",
                "width": "channels",
            },
            "dense": asdict(self.dense) | {"channels": self.graph.n_channels},
            "kept": None if self.kept is None or self.widths is None else self._kept(self.kept, self.widths),
            "keep": self.keep,
            "operations": [asdict(operation) for operation in self.operations],
            "outputs": list(self.graph.outputs),
            "groups": [
                {
                    "number": number,
                    "name": group.name,
                    "width": group.size,
                    "kept": self.kept_width(number),
                    "frozen": group.frozen,
                    "macs_of_one": costs[number] if number < len(costs) else None,
                    "members": [{"tensor": m.tensor, "dim": m.dim, "role": m.role} for m in group.members],
                }
                for number, group in enumerate(self.groups)
            ],
            "integers": self._integers(),
        }

    def _kept(self, cost: Cost, widths: Ints) -> dict[str, int]:
        return asdict(cost) | {"channels": int(widths.sum())}

    def _integers(self) -> list[dict[str, Any]]:
        dense = self.graph.integers_of(torch.ones(self.graph.n_channels, dtype=torch.bool))
        kept: Mapping[tuple[str, str, int | None], int] = {}
        if self.widths is not None:
            kept = self.graph.integers_of(self.graph.keep_best(np.zeros(self.graph.n_channels), self.widths))
        return [
            {"module": path, "attribute": name, "item": item, "value": value, "kept": kept.get((path, name, item))}
            for (path, name, item), value in dense.items()
        ]


def inspection(
    graph: ChannelGraph,
    network: str,
    keep: float | None = None,
    floor: Ints | None = None,
    widths: Ints | None = None,
) -> Inspection:
    """Looks at a network, and at what it costs with fewer channels.

    Args:
        graph: the network.
        network: its name.
        keep: the fraction of the MACs of a narrower network to show beside it; every group loses the same share.
        floor: (G,) fewest channels per group of the narrower one; one each by default.
        widths: (G,) of the narrower network, where they are known; there is no `keep` then.

    Raises:
        ConfigError: `keep` does not lie in (0, 1].
        BudgetInfeasible: `keep` cannot be reached; states the smallest reachable cost.
    """
    if keep is not None:
        if not 0 < keep <= 1:
            raise ConfigError(
                f"--keep must lie in (0, 1], got {keep:g}: the fraction of MACs kept, so write 0.5 to halve them"
            )
        try:
            widths = uniform(graph, int(keep * int(graph.macs(graph.sizes))), floor)
        except BudgetInfeasible as error:
            raise BudgetInfeasible(f"--keep {keep:g}: {error}") from error
    dense = _costs(graph, graph.sizes)
    kept = [None] * len(dense) if widths is None else _costs(graph, widths)
    touched = _FrozenTensors(graph)
    operations = []
    for number, operation in enumerate(graph.operations):
        sources = [graph.operations[source] for source in operation.inputs]
        reads = _held(sources) | touched.by(operation, READS)
        writes = _held([operation]) | touched.by(operation, WRITES)
        operations.append(
            OperationReport(
                number,
                operation.kind,
                operation.layer,
                operation.inputs,
                operation.shape,
                operation.tensors,
                tuple(sorted(reads)),
                tuple(sorted(writes)),
                dense[number],
                kept[number],
            )
        )
    total = None if widths is None else _total(graph, widths)
    return Inspection(network, graph, tuple(operations), _total(graph, graph.sizes), keep, widths, total)


def write_json(found: Inspection, path: Path | None) -> None:
    """Writes the document of an inspection into a file, or to standard output.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = json.dumps(found.document(), indent=1) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json must name a file that can be written, got {path}: {error.strerror}") from error


def _costs(graph: ChannelGraph, widths: Ints) -> list[Cost]:
    columns = (
        graph.macs_per_operation(widths),
        graph.params_per_operation(widths),
        graph.bytes_per_operation(widths),
    )
    return [Cost(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _total(graph: ChannelGraph, widths: Ints) -> Cost:
    return Cost(int(graph.macs(widths)), int(graph.params(widths)), int(graph.peak_memory(widths)))


def _held(operations: Iterable[Operation]) -> set[int]:
    """Numbers of the prunable groups whose channels lie along some dimension of the results."""
    return {
        group
        for operation in operations
        for size in operation.sizes
        for monomial, coefficient in size.items()
        if coefficient
        for group in monomial
    }


class _FrozenTensors:
    """Which frozen groups the parameters of an operation have along them: sizes do not tell, they are constants."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._found: dict[str, list[tuple[Role, int]]] = {}
        for number, group in enumerate(graph.frozen, len(graph.groups)):
            for member in group.members:
                self._found.setdefault(member.tensor, []).append((member.role, number))

    def by(self, operation: Operation, roles: tuple[Role, ...]) -> set[int]:
        return {
            number for tensor in operation.tensors for role, number in self._found.get(tensor, []) if role in roles
        }
