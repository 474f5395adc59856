"""A storage that goes away and comes back: nothing is lost, and what does not mend is not waited for."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from espalier.errors import StorageError
from espalier.search.cluster.in_process import search_in_process
from espalier.search.progress.reporter import NONE, Meter, Values
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study.keys import DRIVER
from espalier.search.study.lease import Lease
from espalier.search.study.ledger import Ledger
from espalier.search.study.storage import create_study, open_storage
from espalier.search.study.storage_retry import cause_of, uninterrupted, with_retries
from espalier.search.tasks.classification.measures import MEASURES


@pytest.fixture
def database(tmp_path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")


class Gone:
    """Takes a storage away for some calls, or for good."""

    def __init__(self, database: RDBStorage, calls: float) -> None:
        self.left = calls
        sqlalchemy.event.listen(database.engine, "before_cursor_execute", self._refuse)

    def _refuse(self, *_: Any) -> None:
        if self.left > 0:
            self.left -= 1
            raise sqlalchemy.exc.OperationalError("SELECT 1", {}, ConnectionError("connection refused\nmore of it"))


def test_calls_are_made_again_until_the_storage_answers(database: RDBStorage) -> None:
    said: list[str] = []
    study = optuna.create_study(storage=with_retries(database, notify=said.append))
    gone = Gone(database, 3)
    study.set_user_attr("key", 1)
    assert gone.left == 0 and study.user_attrs == {"key": 1}
    assert said[0] == "the storage does not answer (connection refused); waiting for it"
    assert said[1].startswith("the storage answers again, after ") and len(said) == 2


def test_the_timeout_ends_in_one_line(database: RDBStorage) -> None:
    storage = with_retries(database, timeout=0.3)
    study = optuna.create_study(storage=storage)
    Gone(database, 10**9)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"^the storage has not answered for 0 s: connection refused; .*resume"):
        study.set_user_attr("a", 1)
    assert 0.3 < time.monotonic() - began < 10


def test_what_waiting_does_not_mend_is_raised_at_once(
    database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    storage = with_retries(database)
    study = optuna.create_study(storage=storage)
    with pytest.raises(KeyError):
        storage.get_trial(17)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert waited == []
    assert cause_of(ValueError("x")) is None and cause_of(StorageInternalError("x")) is None


@pytest.mark.parametrize("journal", [False, True])
def test_an_interrupt_leaves_no_transaction_open(tmp_path: Path, database: RDBStorage, journal: bool) -> None:
    interrupted: list[str] = []

    def interrupt(*_: Any) -> None:
        if not interrupted:
            interrupted.append("within a call")
            signal.raise_signal(signal.SIGINT)

    if journal:
        backend = JournalFileBackend(str(tmp_path / "study.log"))
        storage = with_retries(JournalStorage(backend))
    else:
        storage = with_retries(database)
    study = optuna.create_study(storage=storage)
    if journal:
        append = backend.append_logs

        def interrupted_append(logs: list[dict[str, Any]]) -> None:
            interrupt()
            append(logs)

        backend.append_logs = interrupted_append  # type: ignore[method-assign]
    else:
        sqlalchemy.event.listen(database.engine, "commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study.set_user_attr("key", 1)
    assert interrupted and study.user_attrs == {"key": 1}
    if not journal:
        other = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}", {"connect_args": {"timeout": 0}})
        other.set_study_user_attr(study._study_id, "other", 2)  # at once: nothing holds the lock
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_is_not_kept_back() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        reached.append("kept back")
        signal.raise_signal(signal.SIGINT)
        reached.append("not kept back")
    assert reached == ["kept back"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_keep_nothing_back() -> None:
    handlers: list[Any] = []

    def look() -> None:
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_a_cause_is_a_line() -> None:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = sqlalchemy.exc.OperationalError("INSERT", {}, OSError("server closed\nthe connection"))
    assert cause_of(error) == "server closed"
    assert cause_of(ConnectionResetError()) == "ConnectionResetError"


class Line:
    """A line to a server that can be cut: a port that passes everything on to another."""

    def __init__(self, port: int) -> None:
        self._to, self._open = port, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=[one, other], daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


@pytest.mark.storages
def test_postgresql_that_is_gone_for_twenty_seconds(
    postgresql_server: Callable[[], str], space: Multipliers
) -> None:
    server = sqlalchemy.engine.make_url(postgresql_server())
    assert server.port is not None
    line = Line(server.port)
    url = server.set(port=line.port).render_as_string(hide_password=False)
    said: list[str] = []
    storage = with_retries(open_storage(url, create=True), notify=said.append)
    study = create_study(storage, "s", {"config": {}})
    scored: list[str] = []

    def score(candidate: Candidate) -> Score:
        scored.append(candidate.key)
        if len(scored) == 10:
            line.cut()
            threading.Timer(20.0, line.mend).start()
        return Score({"top1": 50.0, "cross_entropy": 1.0 + len(scored) / 100}, 0.01)

    book = Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["cross_entropy"], target=30)
    often = Lease(study, DRIVER, every=2.0)  # renewed in the gap too
    often.renew()
    often.begin()
    with book:
        search_in_process(book, score, Silence())  # type: ignore[arg-type]
        assert often.renewer.is_alive() and book._lease.renewer.is_alive()
    often.give_back()
    states = [trial.state for trial in optuna.load_study(study_name="s", storage=server_url(server)).trials]
    assert states == [TrialState.COMPLETE] * 30
    assert len(scored) == len(set(scored))
    assert any("does not answer" in each for each in said) and any("answers again" in each for each in said)
    assert not any(server.password in each for each in said if server.password)


def server_url(server: sqlalchemy.URL) -> str:
    return server.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


class Silence(Meter):
    def update(self, done: int, note: str = "", values: Values = NONE) -> None: ...
