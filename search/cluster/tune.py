"""The search on Ray Tune.

Ours, and not Tune's own OptunaSearch, is the searcher: Optuna's storage alone says what was asked and told, and
a resumed search opens it with a fresh Tuner. A Tune trial is a *worker*: Tune finds it a place in the cluster, and
another when it dies. Candidates come to the workers, and scores back, through a `Broker`, so that what Tune spends
on a trial is spent once for each worker and not for each candidate.
"""

from __future__ import annotations

import math
import os
import queue
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from espalier.errors import ClusterError, EspalierError
from espalier.search.cluster import ray_private
from espalier.search.cluster.broker import TAKE_SECONDS, Broker, News, QueuedTrial
from espalier.search.cluster.jobs import Share
from espalier.search.cluster.process_settings import environment
from espalier.search.cluster.ray_errors import GO_ON, ClusterWatch, cluster_errors
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Meter
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.study.ledger import Ledger, Proposal
from espalier.search.tasks.device import in_worker

CHUNK_SECONDS = 0.5
"""Evaluation time that a worker takes along at a time: the broker's answer takes some 2 ms."""
MAX_CHUNK = 64
BATCH = 16
"""Candidates that are asked for before the workers are heard again."""
IDLE_DEATHS = 5
"""Workers that may die, one after another, before one of them has asked for a candidate; as many as there are
workers, if these are more."""
ALIVE_SECONDS = 15.0
"""Between one word of a worker that it lives and the next."""
HOME_SECONDS = 60.0
"""In which the workers finish what they are at when the search is over; Tune gets as long to end the others."""
HURRY_SECONDS = 15.0
"""The same after an error, or Ctrl-C."""


@dataclass(frozen=True)
class Waits:
    """How long a driver waits, in seconds.

    Attributes:
        news: for news of the workers.
        answer: for the broker to answer.
        check: between one look at who holds what and the next.
        silent: for word of a worker, before what it has in hand is given to others.
        gone: for word of any worker at all, before the search ends.
    """

    news: float = 0.2
    answer: float = 300.0
    check: float = 5.0
    silent: float = 120.0
    gone: float = 900.0


def search_on_ray(
    ledger: Ledger,
    spec: EvaluationSpec,
    workers: int,
    meter: Meter,
    *,
    share: Share | None = None,
    timeout: float | None = None,
    deadline: float = math.inf,
) -> None:
    """Evaluates candidates on `workers` actors until the study has its trials, or the time is over.

    Args:
        ledger: signed in.
        spec: what the workers need; put into the object store once, and from there to each node once.
        workers: evaluations at a time.
        meter: told the finished trials and the best value.
        share: of a node that each worker gets; one CPU by default.
        timeout: seconds in which a candidate must be scored, else it fails and its worker is replaced.
        deadline: of `time.monotonic`; what is under way by then is finished, nothing more is asked for.

    Raises:
        EspalierError: too many candidates failed, or workers die before they ask for anything.
        ClusterError: the cluster was lost.
        KeyboardInterrupt: passed on; what was told by then is kept.
    """
    if ledger.complete < ledger.target:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Broker)
        options = {"num_cpus": 0, "max_concurrency": 4 * workers + 100, "scheduling_strategy": here}
        broker = actor.options(**options).remote()
        # Tune otherwise asks for one worker at a time.
        with environment({"TUNE_MAX_PENDING_TRIALS_PG": str(workers)}), cluster_errors():
            searcher, watch = _WorkerSearcher(spec, workers, broker, share or Share(), timeout), ClusterWatch()
            try:
                _Search(ledger, workers, meter, broker, searcher, deadline, watch.check).go()
            except BaseException:
                searcher.leave(broker, 0.0 if watch.lost else HURRY_SECONDS)
                raise
            searcher.leave(broker, HOME_SECONDS)
    ledger.report(meter)


class _Search:
    """The driver's side: asks, hands out, tells."""

    def __init__(
        self,
        ledger: Ledger,
        workers: int,
        meter: Meter,
        broker: Any,
        searcher: _WorkerSearcher,
        deadline: float,
        watch: Callable[[], None],
        waits: Waits = Waits(),
    ) -> None:
        self._waits = waits
        self._ledger, self._workers, self._meter = ledger, workers, meter
        self._broker, self._searcher, self._deadline, self._watch = broker, searcher, deadline, watch
        self._pending: dict[int, Proposal] = {}
        self._again: list[QueuedTrial] = []  # of workers that died
        self._deaths: Counter[int] = Counter()  # of workers, by the trial that they were at
        self._dropped: set[str] = set()  # workers
        self._idle_deaths = 0
        self._seconds = math.inf  # per candidate
        self._stock = 0
        self._checked = time.monotonic()

    def go(self) -> None:
        """Until the study has its trials, or the time is over and nothing is under way."""
        while self._ledger.complete < self._ledger.target:
            late = time.monotonic() >= self._deadline
            if late and not self._pending:
                return
            tasks, self._again = self._again, []
            if not late:
                tasks += self._ask()
            news, self._stock = self._call("exchange", tasks, self._chunk(), self._waits.news)
            for each in news:
                self._tell(each)
            for worker in self._searcher.dead():
                self._drop(worker)
            if time.monotonic() - self._checked > self._waits.check:
                self._check()

    def _call(self, method: str, *arguments: Any) -> Any:
        """What the broker answers."""
        asked, answer = time.monotonic(), getattr(self._broker, method).remote(*arguments)
        waits = self._waits
        while not ray.wait([answer], timeout=waits.check)[0] and time.monotonic() - asked < waits.answer:
            self._watch()
        return ray.get(answer, timeout=0)

    def _ask(self) -> list[QueuedTrial]:
        """New candidates, as many as keep the workers busy until they are heard again."""
        wanted = self._workers
        if self._known:
            soon = math.ceil(self._workers * CHUNK_SECONDS / self._seconds)
            wanted = min(self._workers * self._chunk(), soon)
        tasks: list[QueuedTrial] = []
        while len(tasks) < min(BATCH, wanted - self._stock):
            proposal = self._ledger.ask()
            if proposal is None:
                break
            self._pending[proposal.number] = proposal
            tasks.append((proposal.number, proposal.candidate.key))
        return tasks

    @property
    def _known(self) -> bool:
        return self._seconds < math.inf

    def _chunk(self) -> int:
        """As many candidates as fill a chunk's time, but no more than the workers' share of what is left."""
        if not self._known:
            return 1
        share = math.ceil((self._ledger.target - self._ledger.complete) / (2 * self._workers))
        return max(1, min(int(CHUNK_SECONDS / self._seconds), MAX_CHUNK, share))

    def _tell(self, news: News) -> None:
        proposal = self._pending.pop(news.number, None)
        if proposal is None:  # it came twice: from a worker that was taken for dead, and from the next one
            return
        self._idle_deaths = 0
        if news.score is None:
            self._ledger.fail(proposal, news.error)
            return
        score = Score.from_json(news.score)
        took = max(score.seconds, 1e-3)
        self._seconds = 0.9 * self._seconds + 0.1 * took if self._known else took
        self._ledger.tell(proposal, score)
        self._ledger.report(self._meter)

    def _check(self) -> None:
        """Sees to it that whatever is under way has a holder that lives: no word of a death need arrive."""
        self._watch()
        held = self._call("held")
        for worker, seconds in held.silent.items():
            if not self._searcher.has(worker):
                self._drop(worker)
            elif seconds > self._waits.silent:
                self._again_without(self._call("lost", worker, False))
        known = held.numbers | {number for number, _ in self._again}
        self._again += [(number, self._pending[number].candidate.key) for number in self._pending.keys() - known]
        if self._pending and held.silent and min(held.silent.values()) > self._waits.gone:
            raise ClusterError(
                f"none of {len(held.silent)} workers was heard of for {self._waits.gone:g} s"
                f"{self._searcher.reason()}; {GO_ON}"
            )
        self._checked = time.monotonic()

    def _drop(self, worker: str) -> None:
        if worker in self._dropped:
            return
        self._dropped.add(worker)
        number = self._call("lost", worker)
        if number is None and not self._call("knows", worker):
            self._idle_deaths += 1
            if self._idle_deaths >= max(IDLE_DEATHS, self._workers):
                raise EspalierError(
                    f"{self._idle_deaths} workers died, one after another, before they had asked for a candidate"
                    f"{self._searcher.reason()}"
                )
        self._again_without(number)

    def _again_without(self, number: int | None) -> None:
        """Gives a trial whose worker is lost to another one, once."""
        if number not in self._pending:
            return
        self._deaths[number] += 1
        if self._deaths[number] > 1:
            self._ledger.fail(self._pending.pop(number), "its worker died twice")
        else:
            self._again.append((number, self._pending[number].candidate.key))


class _WorkerSearcher(Searcher):
    """Has Tune keep up so many workers, in a thread of its own: Ctrl-C belongs to the driver."""

    def __init__(
        self, spec: EvaluationSpec, workers: int, broker: Any, share: Share, timeout: float | None
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._dead: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._live: set[str] = set()
        self._leaving, self._stopper = False, _Stopper()
        self._folder = tempfile.TemporaryDirectory(prefix="espalier-tune-", ignore_cleanup_errors=True)
        self._error: BaseException | None = None
        trainable = tune.with_parameters(_Worker, spec=spec, broker=broker, threads=share.threads, timeout=timeout)
        self._tuner = tune.Tuner(
            tune.with_resources(trainable, share.resources),
            tune_config=tune.TuneConfig(
                search_alg=self,
                num_samples=-1,
                max_concurrent_trials=workers,
                trial_name_creator=_short_name,
                trial_dirname_creator=_short_name,
            ),
            run_config=RunConfig(
                storage_path=self._folder.name,
                verbose=0,
                stop=self._stopper,
                failure_config=FailureConfig(max_failures=0),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name=ray_private.TUNE_THREAD, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._tuner.fit()
            except BaseException as error:  # told by `dead`; after an interrupt, nobody asks
                self._error = error

    def dead(self) -> list[str]:
        """The workers that have ended since the last call.

        Raises:
            ClusterError: Tune itself has ended.
        """
        found = []
        while not self._dead.empty():
            found.append(self._dead.get())
        if not found and not self._thread.is_alive():
            raise ClusterError(f"Ray Tune stopped before the search was over{self.reason()}")
        return found

    def has(self, worker: str) -> bool:
        """Whether Tune keeps a worker, as far as it knows."""
        return worker in self._live

    def reason(self) -> str:
        """What Tune wrote down of the last worker that died, after a colon; else nothing."""
        if (written := ray_private.last_error(Path(self._folder.name))) is not None:
            return f": {written}"
        return "" if self._error is None else f": {self._error}"

    def leave(self, broker: Any, seconds: float) -> None:
        """Sends the workers home and waits for them, then has Tune end those that are left, and waits as long.

        Whatever is left after that ends with the session.
        """
        self._leaving = True
        with suppress(Exception):  # the cluster may be gone
            broker.close.remote()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._stopper.ordered = True
            self._thread.join(seconds)
        if not self._thread.is_alive():
            self._folder.cleanup()

    # -- what Tune calls, in its thread

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self._leaving:
            return Searcher.FINISHED
        self._live.add(trial_id)
        return {}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False, **_: Any
    ) -> None:
        self._live.discard(trial_id)
        self._dead.put(trial_id)  # without an error too: none ends by itself before the search is over

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _Stopper(tune.Stopper):
    """Ends all workers when it is ordered to."""

    ordered = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.ordered


def _short_name(trial: Any) -> str:
    return f"worker-{trial.trial_id}"


class _Worker(tune.Trainable):
    """An actor that scores one chunk of candidates after another, until it is sent home."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], spec: EvaluationSpec, broker: Any, threads: int, timeout: float | None
    ) -> None:
        torch.set_num_threads(threads)
        in_worker()
        self._evaluator = Evaluator(spec)
        self._broker, self._timeout = broker, timeout
        self._ended = threading.Event()
        threading.Thread(target=self._say_that_it_lives, daemon=True).start()

    def _say_that_it_lives(self) -> None:
        while not self._ended.wait(ALIVE_SECONDS):
            self._broker.alive.remote(self.trial_id)

    def cleanup(self) -> None:
        """The thread ends."""
        self._ended.set()

    def _take(self, told: list[News]) -> list[QueuedTrial] | None:
        try:
            request = self._broker.take.remote(self.trial_id, told)
            chunk: list[QueuedTrial] | None = ray.get(request, timeout=6 * TAKE_SECONDS)
        except ray.exceptions.GetTimeoutError:  # the answer is lost: what it held comes back with the next request
            return None
        return chunk

    def step(self) -> dict[str, Any]:
        worker, told = self.trial_id, list[News]()
        while (chunk := self._take(told)) != []:
            told = []
            for number, key in chunk or ():
                with _Limit(self._timeout, self._broker, worker, number):
                    told.append(self._score(number, Candidate.from_key(key)))
                self._broker.tell.remote(worker, told[-1])
        return {"done": True}

    def _score(self, number: int, candidate: Candidate) -> News:
        try:
            return News(number, self._evaluator(candidate).to_json())
        except Exception as error:  # the candidate's failure, not the worker's
            return News(number, None, f"{type(error).__name__}: {error}")

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep: the storage has it all."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""


class _Limit:
    """Ends this process when a candidate is not scored in time: nothing milder stops a loop in a kernel.

    A thread says so first. Where the candidate does not let go of the interpreter, so that no thread runs, a timer
    outside of it ends the process `GRACE` seconds later.
    """

    GRACE = 5.0

    def __init__(self, seconds: float | None, broker: Any, worker: str, number: int) -> None:
        self._seconds, self._broker, self._worker, self._number = seconds, broker, worker, number

    def __enter__(self) -> None:
        if self._seconds is not None:
            import faulthandler

            faulthandler.dump_traceback_later(self._seconds + self.GRACE, exit=True)
            self._timer = threading.Timer(self._seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._seconds is not None:
            import faulthandler

            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        news = News(self._number, None, f"it was not scored within {self._seconds:g} s", last=True)
        try:
            ray.get(self._broker.tell.remote(self._worker, news), timeout=self.GRACE)
        finally:
            os._exit(1)
