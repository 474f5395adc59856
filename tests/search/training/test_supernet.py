"""Weights that all widths share: trained once, resumed, and used where the config says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, EspalierError, StudyMismatch
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.networks import CifarResNet
from espalier.pruning.supernet.shared_weights import GENERATOR
from espalier.pruning.trace import trace
from espalier.search.analysis.rescoring import rescore
from espalier.search.config.loading import Config, parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import Silent
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import run
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import Space
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.data.images import InMemoryImages
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.training.strengths import Rung
from espalier.search.training.supernet import Widths, train_shared
from tests.search.watched import hasten

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05)


class Dies(RuntimeError):
    pass


class Watched(ClassificationTask):
    """Counts the trainings, and dies in one after so many steps."""

    trainings, steps_taken, dies_after = 0, 0, 10**9

    def train(self, *network: Any, on_step: Any = None, **how: Any) -> None:
        self.trainings += 1

        def told(done: int, loss: float) -> None:
            on_step(done, loss)
            self.steps_taken += 1
            if done == self.dies_after:
                raise Dies

        super().train(*network, on_step=told, **how)


@pytest.fixture
def task(splits: Splits) -> Watched:
    return Watched(splits, {"dense": RECIPE, "regularized": RECIPE, "finetune": RECIPE}, 48)


@pytest.fixture
def rung(network: nn.Module) -> Rung:
    return Rung(0.1, network, digest(tensors_of(network)), 50.0)


@pytest.fixture
def widths(network: nn.Module, graph: ChannelGraph) -> Widths:
    energies = channel_energies(network, graph).double().numpy()
    floor = np.ones_like(graph.sizes)
    macs = int(graph.macs(graph.sizes)) // 2
    space: Space = SPACES["multipliers"](
        graph, [energies, energies], normalization="searched", budget=macs, floor=floor, width=1.5
    )
    return Widths([space], 1, energies)


def trained(rung: Rung, widths: Widths, task: Watched, out: Path, **how: Any) -> dict[str, Tensor]:
    return train_shared(rung, widths, task, 2, 0, out, Silent(), **how)[1]


def test_widths_are_drawn_within_the_budget_around_greedy_and_uniform_pruning(widths: Widths) -> None:
    (space,), graph = widths.spaces, widths.spaces[0].graph
    drawn = [widths.draw(np.random.default_rng(seed)) for seed in range(60)]
    policies = {tuple(graph.widths(keep).tolist()) for keep in drawn}
    assert len(policies) > 5
    assert all(int(graph.macs(policy)) <= space.budget.limits["macs"] for policy in policies)
    ranks = graph.ranks(widths.energies)
    for keep in drawn:  # nested: the channels of the greatest energy
        assert torch.equal(keep, torch.from_numpy(ranks < graph.widths(keep)[graph.group_of]))


@pytest.mark.parametrize("generator", [False, True])
def test_they_are_trained_once_and_kept(
    rung: Rung, widths: Widths, task: Watched, tmp_path: Path, generator: bool
) -> None:
    before = {name: tensor.clone() for name, tensor in tensors_of(rung.model).items()}
    first = trained(rung, widths, task, tmp_path, generator=generator)
    assert any(name.startswith(GENERATOR) for name in first) == generator
    assert any(not torch.equal(first[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(rung.model).items())
    again = trained(rung, widths, task, tmp_path, generator=generator)
    assert task.trainings == 1 and first.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert len(list(tmp_path.iterdir())) == 1  # no checkpoint is left
    trained(rung, widths, task, tmp_path, generator=not generator)
    assert task.trainings == 2


@pytest.mark.parametrize("generator", [False, True])
def test_a_training_that_dies_goes_on_to_the_last_bit(
    rung: Rung, widths: Widths, task: Watched, tmp_path: Path, generator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(rung, widths, task, tmp_path / "whole", generator=generator)
    hasten(monkeypatch)
    task.dies_after = 5
    with pytest.raises(EspalierError, match="training of shared weights failed"):
        trained(rung, widths, task, tmp_path / "parts", generator=generator)
    assert [path.name.endswith(PARTIAL) for path in (tmp_path / "parts").iterdir()] == [True]
    task.dies_after, task.steps_taken = 10**9, 0
    parts = trained(rung, widths, task, tmp_path / "parts", generator=generator)
    assert 0 < task.steps_taken < 10
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


class Whole(Watched):
    """A training that goes around the network's own forward pass."""

    def train(self, *network: Any, on_step: Any = None, **how: Any) -> None:
        made: nn.Module = network[0]
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        made.train().forward(torch.zeros(2, 1, 8, 8)).sum().backward()
        optimizer.step()


def test_a_training_without_such_passes_is_refused(
    rung: Rung, widths: Widths, splits: Splits, tmp_path: Path
) -> None:
    whole = Whole(splits, {"dense": RECIPE, "regularized": RECIPE, "finetune": RECIPE}, 48)
    with pytest.raises(EspalierError, match="no step of the training followed a pass of other widths"):
        trained(rung, widths, whole, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_data_and_other_budgets_are_other_weights(
    rung: Rung, widths: Widths, task: Watched, tmp_path: Path, splits: Splits
) -> None:
    names = [train_shared(rung, widths, task, 1, 0, tmp_path, Silent())[0]]
    others = InMemoryImages(splits.train.fetch(torch.arange(96)), (splits.train.labels + 1) % 4)
    other = Watched(replace(splits, train=others), {"finetune": RECIPE}, 48)
    names.append(train_shared(rung, widths, other, 1, 0, tmp_path, Silent())[0])
    (space,) = widths.spaces
    wider = type(space)(
        space.graph,
        space.energies,
        normalization="mean",
        budget=space.budget,
        floor=space.floor,
        width=space.width,
    )
    names.append(train_shared(rung, Widths([wider], 1, widths.energies), task, 1, 0, tmp_path, Silent())[0])
    assert len(set(names)) == 3
    rounded = Widths([space], 1, widths.energies * (1 + 1e-15))  # sums in another order
    assert train_shared(rung, rounded, task, 1, 0, tmp_path, Silent())[0] == names[0]


def test_branches_stay_where_a_budget_has_no_room_for_them() -> None:
    network = CifarResNet(depth=20, width=4, in_channels=1)
    graph = trace(network, torch.zeros(1, 1, 8, 8), depth=True)
    energies = channel_energies(network, graph).double().numpy()
    macs, floor = int(0.02 * int(graph.macs(graph.sizes))), np.ones_like(graph.sizes)
    space = SPACES["multipliers"](graph, [energies], normalization="mean", budget=macs, floor=floor, width=1.5)
    assert not np.array(space.greedy_candidates()[0].widths).all()
    for seed in range(5):
        keep = Widths([space], 0, energies).draw(np.random.default_rng(seed))
        assert graph.widths(keep).all()


def of(tiny: dict[str, Any], **supernet: Any) -> Config:
    return parse_config(copy.deepcopy(tiny) | {"supernet": {"epochs": 1, **supernet}}, "mine")


def experiment(config: Config, out: Path) -> Experiment:
    made = Experiment(config, prepare(config), out, Silent())
    made.train_ladder()
    made.settle_execution(unrecorded)
    made.choose_spaces(made.prepared.budgets, unrecorded)
    return made


@pytest.mark.parametrize("generator", [False, True])
def test_they_serve_what_the_config_says(tiny: dict[str, Any], tmp_path: Path, generator: bool) -> None:
    plain = experiment(parse_config(tiny, "mine"), tmp_path)
    (candidate, *_) = plain.space(rungs=[1]).greedy_candidates()
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for used in ("scores", "finetuning", "both"):
        made = experiment(of(tiny, used_for=used, generator=generator), tmp_path)
        rung = next(iter(made._shared))
        candidate = made.space(rungs=[rung]).greedy_candidates()[0]
        scored = CandidateNetworks(made.spec).cut(candidate)
        begun = CandidateNetworks(made.tuning.evaluation.finetuned_from).cut(candidate)
        assert made.tuning.evaluation.shared == ("" if used == "scores" else made.spec.shared)
        found[used] = next(scored.parameters()).clone(), next(begun.parameters()).clone()
    own = next(CandidateNetworks(plain.spec).cut(candidate).parameters())
    assert torch.equal(found["scores"][1], own) and torch.equal(found["finetuning"][0], own)
    shared = found["both"][0]
    assert not torch.equal(shared, own)
    assert torch.equal(found["both"][1], shared)
    assert torch.equal(found["scores"][0], shared) and torch.equal(found["finetuning"][1], shared)


def test_a_search_begins_its_fine_tuning_with_them_and_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    out, storage = tmp_path / "run", f"sqlite:///{tmp_path / 'study.db'}"
    config = of(tiny, used_for="both", generator=True)
    first = run(config, study="mine", out=out, storage=storage)
    again = run(config, study="mine", out=out, storage=storage)
    assert again.searched == first.searched and again.greedy == first.greedy
    without = run(parse_config(tiny, "mine"), study="other", out=tmp_path / "without", storage=storage)
    assert without.greedy.before != first.greedy.before
    file, dense = (next((out / "ladder").glob(f"{name}*.safetensors")) for name in ("shared", "dense"))
    file.write_bytes(dense.read_bytes())
    with pytest.raises(StudyMismatch, match="are not the shared weights on record"):
        run(config, study="mine", out=out, storage=storage)


def test_networks_from_new_weights_begin_with_these(tiny: dict[str, Any], tmp_path: Path) -> None:
    made = experiment(of(tiny, used_for="both"), tmp_path)
    fresh = {name: np.full_like(array, 0.5) for name, array in made.spec.states[0].items()}
    new = made.spec.of_networks((fresh,), (made.spec.ranks[0],)).finetuned_from
    network = CandidateNetworks(new).cut(made.space(rungs=[0]).greedy_candidates()[0])
    assert all(bool((tensor == 0.5).all()) for tensor in network.parameters())


def test_a_trial_that_was_scored_with_them_is_scored_so_again(tiny: dict[str, Any], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    run(of(tiny, used_for="scores"), study="mine", out=tmp_path / "run", storage=storage)
    assert rescore(storage, "mine", 0, out=tmp_path / "run").same


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"finetune": {"reconstruct": True}}, "finetune.reconstruct: layers are solved for what the whole"),
        ({"finetune": {"processes": 2}}, "finetune.processes: shared weights are trained by one process"),
        ({"search": {"proxy": "reconstructed"}}, "the proxy reconstructed needs other weights"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny: dict[str, Any], more: dict[str, Any], said: str) -> None:
    content = copy.deepcopy(tiny) | {"supernet": {"epochs": 1, "used_for": "both"}}
    for section, values in more.items():
        content[section] = content.get(section, {}) | values
    with pytest.raises(ConfigError, match=said):
        parse_config(content, "mine")
