"""Which regulariser keeps the most accuracy before retraining? The claim of Li et al., arXiv 1905.11664.

    python benchmarks/oicsr.py --data fashion-mnist --json fashion.json
    python benchmarks/oicsr.py --data cifar10 --root cifar-10-batches-bin --train-images 8000 --epochs 5
        --rung-epochs 3 --retrain-epochs 1.5 --json cifar10.json
    python benchmarks/oicsr.py --print fashion.json

ResNet-20 is trained without a regulariser, then on with each of them from the same network for the same epochs.
Each network is cut, once, to 70, 50 and 30 % of its MACs by greedy global pruning, and what is left is retrained.
The strength of each regulariser, and whether its scores are divided by their group's mean, are chosen with seed 0
by top-1 before retraining on images held out of the training split, mean over the three budgets. The test split is
read for the figures that are printed, and for nothing else.

Every finished network is kept in the JSON file, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

KEEP = (0.7, 0.5, 0.3)
SCALINGS = ("raw", "mean")
# regulariser -> the criterion that goes with it, and the strengths that are tried
METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "oicsr_gl": ("energy", (1e-2, 3e-2, 1e-1)),
    "separated_gl": ("l2", (1e-2, 3e-2, 1e-1)),
    "bn_l1": ("bn_scale", (1e-2, 3e-2, 1e-1)),
    "none": ("l2", (0.0,)),
}
TITLES = {"oicsr_gl": "OICSR-GL", "separated_gl": "separated GL", "bn_l1": "L1 on BN scales", "none": "L2 only"}
# How the held-out images rank every network before retraining, for the choice and for the comparison of criteria
WATCHED = ("energy", "folded_energy", "l1", "l2", "bn_scale", "fpgm")


class Study:
    """One data set, one seed after another.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.path = args, Path(args.json)
        self.splits = data.load(args.data, args.root, search_images=2000, train_images=args.train_images, seed=0)
        grey = self.splits.image_shape[0] == 1
        self.kwargs = {"in_channels": 1, "stem_stride": 2} if grey else {}
        self.dense = Recipe(args.epochs, 128, 0.1, precision="bf16", pad=2 if grey else 4, flip=True)
        self.rung = replace(self.dense, epochs=args.rung_epochs, lr=0.05)
        self.retrain = replace(self.dense, epochs=args.retrain_epochs, lr=0.02)
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.results.setdefault("setting", self._setting())
        self.results.setdefault("networks", {})

    def _setting(self) -> dict[str, Any]:
        return {
            "network": f"resnet20 {self.kwargs}",
            "data": self.args.data,
            "train_images": len(self.splits.train),
            "held_out_images": len(self.splits.search),
            "test_images": len(self.splits.test),
            "epochs": {
                "dense": self.args.epochs,
                "rung": self.args.rung_epochs,
                "retrain": self.args.retrain_epochs,
            },
            "machine": platform.machine(),
            "torch": torch.__version__,
        }

    def run(self, seeds: int) -> None:
        """All seeds; seed 0 tries every strength."""
        for seed in range(seeds):
            dense = self._trained(build("resnet20", **self.kwargs), self.dense, seed)
            graph = trace(dense, torch.zeros(1, *self.splits.image_shape))
            for name, (_, strengths) in METHODS.items():
                for strength in strengths if seed == 0 else [self.choice(name)[0]]:
                    key = f"{name} {strength:g} seed {seed}"
                    if key not in self.results["networks"]:
                        self.results["networks"][key] = self._network(dense, graph, name, strength, seed)
                        self._write()
                        print(key, self.results["networks"][key]["held_out"], flush=True)
            for name in METHODS:
                strength, scaling = self.choice(name)
                entry = self.results["networks"][f"{name} {strength:g} seed {seed}"]
                if "test" not in entry:
                    entry["test"] = self._tested(dense, graph, name, strength, scaling, seed)
                    self._write()
                    print(name, strength, scaling, seed, entry["test"], flush=True)

    def _network(
        self, dense: nn.Module, graph: ChannelGraph, name: str, strength: float, seed: int
    ) -> dict[str, Any]:
        model = self._regularized(dense, graph, name, strength, seed)
        found: dict[str, float] = {}
        for criterion in WATCHED:
            for scaling in SCALINGS:
                for keep in KEEP:
                    cut = self._cut(model, graph, criterion, scaling, keep)
                    found[f"{criterion} {scaling} {keep:g}"] = top1(
                        cut, self.splits.search, self.splits.mean, self.splits.std
                    )
        uncut = top1(model, self.splits.search, self.splits.mean, self.splits.std)
        return {"uncut_held_out": uncut, "held_out": found}

    def _tested(
        self, dense: nn.Module, graph: ChannelGraph, name: str, strength: float, scaling: str, seed: int
    ) -> dict[str, Any]:
        model = self._regularized(dense, graph, name, strength, seed)
        found: dict[str, Any] = {}
        for keep in KEEP:
            cut = self._cut(model, graph, METHODS[name][0], scaling, keep)
            before = self._test(cut)
            train(cut, self.splits.train, self.splits.mean, self.splits.std, self.retrain, seed=seed)
            found[f"{keep:g}"] = {"before": before, "after": self._test(cut)}
        return {"uncut": self._test(model), "cut": found}

    def _regularized(
        self, dense: nn.Module, graph: ChannelGraph, name: str, strength: float, seed: int
    ) -> nn.Module:
        path = self.path.with_name(f"{self.path.stem}-{name}-{strength:g}-{seed}.pt")
        model = copy.deepcopy(dense)
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        train(
            model,
            self.splits.train,
            self.splits.mean,
            self.splits.std,
            self.rung,
            seed=seed + 100,
            regularizer=REGULARIZERS[name](graph),
            strength=strength,
        )
        torch.save(model.state_dict(), path)
        return model

    def _trained(self, model: nn.Module, recipe: Recipe, seed: int) -> nn.Module:
        path = self.path.with_name(f"{self.path.stem}-dense-{seed}.pt")
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        torch.manual_seed(seed)
        model = build("resnet20", **self.kwargs)
        train(model, self.splits.train, self.splits.mean, self.splits.std, recipe, seed=seed)
        torch.save(model.state_dict(), path)
        return model

    def _cut(self, model: nn.Module, graph: ChannelGraph, criterion: str, scaling: Any, keep: float) -> nn.Module:
        scores = CRITERIA[criterion](model, graph).double().numpy()
        scores = normalize(scores, graph, scaling)
        widths = greedy(graph, scores, int(keep * int(graph.macs(graph.sizes))))
        return slim(model, graph, graph.keep_best(scores, widths), verify=False).eval()

    def _test(self, model: nn.Module) -> float:
        return top1(model, self.splits.test, self.splits.mean, self.splits.std)

    def choice(self, name: str) -> tuple[float, str]:
        """Strength and scaling by held-out top-1 before retraining, mean over the budgets, seed 0."""
        criterion, strengths = METHODS[name]

        def mean(strength: float, scaling: str) -> float:
            found = self.results["networks"][f"{name} {strength:g} seed 0"]["held_out"]
            return float(statistics.mean(found[f"{criterion} {scaling} {keep:g}"] for keep in KEEP))

        return max(((s, scaling) for s in strengths for scaling in SCALINGS), key=lambda pair: mean(*pair))

    def _write(self) -> None:
        self.results["choice"] = {
            name: self.choice(name)
            for name, (_, strengths) in METHODS.items()
            if all(f"{name} {s:g} seed 0" in self.results["networks"] for s in strengths)
        }
        write_json(self.path, self.results)


def show(results: dict[str, Any]) -> None:
    """Prints the tables of a results file."""
    console = Console()
    console.print_json(json.dumps(results["setting"]))
    removed = [f"{round(100 * (1 - keep))} %" for keep in KEEP]
    table = Table(title="test top-1 in percent, mean ± sd over seeds, by share of the MACs removed", box=None)
    for heading in ("regulariser", "strength", "scores", "uncut", *(f"{r} before" for r in removed)):
        table.add_column(heading)
    for heading in (f"{r} after" for r in removed):
        table.add_column(heading)
    for name, (strength, scaling) in results["choice"].items():
        tests = [e["test"] for k, e in results["networks"].items() if k.startswith(f"{name} ") and "test" in e]
        cells = [_spread([test["uncut"] for test in tests])]
        for when in ("before", "after"):
            cells += [_spread([test["cut"][f"{keep:g}"][when] for test in tests]) for keep in KEEP]
        table.add_row(TITLES[name], f"{strength:g}", f"{METHODS[name][0]}, {scaling}", *cells)
    console.print(table)
    watched = Table(title="held-out top-1 before retraining by criterion, mean over seeds and budgets", box=None)
    for heading in ("regulariser", *(f"{c} {s}" for c in WATCHED for s in SCALINGS)):
        watched.add_column(heading)
    for name, (strength, _) in results["choice"].items():
        networks = [e["held_out"] for k, e in results["networks"].items() if k.startswith(f"{name} {strength:g} ")]
        means = [
            statistics.mean(network[f"{c} {s} {keep:g}"] for network in networks for keep in KEEP)
            for c in WATCHED
            for s in SCALINGS
        ]
        watched.add_row(TITLES[name], *(f"{mean:.1f}" for mean in means))
    console.print(watched)


def _spread(values: list[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {sd:.2f}"


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="a data set that espalier reads")
    parser.add_argument("--root", default=None, help="where its files lie")
    parser.add_argument("--train-images", type=int, default=10000, help="of the training split")
    parser.add_argument("--epochs", type=float, default=6, help="of the dense network")
    parser.add_argument("--rung-epochs", type=float, default=4, help="with each regulariser")
    parser.add_argument("--retrain-epochs", type=float, default=2, help="of each cut network")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default="oicsr.json", help="where the results go, networks beside it")
    parser.add_argument("--print", dest="shown", metavar="FILE", help="only print a results file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.shown is None:
        study = Study(args)
        study.run(args.seeds)
        show(study.results)
    else:
        show(json.loads(Path(args.shown).read_text()))


if __name__ == "__main__":
    main()
