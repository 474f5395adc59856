"""What dies, hangs or vanishes while a search runs on a cluster of several nodes, and what the storage says after.

Each test runs the command against a Ray cluster of several nodes on this machine, breaks something, and lets the
search go on, or resumes it. Then there are exactly as many COMPLETE trials as were asked for, none is RUNNING, and
no candidate whose score was in the storage has been evaluated again.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil  # type: ignore[import-untyped]
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray.cluster_utils import Cluster

from espalier.errors import StorageError
from espalier.search.study.storage import open_storage

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

CONFIG = """
model: {name: "moody:network"}
data: {name: digits, search_images: 300, train_images: 256}
training: {epochs: 1, batch_size: 32}
regularizer: {strengths: [0.01], epochs: 1}
budget: {keep: 0.4}
search:
  {sampler: random, trials: 40, scoring_images: 64, calibration_images: 64, finalists: 2, promote: 0.1,
   batch_size: 64, memory_format: channels_last, precision: fp32}
finetune: {epochs: 0.5, batch_size: 32, seeds: 2}
workers: 2
"""

MOODY = """
import os, signal, sys, time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent
nan = []

def order():
    try:
        os.rename(HERE / "order", HERE / f"taken-{os.getpid()}-{time.monotonic_ns()}")
    except OSError:
        return ""
    return max(HERE.glob(f"taken-{os.getpid()}-*"), key=lambda path: path.stat().st_mtime_ns).read_text()

class Moody(nn.Module):
    # Takes 0.1 s, notes what it was asked for, and does what it is ordered to, in workers.
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(layer for i, o in [(1, 24), (24, 32), (32, 32), (32, 32), (32, 32)] for layer in (
                nn.Conv2d(i, o, 3, padding=1, stride=2 if i == 1 else 1), nn.BatchNorm2d(o), nn.ReLU())),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )

    def forward(self, x):
        y = self.body(x)
        if torch.compiler.is_compiling() or "ray._private.worker" not in sys.modules or self.training:
            return y
        from ray._private.worker import global_worker
        if global_worker.mode != 1:  # this process is the driver
            return y
        widths = [m.out_channels for m in self.modules() if isinstance(m, nn.Conv2d)]
        with open(HERE / "evaluated", "a") as file:
            file.write(f"{float(x.double().sum()):.6f} {widths}\\n")
        time.sleep(0.1)
        what = order()
        if what == "raise":
            raise RuntimeError("ordered to")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(3600)
        if what == "nan":
            nan.append(widths)  # calibration comes before scoring
        return y * float("nan") if widths in nan else y

def network():
    return Moody()
"""


HEALTH = {"period_ms": 500, "failure_threshold": 5, "timeout_ms": 1000}
"""A node that does not answer is taken for dead after some seconds; Ray's own settings take half a minute."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, where drivers run, and a node of one CPU; tests add and kill others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        quick = {
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 3,
            "health_check_timeout_ms": 1000,
        }
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
        )
        made.add_node(num_cpus=1)
        try:
            yield made
        finally:
            made.shutdown()


class Run:
    """The command in a folder, with a study in a storage of its own."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.url = f"sqlite:///{folder / 'study.db'}"
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, command: str, *arguments: str, before: Callable[[], None] | None = None
    ) -> subprocess.Popen[str]:
        first = ["search", "moody.yaml", "--out", "run"] if command == "search" else ["resume", "--trust", "moody"]
        given = ["--storage", self.url, "--study", "s", "--address", self.cluster.address, *arguments]
        process = subprocess.Popen(
            [sys.executable, "-m", "espalier", *first, *given],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=before,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == code, said
        return said

    def kill(self, process: subprocess.Popen[str]) -> None:
        """The driver, at once, and without a word to its workers."""
        process.kill()
        process.wait()

    def trials(self) -> list[FrozenTrial]:
        try:
            return optuna.load_study(study_name="s", storage=open_storage(self.url, create=False)).trials
        except (KeyError, StorageError, optuna.exceptions.StorageInternalError):
            return []  # it is being made

    def complete(self) -> dict[int, list[str]]:
        """Number -> key of every COMPLETE trial, value and all."""
        done = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        return {trial.number: [trial.user_attrs["espalier:candidate"], str(trial.value)] for trial in done}

    def wait(self, process: subprocess.Popen[str], until: Callable[[], object], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"in {seconds} s; {len(self.complete())} trials"
            time.sleep(0.1)

    def wait_for(self, process: subprocess.Popen[str], trials: int) -> None:
        self.wait(process, lambda: len(self.complete()) >= trials)

    def wait_for_failures(self, process: subprocess.Popen[str], number: int) -> None:
        self.wait(process, lambda: len(self.failures()) == number)

    def wait_to_read(self, process: subprocess.Popen[str], text: str) -> None:
        assert process.stdout is not None
        assert any(text in line for line in process.stdout), text

    def order(self, process: subprocess.Popen[str], what: str) -> None:
        """Has the next candidate do it."""
        (self.folder / "ordering").write_text(what)
        os.replace(self.folder / "ordering", self.folder / "order")
        self.wait(process, lambda: not (self.folder / "order").exists())

    def evaluated(self) -> Counter[str]:
        """How often the search scored each vector of widths; what comes after it looks at other images."""
        lines = [line.partition(" ") for line in (self.folder / "evaluated").read_text().splitlines()]
        _, scoring, *_ = dict.fromkeys(images for images, _, _ in lines)  # after calibration
        return Counter(widths for images, _, widths in lines if images == scoring)

    def failures(self) -> list[str]:
        return [t.user_attrs["espalier:failure"] for t in self.trials() if t.state is TrialState.FAIL]

    def check(self, before: dict[int, list[str]], lost: int, wanted: int = 40) -> None:
        """Exactly so many, none in hand, what was there is as it was; at most `lost` were evaluated twice."""
        states = Counter(trial.state for trial in self.trials())
        assert states[TrialState.COMPLETE] == wanted and states[TrialState.RUNNING] == 0, states
        after = self.complete()
        assert {number: after[number] for number in before} == before
        again = {widths: count - 1 for widths, count in self.evaluated().items() if count > 1}
        assert sum(again.values()) <= lost, again
        done = {key.partition(":")[2].replace(",", ", ") for key, _ in before.values()}
        assert not [widths for widths in again if widths.strip("[]") in done], "evaluated though it was finished"
        result = json.loads((self.folder / "run" / "result.json").read_text())
        assert result["trials"] == wanted

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Iterator[Run]:
    (tmp_path / "moody.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "moody.py").write_text(MOODY, encoding="utf-8")
    made = Run(tmp_path, cluster)
    yield made
    made.end()


def test_candidates_that_raise_give_nan_or_hang_fail_alone_and_a_killed_worker_costs_nothing(run: Run) -> None:
    driver = run.start("search", "--candidate-timeout", "4")
    run.wait_for(driver, 3)
    run.order(driver, "die")
    for number, what in enumerate(("raise", "nan", "hang")):
        run.wait_for_failures(driver, number)
        run.order(driver, what)
    run.finish(driver)
    assert sorted(run.failures()) == [
        "RuntimeError: ordered to",
        "it was not scored within 4 s",
        "its score is NaN",
    ]
    run.check({}, lost=3)  # the one whose worker was killed, and the same widths given out twice at a time


def workers_of_this_test() -> list[psutil.Process]:
    """The processes of the search's workers; nodes and what they start are children of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line.startswith("ray::") and "Trainable" in line:  # Tune wraps the class
            found.append(process)
    return found


@contextmanager
def idle_workers(run: Run) -> Iterator[None]:
    """The storage is locked: the driver cannot go on, and the workers, done with what they had, wait."""
    hold = optuna.storages.RDBStorage(run.url).engine.connect()
    hold.exec_driver_sql("BEGIN EXCLUSIVE")
    time.sleep(5)
    yield
    hold.exec_driver_sql("ROLLBACK")
    hold.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_is_killed_while_it_waits(run: Run, workers: int) -> None:
    driver = run.start("search", "--workers", str(workers))
    for _ in range(2):
        run.wait(driver, lambda: len(workers_of_this_test()) == workers)  # a locked driver starts none
        run.wait_for(driver, len(run.complete()) + 6)
        with idle_workers(run):
            found = workers_of_this_test()
            assert len(found) == workers
            for process in found:
                process.kill()
    run.finish(driver)
    assert run.failures() == []
    run.check({}, lost=4)


def pause(run: Run, seconds: float, trials: int) -> None:
    """For so long, or until so many more trials are complete: a quick machine has all of them in three seconds."""
    deadline, enough = time.monotonic() + seconds, len(run.complete()) + trials
    while time.monotonic() < deadline and len(run.complete()) < enough:
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_killed_at_any_time(run: Run, workers: int) -> None:
    draw = random.Random(workers)
    driver = run.start("search", "--workers", str(workers))
    run.wait_for(driver, 3)
    killed = in_vain = scored = 0
    while killed < 8 and len(run.complete()) < 36 and driver.poll() is None:
        pause(run, seconds=draw.uniform(0.0, 3.0), trials=6)
        if len(run.complete()) > scored:
            scored, in_vain = len(run.complete()), 0
        if in_vain < 3 and (found := workers_of_this_test()):  # a search gives up when five die before they begin
            draw.choice(found).kill()
            killed, in_vain = killed + 1, in_vain + 1
    run.finish(driver)
    assert killed > 1 and set(run.failures()) <= {"its worker died twice"}
    run.check({}, lost=killed + 4)


def test_a_driver_that_is_killed_in_the_search(run: Run) -> None:
    driver = run.start("search")
    run.wait_for(driver, 8)
    run.kill(driver)
    before = run.complete()
    assert 8 <= len(before) < 40
    run.finish(run.start("resume"))
    run.check(before, lost=40)


def test_ctrl_c(run: Run) -> None:
    driver = run.start("search")
    run.wait_for(driver, 8)
    driver.send_signal(signal.SIGINT)
    said = run.finish(driver, code=130)
    assert f"interrupted; go on with: espalier resume --storage {run.url} --study s" in said
    before = run.complete()
    run.finish(run.start("resume"))
    run.check(before, lost=40)


def test_a_node_that_is_killed(run: Run) -> None:
    node = run.cluster.add_node(num_cpus=2)
    driver = run.start("search", "--workers", "4")
    run.wait_for(driver, 6)
    run.cluster.remove_node(node, allow_graceful=False)
    run.finish(driver)
    run.check({}, lost=4)


def test_a_driver_that_is_killed_while_another_shares_the_study(run: Run) -> None:
    one = run.start("search", "search.trials=200", "--workers", "1")
    run.wait_to_read(one, "dense training: 0/")  # the study is there
    other = run.start("search", "search.trials=200", "--workers", "1")
    seen: set[str] = set()

    def both() -> bool:
        seen.update(trial.user_attrs.get("espalier:driver", "") for trial in run.trials())
        return len(seen - {""}) > 1

    run.wait(other, both)
    before = run.complete()
    run.kill(one)
    run.finish(other)
    run.check(before, lost=40, wanted=200)


def test_a_driver_that_is_killed_on_the_ladder(run: Run) -> None:
    ladder = ["regularizer.start=dense", "regularizer.strengths=[0.01,0.1]", "regularizer.epochs=60"]
    driver = run.start("search", *ladder)
    run.wait_to_read(driver, "ladder: 0/2")
    time.sleep(3)
    run.kill(driver)
    assert run.trials() == []
    run.finish(run.start("search", *ladder, "search.trials=6"))
    assert Counter(trial.state for trial in run.trials()) == {TrialState.COMPLETE: 6}
    assert len(list((run.folder / "run" / "ladder").glob("rung*.safetensors"))) == 2
    assert not list((run.folder / "run" / "ladder").glob("*.partial.*"))


def test_a_driver_that_is_killed_in_fine_tuning(run: Run) -> None:
    driver = run.start("search", "search.trials=6", "finetune.epochs=8")
    run.wait_to_read(driver, "fine-tuning ")
    folder = run.folder / "run" / "finetuned"
    run.wait(driver, lambda: list(folder.glob("*[0-9].safetensors")))
    run.kill(driver)
    before = run.complete()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*[0-9].safetensors")}
    run.finish(run.start("resume"))
    run.check(before, lost=0, wanted=6)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_disk_that_is_full(run: Run) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    run.url = str(run.folder / "study.log")  # a journal grows by little; the checkpoints do not fit
    said = run.finish(run.start("search", "search.trials=6", before=small_files), code=2)
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "Traceback" not in said and "cannot write " in error and "make room: the same command" in error, said
    assert not list((run.folder / "run").rglob("*.safetensors*"))
    run.finish(run.start("search", "search.trials=6"))
    run.check({}, lost=0, wanted=6)


def test_a_storage_that_is_gone_for_twenty_seconds(run: Run) -> None:
    driver = run.start("search")
    run.wait_for(driver, 8)
    hold = optuna.storages.RDBStorage(run.url).engine.connect()
    hold.exec_driver_sql("BEGIN EXCLUSIVE")
    time.sleep(20)
    hold.exec_driver_sql("ROLLBACK")
    hold.close()
    run.finish(driver)
    run.check({}, lost=2)  # two workers may be given the same widths at the same time
