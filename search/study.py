"""The study: an Optuna storage is the one record of a search, and what survives whatever dies.

Drivers, the processes that ask and tell, sign in to the study with a lease that they renew. A trial that is
RUNNING under a driver that is gone is taken over as it is, number, vector and all, by the next driver that asks:
so the trials of an interrupted search are those of an uninterrupted one, and none is counted twice.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from espalier.errors import EspalierError, StorageError, StudyMismatch
from espalier.search.candidate import Candidate, Measure, Score
from espalier.search.config import BudgetConfig
from espalier.search.mirror import Mirror
from espalier.search.progress import Meter
from espalier.search.space import Space

PREFIX = "espalier:"
LEASE_SECONDS = 60.0
"""A driver that has not renewed its lease for this long is taken for dead."""
MAX_FAILURES = 20
"""Candidates that may fail in one run before it gives up."""
LAST_TRIALS = 50
"""So near its end, a study is read anew for every proposal: none is asked for too many."""
READING_SHARE = 0.05
"""Share of a driver's time that goes into reading what other drivers wrote, before that."""

EXECUTION = "execution"
"""Attribute of a study, how networks are run in it: a `probe.Execution`."""

CANDIDATE, SCORE, DRIVER = PREFIX + "candidate", PREFIX + "score", PREFIX + "driver"


def redact(url: str) -> str:
    """A storage URL without its password, for messages."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "the storage given" if "@" in url else repr(url)


def open_storage(url: str, *, create: bool) -> BaseStorage:
    """Opens an Optuna storage.

    Args:
        url: any URL that Optuna knows; ``sqlite:///path/study.db`` is put into WAL mode.
        create: whether a SQLite file that does not exist may be made.

    Raises:
        StorageError: it cannot be opened or read; the message holds no password.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # their messages may quote the URL
        raise StorageError(
            f"cannot open the storage {redact(url)}: a URL reads sqlite:///study.db or postgresql://user@host/db"
        ) from None
    try:
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and not create and parsed.database and not Path(parsed.database).is_file():
            raise StorageError(f"there is no storage at {redact(url)}: give the URL that the search printed")
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else None)
        if sqlite:
            sqlalchemy.event.listen(storage.engine, "connect", _use_wal)
            storage.engine.dispose()
        storage.get_all_studies()
    except EspalierError:
        raise
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.OptunaError,
        ImportError,
        RuntimeError,
        ValueError,
        OSError,
    ) as error:
        inner = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        cause = getattr(inner, "orig", None) or inner
        if isinstance(cause, ImportError):
            cause = ImportError("its driver is not installed; for PostgreSQL, pip install 'espalier[postgresql]'")
        first_line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise StorageError(f"cannot open the storage {redact(url)}: {first_line}") from error
    return storage


def _use_wal(connection: Any, _: Any) -> None:
    """Readers and one writer at a time do not block each other; survives a killed process at any moment."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def find_study(storage: BaseStorage, name: str, url: str) -> optuna.Study | None:
    """The study of that name, or None.

    Raises:
        StorageError: it is there, but espalier did not make it.
    """
    if name not in {study.study_name for study in storage.get_all_studies()}:
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    if PREFIX + "config" not in study.user_attrs:
        ours = all(key.startswith(PREFIX) for key in study.user_attrs)
        if ours and not study.trials and study.direction is StudyDirection.MAXIMIZE:
            return None  # its driver died while making it; `create_study` makes it whole
        raise StorageError(f"the study {name!r} in {redact(url)} was not made by espalier; choose another --study")
    return study


def create_study(storage: BaseStorage, name: str, attributes: dict[str, Any]) -> optuna.Study:
    """A new study that maximises, with espalier's attributes; the config comes last and marks it whole."""
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    for key, value in sorted(attributes.items(), key=lambda item: item[0] == "config"):
        study.set_user_attr(PREFIX + key, value)
    return study


def check_fingerprint(study: optuna.Study, wanted: dict[str, Any]) -> None:
    """Raises StudyMismatch, naming up to five differences, where a study was made with other settings."""
    made: dict[str, Any] = study.user_attrs[PREFIX + "fingerprint"]
    differing = [key for key in sorted(made.keys() | wanted.keys()) if made.get(key) != wanted.get(key)]
    if differing:
        shown = ", ".join(f"{key} was {made.get(key)!r}, now {wanted.get(key)!r}" for key in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise StudyMismatch(
            f"the study {study.study_name!r} was made with other settings: {shown}{more}; "
            "choose another --study name, or resume it as it was with `espalier resume`"
        )


def keep(study: optuna.Study, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """An attribute of the study, made where nobody has yet: of two drivers that make it at a time, one is heard."""
    key = PREFIX + name
    if key not in study.user_attrs:
        made = make()
        if key not in study.user_attrs:  # another driver may have been quicker
            study.set_user_attr(key, made)
    kept: dict[str, Any] = study.user_attrs[key]
    return kept


@dataclass(frozen=True)
class Proposal:
    """A trial to evaluate."""

    number: int
    candidate: Candidate


@dataclass(frozen=True)
class Record:
    """A finished trial, and the vector that its candidate came from."""

    number: int
    candidate: Candidate
    score: Score
    value: float
    params: dict[str, Any] = field(default_factory=dict, compare=False)


class Ledger:
    """One driver's view of a study: asks for candidates, tells scores, keeps count.

    Use as a context manager: signing in takes out the lease, signing out gives it back.

    Args:
        study: made by `create_study`.
        space: what is searched; its greedy vectors are enqueued first.
        sampler: what proposes.
        measure: which part of a score is maximised.
        target: COMPLETE trials wanted in all.
        max_failures: candidates that may fail before this driver gives up.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        sampler: BaseSampler,
        *,
        measure: Measure,
        target: int,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        self._mirror = Mirror(study._storage, study._study_id)
        self._study = optuna.load_study(study_name=study.study_name, storage=self._mirror, sampler=sampler)
        self._space = space
        self._measure, self.target, self._max_failures = measure, target, max_failures
        self._driver = uuid.uuid4().hex[:12]
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew_lease, daemon=True)
        self._alive: set[str] = set()
        self._mine: set[int] = set()
        self._failures = 0
        self._known: dict[str, Score] = {}  # of every candidate that was scored
        self._best: FrozenTrial | None = None
        self._complete = 0

    def __enter__(self) -> Self:
        self._sign(time.time())
        self._renewer.start()
        self._read()
        for params in self._space.greedy_params():
            self._study.enqueue_trial(params, skip_if_exists=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if kind is not None and issubclass(kind, StorageError):
            return  # nobody hears that it leaves: its lease runs out
        self._renewer.join()
        self._sign(0.0)

    # -- reading

    def records(self) -> list[Record]:
        """Every COMPLETE trial, in order."""
        self._read()
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [record_of(trial) for trial in trials]

    @property
    def complete(self) -> int:
        """Number of COMPLETE trials, as far as this driver knows."""
        self._catch_up()
        return self._complete

    def best(self) -> Record:
        """The COMPLETE trial of greatest value; the earliest among equals."""
        self._catch_up()
        assert self._best is not None
        return record_of(self._best)

    def report(self, meter: Meter) -> None:
        """Tells a meter the finished trials and the best one."""
        if complete := self.complete:
            best = self.best()
            meter.update(complete, f"best {best.value:.4f} (trial {best.number})")

    # -- asking and telling

    def ask(self) -> Proposal | None:
        """The next candidate to evaluate, or None when enough are finished or on their way.

        A candidate that was scored before is told its score at once and another one is asked for.
        """
        while True:
            trial = self._next_trial()
            if trial is None:
                return None
            self._mine.add(trial.number)
            if trial.distributions and CANDIDATE not in trial.user_attrs:
                self._redraw(trial)
            candidate = self._space.decode(self._space.suggest(trial))
            trial.set_user_attr(CANDIDATE, candidate.key)
            self._mirror.flush(trial._trial_id)
            if SCORE in trial.user_attrs:  # its driver died between writing the score and telling it
                self._finish(trial.number, Score.from_json(trial.user_attrs[SCORE]))
            elif candidate.key in self._known:
                self.tell(Proposal(trial.number, candidate), self._known[candidate.key])
            else:
                return Proposal(trial.number, candidate)

    def tell(self, proposal: Proposal, score: Score) -> None:
        """Records a score, NaN as a failure; a trial that is finished already stays as it is.

        Raises:
            EspalierError: too many have failed.
        """
        trial_id = self._mirror.numbered(proposal.number)._trial_id
        try:
            self._mirror.set_trial_user_attr(trial_id, SCORE, score.to_json())
        except optuna.exceptions.UpdateFinishedTrialError:
            self._mine.discard(proposal.number)
            return
        self._known[proposal.candidate.key] = score
        self._finish(proposal.number, score)

    def fail(self, proposal: Proposal, reason: str) -> None:
        """Records that a candidate could not be scored.

        Raises:
            EspalierError: too many have failed.
        """
        self._fail(proposal.number, reason)

    def _fail(self, number: int, reason: str) -> None:
        self._close(number, None)
        self._failures += 1
        if self._failures >= self._max_failures:
            raise EspalierError(f"{self._failures} candidates failed, the last one with: {reason}")

    def _finish(self, number: int, score: Score) -> None:
        value = score.value(self._measure)
        if math.isnan(value):
            self._fail(number, "its score is NaN")
            return
        self._close(number, value)

    def _close(self, number: int, value: float | None) -> None:
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        try:
            self._study.tell(number, value, state=state, skip_if_finished=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # another driver was quicker
        self._mine.discard(number)

    def _redraw(self, trial: optuna.Trial) -> None:
        """Draws again what a driver had drawn of a vector when it died, so that the rest comes out the same."""
        frozen = self._mirror.numbered(trial.number)
        fixed = frozen.system_attrs.get("fixed_params", {})
        for name, distribution in frozen.distributions.items():
            if name not in fixed and name not in trial.relative_params:
                self._study.sampler.sample_independent(self._study, frozen, name, distribution)

    def _next_trial(self) -> optuna.Trial | None:
        if self._must_read():
            self._read()
        self._catch_up()
        running = self._mirror.running()
        for trial in running:
            if trial.number not in self._mine and not self._is_held(trial):
                taken = optuna.Trial(self._study, trial._trial_id)
                taken.set_user_attr(DRIVER, self._driver)
                return taken
        if self._complete + len(running) >= self.target:
            return None
        asked = self._study.ask()
        asked.set_user_attr(DRIVER, self._driver)
        if asked.number >= self.target:  # fewer trials came before it otherwise
            self._read()
            counted = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
            if sum(trial.number < asked.number for trial in counted) >= self.target:
                self._study.tell(asked, state=TrialState.FAIL)  # another driver asked for the last one just now
                return None
        return asked

    def _must_read(self) -> bool:
        """Whether to read what others wrote: towards the end each time, before that for a share of the time."""
        in_hand = self._complete + len(self._mine)
        return self.target - in_hand < max(LAST_TRIALS, len(self._mine)) or (
            self._mirror.age > self._mirror.read_seconds / READING_SHARE
        )

    def _read(self) -> None:
        self._mirror.refresh()
        self._alive = self._live_drivers()
        self._catch_up()

    def _catch_up(self) -> None:
        """Takes note of trials that have finished."""
        for trial in self._mirror.news():
            if trial.state is TrialState.COMPLETE:
                self._complete += 1
                record = record_of(trial)
                self._known.setdefault(record.candidate.key, record.score)
                best = self._best
                if best is None or (record.value, -trial.number) > (best.value, -best.number):
                    self._best = trial

    # -- leases

    def _sign(self, now: float) -> None:
        lease = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": now}
        self._study.set_user_attr(f"{DRIVER}:{self._driver}", lease)

    def _renew_lease(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            try:
                self._sign(time.time())
            except (EspalierError, optuna.exceptions.OptunaError, OSError):
                pass  # the storage is gone for long: whoever asks or tells is told so; it may come back before that

    def _live_drivers(self) -> set[str]:
        leases = {k: v for k, v in self._study.user_attrs.items() if k.startswith(DRIVER + ":")}
        return {key.rpartition(":")[2] for key, lease in leases.items() if _is_live(lease)}

    def _is_held(self, trial: FrozenTrial) -> bool:
        driver = trial.user_attrs.get(DRIVER)
        if driver is not None:
            return driver in self._alive and driver != self._driver
        # Asked for and not yet signed: its driver is at work on it, unless no other one lives.
        age = time.time() - trial.datetime_start.timestamp() if trial.datetime_start else LEASE_SECONDS
        return bool(self._alive - {self._driver}) and age < LEASE_SECONDS


def _is_live(lease: dict[str, Any]) -> bool:
    if time.time() - lease["renewed"] > LEASE_SECONDS:
        return False
    if lease["host"] != socket.gethostname():
        return True
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def record_of(trial: FrozenTrial) -> Record:
    """The record of a COMPLETE trial."""
    assert trial.value is not None
    attributes = trial.user_attrs
    candidate = Candidate.from_key(attributes[CANDIDATE])
    return Record(trial.number, candidate, Score.from_json(attributes[SCORE]), trial.value, trial.params)


def summaries(storage: BaseStorage) -> list[tuple[str, str, str, str, str, str]]:
    """Of every study that espalier made: name, COMPLETE trials, target, best value, sampler, budget."""
    rows = []
    for summary in optuna.get_all_study_summaries(storage):
        config = summary.user_attrs.get(PREFIX + "config")
        if config is None:
            continue
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max((trial.value for trial in complete if trial.value is not None), default=None)
        search, wanted = config["search"], BudgetConfig.model_validate(config["budget"]).words()
        value = "-" if best is None else f"{best:.4f} ({search['measure']})"
        rows.append((study.study_name, str(len(complete)), str(search["trials"]), value, search["sampler"], wanted))
    return sorted(rows)
