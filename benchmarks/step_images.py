"""How many images a step of the proxy sgd20 needs: its cost, and how well it still ranks.

    cd benchmarks
    python step_images.py cifar10_resnet20 results/proxies_cifar10_resnet20_keep30_finetuned.json \
        model.weights=resnet20-12fca82f.th data.root=cifar-10-batches-bin data.train_images=10000 \
        regularizer.epochs=4 "regularizer.strengths=[0.01]" search.scoring_images=1000 \
        search.calibration_images=256 finetune.epochs=3 budget.keep=0.3

The policies, and what they are worth once fine-tuned, are those of an `espalier proxy-study` of the same settings;
the network with the penalty is trained anew. Each policy takes 20 steps of each size, and is scored on the held-out
images. Seconds are the processor's; the sizes take turns, and each ratio is of neighbours.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from espalier.search.config.loading import load_config
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.multi_fidelity import agreement
from espalier.search.progress.reporter import Lines
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.classification.scoring import ImageScoring

PROXY = "sgd20"
GOOD = 10.0
"""Points from the best policy within which a search has to choose."""


def sized(spec: EvaluationSpec, images: int) -> EvaluationSpec:
    """The same with so many images a step, the first of those that there are."""
    assert isinstance(spec.scoring, ImageScoring)
    return replace(spec, scoring=replace(spec.scoring, recipe=replace(spec.scoring.recipe, batch_size=images)))


def main() -> None:
    """Trains, scores, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("study", type=Path, help="proxy_study.json of an espalier proxy-study")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the config")
    parser.add_argument("--images", type=int, nargs="*", default=[128, 64, 42, 32, 16])
    parser.add_argument("--policies", type=int, help="the first of them; by default all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(args.config, [*args.settings, f"search.proxy={PROXY}", "workers=0"])
    study = json.loads(args.study.read_text())
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(config, prepare(config), Path(folder), Lines(), proxies=[PROXY])
        experiment.train_ladder()
        experiment.settle_execution(lambda _, make: make())
        spec = experiment.spec
    evaluators = {images: Evaluator(sized(spec, images)) for images in args.images}
    truth = [statistics.mean(seeds) for seeds in study["top1"]][: args.policies]
    values: dict[int, list[float]] = {images: [] for images in args.images}
    seconds: dict[int, list[float]] = {images: [] for images in args.images}
    for key in study["widths"][: args.policies]:
        _, _, widths = key.rpartition(":")
        candidate = Candidate(0, tuple(map(int, widths.split(","))))
        for images, evaluator in evaluators.items():
            start = time.process_time()
            values[images].append(evaluator(candidate).value(experiment.measure))
            seconds[images].append(time.process_time() - start)
    good = [number for number, top in enumerate(truth) if top > max(truth) - GOOD]
    rows: list[dict[str, Any]] = []
    for images in args.images:
        ratios = [one / most for one, most in zip(seconds[images], seconds[args.images[0]], strict=True)]
        rows.append(
            {
                "images": images,
                "rho": agreement(values[images], truth),
                "rho_good": agreement([values[images][n] for n in good], [truth[n] for n in good]),
                "seconds": statistics.median(seconds[images]),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "values": values[images],
            }
        )
    print(f"{len(truth)} policies, {len(good)} of them within {GOOD:g} points of the best; {platform.processor()}")
    titles = ["images a step", "rank correlation", "of the good ones", "seconds", "of the first row's"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for row in rows:
        span = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        print(f"| {row['images']} | {row['rho']:.2f} | {row['rho_good']:.2f} | {row['seconds']:.2f} | {span} |")
    if args.json:
        told = {"policies": len(truth), "good": len(good), "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(told, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
