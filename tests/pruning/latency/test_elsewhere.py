"""A device without espalier: networks go there as ONNX files, and times come back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.latency.elsewhere import fit_times, write_networks
from espalier.pruning.latency.features import timing_digest

pytest.importorskip("onnxruntime")


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return espalier.trace(small(), torch.zeros(1, 16))


@pytest.fixture(scope="module")
def folder(graph: ChannelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("device") / "networks"
    write_networks(small(), graph, found, networks=8)
    return found


def test_networks_are_timed_by_a_script_that_knows_nothing_of_espalier(graph: ChannelGraph, folder: Path) -> None:
    assert sorted(file.name for file in folder.glob("*.onnx")) == [f"{number:03}.onnx" for number in range(8)]
    script = folder / "time_onnx.py"
    assert "import espalier" not in script.read_text() and "from espalier" not in script.read_text()
    (folder / "times.json").unlink(missing_ok=True)
    command = [sys.executable, "-I", str(script), str(folder), "--repeats", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".onnx") == 8
    model = fit_times(graph, folder)
    assert model.measured == 8 and model.device.startswith("onnxruntime ")
    assert model.on(graph).latency(graph.sizes) > 0
    times = json.loads((folder / "times.json").read_text())
    del times["milliseconds"]["005.onnx"]
    (folder / "times.json").write_text(json.dumps(times))
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.count(".onnx") == 1 and "005.onnx" in again.stdout  # what is there is not timed again


def test_writing_goes_on_where_it_stopped(graph: ChannelGraph, tmp_path: Path) -> None:
    folder, told = tmp_path / "networks", list[int]()
    write_networks(small(), graph, folder, networks=8)
    kept = (folder / "003.onnx").stat().st_mtime_ns
    (folder / "004.onnx").unlink()
    write_networks(small(), graph, folder, networks=8, on_written=told.append)
    assert (folder / "003.onnx").stat().st_mtime_ns == kept and (folder / "004.onnx").exists()
    assert told == list(range(1, 9))
    with pytest.raises(ConfigError, match="holds networks of something else"):
        write_networks(small(), graph, folder, networks=8, seed=1)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (None, r"cannot read .*times.json"),
        ("{", "is damaged"),
        ({"device": "a"}, "is damaged"),
        ({"device": "a", "milliseconds": {"000.onnx": 1.0}}, "must time 8 networks or more"),
        ({"device": "a", "milliseconds": {"first": 1.0}}, "must give milliseconds by the names of the files"),
        ({"device": "a", "milliseconds": {f"{n:03}.onnx": 1.0 for n in range(1, 9)}}, "must time 8 networks"),
    ],
)
def test_times_that_are_none(graph: ChannelGraph, tmp_path: Path, times: object, message: str) -> None:
    widths = np.tile(graph.sizes, (9, 1)).tolist()
    (tmp_path / "widths.json").write_text(json.dumps({"graph": timing_digest(graph), "batch": 1, "widths": widths}))
    if times is not None:
        (tmp_path / "times.json").write_text(times if isinstance(times, str) else json.dumps(times))
    with pytest.raises(ConfigError, match=message):
        fit_times(graph, tmp_path)


def test_times_of_another_network_are_refused(graph: ChannelGraph, tmp_path: Path) -> None:
    content = {"graph": "other", "batch": 1, "widths": [graph.sizes.tolist()]}
    (tmp_path / "widths.json").write_text(json.dumps(content))
    (tmp_path / "times.json").write_text(json.dumps({"device": "a", "milliseconds": {}}))
    with pytest.raises(ConfigError, match="networks of another one than this config's"):
        fit_times(graph, tmp_path)
