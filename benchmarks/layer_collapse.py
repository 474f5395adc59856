"""Layer collapse: which criteria leave a bottleneck of one channel where a network is pruned hard before training.

    python benchmarks/layer_collapse.py --json benchmarks/results/layer_collapse.json

Tanaka et al. (NeurIPS 2020, arXiv 2006.05467) show that SNIP and GraSP empty whole layers at high compression, and
that synaptic flow does not if it is scored again as weights go. Here it is channels that go, of a VGG-11 with new
weights, down to a share of its parameters, and the last channel of a group stays, so that a collapsed layer is one
of width one. Digits, enlarged to 32 x 32; what is left is trained and read on the test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.budget import Budget
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.criterion import Criterion
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.data.transforms import normalize
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

SIDE = 32
"""Pixels: VGG halves them five times."""
JUDGED = 128
"""Training images whose loss criteria differentiate."""
KEEPS = (0.01, 0.001)
"""Shares of the parameters."""
ASKED: dict[str, Criterion] = {
    "snip": CRITERIA["snip"],
    "grasp": CRITERIA["grasp"],
    "synflow, scored once": replace(CRITERIA["synflow"], iterations=1),
    "synflow": CRITERIA["synflow"],
}


def run(seed: int, epochs: float) -> list[dict[str, Any]]:
    """Every criterion at every budget, of one network with new weights."""
    splits = data.load("digits", None, search_images=0.2, train_images=None, seed=seed)
    torch.manual_seed(seed)
    vgg = build("vgg11_bn", num_classes=splits.num_classes, in_channels=1)
    network = nn.Sequential(nn.Upsample(size=SIDE, mode="bilinear"), vgg).eval()
    images = normalize(splits.train.fetch(torch.arange(JUDGED)), splits.mean, splits.std)
    graph = trace(network, images[:1])
    dense, found = int(graph.params(graph.sizes)), []

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(images), splits.train.labels[:JUDGED])

    for name, criterion in ASKED.items():
        scores = criterion(network, graph, loss=loss).double().numpy()
        for keep in KEEPS:
            widths = greedy(graph, scores, Budget(params=int(keep * dense)))
            small = slim(network, graph, graph.keep_best(scores, widths))
            recipe = Recipe(epochs=epochs, batch_size=64, lr=0.05)
            train(small, splits.train, splits.mean, splits.std, recipe, seed=seed)
            found.append(
                {
                    "criterion": name,
                    "keep": keep,
                    "seed": seed,
                    "widths": widths.tolist(),
                    "params": int(graph.params(widths)),
                    "top1": top1(small, splits.test, splits.mean, splits.std),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Prints mean and standard deviation over seeds, and writes every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [each for seed in range(options.seeds) for each in run(seed, options.epochs)]
    for name in ASKED:
        for keep in KEEPS:
            own = [each for each in runs if each["criterion"] == name and each["keep"] == keep]
            tops = [each["top1"] for each in own]
            ones = [sum(width == 1 for width in each["widths"]) for each in own]
            spread = statistics.stdev(tops) if len(tops) > 1 else 0.0
            print(
                f"{name:22} {keep:6.1%} of the parameters: {statistics.mean(ones):.1f} of {len(own[0]['widths'])} "
                f"layers of width one, test top-1 {statistics.mean(tops):.2f} ± {spread:.2f} %"
            )
    if options.json is not None:
        options.json.write_text(json.dumps({"epochs": options.epochs, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
