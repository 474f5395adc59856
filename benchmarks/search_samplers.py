"""Every sampler against greedy and uniform pruning, before and after fine-tuning, with and without upper rungs.

    python benchmarks/search_samplers.py cifar10_resnet20 model.weights=resnet20.th data.root=cifar-10-batches-bin
        --keep 0.15 0.3 --trials 400 --seeds 3 --json search.json
    python benchmarks/search_samplers.py --print search.json

For each budget, sampler and seed one search in this process, at the strength that is chosen for the budget, on a
proxy that scores every candidate alike. Then, per seed, what is fine-tuned: the best by the search's own proxy, the
best after promotion to the upper rungs of proxies on unseen held-out images, both greedies, and uniform pruning;
normalised greedy and uniform pruning at every strength too. The test split is read once for each fine-tuned
network.

Every finished search and fine-tuning is kept in the JSON file and the folder beside it, so that a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table

from espalier.search.analysis.proxy_study import spearman_interval
from espalier.search.config.loading import load_config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.multi_fidelity import agreement, order, promote
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Lines
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import prepare
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.statistics.differences import paired
from espalier.search.training.finetune import ReadingSpec, read

AT = (25, 50, 100, 200, 300, 400)
"""Evaluations at which the best so far is printed."""


class Benchmark:
    """One network and budget.

    Args:
        args: the command line.
        keep: fraction of the MACs.
        results: what was found so far; written to as searches finish.
    """

    def __init__(self, args: argparse.Namespace, keep: float, results: dict[str, Any]) -> None:
        self.args, self.results = args, results
        self.config = load_config(args.config, [*args.overrides, f"budget.keep={keep}"])
        self.measure = self.config.search.measure
        self.folder = Path(args.json).with_suffix("")
        proxies = (args.proxy, *args.ladder)
        made = Experiment(self.config, prepare(self.config), self.folder, Lines(), proxies=proxies)
        made.train_ladder()
        made.settle_execution(unrecorded)
        self.experiment = made
        self.evaluator, self.unseen = Evaluator(made.spec), Evaluator(made.unseen)
        self.scores: dict[str, Score] = {}
        self.key = f"keep {keep:g}"
        self.results.setdefault(self.key, {"searches": {}, "finetuned": {}})
        self.results[self.key] |= {"measure": self.measure, "strength": self.results[self.key].get("strength", {})}
        budget = made.prepared.budget
        self.space, self.everywhere = made.choose_spaces([budget], self.once)[budget], made.space(budget)
        self.test = ReadingSpec(made.spec, made.task, "test")

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the results hold by a name."""
        kept: dict[str, dict[str, Any]] = self.results[self.key]["strength"]
        if name not in kept:
            kept[name] = make()
            self.write()
        return kept[name]

    def run(self) -> None:
        """All searches, then the fine-tunings."""
        own = self.results[self.key]
        for seed in range(self.args.seeds):
            for name in self.args.samplers:
                if f"{name} {seed}" not in own["searches"]:
                    own["searches"][f"{name} {seed}"] = self.search(name, seed)
                    self.write()
                    found = own["searches"][f"{name} {seed}"]
                    print(self.key, name, seed, f"{min(found['curve']):.4f}", flush=True)
        for seed in range(self.args.seeds):
            for policy, candidate in self.policies(seed).items():
                if f"{policy} {seed}" not in own["finetuned"]:
                    own["finetuned"][f"{policy} {seed}"] = self.finetuned(candidate, seed)
                    self.write()
                    print(self.key, policy, seed, own["finetuned"][f"{policy} {seed}"], flush=True)

    def search(self, name: str, seed: int) -> dict[str, Any]:
        """Losses of the candidates in turn, and the best candidates with and without promotion."""
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[name](self.space, seed))
        for params in self.space.greedy_params():
            study.enqueue_trial(params)
        values: dict[Candidate, float] = {}
        curve: list[float] = []
        for _ in range(self.args.trials):
            trial = study.ask()
            candidate = self.space.decode(self.space.suggest(trial))
            value = self.score(candidate).value(self.experiment.measure)
            study.tell(trial, value)
            values[candidate] = value
            curve.append(round(-max(values.values()), 5))
        best = max(values, key=lambda candidate: values[candidate])
        rungs = [values]
        for proxy in self.args.ladder:
            judge = partial(self.judged, proxy)
            rise = promote(rungs[-1], judge, proxy=proxy, share=self.args.promote, wanted=2)
            rungs.append(rise.values)
        return {
            "curve": curve,
            "best": best.key,
            "promoted": order(rungs)[0].key,
            "candidates": len(values),
            "rises": [len(rung) for rung in rungs[1:]],
        }

    def judged(self, proxy: str, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
        """Values of candidates by a rung of the ladder."""
        return {candidate: self.unseen(candidate, proxy).value(self.experiment.measure) for candidate in candidates}

    def score(self, candidate: Candidate) -> Score:
        """Of all samplers together each candidate is scored once."""
        if candidate.key not in self.scores:
            self.scores[candidate.key] = self.evaluator(candidate)
        return self.scores[candidate.key]

    def policies(self, seed: int) -> dict[str, Candidate]:
        """What is fine-tuned with a seed."""
        greedy = self.space.greedy_candidates()
        found = {
            "greedy, normalised": max(greedy[0::2], key=self.value),
            "greedy, raw": max(greedy[1::2], key=self.value),
            "uniform": max(self.space.uniform_candidates(), key=self.value),
            **{f"greedy, normalised, rung {c.rung}": c for c in self.everywhere.greedy_candidates()[0::2]},
            **{f"uniform, rung {c.rung}": c for c in self.everywhere.uniform_candidates()},
        }
        searches = self.results[self.key]["searches"]
        for name in self.args.finetune or self.args.samplers:
            found[name] = Candidate.from_key(searches[f"{name} {seed}"]["best"])
            found[f"{name}, promoted"] = Candidate.from_key(searches[f"{name} {seed}"]["promoted"])
        return found

    def value(self, candidate: Candidate) -> float:
        """By the search's own proxy."""
        return self.score(candidate).value(self.experiment.measure)

    def finetuned(self, candidate: Candidate, seed: int) -> dict[str, Any]:
        """Loss before, and test top-1 after fine-tuning."""
        (run,) = self.experiment.finetuner.finished([candidate], [seed])
        test = read(self.test, (candidate, seed, run.tensors())).value
        return {"loss": -self.value(candidate), "held_out": self.score(candidate).measures["top1"], "test": test}

    def write(self) -> None:
        """Keeps what was found."""
        write_json(Path(self.args.json), self.results)


def show(results: dict[str, Any]) -> None:
    """Prints the tables of a results file."""
    console = Console(width=160)
    console.print_json(json.dumps(results["setting"]))
    for key, own in results.items():
        if key == "setting":
            continue
        curves: dict[str, list[list[float]]] = {}
        for name, found in own["searches"].items():
            curves.setdefault(name.rpartition(" ")[0], []).append(found["curve"])
        steps = [at for at in AT if at <= len(next(iter(curves.values()))[0])]
        table = Table(
            title=f"{key}, lowest {own['measure']} so far, mean of seeds; the worst; evaluations until past greedy",
            box=None,
        )
        for heading in ("sampler", *map(str, steps), "worst", "past greedy after"):
            table.add_column(heading, justify="right")
        here = ("greedy, normalised ", "greedy, raw ")  # at the strength that was searched, by seed
        baselines = [run["loss"] for name, run in own["finetuned"].items() if name.startswith(here)]
        for name, seeds in sorted(curves.items(), key=lambda item: statistics.mean(c[-1] for c in item[1])):
            means = [f"{statistics.mean(curve[at - 1] for curve in seeds):.4f}" for at in steps]
            past = [
                next((at + 1 for at, loss in enumerate(curve) if loss < min(baselines) - 1e-6), None)
                for curve in (seeds if baselines else [])
            ]
            table.add_row(name, *means, f"{max(curve[-1] for curve in seeds):.4f}", ", ".join(map(str, past)))
        console.print(table)
        tests: dict[str, list[dict[str, float]]] = {}
        for name, found in own["finetuned"].items():
            tests.setdefault(name.rpartition(" ")[0], []).append(found)
        if not tests:
            continue
        table = Table(title=f"{key}: before and after fine-tuning", box=None)
        for heading in (
            "policy",
            "loss",
            "held-out",
            "test top-1 after",
            "against the better greedy",
        ):
            table.add_column(heading, justify="right")
        greedy = max(("greedy, normalised", "greedy, raw"), key=lambda name: _mean(tests[name], "test"))
        for name, runs in sorted(tests.items(), key=lambda item: -_mean(item[1], "test")):
            sd = statistics.stdev(run["test"] for run in runs) if len(runs) > 1 else 0.0
            pairs = list(zip(runs, tests[greedy], strict=False))  # a run that was stopped lacks seeds of some
            difference = _interval([(own["test"], other["test"]) for own, other in pairs])
            table.add_row(
                name,
                f"{_mean(runs, 'loss'):.3f}",
                f"{_mean(runs, 'held_out'):.2f}",
                f"{_mean(runs, 'test'):.2f} ± {sd:.2f}",
                "" if name == greedy else difference,
            )
        console.print(table)
        found, low, high = _left_to_tell(own["finetuned"])
        console.print(
            f"{key}: what was found ranks before fine-tuning as after it (loss, test top-1, less their "
            f"seed's means) to {found:+.2f} ({low:+.2f} to {high:+.2f})\n"
        )


def _left_to_tell(finetuned: dict[str, dict[str, float]]) -> tuple[float, float, float]:
    """How well the proxy ranks what searches have found, less the seeds' means, with a 95 % interval."""
    runs: dict[str, list[tuple[float, float]]] = {}
    for name, run in finetuned.items():
        policy, _, seed = name.rpartition(" ")
        if not policy.startswith(("greedy", "uniform")):
            runs.setdefault(seed, []).append((-run["loss"], run["test"]))
    centred = np.concatenate([np.array(own) - np.mean(own, axis=0) for own in runs.values()])
    found = agreement(*centred.T)
    return found, *spearman_interval(found, len(centred) - len(runs) + 1)


def _mean(runs: list[dict[str, float]], key: str) -> float:
    return statistics.mean(run[key] for run in runs)


def _interval(pairs: list[tuple[float, float]]) -> str:
    found = paired([own for own, _ in pairs], [other for _, other in pairs])
    return f"{found.mean:+.2f}" + (f" ({found.low:+.2f} to {found.high:+.2f})" if found.seeds > 1 else "")


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.3, 0.15])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=[name for name in SAMPLERS if name != "gp"])
    parser.add_argument("--finetune", nargs="+", default=None, help="samplers whose winners are fine-tuned: all")
    parser.add_argument("--proxy", default="recalibrated")
    parser.add_argument("--ladder", nargs="*", default=["ridge", "sgd20"])
    parser.add_argument("--promote", type=float, default=0.2)
    parser.add_argument("--json", default="search.json", help="where the results go, networks beside it")
    parser.add_argument("--print", dest="shown", metavar="FILE", help="only print a results file")
    args = parser.parse_args()
    if args.shown is not None:
        show(json.loads(Path(args.shown).read_text()))
        return
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(args.json)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    shown = {key: value for key, value in vars(args).items() if key not in ("json", "shown")}
    shown["overrides"] = [each for each in args.overrides if not each.startswith(("data.root", "model.weights"))]
    results["setting"] = shown | {"machine": platform.machine(), "torch": torch.__version__}
    for keep in args.keep:
        Benchmark(args, keep, results).run()
    show(results)


if __name__ == "__main__":
    main()
