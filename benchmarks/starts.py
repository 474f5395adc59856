"""What the rankings that `auto` begins with are worth: searches with and without `Space.starts`.

    python benchmarks/starts.py unet latency

Settings are those of without_sparsity.py, at 60 candidates each by 20 steps of SGD. It prints the best value by the
proxy after 10, 20, 40 and 60 of them, for three seeds; greater is better.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import torch
import without_sparsity

from espalier.search.config.loading import parse_config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Silent
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.latency_budget import settle_latency, with_latency
from espalier.search.run.prepare import prepare
from espalier.search.samplers.auto import Auto
from espalier.search.spaces.candidate import Candidate
from espalier.search.study.keys import CANDIDATE

TRIALS, SHOWN, SEEDS = 60, (10, 20, 40, 60), (20, 21, 22)


def best_values(name: str, folder: Path) -> None:
    """Of one setting."""
    content: dict[str, Any] = without_sparsity.settings(argparse.Namespace(cifar10=None))[name]
    content |= {"regularizer": {"strengths": [0.0], "epochs": 0}, "seed": without_sparsity.FIRST_SEED, "workers": 0}
    content["search"] = {"proxy": "sgd20", "trials": TRIALS} | content.get("search", {})
    config = parse_config(content, name)
    prepared = prepare(config, takes_latency=True)
    if config.budget.limits_latency:
        prepared = with_latency(config, prepared, settle_latency(config, prepared, Silent()))
    made = Experiment(config, prepared, folder, Silent())
    made.train_ladder()
    made.settle_execution(unrecorded)
    space, evaluator = made.choose_spaces([prepared.budget], unrecorded)[prepared.budget], Evaluator(made.spec)
    known: dict[Candidate, float] = {}
    for seed in SEEDS:
        for first in ([], space.starts()):
            study = optuna.create_study(sampler=Auto(space, seed), direction="maximize")
            for vector in (*space.greedy_params(), *first):
                study.enqueue_trial(vector)
            values: list[float] = []
            for _ in range(TRIALS):
                trial = study.ask()
                candidate = space.decode(space.suggest(trial))
                trial.set_user_attr(CANDIDATE, candidate.key)
                if candidate not in known:
                    known[candidate] = evaluator(candidate).value(made.measure)
                study.tell(trial, known[candidate])
                values.append(known[candidate])
            best = "  ".join(f"{max(values[:count]):8.3f}" for count in SHOWN)
            print(f"{name:9} seed {seed}  {'with' if first else 'without':7}  {best}", flush=True)


def main() -> None:
    """All that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["unet", "latency"])
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sys.path.append(str(Path(__file__).parent))  # where configs find the U-Net
    print(f"{'':33}{'  '.join(f'{count:8}' for count in SHOWN)}")
    for name in parser.parse_args().settings:
        with tempfile.TemporaryDirectory() as folder:
            best_values(name, Path(folder))


if __name__ == "__main__":
    main()
