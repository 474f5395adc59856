"""How long does a search take, and does racing find as good a winner sooner?

    python benchmarks/racing.py cifar10_resnet56 model.weights=resnet56.th data.root=cifar-10-batches-bin
        search.scoring_images=1000 search.calibration_images=500 --trials 500 --workers 2 --json racing.json

The same search three times over the same ladder, each with a study and workers of its own: every candidate scored
on every image; on a quarter of the images, to score and to calibrate, after which the best tenth is scored on all
of them; and with ``search.race``. Time is that of the search stage alone: from the first candidate asked for to
the last one told. The winners are then scored on all images that the searches scored on, and on as many others.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from rich.console import Console
from rich.table import Table

from espalier.search.assembly import Assembly
from espalier.search.bench import EvaluationSpec
from espalier.search.candidate import Candidate
from espalier.search.cluster import ray_session
from espalier.search.config import load_config
from espalier.search.evaluation import Evaluator
from espalier.search.local import search_in_process
from espalier.search.prepare import prepare
from espalier.search.probe import Execution
from espalier.search.progress import Lines
from espalier.search.samplers import SAMPLERS
from espalier.search.space import Space
from espalier.search.storage import create_study, open_storage
from espalier.search.study import Ledger, Record
from espalier.search.workers import InProcess


def searched(spec: EvaluationSpec, space: Space, args: argparse.Namespace) -> tuple[list[Record], dict[str, float]]:
    """Every trial of a search, and what it took."""
    start, used = time.perf_counter(), _processor()
    with tempfile.TemporaryDirectory() as folder:
        study = create_study(open_storage(f"sqlite:///{folder}/study.db", create=True), "racing", {"config": {}})
        sampler = SAMPLERS[args.sampler](space, args.seed)
        with Ledger(study, space, sampler, measure="cross_entropy", target=args.trials) as ledger:
            with Lines().meter("search", args.trials, "candidates") as meter:
                if args.workers:
                    from espalier.search.tune import search_on_ray

                    search_on_ray(ledger, spec, args.workers, meter)
                else:
                    search_in_process(ledger, Evaluator(spec), meter)
            records = ledger.records()
    seconds = {"clock": time.perf_counter() - start, "driver": _processor() - used}
    return records, seconds | {"evaluations": sum(record.score.seconds for record in records)}


def best_of(records: list[Record], again: Evaluator | None) -> tuple[Candidate, float]:
    """The winner, and the seconds that it took to score the best tenth again, where that is done."""
    ranked = list(dict.fromkeys(r.candidate for r in sorted(records, key=lambda record: -record.value)))
    if again is None:
        return ranked[0], 0.0
    start = time.perf_counter()
    values = {
        candidate: again(candidate).value("cross_entropy") for candidate in ranked[: max(1, len(records) // 10)]
    }
    return max(values, key=lambda candidate: values[candidate]), time.perf_counter() - start


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="racing.json", help="where the results go, checkpoints beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = load_config(args.config, [*args.overrides, "search.proxy=recalibrated"])
    parts = Assembly(config, prepare(config), Path(args.json).with_suffix(""), Lines())
    dense, rungs = parts.ladder(InProcess())
    energies = parts.energies(rungs)
    space = parts.space(energies)
    seen, unseen = (
        parts.evaluation(dense, rungs, energies, ("recalibrated",), indices)
        for indices in (parts.scoring_indices(), parts.promotion_indices())
    )
    start = time.perf_counter()
    execution: Execution = parts.probe(seen, space)
    results: dict[str, Any] = {"trials": args.trials, "workers": args.workers, "execution": execution.to_json()}
    results["probe"] = {"clock": time.perf_counter() - start}
    seen, unseen = execution.of(seen), execution.of(unseen)
    evaluators = [Evaluator(replace(spec, race=None)) for spec in (seen, unseen)]
    table = Table("", "clock s", "again s", "evaluations s", "driver s", "images", "winner", "on unseen", box=None)
    quarter = seen.first(len(seen.scoring) // 4, len(seen.calibration) // 4)
    ways = {
        "every image": (replace(seen, race=None), None),
        "a quarter, then the best": (replace(quarter, race=None), evaluators[0]),
        "racing": (replace(seen, race="cross_entropy"), None),
    }
    for name, (spec, again) in ways.items():
        with ray_session(args.workers, None) if args.workers else nullcontext():
            records, seconds = searched(spec, space, args)
        winner, seconds["again"] = best_of(records, again)
        losses = [evaluator(winner).cross_entropy for evaluator in evaluators]
        images = sum(record.score.images for record in records) / len(records)
        results[name] = {"seconds": seconds, "images": images, "winner": winner.key, "losses": losses}
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
        numbers = [f"{seconds[key]:.1f}" for key in ("clock", "again", "evaluations", "driver")]
        table.add_row(name, *numbers, f"{images:.0f}", *(f"{loss:.4f}" for loss in losses))
    Console().print(execution.words(), table, sep="\n")


if __name__ == "__main__":
    main()
