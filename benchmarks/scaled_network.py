"""Does a search recover what raw energies lose when convolutions are multiplied layer by layer?

    python benchmarks/scaled_network.py cifar10_resnet20 model.weights=resnet20.th data.root=cifar-10-batches-bin
        budget.keep=0.3 --json scaled.json

Every convolution in front of a batch norm is multiplied by a factor from 1/8 to 8, and the statistics of the norm
likewise: the network computes what it did, its raw energies are others. Greedy pruning by raw energy falls for it.
From there a search has 300 evaluations to reach greedy pruning, by raw energy, of the network as it was.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from espalier.search.config.loading import load_config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Lines
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import prepare
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.space import NORMALIZATION
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.training.strengths import Rung


def scaled(model: nn.Module, seed: int) -> nn.Module:
    """A copy that computes the same, up to the epsilon of its batch norms, with other weights in front of them."""
    model = copy.deepcopy(model)
    generator = np.random.default_rng(seed)
    pending: nn.Conv2d | None = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            pending = module
        elif isinstance(module, nn.BatchNorm2d) and pending is not None and module.running_mean is not None:
            factor = float(2 ** generator.uniform(-3, 3))
            with torch.no_grad():
                pending.weight.mul_(factor)
                module.running_mean.mul_(factor)
                module.running_var.mul_(factor**2)  # type: ignore[union-attr]
            pending = None
    return model


def search(whole: Experiment, model: nn.Module, args: argparse.Namespace, seed: int, trials: int) -> list[float]:
    """Losses of the candidates in turn, the first of them greedy by raw energy."""
    experiment = Experiment(whole.config, whole.prepared, whole.out, whole.reporter, proxies=(args.proxy,))
    experiment.dense = Rung(0.0, model, "", math.nan)
    experiment.rungs = [experiment.dense]
    experiment.settle_execution(unrecorded)
    space, evaluator = experiment.space(), Evaluator(experiment.spec)
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[args.sampler](space, seed))
    origin = next(params for params in space.greedy_params() if params.get(NORMALIZATION, 0.0) == 0.0)
    study.enqueue_trial(origin)
    curve: list[float] = []
    for _ in range(trials):
        trial = study.ask()
        value = evaluator(space.decode(space.suggest(trial))).value(MEASURES["cross_entropy"])
        study.tell(trial, value)
        curve.append(-value)
    return curve


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sampler", default="cmaes")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--proxy", default="recalibrated")
    parser.add_argument("--json", default="scaled.json", help="where the results go, checkpoints beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = load_config(args.config, args.overrides)
    experiment = Experiment(config, prepare(config), Path(args.json).with_suffix(""), Lines())
    experiment.train_ladder()
    model = experiment.rungs[-1].model
    (whole,) = search(experiment, model, args, 0, 1)
    found: dict[int, dict[str, Any]] = {}
    table = Table("seed", "greedy, unscaled", "greedy, scaled", "searched", "of the gap", "95 % after", box=None)
    for seed in range(args.seeds):
        losses = search(experiment, scaled(model, seed), args, seed, args.trials)
        first, best, gap = losses[0], min(losses), losses[0] - whole
        reached = next((n + 1 for n, loss in enumerate(losses) if first - loss >= 0.95 * gap), None)
        found[seed] = {"greedy": first, "best": best, "recovered": (first - best) / gap, "reached": reached}
        numbers = (
            f"{whole:.3f}",
            f"{first:.3f}",
            f"{best:.3f}",
            f"{(first - best) / gap:.0%}" if gap > 0 else "none",
        )
        table.add_row(str(seed), *numbers, f"{reached} trials" if reached else "-")
    Console().print(table)
    write_json(Path(args.json), {"greedy": whole, "seeds": found})


if __name__ == "__main__":
    main()
