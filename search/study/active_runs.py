"""Who is at work on a study: each run signs in, says what it is doing, and renews that while it lives.

A driver's lease in `espalier.search.study.ledger` covers the search alone: whose trials are under way. This one
covers the whole run, the ladder and fine-tuning too, and is what people are shown. Both are a `Lease`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import optuna
import sqlalchemy

from espalier.errors import StorageError
from espalier.persistence import record_from
from espalier.search.progress.reporter import NONE, Meter, Reporter, Values
from espalier.search.study.keys import RUN
from espalier.search.study.lease import LEASE_SECONDS, Lease, Watch, leases_of


@dataclass(frozen=True)
class ActiveRun:
    """A run that is alive.

    Attributes:
        host: name of its machine.
        pid: of its process there.
        since: when it began, in seconds since 1970.
        age: seconds since it last said so.
        stage: what it is doing, such as ``search``; empty between stages.
        done: units done.
        total: units in all; 0 between stages.
        unit: what they are.
        note: what is worth saying of it.
    """

    host: str
    pid: int
    since: float
    age: float
    stage: str
    done: int
    total: int
    unit: str
    note: str


def present(attributes: dict[str, Any], watch: Watch | None = None) -> list[ActiveRun]:
    """The runs that are alive, by the attributes of their study.

    Args:
        attributes: of the study.
        watch: who has looked before; without, each run is believed when it last signed.
    """
    leases = leases_of(attributes, RUN)
    live = (watch or Watch(believing=True)).live(leases)
    now = time.time()
    return [
        record_from(ActiveRun, {**leases[key], "age": now - leases[key]["renewed"]})
        for key in leases
        if key in live
    ]


class Heartbeat(Reporter):
    """Signs a run in for as long as the context lasts, and passes its progress on.

    Args:
        study: that it works on.
        inner: told everything as it comes.
        every: seconds after which the study is told.
    """

    def __init__(self, study: optuna.Study, inner: Reporter, *, every: float = LEASE_SECONDS / 4) -> None:
        self._lease, self._inner = Lease(study, RUN, every=every), inner
        self._lease.say(since=time.time(), **_BETWEEN)

    def __enter__(self) -> Self:
        self._try(self._lease.renew)
        self._lease.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._try(self._lease.give_back)

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """The inner reporter's, listened to."""
        self._lease.say(stage=title, done=done, total=total, unit=unit, note="")
        self._try(self._lease.renew)
        with self._inner.meter(title, total, unit, done) as meter:
            yield _Overheard(meter, self)
        self._lease.say(**_BETWEEN)

    def say(self, line: str) -> None:
        """The inner reporter's business."""
        self._inner.say(line)

    def hear(self, done: int, note: str) -> None:
        """What the next renewal will say."""
        self._lease.say(done=done, note=note)

    def _try(self, sign: Callable[[], None]) -> None:
        try:
            sign()
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, StorageError, OSError):
            pass  # a storage that is gone for a moment does not end a training; the next renewal tells


_BETWEEN: dict[str, Any] = {"stage": "", "done": 0, "total": 0, "unit": "", "note": ""}
"""What a run says between two stages."""


class _Overheard(Meter):
    def __init__(self, inner: Meter, heartbeat: Heartbeat) -> None:
        self._inner, self._heartbeat = inner, heartbeat

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        self._heartbeat.hear(done, note)
        self._inner.update(done, note, values)
