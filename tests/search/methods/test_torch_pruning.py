"""Torch-Pruning as a method: what it cut is fine-tuned, within the budget, from the network that it trained."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier import slim, trace
from espalier.errors import MissingPackage
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.networks.cifar_resnet import CifarResNet
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec, numpy_state
from espalier.search.methods import METHODS, Choice, Material, choose
from espalier.search.methods.method import CHANNEL_SCORES
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.task import Stage
from tests.search.watched import FailingTask, SeveralProcesses

NAMES = ("torch_pruning", "torch_pruning_dense")


def material_of(
    network: nn.Module, graph: ChannelGraph, spec: EvaluationSpec, splits: Splits, out: Path, keep: float = 0.5
) -> Material:
    channel_scores = [channel_energies(network, graph).double().numpy()]
    space = Multipliers(
        graph,
        channel_scores,
        normalization="searched",
        budget=int(keep * int(graph.macs(graph.sizes))),
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )
    own = EvaluationSpec.of(graph, [network], channel_scores, spec.scoring, spec.execution, proxy="recalibrated")
    task = ClassificationTask(splits, {"regularized": Recipe(epochs=2, batch_size=16, lr=0.05)}, 48)
    return Material(
        spec=own,
        unseen=own,
        spaces={"half": space},
        baselines={},
        baseline_seconds={},
        channel_scores={},
        trials=10,
        measure=MEASURES["top1"],
        proxies=("recalibrated",),
        share=0.25,
        wanted=2,
        storage="",
        study="s",
        out=out,
        configs={},
        attributes={},
        dense=numpy_state(network),
        training=(task, Stage("regularized", 2)),
    )


@pytest.fixture(autouse=True)
def torch_pruning(request: pytest.FixtureRequest) -> None:
    if "must_be_installed" not in request.node.name:
        pytest.importorskip("torch_pruning")


@pytest.fixture
def material(
    network: nn.Module, graph: ChannelGraph, spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> Material:
    return material_of(network, graph, spec, splits, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_chose_is_within_the_budget_and_not_far_below(name: str, material: Material) -> None:
    found = choose(material, (name, "half", 0))
    assert isinstance(found, Choice), found
    graph, budget = material.spec.graph, material.spaces["half"].budget
    widths = np.array(found.candidate.widths)
    assert budget.fits(graph, widths) and graph.macs(widths) > 0.35 * graph.macs(graph.sizes)
    assert Choice.from_json(found.to_json()) == found and 0 <= found.score.measures["top1"] <= 100


def test_it_keeps_the_channels_of_greatest_norm_in_a_chain(
    tmp_path: Path, spec: EvaluationSpec, splits: Splits
) -> None:
    """Here the norms of those that write a group are far apart."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    layers: Any = network
    with torch.no_grad():
        layers[2].weight *= torch.linspace(1, 30, 8)[torch.randperm(8)].view(-1, 1, 1, 1)
    network.eval()
    graph = trace(network, torch.zeros(1, 1, 8, 8))
    material = material_of(network, graph, spec, splits, tmp_path)
    found = METHODS["torch_pruning_dense"].choose(material, "half", 0)
    own = material.spec_of(found)
    kept = own.keep(found.candidate).numpy()
    norms = layers[2].weight.flatten(1).norm(dim=1).detach().numpy()
    inside = kept[graph.offsets[1] :]
    assert 0 < inside.sum() < 8 and norms[inside].min() > norms[~inside].max()


def test_the_network_that_it_trained_is_cut(material: Material, network: nn.Module) -> None:
    found = METHODS["torch_pruning"].choose(material, "half", 0)
    assert found.tensors is not None and not (material.out / found.network).exists()
    trained = next(tensor for name, tensor in found.tensors.items() if name != CHANNEL_SCORES)
    assert not any(torch.equal(trained, parameter) for parameter in network.parameters())
    own = material.spec_of(found)
    whole = CandidateNetworks(own).whole(0)
    expected = slim(whole, own.graph, own.keep(found.candidate))
    inputs = torch.randn(3, 1, 8, 8)
    again = CandidateNetworks(own).cut(found.candidate)
    with torch.no_grad():
        assert torch.allclose(again(inputs), expected(inputs), atol=1e-5)
    kept = found.kept_in(material.out)
    assert kept.tensors is None and kept == found
    assert all(map(np.array_equal, material.spec_of(kept).ranks, own.ranks))
    files = sorted((material.out / "peers").iterdir())
    assert len(files) == 2 and not any("partial" in file.name for file in files)
    assert replace(METHODS["torch_pruning"].choose(material, "half", 0), score=found.score) == found
    assert sorted((material.out / "peers").iterdir()) == files


def test_another_recipe_is_another_training(material: Material, splits: Splits) -> None:
    first = METHODS["torch_pruning"].choose(material, "half", 0)
    assert material.training is not None
    task, stage = material.training
    task.recipes = {"regularized": Recipe(epochs=2, batch_size=16, lr=0.3)}  # type: ignore[attr-defined]
    assert METHODS["torch_pruning"].choose(material, "half", 0).network != first.network
    several = SeveralProcesses(splits, {"regularized": Recipe(epochs=2, batch_size=16, lr=0.3)}, 48)
    found = choose(replace(material, training=(several, stage)), ("torch_pruning", "half", 0))
    assert found == "Torch-Pruning's sparse training takes one process: set training.processes to 1"


def test_a_training_that_fails_is_one_methods_failure(material: Material, splits: Splits) -> None:
    assert material.training is not None
    _, stage = material.training
    failing = FailingTask(splits, {"regularized": Recipe(epochs=2, batch_size=16, lr=0.05)}, 48)
    found = choose(replace(material, training=(failing, stage)), ("torch_pruning", "half", 0))
    assert isinstance(found, str) and "sparse training failed: ZeroDivisionError: no images" in found


def test_streams_that_it_breaks_stay_whole(tmp_path: Path, spec: EvaluationSpec, splits: Splits) -> None:
    """Padded shortcuts: its network would run, and compute something else."""
    torch.manual_seed(0)
    network = CifarResNet(depth=8, width=8, in_channels=1, num_classes=4).eval()
    graph = trace(network, torch.zeros(1, 1, 8, 8))
    found = METHODS["torch_pruning_dense"].choose(material_of(network, graph, spec, splits, tmp_path), "half", 0)
    for group, width in zip(graph.groups, found.candidate.widths, strict=True):
        writers = sum(member.role == "out" for member in group.members)
        assert writers == 1 or width == group.size
    assert any(width < group.size for group, width in zip(graph.groups, found.candidate.widths, strict=True))


def test_a_budget_that_it_cannot_reach_is_one_methods_failure(
    tmp_path: Path, spec: EvaluationSpec, splits: Splits
) -> None:
    torch.manual_seed(0)
    network = CifarResNet(depth=8, width=8, in_channels=1, num_classes=4).eval()
    graph = trace(network, torch.zeros(1, 1, 8, 8))
    material = material_of(network, graph, spec, splits, tmp_path, keep=0.1)
    assert choose(material, ("torch_pruning_dense", "half", 0)) == "Torch-Pruning does not reach the budget"


def test_a_comparison_sets_it_beside_greedy(tiny: dict[str, Any], tmp_path: Path) -> None:
    content = tiny | {"compare": {"methods": ["greedy", *NAMES], "seeds": 1}, "finetune": {"epochs": 0.5}}
    found = compare(parse_config(content, "tiny"), name="c", out=tmp_path / "out", command="").comparison
    assert not found.failures
    cells = {cell.method: cell for cell in found.cells}
    assert set(cells) == {"greedy", *NAMES}
    assert all(0 < cell.kept <= found.cells[0].kept + 0.01 and cell.after is not None for cell in found.cells)
    again = compare(parse_config(content, "tiny"), name="c", out=tmp_path / "out", command="").comparison
    assert again.cells == found.cells
    shutil.rmtree(tmp_path / "out" / "peers")
    shutil.rmtree(tmp_path / "out" / "compare" / "cells")
    once_more = compare(parse_config(content, "tiny"), name="c", out=tmp_path / "out", command="").comparison
    assert not once_more.failures and [cell.after for cell in once_more.cells] == [
        cell.after for cell in found.cells
    ]
    assert all(strength > 0 for own in found.strengths.values() for strength in own)


def test_it_must_be_installed(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    content = tiny | {"compare": {"methods": ["greedy", NAMES[0]]}}
    with pytest.raises(MissingPackage, match=r"pip install 'espalier\[peers\]'"):
        compare(parse_config(content, "tiny"), name="c", out=tmp_path / "out", command="")
    assert not (tmp_path / "out" / "ladder").exists()
