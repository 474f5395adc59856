"""Seeded, stratified splits: the same seed gives the same images on every platform and release.

The shuffle sorts raw 64-bit outputs of PCG64, whose stream NumPy guarantees; the shares of the classes are
worked out in whole numbers (largest remainder), so no rounding can differ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from espalier.errors import DataError


def stratified_split(labels: Tensor, second: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits images in two parts with the same class shares.

    Class *c* with *n_c* of the *n* images gets floor(second * n_c / n) places in the second part; the places
    left over go to the largest remainders, ties to the lower class. Both parts come in shuffled order, so
    that a prefix of either is a random sample.

    Args:
        labels: class of every image, ``int64`` ``(n,)``.
        second: images in the second part, 0..n; exactly so many are returned.
        seed: 0 or more.

    Returns:
        Positions in ``labels``: ``int64`` ``(n - second,)`` and ``(second,)``, disjoint.

    Raises:
        DataError: ``second`` or ``seed`` out of range.
    """
    count = labels.shape[0]
    if not 0 <= second <= count:
        raise DataError(f"a part of {count} images must have between 0 and {count} of them, got {second}")
    if seed < 0:
        raise DataError(f"the seed of a split must be 0 or more, got {seed}: choose another")
    keys = np.asarray(np.random.PCG64(seed).random_raw(count), dtype=np.uint64)
    order = np.argsort(keys, kind="stable")  # (n,) image at each shuffled place
    _, codes, sizes = np.unique(labels.cpu().numpy()[order], return_inverse=True, return_counts=True)
    shares = sizes * second  # in units of 1 / n image
    quotas = shares // max(count, 1)
    leftover = second - int(quotas.sum())
    quotas[np.argsort(-(shares % max(count, 1)), kind="stable")[:leftover]] += 1
    by_class = np.argsort(codes, kind="stable")  # shuffled places, class by class
    ranks = np.empty(count, dtype=np.int64)  # of each shuffled place within its class
    ranks[by_class] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = ranks < quotas[codes]
    return torch.from_numpy(order[~chosen]), torch.from_numpy(order[chosen])


def stratified_subset(labels: Tensor, n: int, seed: int) -> Tensor:
    """Returns the positions of ``n`` images that keep the class shares, ``int64`` ``(n,)``, shuffled.

    Args:
        labels: class of every image, ``int64`` ``(len(labels),)``.
        n: images to choose, 0..len(labels).
        seed: 0 or more.

    Raises:
        DataError: ``n`` or ``seed`` out of range.
    """
    return stratified_split(labels, n, seed)[1]
