"""The driver of a search on Ray, without Ray: workers die, words get lost, the trials are scored all the same."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import ClusterError, EspalierError
from espalier.search.cluster import tune
from espalier.search.cluster.broker import Broker, News
from espalier.search.progress.reporter import Meter
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study.ledger import Ledger
from espalier.search.study.storage import create_study, open_storage
from espalier.search.tasks.classification.measures import MEASURES

pytestmark = pytest.mark.timeout(60)
SCORE = {"top1": 1.0, "cross_entropy": 1.0, "seconds": 0.001}


class Quiet(Meter):
    def update(self, done: int, note: str = "", values: object = None) -> None:
        pass


class FakeWorkers:
    """Stands for Tune: workers are coroutines, and die as they are told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, broker: Broker) -> None:
        self.loop, self.broker = loop, broker
        self.alive: set[str] = set()
        self.kept: set[str] = set()  # as far as Tune knows
        self.ended: list[str] = []
        self.scored: Counter[int] = Counter()
        self.words: set[asyncio.Task[None]] = set()
        self.lag: Callable[[], float] = lambda: 0.0  # seconds that a word takes: others overtake it

    def start(self, name: str, seconds: float = 0.002) -> None:
        self.alive.add(name)
        self.kept.add(name)
        asyncio.run_coroutine_threadsafe(self._work(name, seconds), self.loop)

    async def _work(self, name: str, seconds: float) -> None:
        told: list[News] = []
        while (chunk := await self.broker.take(name, told)) != []:
            told = []
            for number, _ in chunk or ():
                if name in self.alive:  # else nobody hears what was taken
                    await asyncio.sleep(seconds)
                if name not in self.alive:
                    return
                self.scored[number] += 1
                told.append(News(number, SCORE))
                words = asyncio.create_task(self._tell(name, told[-1], self.lag()))
                self.words.add(words)
                words.add_done_callback(self.words.discard)

    async def _tell(self, name: str, news: News, lag: float) -> None:
        await asyncio.sleep(lag)
        await self.broker.tell(name, news)

    def wait_until_known(self, *names: str) -> None:
        while not all(self.call("knows", name) for name in names):
            time.sleep(0.005)

    def call(self, method: str, *arguments: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(getattr(self.broker, method)(*arguments), self.loop).result(10)

    def die(self, name: str, word: bool = True, kept: bool = False) -> None:
        """At once; the request stays with the broker, as that of a dead actor does.

        Args:
            name: of the worker.
            word: whether the driver hears of it.
            kept: whether Tune goes on to believe that it lives.
        """
        self.alive.discard(name)
        if not kept:
            self.kept.discard(name)
        if word:
            self.ended.append(name)

    # -- what a driver asks

    def dead(self) -> list[str]:
        found, self.ended = self.ended, []
        return found

    def has(self, worker: str) -> bool:
        return worker in self.kept

    def reason(self) -> str:
        return ""


class Driver(tune._Search):
    """Its broker is in this process."""

    def _call(self, method: str, *arguments: Any) -> Any:
        fakes: Any = self._searcher
        return fakes.call(method, *arguments)


WAITS = tune.Waits(news=0.02, check=0.05, silent=0.5, gone=2.0)


@pytest.fixture
def fakes() -> Iterator[FakeWorkers]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield FakeWorkers(loop, Broker(take_seconds=0.2))

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def search(fakes: FakeWorkers, folder: Path, space: Multipliers, trials: int = 12, workers: int = 1) -> Ledger:
    """Until the study has its trials."""
    storage = open_storage(f"sqlite:///{folder / 'study.db'}", create=True)
    study = create_study(storage, "s", {"config": {}})
    sampler = SAMPLERS["random"](space, 0)
    with Ledger(study, space, sampler, measure=MEASURES["cross_entropy"], target=trials) as book:
        fakes_of: Any = fakes
        Driver(book, workers, Quiet(), fakes.broker, fakes_of, math.inf, lambda: None, WAITS).go()
    assert len(book.records()) == trials
    assert all(trial.state.is_finished() for trial in study.trials)
    return book


def test_the_only_worker_dies_while_it_waits(fakes: FakeWorkers, tmp_path: Path, space: Multipliers) -> None:
    fakes.start("idle")
    fakes.wait_until_known("idle")
    fakes.die("idle")
    fakes.start("next")
    assert [record.number for record in search(fakes, tmp_path, space).records()] == list(range(12))


def test_every_worker_dies_while_it_waits_at_once(fakes: FakeWorkers, tmp_path: Path, space: Multipliers) -> None:
    gone = [f"idle-{number}" for number in range(3 * tune.IDLE_DEATHS)]
    for name in gone:
        fakes.start(name)
    fakes.wait_until_known(*gone)
    for name in gone:
        fakes.die(name)
    fakes.start("next")
    search(fakes, tmp_path, space, workers=len(gone))


def test_the_word_of_a_death_arrives_before_the_request(
    fakes: FakeWorkers, tmp_path: Path, space: Multipliers
) -> None:
    fakes.die("a")
    fakes.start("b")
    timer = threading.Timer(0.1, lambda: fakes.call("take", "a"))
    timer.start()
    search(fakes, tmp_path, space)
    timer.join()


def test_tune_forgets_to_say_that_a_worker_died(fakes: FakeWorkers, tmp_path: Path, space: Multipliers) -> None:
    fakes.start("slow", seconds=0.3)
    fakes.start("quick")
    threading.Timer(0.1, lambda: fakes.die("slow", word=False)).start()
    search(fakes, tmp_path, space, workers=2)
    assert fakes.scored.total() == 12


def test_words_overtake_each_other_and_nothing_is_scored_twice(
    fakes: FakeWorkers, tmp_path: Path, space: Multipliers
) -> None:
    draw = random.Random(0)
    fakes.lag = lambda: draw.choice([0.0, 0.01, 0.2])
    for name in ("a", "b"):
        fakes.start(name)
    search(fakes, tmp_path, space, trials=60, workers=2)
    assert set(fakes.scored.values()) == {1}


def test_nobody_knows_that_a_worker_died(fakes: FakeWorkers, tmp_path: Path, space: Multipliers) -> None:
    fakes.start("slow", seconds=0.3)
    fakes.start("quick")
    threading.Timer(0.1, lambda: fakes.die("slow", word=False, kept=True)).start()
    search(fakes, tmp_path, space, workers=2)
    assert fakes.scored.total() == 12


def test_a_worker_that_was_only_slow_goes_on(fakes: FakeWorkers, tmp_path: Path, space: Multipliers) -> None:
    fakes.start("slow", seconds=0.8)  # longer than a worker may be silent
    search(fakes, tmp_path, space, trials=2)


def test_a_search_whose_workers_are_all_gone_ends(fakes: FakeWorkers, tmp_path: Path, space: Multipliers) -> None:
    fakes.start("a")
    threading.Timer(0.05, lambda: fakes.die("a", word=False, kept=True)).start()
    line = r"^none of 1 workers was heard of for 2 s; what is finished is kept: .* `espalier resume`, goes on$"
    with pytest.raises(ClusterError, match=line):
        search(fakes, tmp_path, space, trials=100_000)


def test_workers_that_die_before_they_ask_for_anything_end_the_search(
    fakes: FakeWorkers, tmp_path: Path, space: Multipliers
) -> None:
    for number in range(tune.IDLE_DEATHS):
        fakes.die(f"stillborn-{number}")
    with pytest.raises(EspalierError, match=r"^5 workers died, one after another, before they had asked for"):
        search(fakes, tmp_path, space)


@pytest.mark.parametrize("seed", range(4))
def test_workers_die_at_random_and_words_get_lost(
    fakes: FakeWorkers, tmp_path: Path, space: Multipliers, seed: int
) -> None:
    draw, over = random.Random(seed), threading.Event()

    def havoc() -> None:
        count = 0
        while not over.is_set():
            while len(fakes.alive) < 3:
                count += 1
                fakes.start(f"w{count}", seconds=draw.choice([0.001, 0.01]))
            time.sleep(draw.uniform(0.0, 0.1))
            word = draw.random() < 0.6
            fakes.die(draw.choice(sorted(fakes.alive)), word=word, kept=not word and draw.random() < 0.5)

    killer = threading.Thread(target=havoc)
    killer.start()
    try:
        book = search(fakes, tmp_path, space, trials=60, workers=3)
    finally:
        over.set()
        killer.join()
    assert book.complete == 60
