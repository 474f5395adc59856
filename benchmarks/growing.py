"""The claim of growing regularisation (Wang et al., ICLR 2021, arXiv:2012.09243): less is lost at the cut.

    python benchmarks/growing.py --json benchmarks/results/growing.json
    python benchmarks/growing.py --print benchmarks/results/growing.json

ResNet-20, 8 channels wide, is trained on the digits for 20 epochs, once for each seed. The half of every group's
channels whose filters and norms are the smallest is to go, the same for all that follows. The network is trained on
for 10 epochs: without a penalty, with one of constant strength on these channels, or with one that grows from zero.
Then they are cut, and what is left is fine-tuned for 5 epochs. The strength of either penalty is the one that is
best on held-out images as cut, mean over seeds; all figures are of the test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.pruning.importance.selective import GrowingRegularization
from espalier.pruning.networks import build
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.data.transforms import normalize as standardize
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
WAYS = {"none": None, "constant": 0.0, "growing": 1.0}
"""Way -> the share of the training over which the strength rises; None without a penalty."""
KINDS = ("uncut", "cut", "recalibrated", "fine-tuned")
T = {3: 4.303, 5: 2.776}
"""Number of seeds -> 97.5 % quantile of Student's t."""


def measured(seeds: int, share: float) -> dict[str, Any]:
    """Every network of every seed."""
    splits = data.load("digits", None, search_images=0.2, train_images=None, seed=0)
    first, on, last = Recipe(20, 64, 0.1, pad=1), Recipe(10, 64, 0.05, pad=1), Recipe(5, 64, 0.02, pad=1)
    pixels = standardize(splits.train.fetch(torch.arange(512)), splits.mean, splits.std)
    start, found = time.process_time(), []

    def fit(network: nn.Module, recipe: Recipe, seed: int, **penalty: Any) -> None:
        train(network, splits.train, splits.mean, splits.std, recipe, seed=seed, **penalty)

    def both(network: nn.Module) -> dict[str, float]:
        of = {"held out": splits.search, "test": splits.test}
        return {name: round(top1(network, images, splits.mean, splits.std), 2) for name, images in of.items()}

    for seed in range(seeds):
        torch.manual_seed(seed)
        dense = build("resnet20", width=8, in_channels=1, num_classes=10)
        fit(dense, first, seed)
        graph = trace(dense, torch.zeros(1, *splits.image_shape))
        penalty = GrowingRegularization(graph, with_norms=True, share=share)
        weights = dict(dense.named_parameters())
        penalty.begin(weights)
        keep = penalty.factors(torch.ones(graph.n_channels)) == 0
        for way, ramp in WAYS.items():
            for strength in STRENGTHS if ramp is not None else (0.0,):
                network = copy.deepcopy(dense)
                told: dict[str, Any] = {}
                if ramp is not None:
                    told = {
                        "regularizer": GrowingRegularization(graph, with_norms=True, share=share),
                        "strength": strength,
                    }
                    told |= {"proximal": True, "ramp": ramp}
                fit(network, on, seed, **told)
                row: dict[str, Any] = {"seed": seed, "way": way, "strength": strength, "uncut": both(network)}
                network = slim(network, graph, keep)
                row["cut"] = both(network)
                recalibrate_bn(network, [pixels])
                row["recalibrated"] = both(network)
                fit(network, last, seed)
                row["fine-tuned"] = both(network)
                found.append(row)
                print(json.dumps(row), flush=True)
    return {
        "benchmark": "growing",
        "share": share,
        "macs": round(int(graph.macs(graph.widths(keep))) / graph.dense_cost("macs"), 4),
        "torch": torch.__version__,
        "seconds": round(time.process_time() - start),
        "rows": found,
    }


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds."""
    mean = statistics.mean(values)
    if len(values) not in T:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {T[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def show(results: dict[str, Any]) -> None:
    """Prints the table of a results file, and differences by seed."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for way in WAYS:
        by_strength: dict[float, list[dict[str, Any]]] = {}
        for row in results["rows"]:
            if row["way"] == way:
                by_strength.setdefault(row["strength"], []).append(row)
        chosen[way] = max(by_strength.values(), key=lambda rows: sum(row["cut"]["held out"] for row in rows))
    table = Table(title=f"test top-1 in percent, {results['macs']:.1%} of the MACs", box=None)
    for heading in ("penalty", "strength", *KINDS):
        table.add_column(heading)
    for way, rows in chosen.items():
        table.add_row(
            way, f"{rows[0]['strength']:g}", *(interval([row[kind]["test"] for row in rows]) for kind in KINDS)
        )
    console = Console(width=120)
    console.print(table)
    for way in ("none", "constant"):
        for kind in KINDS[1:]:
            pairs = zip(chosen["growing"], chosen[way], strict=True)
            ahead = [one[kind]["test"] - other[kind]["test"] for one, other in pairs]
            console.print(f"growing - {way}, {kind}: {interval(ahead)}")


def main() -> None:
    """Measures or reads, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of every group's channels, that goes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--print", type=Path, help="a results file: nothing is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(options.print.read_text()) if options.print else measured(options.seeds, options.share)
    if options.json:
        write_json(options.json, results)
    show(results)


if __name__ == "__main__":
    main()
