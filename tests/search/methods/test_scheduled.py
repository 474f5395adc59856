"""Schedules as methods: a network of their own within the budget, chosen once, and told where they fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.slimming.surgery import slim
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec, numpy_state
from espalier.search.methods import METHODS, Choice, Material, choose
from espalier.search.methods.method import CHANNEL_SCORES
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.task import Stage
from espalier.search.training.lottery import Lottery
from espalier.search.training.schedule import Pruned, Site
from espalier.search.training.schedules import SCHEDULES
from tests.search.watched import FailingTask


@pytest.fixture
def material(
    network: nn.Module, graph: ChannelGraph, spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> Material:
    channel_scores = [channel_energies(network, graph).double().numpy()]
    floor, half = np.ones_like(graph.sizes), int(graph.macs(graph.sizes)) // 2
    space = Multipliers(graph, channel_scores, normalization="searched", budget=half, floor=floor, width=1.5)
    own = EvaluationSpec.of(graph, [network], channel_scores, spec.scoring, spec.execution, proxy="recalibrated")
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
        out=tmp_path,
        configs={},
        attributes={},
        dense=numpy_state(network),
        training=(
            ClassificationTask(splits, {"regularized": Recipe(epochs=3, batch_size=16, lr=0.05)}, 48),
            Stage("regularized", 3),
        ),
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_it_chose_is_cut_from_the_network_that_it_trained(
    name: str, material: Material, network: nn.Module
) -> None:
    found = choose(material, (name, "half", 0))
    assert isinstance(found, Choice), found
    graph, budget = material.spec.graph, material.spaces["half"].budget
    widths = np.array(found.candidate.widths)
    assert budget.fits(graph, widths) and graph.macs(widths) > 0.35 * graph.macs(graph.sizes)
    assert Choice.from_json(found.to_json()) == found and 0 <= found.score.measures["top1"] <= 100
    assert found.tensors is not None and found.criterion == name
    whole, own = CandidateNetworks(material.spec_of(found)).whole(0), material.spec_of(found)
    for key, tensor in found.tensors.items():
        assert key == CHANNEL_SCORES or torch.equal(tensor, whole.state_dict()[key])
    keep = own.keep(found.candidate)
    assert torch.equal(keep.double(), found.tensors[CHANNEL_SCORES])
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = slim(whole, own.graph, keep)(images)
        torch.testing.assert_close(CandidateNetworks(own).cut(found.candidate)(images), expected)
    assert not any(torch.equal(tensor, network.state_dict()[key]) for key, tensor in whole.named_parameters())
    assert not list(material.out.rglob("*partial*"))
    assert replace(METHODS[name].choose(material, "half", 0), score=found.score) == replace(found, seconds=0.0)


def test_what_keeps_more_than_the_budget_is_refused(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "lottery", Lottery(rounds=0))
    told = choose(material, ("lottery", "half", 0))
    assert isinstance(told, str) and told.startswith("lottery keeps ")


def test_files_of_a_schedule_go_once_it_has_chosen(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noting(Lottery):
        def run(self, site: Site) -> Pruned:
            site.file("note.txt").write_text("a note")
            return super().run(site)

    monkeypatch.setitem(SCHEDULES, "lottery", Noting(rounds=1))
    first = choose(material, ("lottery", "half", 0))
    assert isinstance(first, Choice)
    (kept,) = (material.out / "peers").glob("lottery-*")  # what it ended with, for a driver that dies meanwhile
    assert ".partial" not in kept.name
    monkeypatch.setitem(SCHEDULES, "lottery", Lottery(rounds=0))  # is not asked again
    again = choose(material, ("lottery", "half", 0))
    assert isinstance(again, Choice) and again.candidate == first.candidate and again.tensors is not None
    assert first.tensors is not None
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_what_it_lacks_and_what_fails_is_told(material: Material, splits: Splits) -> None:
    assert material.training is not None
    task, stage = material.training
    failing = FailingTask(splits, {"regularized": Recipe(epochs=3, batch_size=16, lr=0.05)}, 48)
    told = choose(replace(material, training=(failing, stage)), ("gradual", "half", 0))
    assert isinstance(told, str) and told.startswith("gradual failed: ZeroDivisionError: no images")
    task.offers = frozenset({"training"})
    assert choose(material, ("rigl", "half", 0)) == "rigl needs a loss, which this task does not offer"
