"""Torch's random numbers from a seed, without a trace outside of the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the generator of the processor, and of one GPU; after the block both go on as if it had not been.

    `torch.manual_seed` seeds those of all GPUs, which `torch.random.fork_rng` brings back only where it is told of
    them.

    Args:
        seed: of the numbers drawn in the block.
        device: where some are drawn; only the processor by default.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
