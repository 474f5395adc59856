"""Does an agent that was trained on other networks know anything about one that it has not seen?

    python benchmarks/transfer.py --seeds 3 --json transfer.json
    python benchmarks/transfer.py --print transfer.json

Four networks on Fashion-MNIST under two budgets each. CMA-ES and an agent from scratch search each of the eight.
Every network is left out in turn: an agent is trained on the other three under both budgets, on predictions of a
Gaussian process that was fitted to the scores of some draws about greedy pruning, and searches the network
that it has not seen: greedy pruning comes first, its own proposal second (zero-shot), then it goes on from the
better one (few-shot).

Scores are cross-entropies on held-out training images after recalibration; nothing is fine-tuned and the test split
is not read. Finished searches are kept in the JSON file and networks in the folder beside it, so that a run which
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from espalier.agents.algorithms.kinds import make_agent
from espalier.agents.training.transfer import Task, load_knowledge, pretrain, save_knowledge
from espalier.search.config.loading import load_config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Lines
from espalier.search.run.agent_training import Learned, rewards
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import prepare
from espalier.search.samplers import SAMPLERS
from espalier.search.samplers.agents import agent_problem, agent_sampler, zero_shot
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space
from espalier.search.statistics.differences import paired
from espalier.search.tasks.classification.measures import MEASURES

NETWORKS = {
    "ResNet-20": ("resnet20", "{in_channels: 1, stem_stride: 2}"),
    "VGG-11": ("vgg11_bn", "{in_channels: 1, pools: 4, width_mult: 0.25}"),
    "MobileNetV2": ("mobilenet_v2", "{in_channels: 1, stem_stride: 2, width_mult: 0.25, dropout: 0.0}"),
    "DenseNet-16": (
        "espalier.pruning.networks.densenet:CifarDenseNet",
        "{in_channels: 1, depth: 16, growth: 8}",
    ),
}
"""Networks at a size that two cores train: model.name and model.kwargs."""

SETTING = (
    "data.train_images=10000",
    "training.epochs=8",
    "regularizer.epochs=4",
    "regularizer.strengths=[0.003,0.012]",
    "search.proxy=recalibrated",
    "search.measure=cross_entropy",
    "search.scoring_images=400",
    "search.calibration_images=128",
    "search.batch_size=128",
    "search.memory_format=channels_last",
    "search.precision=fp32",
)
"""Of config fashion_mnist, changed."""

KEEPS = (0.5, 0.3)
AT = (10, 25, 50, 100)
"""Evaluations at which the best so far is printed."""

SCRATCH = ("agent", "cmaes")
"""Samplers without a trained agent."""


class Cell:
    """A network under a budget.

    Args:
        network: in `NETWORKS`.
        keep: fraction of its MACs.
        folder: of its ladder.
        overrides: further settings.
    """

    def __init__(self, network: str, keep: float, folder: Path, overrides: list[str]) -> None:
        name, kwargs = NETWORKS[network]
        own = [f"model.name={name}", f"model.kwargs={kwargs}", f"budget.keep={keep}"]
        config = load_config("fashion_mnist", [*SETTING, *own, *overrides])
        experiment = Experiment(config, prepare(config), folder / network, Lines())
        experiment.train_ladder()
        experiment.settle_execution(unrecorded)
        self.name, self.network = f"{network} at {100 * keep:g} %", network
        self.space: Space = experiment.space()
        proxy = config.search.proxy
        evaluator = Evaluator(experiment.spec)
        self.known: dict[str, float] = {}
        self._value: Callable[[Candidate], float] = lambda c: evaluator(c, proxy).value(
            MEASURES[config.search.measure]
        )

    def value(self, candidate: Candidate) -> float:
        """Its score; of all searches together each candidate is scored once."""
        if candidate.key not in self.known:
            self.known[candidate.key] = self._value(candidate)
        return self.known[candidate.key]

    def search(
        self, sampler: optuna.samplers.BaseSampler, trials: int, first: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Keys of the candidates in turn, and their scores.

        Args:
            sampler: proposes.
            trials: evaluations.
            first: parameters that are tried before.
        """
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for params in first:
            study.enqueue_trial(params)
        found = []
        for _ in range(trials):
            trial = study.ask()
            candidate = self.space.decode(self.space.suggest(trial))
            study.tell(trial, self.value(candidate))
            found.append([candidate.key, self.value(candidate)])
        return {"trials": found}


class Benchmark:
    """All cells.

    Args:
        args: the command line.
        results: what was found so far; written to as searches finish.
    """

    def __init__(self, args: argparse.Namespace, results: dict[str, Any]) -> None:
        self.args, self.results = args, results
        self.folder = Path(args.json).with_suffix("")
        self.cells = [Cell(name, keep, self.folder, args.overrides) for name in NETWORKS for keep in KEEPS]
        self.searches: dict[str, dict[str, Any]] = results.setdefault("searches", {})
        for cell in self.cells:
            for name, found in self.searches.items():
                if name.startswith(cell.name):
                    cell.known |= dict(found["trials"])

    def run(self) -> None:
        """Searches without a trained agent, then those with one."""
        for seed in range(self.args.seeds):
            for cell in self.cells:
                for name in SCRATCH:
                    self.once(cell, name, seed, functools.partial(self.scratch, cell, name, seed))
        for seed in range(self.args.seeds):
            for network in NETWORKS:
                knowledge = self.trained(network, seed)
                for cell in self.cells:
                    if cell.network == network:
                        few_shot = functools.partial(self.few_shot, cell, seed, knowledge)
                        self.once(cell, "trained", seed, few_shot)

    def once(self, cell: Cell, name: str, seed: int, search: Callable[[], dict[str, Any]]) -> None:
        """A search, where the file lacks it."""
        key = f"{cell.name}, {name} {seed}"
        if key not in self.searches:
            self.searches[key] = search()
            self.write()
            print(key, f"{min(curve(self.searches[key])):.4f}", flush=True)

    def write(self) -> None:
        """Keeps what was found."""
        write_json(Path(self.args.json), self.results)

    def scratch(self, cell: Cell, name: str, seed: int) -> dict[str, Any]:
        """A search that knows nothing."""
        return cell.search(SAMPLERS[name](cell.space, seed), self.args.trials, cell.space.greedy_params())

    def few_shot(self, cell: Cell, seed: int, knowledge: Mapping[str, Tensor]) -> dict[str, Any]:
        """A search that begins with a trained agent."""
        sampler = agent_sampler("agent", cell.space, seed, pretrained=knowledge)
        first = [cell.space.greedy_params()[0], zero_shot(cell.space, knowledge), *cell.space.greedy_params()[1:]]
        return cell.search(sampler, self.args.trials, first)

    def trained(self, without: str, seed: int) -> dict[str, Tensor]:
        """An agent that has seen the other networks."""
        path = self.folder / f"without-{without}-{seed}-{self.args.episodes}.safetensors"
        if not path.exists():
            tasks = [
                Task(cell.name, agent_problem(cell.space), rewards(cell.space, self.learned(cell)))
                for cell in self.cells
                if cell.network != without
            ]
            save_knowledge(path, pretrain(tasks, self.args.episodes, seed=seed))
            print(path.name, "trained", flush=True)
        return load_knowledge(path)

    def learned(self, cell: Cell) -> Learned:
        """What recorded draws of an untrained agent say of other candidates of a cell."""
        key = f"{cell.name}, draws"
        if key not in self.searches:
            scores: dict[str, float] = {}

            def score(candidate: Candidate) -> float:
                scores[candidate.key] = cell.value(candidate)
                return scores[candidate.key]

            agent, walk = make_agent("ppo", agent_problem(cell.space), 0)
            evaluate, rng = rewards(cell.space, score), np.random.default_rng(0)
            for _ in range(self.args.draws):
                evaluate(agent.act(walk.observations([]), rng))
            self.searches[key] = {"trials": list(scores.items())}
            self.write()
        return Learned(cell.space, cell.value, 0, dict(self.searches[key]["trials"]))


def curve(search: Mapping[str, Any]) -> list[float]:
    """Least cross-entropy so far, after every evaluation."""
    least: list[float] = np.minimum.accumulate([-value for _, value in search["trials"]]).tolist()
    return least


def show(results: dict[str, Any]) -> None:
    """Prints the tables of a results file."""
    console = Console(width=140)
    searches = results["searches"]
    names = [f"{network} at {100 * keep:g} %" for network in NETWORKS for keep in KEEPS]
    found = {
        (name, kind): [curve(searches[key]) for key in sorted(searches) if key.startswith(f"{name}, {kind} ")]
        for name in names
        for kind in ("trained", *SCRATCH)
    }
    table = Table(title="least cross-entropy so far, mean over seeds", box=None)
    for heading in ("network", "search", "greedy", "zero-shot", *map(str, AT)):
        table.add_column(heading, justify="right")
    for (name, kind), curves in found.items():
        if not curves:
            continue
        firsts = [searches[f"{name}, {kind} {seed}"]["trials"] for seed in range(len(curves))]
        shot = f"{statistics.mean(-each[1][1] for each in firsts):.3f}" if kind == "trained" else ""
        steps = [at for at in AT if at <= len(curves[0])]
        cells = [f"{statistics.mean(each[at - 1] for each in curves):.3f}" for at in steps]
        table.add_row(name, kind, f"{greedy_of(searches, name):.3f}", shot, *cells)
    console.print(table)
    if not all(found[name, "trained"] for name in names):
        return
    table = Table(
        title="per network: mean over budgets and seeds; all: mean of the networks, 95 % interval by their spread",
        box=None,
    )
    columns: dict[str, dict[str, list[float]]] = {network: {} for network in NETWORKS}
    for network in NETWORKS:
        own = columns[network]
        for name in (each for each in names if each.startswith(network)):
            for seed, trained in enumerate(found[name, "trained"]):
                shot = -searches[f"{name}, trained {seed}"]["trials"][1][1]
                own.setdefault("zero-shot less greedy", []).append(shot - greedy_of(searches, name))
                for kind in SCRATCH:
                    saved = evaluations_saved(trained, found[name, kind][seed], TARGET)
                    own.setdefault(f"saved against {kind}", []).append(saved)
    headings = list(columns[next(iter(NETWORKS))])
    for heading in ("network", *headings):
        table.add_column(heading, justify="right")
    for network, own in columns.items():
        table.add_row(network, *(f"{statistics.mean(own[heading]):+.3f}" for heading in headings))
    rows = [[statistics.mean(own[heading]) for own in columns.values()] for heading in headings]
    table.add_row("all", *map(interval, rows))
    console.print(table)


def greedy_of(searches: Mapping[str, Any], name: str) -> float:
    """Cross-entropy of the best greedy vector, which are the first of a search from scratch."""
    return float(min(-value for _, value in searches[f"{name}, agent 0"]["trials"][:GREEDY]))


GREEDY = 4
"""Greedy vectors: two rungs, by raw and by normalised energies."""

TARGET = 50
"""Evaluations saved are counted until what the other search had after so many."""


def evaluations_saved(own: list[float], other: list[float], target: int) -> float:
    """How much sooner a search is where another is after `target` evaluations; as late as it ends at least."""
    reached = next((at + 1 for at, loss in enumerate(own) if loss <= other[target - 1] + 1e-9), len(own))
    return float(target - reached)


def interval(numbers: list[float]) -> str:
    """Mean and 95 % interval by Student's t."""
    found = paired(numbers, [0.0] * len(numbers))
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings, such as data.root=fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=400, help="of training, per network and budget")
    parser.add_argument("--draws", type=int, default=250, help="that are scored of each, before")
    parser.add_argument("--json", default="transfer.json", help="where the results go, networks beside it")
    parser.add_argument("--print", dest="shown", metavar="FILE", help="only print a results file")
    args = parser.parse_args()
    if args.shown is not None:
        show(json.loads(Path(args.shown).read_text()))
        return
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(args.json)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["setting"] = {key: getattr(args, key) for key in ("seeds", "trials", "draws", "episodes")} | {
        "networks": NETWORKS,
        "config": SETTING,
        "torch": torch.__version__,
    }
    Benchmark(args, results).run()
    show(results)


if __name__ == "__main__":
    main()
