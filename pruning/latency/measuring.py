"""Measuring pruned networks on this machine, to model the latency of all others."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.latency.model import LatencyModel
from espalier.pruning.runtimes.latency import REPEATS, prepared, time_in_turn
from espalier.pruning.runtimes.table import runtime_named
from espalier.pruning.slimming.surgery import slim

NETWORKS = 40
"""That are measured: with so many, half of the predictions are within some 4 % of what is measured."""
TOGETHER = 8
"""Networks that take turns, the unpruned one among them."""


@dataclass(frozen=True)
class Device:
    """What latency is of, beside the machine.

    Attributes:
        runtime: name in `espalier.pruning.runtimes.RUNTIMES`.
        batch: examples of a pass.
        threads: that a pass may use.
    """

    runtime: str = "eager"
    batch: int = 1
    threads: int = 1

    def words(self) -> str:
        """For people, with the runtime's version and the processor here.

        Raises:
            ConfigError, MissingPackage: there is no such runtime here.
        """
        version = runtime_named(self.runtime).version
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.runtime} {version}, {_processor()}, {threads}, batch {self.batch}"


def measure_latency(
    network: nn.Module,
    graph: ChannelGraph,
    example_inputs: Inputs | None = None,
    device: Device = Device(),
    *,
    networks: int = NETWORKS,
    repeats: int = REPEATS,
    seed: int = 0,
    file: Path | None = None,
    on_measured: Callable[[int], None] = lambda count: None,
) -> LatencyModel:
    """Times pruned networks on this machine, and fits a model of the latency of all.

    They are drawn near and far from the unpruned one, half of them with widths in multiples of 8. It takes minutes:
    each has to be prepared by the runtime once.

    Args:
        network: the dense network; left as it is.
        graph: its channel graph.
        example_inputs: what it takes; by default what the graph was traced with.
        device: runtime, batch and threads.
        networks: how many are measured, the unpruned one among them.
        repeats: timed passes of each.
        seed: of what is drawn.
        file: where measurements are kept as they are made, and taken up from; one of another network, device or
            seed is refused.
        on_measured: told how many are done.

    Raises:
        ConfigError: there are too few networks, or the file is another measurement's.
        MissingPackage: the runtime is not installed.
        ExportError: it cannot take the network.
    """
    if networks < TOGETHER:
        raise ConfigError(f"latency is modelled from {TOGETHER} networks or more, got {networks}")
    example = graph.example if example_inputs is None else example_inputs
    drawn = draw_widths(graph, networks, seed)
    words = device.words()
    record = _Record(file, {"device": words, "graph": graph.digest, "seed": seed, "repeats": repeats})
    on_measured(len(record.taken))
    dense_session = prepared(network, example, device.runtime, (device.batch,), device.threads)
    while len(record.taken) < networks:
        numbers = range(len(record.taken), min(len(record.taken) + TOGETHER - 1, networks))
        sessions = {
            number: prepared(
                narrowed(network, graph, drawn[number]), example, device.runtime, (device.batch,), device.threads
            )
            for number in numbers
        }
        found = time_in_turn(sessions | {-1: dense_session}, example, device.batch, repeats)
        record.add([found[number].least for number in numbers], found[-1].least)
        on_measured(len(record.taken))
    ratios, dense = np.array([taken / beside for taken, beside in record.taken[:networks]]), record.dense
    return LatencyModel.fitted(graph, drawn, (1e6 * dense * ratios).tolist(), words)


def draw_widths(graph: ChannelGraph, count: int, seed: int) -> Ints:
    """Widths to measure, (count, G): the dense ones first, and then others of all sizes."""
    draw, sizes = np.random.default_rng(seed), graph.sizes
    drawn = [sizes]
    while len(drawn) < count:
        shares = draw.uniform(0.1, 1.0) * np.exp(draw.normal(0.0, draw.uniform(0.0, 1.0), len(sizes)))
        widths = np.clip(np.rint(shares * sizes), 1, sizes)
        if len(drawn) % 2:
            widths = np.clip(np.rint(widths / 8) * 8, np.minimum(8, sizes), sizes)
        drawn.append(widths)
    return np.stack(drawn).astype(np.int64)


def narrowed(network: nn.Module, graph: ChannelGraph, widths: Ints) -> nn.Module:
    """The first channels of every group: which ones are kept does not change how long it takes."""
    keep = graph.keep_best(-np.arange(graph.n_channels, dtype=np.float64), widths)
    return slim(network, graph, keep, verify=False)


class _Record:
    """Milliseconds of each network, and of the unpruned one beside it; in a file of lines, where one is named."""

    def __init__(self, file: Path | None, header: dict[str, Any]) -> None:
        self._file, self.taken = file, list[tuple[float, float]]()
        if file is None:
            return
        try:
            if file.exists():
                self._read(file, header)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(header) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot keep measurements in {file}: {error.strerror}") from error

    def _read(self, file: Path, header: dict[str, Any]) -> None:
        try:
            first, *lines = map(json.loads, _whole_lines(file))
            self.taken = [(float(taken), float(beside)) for taken, beside in lines]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{file} holds no measurements of latency: remove it, or name another") from error
        if first != header:
            differing = ", ".join(f"{key} {first.get(key)!r}" for key in header if first.get(key) != header[key])
            raise ConfigError(f"{file} holds measurements of something else ({differing}): name another file")

    @property
    def dense(self) -> float:
        """Milliseconds of the unpruned network."""
        return float(np.median([beside for _, beside in self.taken]))

    def add(self, taken: list[float], beside: float) -> None:
        """Networks that took their turns together."""
        self.taken += [(each, beside) for each in taken]
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps([each, beside]) + "\n" for each in taken)


def _whole_lines(file: Path) -> Iterator[str]:
    """Of a file whose last line may be cut short."""
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
