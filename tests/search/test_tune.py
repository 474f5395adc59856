"""The search and independent jobs on a Ray of this machine's own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from espalier.errors import EspalierError
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.networks import CifarResNet
from espalier.search.bench import EvaluationSpec
from espalier.search.data import InMemoryImages, Splits
from espalier.search.evaluation import Evaluator
from espalier.search.ladder import Penalty, Rung, climb, train_dense
from espalier.search.progress import Meter, Silent
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces import Multipliers
from espalier.search.storage import create_study, find_study, open_storage
from espalier.search.study import Ledger
from espalier.search.training import Recipe
from espalier.search.workers import InProcess, OnRay, Workers


class Seen(Meter):
    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, done: int, note: str = "", values: object = None) -> None:
        self.done.append(done)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Two workers for all tests of this file; a cluster named in the environment is not meant."""
    from espalier.search.cluster import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        with ray_session(2, "local"):
            yield


@pytest.fixture
def spec(resnet8: ChannelGraph, space: Multipliers) -> EvaluationSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [CifarResNet(depth=8, width=8, in_channels=1) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    images = InMemoryImages(
        torch.randint(256, (32, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(32) % 10
    )
    return EvaluationSpec.of(
        resnet8,
        Splits(images, images, images, tuple("0123456789"), (0.5,), (0.3,)),
        models[0],
        models,
        space.energies,
        calibration_images=32,
        scoring=torch.arange(32),
        steps=0,
        recipe=Recipe(epochs=1, batch_size=16, lr=0.1),
        batch_size=32,
        precision="fp32",
        proxy="recalibrated",
    )


def ledger(folder: Path, space: Multipliers, target: int) -> Ledger:
    url = f"sqlite:///{folder / 'study.db'}"
    storage = open_storage(url, create=True)
    study = find_study(storage, "s", url) or create_study(storage, "s", {"config": {}})
    return Ledger(study, space, SAMPLERS["random"](space, 0), measure="cross_entropy", target=target)


@pytest.mark.distributed
def test_ray_scores_as_this_process_does(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from espalier.search.tune import search_on_ray

    seen = Seen()
    with ledger(tmp_path, space, 20) as book:
        search_on_ray(book, spec, 2, seen)
    records = book.records()
    assert [record.number for record in records] == list(range(20))
    assert seen.done == sorted(seen.done) and seen.done[-1] == 20
    evaluator = Evaluator(spec)
    for record in records:
        assert record.value == pytest.approx(-evaluator(record.candidate).cross_entropy, rel=1e-6)
    again = Seen()
    with ledger(tmp_path, space, 20) as book:
        search_on_ray(book, spec, 2, again)
    assert again.done == [20] and book.records() == records


@pytest.mark.distributed
def test_candidates_that_fail_everywhere_end_the_search(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from dataclasses import replace

    from espalier.search.tune import search_on_ray

    broken = replace(spec, labels=np.full(32, 99))
    with ledger(tmp_path, space, 50) as book:
        with pytest.raises(EspalierError, match=r"^20 candidates failed, the last one with: IndexError"):
            search_on_ray(book, broken, 2, Seen())
    assert book.complete == 0


@pytest.mark.distributed
def test_candidates_that_are_not_numbers_end_the_search(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from dataclasses import replace

    from espalier.search.tune import search_on_ray

    hollow = tuple(
        {name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array for name, array in state.items()}
        for state in spec.states
    )
    nowhere = replace(spec, states=hollow)
    with ledger(tmp_path, space, 50) as book:
        with pytest.raises(EspalierError, match=r"^20 candidates failed, the last one with: its score is NaN"):
            search_on_ray(book, nowhere, 2, Seen())
    assert book.complete == 0


def _square(shared: int, job: int) -> int:
    return shared + job**2


def _die_once(marker: str, job: int) -> int:
    if job == 2 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return job


def test_jobs_in_this_process_come_in_order() -> None:
    assert list(InProcess().map(_square, 100, [3, 1, 2])) == [(3, 109), (1, 101), (2, 104)]


@pytest.mark.distributed
def test_rungs_that_start_from_the_dense_network_are_the_same_on_ray(
    ray: None, tmp_path: Path, network: nn.Module, graph: ChannelGraph, splits: Splits
) -> None:
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05)
    dense = train_dense(network, splits, recipe, 0, tmp_path, "o", Silent())
    rungs: dict[str, list[Rung]] = {}
    for place, workers in {"here": InProcess(), "ray": OnRay()}.items():
        rungs[place] = climb(
            dense,
            graph,
            splits,
            recipe,
            Penalty("oicsr_gl"),
            (0.0, 0.01, 0.1),
            0,
            tmp_path / place,
            Silent(),
            start="dense",
            workers=workers,
        )
    assert [rung.digest for rung in rungs["here"]] == [rung.digest for rung in rungs["ray"]]
    assert [rung.top1 for rung in rungs["here"]] == [rung.top1 for rung in rungs["ray"]]
    assert len(list((tmp_path / "ray").iterdir())) == 2


def test_ray_is_joined_once_and_only_if_there_is_something_to_do() -> None:
    joined: list[int] = []
    workers = OnRay(lambda: joined.append(1))
    assert list(workers.map(_square, 100, [])) == [] and joined == []
    workers.ready()
    workers.ready()
    assert joined == [1]


@pytest.mark.distributed
@pytest.mark.parametrize("workers", [InProcess(), OnRay()], ids=["in process", "on ray"])
def test_every_job_is_done_once(ray: None, workers: Workers) -> None:
    assert sorted(workers.map(_square, 100, range(6))) == [(job, 100 + job**2) for job in range(6)]
    assert list(workers.map(_square, 100, [])) == []


@pytest.mark.distributed
def test_a_job_whose_worker_dies_is_done_again(ray: None, tmp_path: Path) -> None:
    assert sorted(OnRay().map(_die_once, str(tmp_path / "died"), range(4))) == [(job, job) for job in range(4)]
    assert (tmp_path / "died").exists()


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_costs_no_trial(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from dataclasses import replace

    from espalier.search.tune import search_on_ray

    deadly = replace(spec, skeleton=Deadly(spec.skeleton, str(tmp_path / "died")))
    states = tuple({f"network.{name}": array for name, array in state.items()} for state in spec.states)
    deadly = replace(deadly, states=states, graph=_renamed(spec.graph))
    with ledger(tmp_path, space, 8) as book:
        search_on_ray(book, deadly, 2, Seen())
    assert (tmp_path / "died").exists()
    assert [record.number for record in book.records()] == list(range(8))
    assert all(trial.state.is_finished() for trial in _trials(tmp_path))


class Deadly(torch.nn.Module):
    """Kills its process in the first forward pass of all."""

    def __init__(self, network: torch.nn.Module, marker: str) -> None:
        super().__init__()
        self.network, self.marker = network, marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        result: torch.Tensor = self.network(x)
        return result


def _renamed(graph: ChannelGraph) -> ChannelGraph:
    from dataclasses import replace

    def below(group: Any) -> Any:
        members = tuple(replace(member, tensor=f"network.{member.tensor}") for member in group.members)
        return replace(group, members=members)

    groups = [below(group) for group in graph.groups]
    return ChannelGraph(groups, graph.frozen, graph.mac_terms, graph.param_terms, graph.memory)


def _trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'study.db'}").trials


@pytest.mark.distributed
def test_a_cluster_of_our_own_listens_on_the_loopback_address(ray: None) -> None:
    import ray as running

    assert running.get_runtime_context().gcs_address.startswith("127.0.0.1:")


def test_silence_is_a_reporter(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent().meter("x", 1, "runs") as meter:
        meter.update(1)
    Silent().say("nothing")
    assert capsys.readouterr() == ("", "")
