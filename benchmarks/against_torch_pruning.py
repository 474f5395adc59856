"""Tracing, slimming and costing against Torch-Pruning (arXiv:2301.12900), pair by pair in one run.

    pip install torch-pruning transformers
    python benchmarks/against_torch_pruning.py --json results.json

Both sides get the same network, input and thread. Runs alternate, and each ratio is of two neighbours, so that what
else the machine does meets both alike. Before anything is timed, both are shown to cut the same from ResNet-56.

Two differences remain. espalier returns a new network and leaves the dense one and its graph as they were;
Torch-Pruning cuts in place, and a search that scores many candidates copies and traces anew for each: both ways are
timed. Shortcuts of ResNet-56 are projections here (shortcut B), as Torch-Pruning does not follow zero-padded ones.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json

POLICIES = 100_000
KEEP = 0.5

Run = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """What is timed on either side.

    Attributes:
        name: what is done.
        ours: prepares one run, untimed, and returns it.
        theirs: the same of Torch-Pruning.
        times: how many times as much work ours does; the ratio is per unit of work.
    """

    name: str
    ours: Callable[[], Run]
    theirs: Callable[[], Run]
    times: int = 1


def dependencies(model: nn.Module, images: Tensor) -> Any:
    """Torch-Pruning's graph."""
    return torch_pruning.DependencyGraph().build_dependency(model, images, verbose=False)


def efficientnet_b7() -> nn.Module:
    """From its config, with random weights."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(hidden_dim=2560, width_coefficient=2.0, depth_coefficient=3.1, image_size=600)
    network: nn.Module = EfficientNetForImageClassification(config)
    return network.eval()


def tracing(name: str, model: nn.Module, side: int) -> Comparison:
    """A network's coupling found from scratch."""
    images = torch.randn(1, 3, side, side)
    title = f"trace {name} at {side} x {side}"

    def groups() -> None:
        for _ in dependencies(model, images).get_all_groups():
            pass

    return Comparison(title, lambda: lambda: trace(model, images), lambda: groups)


def roots(model: nn.Module, graph: ChannelGraph, keep: Tensor) -> list[tuple[str, list[int]]]:
    """For every group, a layer that writes it and the outputs of that layer that go."""
    found = []
    for group, kept in zip(graph.groups, torch.split(keep, graph.sizes.tolist()), strict=True):
        member = next(m for m in group.members if m.role == "out")
        gone = ~kept.numpy()[member.channels]
        found.append((member.tensor.rpartition(".")[0], member.positions[gone].tolist()))
    return found


def cut(model: nn.Module, graph: Any, removed: list[tuple[str, list[int]]]) -> nn.Module:
    """Torch-Pruning's way: group after group, in place."""
    for name, outputs in removed:
        layer = model.get_submodule(name)
        graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, outputs).prune()
    return model


def slimming(model: nn.Module, side: int, generator: torch.Generator) -> list[Comparison]:
    """A random half of the channels of every group goes, the same on both sides."""
    images = torch.randn(1, 3, side, side)
    graph = trace(model, images)
    widths = np.maximum(graph.sizes * KEEP, 1).astype(np.int64)
    keep = graph.keep_best(torch.rand(graph.n_channels, generator=generator).numpy(), widths)
    removed = roots(model, graph, keep)

    def prepared() -> Run:
        network = copy.deepcopy(model)
        traced = dependencies(network, images)
        return lambda: cut(network, traced, removed)

    def from_dense() -> nn.Module:
        network = copy.deepcopy(model)
        return cut(network, dependencies(network, images), removed)

    mine, other = slim(model, graph, keep).state_dict(), from_dense().state_dict()
    if any(not torch.equal(value, other[name]) for name, value in mine.items()):
        raise SystemExit("the two sides cut different channels, so that their times mean nothing")

    ways: list[tuple[str, dict[str, Any]]] = [("", {})]
    if "verify" in inspect.signature(slim).parameters:
        ways = [(", not verified", {"verify": False}), (", verified", {"verify": True})]
    others = {"in place, once traced": prepared, "copied, traced and cut": lambda: from_dense}
    comparisons = []
    for how, kwargs in ways:

        def ours(kwargs: dict[str, Any] = kwargs) -> Run:
            return lambda: slim(model, graph, keep, **kwargs)

        for what, theirs in others.items():
            comparisons.append(Comparison(f"slim ResNet-56{how}; theirs {what}", ours, theirs))
    return comparisons


def costing(model: nn.Module, side: int, generator: np.random.Generator) -> Comparison:
    """MACs of random widths; Torch-Pruning counts one network as it runs."""
    images = torch.randn(1, 3, side, side)
    graph = trace(model, images)
    widths = generator.integers(1, graph.sizes + 1, size=(POLICIES, len(graph.sizes)))
    return Comparison(
        f"MACs of {POLICIES:,} widths of ResNet-50; theirs of one",
        lambda: lambda: graph.macs(widths),
        lambda: lambda: torch_pruning.utils.count_ops_and_params(model, images),
        times=POLICIES,
    )


def milliseconds(run: Run) -> float:
    """Duration of one run, in ms."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def measure(comparison: Comparison, pairs: int) -> dict[str, Any]:
    """Alternates the two sides, after one run of each to warm up."""
    sides = (comparison.ours, comparison.theirs)
    for prepare in sides:
        prepare()()
    found = []
    for number in range(pairs):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {side: milliseconds(sides[side]()) for side in order}
        found.append((taken[0], taken[1]))
    return {
        "name": comparison.name,
        "times": comparison.times,
        "ours_ms": spread([ours for ours, _ in found]),
        "theirs_ms": spread([theirs for _, theirs in found]),
        "theirs_over_ours": spread([comparison.times * theirs / ours for ours, theirs in found]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and greatest, to four digits."""
    chosen = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in chosen.items()}


def show(results: list[dict[str, Any]], pairs: int) -> None:
    """Prints a table."""
    table = Table(title=f"medians of {pairs} pairs (least to greatest)")
    table.add_column("")
    for heading in ("espalier, ms", "Torch-Pruning, ms", "theirs / ours"):
        table.add_column(heading, justify="right")
    for result in results:
        cells = [result[key] for key in ("ours_ms", "theirs_ms", "theirs_over_ours")]
        texts = [f"{c['median']:,.4g} ({c['min']:,.4g} to {c['max']:,.4g})" for c in cells]
        table.add_row(result["name"], *texts)
    Console(width=max(Console().width, 132)).print(table)


def main() -> None:
    """Measures, prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side that are timed")
    parser.add_argument("--side", type=int, default=224, help="height and width for EfficientNet-B7, in pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="torch_pruning")

    resnet56 = build("resnet56", shortcut="B").eval()
    resnet50 = build("resnet50").eval()
    comparisons = [
        tracing("ResNet-56", resnet56, 32),
        tracing("ResNet-50", resnet50, 224),
        tracing("DenseNet-121", build("densenet121").eval(), 224),
        tracing("EfficientNet-B7", efficientnet_b7(), options.side),
        *slimming(resnet56, 32, torch.Generator().manual_seed(0)),
        costing(resnet50, 224, np.random.default_rng(0)),
    ]
    results = [measure(comparison, options.pairs) for comparison in comparisons]
    show(results, options.pairs)
    if options.json:
        report = {
            "benchmark": "torch_pruning",
            "pairs": options.pairs,
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("torch", "torch-pruning", "transformers")},
            "machine": platform.machine(),
            "results": results,
        }
        write_json(options.json, report)


if __name__ == "__main__":
    main()
