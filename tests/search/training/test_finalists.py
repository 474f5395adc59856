"""What goes on from a search: scores kept in the study, widths that differ, halves that are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from espalier.search.cluster.jobs import InProcess
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Silent
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.metric import Metric
from espalier.search.study.keys import PREFIX
from espalier.search.study.ledger import Record
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.task import Stage
from espalier.search.training.contest import Contest, cost_of, decide, halve
from espalier.search.training.finalists import Rejudging, diverse
from espalier.search.training.finetune import Finetuned, FineTuner, FinetuneSpec
from tests.search.conftest import images_of


class Counting(InProcess):
    """Counts the candidates that are judged."""

    def __init__(self) -> None:
        self.asked: list[Candidate] = []

    def map(self, function: Any, shared: Any, jobs: Iterable[Any]) -> Iterator[Any]:
        chosen = list(jobs)
        for job in chosen:
            self.asked += [candidate for _, candidate in job]
        yield from super().map(function, shared, chosen)


CANDIDATES = [
    Candidate(rung, widths) for rung in (0, 1) for widths in [(6, 8, 10), (3, 4, 5), (1, 1, 2), (2, 6, 3)]
]
RECORDS = [
    Record(number, candidate, Score({"top1": 50.0, "cross_entropy": float(number)}, 0.1), -float(number))
    for number, candidate in enumerate(CANDIDATES)
]


def test_the_best_are_judged_again_once_and_the_baseline_always(spec: EvaluationSpec) -> None:
    study = optuna.create_study()
    workers = Counting()
    again = Rejudging(study, spec, ["ridge"], MEASURES["cross_entropy"], 0.25, workers, 2, Silent())
    (risen,) = again.rise(RECORDS, [CANDIDATES[-1]], 3)
    assert risen.values.keys() == {*CANDIDATES[:3], CANDIDATES[-1]}
    evaluator = Evaluator(spec)
    for candidate, value in risen.values.items():
        assert value == -evaluator(candidate, "ridge").measures["cross_entropy"]
    assert len(workers.asked) == 4
    both = replace(again, proxies=["ridge", "recalibrated"])
    first, second = both.rise(RECORDS, [CANDIDATES[-1]], 3)
    assert first == risen  # from the study
    assert second.values.keys() <= first.values.keys() and CANDIDATES[-1] in second.values
    assert len(workers.asked) == 4 + len(second.values)
    other = replace(spec, scoring=images_of(spec).first(32, 80))
    replace(again, spec=other, measure=MEASURES["top1"]).rise(RECORDS, [], 3)
    assert len(workers.asked) == 7 + len(second.values)  # other images, other scores
    kept = [key for key in study.user_attrs if key.startswith(PREFIX + "promoted:")]
    assert len(kept) == len(workers.asked)


class NotANumber(InProcess):
    """Workers whose score of the first candidate is none."""

    def map(self, function: Any, shared: Any, jobs: Iterable[Any]) -> Iterator[Any]:
        for job in jobs:
            losses = [float("nan") if candidate == CANDIDATES[0] else 2.0 for _, candidate in job]
            yield job, [Score({"top1": 1.0, "cross_entropy": loss}, 0.1) for loss in losses]


def test_a_candidate_whose_score_is_not_a_number_comes_last(spec: EvaluationSpec) -> None:
    again = Rejudging(
        optuna.create_study(), spec, ["ridge"], MEASURES["cross_entropy"], 0.5, NotANumber(), 1, Silent()
    )
    (risen,) = again.rise(RECORDS, [], 4)
    assert risen.values[CANDIDATES[0]] == -np.inf
    assert set(risen.values.values()) == {-np.inf, -2.0}


def test_finalists_lie_apart_where_they_can() -> None:
    sizes = np.array([50, 50])
    best, near, far = Candidate(0, (20, 20)), Candidate(0, (20, 21)), Candidate(0, (30, 10))
    nearer = Candidate(0, (21, 20))
    assert diverse([best, near, far, nearer], sizes, 2) == [best, far]
    assert diverse([best, near, far, nearer], sizes, 3) == [best, far, near]
    assert diverse([best], sizes, 3) == [best]


def test_halving_keeps_the_better_half_of_longer_and_longer_runs(
    spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> None:
    task = ClassificationTask(splits, {"finetune": Recipe(epochs=4, batch_size=16, lr=0.05)}, 0)
    whole = FinetuneSpec(spec, task, Stage("finetune", 4))
    finetuner = FineTuner(whole, tmp_path, ["a", "b"], InProcess(), Silent())
    (left,) = halve(finetuner, [Contest(CANDIDATES, (0,))], 2)
    assert len(left.candidates) == 2 and set(left.candidates) < set(CANDIDATES) and left.seconds > 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 8 + 4
    assert halve(finetuner, [Contest(CANDIDATES, (0,))], 2) == [left]
    assert len(list(tmp_path.glob("*.safetensors"))) == 12
    untouched = Contest(CANDIDATES[:3], (0,))
    assert halve(finetuner, [untouched], 0) == [untouched]


def test_fine_tuning_decides_contests_together_and_runs_equal_ones_once(
    spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> None:
    task = ClassificationTask(splits, {"finetune": Recipe(epochs=1, batch_size=16, lr=0.05)}, 0)
    whole = FinetuneSpec(spec, task, Stage("finetune", 1))
    finetuner = FineTuner(whole, tmp_path, ["a", "b"], InProcess(), Silent())
    first, second, third = CANDIDATES[:3]
    contests = [
        Contest([first, second], (1000, 1001), third),
        Contest([third, second], (1001, 1002), third),
        Contest([third], (1000,), third),  # nothing to choose
    ]
    decided = decide(finetuner, contests, 0)
    runs = finetuner.finished([first, second, third], [1000, 1001, 1002])
    judged = {(run.candidate, run.seed): run for run in runs}
    for contest, found, entered in zip(contests, decided, ([third, first, second], [third, second]), strict=False):
        means = {c: np.mean([judged[c, seed].judged for seed in contest.seeds]) for c in entered}
        assert found.winner == max(entered, key=lambda candidate: means[candidate])
        spent = [judged[candidate, seed].seconds for candidate in entered for seed in contest.seeds]
        assert found.seconds == pytest.approx(sum(spent))
    assert decided[2] == contests[2]


def test_the_mean_over_all_seeds_decides(tmp_path: Path) -> None:
    steady, lucky, failing = CANDIDATES[:3]
    values = {steady: (80.0, 82.0), lucky: (90.0, 70.0), failing: (95.0, None)}

    class Fixed(FineTuner):
        def __call__(self, pairs: Any) -> dict[tuple[Candidate, int], Finetuned | str]:
            judged = {(candidate, seed): values[candidate][seed] for candidate, seed in pairs}
            return {
                pair: "no memory" if value is None else Finetuned(*pair, tmp_path, value, 1.0)
                for pair, value in judged.items()
            }

    task = SimpleNamespace(steps=lambda stage: 0)
    spec: Any = SimpleNamespace(metric=Metric("top1", "top-1", "%"), task=task, stage=Stage("finetune", 1))
    finetuner = Fixed(spec, tmp_path, [], InProcess(), Silent())
    (decided,) = decide(finetuner, [Contest([failing, lucky, steady], (0, 1))], 0)
    assert decided.candidates == [steady, lucky] and not decided.failure
    (none,) = decide(finetuner, [Contest([failing, failing], (0, 1))], 0)
    assert none.failure == "no memory" and not none.candidates


def test_it_says_what_a_decision_takes(spec: EvaluationSpec, splits: Splits, tmp_path: Path) -> None:
    task = ClassificationTask(splits, {"finetune": Recipe(epochs=1, batch_size=16, lr=0.05)}, 0)
    said = Said()
    finetuner = FineTuner(FinetuneSpec(spec, task, Stage("finetune", 1)), tmp_path, ["a", "b"], InProcess(), said)
    first, *others = CANDIDATES
    decide(finetuner, [Contest(others[:3], (0, 1), first), Contest([first], (0,), first)], 1)
    assert said.lines == [
        "fine-tuning finalists: 3 runs of 1/2 of the epochs, then 6 whole runs, at most: as much training as 7.5 "
        "whole runs"
    ]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 + 6
    decide(finetuner, [Contest(others[:2], (0,))], 0, title="fine-tuning greedy pruning")
    assert said.lines[1] == "fine-tuning greedy pruning: 2 whole runs, at most"
    decide(finetuner, [Contest([first], (0,), first)], 2)
    assert len(said.lines) == 2


@pytest.mark.parametrize(
    ("candidates", "baseline", "halvings", "expected"),
    [
        (4, 0, 1, "4 runs of 1/2 of the epochs, then 6 whole runs, at most: as much training as 8 whole runs"),
        (2, 0, 1, "2 runs of 1/2 of the epochs, then 4 whole runs, at most: as much training as 5 whole runs"),
        (2, None, 1, "2 runs of 1/2 of the epochs, at most: as much training as 1 whole run"),
        (3, 0, 0, "6 whole runs, at most"),
    ],
)
def test_the_baseline_may_come_back_after_it_was_dropped(
    candidates: int, baseline: int | None, halvings: int, expected: str
) -> None:
    against = None if baseline is None else CANDIDATES[baseline]
    assert cost_of([Contest(CANDIDATES[:candidates], (0, 1), against)], halvings) == expected


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
