"""One agent for several networks: what it has learned holds for another one, and survives on file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import Axis, GraphActorCritic, Problem
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.graph.network_graph import NODE_FEATURES, network_graph
from espalier.agents.sampling.sampler import AgentSampler
from espalier.agents.training.transfer import Task, knowledge_of, load_knowledge, pretrain, proposal, save_knowledge
from espalier.errors import ConfigError
from tests.agents.conftest import Traced


def task(layers: Traced, seed: int) -> Task:
    """A network whose groups want numbers that its energies tell: more where they are high."""
    graph, _ = layers
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.permutation([-1.2, -0.4, 0.4, 1.2]))[graph.group_of]
    data = network_graph(graph, scales * rng.uniform(0.8, 1.2, graph.n_channels))
    assert data.x is not None
    wanted = (data.x[:4, NODE_FEATURES.index("log_energy_mean")] * 0.5).clamp(-0.8, 0.8)

    def evaluate(vector: Tensor) -> tuple[Tensor, float]:
        return vector, -float((vector - wanted).square().sum())

    axes = tuple(Axis((group,), "scale") for group in range(4))
    return Task(f"energies {seed}", Problem(data, axes), evaluate)


@pytest.fixture(scope="module")
def knowledge(layers: Traced) -> dict[str, Tensor]:
    return knowledge_of(pretrain([task(layers, seed) for seed in range(4)], 160, seed=0).state_dict())


def test_it_knows_what_a_network_wants_that_it_has_not_seen(layers: Traced, knowledge: dict[str, Tensor]) -> None:
    for seed in (10, 11, 12):
        unseen = task(layers, seed)
        _, greedy = unseen.evaluate(torch.zeros(4))
        vector, zero_shot = unseen.evaluate(proposal(unseen.problem, knowledge))
        assert vector.abs().max() <= 1
        assert zero_shot > 0.4 * greedy  # both negative


def test_training_repeats_and_goes_on_where_it_was(layers: Traced, tmp_path: Path) -> None:
    tasks = [task(layers, seed) for seed in range(2)]
    whole = pretrain(tasks, 32, seed=0).state_dict()
    pretrain(tasks, 16, seed=0, checkpoint=tmp_path / "part.pt")
    resumed = pretrain(tasks, 32, seed=0, checkpoint=tmp_path / "part.pt").state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    for others, seed in (([task(layers, 5), tasks[1]], 0), (tasks[:1], 0), (tasks, 1)):
        with pytest.raises(ConfigError, match=r"part\.pt holds an agent that was trained on other networks"):
            pretrain(others, 32, seed=seed, checkpoint=tmp_path / "part.pt")
    other = pretrain(tasks, 32, seed=1).state_dict()
    assert any(not torch.equal(other[name], tensor) for name, tensor in whole.items())


def test_a_file_holds_it_and_a_search_begins_with_it(layers: Traced, tmp_path: Path) -> None:
    seen, unseen = task(layers, 0), task(layers, 10)
    network = pretrain([seen], 160, seed=0)
    save_knowledge(tmp_path / "agent.safetensors", network)
    loaded = load_knowledge(tmp_path / "agent.safetensors")
    assert loaded.keys() == knowledge_of(network.state_dict()).keys()
    wanted = proposal(unseen.problem, loaded)
    names = [group.name for group in layers[0].groups]
    start = dict.fromkeys(names, 0.0)
    file = tmp_path / "a.pt"
    sampler = AgentSampler(unseen.problem.data, names, seed=0, pretrained=loaded, start=start, checkpoint=file)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(start)
    study.enqueue_trial(dict(zip(names, wanted.tolist(), strict=True)))
    study.optimize(
        lambda trial: unseen.evaluate(torch.tensor([trial.suggest_float(name, -1, 1) for name in names]))[1], 22
    )
    assert study.trials[1].values > study.trials[0].values
    first = np.mean([[trial.params[name] for name in names] for trial in study.trials[2:10]], axis=0)
    assert np.abs(first - wanted.numpy()).max() < 0.4
    tuned = load_knowledge(file)  # the search's own checkpoint serves as well
    assert tuned.keys() == loaded.keys()


def test_a_search_begins_elsewhere_where_its_proposal_is_worse(layers: Traced) -> None:
    unseen = task(layers, 10)
    knowledge = knowledge_of(GraphActorCritic([unseen.problem], GraphEncoder()).state_dict())
    knowledge["node_head.bias"] += 3.0  # every number at its end
    wanted, names = proposal(unseen.problem, knowledge), [group.name for group in layers[0].groups]
    assert wanted.min() > 0.9
    start = dict.fromkeys(names, 0.0)
    sampler = AgentSampler(unseen.problem.data, names, seed=0, pretrained=knowledge, start=start)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(start)
    study.enqueue_trial(dict(zip(names, wanted.tolist(), strict=True)))

    def loss(trial: optuna.Trial) -> float:
        return -sum(trial.suggest_float(name, -1, 1) ** 2 for name in names)

    study.optimize(loss, 10)
    first = np.mean([[trial.params[name] for name in names] for trial in study.trials[2:]], axis=0)
    assert np.abs(first).max() < 0.4


def test_files_that_are_none(layers: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no agent at"):
        load_knowledge(tmp_path / "none.safetensors")
    for name in ("bad.safetensors", "bad.pt"):
        (tmp_path / name).write_bytes(b"x" * 40)
        with pytest.raises(ConfigError, match="is not "):
            load_knowledge(tmp_path / name)
    save_knowledge(tmp_path / "old.safetensors", pretrain([task(layers, 0)], 8, seed=0))
    monkeypatch.setattr("espalier.agents.training.transfer.NODE_FEATURES", NODE_FEATURES[:-1])
    with pytest.raises(ConfigError, match="was trained on other features"):
        load_knowledge(tmp_path / "old.safetensors")
