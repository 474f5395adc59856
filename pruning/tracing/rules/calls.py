"""What a rule is given and what it may do: one call of an ATen operation, and the tracer that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from espalier.pruning.graph.groups import Role
from espalier.pruning.torch_private import schema_of
from espalier.pruning.tracing.labels import Ints, Labelled, LabelStore
from espalier.pruning.tracing.recording import Stored

Value = Any
"""A node's value: `Labelled`, `Stored`, a list of them, or a plain Python object."""


class Tracer(Protocol):
    """What a rule may do."""

    store: LabelStore

    def labels_of(self, value: Value) -> Labelled:
        """The labels of an operand; a stored tensor gets fresh ones along each dimension that has none yet."""

    def is_weight(self, value: Value) -> bool:
        """Whether a tensor is stored, or computed from stored ones alone."""

    def bind(self, value: Value, dim: int, rows: Ints, role: Role) -> None:
        """States that a dimension of a stored or computed tensor holds these channels; None is skipped."""

    def pin(self, stored: Stored, reason: str) -> None:
        """Freezes every channel of a stored tensor, wherever else it is or will be bound."""

    def require(self, size: int, rows: Ints, where: str) -> None:
        """States that an integer of the call must equal the number of rows kept, or the rows are frozen."""

    def follows(self, size: int) -> bool:
        """Whether an integer may change with the channels: it is not a constant of the network's code."""

    def sized(self, size: int, where: str) -> Ints | None:
        """Rows for a dimension of a new, constant tensor of that size; None where the size is a constant."""

    def rescale_query(self, rows: Ints) -> bool:
        """Has what writes this call's query multiplied as these rows go; False where nothing writes it alone."""

    def contract(self, coefficient: int, sides: list[Ints]) -> None:
        """Adds coefficient x the product of the numbers of rows kept of each side, in MACs."""


@dataclass(frozen=True)
class Call:
    """One node of the exported graph.

    Attributes:
        name: the operation, e.g. ``conv2d``.
        target: the ATen overload.
        args: its arguments by name, defaults filled in, tensors as `Labelled` or `Stored`, integers as
            `TracedInt` where it is known how the network's code came by them.
        shapes: shape of each output tensor.
        where: a phrase for reports: "conv2d in layer1.0.conv1".
        used: which of its outputs somebody reads.
    """

    name: str
    target: Any
    args: dict[str, Value]
    shapes: tuple[tuple[int, ...], ...]
    where: str
    used: frozenset[int] = frozenset({0})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]


Rule = Callable[[Tracer, Call], Value]


def freeze(tracer: Tracer, call: Call) -> Value:
    """Freezes the channels of every input: the rule for what has none of its own."""
    for value in tensors_in(call.args):
        if isinstance(value, Stored):
            tracer.pin(value, call.where)  # another layer may share it
        else:
            for rows in value.all_rows():
                tracer.store.freeze(rows, call.where)
    outputs = [Labelled.fixed(shape) for shape in call.shapes]
    return outputs if returns_several(call.target) else outputs[0] if outputs else None


FIXED = "meets channels that are fixed"


def shared(tracer: Tracer, call: Call, found: Sequence[Ints | None]) -> Ints | None:
    """The rows of a dimension that tensors have in common: unified, and frozen where one of them has none."""
    labelled = [rows for rows in found if rows is not None]
    for other in labelled[1:]:
        tracer.store.unify(labelled[0], other, f"{call.where}: {FIXED}")
    if labelled and len(labelled) < len(found):
        tracer.store.freeze(labelled[0], f"{call.where}: {FIXED}")
    return labelled[0] if labelled else None


@cache
def returns_several(target: Any) -> bool:
    """Whether an operation returns a list or a tuple, be it of one."""
    returns = schema_of(target).returns
    return len(returns) > 1 or any(isinstance(r.type, torch.ListType) for r in returns)


def tensors_in(values: Any) -> list[Labelled | Stored]:
    """The tensors among nested arguments, in order."""
    found: list[Labelled | Stored] = []
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Labelled | Stored):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(tensors_in(value))
    return found
