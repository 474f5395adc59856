"""One agent for many networks and budgets: trained on cheap rewards, saved, and taken to a network it has not seen.

What a `GraphActorCritic` knows of networks in general are its encoder and its heads; offsets belong to one problem
each and are not trained here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import GRAPH_OUTPUTS, NODE_OUTPUTS, GraphActorCritic, Problem
from espalier.agents.algorithms.agent import Agent
from espalier.agents.algorithms.kinds import OneShot
from espalier.agents.algorithms.ppo import Ppo
from espalier.agents.common.buffers import Episode
from espalier.agents.common.log import Log
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.graph.network_graph import EDGE_FEATURES, MOTIF_FEATURES, NODE_FEATURES
from espalier.agents.training.training import save
from espalier.errors import ConfigError
from espalier.persistence import whole_file
from espalier.pruning.seeding import seeded

BATCH = 8
"""Episodes of one task per update."""
ANCHOR = 0.1
"""Weight of the divergence from greedy pruning: a policy far from it on networks it knows is anything elsewhere."""


@dataclass(frozen=True)
class Task:
    """A network under a budget.

    Attributes:
        name: for the log.
        problem: its graph and what is searched.
        evaluate: what a vector (d,) in [-1, 1] is carried out as, and its score on images held out of the training
            split; greater is better.
    """

    name: str
    problem: Problem
    evaluate: Callable[[Tensor], tuple[Tensor, float]]


def pretrain(
    tasks: Sequence[Task], episodes: int, *, seed: int, log: Log | None = None, checkpoint: Path | None = None
) -> GraphActorCritic:
    """Trains one policy by PPO, a batch of one task after another.

    Advantages are ranks within a batch, so that no task's unit or difficulty counts.

    Args:
        tasks: what to train on.
        episodes: of every task, rounded up to whole batches.
        seed: of weights and draws.
        log: told of every update.
        checkpoint: file to go on from, and to write after every round of the tasks.

    Returns:
        The network; it proposes for the tasks by their numbers, and `knowledge_of` it serves others.

    Raises:
        ConfigError: the checkpoint is of other tasks, or of another seed.
    """
    with seeded(seed):
        network = GraphActorCritic([task.problem for task in tasks], GraphEncoder(), own=0.0)
    agent = Ppo(network, batch=BATCH, learning_rate=1e-3, epochs=3, ranks=True, anchor=ANCHOR)
    rounds, begun, key = -(-episodes // BATCH), 0, [seed, *(_name_of(task) for task in tasks)]
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state.get("key") != key:
            raise ConfigError(
                f"{checkpoint} holds an agent that was trained on other networks or budgets, or with another seed: "
                "choose another --out, or remove the file to begin anew"
            )
        agent.load_state_dict(state["agent"])
        begun = state["rounds"]
    for number in range(begun, rounds):
        for place, task in enumerate(tasks):
            rewards = [
                _episode(agent, task, place, np.random.default_rng([seed, number, place, at]))
                for at in range(BATCH)
            ]
            if log is not None:
                log.write(number * len(tasks) + place, {"task": place, "reward": float(np.mean(rewards))})
        if checkpoint is not None:
            save(checkpoint, {"key": key, "agent": agent.state_dict(), "rounds": number + 1})
    return network


def _name_of(task: Task) -> str:
    """Names a task, and what the agent sees of it."""
    data = task.problem.data
    state = hashlib.sha256(_inputs().encode())
    for tensor in (data.x, data.edge_index):
        state.update(tensor.numpy().tobytes())
    return f"{task.name} {state.hexdigest()[:16]}"


def _episode(agent: Agent, task: Task, place: int, rng: np.random.Generator) -> float:
    walk = OneShot(place)
    drawn = agent.act(walk.observations([]), rng)
    known = len(task.problem.axes)
    vector, reward = task.evaluate(drawn[:known])
    executed = torch.cat([vector, drawn[known:]])
    observations, actions = walk.episode(executed)
    log_probs = agent.log_probs(observations, actions)
    agent.learn(Episode(observations, actions, torch.tensor([reward]), log_probs), rng)
    return reward


def proposal(problem: Problem, knowledge: Mapping[str, Tensor]) -> Tensor:
    """What a trained policy thinks best for a network it need not have seen: a vector (d,) in [-1, 1]."""
    network = GraphActorCritic([problem], GraphEncoder())
    network.load_state_dict(dict(knowledge), strict=False)
    with torch.no_grad():
        distribution, _ = network(torch.zeros(1, 1))
    found: Tensor = distribution.mean[0].clamp(-1, 1).float()
    return found


def knowledge_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a network's state, what holds for any problem: encoder and heads."""
    return {name: tensor for name, tensor in state.items() if name.split(".")[0] in ("encoder", *_HEADS)}


_HEADS = ("node_head", "graph_head", "value_head")


def save_knowledge(path: Path, network: GraphActorCritic) -> None:
    """Writes a trained policy, with what it takes its inputs to be."""
    with whole_file(path) as partial:
        save_file(knowledge_of(network.state_dict()), partial, {"espalier": json.dumps({"inputs": _inputs()})})


def load_knowledge(path: Path) -> dict[str, Tensor]:
    """Reads a trained policy: a file of `save_knowledge`, or the checkpoint that a search by an agent leaves.

    Raises:
        ConfigError: there is no such file, or it is none of these, or of another version's features.
    """
    if not path.is_file():
        raise ConfigError(f"there is no agent at {path}: give a file that `espalier agents train` wrote")
    if path.suffix == ".pt":
        return _of_checkpoint(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("espalier", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is not an agent of espalier's: {error}") from error
    if header.get("inputs") != _inputs():
        raise ConfigError(f"{path} was trained on other features of networks than this version has: train it again")
    return tensors


def _of_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        found = knowledge_of(torch.load(path, weights_only=True)["agent"]["network"])
    except Exception as error:  # what torch raises on a foreign file has no common class
        raise ConfigError(f"{path} is not the checkpoint of an agent: {type(error).__name__}") from error
    if "node_head.weight" not in found:
        raise ConfigError(f"{path} holds an agent that acts step by step; only one-shot ones serve other networks")
    return found


def _inputs() -> str:
    """Names what the inputs and outputs of a policy mean."""
    words = repr((NODE_FEATURES, EDGE_FEATURES, MOTIF_FEATURES, NODE_OUTPUTS, GRAPH_OUTPUTS))
    return hashlib.sha256(words.encode()).hexdigest()[:16]
