"""How long networks take for a pass: one thread, in turn, so that the machine's moods hit all of them alike."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

WARM = 3
"""Passes before the clock is looked at."""
REPEATS = 30
"""Timed passes of each network in each memory format."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""Memory formats by name."""

Name = TypeVar("Name")


@dataclass(frozen=True)
class Latency:
    """How long one pass takes.

    Attributes:
        milliseconds: median of the repeats.
        layout: memory format of weights and images, that in which the network is faster; a name in `LAYOUTS`.
    """

    milliseconds: float
    layout: str


def latencies(networks: Mapping[Name, nn.Module], images: Tensor, repeats: int = REPEATS) -> dict[Name, Latency]:
    """Latency of a forward pass, eval mode, fp32, of every network.

    Each is timed in both memory formats, its weights laid out like the images, whatever format they come in: the
    same weights laid out otherwise take up to 1.2 times as long. All take their turns with each other.

    Args:
        networks: in eval mode; left as they are.
        images: (batch, channels, height, width), normalised.
        repeats: timed passes of each.
    """
    threads = torch.get_num_threads()
    laid_out = {name: images.contiguous(memory_format=layout) for name, layout in LAYOUTS.items()}
    copies = {
        (name, layout): copy.deepcopy(network).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
        for name, network in networks.items()
        for layout in LAYOUTS
    }
    seconds: dict[tuple[Name, str], list[float]] = {key: [] for key in copies}
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for repeat in range(-WARM, repeats):
                for (name, layout), network in copies.items():
                    start = time.perf_counter()
                    network(laid_out[layout])
                    if repeat >= 0:
                        seconds[name, layout].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {
        name: min(
            (Latency(1000 * statistics.median(seconds[name, layout]), layout) for layout in LAYOUTS),
            key=lambda found: found.milliseconds,
        )
        for name in networks
    }
