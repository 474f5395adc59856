"""Measuring pruned networks on this machine, to model the latency of all others."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from espalier.errors import ConfigError
from espalier.persistence import whole_file
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.latency.features import timing_digest
from espalier.pruning.latency.model import LatencyModel
from espalier.pruning.runtimes.runtime_table import runtime_named
from espalier.pruning.runtimes.timing import REPEATS, prepared, time_in_turn
from espalier.pruning.slimming.surgery import slim

NETWORKS = 40
"""That are measured; benchmarks/latency_model.py says how well others are predicted then."""
IN_8_BITS = ("onnxruntime", "openvino")
"""Runtimes in which layers in 8 bits are measured."""
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
        ConfigError: there are too few networks, the file is another measurement's, or layers can have bits in which
            the runtime does not compute.
        MissingPackage: the runtime is not installed.
        ExportError: it cannot take the network.
    """
    if networks < TOGETHER:
        raise ConfigError(f"latency is modelled from {TOGETHER} networks or more, got {networks}")
    if graph.precisions and device.runtime not in IN_8_BITS:
        raise ConfigError(f"{device.runtime} computes in float32: bits are measured on {' and '.join(IN_8_BITS)}")
    example = graph.example if example_inputs is None else example_inputs
    drawn = draw_widths(graph, networks, seed)
    words = device.words()
    record = _Record(file, {"device": words, "graph": timing_digest(graph), "seed": seed, "repeats": repeats})
    on_measured(len(record.taken))
    dense_session = prepared(network, example, device.runtime, (device.batch,), device.threads)
    while missing := [number for number in range(networks) if number not in record.taken]:
        numbers = missing[: TOGETHER - 1]
        sessions = {
            number: prepared(
                narrowed(network, graph, drawn[number]), example, device.runtime, (device.batch,), device.threads
            )
            for number in numbers
        }
        found = time_in_turn(sessions | {-1: dense_session}, example, device.batch, repeats)
        record.add({number: found[number].least for number in numbers}, found[-1].least)
        on_measured(len(record.taken))
    pairs, dense = [record.taken[number] for number in range(networks)], record.dense
    ratios = np.array([taken / beside for taken, beside in pairs])
    return LatencyModel.fitted(graph, drawn, (1e6 * dense * ratios).tolist(), words)


def draw_widths(graph: ChannelGraph, count: int, seed: int) -> Ints:
    """Widths to measure, (count, G): the dense ones first, and then others of all sizes.

    Of a graph that knows of branches, half of the others are without some. Of one with layers that can have fewer
    bits, some of these have.
    """
    draw, sizes = np.random.default_rng(seed), graph.sizes
    drawn = [sizes]
    while len(drawn) < count:
        shares = draw.uniform(0.1, 1.0) * np.exp(draw.normal(0.0, draw.uniform(0.0, 1.0), len(sizes)))
        widths = np.clip(np.rint(shares * sizes), 1, sizes)
        if len(drawn) % 2:
            widths = np.clip(np.rint(widths / 8) * 8, np.minimum(8, sizes), sizes)
        if graph.branches and len(drawn) % 4 in (1, 2):  # half of those of either kind without some branches
            share = draw.uniform()
            out = [number for number in range(len(graph.branches)) if draw.random() < share]
            widths = np.where(graph.gone(out), 0, widths)
        if graph.precisions:  # any share of the layers in fewer bits
            groups = [each.group for each in graph.precisions]
            lower = draw.random(len(groups)) < draw.uniform()
            widths[groups] = np.where(lower, draw.integers(1, sizes[groups]), sizes[groups])
        drawn.append(widths)
    return np.stack(drawn).astype(np.int64)


def narrowed(network: nn.Module, graph: ChannelGraph, widths: Ints) -> nn.Module:
    """The first channels of every group: which ones are kept does not change how long it takes."""
    keep = graph.keep_best(-np.arange(graph.n_channels, dtype=np.float64), widths)
    return slim(network, graph, keep, verify=False)


class _Record:
    """Milliseconds of each network, and of the unpruned one beside it; in a file of lines, where one is named.

    Several processes may write to the file at a time: of lines on the same network the first counts.
    """

    def __init__(self, file: Path | None, header: dict[str, Any]) -> None:
        self._file, self.taken = file, dict[int, tuple[float, float]]()
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = _whole_lines(file)
            if lines:
                self._read(file, header, lines)
            else:
                file.write_text(json.dumps(header) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot keep measurements in {file}: {error.strerror}") from error

    def _read(self, file: Path, header: dict[str, Any], lines: list[str]) -> None:
        try:
            first, *rows = map(json.loads, lines)
            others = [key for key in header if first.get(key) != header[key]]
            for number, taken, beside in [] if others else rows:
                self.taken.setdefault(int(number), (float(taken), float(beside)))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} holds no measurements of latency: remove it, or name another") from error
        if others:
            differing = ", ".join(f"{key} {first.get(key)!r}" for key in others)
            raise ConfigError(f"{file} holds measurements of something else ({differing}): name another file")

    @property
    def dense(self) -> float:
        """Milliseconds of the unpruned network."""
        return float(np.median([beside for _, beside in self.taken.values()]))

    def add(self, taken: Mapping[int, float], beside: float) -> None:
        """Networks that took their turns together."""
        for number, own in taken.items():
            self.taken.setdefault(number, (own, beside))
        if self._file is not None:
            lines = "".join(json.dumps([number, own, beside]) + "\n" for number, own in taken.items())
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(lines)


def _whole_lines(file: Path) -> list[str]:
    """Of a file whose last line may have been cut short: it is taken off."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with whole_file(file) as partial:
            partial.write_text(whole, encoding="utf-8")
    return whole.splitlines()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
