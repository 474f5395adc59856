"""Fewer layers or narrower ones: a deep network in ONNX Runtime at a small share of its latency, on digits.

    python benchmarks/depth.py --json benchmarks/results/depth.json
    python benchmarks/depth.py --network vit --json benchmarks/results/depth_vit.json

One device model is fitted to pruned networks, some of them without residual branches. For each seed a ResNet-56, or
a vision transformer of eight blocks, is trained. At each share of its modelled latency the best of some greedy
allocations is taken by top-1 on held-out images, its norms recalibrated: with all branches (``widths``), and with
any out (``depth``). The test images are read once by each, recalibrated and fine-tuned. Latency is measured in turn
with the unpruned network. Beside a fifth, the share is used that the narrowest network with all branches has.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

import espalier
from espalier.pruning.graph.allocation import (
    branch_order,
    branches_allowed,
    evenness,
    fewest_removed,
    greedy,
    narrowest,
)
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.networks import build
from espalier.pruning.runtimes.timing import prepared, time_in_turn
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import slim
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.data.transforms import normalize as pixels_of
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

RUNTIME, SHARE = "onnxruntime", 0.2
CALIBRATION = 512
"""Training images whose statistics norms take."""
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "resnet56": (
        "resnet56",
        {},
        {"epochs": 15, "batch_size": 64, "lr": 0.1},
        {"epochs": 5, "batch_size": 64, "lr": 0.02},
    ),
    "vit": (
        "vit_tiny",
        {"image_size": 8, "patch_size": 2, "depth": 8},
        {"epochs": 60, "batch_size": 64, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.05},
        {"epochs": 15, "batch_size": 64, "lr": 5e-4, "optimizer": "adamw", "weight_decay": 0.05},
    ),
}
"""Name -> built-in network, its arguments, how it is trained, and fine-tuned."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the branches that are tried, the least worth first."""


def asked(options: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The entry of `NETWORKS`, with the epochs of the command line, where it says any."""
    built_in, arguments, trained, tuned = NETWORKS[options.network]
    trained = trained | ({} if options.epochs is None else {"epochs": options.epochs})
    return built_in, arguments, trained, tuned | ({} if options.tune is None else {"epochs": options.tune})


def candidates(network: nn.Module, graph: ChannelGraph, budget: Budget, *, depth: bool) -> list[tuple[Any, Ints]]:
    """Allocations by raw, normalised and no energy, (scores, widths) each."""
    energies = channel_energies(network, graph).double().numpy()
    rankings = [normalize(energies, graph, "raw"), normalize(energies, graph, "mean")]
    rankings.append(evenness(graph, graph.ranks(energies)))
    found = []
    for scores in rankings:
        order = branch_order(graph, scores, budget) if depth else []
        least = fewest_removed(graph, order, budget)
        if least is not None:
            counts = {max(least, round(share * len(order))) for share in DEPTHS}
            found += [(energies, greedy(graph, scores, budget, removed=order[:count])) for count in sorted(counts)]
    return found


def recalibrated(network: nn.Module, splits: Splits) -> nn.Module:
    """The same network, its norms with statistics of training images."""
    images = pixels_of(splits.train.fetch(torch.arange(CALIBRATION)), splits.mean, splits.std)
    recalibrate_bn(network, images.split(128))
    return network


def judged(network: nn.Module, splits: Splits, part: str) -> float:
    """Top-1 in percent."""
    return top1(network, getattr(splits, part), splits.mean, splits.std)


def run(
    seed: int, options: argparse.Namespace, model: espalier.LatencyModel | None
) -> tuple[list[dict[str, Any]], Any]:
    """Every share, with and without depth, of one trained network; and the model of the device."""
    splits = data.load("digits", None, search_images=0.2, train_images=None, seed=seed)
    torch.manual_seed(seed)
    built_in, arguments, trained, tuned = asked(options)
    network = build(built_in, num_classes=splits.num_classes, in_channels=1, **arguments)
    recipe = Recipe(**trained)
    train(network, splits.train, splits.mean, splits.std, recipe, seed=seed)
    network.eval()
    graph = espalier.trace(network, torch.zeros(1, 1, 8, 8), depth=True)
    if model is None:
        model = espalier.measure_latency(network, graph, device=espalier.Device(RUNTIME), networks=options.networks)
    timed = model.on(graph)
    dense = timed.dense_cost("latency")
    reached = math.ceil(100 * float(timed.latency(narrowest(timed))) / dense) / 100
    nothing = narrowest(timed, removed=branches_allowed(timed))
    print(
        f"narrowest: {reached:.2f} of dense, without branches {float(timed.latency(nothing)) / dense:.2f}",
        flush=True,
    )
    found: list[dict[str, Any]] = []
    networks = {"dense": network}
    for share in sorted({SHARE, max(SHARE, reached)}):
        for name in ("widths", "depth"):
            budget = Budget.of(Budget(latency=share), timed)
            best: tuple[float, Ints, nn.Module] | None = None
            for scores, widths in candidates(network, timed, budget, depth=name == "depth"):
                small = recalibrated(slim(network, graph, graph.keep_best(scores, widths), verify=False), splits)
                value = judged(small, splits, "search")
                if best is None or value > best[0]:
                    best = value, widths, small
            row: dict[str, Any] = {
                "seed": seed,
                "share": share,
                "with": name,
                "dense": judged(network, splits, "test"),
            }
            if best is not None:
                _, widths, small = best
                networks[f"{share} {name}"] = copy.deepcopy(small)
                row |= {
                    "removed": len(graph.removed(widths)),
                    "macs": int(graph.macs(widths)) / int(graph.macs(graph.sizes)),
                    "modelled": float(timed.latency(widths)) / dense,
                    "recalibrated": judged(small, splits, "test"),
                }
                train(small, splits.train, splits.mean, splits.std, Recipe(**tuned), seed=seed)
                row["tuned"] = judged(small.eval(), splits, "test")
            found.append(row)
    example = torch.zeros(1, 1, 8, 8)
    sessions = {name: prepared(each.eval(), example, RUNTIME, (1,)) for name, each in networks.items()}
    took = time_in_turn(sessions, example)
    for row in found:
        key = f"{row['share']} {row['with']}"
        if key in took:
            row["measured"] = took[key].least / took["dense"].least
            row["ms"] = took[key].least
        print(json.dumps(row), flush=True)
    return found, model


def main() -> None:
    """Prints means and standard deviations over seeds, and writes every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    parser.add_argument("--epochs", type=float, help="of training")
    parser.add_argument("--tune", type=float, help="epochs of fine-tuning")
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    model: Any = None
    for seed in range(options.seeds):
        found, model = run(seed, options, model)
        runs += found
    for share, name in sorted({(each["share"], each["with"]) for each in runs}):
        own = [each for each in runs if each["share"] == share and each["with"] == name and "measured" in each]
        if own:
            words = [
                f"{key} {_spread([each[key] for each in own])}" for key in ("measured", "recalibrated", "tuned")
            ]
            print(f"{share:.2f} of dense, {name}: {', '.join(words)}")
        else:
            print(f"{share:.2f} of dense, {name}: out of reach")
    if options.json is not None:
        _, arguments, trained, tuned = asked(options)
        settings = {"device": model.device, "network": options.network, "networks": options.networks}
        settings |= {"arguments": arguments, "training": trained, "finetuning": tuned}
        options.json.write_text(json.dumps(settings | {"runs": runs}, indent=1) + "\n", encoding="utf-8")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
