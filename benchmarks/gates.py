"""Claims of papers on gates: budgets are met without a threshold; AutoBot keeps accuracy before fine-tuning.

    python benchmarks/gates.py --json benchmarks/results/gates.json
    python benchmarks/gates.py --print benchmarks/results/gates.json

ResNet-20, 8 channels wide, is trained on the digits, once for each seed. It is trained on with every gate
and every budget and, as the control, without a gate. Networks are cut once and not fine-tuned; batch norms are
recalibrated on training images, or left as they are. The control, and the dense network where weights are frozen,
are cut by magnitude: by energy and by the L1 norm of filters, raw and divided by the group's mean.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.pruning.gates.gated import gated
from espalier.pruning.gates.gates import GATES
from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.networks import build
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.data.transforms import normalize as standardize
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

KEEPS = (0.5, 0.25)
MAGNITUDE = tuple((criterion, how) for criterion in ("energy", "l1") for how in ("raw", "mean"))
T = {3: 4.303, 5: 2.776}
"""Number of seeds -> 97.5 % quantile of Student's t."""


def measured(seeds: int, epochs: float, gate_epochs: float) -> dict[str, Any]:
    """Every network of every seed."""
    splits = data.load("digits", None, search_images=0.1, train_images=None, seed=0)
    dense_recipe = Recipe(epochs, 64, 0.1, pad=1)
    recipe = Recipe(gate_epochs, 64, 0.05, pad=1)
    pixels = standardize(splits.train.fetch(torch.arange(512)), splits.mean, splits.std)
    start, found = time.process_time(), []

    def fit(network: nn.Module, chosen: Recipe, seed: int) -> None:
        train(network, splits.train, splits.mean, splits.std, chosen, seed=seed)

    def tested(network: nn.Module) -> float:
        return round(top1(network, splits.test, splits.mean, splits.std), 2)

    def both(cut: nn.Module) -> dict[str, float]:
        plain = tested(cut)
        recalibrate_bn(cut, [pixels])
        return {"cut": plain, "recalibrated": tested(cut)}

    def by_magnitude(network: nn.Module, graph: ChannelGraph, keep: float) -> dict[str, Any]:
        rows = {}
        for criterion, how in MAGNITUDE:
            scores = normalize(CRITERIA[criterion](network, graph).detach().double().numpy(), graph, how)
            widths = greedy(graph, scores, Budget(macs=keep))
            rows[f"{criterion}_{how}"] = both(slim(network, graph, graph.keep_best(scores, widths)))
        return rows

    for seed in range(seeds):
        torch.manual_seed(seed)
        dense = build("resnet20", width=8, in_channels=1, num_classes=10)
        fit(dense, dense_recipe, seed)
        graph = trace(dense, torch.zeros(1, *splits.image_shape))
        control = copy.deepcopy(dense)
        fit(control, recipe, seed)
        row: dict[str, Any] = {"seed": seed, "dense": tested(dense), "control": tested(control), "budgets": {}}
        for keep in KEEPS:
            limit = int(keep * graph.dense_cost("macs"))
            gates: dict[str, Any] = {}
            for name in GATES:
                network = copy.deepcopy(dense)
                with gated(network, graph, name, limit, steps=recipe.steps(len(splits.train)), seed=seed) as made:
                    fit(network, recipe, seed)
                kept = int(graph.macs(graph.widths(made.keep)))
                gates[name] = {
                    "expected": round(made.expected["macs"] / limit - 1, 4),
                    "kept": round(kept / limit - 1, 4),
                    **both(slim(network, graph, made.keep)),
                }
            row["budgets"][f"{keep:g}"] = {
                "gates": gates,
                "dense": by_magnitude(dense, graph, keep),
                "control": by_magnitude(control, graph, keep),
            }
        found.append(row)
    return {
        "benchmark": "gates",
        "epochs": {"dense": epochs, "gates": gate_epochs},
        "steps": recipe.steps(len(splits.train)),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread",
        "seconds": round(time.process_time() - start),
        "seeds": found,
    }


def interval(values: list[float], digits: int = 1) -> str:
    """Mean and 95 % interval over seeds."""
    mean = statistics.mean(values)
    if len(values) not in T:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {T[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def show(results: dict[str, Any]) -> None:
    """Prints the tables of a results file."""
    console, seeds = Console(width=140), results["seeds"]
    dense, control = ([seed[which] for seed in seeds] for which in ("dense", "control"))
    console.print(f"test top-1 of the dense network {interval(dense)} %, trained on {interval(control)} %")
    for keep in seeds[0]["budgets"]:
        table = Table(
            title=f"{float(keep):.0%} of the MACs, mean and 95 % interval over {len(seeds)} seeds", box=None
        )
        for heading in ("", "expected MACs off the target, %", "kept, %", "top-1 as cut", "recalibrated"):
            table.add_column(heading)
        for name in seeds[0]["budgets"][keep]["gates"]:
            rows = [seed["budgets"][keep]["gates"][name] for seed in seeds]
            off = (interval([100 * row[key] for row in rows]) for key in ("expected", "kept"))
            table.add_row(name, *off, *(interval([row[key] for row in rows]) for key in ("cut", "recalibrated")))
        for which in ("dense", "control"):
            for name in seeds[0]["budgets"][keep][which]:
                rows = [seed["budgets"][keep][which][name] for seed in seeds]
                told = (interval([row[key] for row in rows]) for key in ("cut", "recalibrated"))
                table.add_row(f"{name}, {which}", "", "", *told)
        console.print(table)
        for when in ("cut", "recalibrated"):
            ahead = []
            for seed in seeds:
                rows = seed["budgets"][keep]
                best = max(row[when] for row in rows["dense"].values())
                ahead.append(rows["gates"]["bottleneck"][when] - best)
            console.print(
                f"bottleneck minus the best magnitude of the same weights, {when}: {interval(ahead)} points"
            )


def main() -> None:
    """Runs or prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--print", type=Path, dest="shown", help="print the tables of a results file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--gate-epochs", type=float, default=10)
    options = parser.parse_args()
    if options.shown is None:
        torch.set_num_threads(1)
        results = measured(options.seeds, options.epochs, options.gate_epochs)
        if options.json is not None:
            write_json(options.json, results)
    else:
        results = json.loads(options.shown.read_text(encoding="utf-8"))
    show(results)


if __name__ == "__main__":
    main()
