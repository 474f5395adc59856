"""Fine-tuning: one that fails is its own failure, and fine-tuned networks stay in their files."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.search.cluster.jobs import InProcess
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.files.tensor_files import load_tensors
from espalier.search.progress.reporter import Silent
from espalier.search.spaces.candidate import Candidate
from espalier.search.statistics.seeds import selection_seeds
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.task import Stage
from espalier.search.training import finetune
from espalier.search.training.contest import best_greedy
from espalier.search.training.finetune import (
    Finetuned,
    FineTuner,
    FinetuneSpec,
    ReadingSpec,
    read,
    to_read,
)

CANDIDATES = [Candidate(0, (6, 8, 10)), Candidate(0, (3, 4, 5)), Candidate(1, (2, 6, 3))]
RUNGS = ["a", "b"]


class Short(ClassificationTask):
    """A task that has no memory for networks whose first layer is `width` wide."""

    width, asked = 0, list[int]()

    def train(self, network: nn.Module, *stage: Any, **how: Any) -> None:
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d)).out_channels
        self.asked.append(first)
        if first == self.width:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")
        super().train(network, *stage, **how)


def short_of_memory(tuning: FinetuneSpec, width: int) -> tuple[FinetuneSpec, list[int]]:
    """The same where networks of a width have no room; the list holds the widths that were trained."""
    task = copy.copy(tuning.task)
    assert isinstance(task, Short)
    task.width, task.asked = width, []
    return replace(tuning, task=task), task.asked


@pytest.fixture
def tuning(spec: EvaluationSpec, splits: Splits) -> FinetuneSpec:
    task = Short(splits, {"finetune": Recipe(epochs=0.2, batch_size=16, lr=0.05)}, 0)
    return FinetuneSpec(spec, task, Stage("finetune", 0.2))


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_one_that_has_no_memory_is_its_own_failure_and_is_tried_again(tuning: FinetuneSpec, tmp_path: Path) -> None:
    pairs = [(candidate, seed) for candidate in CANDIDATES for seed in (0, 1)]
    heard = Heard()
    short, _ = short_of_memory(tuning, 3)
    found = FineTuner(short, tmp_path, RUNGS, InProcess(), heard)(pairs)
    assert list(found) == pairs
    failed = {pair for pair, run in found.items() if isinstance(run, str)}
    assert failed == {(CANDIDATES[1], 0), (CANDIDATES[1], 1)}
    reason = found[CANDIDATES[1], 0]
    assert isinstance(reason, str) and reason.startswith("OutOfMemoryError: CUDA out of memory. Tried to")
    assert "\n" not in reason
    assert len(heard.lines) == 2 and heard.lines[0].startswith(
        "fine-tuning of candidate 0:3,4,5 with seed 0 failed: OutOfMemoryError: "
    )
    others = FineTuner(short, tmp_path, RUNGS, InProcess(), heard).finished(CANDIDATES, [0])
    assert [run.candidate for run in others] == [CANDIDATES[0], CANDIDATES[2]]
    enough, asked = short_of_memory(tuning, 99)
    again = FineTuner(enough, tmp_path, RUNGS, InProcess(), Silent())(pairs)
    assert all(isinstance(run, Finetuned) for run in again.values()) and asked == [3, 3]


def test_where_all_fail_nothing_is_concluded(tuning: FinetuneSpec, tmp_path: Path) -> None:
    short, _ = short_of_memory(tuning, 3)
    with pytest.raises(EspalierError, match=r"all 2 fine-tunings failed, the last one with OutOfMemoryError: CUDA"):
        FineTuner(short, tmp_path, RUNGS, InProcess(), Silent()).finished(CANDIDATES[1:2], [0, 1])


def test_a_baseline_that_cannot_be_fine_tuned_is_not_the_best(tuning: FinetuneSpec, tmp_path: Path) -> None:
    short, _ = short_of_memory(tuning, 6)
    chosen = best_greedy(FineTuner(short, tmp_path, RUNGS, InProcess(), Silent()), CANDIDATES[:2], 0, 0).winner
    assert chosen == CANDIDATES[1]


def test_a_driver_holds_one_network_at_a_time(
    tuning: FinetuneSpec, tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 75 ResNet-50 it held 7 GB."""
    real, loaded = load_tensors, list[weakref.ref[Tensor]]()

    def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        gc.collect()
        assert sum(tensor() is not None for tensor in loaded) <= most
        tensors, header = real(path)
        loaded.append(weakref.ref(next(iter(tensors.values()))))
        return tensors, header

    monkeypatch.setattr(finetune, "load_tensors", load)
    most = 0
    runs = FineTuner(tuning, tmp_path, RUNGS, InProcess(), Silent()).finished(CANDIDATES, [0, 1])
    again = FineTuner(tuning, tmp_path, RUNGS, InProcess(), Silent()).finished(CANDIDATES, [0, 1])
    assert again == runs and loaded == [], "what is finished is not even read"
    most = 1
    spec = ReadingSpec(tuning.evaluation, tuning.task, "test")
    networks = to_read(tuning.evaluation, [], runs)
    for number, ((candidate, seed, _), reading) in enumerate(InProcess().map(read, spec, networks)):
        assert (candidate, seed) == (runs[number].candidate, runs[number].seed) and reading.examples is not None
        assert len(reading.examples) == len(splits.test)
    assert len(loaded) == len(runs)


def test_choices_of_several_seeds_share_none_of_theirs() -> None:
    for count in (1, 2, 3):
        chosen = [seed for number in range(5) for seed in selection_seeds(number, count)]
        assert len(set(chosen)) == 5 * count and min(chosen) >= 1000


def test_seeds_that_choose_are_none_of_those_that_are_compared() -> None:
    assert selection_seeds(3) == [1003] and selection_seeds(0, 2) == [1000, 1001]
    assert not set(selection_seeds(5, 400)) & set(range(5, 1005))


def test_layers_are_reconstructed_where_that_is_asked_for(
    tuning: FinetuneSpec, splits: Splits, tmp_path: Path
) -> None:
    """Before the training, here of no steps; and what was not is kept apart."""
    plain = replace(
        tuning,
        stage=Stage("finetune", 0),
        task=ClassificationTask(splits, {"finetune": Recipe(epochs=0, batch_size=16, lr=0.05)}, 0),
    )
    runs = {
        asked: FineTuner(replace(plain, reconstruct=asked), tmp_path, RUNGS, InProcess(), Silent()).finished(
            CANDIDATES[:1], [0]
        )[0]
        for asked in (False, True)
    }
    assert runs[False].path != runs[True].path
    networks = CandidateNetworks(tuning.evaluation)
    expected = PROXIES["reconstructed"].prepare(networks, CANDIDATES[0])
    assert isinstance(expected, nn.Module)
    own, without = runs[True].tensors(), runs[False].tensors()
    assert all(torch.equal(own[name], tensor) for name, tensor in expected.named_parameters())
    assert not all(torch.equal(own[name], without[name]) for name, _ in expected.named_parameters())


def test_what_is_kept_is_of_the_ranks_and_the_teacher_that_it_was_made_with(
    tuning: FinetuneSpec, splits: Splits, tmp_path: Path
) -> None:
    """Other channels kept, or another network learnt from, are other fine-tunings."""
    task = ClassificationTask(splits, {"finetune": Recipe(epochs=0, batch_size=16, lr=0.05)}, 0)
    plain = replace(tuning, stage=Stage("finetune", 0), task=task)
    ranks = plain.evaluation.ranks
    others = (plain.evaluation.graph.ranks(ranks[0].astype(float)), *ranks[1:])
    taught = {"weight": np.zeros(3, dtype=np.float32)}
    specs = [
        plain,
        replace(plain, evaluation=replace(plain.evaluation, ranks=others)),
        replace(plain, teacher=taught),
        replace(plain, teacher={"weight": np.ones(3, dtype=np.float32)}),
    ]
    paths = [
        FineTuner(spec, tmp_path, RUNGS, InProcess(), Silent()).finished(CANDIDATES[:1], [0])[0].path
        for spec in (*specs, *specs)
    ]
    assert len(set(paths)) == len(specs) and paths[: len(specs)] == paths[len(specs) :]
