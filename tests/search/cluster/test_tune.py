"""The search and independent jobs on a Ray of this machine's own."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from torch import nn

from espalier.errors import ClusterError, DataError, EspalierError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import CifarResNet
from espalier.search.cluster.broker import Broker, News
from espalier.search.cluster.jobs import InProcess, OnRay, Workers
from espalier.search.cluster.ray_private import TUNE_THREAD
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Meter, Silent
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study.ledger import Ledger
from espalier.search.study.storage import create_study, find_study, open_storage
from espalier.search.tasks.classification.data import InMemoryImages, Splits
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.execution import Execution
from espalier.search.training.ladder import Penalty, climb, train_dense
from espalier.search.training.strengths import Rung
from tests.search.conftest import images_of


class Seen(Meter):
    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, done: int, note: str = "", values: object = None) -> None:
        self.done.append(done)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Two workers for all tests of this file; a cluster named in the environment is not meant."""
    from espalier.search.cluster.ray_cluster import ray_session

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
        models,
        space.energies,
        ImageScoring.of(
            Splits(images, images, images, tuple("0123456789"), (0.5,), (0.3,)),
            models[0],
            torch.arange(32),
            calibration=32,
            steps=0,
            recipe=Recipe(epochs=1, batch_size=16, lr=0.1),
        ),
        Execution(batch_size=32, precision="fp32"),
        proxy="recalibrated",
    )


def ledger(folder: Path, space: Multipliers, target: int) -> Ledger:
    url = f"sqlite:///{folder / 'study.db'}"
    storage = open_storage(url, create=True)
    study = find_study(storage, "s", url) or create_study(storage, "s", {"config": {}})
    return Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["cross_entropy"], target=target)


@pytest.mark.distributed
def test_ray_scores_as_this_process_does(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from espalier.search.cluster.tune import search_on_ray

    seen = Seen()
    with ledger(tmp_path, space, 20) as book:
        search_on_ray(book, spec, 2, seen)
    records = book.records()
    assert [record.number for record in records] == list(range(20))
    assert seen.done == sorted(seen.done) and seen.done[-1] == 20
    evaluator = Evaluator(spec)
    for record in records:
        assert record.value == pytest.approx(-evaluator(record.candidate).measures["cross_entropy"], rel=1e-6)
    again = Seen()
    with ledger(tmp_path, space, 20) as book:
        search_on_ray(book, spec, 2, again)
    assert again.done == [20] and book.records() == records


@pytest.mark.distributed
def test_candidates_that_fail_everywhere_end_the_search(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from dataclasses import replace

    from espalier.search.cluster.tune import search_on_ray

    broken = replace(spec, scoring=replace(images_of(spec), labels=np.full(32, 99)))
    with ledger(tmp_path, space, 50) as book:
        with pytest.raises(EspalierError, match=r"^20 candidates failed, the last one with: IndexError"):
            search_on_ray(book, broken, 2, Seen())
    assert book.complete == 0 and not _threads_of_tune()


@pytest.mark.distributed
def test_candidates_that_are_not_numbers_end_the_search(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from dataclasses import replace

    from espalier.search.cluster.tune import search_on_ray

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
    task = ClassificationTask(splits, {"dense": recipe, "regularized": recipe}, 48)
    dense = train_dense(network, task, 2, 0, tmp_path, "o", Silent())
    rungs: dict[str, list[Rung]] = {}
    for place, workers in {"here": InProcess(), "ray": OnRay()}.items():
        rungs[place] = climb(
            dense,
            graph,
            task,
            2,
            Penalty("oicsr_gl"),
            (0.0, 0.01, 0.1),
            0,
            tmp_path / place,
            Silent(),
            start="dense",
            workers=workers,
        )
    assert [rung.digest for rung in rungs["here"]] == [rung.digest for rung in rungs["ray"]]
    assert [rung.value for rung in rungs["here"]] == [rung.value for rung in rungs["ray"]]
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


def _nothing(shared: object, job: object) -> object:
    return job


@pytest.mark.distributed
@pytest.mark.parametrize("workers", [InProcess(), OnRay(workers=2)], ids=["in process", "on ray"])
def test_jobs_are_made_as_there_is_somebody_to_do_them(ray: None, workers: Workers) -> None:
    """So that a driver holds as many networks as there are workers, and one more. A job may be anything."""
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(20):
            taken.append(job)
            yield job

    for done, _ in enumerate(workers.map(_square, 0, jobs()), 1):
        assert len(taken) <= done + 2
    assert taken == list(range(20))
    assert list(workers.map(_nothing, 0, [None])) == [(None, None)]


@pytest.mark.distributed
def test_a_job_whose_worker_dies_is_done_again(ray: None, tmp_path: Path) -> None:
    assert sorted(OnRay().map(_die_once, str(tmp_path / "died"), range(4))) == [(job, job) for job in range(4)]
    assert (tmp_path / "died").exists()


class Unpicklable(EspalierError):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _raise(shared: object, job: str) -> None:
    if job == "ours":
        raise DataError("data.root must be a folder, got nowhere: name one")
    if job == "theirs":
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    if job == "lines":
        raise KeyError("one\ntwo")
    if job == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "file.safetensors")
    if job == "strange":
        raise Unpicklable(1, 2)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("job", "kind", "line"),
    [
        ("ours", DataError, r"^data\.root must be a folder, got nowhere: name one$"),
        ("theirs", EspalierError, r"^a job on Ray failed: RuntimeError: mat1 and mat2 .* at \S+test_tune\.py:\d+$"),
        ("lines", EspalierError, r"^a job on Ray failed: KeyError: 'one\\ntwo' at \S+test_tune\.py:\d+$"),
        ("full", OSError, r"No space left on device: 'file\.safetensors'$"),
        ("strange", EspalierError, r"^a job on Ray failed: .*Unpicklable"),
        (
            "killed",
            ClusterError,
            r"^the Ray cluster lost what it was at \(WorkerCrashedError: .*`espalier resume`, goes on$",
        ),
    ],
)
def test_what_a_job_raises_arrives_in_a_line(ray: None, job: str, kind: type[Exception], line: str) -> None:
    with pytest.raises(kind, match=line) as caught:
        list(OnRay().map(_raise, None, [job]))
    said = str(caught.value)
    assert "\n" not in said and "\x1b" not in said and "Traceback" not in said
    assert type(caught.value).__name__ == kind.__name__ and caught.value.__cause__ is not None  # for --debug
    if isinstance(caught.value, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "file.safetensors")


class Fragile(Broker):
    """Ends its process with the third score."""

    told = 0

    async def tell(self, worker: str, news: News) -> None:
        self.told += 1
        if self.told == 3:
            os._exit(1)
        await super().tell(worker, news)


@pytest.mark.distributed
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_broker_that_is_lost_ends_the_search_in_a_line(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.search.cluster import tune

    monkeypatch.setattr(tune, "Broker", Fragile)
    with ledger(tmp_path, space, 50) as book:
        line = r"^the Ray cluster lost what it was at \(ActorDiedError: [^\n\x1b]*; what is finished is kept: "
        with pytest.raises(ClusterError, match=line):
            tune.search_on_ray(book, spec, 2, Seen())
    assert not _threads_of_tune()
    again = Seen()
    monkeypatch.undo()
    with ledger(tmp_path, space, 10) as book:
        tune.search_on_ray(book, spec, 2, again)
    assert again.done[-1] == 10 and not _threads_of_tune()


class Interrupting(Meter):
    def update(self, done: int, note: str = "", values: object = None) -> None:
        raise KeyboardInterrupt


@pytest.mark.distributed
def test_after_ctrl_c_no_thread_of_tune_is_left(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from espalier.search.cluster.tune import search_on_ray

    with ledger(tmp_path, space, 50) as book, pytest.raises(KeyboardInterrupt):
        search_on_ray(book, spec, 2, Interrupting())
    assert not _threads_of_tune()


def _threads_of_tune() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == TUNE_THREAD]


@pytest.mark.distributed
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_costs_no_trial(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec
) -> None:
    from dataclasses import replace

    from espalier.search.cluster.tune import search_on_ray

    deadly = replace(spec, skeleton=Deadly(spec.skeleton, str(tmp_path / "died")))
    states = tuple({f"network.{name}": array for name, array in state.items()} for state in spec.states)
    deadly = replace(deadly, states=states, graph=_renamed(spec.graph))
    with ledger(tmp_path, space, 8) as book:
        search_on_ray(book, deadly, 2, Seen())
    assert (tmp_path / "died").exists()
    assert [record.number for record in book.records()] == list(range(8))
    assert all(trial.state.is_finished() for trial in _trials(tmp_path))


class KillingTheIdle(Seen):
    """Holds the driver up until the workers, done with what they had, wait for more, and kills all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def update(self, done: int, note: str = "", values: object = None) -> None:
        super().update(done, note, values)
        if done >= 4 and not self.killed:
            time.sleep(3)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.cmdline()[0].startswith("ray::") and "Trainable" in process.cmdline()[0]:
                        process.kill()
                        self.killed.append(process.pid)


@pytest.mark.distributed
@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_are_killed_while_they_wait_take_nothing_along(
    ray: None, tmp_path: Path, space: Multipliers, spec: EvaluationSpec, workers: int
) -> None:
    from espalier.search.cluster.tune import search_on_ray

    meter = KillingTheIdle()
    with ledger(tmp_path, space, 60) as book:
        search_on_ray(book, spec, workers, meter)
    assert len(meter.killed) == workers
    assert [record.number for record in book.records()] == list(range(60))
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
    assert list(OnRay().map(_square, 0, [1])) == [(1, 1)]  # there is a worker
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening} and len(listening) > 4
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}, listening


def test_silence_is_a_reporter(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent().meter("x", 1, "runs") as meter:
        meter.update(1)
    Silent().say("nothing")
    assert capsys.readouterr() == ("", "")
