"""ResNet-56 on CIFAR-10: trained, regularised, cut to a half and less of its MACs, fine-tuned.

    python benchmarks/resnet56.py --root cifar-10-batches-bin --json resnet56.json
    python benchmarks/resnet56.py --print resnet56.json

The dense network, and two networks trained on from it with OICSR-GL, one from the other with rising strength, are
cut to 1/2.1 and 1/2.5 of the MACs by greedy global pruning of channel energies; batch norms are recalibrated, and
what is left is fine-tuned. What the energies of a group are divided by is chosen for every cut by top-1 before
fine-tuning on images held out of the training split. The test split is read for the figures that are printed, and
for nothing else.

With a CUDA device this is the full experiment. Without one the same command runs it at a reduced size, in about a
quarter of an hour on one core, which shows that it works, not how good the networks can be.

Every finished network is kept beside the JSON file, and so is a training under way: the same command goes on there.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.importance.regularizers import OICSRGroupLasso
from espalier.pruning.networks import build
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.files.json_files import write_json
from espalier.search.files.tensor_files import load_tensors, save_tensors, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import for_console
from espalier.search.tasks.classification import data
from espalier.search.tasks.classification.data import ImageSet, InMemoryImages
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

SPEED_UPS = (2.1, 2.5)
NORMALIZATIONS = ("raw", "mean", "max", "per_mac")


@dataclass(frozen=True)
class Size:
    """How much is trained on, for how long.

    Attributes:
        name: what the output calls it.
        train_images: of the training split; None for all that are not held out.
        held_out_images: of the training split, that choose the normalisation.
        test_images: None for all.
        epochs: of the dense network.
        rung_epochs: of each rung of the ladder.
        finetune_epochs: of each cut network.
        batch_size: images per step.
        strengths: of the rungs; those of a short training must be greater.
    """

    name: str
    train_images: int | None
    held_out_images: int
    test_images: int | None
    epochs: float
    rung_epochs: float
    finetune_epochs: float
    batch_size: int
    strengths: tuple[float, ...]


FULL = Size("full", None, 5000, None, 200, 60, 100, 128, (1e-4, 3e-4))
REDUCED = Size("reduced", 2560, 500, 2000, 7, 2, 2, 64, (2e-2, 6e-2))

# method, its MACs as a divisor, top-1 of its dense network, top-1 once pruned and fine-tuned
PUBLISHED: tuple[tuple[str, float, float, float], ...] = (
    ("AMC (He et al. 2018)", 2.00, 92.80, 91.90),
    ("HRank (Lin et al. 2020)", 2.00, 93.26, 93.17),
    ("soft filter pruning (He et al. 2018)", 2.11, 93.59, 93.36),
    ("L1 norms of groups (Torch-Pruning)", 2.12, 93.53, 92.93),
    ("BN scales of groups (Torch-Pruning)", 2.12, 93.53, 93.29),
    ("DepGraph without sparse training (Fang et al. 2023)", 2.11, 93.53, 93.46),
    ("DepGraph with sparse training", 2.13, 93.53, 93.77),
    ("DepGraph without sparse training", 2.51, 93.53, 93.36),
    ("DepGraph with sparse training", 2.57, 93.53, 93.64),
)


class Experiment:
    """All seeds of one size.

    Args:
        size: how much, for how long.
        device: where to train and test.
        root: the folder with the data set.
        path: of the JSON file.
    """

    def __init__(self, size: Size, device: torch.device, root: str | None, path: Path) -> None:
        self.size, self.device, self.path = size, device, path
        splits = data.load(
            "cifar10", root, search_images=size.held_out_images, train_images=size.train_images, seed=0
        )
        test = splits.test if size.test_images is None else splits.test.take(torch.arange(size.test_images))
        self.splits = replace(
            splits, train=self._moved(splits.train), search=self._moved(splits.search), test=self._moved(test)
        )
        self.reporter = for_console(Console())
        self.dense = Recipe(size.epochs, size.batch_size, 0.1, precision="bf16", pad=4, flip=True)
        self.rung = replace(self.dense, epochs=size.rung_epochs, lr=0.05)
        self.finetune = replace(self.dense, epochs=size.finetune_epochs, lr=0.02)
        setting = self._setting()
        empty: dict[str, Any] = {"setting": setting, "seconds": 0, "seeds": {}}
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty
        if self.results["setting"]["size"] != setting["size"]:
            raise SystemExit(f"{path} holds a run of another size; name another file with --json")

    def _moved(self, images: ImageSet) -> ImageSet:
        """Pixels on the device, once and for all."""
        assert isinstance(images, InMemoryImages)
        return InMemoryImages(images.images.to(self.device), images.labels)

    def _setting(self) -> dict[str, Any]:
        on_cuda = self.device.type == "cuda"
        return {
            "network": "resnet56",
            "size": json.loads(json.dumps(asdict(self.size))),
            "train_images": len(self.splits.train),
            "held_out_images": len(self.splits.search),
            "test_images": len(self.splits.test),
            "device": torch.cuda.get_device_name(self.device) if on_cuda else f"one core, {platform.machine()}",
            "torch": torch.__version__,
        }

    def run(self, seeds: int) -> None:
        """Whatever is missing."""
        for seed in range(seeds):
            found = self.results["seeds"].setdefault(str(seed), {})
            model = self._dense(seed)
            graph = trace(model, torch.zeros(1, *self.splits.image_shape))
            for rung, strength in enumerate((0.0, *self.size.strengths)):
                if strength:
                    model = self._rung(model, graph, seed, rung, strength)
                if f"{strength:g}" not in found:
                    start = time.perf_counter()
                    found[f"{strength:g}"] = self._top1(model, self.splits.test)
                    self._write(start)
                for speed_up in SPEED_UPS:
                    key = f"{strength:g} {speed_up:g}"
                    if key not in found:
                        start = time.perf_counter()
                        found[key] = self._pruned(model, graph, seed, strength, speed_up)
                        self._write(start)
                        self.reporter.say(f"seed {seed}, strength {strength:g}, 1/{speed_up:g}: {found[key]}")

    def _dense(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = build("resnet56")
        return self._kept(f"seed{seed}-rung0", model, self.dense, seed)

    def _rung(self, below: nn.Module, graph: ChannelGraph, seed: int, rung: int, strength: float) -> nn.Module:
        model, penalty = copy.deepcopy(below), OICSRGroupLasso(graph)
        name = f"seed{seed}-rung{rung}"
        return self._kept(name, model, self.rung, 100 * rung + seed, regularizer=penalty, strength=strength)

    def _kept(self, name: str, model: nn.Module, recipe: Recipe, seed: int, **penalty: Any) -> nn.Module:
        """The trained network, on the CPU, from its file if there is one."""
        path = self.path.with_name(f"{self.path.stem}-{name}.safetensors")
        if path.exists():
            tensors, _ = load_tensors(path)
            with torch.no_grad():
                for key, tensor in tensors_of(model).items():
                    tensor.copy_(tensors[key])
            return model.eval()
        start = time.perf_counter()
        partial = path.with_name(path.stem + PARTIAL)
        self._train(model, name, recipe, seed, partial, **penalty)
        save_tensors(path, tensors_of(model), {})
        partial.unlink(missing_ok=True)
        self._write(start)
        return model

    def _train(
        self, model: nn.Module, title: str, recipe: Recipe, seed: int, partial: Path, **penalty: Any
    ) -> None:
        splits = self.splits
        with self.reporter.meter(title, recipe.steps(len(splits.train)), "steps") as meter:
            model.to(self.device)
            train(
                model,
                splits.train,
                splits.mean,
                splits.std,
                recipe,
                seed=seed,
                on_step=lambda step, loss: meter.update(step, f"loss {loss:.3f}"),
                checkpoint=partial,
                **penalty,
            )
        model.cpu()

    def _pruned(
        self, model: nn.Module, graph: ChannelGraph, seed: int, strength: float, speed_up: float
    ) -> dict[str, Any]:
        """Cut in every way, the best by held-out top-1 fine-tuned and tested."""
        cuts = {how: self._cut(model, graph, how, speed_up) for how in NORMALIZATIONS}
        held_out = {how: self._top1(cut, self.splits.search) for how, cut in cuts.items()}
        chosen = max(NORMALIZATIONS, key=lambda how: held_out[how])
        cut = cuts[chosen]
        before, name = self._top1(cut, self.splits.test), f"seed{seed}-{strength:g}-{speed_up:g}"
        partial = self.path.with_name(f"{self.path.stem}-{name}{PARTIAL}")
        self._train(cut, name, self.finetune, seed, partial)
        small = trace(cut, torch.zeros(1, *self.splits.image_shape))
        found = {
            "normalization": chosen,
            "held_out": held_out,
            "macs": int(small.macs(small.sizes)),
            "dense_macs": int(graph.macs(graph.sizes)),
            "before": before,
            "after": self._top1(cut, self.splits.test),
        }
        partial.unlink(missing_ok=True)
        return found

    def _cut(self, model: nn.Module, graph: ChannelGraph, how: str, speed_up: float) -> nn.Module:
        energies = normalize(channel_energies(model, graph).double().numpy(), graph, how)
        widths = greedy(graph, energies, int(int(graph.macs(graph.sizes)) / speed_up))
        small = slim(model, graph, graph.keep_best(energies, widths), verify=False).to(self.device)
        images = self.splits.train.fetch(torch.arange(256)).split(128)
        recalibrate_bn(small, (data.normalize(part, self.splits.mean, self.splits.std) for part in images))
        return small.cpu()

    def _top1(self, model: nn.Module, images: ImageSet) -> float:
        found = top1(model.to(self.device), images, self.splits.mean, self.splits.std)
        model.cpu()
        return found

    def _write(self, start: float) -> None:
        self.results["seconds"] = round(self.results["seconds"] + time.perf_counter() - start, 1)
        write_json(self.path, self.results)


def show(results: dict[str, Any]) -> None:
    """Prints the table of a results file."""
    console, setting, seeds = Console(), results["setting"], list(results["seeds"].values())
    size = setting["size"]
    images = f"{setting['train_images']:,} training images, {setting['test_images']:,} test images"
    epochs = (
        f"{size['epochs']:g} epochs dense, {size['rung_epochs']:g} a rung, {size['finetune_epochs']:g} fine-tuning"
    )
    machine = f"{setting['device']}, torch {setting['torch']}, {results['seconds'] / 60:.0f} minutes"
    headline = f"ResNet-56 on CIFAR-10, {size['name']} size: {images}; {epochs}; {len(seeds)} seeds; {machine}"
    console.print(headline, highlight=False)
    if size["name"] != FULL.name:
        console.print("Reduced: not to be compared with published numbers. Run it where there is a CUDA device.")
    table = Table(title="test top-1 in percent, mean ± sd over seeds", box=None)
    for heading in ("network", "MACs", "dense", "uncut", "cut", "fine-tuned", "energies divided by"):
        table.add_column(heading)
    for speed_up in SPEED_UPS:
        for strength in (0.0, *size["strengths"]):
            runs = [found for found in seeds if f"{strength:g} {speed_up:g}" in found]
            cuts = [found[f"{strength:g} {speed_up:g}"] for found in runs]
            if not cuts:
                continue
            columns = [_spread([found[key] for found in runs]) for key in ("0", f"{strength:g}")]
            columns += [_spread([cut[key] for cut in cuts]) for key in ("before", "after")]
            title = f"OICSR-GL {strength:g}" if strength else "no regulariser"
            macs = statistics.mean(cut["dense_macs"] / cut["macs"] for cut in cuts)
            table.add_row(title, f"1/{macs:.2f}", *columns, ", ".join(cut["normalization"] for cut in cuts))
    for method, divisor, dense, after in PUBLISHED:
        table.add_row(method, f"1/{divisor:.2f}", f"{dense:.2f}", "", "", f"{after:.2f}", "published")
    console.print(table)


def _spread(values: list[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {sd:.2f}"


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None, help="where the files of CIFAR-10 lie")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default="resnet56.json", help="where the results go, networks beside it")
    parser.add_argument("--print", dest="shown", metavar="FILE", help="only print a results file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.shown is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = FULL if device.type == "cuda" else REDUCED
        if size is REDUCED:
            print("no CUDA device: the reduced size", flush=True)
        experiment = Experiment(size, device, args.root, Path(args.json))
        experiment.run(args.seeds)
        show(experiment.results)
    else:
        show(json.loads(Path(args.shown).read_text()))


if __name__ == "__main__":
    main()
