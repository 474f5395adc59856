"""Leases: a process that is at work on a study signs an entry there and renews it while it lives.

No two clocks are compared to say who lives. Each process dates, by its own clock, when it saw a lease renewed. A
process whose lease it has not seen renewed for `LEASE_SECONDS` is dead. A process of this machine that has ended is
known to be dead at once.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from espalier.errors import EspalierError
from espalier.optuna_private import database_of, delete_attributes, storage_of, study_id
from espalier.search.study.keys import DRIVER, RUN

LEASE_SECONDS = 60.0
"""A process that has not renewed its lease for this long is taken for dead."""
CLOCK_TOLERANCE = 86_400.0
"""Seconds by which clocks of two machines may differ: who signed longer ago is dead at first sight."""

_GONE = (EspalierError, optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError, OSError)
"""What is raised where a storage does not answer."""

Entry = Mapping[str, Any]
"""What a process signs: who it is, and when it last did so; 0.1 knew a process by `host` and `pid` alone."""


class Lease:
    """One process's entry in a study.

    Args:
        study: that it works on.
        kind: `DRIVER` for the search, `RUN` for all of a run.
        host: where it runs, for people.
        every: seconds between renewals.
    """

    def __init__(
        self, study: optuna.Study, kind: str, host: str | None = None, *, every: float = LEASE_SECONDS / 4
    ) -> None:
        self._every = every
        self.name = uuid.uuid4().hex[:12]
        self._study, self.key = study, f"{kind}:{self.name}"
        self._who = {"host": host or socket.gethostname(), "pid": os.getpid(), "machine": machine()}
        self._who["started"] = started(os.getpid())
        self._more: dict[str, Any] = {}
        self._renewed = 0.0
        self._stop = threading.Event()
        self.renewer = threading.Thread(target=self._renew_now_and_then, daemon=True)

    def renew(self) -> None:
        """Signs anew; once begun, a thread does so."""
        self._renewed = max(time.time(), math.nextafter(self._renewed, math.inf))  # a clock may be set back
        self._sign(self._renewed)

    def say(self, **more: Any) -> None:
        """What else the entry tells from the next renewal on."""
        self._more |= more

    def begin(self) -> None:
        """Renews from now on, and removes leases that are dead for long, where the storage can."""
        self.renewer.start()
        try:
            self._remove_old()
        except _GONE:
            pass  # the next one does

    def leave(self) -> None:
        """Renews no more, and does not wait for a renewal under way: of a storage that does not answer."""
        self._stop.set()

    def stop(self) -> None:
        """Renews no more, and does not give the lease back: as if the process were killed."""
        self._stop.set()
        if self.renewer.is_alive():
            self.renewer.join()

    def give_back(self) -> None:
        """Ends it, for all to see at once."""
        self.stop()
        self._sign(0.0)

    def _sign(self, renewed: float) -> None:
        self._study.set_user_attr(self.key, self._who | {"renewed": renewed} | self._more)

    def _renew_now_and_then(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.renew()
            except _GONE:
                pass  # the storage is gone: whoever asks or tells is told so; it may come back before that

    def _remove_old(self) -> None:
        database = database_of(storage_of(self._study))
        old = [key for key, entry in leases_of(self._study.user_attrs).items() if not _may_live(entry)]
        if database is not None and old:
            delete_attributes(database, study_id(self._study), old)


class Watch:
    """Says which leases live, as far as one observer has seen them renewed.

    Args:
        clock: the observer's own seconds.
        believing: whether a lease that is seen for the first time is dated by what was signed, not by when it is
            seen: for those who look once, and do no harm where the clocks of machines differ.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, believing: bool = False) -> None:
        self._clock, self._believing = clock, believing
        self._seen: dict[str, tuple[float, float]] = {}  # key -> what was signed, and when that was seen

    def live(self, leases: Mapping[str, Entry]) -> set[str]:
        """Keys of the leases whose processes live."""
        now = self._clock()
        for key, entry in leases.items():
            signed, when = self._seen.get(key, (0.0, -math.inf))
            if entry["renewed"] > signed:
                when = now
                if key not in self._seen:
                    age = max(0.0, time.time() - entry["renewed"]) if self._believing else 0.0
                    when = now - age if _may_live(entry) else -math.inf
            elif entry["renewed"] < signed:  # given back
                when = -math.inf
            self._seen[key] = entry["renewed"], when
        return {
            key for key, entry in leases.items() if now - self._seen[key][1] <= LEASE_SECONDS and not is_gone(entry)
        }


def leases_of(attributes: Mapping[str, Any], kind: str | None = None) -> dict[str, Entry]:
    """Key -> lease, among a study's attributes; of one kind, or all."""
    kinds = (DRIVER, RUN) if kind is None else (kind,)
    return {key: value for key, value in attributes.items() if key.rpartition(":")[0] in kinds}


def _may_live(entry: Entry) -> bool:
    """Whether a lease was neither given back nor signed so long ago that no clock can be that wrong."""
    renewed = float(entry["renewed"])
    return renewed > 0 and abs(time.time() - renewed) <= CLOCK_TOLERANCE


# ---------------------------------------------------------------------------------------- processes of a machine


def is_gone(entry: Entry) -> bool:
    """Whether who signed is known to have ended: a process that this one could see, and does not.

    Containers may share the name of their machine, and each has a process 1. So a process is known by the boot of
    its machine, the namespace of its number and the moment when it started.
    """
    here = entry["machine"] == machine() if "machine" in entry else entry["host"] == socket.gethostname()
    if not here:
        return False
    try:
        os.kill(entry["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now, then = started(entry["pid"]), entry.get("started")
    return now == "ended" or bool(now and then and now != then)


@functools.cache
def machine() -> str:
    """Names what numbers of processes are counted in: this boot of the machine, and the namespace in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; "ended" for a zombie, None where nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in ("Z", "X") else fields[19]
