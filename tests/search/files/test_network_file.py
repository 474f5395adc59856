"""The pruned network as a file: opened by anybody, in any process, without pickle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import espalier
from espalier.errors import ArtefactError
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import slim
from espalier.search.files.network_file import load, save
from espalier.search.files.tensor_files import digest, load_tensors, save_tensors

KWARGS: dict[str, Any] = {"in_channels": 1, "num_classes": 10}

OPEN_AND_RUN = """
import sys, torch, espalier
torch.set_num_threads(1)
network = espalier.load(sys.argv[1])
with torch.no_grad():
    torch.save(network(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])
assert not network.training
"""


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Module, dict[str, list[int]]]:
    """ResNet-20 with option-A shortcuts, each group without some of its channels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = build("resnet20", **KWARGS).train()
        dense(torch.randn(16, 1, 8, 8))
    graph = espalier.trace(dense.eval(), torch.zeros(1, 1, 8, 8))
    keep = torch.rand(graph.n_channels, generator=torch.Generator().manual_seed(0)) < 0.6
    keep[torch.from_numpy(graph.offsets[:-1])] = True
    assert (graph.widths(keep) < graph.sizes).all()
    return slim(dense, graph, keep), graph.kept_indices(keep)


@pytest.fixture
def path(tmp_path: Path, pruned: tuple[nn.Module, dict[str, list[int]]]) -> Path:
    network, kept = pruned
    save(network, tmp_path / "pruned.espalier", name="resnet20", kwargs=KWARGS, kept=kept, notes={"macs": 7})
    return tmp_path / "pruned.espalier"


def test_another_process_gets_the_same_outputs(
    path: Path, tmp_path: Path, pruned: tuple[nn.Module, dict[str, list[int]]]
) -> None:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.save(images, tmp_path / "images.pt")
    arguments = [str(path), str(tmp_path / "images.pt"), str(tmp_path / "outputs.pt")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", OPEN_AND_RUN, *arguments], check=True, cwd=tmp_path, env=environment)
    with torch.no_grad():
        expected = pruned[0].eval()(images)
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), expected)


def test_another_process_opens_a_network_without_some_branches(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = build("resnet20", **KWARGS).train()
        for _ in range(2):
            dense(torch.randn(16, 1, 8, 8))
        for module in dense.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.bias)
    graph = espalier.trace(dense.eval(), torch.zeros(1, 1, 8, 8), depth=True)
    widths = np.where(graph.gone([0, 3, 8]), 0, graph.sizes // 2)
    network = slim(dense, graph, graph.keep_best(np.zeros(graph.n_channels), widths))
    path, images = tmp_path / "pruned.espalier", torch.randn(4, 1, 8, 8)
    save(network, path, name="resnet20", kwargs=KWARGS)
    torch.save(images, tmp_path / "images.pt")
    arguments = [str(path), str(tmp_path / "images.pt"), str(tmp_path / "outputs.pt")]
    subprocess.run([sys.executable, "-c", OPEN_AND_RUN, *arguments], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), network(images))
    save(load(path), tmp_path / "again.espalier", name="resnet20", kwargs=KWARGS)
    assert (tmp_path / "again.espalier").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "removed",
    [
        ["layer1.0.conv1"],
        {"layer9.conv1": {"sizes": [1]}},
        {"layer1.0.conv1": 3},
        {"layer1.0.conv1": {"sizes": [1], "constant": "a.b"}},
        {"layer1.0.conv1": {"sizes": [1], "constant": "forward"}},
        {"layer1.0.conv1": {"sizes": [1]}},
    ],
)
def test_what_is_taken_out_must_be_of_the_network(path: Path, removed: Any) -> None:
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"removed": removed})
    with pytest.raises(ArtefactError, match=r"does not fit the network 'resnet20'") as caught:
        load(path)
    assert one_line(caught)


def test_the_network_is_of_its_class_and_narrow(path: Path, pruned: tuple[nn.Module, dict[str, list[int]]]) -> None:
    network = load(path)
    assert type(network) is type(build("resnet20"))
    assert [tuple(p.shape) for p in network.parameters()] == [tuple(p.shape) for p in pruned[0].parameters()]
    conv = network.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d) and conv.out_channels == conv.weight.shape[0] < 16


def test_it_can_be_trained_on(path: Path) -> None:
    network = load(path).train()
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_file_is_safetensors_with_a_json_header(
    path: Path, pruned: tuple[nn.Module, dict[str, list[int]]]
) -> None:
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["espalier"])
        assert set(file.keys()) >= set(pruned[0].state_dict())
    assert ["conv1", "out_channels", None, pruned[0].get_submodule("conv1").out_channels] in header.pop("integers")
    assert header == {
        "format": 1,
        "name": "resnet20",
        "kwargs": KWARGS,
        "kept": pruned[1],
        "notes": {"macs": 7},
    }
    length = int.from_bytes(path.read_bytes()[:8], "little")
    json.loads(path.read_bytes()[8 : 8 + length])


def one_line(caught: pytest.ExceptionInfo[ArtefactError]) -> bool:
    return "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 5, 200, -1, -1000])
def test_a_truncated_file(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtefactError, match=r"^cannot read .*pruned.espalier: ") as caught:
        load(path)
    assert one_line(caught)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"^cannot read .*none.espalier: ") as caught:
        load(tmp_path / "none.espalier")
    assert one_line(caught)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"^cannot read "):
        load(tmp_path)


def test_safetensors_of_somebody_elses(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtefactError, match=r"other.safetensors was not written by espalier"):
        load(tmp_path / "other.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "broken.safetensors", metadata={"espalier": "{no json"})
    with pytest.raises(ArtefactError, match=r"^cannot read .*broken.safetensors: ") as caught:
        load(tmp_path / "broken.safetensors")
    assert one_line(caught)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 2}, r"has format 2; this espalier reads format 1"),
        ({}, r"has format None; this espalier reads format 1"),
        ([1], r"has format None; this espalier reads format 1"),
        ({"format": 1}, r"does not name a network and its arguments"),
        ({"format": 1, "name": "resnet20", "kwargs": {}}, r"does not fit the network 'resnet20': .* differ"),
        ({"format": 1, "name": "nowhere:none", "kwargs": {}}, r"cannot be built here: .*nowhere"),
        ({"format": 1, "name": "resnet20", "kwargs": {"dpeth": 3}}, r"cannot be built here: .*dpeth"),
    ],
    ids=str,
)
def test_a_header_that_cannot_be_followed(tmp_path: Path, header: Any, message: str) -> None:
    save_tensors(tmp_path / "x.espalier", {"weight": torch.zeros(3)}, header)
    with pytest.raises(ArtefactError, match=message) as caught:
        load(tmp_path / "x.espalier")
    assert one_line(caught)


def test_writing_leaves_no_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "x", {"a": torch.ones(2)}, {"n": 1})

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "x", {"a": torch.zeros(2)}, {"n": 2})
    tensors, header = load_tensors(tmp_path / "x")
    assert header == {"n": 1} and torch.equal(tensors["a"], torch.ones(2))


def test_tensors_that_share_memory_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "x", {"a": base, "b": base.T, "c": base[0]}, {})
    tensors, _ = load_tensors(tmp_path / "x")
    assert torch.equal(tensors["b"], base.T) and torch.equal(tensors["c"], base[0])


def test_a_digest_tells_names_shapes_and_numbers_apart() -> None:
    plain = {"a": torch.arange(6.0), "b": torch.ones(2)}
    others = [
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.arange(6.0).double(), "b": torch.ones(2)},
        {"a": torch.arange(6.0)},
    ]
    assert len({digest(tensors) for tensors in [plain, *others]}) == 6
    assert digest(dict(reversed(plain.items()))) == digest(plain)


class Heads(nn.Module):
    """Its number of heads is an attribute."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v
        logits: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return logits


def test_attributes_that_count_channels_are_written_and_read(tmp_path: Path) -> None:
    dense, tokens = nn.Sequential(nn.Linear(16, 32), Heads(), nn.Linear(32, 10)).eval(), torch.randn(2, 9, 16)
    graph = espalier.trace(dense, tokens)
    heads = next(group.name for group in graph.groups if group.size == 4)
    smaller = slim(dense, graph, {heads: [0, 2]})
    save(smaller, tmp_path / "heads.espalier", name="mine:network")
    assert torch.equal(load(tmp_path / "heads.espalier", dense)(tokens), smaller(tokens))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([nn.Linear(16, 32), Heads(), nn.Linear(32, 10)], ""),
        ([nn.Linear(16, 48), Heads(), nn.Linear(32, 10)], r"0.weight had the shape \(32, 16\), and has \(48, 16\)"),
    ],
)
def test_another_dense_network_of_the_class_is_refused(
    other: list[nn.Module], message: str, tmp_path: Path
) -> None:
    """Its slices would fit, and it would compute something else."""
    dense = nn.Sequential(nn.Linear(16, 32), Heads(), nn.Linear(32, 10)).eval()
    graph = espalier.trace(dense, torch.randn(2, 9, 16))
    heads = next(group.name for group in graph.groups if group.size == 4)
    path, given = tmp_path / "heads.espalier", nn.Sequential(*other)
    save(slim(dense, graph, {heads: [0, 2]}), path, name="mine:network", dense=dense)
    if message:
        with pytest.raises(ArtefactError, match=message):
            load(path, given)
        return
    assert isinstance(load(path, given), nn.Sequential)
    with pytest.warns(UserWarning, match=r"1.heads was 4, and is 8 here"):
        load(path, nn.Sequential(nn.Linear(16, 32), Heads(8), nn.Linear(32, 10)))


def test_what_makes_the_network_may_fail(path: Path) -> None:
    def broken(config: str) -> nn.Module:
        raise AssertionError(config)

    with pytest.raises(ArtefactError, match=r"network cannot be copied or made: TypeError: .*missing 1 required"):
        load(path, broken)  # type: ignore[arg-type]


def test_what_a_network_has_noted_as_it_ran_is_not_asked_of_the_dense_one(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    dense[0].seen = None  # type: ignore[assignment]
    smaller = slim(dense, espalier.trace(dense, torch.randn(1, 4)), {"0": [1, 2]})
    smaller[0].seen, smaller[1].shape = 3, torch.Size([1, 4])  # type: ignore[index]
    save(smaller, tmp_path / "noted.espalier", name="mine:network")
    assert load(tmp_path / "noted.espalier", dense)[0].seen is None  # type: ignore[index]


def test_a_name_that_could_not_be_built_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"^'resnet21' is no network that `load` could build: "):
        save(nn.Linear(2, 2), tmp_path / "no.espalier", name="resnet21")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_wrapped_to_train_on_several_devices(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    trained = network()
    save(nn.DataParallel(trained), tmp_path / "parallel.espalier", name="mine:network")
    for given in (network, lambda: nn.DataParallel(network())):
        found = load(tmp_path / "parallel.espalier", given)
        assert type(found) is nn.Sequential and torch.equal(found(torch.ones(1, 3)), trained(torch.ones(1, 3)))
