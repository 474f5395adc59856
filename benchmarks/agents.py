"""Do the agents learn, and what do they cost themselves?

    python benchmarks/agents.py learn --json agents.json
    python benchmarks/agents.py learn --print agents.json
    python benchmarks/agents.py cost

`learn` judges what an agent has learned: what it proposes without exploration after so many evaluations. It prints
the share of the gap to a known optimum that this closes. The control is the best of as many random proposals.

    layers     nine linear layers of 16 channels, pruned group by group to 30 % of the MACs, an environment of eight
               steps; the optimum is by dynamic programming, the gap is from equal widths
    vector     a separable quadratic over the twelve groups of ResNet-20 and two numbers more, as an Optuna study;
               the gap is from the middle of the ranges

`cost` is processor time per trial of an Optuna study in memory over ResNet-20's graph, proposing and learning, less
what Optuna's random sampler takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.agents.actor_critics.actor_critic import Axis, MlpActorCritic, Problem
from espalier.agents.actor_critics.deterministic import DeterministicActorCritic, GraphLstm, MlpDeterministic
from espalier.agents.algorithms.agent import Agent
from espalier.agents.algorithms.ddpg import Ddpg
from espalier.agents.algorithms.kinds import AGENTS
from espalier.agents.algorithms.ppo import Ppo
from espalier.agents.algorithms.reinforce import Reinforce
from espalier.agents.common.schedules import exponential
from espalier.agents.environment import LayerwiseEnv
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.graph.network_graph import NetworkData, network_graph
from espalier.agents.sampling.sampler import AgentSampler
from espalier.agents.training.training import run_episode
from espalier.pruning.graph.costs import Ints
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.networks import build
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json

WIDTH, GROUPS, KEEP = 16, 8, 0.3
SHARE = 0.9
"""Of the gap, closed by one that has learned."""
CHECKS = (100, 200, 400, 600, 800)
"""Evaluations after which proposals are looked at."""
FIRST_SEED = 10
"""Of the agents; settings were chosen with seeds 0 to 2."""
RANDOM = "random"


def damage(widths: Ints) -> float:
    """Layers differ in what they need."""
    return -float((np.resize([1.0, 0.2, 2.0, 0.5], GROUPS) / widths).sum())


def least_damage(budget: int) -> float:
    """The best score of all widths within the budget, by what the layers so far have used of it."""
    best = {(WIDTH, 0): 0.0}  # width of the last layer, MACs used -> score
    for need in np.resize([1.0, 0.2, 2.0, 0.5], GROUPS).tolist():
        found: dict[tuple[int, int], float] = {}
        for (last, used), score in best.items():
            for width in range(1, min(WIDTH, (budget - used) // last) + 1):
                key = width, used + last * width
                found[key] = max(found.get(key, -np.inf), score - need / width)
        best = found
    return max(score for (last, used), score in best.items() if used + last * WIDTH <= budget)


def layers(agent: str, seed: int, episodes: int) -> list[float]:
    """Share of the gap that is closed after every so many episodes."""
    torch.manual_seed(0)
    graph = trace(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(GROUPS + 1))), torch.zeros(1, WIDTH))
    energies = np.random.default_rng(0).random(graph.n_channels)
    budget = int(KEEP * int(graph.macs(graph.sizes)))
    env = LayerwiseEnv(graph, energies, budget, damage)
    widths = np.arange(1, WIDTH + 1)[:, None].repeat(GROUPS, 1)
    equal = max(map(damage, widths[env.budget.fits(graph, widths)]))
    gap = least_damage(budget) - equal
    torch.manual_seed(seed)
    made = None if agent == RANDOM else _layerwise_agent(agent, env, network_graph(graph, energies))
    found, best = [], -np.inf
    for number in range(episodes):
        rng = np.random.default_rng([seed, number])
        if made is None:
            best = max(best, random_episode(env, rng))
        else:
            made.learn(run_episode(env, made, rng), rng)
        if number + 1 in CHECKS:
            score = best if made is None else float(run_episode(env, made, None).rewards.sum())
            found.append((score - equal) / gap)
    return found


def random_episode(env: LayerwiseEnv, rng: np.random.Generator) -> float:
    """What uniform actions earn."""
    env.reset()
    while True:
        _, reward, ended, _, _ = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
        if ended:
            return reward


def _layerwise_agent(name: str, env: LayerwiseEnv, data: NetworkData) -> Agent:
    inputs = env.observation_space.shape[0]  # type: ignore[index]
    if name == "ppo":
        falling = exponential(3e-3, 0.96, after=50, least=1e-4)
        return Ppo(MlpActorCritic(inputs, 1), batch=8, entropy=1e-3, minibatch=16, learning_rate=falling)
    if name == "reinforce":
        falling = exponential(2e-3, 0.98, after=100, least=1e-4)
        return Reinforce(MlpActorCritic(inputs, 1, std=0.2), batch=4, learning_rate=falling)
    network: DeterministicActorCritic = MlpDeterministic(inputs, 1, torch.zeros(GROUPS))
    if name == "agmc":
        problem = Problem(data, tuple(Axis((node,), "scale") for node in range(GROUPS)))
        network = GraphLstm(problem, inputs, GraphEncoder(8, 1, "gcn"), width=24)
    return Ddpg(network)


def vector(agent: str, seed: int, trials: int) -> list[float]:
    """Share of the gap that is closed after every so many trials."""
    data, names = resnet20()
    chosen = None if agent == RANDOM else AgentSampler(data, names, agent=agent, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=chosen or optuna.samplers.RandomSampler(seed=seed))
    best = np.random.default_rng(seed).uniform(-0.7, 0.7, len(names) + 2)
    study.enqueue_trial(dict.fromkeys(names, 0.0) | {"normalization": 0.5, "evenness": 0.5})
    study.optimize(lambda trial: bowl(trial, names, best), n_trials=1)
    start, found = study.best_value, []
    for count in (count for count in CHECKS if count <= trials):
        study.optimize(lambda trial: bowl(trial, names, best), n_trials=count - len(study.trials))
        value = study.best_value
        if chosen is not None:
            value = float(bowl(optuna.trial.FixedTrial(chosen.proposal(study)), names, best))
        found.append(1 - value / start)
    return found


def bowl(trial: optuna.trial.BaseTrial, names: list[str], best: np.ndarray) -> float:
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
    """Measures what every agent has learned; a file of results is gone on with."""
    path = args.shown or args.json
    results: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    if not args.shown:
        for play, count in ((layers, args.episodes), (vector, args.trials)):
            known = results.setdefault(play.__name__, {"evaluations": [each for each in CHECKS if each <= count]})
            for agent in (RANDOM, *args.agents):
                found = known.setdefault(agent, [])
                while len(found) < args.seeds:
                    found.append([round(share, 3) for share in play(agent, FIRST_SEED + len(found), count)])
                    print(play.__name__, agent, found[-1], flush=True)
                    if args.json:
                        write_json(args.json, results)
    for toy, known in results.items():
        show(toy, known.pop("evaluations"), known)


def show(toy: str, evaluations: list[int], results: dict[str, list[list[float]]]) -> None:
    """Prints the shares of the gap that are closed, and how many seeds have closed enough of it at the end."""
    table = Table(title=f"{toy}: share of the gap closed after so many evaluations, median (least)", box=None)
    for heading in ("agent", *map(str, evaluations), f"seeds with {SHARE:.0%}"):
        table.add_column(heading, justify="right")
    for agent, found in results.items():
        cells = [f"{statistics.median(column):.2f} ({min(column):.2f})" for column in zip(*found, strict=True)]
        table.add_row(agent, *cells, f"{sum(row[-1] >= SHARE for row in found)} of {len(found)}")
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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=400, help="in the environment of layers")
    parser.add_argument("--trials", type=int, default=None, help="600 to learn, 200 for the cost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go, too")
    parser.add_argument("--print", dest="shown", type=Path, metavar="FILE", help="print results of before")
    args = parser.parse_args()
    args.trials = args.trials or {"learn": 600, "cost": 200}[args.what]
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    {"learn": learn, "cost": cost}[args.what](args)


if __name__ == "__main__":
    main()
