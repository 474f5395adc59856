"""Channel labels: which channel does each position of a tensor hold?

Tracing runs a network on labels in place of values. A label is an integer; positions that carry the same
label hold the same channel, and 0 means "no channel": a position that must stay as it is.

Notation:
    label      int64 >= 0; 0 is fixed
    class      a set of unified labels, named by its smallest one (its *root*)
    compact    a label tensor whose constant dimensions have size 1, so that a map of 112 x 112 positions that
               differ by channel alone is a vector
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


class LabelStore:
    """A union-find over labels, with the reasons for which some of them are frozen."""

    def __init__(self) -> None:
        self._parent: Ints = np.zeros(1024, dtype=np.int64)
        self._used = 1  # label 0 is taken: fixed
        self._frozen: list[tuple[Ints, str]] = []

    def fresh(self, count: int) -> Tensor:
        """New labels, each a class of its own: (count,)."""
        start, self._used = self._used, self._used + count
        if self._used > len(self._parent):
            grown = np.zeros(2 * self._used, dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        self._parent[start : self._used] = np.arange(start, self._used)
        return torch.arange(start, self._used)

    def find(self, labels: Tensor) -> Tensor:
        """The root of every label; same shape."""
        return torch.from_numpy(self.roots(labels.numpy()))

    def roots(self, labels: Ints) -> Ints:
        """`find` over numpy arrays."""
        roots = labels
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = self._parent[above]
        self._parent[labels] = roots
        return roots

    def unify(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Makes one class of each pair of labels; a pair with 0 freezes the other label.

        Args:
            first: labels, any shape.
            second: labels, broadcastable against `first`.
            reason: why, should a 0 on one side freeze the other.
        """
        left, right = torch.broadcast_tensors(first, second)
        a, b = left.reshape(-1).numpy(), right.reshape(-1).numpy()
        fixed = (a == 0) | (b == 0)
        self.freeze(torch.from_numpy(np.maximum(a, b)[fixed]), reason)
        a, b = a[~fixed], b[~fixed]
        while len(a):
            a, b = self.roots(a), self.roots(b)
            differ = a != b
            a, b = a[differ], b[differ]
            # Where several pairs hook one root the last wins; the others are hooked in the next round.
            self._parent[np.maximum(a, b)] = np.minimum(a, b)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Freezes the classes of these labels; zeros among them are skipped."""
        chosen = np.unique(labels.reshape(-1).numpy())
        chosen = chosen[chosen != 0]
        if len(chosen):
            self._frozen.append((chosen, reason))

    def frozen(self) -> dict[int, str]:
        """Root of every frozen class -> the first reason met."""
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for root in self.roots(labels).tolist():
                reasons.setdefault(root, reason)
        return reasons


@dataclass(frozen=True)
class Labelled:
    """The labels of one tensor.

    Attributes:
        compact: labels, broadcastable to `shape`; size 1 along every dimension on which they do not depend.
        shape: the tensor's own shape.
    """

    compact: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def fixed(shape: Sequence[int]) -> Labelled:
        """A tensor without channels: network inputs, constants, whatever was frozen."""
        return Labelled(torch.zeros((1,) * len(shape), dtype=torch.int64), tuple(shape))

    @staticmethod
    def along(dim: int, labels: Tensor, shape: Sequence[int]) -> Labelled:
        """Labels (shape[dim],) laid along one dimension of a tensor."""
        sizes = [1] * len(shape)
        sizes[dim] = shape[dim]
        return Labelled(labels.reshape(sizes), tuple(shape))

    @staticmethod
    def squashed(full: Tensor, store: LabelStore) -> Labelled:
        """From one label per position: drops every dimension on which the classes do not depend."""
        compact = full
        for dim, (size, stride) in enumerate(zip(full.shape, full.stride(), strict=True)):
            if size > 1 and stride == 0:
                compact = compact.narrow(dim, 0, 1)
        compact = store.find(compact.contiguous())
        for dim, size in enumerate(compact.shape):
            first = compact.narrow(dim, 0, 1) if size > 1 else compact
            if size > 1 and bool((compact == first).all()):
                compact = first
        return Labelled(compact.contiguous(), tuple(full.shape))

    @property
    def full(self) -> Tensor:
        """One label per position, as a stride-0 view: `shape`."""
        return self.compact.expand(self.shape)

    @property
    def varying(self) -> tuple[int, ...]:
        """The dimensions on which the labels depend."""
        return tuple(dim for dim, size in enumerate(self.compact.shape) if size > 1)

    def vector(self, dim: int) -> Tensor | None:
        """Labels along one dimension, (shape[dim],); None where they depend on another one too."""
        if any(other != dim % len(self.shape) for other in self.varying):
            return None
        return self.compact.reshape(-1).expand(self.shape[dim])
