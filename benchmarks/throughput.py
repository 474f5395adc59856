"""Candidates a second, with Ray and without: what lies around an evaluation, and what a second worker brings.

    python benchmarks/throughput.py

For candidates of 0.05, 0.2 and 1 s that compute, and that sleep: the bare loop in this process; then a search with
a SQLite storage on one worker and on two. *Orchestration* is the share of the workers' time that is not evaluation,
from the first score to the last one handed out. On a machine with other work beside it, the sleeping candidates say
more: those that compute share the cores with it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from paced import Pace, paced_evaluation, study

from espalier.search.cluster.jobs import Share
from espalier.search.cluster.ray_cluster import ray_session
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Meter
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.sampling import draw_policies
from espalier.search.study.ledger import Ledger
from espalier.search.tasks.classification.measures import MEASURES

RESULT = Path(__file__).parent / "results" / "throughput.json"


class Times(Meter):
    """When how many candidates were told."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def update(self, done: int, note: str = "", *_: object) -> None:
        """Notes the time."""
        if not self.seen or self.seen[-1][1] < done:
            self.seen.append((time.perf_counter(), done))


def bare(seconds: float, pace: Pace, candidates: int) -> float:
    """Candidates a second in a loop in this process, without a storage."""
    spec, space = paced_evaluation(seconds, pace)
    chosen: list[Candidate] = draw_policies(space, candidates, 0)
    evaluator = Evaluator(spec)
    evaluator(chosen[0])
    began = time.perf_counter()
    for candidate in chosen:
        evaluator(candidate)
    return len(chosen) / (time.perf_counter() - began)


def measure(seconds: float, pace: Pace, workers: int, candidates: int, cpus: float = 1.0) -> dict[str, float]:
    """A search on Ray, with SQLite: candidates a second between the first and the last score, and orchestration."""
    from espalier.search.cluster.tune import search_on_ray

    spec, space = paced_evaluation(seconds, pace)
    share = Share(cpus)
    with tempfile.TemporaryDirectory() as folder, _ray(workers, share):
        book = Ledger(
            study(f"sqlite:///{folder}/study.db"),
            space,
            SAMPLERS["random"](space, 0),
            measure=MEASURES["cross_entropy"],
            target=candidates,
        )
        times, cpu = Times(), time.process_time()
        with book:
            search_on_ray(book, spec, workers, times, share=share)
        cpu = time.process_time() - cpu
        records = book.records()
    # Workers start one after another: counted from when the first quarter is done.
    (start, before), (end, after) = times.seen[len(times.seen) // 4], times.seen[-workers]
    rate = (after - before) / (end - start)
    evaluating = sum(record.score.seconds for record in records) / len(records)
    return {
        "candidates_per_second": rate,
        "seconds_per_candidate": evaluating,
        "orchestration": 1 - rate * evaluating / workers,
        "driver_cpu_ms": 1e3 * cpu / candidates,
    }


@contextmanager
def _ray(workers: int, share: Share) -> Iterator[None]:
    with ray_session(workers, "local", share=share):
        yield


def main() -> None:
    """Measures, prints and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.05, 0.2, 1.0])
    parser.add_argument("--pace", nargs="+", default=["busy", "asleep"])
    parser.add_argument("--time", type=float, default=20.0, help="seconds of evaluation per measurement and worker")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for pace in given.pace:
        for seconds in given.seconds:
            count = max(16, int(given.time / seconds))
            loop = bare(seconds, pace, max(8, count // 4))
            one, two = (measure(seconds, pace, workers, workers * count) for workers in (1, 2))
            rows.append(
                {
                    "pace": pace,
                    "seconds": seconds,
                    "bare": loop,
                    "one": one,
                    "two": two,
                    "speedup": two["candidates_per_second"] / one["candidates_per_second"],
                }
            )
            print(
                f"{pace:>6} {seconds:>5} s: {loop:6.2f}/s bare, {one['candidates_per_second']:6.2f}/s on one "
                f"worker ({one['orchestration']:.1%} orchestration, driver {one['driver_cpu_ms']:.0f} ms of CPU), "
                f"{two['candidates_per_second']:6.2f}/s on two ({rows[-1]['speedup']:.2f} x)",
                flush=True,
            )
    result = {"rows": rows, "cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0]}
    write_json(given.out, result)


if __name__ == "__main__":
    main()
