"""Torch's random numbers from a seed, without a trace outside of the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of the processor and of all GPUs that are in use; after the block they go on as before.

    Where no GPU is in use yet, none is: `torch.manual_seed` would seed it once it is.
    """
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        if gpus:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield
