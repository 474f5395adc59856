"""Costs in closed form: polynomials in the widths of the groups, for any number of policies at once.

Notation:
    G          number of prunable groups; widths are integer vectors (G,), a batch of policies (n, G)
    monomial   a width, or a product of widths: heads x channels of a head
    M          number of monomials; the first G are the widths themselves
    x          (n, M) the monomials' values

The cost of an operation is bilinear in what it reads and writes, and both are linear in the monomials,

    cost(w) = sum_k c_k (R_k x + r_k) (W_k x + s_k),

so that the cost of a batch of policies is two matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Monomial = tuple[int, ...]
"""Groups whose widths are multiplied; () is the constant one."""

Count = Mapping[Monomial, float]
"""A number of channels as a polynomial in the widths: monomial -> coefficient."""


@dataclass(frozen=True)
class BilinearCost:
    """sum_k c_k (R_k x + r_k)(W_k x + s_k) over terms k, in whole numbers.

    Attributes:
        names: (K,) what each term is: a layer, a parameter, an operation.
        coefficient: (K,) c.
        reads: (K, M) R.
        reads_fixed: (K,) r.
        writes: (K, M) W.
        writes_fixed: (K,) s.
        products: the monomials beyond the widths themselves.
        needs: (K, G) groups without which a term costs nothing, whatever it reads and writes; None where no branch
            can be taken out.
    """

    names: tuple[str, ...]
    coefficient: Floats
    reads: Floats
    reads_fixed: Floats
    writes: Floats
    writes_fixed: Floats
    products: tuple[Monomial, ...] = ()
    needs: npt.NDArray[np.bool_] | None = None

    @staticmethod
    def of(terms: Sequence[tuple[str, float, Count, Count]], n_groups: int) -> BilinearCost:
        """From (name, coefficient, reads, writes) per term."""
        found = {m for _, _, reads, writes in terms for m in (*reads, *writes) if len(m) > 1}
        products = tuple(sorted(found))
        column: dict[Monomial, int] = {(group,): group for group in range(n_groups)}
        column |= {monomial: n_groups + number for number, monomial in enumerate(products)}

        def matrix(counts: Sequence[Count]) -> tuple[Floats, Floats]:
            linear, fixed = np.zeros((len(counts), len(column))), np.zeros(len(counts))
            for row, count in enumerate(counts):
                for monomial, factor in count.items():
                    if monomial:
                        linear[row, column[monomial]] += factor
                    else:
                        fixed[row] += factor
            return linear, fixed

        names = tuple(name for name, _, _, _ in terms)
        coefficient = np.array([c for _, c, _, _ in terms], dtype=np.float64)
        reads, writes = matrix([t[2] for t in terms]), matrix([t[3] for t in terms])
        return BilinearCost(names, coefficient, *reads, *writes, products)

    def with_groups(self, n_groups: int, more: int) -> BilinearCost:
        """The same cost of so many groups and some more, which it does not depend on."""

        def wider(side: Floats) -> Floats:
            return np.insert(side, [n_groups] * more, 0.0, axis=1)

        needs = None if self.needs is None else np.pad(self.needs, ((0, 0), (0, more)))
        return replace(self, reads=wider(self.reads), writes=wider(self.writes), needs=needs)

    def sides(self, widths: Floats) -> tuple[Floats, Floats]:
        """What every term reads and what it writes, each (n, K), of widths (n, G)."""
        x = widths
        if self.products:
            x = np.concatenate(
                [widths, *(widths[:, list(m)].prod(1, keepdims=True) for m in self.products)], axis=1
            )
        reads, writes = x @ self.reads.T + self.reads_fixed, x @ self.writes.T + self.writes_fixed
        if self.needs is not None and (widths == 0).any():
            there = self.there(widths)
            return reads * there, writes * there
        return reads, writes

    def there(self, widths: Floats) -> npt.NDArray[np.bool_]:
        """Which terms, (n, K), are of no branch that is out for widths (n, G)."""
        if self.needs is None:
            return np.ones((len(widths), len(self.names)), dtype=np.bool_)
        needed = (widths == 0).astype(np.float64) @ self.needs.T.astype(np.float64)
        found: npt.NDArray[np.bool_] = needed == 0
        return found

    def terms(self, widths: Floats) -> Floats:
        """Cost per term, (n, K), of widths (n, G). Doubles hold whole numbers to 2^53 exactly."""
        reads, writes = self.sides(widths)
        product: Floats = reads * writes * self.coefficient
        return product

    def total(self, widths: Floats) -> Ints:
        """Cost (n,) of widths (n, G)."""
        reads, writes = self.sides(widths)
        reads *= writes
        return np.rint(reads @ self.coefficient).astype(np.int64)

    def expected(self, widths: Tensor) -> Tensor:
        """Cost, a scalar, of widths (G,) that need not be whole, float64 on the CPU; differentiable."""
        x = torch.cat([widths, *(widths[list(monomial)].prod()[None] for monomial in self.products)])
        sides = self.coefficient, self.reads, self.reads_fixed, self.writes, self.writes_fixed
        coefficient, reads, reads_fixed, writes, writes_fixed = map(torch.from_numpy, sides)
        return (coefficient * (reads @ x + reads_fixed) * (writes @ x + writes_fixed)).sum()

    def incidence(self, n_groups: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which term reads, and which writes, channels of which group: twice (K, G)."""
        reads, writes = (self._groups(side != 0, n_groups) for side in (self.reads, self.writes))
        return reads, writes

    def _groups(self, used: npt.NDArray[np.bool_], n_groups: int) -> npt.NDArray[np.bool_]:
        touched = used[:, :n_groups].copy()
        for number, monomial in enumerate(self.products):
            touched[:, list(monomial)] |= used[:, n_groups + number, None]
        return touched


@dataclass(frozen=True)
class PeakMemory:
    """The most bytes of activations that are alive at once, of operations that run one after another.

    Attributes:
        sizes: bytes of each tensor, one term each: K tensors.
        born: (K,) the step that makes it, 0 .. steps - 1; network inputs are there at step 0.
        dies: (K,) the last step that reads it.
        steps: number of steps.
    """

    sizes: BilinearCost
    born: Ints
    dies: Ints
    steps: int

    def peak(self, widths: Floats) -> Ints:
        """Bytes (n,) of widths (n, G)."""
        chunk = max(1, (1 << 24) // max(1, self.steps + len(self.born)))  # policies that fit in 128 MB or so
        peaks = [self._peak(widths[start : start + chunk]) for start in range(0, len(widths), chunk)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *peaks])

    def _peak(self, widths: Floats) -> Ints:
        sizes = self.sizes.terms(widths)  # (n, K)
        change = np.zeros((self.steps + 1, len(widths)))
        np.add.at(change, self.born, sizes.T)
        np.subtract.at(change, self.dies + 1, sizes.T)
        peak: Ints = np.rint(np.cumsum(change, axis=0).max(0)).astype(np.int64)
        return peak
