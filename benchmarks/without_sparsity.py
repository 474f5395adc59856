"""Networks as people have them, without sparsity training: greedy pruning, FastNAS and a search beside each other.

    python benchmarks/without_sparsity.py --cifar10 cifar-10-batches-bin --weights resnet20-12fca82f.th \
        --json benchmarks/results/without_sparsity.json

Five settings, each an `espalier.compare` with a regularisation strength of zero, five seeds, and one protocol: the
same network, budget, evaluations of 20 steps of SGD, and fine-tuning for every method. Fine-tuning on held-out data
chooses the normalisation of greedy pruning, and among the finalists of a search. Seeds begin at 20, as those below
were seen when this was decided.

- ``vit``: a vision transformer of four blocks on the digits; heads, MLPs and stream compete. 30 % of the MACs.
- ``mobilenet``: a MobileNetV2 of half the widths on the digits. 10 % of the MACs.
- ``unet``: a U-Net on discs, squares and rings in noise, by mean IoU. 10 % of the MACs.
- ``latency``: ResNet-20 on the digits, 60 % of the dense network's latency in ONNX Runtime, one thread.
- ``resnet``: ResNet-20 from public weights on 15,000 images of CIFAR-10. 30 % of the MACs.

The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import espalier
from espalier.search.statistics.differences import common

METHODS = ["greedy", "fastnas", "auto"]
FIRST_SEED = 20
SIZE, DRAWN = 24, 1280
SPLIT = [640, 320, 320]
"""Images for training, held out, and for the test."""


# -- the U-Net and its task, named in the config


def drawn(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, SIZE, SIZE), and classes (count, SIZE, SIZE): ground, disc, square, ring."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for shape in (1, 2, 3):
        centers = 4 + (SIZE - 8) * torch.rand(2, count, 1, 1, generator=generator)
        radius = 3 + 2 * torch.rand(count, 1, 1, generator=generator)
        across, down = (x - centers[0]).abs(), (y - centers[1]).abs()
        distance = (across**2 + down**2).sqrt()
        inside = {1: distance < radius, 2: torch.maximum(across, down) < 0.9 * radius}
        inside[3] = (distance < radius + 1) & (distance > radius - 1)
        classes[inside[shape]] = shape
    brightness = torch.tensor([0.0, 0.8, 1.0, 0.9])[classes]
    return (brightness + 0.6 * torch.randn(count, SIZE, SIZE, generator=generator))[:, None], classes


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with batch norms."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three levels; what the way down saw is concatenated on the way up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2, self.up1 = block(6 * width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 4, height, width) of images (batch, 1, height, width)."""
        fine = self.down1(x)
        middle = self.down2(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up2(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        found: Tensor = self.head(self.up1(torch.cat([F.interpolate(middle, scale_factor=2.0), fine], 1)))
        return found


def train_unet(network: nn.Module, *, epochs: float, seed: int, images: Tensor, classes: Tensor) -> None:
    """Adam on the cross-entropy of pixels, over one cycle of the learning rate."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters())
    steps = max(2, round(epochs * len(images) / 32))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    rows = torch.cat([torch.randperm(len(images)) for _ in range(int(epochs) + 1)]).split(32)
    for chosen in rows[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), classes[chosen]).backward()
        optimizer.step()
        schedule.step()


def mean_iou(network: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Intersection over union of all pixels of a class, mean over classes, in percent."""
    found = torch.cat([network(part).argmax(1) for part in images.split(160)])
    each = [float(((found == c) & (classes == c)).sum() / ((found == c) | (classes == c)).sum()) for c in range(4)]
    return 25 * sum(each)


def unet_task() -> espalier.Task:
    """Segmentation by mean IoU."""
    images, classes = (part.split(SPLIT) for part in drawn(DRAWN))
    return espalier.FunctionTask(
        partial(mean_iou, images=images[1], classes=classes[1]),
        list(images[0][:256].split(64)),
        partial(train_unet, images=images[0], classes=classes[0]),
        test=partial(mean_iou, images=images[2], classes=classes[2]),
        metric="mIoU",
        unit="%",
        example_inputs=images[0][:1],
    )


# -- the settings

PLAIN_DIGITS: dict[str, Any] = {"name": "digits", "search_images": 0.3}
DIGITS = PLAIN_DIGITS | {"augment": {"pad": 1}}
SCORING = {"scoring_images": 256, "calibration_images": 256}


def _small(network: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": network, "kwargs": kwargs}


def settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> config; what all share is added by `compared`."""
    resnet = _small("resnet20", in_channels=1)
    training = {"epochs": 20, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4}
    tuning = {"epochs": 10, "batch_size": 64, "lr": 0.02}
    adam = {"optimizer": "adamw", "batch_size": 64, "lr": 1e-3, "weight_decay": 0.05}
    found: dict[str, dict[str, Any]] = {
        "vit": {
            "model": _small("vit_tiny", in_channels=1, image_size=8, patch_size=2, depth=4),
            "data": PLAIN_DIGITS,
            "training": adam | {"epochs": 60},
            "budget": {"keep": 0.3},
            "search": SCORING,
            "finetune": adam | {"epochs": 10, "lr": 5e-4},
        },
        "mobilenet": {
            "model": _small("mobilenet_v2", in_channels=1, width_mult=0.5),
            "data": PLAIN_DIGITS,
            "training": training | {"epochs": 40, "lr": 0.02},
            "budget": {"keep": 0.1},
            "search": SCORING,
            "finetune": tuning | {"lr": 0.01},
        },
        "unet": yaml.safe_load(Path(__file__).with_name("unet.yaml").read_text()),
        "latency": {
            "model": resnet,
            "data": DIGITS,
            "training": training,
            "budget": {"keep": None, "latency": 0.6, "device": {"runtime": "onnxruntime"}},
            "search": SCORING,
            "finetune": tuning,
            "compare": {"latency": {"runtimes": ["onnxruntime"]}},
        },
    }
    if args.cifar10:
        found["resnet"] = {
            "model": {"name": "resnet20", "weights": str(args.weights), "kwargs": {"shortcut": "A"}},
            "data": {
                "name": "cifar10",
                "root": str(args.cifar10),
                "search_images": 5000,
                "train_images": 15000,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "augment": {"pad": 4, "flip": True},
            },
            "training": {"epochs": 0},
            "budget": {"keep": 0.3},
            "search": {"scoring_images": 1024, "calibration_images": 512},
            "finetune": {"epochs": 5, "batch_size": 128, "lr": 0.02, "weight_decay": 1e-4},
        }
    return found


def compared(name: str, config: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One setting, from where it was stopped."""
    config["regularizer"] = {"strengths": [0.0], "epochs": 0}
    own = {"proxy": "sgd20", "trials": args.trials, "finalists": args.finalists}
    config["search"] = own | config.get("search", {})
    config["finetune"] |= {"halvings": args.halvings, "selection_seeds": 2}
    config["compare"] = config.get("compare", {}) | {"methods": args.methods, "seeds": args.seeds}
    config["seed"] = args.first_seed
    found = espalier.compare(config, out=args.folder / name, workers=0).to_json()
    for cell in found["cells"]:
        cell.pop("history", None), cell.pop("importance", None)
    return found


def words(name: str, found: dict[str, Any], methods: list[str]) -> str:
    """A row of the table."""
    unit, answer = found["asked"]["metric"]["title"], found["answers"][0]
    cells = [f"`{name}`", found["asked"]["budgets"][next(iter(found["asked"]["budgets"]))], unit]
    cells.append(f"{found['dense']['after']:.2f}")
    for method in methods:
        after = [cell["after"] for cell in found["cells"] if cell["method"] == method]
        cells.append(f"{statistics.mean(after):.2f} ± {statistics.stdev(after):.2f}")
    for method in methods[1:]:
        told = answer["differences"][method]
        cells.append(f"{told['mean']:+.2f} ({told['low']:+.2f} to {told['high']:+.2f})")
    auto, fastnas = (
        {cell["seed"]: cell["after"] for cell in found["cells"] if cell["method"] == method}
        for method in ("auto", "fastnas")
    )
    between = common(auto, fastnas)
    assert between is not None
    cells.append(f"{between.mean:+.2f} ({between.low:+.2f} to {between.high:+.2f}, p {between.p:.2g})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs what is missing, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/without_sparsity"))
    parser.add_argument("--cifar10", type=Path, help="the folder with CIFAR-10; without it, four settings")
    parser.add_argument("--weights", type=Path, help="public weights of ResNet-20")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the dense network, too")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="greedy, fastnas, auto, and others")
    parser.add_argument("--finalists", type=int, default=4, help="of each search")
    parser.add_argument("--halvings", type=int, default=1, help="rounds of successive halving among them")
    parser.add_argument("--only", nargs="*", help="settings")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.cifar10 and not args.weights:
        parser.error("--cifar10 takes --weights")
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parent))  # where configs find the U-Net
    found: dict[str, Any] = {}
    for name, config in settings(args).items():
        if args.only is None or name in args.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = compared(name, config, args)
            if args.json:
                args.json.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    titles = [
        "setting",
        "budget",
        "score",
        "dense",
        *args.methods,
        *(f"{each} - greedy" for each in args.methods[1:]),
    ]
    titles.append("auto - fastnas, by seeds alone")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name, each in found.items():
        print(words(name, each, args.methods))


if __name__ == "__main__":
    main()
