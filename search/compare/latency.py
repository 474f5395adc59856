"""How long networks take for a pass: one thread, in turn, so that the machine's moods hit all of them alike."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.torch_private import tree_map

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


def latencies(networks: Mapping[Name, nn.Module], inputs: Inputs, repeats: int = REPEATS) -> dict[Name, Latency]:
    """Latency of a forward pass, eval mode, fp32, of every network.

    Each is timed in both memory formats, its weights laid out like the images, whatever format they come in: the
    same weights laid out otherwise take up to 1.2 times as long. All take their turns with each other.

    Args:
        networks: in eval mode; left as they are.
        inputs: what they take.
        repeats: timed passes of each.
    """
    threads = torch.get_num_threads()
    laid_out = {name: tree_map(partial(_in_layout, layout), inputs) for name, layout in LAYOUTS.items()}
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
                    run_on(network, laid_out[layout])
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


def repeated(inputs: Inputs, count: int) -> Inputs:
    """So many examples, the first ones over and over."""

    def take(value: Any) -> Any:
        return value[torch.arange(count) % len(value)] if isinstance(value, Tensor) and value.dim() else value

    found: Inputs = tree_map(take, inputs)
    return found


def _in_layout(layout: torch.memory_format, value: Any) -> Any:
    images = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=layout) if images else value
