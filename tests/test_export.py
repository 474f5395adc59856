"""``espalier export``, and what a search gives to export."""

from __future__ import annotations

import subprocess
import venv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.errors import ConfigError
from espalier.pruning.networks import CifarResNet
from espalier.pruning.runtimes import read_metadata
from espalier.search.run import exporting
from espalier.search.run.search_widths import Found
from tests.command_line import Command, command_of

pytest.importorskip("onnxruntime")

CONFIG = """
model:
  name: espalier.pruning.networks:CifarResNet
  kwargs: {depth: 8, width: 4, in_channels: 1}
data: {name: digits, search_images: 300, train_images: 256}
budget: {keep: 0.5}
"""
OWN = """
import torch, espalier
from torch import nn

def network(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def task(batches=True):
    draw = torch.Generator().manual_seed(0)
    given = {"batches": [torch.randn(40, 4, generator=draw)]} if batches else {}
    made = espalier.FunctionTask(lambda net: 0.0, **given)
    return made.on(torch.zeros(1, 4), network())
"""
NETWORK = {"name": "espalier.pruning.networks:CifarResNet", "kwargs": {"depth": 8, "width": 4, "in_channels": 1}}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``espalier export ARGUMENTS`` in a folder of its own: exit code, and what it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_export.py").write_text(OWN)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "own.yaml").write_text(
        "model: {name: 'own_export:network'}\ntask: {name: 'own_export:task'}\nbudget: {keep: 0.5}\n"
        "training: {epochs: 0}\nregularizer: {epochs: 0}\nfinetune: {epochs: 0}\n"
    )

    return partial(command_of(monkeypatch, capfd), "export")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A file as of 0.1, that says the shape of its images."""
    network = CifarResNet(**NETWORK["kwargs"]).eval()  # type: ignore[arg-type]
    notes = {"image_shape": [1, 8, 8], "macs": 7, "study": "mine", "seed": 0}
    espalier.save(network, tmp_path / "pruned.espalier", **NETWORK, notes=notes)  # type: ignore[arg-type]
    return tmp_path / "pruned.espalier"


def test_a_file_of_a_search_becomes_one_of_onnx(command: Command, pruned: Path) -> None:
    code, out, err = command("pruned.espalier", "out.onnx")
    assert (code, err) == (0, "") and len(out.splitlines()) == 1
    assert out.startswith("out.onnx: ") and "takes any number of examples; run by onnxruntime" in out
    assert "with 1 and 4 examples outputs differ by" in out or "outputs are the same" in out
    metadata = read_metadata(pruned.parent / "out.onnx")
    assert metadata["study"] == "mine" and metadata["macs"] == 7 and metadata["widths"]["conv1"] == 4
    assert "seed" not in metadata


def test_options_reach_the_export(command: Command, pruned: Path) -> None:
    assert "takes 2 examples a pass" in command("pruned.espalier", "out.pt2", "--batch", "2")[1]
    assert "with 1 and 4 examples" in command("pruned.espalier", "out.safetensors", "--input-shape", "1,16,16")[1]


@pytest.mark.parametrize("how", ["config", ".pt", ".npz"])
def test_8_bits(how: str, command: Command, pruned: Path, tmp_path: Path) -> None:
    images = torch.randn(40, 1, 8, 8)
    if how == ".pt":
        torch.save(images, tmp_path / "inputs.pt")
    if how == ".npz":
        np.savez(tmp_path / "inputs.npz", x=images.numpy())
    given = ("--config", "config.yaml") if how == "config" else ("--calibrate", f"inputs{how}")
    code, out, _ = command("pruned.espalier", "out.onnx", "--int8", *given)
    assert code == 0 and "in 8 bits: top-1 agrees on" in out and "relative error" in out


def test_held_out_images_of_the_task_calibrate(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """And those of a task of one's own: its batches."""
    from espalier.search.config.loading import load_config
    from espalier.search.run.prepare import task_of

    network = CifarResNet(**NETWORK["kwargs"]).eval()  # type: ignore[arg-type]
    (held_out,) = exporting.calibration_of(task_of(load_config("config.yaml")), network)
    assert isinstance(held_out, Tensor) and held_out.shape == (300, 1, 8, 8)
    monkeypatch.syspath_prepend(".")
    own = task_of(load_config("own.yaml"))
    assert [each.shape for each in exporting.calibration_of(own, nn.Linear(4, 3)) if isinstance(each, Tensor)] == [
        (40, 4)
    ]
    own = task_of(load_config("own.yaml", ["task.kwargs.batches=false"]))
    with pytest.raises(ConfigError, match="the task has no inputs to calibrate 8 bits by: give --calibrate FILE"):
        exporting.calibration_of(own, nn.Linear(4, 3))


def test_a_network_that_is_not_built_in_is_named(command: Command, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    espalier.save(network, tmp_path / "own.espalier", name="own_export:network")
    code, _, err = command("own.espalier", "out.onnx")
    assert code == 2 and "nothing is imported on a file's word: give --network package.module:callable" in err
    code, _, err = command("own.espalier", "out.onnx", "--network", "own_export:network")
    assert code == 2 and "holds no example of what the network takes: give --input-shape" in err
    for given in (("--input-shape", "4"), ("--config", "own.yaml")):
        code, out, err = command("own.espalier", "out.onnx", "--network", "own_export:network", *given)
        assert (code, err) == (0, "") and "run by onnxruntime" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.espalier", "out.onnx"], "cannot read nowhere.espalier"),
        (["pruned.espalier", "out.tflite"], "ends in .onnx, .pt2, .xml, .safetensors, got 'out.tflite'"),
        (["pruned.espalier", "out.onnx", "--batch", "0"], "batch must be a whole number from 1"),
        (["pruned.espalier", "out.onnx", "--batch", "many"], "--batch must be a whole number from 1, or dynamic"),
        (["pruned.espalier", "out.onnx", "--opset", "3"], "opset must be a whole number from 18 to"),
        (["pruned.espalier", "out.onnx", "--int8"], "--int8 needs inputs to calibrate by: --calibrate FILE, or"),
        (["pruned.espalier", "out.onnx", "--calibrate", "inputs.pt"], "--calibrate is for --int8"),
        (["pruned.espalier", "out.onnx", "--int8", "--calibrate", "nowhere.pt"], "cannot read nowhere.pt: "),
        (["pruned.espalier", "out.onnx", "--int8", "--calibrate", "broken.npz"], "cannot read broken.npz"),
        (["pruned.espalier", "out.onnx", "--int8", "--calibrate", "broken.pt"], "cannot read broken.pt"),
        (["pruned.espalier", "out.onnx", "--int8", "--calibrate", "config.yaml"], "takes a .pt or .npz file"),
        (["pruned.espalier", "out.onnx", "--int8", "--calibrate", "number.pt"], "number.pt holds something else"),
        (
            ["pruned.espalier", "out.onnx", "--int8", "--calibrate", "shape.pt"],
            "does not run on the calibration inputs",
        ),
        (["pruned.espalier", "out.onnx", "--input-shape", "1,x"], "--input-shape is that of one example, such as"),
        (
            ["pruned.espalier", "out.onnx", "--input-shape", "3,8,8"],
            "does not run on the example inputs: layer conv1 (Conv2d)",
        ),
        (["pruned.espalier", "out.onnx", "--tolerance", "2"], "tolerance must lie between 0 and 1"),
        (["pruned.espalier", "out.onnx", "--network", "nowhere:x"], "importing nowhere failed"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, command: Command, pruned: Path, tmp_path: Path
) -> None:
    torch.save(3, tmp_path / "number.pt")
    torch.save(torch.zeros(8, 5, 8, 8), tmp_path / "shape.pt")
    for name in ("broken.pt", "broken.npz"):
        (tmp_path / name).write_bytes(b"no tensors")
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


def test_what_a_search_found_is_exported(tmp_path: Path) -> None:
    """Its file keeps an example of the inputs, named and mixed, so that it is exported without them later too."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, shift: Tensor, scale: float = 1.0) -> Tensor:
            y: Tensor = self.second(torch.relu(self.first(x)) + 0 * shift.sum(1, keepdim=True)) * scale
            return y

    torch.manual_seed(0)
    x = torch.randn(2, 4)
    inputs = {"x": x, "shift": torch.randn(2, 2), "scale": 2.0}
    found = espalier.search_widths(
        Mixed(),
        inputs,
        espalier.FunctionTask(lambda network: -float(network(**inputs).square().mean())),
        budget=espalier.Budget(macs=0.6),
        trials=3,
        workers=0,
        study="mixed",
        out=tmp_path / "run",
        progress=False,
    )
    done = found.export(tmp_path / "network.onnx")
    assert done.difference < 1e-5 and done.batches == (2, 1)
    metadata = read_metadata(tmp_path / "network.onnx")
    assert metadata["study"] == "mixed" and metadata["budget"] == found.result.budget
    assert metadata["widths"]["first"] == found.network.get_submodule("first").out_features
    again = exporting.example_of(Path(found.result.artefact))
    assert isinstance(again, dict) and again["scale"] == 2.0 and again["x"].tolist() == x.tolist()


def test_without_an_example_it_must_be_given(tmp_path: Path) -> None:
    network = nn.Linear(4, 3)
    assert exporting.example_note(object()) == {}  # type: ignore[arg-type]
    espalier.save(network, tmp_path / "own.espalier", name="own:network")
    result: Any = SimpleNamespace(artefact=str(tmp_path / "own.espalier"))
    with pytest.raises(
        ConfigError, match=r"own\.espalier holds no example of what the network takes: give example_in"
    ):
        Found(network, result).export(tmp_path / "own.pt2")
    done = Found(network, result).export(tmp_path / "own.pt2", example_inputs=torch.rand(2, 4), metadata={"a": 1})
    assert done.batches == (2, 1) and read_metadata(done.path)["a"] == 1


BARE = """
import sys, numpy, onnxruntime
assert "torch" not in sys.modules
session = onnxruntime.InferenceSession("network.onnx")
given = numpy.load("inputs.npy")
(found,) = session.run(None, {session.get_inputs()[0].name: given})
print(float(abs(found - numpy.load("outputs.npy")).max()))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bare_environment_runs_the_file(tmp_path: Path) -> None:
    """A venv with onnxruntime and numpy alone, which pip installs."""
    network, images = CifarResNet(depth=8, width=4, in_channels=1).eval(), torch.randn(5, 1, 8, 8)
    espalier.export(network, images[:1], tmp_path / "network.onnx")
    np.save(tmp_path / "inputs.npy", images.numpy())
    with torch.no_grad():
        np.save(tmp_path / "outputs.npy", network(images).numpy())
    venv.create(tmp_path / "bare", with_pip=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy"], check=True, cwd=tmp_path)
    packages = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    assert "torch" not in packages and "espalier" not in packages
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [python, "-c", BARE], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert float(done.stdout) < 1e-4
