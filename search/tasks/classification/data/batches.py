"""Batches of images in order, made by torch's `DataLoader`: in processes of its own where that takes time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from espalier.errors import ConfigError, DataError, EspalierError
from espalier.pruning.seeding import seeded
from espalier.search.tasks.classification.data.images import ImageSet

Batch = tuple[Tensor, Tensor]
"""Images and their labels."""
AHEAD = 2
"""Batches that each process makes ahead of the network."""


class RandAugment(NamedTuple):
    """Operations drawn for each image (Cubuk et al., CVPR-W 2020, arXiv 1909.13719), by torchvision.

    Attributes:
        operations: how many, one after another.
        magnitude: how strong, 0 to 30.
    """

    operations: int
    magnitude: int


class Wanted(NamedTuple):
    """What one batch is made of.

    Attributes:
        indices: positions of its images, (b,).
        crops: of each image, as `ImageSet.fetch` takes them; None for the whole of it.
        rand_augment: applied to each image.
        seed: of what `rand_augment` draws.
    """

    indices: Tensor
    crops: Tensor | None = None
    rand_augment: RandAugment | None = None
    seed: int = 0


def batches(images: ImageSet, wanted: Iterable[Wanted], device: torch.device) -> Generator[Batch, None, None]:
    """Pixels, uint8 (b, channels, height, width), and labels (b,), on the CPU.

    Sets whose images are decoded are read by as many processes as this one may use threads, or by as many as
    `ImageSet.workers` says. The batches are the same for any number.

    Args:
        images: where they come from.
        wanted: batch after batch.
        device: where they go: what goes to a GPU is put into pinned memory.

    Raises:
        DataError: an image cannot be decoded, or a process that decodes was killed.
    """
    wanted = iter(wanted)
    first = next(wanted, None)
    if first is None:
        return
    workers = torch.get_num_threads() if images.workers is None else images.workers
    takes_time = images.decodes or first.rand_augment is not None
    if not takes_time or multiprocessing.current_process().daemon:  # which may have no children
        workers = 0
    loader = DataLoader(
        _Batches(images),
        sampler=_chained(first, wanted),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws from the global one
    )
    with told_if_killed():
        for batch in loader:
            if isinstance(batch, EspalierError):
                raise batch
            yield batch


@contextmanager
def told_if_killed() -> Iterator[None]:
    """One line where a process that decodes was killed; torch says so wherever its caller is at that moment.

    Raises:
        DataError: one was.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        why = "it was killed, or /dev/shm is full"
        # The traceback holds the loader; as long as there is one, torch raises again wherever its caller is.
        cause = error.with_traceback(None)
        raise DataError(f"a process that decodes images has ended ({why}): lower data.kwargs.workers") from cause


def fetched(images: ImageSet, indices: Tensor, batch: int = 256) -> Tensor:
    """All images at `indices` (n,), uint8 (n, channels, height, width)."""
    if not len(indices):
        return images.fetch(indices)
    parts = (Wanted(part) for part in indices.split(batch))
    return torch.cat([pixels for pixels, _ in batches(images, parts, torch.device("cpu"))])


def check_torchvision() -> None:
    """Raises ConfigError, naming the package, where RandAugment cannot be made."""
    try:
        import torchvision.transforms.v2  # noqa: F401
    except Exception as error:
        why = "needs torchvision, which cannot be imported"
        raise ConfigError(f"data.augment.rand_augment {why} ({error}): pip install torchvision") from error


class _Batches(Dataset[Batch]):
    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __getitem__(self, wanted: Wanted) -> Batch | EspalierError:  # type: ignore[override]
        # An error that is raised in a process of the loader arrives with its traceback in the place of its text.
        try:
            return self._made(wanted), self._images.labels[wanted.indices]
        except EspalierError as error:
            return error

    def _made(self, wanted: Wanted) -> Tensor:
        images = self._images
        crops = () if wanted.crops is None else (wanted.crops,)
        pixels = images.fetch(wanted.indices, *crops)
        if wanted.rand_augment is None:
            return pixels
        from torchvision.transforms import v2

        transform = v2.RandAugment(*wanted.rand_augment, interpolation=v2.InterpolationMode.BILINEAR)
        with seeded(wanted.seed):
            return torch.stack([transform(image) for image in pixels])


def _chained(first: Wanted, rest: Iterator[Wanted]) -> Iterator[Wanted]:
    yield first
    yield from rest
