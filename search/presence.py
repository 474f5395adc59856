"""Who is at work on a study: each run signs in, says what it is doing, and renews that while it lives.

A driver's lease in `espalier.search.study` covers the search alone; this covers the whole run, the ladder and
fine-tuning too, and is what people are shown.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import optuna
import sqlalchemy

from espalier.errors import StorageError
from espalier.search.attributes import PREFIX
from espalier.search.lease import LEASE_SECONDS, is_live
from espalier.search.progress import NONE, Meter, Reporter, Values

RUN = PREFIX + "run"


@dataclass(frozen=True)
class Run:
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


def present(attributes: dict[str, Any]) -> list[Run]:
    """The runs that are alive, by the attributes of their study."""
    entries = [value for key, value in attributes.items() if key.startswith(RUN + ":") and is_live(value)]
    return [
        Run(**{key: value for key, value in entry.items() if key != "renewed"}, age=time.time() - entry["renewed"])
        for entry in entries
    ]


class Presence(Reporter):
    """Signs a run in for as long as the context lasts, and passes its progress on.

    Args:
        study: that it works on.
        inner: told everything as it comes; the study is told four times in the life of a lease.
    """

    def __init__(self, study: optuna.Study, inner: Reporter) -> None:
        self._study, self._inner = study, inner
        self._key = f"{RUN}:{uuid.uuid4().hex[:12]}"
        self._stage: dict[str, Any] = {"stage": "", "done": 0, "total": 0, "unit": "", "note": ""}
        self._since = time.time()
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._sign(time.time())
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._renewer.join()
        self._sign(0.0)

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """The inner reporter's, listened to."""
        self._stage = {"stage": title, "done": done, "total": total, "unit": unit, "note": ""}
        self._sign(time.time())
        with self._inner.meter(title, total, unit, done) as meter:
            yield _Overheard(meter, self)
        self._stage = {"stage": "", "done": 0, "total": 0, "unit": "", "note": ""}

    def say(self, line: str) -> None:
        """The inner reporter's business."""
        self._inner.say(line)

    def hear(self, done: int, note: str) -> None:
        """What the next renewal will say."""
        self._stage = self._stage | {"done": done, "note": note}

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            self._sign(time.time())

    def _sign(self, now: float) -> None:
        signed = {"host": socket.gethostname(), "pid": os.getpid(), "since": self._since, "renewed": now}
        try:
            self._study.set_user_attr(self._key, signed | self._stage)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, StorageError, OSError):
            pass  # a storage that is gone for a moment does not end a training; the next renewal tells


class _Overheard(Meter):
    def __init__(self, inner: Meter, presence: Presence) -> None:
        self._inner, self._presence = inner, presence

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        self._presence.hear(done, note)
        self._inner.update(done, note, values)
