"""What a regulariser costs: a training step with OICSR-GL against one without, and the energies of ResNet-50.

    python benchmarks/regularizer_step.py

A step is forward, cross-entropy, penalty, backward and SGD, on one thread. Steps with and without alternate, and
each ratio is of two neighbours, so that what else the machine does meets both alike. The energies are those that a
ranking starts from, of all channels of ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.pruning.networks import build
from espalier.pruning.trace import trace

STRENGTH = 1e-4


def make_step(network: str, batch: int, side: int, regularizer: str) -> Callable[[], None]:
    """One training step of a network of its own, on random images."""
    torch.manual_seed(0)
    model = build(network).train()
    penalty = REGULARIZERS[regularizer](trace(model, torch.zeros(1, 3, side, side)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
    weights = dict(model.named_parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        if regularizer != "none":
            loss = loss + STRENGTH * penalty(weights)
        loss.backward()
        optimizer.step()

    return step


def milliseconds(step: Callable[[], None]) -> float:
    """Duration of one call, in ms."""
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def energies_of_resnet50() -> Callable[[], None]:
    """All channel energies, of a network traced once."""
    model = build("resnet50").eval()
    graph = trace(model, torch.zeros(1, 3, 224, 224))

    def rank() -> None:
        channel_energies(model, graph)

    return rank


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Least, middle and greatest."""
    return {
        "min": round(min(values), digits),
        "median": round(statistics.median(values), digits),
        "max": round(max(values), digits),
    }


def main() -> None:
    """Measures, and prints a line of JSON and a line to read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="steps of each kind that are timed")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images, in pixels")
    parser.add_argument("--network", default="resnet56", help="a name of espalier.pruning.networks")
    parser.add_argument(
        "--regularizer", default="oicsr_gl", choices=[*REGULARIZERS], help="what to compare to none"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)

    kinds = [options.regularizer, "none"]
    steps = [make_step(options.network, options.batch, options.side, kind) for kind in kinds]
    for step in steps:
        step()  # warm up
    pairs = [[milliseconds(step) for step in steps] for _ in range(options.pairs)]

    rank = energies_of_resnet50()
    rank()  # warm up
    energies = spread([milliseconds(rank) for _ in range(options.pairs)], 1)

    ratio = spread([with_it / without for with_it, without in pairs], 4)
    result = {
        "benchmark": "regularizer_step",
        **{key: getattr(options, key) for key in ("network", "regularizer", "batch", "side", "pairs")},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "ratio": ratio,
        "with_ms": spread([pair[0] for pair in pairs], 1),
        "without_ms": spread([pair[1] for pair in pairs], 1),
        "resnet50_energies_ms": energies,
    }
    print(json.dumps(result))
    print(
        f"a {options.network} step of {options.batch} images takes {ratio['median']:.3f} times as long with "
        f"{options.regularizer} ({ratio['min']:.3f} to {ratio['max']:.3f} over {options.pairs} pairs; "
        f"{result['with_ms']['median']:.0f} ms against {result['without_ms']['median']:.0f} ms)"
    )
    print(
        f"the channel energies of ResNet-50 take {energies['median']:.0f} ms ({energies['min']:.0f} to "
        f"{energies['max']:.0f} over {options.pairs})"
    )


if __name__ == "__main__":
    main()
