"""The ladder: one network per strength, each from the one before, none trained twice."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espalier.errors import EspalierError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.search.cluster.jobs import InProcess
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.progress.reporter import Lines, Meter, Reporter, Silent
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe, top1
from espalier.search.tasks.task import Stage
from espalier.search.training.ladder import Penalty, climb, train_dense
from espalier.search.training.strengths import Rung
from tests.search.watched import hasten

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.05)
Climb = Callable[..., list[Rung]]


class Counted(ClassificationTask):
    """Keeps the strengths of the trainings that were run."""

    strengths: list[float]
    seeds: list[int]
    diverges_at: float | None = None

    def train(self, network: nn.Module, stage: Stage, **how: Any) -> None:
        regularization = how.get("regularization")
        self.strengths.append(0.0 if regularization is None else regularization.strength)
        self.seeds.append(how["seed"])
        super().train(network, stage, **how)
        if self.strengths[-1] == self.diverges_at:
            next(network.parameters()).data.fill_(torch.inf)


def task_on(splits: Splits) -> Counted:
    made = Counted(splits, {"dense": RECIPE, "regularized": RECIPE, "finetune": RECIPE}, 48)
    made.strengths, made.seeds = [], []
    return made


@pytest.fixture
def task(splits: Splits) -> Counted:
    return task_on(splits)


@pytest.fixture
def runs(task: Counted) -> list[float]:
    """The strengths of the trainings that were run."""
    return task.strengths


@pytest.fixture
def up(network: nn.Module, graph: ChannelGraph, task: Counted, tmp_path: Path) -> Climb:
    def climbing(
        strengths: tuple[float, ...] = (0.0, 0.01, 0.1),
        *,
        epochs: float = RECIPE.epochs,
        seed: int = 0,
        origin: str = "o",
        regularizer: str = "oicsr_gl",
        reporter: Reporter | None = None,
        **how: Any,
    ) -> list[Rung]:
        dense = train_dense(network, task, RECIPE.epochs, seed, tmp_path, origin, Silent())
        penalty, reporter = Penalty(regularizer), reporter or Silent()
        return climb(dense, graph, task, epochs, penalty, strengths, seed, tmp_path, reporter, **how)

    return climbing


def test_each_rung_is_trained_once(up: Climb, runs: list[float]) -> None:
    first = up()
    assert runs == [0.0, 0.01, 0.1]
    again = up()
    assert runs == [0.0, 0.01, 0.1]
    assert [rung.digest for rung in again] == [rung.digest for rung in first]
    assert [rung.value for rung in again] == [rung.value for rung in first]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"seed": 1}, [0.0, 0.01, 0.1]),
        ({"origin": "other weights"}, [0.0]),
        ({"epochs": 5}, [0.01, 0.1]),
        ({"strengths": (0.0, 0.01, 0.2)}, [0.2]),
        ({"strengths": (0.0, 0.02, 0.1)}, [0.02, 0.1]),
        ({"regularizer": "separated_gl"}, [0.01, 0.1]),
    ],
    ids=str,
)
def test_what_depends_on_a_change_is_trained_again(
    up: Climb, runs: list[float], change: dict[str, object], trained: list[float]
) -> None:
    up()
    runs.clear()
    up(**change)
    assert runs == trained


def test_strength_zero_is_the_dense_network(
    up: Climb, network: nn.Module, task: Counted, tmp_path: Path, runs: list[float]
) -> None:
    dense = train_dense(network, task, RECIPE.epochs, 0, tmp_path, "o", Silent())
    rungs = up((0.0, 0.01))
    assert rungs[0].digest == dense.digest != rungs[1].digest
    assert runs == [0.0, 0.01]


def test_rungs_know_what_they_are(up: Climb, splits: Splits) -> None:
    rungs = up()
    assert [rung.strength for rung in rungs] == [0.0, 0.01, 0.1]
    for rung in rungs:
        assert rung.digest == digest(tensors_of(rung.model))
        assert rung.value == top1(rung.model, splits.search, splits.mean, splits.std)
        assert not rung.model.training
    assert rungs[0].value > 60


def test_energies_fall_with_the_strength(up: Climb, graph: ChannelGraph) -> None:
    energies = [float(channel_energies(rung.model, graph).sum()) for rung in up((0.01, 0.1, 0.3))]
    assert energies == sorted(energies, reverse=True) and energies[-1] < 0.5 * energies[0]


def test_a_rung_starts_from_the_one_below(up: Climb, runs: list[float]) -> None:
    """The same strength on another ladder is another network."""
    assert up((0.0, 0.01, 0.1))[2].digest != up((0.0, 0.1))[1].digest


def test_an_interrupted_ladder_goes_on_where_it_was(
    network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killing(Silent):
        """Interrupts at a step, counted over all trainings."""

        def __init__(self, left: int) -> None:
            self.left = left

        @contextmanager
        def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
            outer = self

            class Counting(Meter):
                def update(self, done: int, note: str = "", values: object = None) -> None:
                    outer.left -= note.startswith("loss")
                    if outer.left < 0:
                        raise KeyboardInterrupt

            yield Counting()

    def climbed(folder: Path, reporter: Reporter) -> list[str]:
        dense = train_dense(network, task_on(splits), RECIPE.epochs, 0, folder, "o", reporter)
        penalty = Penalty("oicsr_gl", ramp=0.5)
        rungs = climb(dense, graph, task_on(splits), RECIPE.epochs, penalty, (0.01, 0.1), 0, folder, reporter)
        return [rung.digest for rung in (dense, *rungs)]

    hasten(monkeypatch)
    whole = climbed(tmp_path / "whole", Silent())
    for steps in (10, 30, 10):
        with pytest.raises(KeyboardInterrupt):
            climbed(tmp_path / "killed", Killing(steps))
    left = Killing(1000)
    assert climbed(tmp_path / "killed", left) == whole
    assert 1000 - left.left == 3 * 24 - 50  # nothing that was done is done again
    assert not list(tmp_path.rglob("*.partial.safetensors"))


def test_rungs_from_the_dense_network_do_not_know_of_each_other(up: Climb, runs: list[float]) -> None:
    chain = up()
    runs.clear()
    fan = up(start="dense")
    assert runs == [0.1]  # the first one starts from the dense network either way
    assert [rung.strength for rung in fan] == [0.0, 0.01, 0.1]
    assert [rung.digest for rung in fan[:2]] == [rung.digest for rung in chain[:2]]
    assert fan[2].digest != chain[2].digest
    runs.clear()
    changed = up((0.0, 0.02, 0.1), start="dense")
    assert runs == [0.02] and changed[2].digest == fan[2].digest


def test_finished_rungs_are_told(up: Climb) -> None:
    stream = io.StringIO()
    up((0.01, 0.1), start="dense", reporter=Lines(stream, interval=0.0))
    said = [line for line in stream.getvalue().splitlines() if line.startswith("ladder")]
    assert [line.partition(",")[0] for line in said] == [f"ladder: {done}/2 rungs" for done in (0, 1, 2)]
    assert "strength 0.1: top-1" in said[-1]
    up((0.01, 0.1), start="dense", reporter=Lines(stream, interval=0.0))
    assert sum("ladder" in line for line in stream.getvalue().splitlines()) == 3  # nothing was left to do


def test_rungs_that_another_driver_has_finished_are_taken(up: Climb, runs: list[float]) -> None:
    class Overtaken(InProcess):
        def map(self, function: Any, shared: Any, jobs: Any) -> Any:
            up(start="dense")
            assert runs == [0.0, 0.01, 0.1]
            yield from super().map(function, shared, jobs)

    rungs = up(start="dense", workers=Overtaken())
    assert runs == [0.0, 0.01, 0.1] and [rung.strength for rung in rungs] == [0.0, 0.01, 0.1]


def test_rungs_may_be_trained_where_the_run_folder_is_not_seen(
    up: Climb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = up(start="dense")

    class Elsewhere(InProcess):
        def map(self, function: Any, shared: Any, jobs: Any) -> Any:
            for job in jobs:
                with monkeypatch.context() as patch:
                    patch.setattr(Path, "is_dir", lambda self: self != tmp_path and os.path.isdir(self))
                    rung = function(shared, job)
                yield job, rung

    for path in tmp_path.glob("rung*"):
        path.unlink()
    there = up(start="dense", workers=Elsewhere())
    assert [rung.digest for rung in there] == [rung.digest for rung in here]
    assert len(list(tmp_path.glob("rung*"))) == 2


def test_every_rung_has_a_seed_of_its_own(up: Climb, task: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    up()
    assert task.seeds == [0, 1, 2]


@pytest.mark.parametrize(("broken", "strength"), [("dense training", 0.0), ("oicsr_gl, strength 0.01", 0.01)])
def test_a_training_that_diverges_is_named(
    network: nn.Module, graph: ChannelGraph, task: Counted, tmp_path: Path, broken: str, strength: float
) -> None:
    task.diverges_at = strength
    lower = "learning rate or strength" if strength else "learning rate"
    with pytest.raises(
        EspalierError, match=rf"^{broken} diverged: numbers in .* not finite at its end; a lower {lower} may"
    ):
        dense = train_dense(network, task, RECIPE.epochs, 0, tmp_path, "o", Silent())
        climb(dense, graph, task, RECIPE.epochs, Penalty("oicsr_gl"), (0.0, 0.01), 0, tmp_path, Silent())
    task.diverges_at = None
    dense = train_dense(network, task, RECIPE.epochs, 0, tmp_path, "o", Silent())
    assert all(bool(tensor.isfinite().all()) for tensor in dense.model.parameters())


def test_the_network_given_stays_as_it_is(up: Climb, network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    up()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_weights_that_were_given_need_no_training(
    network: nn.Module, task: Counted, tmp_path: Path, runs: list[float]
) -> None:
    dense = train_dense(network, task, 0, 0, tmp_path, "o", Silent())
    assert runs == [] and dense.digest == digest(tensors_of(network))
