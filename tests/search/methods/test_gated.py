"""Gates as methods: trained once within any task, resumed where they were stopped, within the budget."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier import GATES, FunctionTask
from espalier.errors import ConfigError, StudyMismatch
from espalier.pruning.gates.gates import HardConcrete
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.slimming.surgery import mask
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.files.tensor_files import load_tensors
from espalier.search.methods import METHODS, Choice, Material, choose, method_named
from espalier.search.methods.method import CHANNEL_SCORES
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.task import Stage
from tests.search.methods.test_torch_pruning import material_of
from tests.search.watched import FailingTask, SeveralProcesses, hasten


class Own(HardConcrete):
    """A user's."""

    rate = 0.2


@pytest.fixture
def material(
    network: nn.Module, graph: ChannelGraph, spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> Material:
    return material_of(network, graph, spec, splits, tmp_path)


@pytest.mark.parametrize("name", [*GATES, f"{__name__}:Own"])
def test_what_it_chose_fills_the_budget_from_its_own_network(name: str, material: Material) -> None:
    found = choose(material, (name, "half", 0))
    assert isinstance(found, Choice), found
    space = material.spaces["half"]
    widths = np.array(found.candidate.widths)
    more = widths + np.eye(len(widths), dtype=np.int64)
    assert space.budget.fits(space.graph, widths)
    assert not space.budget.fits(space.graph, more)[widths < space.graph.sizes].any()
    assert Choice.from_json(found.to_json()) == found and 0 <= found.score.measures["top1"] <= 100
    own = material.spec_of(found)
    whole = CandidateNetworks(own).whole(0)
    small = espalier.slim(whole, own.graph, own.keep(found.candidate))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():  # what was left out is zero already
        assert torch.allclose(small(images), whole(images), atol=1e-4)
    files = [file.name for file in (material.out / "peers").iterdir()]
    assert len(files) == 1 and files[0].startswith("gated-") and "partial" not in files[0]
    again = choose(material, (name, "half", 0))  # read, not trained
    assert isinstance(again, Choice) and replace(again, seconds=found.seconds, score=found.score) == found


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_that_was_killed_ends_as_it_would_have(
    name: str, ema: float, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert material.training is not None
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05, ema=ema)
    task, stage = material.training
    assert isinstance(task, ClassificationTask)
    task.recipes = {"regularized": recipe}
    hasten(monkeypatch)

    class Dying(ClassificationTask):
        def train(self, *network: Any, **how: Any) -> None:
            super().train(*network, **how, on_step=dies)

    def dies(step: int, _: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    def ended(out: Path, task: ClassificationTask = task) -> dict[str, Tensor]:
        found = choose(replace(material, out=out, training=(task, stage)), (name, "half", 0))
        assert isinstance(found, Choice)
        (file,) = (out / "peers").iterdir()
        return load_tensors(file)[0]

    whole = ended(material.out / "whole")
    with pytest.raises(KeyboardInterrupt):
        ended(material.out / "killed", Dying(task.splits, task.recipes, 48))
    assert [file.name.endswith(".partial.safetensors") for file in (material.out / "killed/peers").iterdir()] == [
        True
    ]
    resumed = ended(material.out / "killed")
    assert whole.keys() == resumed.keys() and CHANNEL_SCORES in whole
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_frozen_weights_are_those_of_the_dense_network(material: Material, network: nn.Module) -> None:
    found = METHODS["bottleneck"].choose(material, "half", 0)
    space, tensors = material.spaces["half"], dict(found.tensors or {})
    keep = tensors.pop(CHANNEL_SCORES) > 0
    wanted = mask(network, space.graph, keep)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in wanted.state_dict().items())
    assert 0 < int(keep.sum()) < len(keep)


def test_other_peoples_loops_are_trained_in_too(material: Material, splits: Splits) -> None:
    """A task that does not tell its steps."""
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def train(network: nn.Module, *, epochs: float, seed: int) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), 0.01)
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network.train()(images), torch.arange(32) % 4).backward()
            optimizer.step()

    task = FunctionTask(score=lambda network: 0.0, train=train, example_inputs=images[:1])
    found = choose(replace(material, training=(task, Stage("regularized", 2))), ("hard_concrete", "half", 0))
    assert isinstance(found, Choice), found
    assert material.spaces["half"].budget.fits(material.spec.graph, np.array(found.candidate.widths))


def test_what_fails_is_one_methods_failure(material: Material, splits: Splits) -> None:
    assert material.training is not None
    _, stage = material.training
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05)
    several = SeveralProcesses(splits, {"regularized": recipe}, 48)
    assert choose(replace(material, training=(several, stage)), ("hard_concrete", "half", 0)) == (
        "hard_concrete takes one process: set training.processes to 1"
    )
    failing = FailingTask(splits, {"regularized": recipe}, 48)
    found = choose(replace(material, training=(failing, stage)), ("hard_concrete", "half", 0))
    assert isinstance(found, str)
    assert found.startswith("the training with hard_concrete failed: ZeroDivisionError: no images")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no.such.module:Gate", r"a method must be package.module:name, got 'no.such.module:Gate' \(No module"),
        ("math:tau", "a method of your own must be an espalier.Gate, and math:tau is a float"),
        ("torch.nn:Identity", "and torch.nn:Identity is a Identity"),
        (
            "espalier:Gate",
            r"^a method: espalier:Gate\(\) raised TypeError: .* abstract .*; it is made without arguments$",
        ),
        ("torch.nn:Linear", r"^a method: torch.nn:Linear\(\) raised TypeError: .* missing 2 .*in_features"),
    ],
)
def test_what_is_no_gate_is_refused_before_anything_is_trained(name: str, match: str) -> None:
    method = method_named(name)
    assert method is not None
    with pytest.raises(ConfigError, match=match):
        method.check()


def settings(methods: list[str]) -> dict[str, Any]:
    return {
        "model": {"name": "resnet20", "kwargs": {"width": 4, "in_channels": 1, "num_classes": 10}},
        "data": {"name": "digits", "search_images": 0.3, "train_images": 200},
        "training": {"epochs": 1, "batch_size": 32},
        "regularizer": {"strengths": [0.0], "epochs": 1},
        "budget": {"keep": 0.5},
        "search": {"scoring_images": 64, "calibration_images": 64},
        "finetune": {"epochs": 0.5, "batch_size": 32, "selection_seeds": 1},
        "compare": {"methods": methods, "baseline": "greedy", "seeds": 1, "trials": 3},
        "workers": 0,
    }


def test_it_is_compared_beside_the_others(tmp_path: Path) -> None:
    own = f"{__name__}:Own"
    config = parse_config(settings(["greedy", "bottleneck", own]), "here")
    found = compare(config, name="gates", out=tmp_path, command="here").comparison
    assert not found.failures and {cell.method for cell in found.cells} == {"greedy", "bottleneck", own}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "getsource", lambda _: "another one")
        with pytest.raises(StudyMismatch, match=rf"other settings: the code of {own} is not the same any more"):
            compare(config, name="gates", out=tmp_path, command="here")
    dense = found.dense.macs
    assert all(0.45 * dense < cell.macs <= 0.5 * dense for cell in found.cells)
    with pytest.raises(ConfigError, match="unknown name 'hard_concret', did you mean 'hard_concrete'"):
        parse_config(settings(["greedy", "hard_concret"]), "here")
    with pytest.raises(ConfigError, match="unknown name 'given'"):
        parse_config(settings(["greedy", "given"]), "here")
