"""Do the agents learn, and what do they cost themselves?

    python benchmarks/agents.py learn
    python benchmarks/agents.py cost

`learn` counts episodes until an agent has closed 95 % of the gap to an optimum that is known, five seeds each:

    layers     five linear layers of eight channels, pruned group by group to 120 MACs; all 4,096 widths are tried
               for the optimum, the gap is from equal widths
    vector     a separable quadratic over the twelve groups of ResNet-20 and two numbers more, as an Optuna study;
               the gap is from the middle of the ranges

`cost` is processor time per trial of an Optuna study in memory over ResNet-20's graph, proposing and learning, less
what Optuna's random sampler takes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.agents.actor_critic import Axis, MlpActorCritic, Problem
from espalier.agents.agent import Agent
from espalier.agents.ddpg import Ddpg
from espalier.agents.deterministic import DeterministicActorCritic, GraphLstm, MlpDeterministic
from espalier.agents.encoders import GraphEncoder
from espalier.agents.environment import LayerwiseEnv
from espalier.agents.kinds import AGENTS
from espalier.agents.network_graph import NetworkData, network_graph
from espalier.agents.ppo import Ppo
from espalier.agents.reinforce import Reinforce
from espalier.agents.sampler import AgentSampler
from espalier.agents.training import train
from espalier.pruning.costs import Ints
from espalier.pruning.energy import channel_energies
from espalier.pruning.networks import build
from espalier.pruning.trace import trace

BUDGET = 120
SEEDS = 5
SHARE = 0.95


def damage(widths: Ints) -> float:
    """Layers differ in what they need."""
    return -float((np.array([1.0, 0.2, 2.0, 0.5]) / widths).sum())


def layerwise(agent: str, seed: int, episodes: int) -> int | None:
    """The first episode that comes within a twentieth of the optimum."""
    graph = trace(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.zeros(1, 8))
    energies = np.random.default_rng(0).random(graph.n_channels)
    widths = np.array(list(itertools.product(range(1, 9), repeat=4)))
    fits = widths[graph.macs(widths) <= BUDGET]
    equal = max(damage(each) for each in fits if (each == each[0]).all())
    goal = equal + SHARE * (max(map(damage, fits)) - equal)
    env = LayerwiseEnv(graph, energies, BUDGET, damage)
    torch.manual_seed(seed)
    earned = train(env, _layerwise_agent(agent, env, network_graph(graph, energies)), episodes, seed=seed)
    return next((number + 1 for number, reward in enumerate(earned) if reward >= goal), None)


def _layerwise_agent(name: str, env: LayerwiseEnv, data: NetworkData) -> Agent:
    inputs = env.observation_space.shape[0]  # type: ignore[index]
    if name == "ppo":
        return Ppo(MlpActorCritic(inputs, 1), batch=8, entropy=1e-3, minibatch=16)
    if name == "reinforce":
        return Reinforce(MlpActorCritic(inputs, 1), batch=4, learning_rate=5e-3)
    network: DeterministicActorCritic = MlpDeterministic(inputs, 1, torch.zeros(4))
    if name == "agmc":
        problem = Problem(data, tuple(Axis((node,), "scale") for node in range(4)))
        network = GraphLstm(problem, inputs, GraphEncoder(8, 1, "gcn"), width=24)
    return Ddpg(network)


def vector(agent: str, seed: int, trials: int) -> int | None:
    """The first trial that comes within a twentieth of the optimum."""
    data, names = resnet20()
    study = optuna.create_study(direction="maximize", sampler=AgentSampler(data, names, agent=agent, seed=seed))
    best = np.random.default_rng(seed).uniform(-0.7, 0.7, len(names) + 2)
    study.enqueue_trial(dict.fromkeys(names, 0.0) | {"normalization": 0.5, "evenness": 0.5})
    study.optimize(lambda trial: bowl(trial, names, best), n_trials=trials)
    values = [trial.value or 0.0 for trial in study.trials]
    goal = (1 - SHARE) * values[0]
    return next((number + 1 for number, value in enumerate(values) if value >= goal), None)


def bowl(trial: optuna.Trial, names: list[str], best: np.ndarray) -> float:
    """0 at the optimum, negative elsewhere."""
    point = [trial.suggest_float(name, -1.5, 1.5) / 1.5 for name in names]
    point += [2 * trial.suggest_float(name, 0, 1) - 1 for name in ("normalization", "evenness")]
    return -float(((np.array(point) - best) ** 2).sum())


def resnet20() -> tuple[NetworkData, list[str]]:
    """Its graph, and its groups by name."""
    torch.manual_seed(0)
    model = build("resnet20")
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    return network_graph(graph, channel_energies(model, graph)), [group.name for group in graph.groups]


def learn(args: argparse.Namespace) -> None:
    """Prints how many episodes every agent needs."""
    table = Table(
        title=f"episodes until {SHARE:.0%} of the gap are closed: median (most) of {SEEDS} seeds", box=None
    )
    for heading in ("agent", "layers", "vector"):
        table.add_column(heading, justify="right")
    for agent in args.agents:
        cells = []
        for play, episodes in ((layerwise, args.episodes), (vector, args.trials)):
            found = [play(agent, seed, episodes) for seed in range(SEEDS)]
            reached = [number for number in found if number is not None]
            if len(reached) == SEEDS:
                cells.append(f"{statistics.median(reached):.0f} ({max(reached)})")
            else:
                cells.append(f"{len(reached)} of {SEEDS} within {episodes}")
            print(agent, play.__name__, found, flush=True)
        table.add_row(agent, *cells)
    Console(width=100).print(table)


def cost(args: argparse.Namespace) -> None:
    """Prints processor milliseconds per trial."""
    data, names = resnet20()
    best = np.zeros(len(names) + 2)

    def seconds(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(lambda trial: bowl(trial, names, best), n_trials=20)
        start = time.process_time()
        study.optimize(lambda trial: bowl(trial, names, best), n_trials=args.trials)
        each: float = (time.process_time() - start) / args.trials
        return each

    plain = seconds(optuna.samplers.RandomSampler(seed=0))
    for agent in args.agents:
        own = seconds(AgentSampler(data, names, agent=agent, seed=0)) - plain
        print(f"{agent:>10} {1000 * own:5.1f} ms per trial", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["learn", "cost"])
    parser.add_argument("--agents", nargs="+", default=list(AGENTS))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--trials", type=int, default=None, help="1000 to learn, 200 for the cost")
    args = parser.parse_args()
    args.trials = args.trials or {"learn": 1000, "cost": 200}[args.what]
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    {"learn": learn, "cost": cost}[args.what](args)


if __name__ == "__main__":
    main()
