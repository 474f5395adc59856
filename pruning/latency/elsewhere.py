"""Latency of a device without espalier: pruned networks as ONNX files, and the times that come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from espalier.errors import ConfigError
from espalier.persistence import whole_file
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.latency.features import timing_digest
from espalier.pruning.latency.measuring import NETWORKS, TOGETHER, draw_widths, narrowed
from espalier.pruning.latency.model import LatencyModel
from espalier.pruning.runtimes.onnx_int8 import onnx_model

WIDTHS, TIMES = "widths.json", "times.json"


def write_networks(
    network: nn.Module,
    graph: ChannelGraph,
    folder: Path,
    *,
    networks: int = NETWORKS,
    batch: int = 1,
    seed: int = 0,
    on_written: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes pruned networks, the unpruned one first, and a script that times them; goes on where it stopped.

    Args:
        network: the dense network; left as it is.
        graph: its channel graph.
        folder: for ``000.onnx`` and so on, ``widths.json`` and ``time_onnx.py``.
        networks: how many.
        batch: examples of a pass.
        seed: of what is drawn.
        on_written: told how many are there.

    Raises:
        ConfigError: the folder holds networks of something else, or cannot be written to.
        MissingPackage: onnx is not installed.
        ExportError: ONNX cannot hold the network.
    """
    if networks < TOGETHER:
        raise ConfigError(f"latency is modelled from {TOGETHER} networks or more, got {networks}")
    drawn = draw_widths(graph, networks, seed)
    content = {"graph": timing_digest(graph), "batch": batch, "widths": drawn.tolist()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / WIDTHS).exists() and _read(folder / WIDTHS, *content) != content:
            raise ConfigError(f"{folder} holds networks of something else: name another folder")
        with whole_file(folder / WIDTHS) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("time_onnx.py"), folder / "time_onnx.py")
        for number, widths in enumerate(drawn):
            file = folder / f"{number:03}.onnx"
            if not file.exists():
                model = onnx_model(narrowed(network, graph, widths), graph.example, batch)
                with whole_file(file) as partial:
                    partial.write_bytes(model.SerializeToString())
            on_written(number + 1)
    except OSError as error:
        raise ConfigError(f"cannot write networks into {folder}: {error.strerror}") from error


def fit_times(graph: ChannelGraph, folder: Path) -> LatencyModel:
    """The model of the device that timed the networks of a folder.

    Raises:
        ConfigError: there are no times, or they are of another network.
    """
    wanted, times = _read(folder / WIDTHS, "graph", "widths"), _read(folder / TIMES, "device", "milliseconds")
    if wanted["graph"] != timing_digest(graph):
        raise ConfigError(f"{folder} holds networks of another one than this config's")
    try:
        taken = {int(name.removesuffix(".onnx")): float(value) for name, value in times["milliseconds"].items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / TIMES} must give milliseconds by the names of the files ({error})") from error
    drawn = np.array(wanted["widths"])
    known = sorted(number for number in taken if 0 <= number < len(drawn) and taken[number] > 0)
    if len(known) < TOGETHER or known[0] != 0:
        raise ConfigError(
            f"{folder / TIMES} must time {TOGETHER} networks or more, the unpruned one 000.onnx among them, got "
            f"{len(known)}"
        )
    return LatencyModel.fitted(graph, drawn[known], [1e6 * taken[number] for number in known], str(times["device"]))


def _read(file: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {key: content[key] for key in keys}
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged, or not what espalier or time_onnx.py wrote ({error!r})") from error
