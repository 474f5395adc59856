"""Weights that all widths share: do they rank candidates, and is it worth to begin fine-tuning with them?

    python benchmarks/shared_weights.py digits budget.keep=0.3
    python benchmarks/shared_weights.py cifar10_resnet20 budget.keep=0.3 data.train_images=15000 \
        'regularizer.strengths=[0.003]' model.weights=... data.root=...

Policies near and far from greedy pruning are scored by proxies that begin with a rung's own weights, with shared
ones, and with those that a generator makes (MetaPruning), and fine-tuned from each of the three. All that is read
are held-out images. Scores are ranked beside what fine-tuning from own weights gives, mean over seeds.

Shared weights cost their training, once. `own, longer` spends that on fine-tuning: every one of `RUNS`
fine-tunings, as many as a search with three finalists does, is so much longer that the whole cost is the same.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier.search.config.loading import load_config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.multi_fidelity import agreement
from espalier.search.files.tensor_files import load_header
from espalier.search.progress.reporter import Silent
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.final_evaluation import versions
from espalier.search.run.prepare import prepare
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.sampling import draw_policies
from espalier.search.statistics.differences import paired
from espalier.search.study.run_folder import LADDER
from espalier.search.training.finetune import Finetuned, FinetuneSpec

PROXIES = ("recalibrated", "sgd20")
RUNS = 12
"""Fine-tunings of a search: three finalists with two seeds, and two networks with three."""
WEIGHTS: dict[str, list[str]] = {"own": [], "shared": [], "generated": ["supernet.generator=true"]}


def finetuned(made: Experiment, spec: FinetuneSpec, policies: list[Candidate], seeds: int) -> tuple[Any, float]:
    """Held-out scores, (policies, seeds), and the seconds of one fine-tuning."""
    pairs = [(policy, seed) for policy in policies for seed in range(seeds)]
    runs = replace(made.finetuner, spec=spec)(pairs)
    found = [run for run in runs.values() if isinstance(run, Finetuned)]
    scores = np.array([run.judged for run in found]).reshape(len(policies), seeds)
    return scores, sum(run.seconds for run in found) / len(found)


def measure(
    config: str, overrides: list[str], epochs: float, count: int, seeds: int, folder: Path
) -> dict[str, Any]:
    """All of one setting."""
    report: dict[str, Any] = {"config": config, "overrides": overrides, "epochs": epochs, "policies": count}
    report |= {"seeds": seeds, "versions": versions(), "scores": {}, "rho": {}, "supernet_seconds": {}}
    policies: list[Candidate] = []
    seen: set[Path] = set()
    for name, more in WEIGHTS.items():
        asked = ["workers=0", "search.strength=finetuned", *overrides, *more]
        if name != "own":
            asked += [f"supernet.epochs={epochs:g}", "supernet.used_for=both"]
        settings = load_config(config, asked)
        prepared = prepare(settings)
        made = Experiment(settings, prepared, folder, Silent(), proxies=PROXIES)
        made.train_ladder()
        made.settle_execution(unrecorded)
        space = made.choose_spaces([prepared.budget], unrecorded)[prepared.budget]
        files = (folder / LADDER).glob("shared*.safetensors")
        took = {file: load_header(file)["seconds"] for file in files if file not in seen}
        seen |= set(took)
        report["supernet_seconds"][name] = sum(took.values())
        policies = policies or draw_policies(space, count, seed=0)
        evaluator = Evaluator(made.spec)
        for proxy in PROXIES:
            scores = [evaluator(policy, proxy).value(made.measure) for policy in policies]
            report["rho"][f"{name}, {proxy}"] = scores
        report["scores"][name], seconds = finetuned(made, made.tuning, policies, seeds)
        print(f"{name}: {report['scores'][name].mean():.2f} after fine-tuning of {seconds:.0f} s", flush=True)
        if name == "own":
            own, own_seconds = made, seconds
    for name in ("shared", "generated"):
        longer = 1 + report["supernet_seconds"][name] / (RUNS * own_seconds)
        stage = replace(own.tuning.stage, epochs=own.tuning.stage.epochs * longer)
        title = f"own, longer by what {name} ones cost"
        report["scores"][title], _ = finetuned(own, replace(own.tuning, stage=stage), policies, seeds)
        print(f"{title}: {report['scores'][title].mean():.2f}, {stage.epochs:.2f} epochs", flush=True)
    truth = report["scores"]["own"].mean(1)
    report["rho"] = {name: agreement(scores, truth) for name, scores in report["rho"].items()}
    print(f"\nrank correlation with fine-tuning from own weights, {len(policies)} policies, {seeds} seeds")
    for name, rho in report["rho"].items():
        print(f"  {name:24} {rho:5.2f}")
    print("\nheld-out score after fine-tuning, mean over policies and seeds; differences by policy, 95 %")
    for name, scores in report["scores"].items():
        beside = report["scores"].get(f"own, longer by what {name} ones cost", report["scores"]["own"])
        difference = paired(scores.mean(1), beside.mean(1))
        words = f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})"
        what = (
            ""
            if name == "own"
            else f"  {words} beside own weights" + ("" if name.startswith("own") else " at equal cost")
        )
        print(f"  {name:36} {scores.mean():6.2f}{what}")
    report["scores"] = {name: scores.tolist() for name, scores in report["scores"].items()}
    return report


def main() -> None:
    """One setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--epochs", type=float, default=5.0, help="of the training of shared weights")
    parser.add_argument("--policies", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/shared_weights"), help="run folder; kept")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(given.config, given.overrides, given.epochs, given.policies, given.seeds, given.out)
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
