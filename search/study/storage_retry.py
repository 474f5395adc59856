"""A storage that is waited for: a server that restarts, a network that breaks, a disk that comes back.

A call that fails for such a reason is made again until the storage answers. A write may have reached the storage
although its answer did not come back; made again, it changes nothing, or makes a trial that nobody has signed,
which the next driver that asks takes over.

An interrupt never breaks a call in the middle: SQLAlchemy may leave the transaction open then, and whoever writes
next, be it to end the run, waits for its lock in vain.
"""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, get_storage

from espalier.errors import StorageError

TIMEOUT = 120.0
"""Seconds that a storage is waited for."""
FIRST, LONGEST = 0.1, 3.0
"""Seconds before a call is made again: the first time, doubled each time, and at most."""

_FLEETING = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.TimeoutError,
    ConnectionError,
)


def with_retries(
    storage: BaseStorage, timeout: float = TIMEOUT, notify: Callable[[str], object] = lambda line: None
) -> BaseStorage:
    """The same storage, each of its calls made again while the storage cannot be reached.

    Args:
        storage: any of Optuna's; a database is read through Optuna's cache.
        timeout: seconds before a call gives up with a StorageError.
        notify: told, in a line, when a wait begins and when it is over.
    """
    inner = get_storage(storage)
    waiting = _Waiting(timeout, notify)
    # Every public method of the class, also those that it does by others and storages do at once, and those that a
    # later Optuna adds: a class that named them would pass some by, and could not be made where one is missing.
    names = [name for name in dir(BaseStorage) if not name.startswith("_") and callable(getattr(BaseStorage, name))]
    methods = {name: _retried(getattr(inner, name), waiting) for name in names}
    extra = {"inner": inner, "retried": staticmethod(waiting.call)}
    made: BaseStorage = type("RetryingStorage", (BaseStorage,), methods | extra)()
    return made


class _Waiting:
    def __init__(self, timeout: float, notify: Callable[[str], object]) -> None:
        self._timeout, self._notify = timeout, notify

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began, pause, told = time.monotonic(), FIRST, False
        while True:
            try:
                with uninterrupted():
                    result = method(*args, **kwargs)
            except (StorageInternalError, *_FLEETING, OSError) as error:
                cause = cause_of(error)
                if cause is None:
                    raise
                if time.monotonic() - began > self._timeout:
                    raise StorageError(
                        f"the storage has not answered for {self._timeout:.0f} s: {cause}; nothing that was told "
                        "is lost: resume the study when it is back"
                    ) from error
                if not told:
                    self._notify(f"the storage does not answer ({cause}); waiting for it")
                    told = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
            else:
                if told:
                    self._notify(f"the storage answers again, after {time.monotonic() - began:.0f} s")
                return result


def _retried(method: Callable[..., Any], waiting: _Waiting) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
        return waiting.call(method, *args, **kwargs)

    return call


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C back until the block has ended; a second one is not kept back.

    Only the main thread is interrupted, so that in any other there is nothing to keep back.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    kept: list[tuple[int, Any]] = []

    def keep(number: int, frame: Any) -> None:
        kept.append((number, frame))
        if len(kept) > 1:
            handler(number, frame)

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if len(kept) == 1:
            handler(*kept[0])


def cause_of(error: BaseException) -> str | None:
    """Why a storage did not answer, in a line without its URL; None for what waiting does not mend."""
    inner = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(inner, (*_FLEETING, OSError)):
        return None
    said = str(getattr(inner, "orig", None) or inner).strip()
    return said.splitlines()[0] if said else type(inner).__name__
