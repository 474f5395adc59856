"""Channel labels: which channel does each index along a dimension of a tensor hold?

Tracing runs a network on labels in place of values. Removing channels always leaves a rectangular tensor, so
labels belong to the dimensions of a tensor, not to its positions: each index along a dimension carries a *row*
of labels and is kept if all channels of the row are kept. Most rows hold one label; where attention heads and
the channels inside a head lie merged along one dimension, they hold two.

Notation:
    label      int64 >= 0; 0 is fixed: always kept
    class      a set of unified labels, named by its smallest one (its *root*)
    atom       a root that is not defined as the conjunction of others
    row        (k,) labels, zeros where there are fewer; kept if all of them are
    rows       (n, k) one row per index along a dimension of size n
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from espalier.pruning.graph.groups import Role

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class LabelStore:
    """A union-find over labels, with conjunctions, and the reasons for which some labels are frozen."""

    def __init__(self) -> None:
        # Per label: parent, creation batch, and the two labels of its definition (0 for an atom). Label 0 is fixed.
        self._table: Ints = np.zeros((4, 1024), dtype=np.int64)
        self._used = 1
        self._frozen: list[tuple[Ints, str]] = []
        self._normal: dict[int, tuple[Ints, Ints]] = {}  # id of rows -> these, held, and their atoms
        self._reasons: dict[str, None] = {}
        self._reason_of: Ints | None = None

    @property
    def _parent(self) -> Ints:
        parents: Ints = self._table[0]
        return parents

    def fresh(self, count: int) -> Ints:
        """Rows of new labels, each a class of its own: (count, 1)."""
        start, self._used = self._used, self._used + count
        if self._used > self._table.shape[1]:
            grown = np.zeros((4, 2 * self._used), dtype=np.int64)
            grown[:, : self._table.shape[1]] = self._table
            self._table = grown
        self._parent[start : self._used] = np.arange(start, self._used)
        self._table[1, start : self._used] = start
        self._reason_of = None
        return np.arange(start, self._used)[:, None]

    def roots(self, labels: Ints) -> Ints:
        """The root of every label; same shape."""
        parent = self._parent
        roots = parent[labels]
        while ((above := parent[roots]) != roots).any():
            roots = parent[above]
            parent[labels] = roots
        return roots

    def atoms(self, rows: Ints) -> Ints:
        """Rows in normal form: atoms only, none twice, in the order of their making, zeros first: (n, k')."""
        known = self._normal.get(id(rows))
        if known is None:
            known = self._normal[id(rows)] = (rows, self._atoms(rows))
        return known[1]

    def _atoms(self, rows: Ints) -> Ints:
        rows = _distinct(self.roots(rows))
        while (defined := self._table[2][rows] != 0).any():
            second = np.where(defined, self._table[3][rows], 0)
            first = np.where(defined, self._table[2][rows], rows)
            rows = _distinct(self.roots(np.concatenate([first, second], axis=1)))
        return self._ordered(rows) if rows.shape[1] > 1 else rows

    def _changed(self) -> None:
        """Forgets what was known before classes changed."""
        self._normal.clear()
        self._reason_of = None

    def marked(self, several: Iterable[Ints]) -> Bools:
        """Which labels are atoms of any of these rows: (labels,)."""
        marks = np.zeros(self._used, dtype=np.bool_)
        for rows in several:
            marks[self.atoms(rows)] = True
        marks[0] = False
        return marks

    def _ordered(self, rows: Ints) -> Ints:
        """Each row sorted by the batch that its labels were made in: heads before the channels of a head."""
        order = np.lexsort((rows, self._table[1][rows]), axis=1)
        return np.take_along_axis(rows, order, axis=1)

    def unify(self, first: Ints, second: Ints, reason: str) -> None:
        """Makes rows equivalent, pair by pair: whatever is kept, both of a pair are kept or neither.

        A label against a conjunction becomes defined by it; conjunctions are matched label by label, or, where
        that cannot be done, all their labels become one. A pair with a fixed row freezes the other one.

        Args:
            first: (n, k) rows.
            second: (n, k') rows.
            reason: why, should a fixed row freeze the other.
        """
        while first is not second:
            a, b = self.atoms(first), self.atoms(second)
            if a.shape[1] == b.shape[1] == 1:
                self.freeze(np.maximum(a, b)[(a == 0) | (b == 0)], reason)
                self._hook(a, b)
                return
            a, b = _padded(a, b)
            differ = (a != b).any(1)
            if not differ.any():
                return
            first, second = first[differ], second[differ]
            a, b, common = self._without_common(a[differ], b[differ])
            n_a, n_b = (a != 0).sum(1), (b != 0).sum(1)
            short, long = np.where((n_a <= n_b)[:, None], a, b), np.where((n_a <= n_b)[:, None], b, a)
            n_short, n_long = np.minimum(n_a, n_b), np.maximum(n_a, n_b)
            fixed = (n_short == 0) & (common == 0)
            if fixed.any():
                self.freeze(long[fixed], reason)
                first, second = first[~fixed], second[~fixed]
            alike = (n_short == n_long) & (n_short > 0)
            if alike.any():
                self._hook(short[alike], long[alike])
                continue  # what was hooked may change the rest
            definable = np.flatnonzero((n_short == 1) & (n_long > 1))
            if len(definable):
                self._define(short[definable].max(1), long[definable])
                continue
            rest = n_long > 0
            rest &= ~fixed
            if rest.any():  # {a} against {a, b}, or two labels against three: all become one
                all_of = np.concatenate([short[rest], long[rest], common[rest, None]], axis=1)
                anchor = np.where(all_of == 0, np.iinfo(np.int64).max, all_of).min(1)[:, None]
                self._hook(np.where(all_of == 0, anchor, all_of), np.broadcast_to(anchor, all_of.shape))

    def _without_common(self, a: Ints, b: Ints) -> tuple[Ints, Ints, Ints]:
        """Rows without the labels that both have, and one such label per row, or 0."""
        a, b = a.copy(), b.copy()
        common = np.zeros(len(a), dtype=np.int64)
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                same = (a[:, i] == b[:, j]) & (a[:, i] != 0)
                common = np.where(same, a[:, i], common)
                a[same, i] = b[same, j] = 0
        return self._ordered(a), self._ordered(b), common

    def _hook(self, a: Ints, b: Ints) -> None:
        """Unifies atoms pair by pair; zeros are skipped."""
        a, b = a.reshape(-1), b.reshape(-1)
        while True:
            a, b = self.roots(a), self.roots(b)
            differ = (a != b) & (a != 0) & (b != 0)
            a, b = a[differ], b[differ]
            if not len(a):
                return
            self._changed()
            # Where several pairs hook one root the last wins; the others are hooked in the next round.
            self._parent[np.maximum(a, b)] = np.minimum(a, b)

    def _define(self, labels: Ints, rows: Ints) -> None:
        """Defines atoms as conjunctions of the atoms in rows; those that would define each other wait."""
        ready = ~np.isin(labels, rows)
        if not ready.any():
            ready[0] = True
        labels, chosen = np.unique(labels[ready], return_index=True)
        rows = rows[ready][chosen]
        while (rows != 0).sum(1).max() > 2:  # nest what is longer than a pair
            long = (rows != 0).sum(1) > 2
            inner = self.fresh(int(long.sum()))[:, 0]
            self._table[2, inner], self._table[3, inner] = rows[long, -2], rows[long, -1]
            rows = rows.copy()
            rows[long, -1], rows[long, -2] = inner, 0
            rows = np.sort(rows, axis=1)
        self._table[2, labels], self._table[3, labels] = rows[:, -2], rows[:, -1]
        self._changed()

    def freeze(self, rows: Ints, reason: str) -> None:
        """Freezes the channels of these rows; zeros among them are skipped."""
        if rows.any():
            self._frozen.append((rows.reshape(-1, 1), reason))
            self._reason_of = None

    def reasons(self) -> tuple[Ints, list[str]]:
        """Per label the place of the first reason met, 0 of what is not frozen: (labels,); and the reasons."""
        if self._reason_of is None:
            self._reasons = dict.fromkeys(["", *(reason for _, reason in self._frozen)])
            numbers = {reason: number for number, reason in enumerate(self._reasons)}
            self._reason_of = np.zeros(self._used, dtype=np.int64)
            for rows, reason in reversed(self._frozen):
                self._reason_of[self.atoms(rows)] = numbers[reason]
            self._reason_of[0] = 0
        return self._reason_of, list(self._reasons)

    def frozen(self) -> dict[int, str]:
        """Every frozen atom -> the first reason met."""
        numbers, reasons = self.reasons()
        return {int(atom): reasons[numbers[atom]] for atom in np.flatnonzero(numbers)}

    def random_keep(self, generator: np.random.Generator, share: float) -> Bools:
        """A random choice of atoms, frozen ones and one of each vector of labels among them: (labels,)."""
        keep: Bools = generator.random(self._used) < share
        keep[self._table[1, : self._used]] = True
        keep |= self.reasons()[0] > 0
        keep[0] = True
        return keep


def _distinct(rows: Ints) -> Ints:
    """Rows without what stands in them twice, sorted, zeros first: (n, k')."""
    if rows.shape[1] == 1:
        return rows
    rows = np.sort(rows, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = 0
    rows = np.sort(rows, axis=1)
    return rows[:, int((rows == 0).sum(1).min(initial=rows.shape[1] - 1)) :]


def _padded(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Rows of one width, zeros first."""
    missing = a.shape[1] - b.shape[1]
    zeros = np.zeros((len(a), abs(missing)), dtype=np.int64)
    return (a, np.concatenate([zeros, b], axis=1)) if missing > 0 else (np.concatenate([zeros, a], axis=1), b)


@dataclass(frozen=True)
class Labelled:
    """The labels of one tensor.

    Attributes:
        dims: per dimension rows (shape[dim], k), or None where every index is fixed.
        shape: the tensor's own shape.
    """

    dims: tuple[Ints | None, ...]
    shape: tuple[int, ...]

    @staticmethod
    def fixed(shape: Sequence[int]) -> Labelled:
        """A tensor without channels: network inputs, constants, whatever was frozen."""
        return Labelled((None,) * len(shape), tuple(shape))

    @property
    def labelled(self) -> tuple[int, ...]:
        """The dimensions that channels lie along."""
        return tuple(dim for dim, rows in enumerate(self.dims) if rows is not None)

    def rows(self, dim: int) -> Ints:
        """Rows along a dimension, zeros where it is fixed: (shape[dim], k)."""
        rows = self.dims[dim]
        return np.zeros((self.shape[dim], 1), dtype=np.int64) if rows is None else rows

    def all_rows(self) -> list[Ints]:
        """The rows of every labelled dimension."""
        return [rows for rows in self.dims if rows is not None]

    def with_dims(self, dims: dict[int, Ints | None], shape: Sequence[int] | None = None) -> Labelled:
        """The same with some dimensions' rows replaced."""
        rank = len(self.shape)
        replaced = {dim % rank: rows for dim, rows in dims.items()}
        return Labelled(
            tuple(replaced.get(dim, rows) for dim, rows in enumerate(self.dims)),
            self.shape if shape is None else tuple(shape),
        )


@dataclass(frozen=True)
class Tie:
    """The channels along one dimension of a stored tensor: (n, k) rows of labels."""

    rows: Ints
    role: Role
