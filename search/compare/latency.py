"""How long networks take for a pass: one thread, in turn, so that the machine's moods hit all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

WARM = 3
"""Passes before the clock is looked at."""
REPEATS = 30
"""Timed passes of each network."""

Name = TypeVar("Name")


def latencies(networks: Mapping[Name, nn.Module], images: Tensor, repeats: int = REPEATS) -> dict[Name, float]:
    """Median milliseconds of a forward pass, eval mode, fp32, channels-last, of every network.

    Args:
        networks: in eval mode.
        images: (batch, channels, height, width), normalised.
        repeats: timed passes of each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    laid_out = images.contiguous(memory_format=torch.channels_last)
    seconds: dict[Name, list[float]] = {name: [] for name in networks}
    try:
        with torch.inference_mode():
            for repeat in range(-WARM, repeats):
                for name, network in networks.items():
                    start = time.perf_counter()
                    network(laid_out)
                    if repeat >= 0:
                        seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: 1000 * statistics.median(passes) for name, passes in seconds.items()}
