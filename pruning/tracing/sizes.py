"""Integers of a network's code, held against the numbers of channels kept.

A reshape to ``(b, heads, -1)``, a loop over ``x.shape[1]``, an attribute ``num_heads``: what the code computes of
sizes must still be right when channels are gone. Sizes that are the numbers of some channels couple these; where
nothing can make an integer right, the channels that it depends on are frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from espalier.pruning.tracing.integers import (
    Attribute,
    Expression,
    Leaf,
    Operation,
    Size,
    TracedInt,
    evaluate,
    leaves,
)
from espalier.pruning.tracing.labels import Bools, Ints, Labelled, LabelStore, Tie
from espalier.pruning.tracing.recording import Node, Recording
from espalier.pruning.tracing.rules.calls import Value

Requirement = tuple[Expression, Expression | Ints, str]
"""What must equal what, or count these rows, and why."""
SHARES = (0.0, 0.3, 0.5, 0.7, 0.7, 0.9)
"""Of the channels, kept at random, under which requirements are tried."""


class Sizes:
    """The integers of a network's code.

    Args:
        recording: of its forward pass.
        store: the labels.
        labels: of what its nodes make, as they become known.
        ties: the channels along the dimensions of stored tensors, as they become known.

    Attributes:
        attributes: integer attributes of modules that must equal the number of rows kept.
    """

    def __init__(
        self,
        recording: Recording,
        store: LabelStore,
        labels: Mapping[Node, Value],
        ties: Mapping[tuple[str, int], Tie],
    ) -> None:
        self.attributes: dict[Attribute, Ints] = {}
        self._recording, self._store, self._labels, self._ties = recording, store, labels, ties
        self._required: list[Requirement] = []
        self._consumed: set[int] = set()  # ids of the integers that a rule has made use of
        self._implied: dict[Attribute, Ints | None] = {}

    # -- during the run

    def require(self, size: int, rows: Ints, where: str) -> None:
        """See `calls.Tracer`."""
        if not isinstance(size, TracedInt):
            self._store.freeze(rows, where)
            return
        self._consumed.add(id(size))
        expression = size.expression
        if not isinstance(expression, Attribute):
            self._required.append((expression, rows, where))
        elif expression in self.attributes:
            self._store.unify(self.attributes[expression], rows, where)
        else:
            self.attributes[expression] = rows

    def sized(self, size: int, where: str) -> Ints | None:
        """See `calls.Tracer`."""
        if not isinstance(size, TracedInt):
            return None
        if isinstance(size.expression, Size):
            rows = self._rows_of(size.expression)
            if rows is not None:
                self._consumed.add(id(size))
            return rows
        repeats = isinstance(size.expression, Attribute) and size.expression in self._recording.implied
        if repeats or any(isinstance(n, Size) and self._rows_of(n) is not None for n in leaves(size.expression)):
            fresh = self._store.fresh(size)
            self.require(size, fresh, where)
            return fresh
        return None

    def hold(self, sizes: Iterable[int], where: str) -> None:
        """States that those of which no rule has made use must not change, or what they depend on is frozen."""
        for size in sizes:
            if isinstance(size, TracedInt) and id(size) not in self._consumed and leaves(size.expression):
                self._required.append((size.expression, int.__int__(size), where))

    # -- after it

    def seen(self, besides: Bools) -> bool:
        """Whether the code has looked at a number of channels, other than these, and no call shows what for."""
        integers = self._recording.integers
        found = [self._rows_of(leaf) for leaf in (integers.seen - integers.shown) | integers.unequal]
        return bool((self._store.marked(rows for rows in found if rows is not None) & ~besides).any())

    def settle(self) -> None:
        """Holds every integer of the network's code against what it must be, whichever channels are removed."""
        for leaf in self._recording.integers.escaped:
            rows = self._rows_of(leaf)
            if rows is not None:
                self._store.freeze(rows, "their number enters the arithmetic")
        required = [
            (expression, target, where)
            for expression, target, where in (*self._required, *self._equal())
            if isinstance(target, np.ndarray)  # what depends on no channels holds as it does in the dense network
            or any(self._rows_of(leaf) is not None for leaf in leaves(expression) | leaves(target))
        ]
        for expression, target, where in self._violated(required):
            if isinstance(target, np.ndarray):
                self._couple(expression, target, where)
        for _ in range(len(required) + 1):  # every round freezes something, or nothing is violated
            violated = self._violated(required)
            if not violated:
                return
            for expression, target, where in violated:
                for side in (expression, target):
                    if isinstance(side, np.ndarray):
                        self._store.freeze(side, where)
                    for leaf in _leaves(side):
                        rows = self._rows_of(leaf)
                        if rows is not None:
                            self._store.freeze(rows, where)

    def _couple(self, expression: Expression, target: Ints, where: str) -> None:
        """Makes an expression right by coupling the channels that it counts with those that it must count.

        A size of as many channels: they are the same ones. The quotient of one, as ``c // heads``: the channels are
        those that are wanted, over and over.
        """
        match expression:
            case Size():
                rows, times = self._rows_of(expression), None
            case Operation("floordiv", (Size() as size, by)) if not isinstance(by, Operation):
                rows, times = self._rows_of(size), by
            case _:
                return
        wanted = target
        if times is not None:
            outer = None if isinstance(times, int) else self._rows_of(times)
            if outer is None:
                count = times if isinstance(times, int) else self._recording.integers.values[times]
                wanted = np.tile(target, (count, 1))
            else:
                wanted = np.concatenate([outer.repeat(len(target), 0), np.tile(target, (len(outer), 1))], axis=1)
        if rows is not None and len(rows) == len(wanted):
            self._store.unify(rows, wanted, where)

    def _equal(self) -> list[Requirement]:
        """What the code has compared; an attribute that was compared with a number of channels counts these."""
        required: list[Requirement] = []
        for one, other in self._recording.integers.equal:
            one, other = (one, other) if isinstance(one, Attribute) else (other, one)
            rows = self._rows_of(other) if isinstance(other, Size) else None
            if isinstance(one, Attribute) and one not in self.attributes and rows is not None:
                self.attributes[one] = rows
            else:
                one, other = (other, one) if isinstance(one, int) else (one, other)
                required.append((one, other, _compared(one, other)))
        return required

    def _violated(self, required: list[Requirement]) -> list[Requirement]:
        """The requirements that do not hold when channels are removed at random."""
        if not required:
            return []
        generator = np.random.default_rng(0)
        policies = [self._store.random_keep(generator, share) for share in SHARES]
        kept: dict[int, list[int]] = {}  # id of rows -> how many are kept under each policy

        def counts(rows: Ints) -> list[int]:
            if id(rows) not in kept:
                atoms = self._store.atoms(rows)
                kept[id(rows)] = [int(policy[atoms].all(1).sum()) for policy in policies]
            return kept[id(rows)]

        def value(side: Expression | Ints, policy: int) -> Any:
            if isinstance(side, np.ndarray):
                return counts(side)[policy]

            def leaf_value(leaf: Leaf) -> int:
                rows = self._rows_of(leaf)
                return self._recording.integers.values[leaf] if rows is None else counts(rows)[policy]

            return evaluate(side, leaf_value)

        return [
            (expression, target, where)
            for expression, target, where in required
            if any(value(expression, p) != value(target, p) for p in range(len(policies)))
        ]

    def _rows_of(self, leaf: Leaf) -> Ints | None:
        """The channels that a size or an attribute counts, if any."""
        if isinstance(leaf, Attribute):
            if leaf in self.attributes or leaf not in self._recording.implied:
                return self.attributes.get(leaf)
            if leaf not in self._implied:
                name, dim, times = self._recording.implied[leaf]
                tie = self._ties.get((name, dim))
                self._implied[leaf] = None if tie is None else tie.rows.repeat(times, axis=0)
            return self._implied[leaf]
        if isinstance(leaf.tensor, str):
            tie = self._ties.get((leaf.tensor, leaf.dim))
            return None if tie is None else tie.rows
        value = self._labels.get(self._recording.nodes[leaf.tensor])
        return value.dims[leaf.dim] if isinstance(value, Labelled) and leaf.dim < len(value.dims) else None


def _leaves(side: Expression | Ints) -> set[Leaf]:
    return set() if isinstance(side, np.ndarray) else leaves(side)


def _compared(one: Expression, other: Expression) -> str:
    """The reason to freeze what a comparison depends on."""
    if isinstance(one, Operation) and one.name in ("lt", "le", "gt", "ge"):
        one, other = one.operands
    if isinstance(one, Operation) and one.name == "truth":
        other = 0
    return f"{_name(one)} is compared with {_name(other)}"


def _name(side: Expression) -> str:
    if isinstance(side, Attribute):
        return f"{side.path}.{side.name}" if side.path else side.name
    return str(side) if isinstance(side, int) else "the number of channels"
