"""A thousand workers that do not exist: the ledger and a real storage, driven by a clock that does.

    python benchmarks/simulation.py                             # 1,000 workers, 10,000 candidates, SQLite
    python benchmarks/simulation.py --storage postgresql://me@host/db
    python benchmarks/simulation.py --agree                     # 8 real workers against 8 simulated ones
    python benchmarks/simulation.py --bytes                     # what is sent to nodes and workers, for ResNet-20

Discrete events: workers take candidates of random length, some die and are replaced, drivers die and others come.
What a driver does with its ledger is done in earnest, on the storage, and takes the simulated driver as long as it
took this process, by the clock, or with `--cost cpu` by the processor, for machines that have other work beside it;
between events the simulated clock jumps. Every trial must be counted once, whatever died.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
import torch
from optuna.trial import TrialState
from paced import paced_evaluation, study

from espalier.optuna_private import database_of, storage_of
from espalier.pruning.networks import build
from espalier.pruning.trace import trace
from espalier.search.cluster.broker import News
from espalier.search.cluster.tune import CHUNK_SECONDS
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.files.json_files import write_json
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.space import Space
from espalier.search.study.lease import LEASE_SECONDS
from espalier.search.study.ledger import Ledger, Proposal
from espalier.search.tasks.classification.data import InMemoryImages, Splits
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.execution import Execution

POLL = 1.0
"""Simulated seconds after which a driver that had nothing to ask for tries again."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scene:
    """What is simulated; times in simulated seconds.

    Attributes:
        workers: of all drivers together.
        candidates: COMPLETE trials wanted.
        drivers: at a time, on one study.
        seconds: mean of a candidate; log-normal, its standard deviation half of that.
        worker_deaths: share of the evaluations in which the worker dies.
        driver_deaths: how many drivers are killed in all, at random times.
        again: until a dead driver is replaced.
        seed: of all that is random.
    """

    workers: int = 1000
    candidates: int = 10_000
    drivers: int = 2
    seconds: float = 60.0
    worker_deaths: float = 0.01
    driver_deaths: int = 3
    again: float = 90.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        complete: COMPLETE trials at the end.
        running: trials that nobody finished.
        evaluations: that were begun, those that died included.
        repeated: candidates that were evaluated although their score was in the storage.
        makespan: simulated seconds.
        ideal: that the evaluations would take if the workers never waited, none died, and none idled at the end.
        busy: share of the workers' time spent in evaluations, until the last candidate was handed out.
        driver_ms: of the processor, per trial, all that a driver does.
        storage_ms: waiting for the database, per trial.
        transactions: per trial.
        bound: trials a second that one driver can ask for and tell.
    """

    complete: int
    running: int
    evaluations: int
    repeated: int
    makespan: float
    ideal: float
    busy: float
    driver_ms: float
    storage_ms: float
    transactions: float
    bound: float


class Clock:
    """Simulated seconds."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """Now."""
        return self.now


class Database:
    """Counts what the storage's engines do."""

    def __init__(self) -> None:
        self.seconds, self.transactions = 0.0, 0

    def watch(self, made: optuna.Study) -> optuna.Study:
        """The study, its engine watched."""
        database = database_of(storage_of(made))
        assert database is not None
        engine: Any = database.engine
        began: list[float] = []

        def start(*_: Any) -> None:
            began.append(time.perf_counter())

        def stop(*_: Any) -> None:
            self.seconds += time.perf_counter() - began.pop()

        sqlalchemy.event.listen(engine, "before_cursor_execute", start)
        sqlalchemy.event.listen(engine, "after_cursor_execute", stop)
        commit = engine.dialect.do_commit

        def timed(connection: Any) -> None:
            start()
            commit(connection)
            stop()
            self.transactions += 1

        engine.dialect.do_commit = timed
        return made


class Driver:
    """One that asks and tells; busy while it does."""

    def __init__(self, name: str, ledger: Ledger, workers: int) -> None:
        self.name, self.ledger, self.workers = name, ledger, workers
        self.free_at = 0.0
        self.alive = True
        self.idle, self.filling = workers, False
        self.stock: list[Proposal] = []
        self.deaths: dict[int, int] = {}


class Simulation:
    """Plays a scene on a storage.

    Args:
        scene: what is simulated.
        url: of the storage; the study is made there.
        cost: the seconds that a driver's work takes it, from those that it took this process by the clock, which is
            the default, and by the processor.
    """

    def __init__(
        self,
        scene: Scene,
        url: str,
        space: Space,
        cost: Callable[[float, float], float] = lambda wall, cpu: wall,
    ) -> None:
        self.scene, self.url, self.space, self.cost = scene, url, space, cost
        self.clock, self.database = Clock(), Database()
        self.draw = np.random.default_rng(scene.seed)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.names = itertools.count()
        self.drivers: list[Driver] = []
        self.evaluations = self.repeated = 0
        self.scored: set[str] = set()
        self.busy, self.handed_out = 0.0, 0.0
        self.cpu = 0.0

    def play(self) -> Outcome:
        """Until the study has its trials."""
        scene, began = self.scene, self.clock.now
        self.database.watch(study(self.url))
        for _ in range(scene.drivers):
            self._arrive()
        expected = scene.candidates * scene.seconds / scene.workers
        for when in self.draw.uniform(0.1, 0.9, scene.driver_deaths) * expected:
            self._at(began + float(when), self._kill_one)
        last = began
        while self.events:
            self.clock.now, _, event = heapq.heappop(self.events)
            event()
            if any(driver.ledger.complete >= scene.candidates for driver in self.drivers if driver.alive):
                last = self.clock.now
                break
        for driver in self.drivers:
            driver.ledger.abandon()
        states = [trial.state for trial in optuna.load_study(study_name="paced", storage=self.url).trials]
        trials = scene.candidates
        return Outcome(
            complete=states.count(TrialState.COMPLETE),
            running=states.count(TrialState.RUNNING),
            evaluations=self.evaluations,
            repeated=self.repeated,
            makespan=last - began,
            ideal=scene.candidates * scene.seconds / scene.workers,
            busy=self.busy / (scene.workers * (self.handed_out - began)),
            driver_ms=1e3 * self.cpu / trials,
            storage_ms=1e3 * self.database.seconds / trials,
            transactions=self.database.transactions / trials,
            bound=trials / self.cpu,
        )

    # -- events

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), event))

    def _arrive(self) -> None:
        """A driver signs in and hands a candidate to each of its workers."""
        scene, name = self.scene, f"driver-{next(self.names)}"
        found = optuna.load_study(study_name="paced", storage=self.url)
        ledger = Ledger(
            self.database.watch(found),
            self.space,
            SAMPLERS["random"](self.space, scene.seed),
            measure=MEASURES["cross_entropy"],
            target=scene.candidates,
            max_failures=scene.candidates,
            clock=self.clock,
            host=name,
        )
        driver = Driver(name, ledger, scene.workers // scene.drivers)
        self.drivers.append(driver)
        self._work(driver, ledger.__enter__)
        self._renew(driver)
        self._at(driver.free_at, lambda: self._fill(driver))

    def _renew(self, driver: Driver) -> None:
        if driver.alive:
            driver.ledger.renew()
            self._at(self.clock.now + LEASE_SECONDS / 4, lambda: self._renew(driver))

    def _fill(self, driver: Driver) -> None:
        """Asks for a candidate, ahead of the workers as the search does, and comes back for the next after that."""
        ahead = max(1, round(driver.workers * CHUNK_SECONDS / self.scene.seconds))
        if not driver.alive or driver.filling or len(driver.stock) >= ahead:
            return
        proposal: Proposal | None = self._work(driver, driver.ledger.ask)
        driver.filling = True
        if proposal is None:
            self._at(driver.free_at + POLL, lambda: self._again(driver))
            return
        self._at(driver.free_at, lambda: self._offer(driver, proposal))

    def _offer(self, driver: Driver, proposal: Proposal) -> None:
        driver.stock.append(proposal)
        self._hand_out(driver)
        self._again(driver)

    def _hand_out(self, driver: Driver) -> None:
        """Idle workers take what is in stock, whatever the driver is busy with."""
        while driver.alive and driver.idle and driver.stock:
            driver.idle -= 1
            self._evaluate(driver, driver.stock.pop(0))

    def _again(self, driver: Driver) -> None:
        driver.filling = False
        self._fill(driver)

    def _evaluate(self, driver: Driver, proposal: Proposal) -> None:
        """A worker begins; it will finish or die."""
        if not driver.alive:
            return
        self.evaluations += 1
        self.repeated += proposal.candidate.key in self.scored
        self.handed_out = self.clock.now
        sigma = np.sqrt(np.log(1.25))  # standard deviation half of the mean
        takes = float(self.draw.lognormal(np.log(self.scene.seconds) - sigma**2 / 2, sigma))
        if self.draw.random() < self.scene.worker_deaths:
            takes *= self.draw.random()
            self._at(self.clock.now + takes, lambda: self._bury(driver, proposal))
        else:
            self._at(self.clock.now + takes, lambda: self._tell(driver, proposal, takes))
        self.busy += takes

    def _tell(self, driver: Driver, proposal: Proposal, takes: float) -> None:
        if not driver.alive:
            return
        score = Score({"top1": 50.0, "cross_entropy": 1.0 + float(self.draw.random())}, takes)
        driver.idle += 1
        self._hand_out(driver)
        self._work(driver, lambda: driver.ledger.tell(proposal, score))
        self.scored.add(proposal.candidate.key)
        self._at(driver.free_at, lambda: self._fill(driver))

    def _bury(self, driver: Driver, proposal: Proposal) -> None:
        """A worker has died: its candidate goes to another, once."""
        if not driver.alive:
            return
        deaths = driver.deaths[proposal.number] = driver.deaths.get(proposal.number, 0) + 1
        if deaths == 1:
            self._at(self.clock.now + 1.0, lambda: self._evaluate(driver, proposal))
            return
        driver.idle += 1
        self._hand_out(driver)
        self._work(driver, lambda: driver.ledger.fail(proposal, "its worker died twice"))
        self._at(driver.free_at, lambda: self._fill(driver))

    def _kill_one(self) -> None:
        """A driver and its workers are gone; another comes."""
        alive = [driver for driver in self.drivers if driver.alive]
        victim = alive[int(self.draw.integers(len(alive)))]
        victim.alive = False
        victim.ledger.abandon()
        self._at(self.clock.now + self.scene.again, self._arrive)

    def _work(self, driver: Driver, do: Callable[[], Any]) -> Any:
        """Does a driver's work, which keeps it from other work for as long."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = do()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.cpu += cpu
        driver.free_at = max(driver.free_at, self.clock.now) + self.cost(wall, cpu)
        return result


def main() -> None:
    """Plays a scene, prints and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--drivers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="mean of a candidate, simulated")
    parser.add_argument("--storage", help="SQL URL; SQLite in a temporary folder by default")
    parser.add_argument("--cost", choices=("wall", "cpu"), default="wall", help="what a driver's work takes it")
    parser.add_argument("--agree", action="store_true", help="8 real workers against 8 simulated ones")
    parser.add_argument("--bytes", action="store_true", help="what is sent")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    found: dict[str, Any]
    if given.bytes:
        found = sizes()
        path = given.out or RESULTS / "cluster_bytes.json"
    elif given.agree:
        found = agreement()
        path = given.out or RESULTS / "simulation_agreement.json"
    else:
        scene = Scene(given.workers, given.candidates, given.drivers, given.seconds)
        with tempfile.TemporaryDirectory() as folder:
            url = given.storage or f"sqlite:///{folder}/study.db"
            cost = (lambda wall, cpu: cpu) if given.cost == "cpu" else (lambda wall, cpu: wall)
            outcome = Simulation(scene, url, paced_evaluation(0.0, "asleep")[1], cost).play()
        found = {"scene": asdict(scene), "storage": sqlalchemy.engine.make_url(url).get_backend_name()}
        found |= {
            "cost": given.cost,
            "outcome": asdict(outcome),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        path = given.out or RESULTS / f"simulation_{found['storage']}.json"
    write_json(path, found)
    print(json.dumps(found, indent=1))


def sizes() -> dict[str, Any]:
    """Bytes that a node gets once, and that a candidate takes each way: ResNet-20 on CIFAR-10, three rungs."""
    from ray import cloudpickle

    torch.manual_seed(0)
    networks = [build("resnet20").eval() for _ in range(3)]
    graph = trace(networks[0], torch.zeros(1, 3, 32, 32))
    pictures = InMemoryImages(torch.randint(256, (1024, 3, 32, 32), dtype=torch.uint8), torch.arange(1024) % 10)
    spec = EvaluationSpec.of(
        graph,
        networks,
        [np.random.default_rng(0).random(graph.n_channels) for _ in networks],
        ImageScoring.of(
            Splits(pictures, pictures, pictures, tuple("0123456789"), (0.5,) * 3, (0.3,) * 3),
            networks[0],
            torch.arange(1024),
            calibration=512,
            steps=0,
            recipe=Recipe(epochs=1, batch_size=128, lr=0.1),
        ),
        Execution(batch_size=256, precision="fp32"),
        proxy="recalibrated",
    )
    candidate = Candidate(2, tuple(graph.sizes.tolist()))
    news = News(
        9_999,
        Score({"top1": 91.25, "cross_entropy": 0.31415926, "distillation": 0.2718281}, 0.5, images=1024).to_json(),
    )
    return {
        "once_per_node": len(cloudpickle.dumps(spec)),
        "candidate_to_worker": len(cloudpickle.dumps([(9_999, candidate.key)])),
        "score_to_driver": len(cloudpickle.dumps(news)),
    }


def agreement(workers: int = 8, candidates: int = 160, seconds: float = 1.0) -> dict[str, Any]:
    """Seconds that real workers on this machine, whose candidates sleep, and simulated ones take for a search."""
    from throughput import measure

    real = measure(seconds, "asleep", workers, candidates, cpus=0.2)
    scene = Scene(workers, candidates, 1, seconds, worker_deaths=0.0, driver_deaths=0)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(scene, f"sqlite:///{folder}/study.db", paced_evaluation(0.0, "asleep")[1])
        simulation.draw = _Constant(seconds)  # type: ignore[assignment]
        simulated = simulation.play()
    return {
        "workers": workers,
        "candidates": candidates,
        "seconds": seconds,
        "real_candidates_per_second": real["candidates_per_second"],
        "simulated_candidates_per_second": candidates / simulated.makespan,
        "ideal_candidates_per_second": workers / seconds,
    }


class _Constant:
    """Draws in which every candidate takes the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def lognormal(self, *_: float) -> float:
        return self.seconds

    def random(self) -> float:
        return 0.5

    def uniform(self, *_: float) -> Any:
        return np.zeros(0)


if __name__ == "__main__":
    main()
