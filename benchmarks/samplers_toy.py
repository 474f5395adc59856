"""How near do samplers come to an optimum that is known? A toy that takes a millisecond a candidate.

    python benchmarks/samplers_toy.py --json benchmarks/results/samplers_toy.json
    python benchmarks/samplers_toy.py --samplers cmaes local --seeds 2 --json some.json
    python benchmarks/samplers_toy.py --print benchmarks/results/samplers_toy.json

The costs are those of ResNet-20. The damage of widths w on rung r is

    D_r(w) = b_r + sum_g c_rg ((size_g / w_g)^p_g - 1),

with log-normal c and p between 0.5 and 1.5: convex and separable. Channel energies are the damage that a channel's
removal does, times an error e^(0.7 N(0, 1)) per group and rung: greedy pruning has a good idea of what channels are
worth, a wrong one of some groups, and none of what they cost. Each seed is another toy and another search.

MACs are linear in the inner widths once those of the three residual streams are given. So the optimum is found
exactly: for each of the 8,192 triples of stream widths a Lagrangian bound, then, where that leaves room for
something better than the best known, dynamic programming over the inner widths, in which what is dominated or
out-bounded is dropped.

Reported is the share of greedy pruning's excess that is left, (D - D*) / (D_greedy - D*): 1 is the best greedy
vector, which every study begins with, 0 the optimum. A search takes 2 to 8 seconds of processor time, all of them
about 20 minutes; `gp`, which takes longer as the record grows, runs when named. Searches that the file has are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.networks import build
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import Space
from espalier.search.study.keys import CANDIDATE

KEEP = (0.5, 0.3, 0.15)
MARKS = (100, 200, 400)
RUNGS = 3
STREAMS = ("conv1", "layer2.0.conv2", "layer3.0.conv2")
DEAR = ("gp",)
"""Samplers that run when named: they take long to propose."""


@dataclass(frozen=True)
class Toy:
    """One problem.

    Attributes:
        graph: of ResNet-20.
        curves: per rung and group, (size + 1,) damage at every width; infinite at 0.
        base: (RUNGS,) damage of the dense networks.
        energies: per rung, (n_channels,).
    """

    graph: ChannelGraph
    curves: list[list[Floats]]
    base: Floats
    energies: list[Floats]

    @staticmethod
    def drawn(graph: ChannelGraph, seed: int) -> Toy:
        """The toy of a seed."""
        rng = np.random.default_rng(seed)
        n_groups = len(graph.groups)
        power = rng.uniform(0.5, 1.5, n_groups)
        scale = np.exp(0.6 * rng.standard_normal(n_groups))
        curves, energies = [], []
        for _ in range(RUNGS):
            c = 0.05 * scale * np.exp(0.3 * rng.standard_normal(n_groups))
            error = np.exp(0.7 * rng.standard_normal(n_groups))
            damages, worth = [], []
            for group, size in enumerate(graph.sizes.tolist()):
                widths = np.arange(size + 1)
                with np.errstate(divide="ignore"):
                    damages.append(c[group] * ((size / widths) ** power[group] - 1))
                half = c[group] * ((size / (widths[:-1] + 0.5)) ** power[group])
                worth.append(error[group] * -np.diff(half, append=c[group] * (size / (size + 0.5)) ** power[group]))
            curves.append(damages)
            energies.append(np.concatenate(worth))
        return Toy(graph, curves, np.sort(rng.uniform(0.0, 0.1, RUNGS)), energies)

    def damage(self, candidate: Candidate) -> float:
        """D."""
        curves = self.curves[candidate.rung]
        parts = [curve[width] for curve, width in zip(curves, candidate.widths, strict=True)]
        return float(self.base[candidate.rung] + sum(parts))


# ---------------------------------------------------------------------------------------------- the optimum


def optimum(toy: Toy, budget: int) -> tuple[float, Candidate]:
    """Least damage of all widths within the budget, exactly, and where it is."""
    best = (np.inf, Candidate(0, ()))
    for rung in range(RUNGS):
        best = min(best, _optimum(toy, rung, budget, best), key=lambda found: found[0])
    return best


def _optimum(toy: Toy, rung: int, budget: int, best: tuple[float, Candidate]) -> tuple[float, Candidate]:
    graph, curves, base = toy.graph, toy.curves[rung], float(toy.base[rung])
    names = [group.name for group in graph.groups]
    streams = [names.index(name) for name in STREAMS]
    inner = [group for group in range(len(names)) if group not in streams]
    triples = np.stack(np.meshgrid(*(np.arange(1, graph.sizes[s] + 1) for s in streams), indexing="ij"), -1)
    widths = np.ones((triples[..., 0].size, len(names)), dtype=np.int64)
    widths[:, streams] = triples.reshape(-1, len(streams))
    ones = graph.macs(widths)
    prices = np.stack([graph.macs(widths + np.eye(len(names), dtype=np.int64)[g]) - ones for g in inner], 1)
    left = budget - (ones - prices.sum(1))  # MACs for the inner widths
    fixed = base + np.stack([curves[s][widths[:, s]] for s in streams]).sum(0)
    bound, multiplier = _bounds(curves, inner, prices, left)
    possible = np.flatnonzero((left >= prices.sum(1)) & (fixed + bound < best[0]))
    for index in possible[np.argsort((fixed + bound)[possible])]:
        room = best[0] - fixed[index]
        if bound[index] >= room - 1e-12:
            continue
        found = _exact([curves[g][1:] for g in inner], prices[index], int(left[index]), multiplier[index], room)
        if found is not None:
            whole = widths[index].copy()
            whole[inner] = found
            candidate = Candidate(rung, tuple(whole.tolist()))
            assert graph.macs(whole) <= budget
            best = (toy.damage(candidate), candidate)
    return best


def _bounds(curves: list[Floats], inner: list[int], prices: Ints, left: Ints) -> tuple[Floats, Floats]:
    """Per triple the greatest Lagrangian bound on the damage of the inner widths, and its multiplier.

    sum_i min_w (D_i(w) + m k_i w) - m left is a bound for any m >= 0; bisection finds where it is greatest.
    """
    low, high = np.full(len(left), 1e-12), np.full(len(left), 1.0)
    bound = np.full(len(left), -np.inf)
    best = low.copy()
    for _ in range(50):
        middle = np.sqrt(low * high)
        total, spent = -middle * left, np.zeros(len(left))
        for column, group in enumerate(inner):
            curve, counts = curves[group][1:], np.arange(1, len(curves[group]))
            costs = curve + (middle * prices[:, column])[:, None] * counts
            chosen = costs.argmin(1)
            total = total + costs[np.arange(len(left)), chosen]
            spent = spent + prices[:, column] * counts[chosen]
        best = np.where(total > bound, middle, best)
        bound = np.maximum(bound, total)
        low, high = np.where(spent > left, middle, low), np.where(spent > left, high, middle)
    return bound, best


def _exact(curves: list[Floats], prices: Ints, left: int, multiplier: float, room: float) -> list[int] | None:
    """Inner widths of least damage within `left` MACs, or None where it is not less than `room`."""
    dual = [
        float((curve + multiplier * k * np.arange(1, len(curve) + 1)).min())
        for curve, k in zip(curves, prices, strict=True)
    ]
    spent, damage = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[Ints, Ints]] = []  # per group: the state before, and the width
    for group, (curve, price) in enumerate(zip(curves, prices.tolist(), strict=True)):
        counts = np.arange(1, len(curve) + 1)
        costs = (spent[:, None] + price * counts).reshape(-1)
        damages = (damage[:, None] + curve).reshape(-1)
        bound = damages + sum(dual[group + 1 :]) - multiplier * (left - costs)
        alive = np.flatnonzero((costs <= left) & (bound < room - 1e-12))
        alive = alive[np.lexsort((damages[alive], costs[alive]))]
        if not len(alive):
            return None
        least = np.minimum.accumulate(damages[alive])
        undominated = np.concatenate([[True], damages[alive][1:] < least[:-1]])
        alive = alive[undominated]
        spent, damage = costs[alive], damages[alive]
        steps.append((alive // len(curve), counts[alive % len(curve)]))
    state, widths = int(damage.argmin()), []
    if damage[state] >= room:
        return None
    for before, count in reversed(steps):
        widths.append(int(count[state]))
        state = int(before[state])
    return widths[::-1]


# ---------------------------------------------------------------------------------------------- the searches


def search(toy: Toy, space: Space, sampler: str, seed: int, trials: int) -> tuple[list[float], float, int]:
    """Least damage after every trial, processor seconds per proposal, and the number of different candidates."""
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](space, seed))
    for params in space.greedy_params():
        study.enqueue_trial(params)
    least, curve, seconds, keys = np.inf, [], 0.0, set()
    for _ in range(trials):
        start = time.process_time()
        trial = study.ask()
        params = space.suggest(trial)
        seconds += time.process_time() - start
        candidate = space.decode(params)
        trial.set_user_attr(CANDIDATE, candidate.key)
        keys.add(candidate.key)
        damage = toy.damage(candidate)
        study.tell(trial, -damage)
        least = min(least, damage)
        curve.append(least)
    return curve, seconds / trials, len(keys)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All searches that the file lacks; it is written after each."""
    path = Path(args.json)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    graph = trace(build("resnet20"), torch.zeros(1, 3, 32, 32))
    dense = int(graph.macs(graph.sizes))
    for seed in range(args.seeds):
        toy = Toy.drawn(graph, seed)
        for keep in args.keep:
            budget = int(dense * keep)
            problem = results.setdefault(f"keep {keep} seed {seed}", {"searches": {}})
            if "optimum" not in problem:
                problem["optimum"], where = optimum(toy, budget)
                problem["rung"], problem["widths"] = where.rung, list(where.widths)
            for name in args.spaces:
                space = SPACES[name](
                    graph,
                    toy.energies,
                    normalization="searched",
                    budget=budget,
                    floor=np.ones_like(graph.sizes),
                    width=1.5,
                )
                greedy = min(toy.damage(space.decode(params)) for params in space.greedy_params())
                problem["greedy"] = greedy
                excess = greedy - problem["optimum"]
                for sampler in args.samplers:
                    key = f"{sampler} {name}"
                    if key in problem["searches"]:
                        continue
                    curve, seconds, distinct = search(toy, space, sampler, seed, max(args.marks))
                    assert curve[-1] > problem["optimum"] - 1e-9, "a search found better than the optimum"
                    found = {
                        str(mark): round((curve[mark - 1] - problem["optimum"]) / excess, 3) for mark in args.marks
                    }
                    problem["searches"][key] = {
                        "regret": found,
                        "milliseconds": round(1000 * seconds, 2),
                        "distinct": distinct,
                    }
                    write_json(path, results)
    return results


def show(results: dict[str, Any]) -> None:
    """One row per sampler and space, sorted by the mean over budgets after 200 trials."""
    problems = results
    keeps = list(dict.fromkeys(name.split()[1] for name in problems))
    rows: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for problem in problems.values() for key in problem["searches"]):
        rows[key] = {
            f"{keep} {mark}": [
                problem["searches"][key]["regret"][str(mark)]
                for name, problem in problems.items()
                if name.split()[1] == keep and str(mark) in problem["searches"].get(key, {}).get("regret", {})
            ]
            for keep in keeps
            for mark in MARKS
        }
        rows[key]["ms"] = [p["searches"][key]["milliseconds"] for p in problems.values() if key in p["searches"]]
    table = Table(title="share of greedy pruning's excess damage that is left: mean (worst)")
    table.add_column("sampler, space")
    for keep in keeps:
        for mark in MARKS:
            table.add_column(f"{float(keep):.0%}\n{mark}", justify="right")
    table.add_column("ms per\nproposal", justify="right")

    def rank(key: str) -> float:
        found = [
            value for keep in keeps for value in rows[key][f"{keep} {MARKS[1]}"] or rows[key][f"{keep} {MARKS[0]}"]
        ]
        return float(statistics.mean(found or [9.0]))

    for key in sorted(rows, key=rank):
        cells = []
        for keep in keeps:
            for mark in MARKS:
                found = rows[key][f"{keep} {mark}"]
                cells.append(f"{statistics.mean(found):.2f} ({max(found):.2f})" if found else "")
        table.add_row(key, *cells, f"{statistics.median(rows[key]['ms']):.1f}")
    Console(width=150).print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", default=[name for name in SAMPLERS if name not in DEAR])
    parser.add_argument("--spaces", nargs="+", default=["multipliers"])
    parser.add_argument("--keep", nargs="+", type=float, default=list(KEEP))
    parser.add_argument("--marks", nargs="+", type=int, default=list(MARKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", default="samplers_toy.json")
    parser.add_argument("--print", metavar="FILE", help="only show what a file holds")
    args = parser.parse_args()
    if args.print:
        show(json.loads(Path(args.print).read_text()))
        return
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    show(measure(args))


if __name__ == "__main__":
    main()
