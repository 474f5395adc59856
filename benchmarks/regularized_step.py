"""What `espalier.regularized` costs: a training step in the block against the same step outside of it.

    python benchmarks/regularized_step.py

A step is forward, cross-entropy, backward and SGD, on one thread, with and without the block around it, and with
the penalty added to the loss by hand. The three take turns, and each ratio is of steps of one turn, so that what
else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
from collections.abc import Callable

import torch
from regularizer_step import STRENGTH, milliseconds, spread
from torch import nn
from torch.nn import functional as F

import espalier
from espalier.pruning.networks import build


def make_step(model: nn.Module, images: torch.Tensor, penalty: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One training step on images with random labels."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    labels = torch.randint(10, (len(images),))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (F.cross_entropy(model(images), labels) + penalty()).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measures, and prints a line of JSON and two to read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="steps of each kind that are timed")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images, in pixels")
    parser.add_argument("--network", default="resnet56", help="a name of espalier.pruning.networks")
    parser.add_argument("--regularizer", default="oicsr_gl", choices=[*espalier.REGULARIZERS])
    parser.add_argument("--proximal", action="store_true", help="take the proximal step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    images = torch.randn(options.batch, 3, options.side, options.side, device=options.device)
    model = build(options.network).train()
    graph = espalier.trace(model, torch.zeros(1, 3, options.side, options.side))
    model.to(options.device)
    weights, made = dict(model.named_parameters()), espalier.REGULARIZERS[options.regularizer](graph)
    without = make_step(model, images, lambda: torch.zeros((), device=options.device))
    by_hand = make_step(model, images, lambda: STRENGTH * made(weights))

    def timed(step: Callable[[], None], inside: bool = False) -> float:
        block = espalier.regularized(model, graph, made, strength=STRENGTH, proximal=options.proximal)
        with block if inside else contextlib.nullcontext():

            def finished() -> None:
                step()
                if options.device != "cpu":
                    torch.cuda.synchronize()

            return milliseconds(finished)

    def turn() -> tuple[float, float, float]:
        return timed(without), timed(without, inside=True), timed(by_hand)

    turn()  # warm up
    turns = [turn() for _ in range(options.turns)]
    inside, hand = spread([t[1] / t[0] for t in turns], 4), spread([t[2] / t[0] for t in turns], 4)
    result = {
        "benchmark": "regularized_step",
        **vars(options),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "ratio": inside,
        "ratio_by_hand": hand,
        "without_ms": spread([t[0] for t in turns], 1),
    }
    print(json.dumps(result))
    print(
        f"a {options.network} step of {options.batch} images takes {inside['median']:.3f} times as long in the "
        f"block ({inside['min']:.3f} to {inside['max']:.3f} over {options.turns} turns; without "
        f"{result['without_ms']['median']:.0f} ms)"
    )
    print(f"with the penalty in the loss, {hand['median']:.3f} times ({hand['min']:.3f} to {hand['max']:.3f})")


if __name__ == "__main__":
    main()
