"""How long does a search take, and does racing find as good a winner sooner?

    python benchmarks/racing.py cifar10_resnet56 model.weights=resnet56.th data.root=cifar-10-batches-bin
        search.scoring_images=1000 search.calibration_images=500 --trials 500 --workers 2 --seeds 3 --json race.json
    python benchmarks/racing.py --print race.json

The same search several times over the same ladder, each with a study and workers of its own: every candidate scored
on every image; on a quarter of the images, to score and to calibrate, after which the best tenth is scored on all
of them; and with ``search.race``. Time is that of the search stage alone: from the first candidate asked for to
the last one told, and of the second look at the best. The winners are then scored on all images that the searches
scored on, and on as many others. Searches that the file has are not repeated.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
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

from espalier.search.cluster.in_process import search_in_process
from espalier.search.cluster.jobs import InProcess, OnRay, Workers
from espalier.search.cluster.ray_cluster import ray_session
from espalier.search.config.loading import load_config
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator, score_all
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Lines
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space
from espalier.search.study.ledger import Ledger, Record
from espalier.search.study.storage import create_study, open_storage
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.execution import Execution

JOBS = 4
"""In which the best tenth is scored again; each builds an evaluator."""
WAYS = ("every image", "a quarter, then the best", "racing")


def searched(
    spec: EvaluationSpec, space: Space, args: argparse.Namespace, seed: int
) -> tuple[list[Record], dict[str, float]]:
    """Every trial of a search, and what it took."""
    start, used = time.perf_counter(), _processor()
    with tempfile.TemporaryDirectory() as folder:
        study = create_study(open_storage(f"sqlite:///{folder}/study.db", create=True), "racing", {"config": {}})
        sampler = SAMPLERS[args.sampler](space, seed)
        with Ledger(study, space, sampler, measure=MEASURES["cross_entropy"], target=args.trials) as ledger:
            with Lines().meter("search", args.trials, "candidates") as meter:
                if args.workers:
                    from espalier.search.cluster.tune import search_on_ray

                    search_on_ray(ledger, spec, args.workers, meter)
                else:
                    search_in_process(ledger, Evaluator(spec), meter)
            records = ledger.records()
    seconds = {"clock": time.perf_counter() - start, "driver": _processor() - used}
    return records, seconds | {"evaluations": sum(record.score.seconds for record in records)}


def best_of(records: list[Record], again: EvaluationSpec | None, workers: Workers) -> tuple[Candidate, float]:
    """The winner, and the seconds that it took to score the best tenth again, where that is done."""
    ranked = list(dict.fromkeys(r.candidate for r in sorted(records, key=lambda record: -record.value)))
    if again is None:
        return ranked[0], 0.0
    start = time.perf_counter()
    tenth = [("recalibrated", candidate) for candidate in ranked[: max(1, len(records) // 10)]]
    jobs = [tenth[at::JOBS] for at in range(JOBS)]
    values: dict[Candidate, float] = {}
    for job, scores in workers.map(score_all, again, jobs):
        values |= {c: score.value(MEASURES["cross_entropy"]) for (_, c), score in zip(job, scores, strict=True)}
    return max(values, key=lambda candidate: values[candidate]), time.perf_counter() - start


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All searches that the file lacks; it is written after each."""
    config = load_config(args.config, [*args.overrides, "search.proxy=recalibrated"])
    experiment = Experiment(config, prepare(config), Path(args.json).with_suffix(""), Lines())
    experiment.train_ladder()
    path = Path(args.json)
    results: dict[str, Any] = (
        json.loads(path.read_text())
        if path.exists()
        else {
            "config": args.config,
            "overrides": [each for each in args.overrides if not each.startswith(("data.root", "model.weights"))],
            **{name: getattr(args, name) for name in ("sampler", "trials", "workers")},
            "torch": torch.__version__,
            "execution": experiment.asked_execution().to_json(),
            "seeds": {},
        }
    )
    experiment.settle_execution(lambda name, make: results[name])
    space, seen, unseen = experiment.space(), experiment.spec, experiment.unseen
    evaluators = [Evaluator(replace(spec, race=None)) for spec in (seen, unseen)]
    images = seen.scoring
    assert isinstance(images, ImageScoring)
    few = images.first(len(images.images) // 4, len(images.calibration_images) // 4)
    quarter = replace(seen, scoring=few)
    ways = {
        "every image": (replace(seen, race=None), None),
        "a quarter, then the best": (replace(quarter, race=None), replace(seen, race=None)),
        "racing": (replace(seen, race="cross_entropy"), None),
    }
    for seed in range(args.seeds):
        known = results["seeds"].setdefault(str(seed), {})
        for name in [name for name in args.ways if name not in known]:
            spec, again = ways[name]
            with ray_session(args.workers, None) if args.workers else nullcontext():
                records, seconds = searched(spec, space, args, seed)
                workers = OnRay(workers=args.workers) if args.workers else InProcess()
                winner, seconds["again"] = best_of(records, again, workers)
            known[name] = {
                "seconds": {key: round(value, 1) for key, value in seconds.items()},
                "images": sum(record.score.images for record in records) / len(records),
                "winner": winner.key,
                "losses": [evaluator(winner).measures["cross_entropy"] for evaluator in evaluators],
            }
            write_json(path, results)
    return results


def show(results: dict[str, Any]) -> None:
    """Prints the table of a results file: means over seeds, each seed in brackets."""
    table = Table("", "seconds", "of them again", "evaluations s", "driver s", "images", box=None)
    for column in ("winner", "winner on unseen"):
        table.add_column(column)
    seeds = list(results["seeds"].values())
    for name in seeds[0]:
        found = [seed[name] for seed in seeds if name in seed]

        def cell(values: list[float], form: str) -> str:
            each = ", ".join(format(value, form) for value in values)
            return f"{statistics.mean(values):{form}} ({each})"

        taken = [each["seconds"] for each in found]
        table.add_row(
            name,
            cell([each["clock"] + each["again"] for each in taken], ".0f"),
            *(cell([each[key] for each in taken], ".0f") for key in ("again", "evaluations", "driver")),
            cell([each["images"] for each in found], ".0f"),
            *(cell([each["losses"][number] for each in found], ".3f") for number in (0, 1)),
        )
    console = Console(width=max(Console().width, 180))
    console.print(f"{results['config']}, {results['trials']} candidates, {results['workers']} workers")
    console.print(Execution.from_json(results["execution"]).words(of_images=True), table, sep="\n")


def main() -> None:
    """Reads the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--json", default="racing.json", help="where the results go, checkpoints beside it")
    parser.add_argument("--print", dest="shown", type=Path, metavar="FILE", help="only print a results file")
    args = parser.parse_args()
    if args.shown is not None:
        show(json.loads(args.shown.read_text()))
        return
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    show(measure(args))


if __name__ == "__main__":
    main()
