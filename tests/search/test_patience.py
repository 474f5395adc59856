"""A storage that goes away and comes back: nothing is lost, and what does not mend is not waited for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from espalier.errors import StorageError
from espalier.search import patience
from espalier.search.patience import cause_of, patient


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
    study = optuna.create_study(storage=patient(database, notify=said.append))
    gone = Gone(database, 3)
    study.set_user_attr("key", 1)
    assert gone.left == 0 and study.user_attrs == {"key": 1}
    assert said[0] == "the storage does not answer (connection refused); waiting for it"
    assert said[1].startswith("the storage answers again, after ") and len(said) == 2


def test_patience_ends_in_one_line(database: RDBStorage) -> None:
    storage = patient(database, patience=0.3)
    study = optuna.create_study(storage=storage)
    Gone(database, 10**9)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"^the storage has not answered for 0 s: connection refused; .*resume"):
        study.set_user_attr("a", 1)
    assert 0.3 < time.monotonic() - began < 10


def test_what_waiting_does_not_mend_is_raised_at_once(
    database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST", 1e6)
    storage = patient(database)
    study = optuna.create_study(storage=storage)
    with pytest.raises(KeyError):
        storage.get_trial(17)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert cause_of(ValueError("x")) is None and cause_of(StorageInternalError("x")) is None


def test_a_cause_is_a_line() -> None:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = sqlalchemy.exc.OperationalError("INSERT", {}, OSError("server closed\nthe connection"))
    assert cause_of(error) == "server closed"
    assert cause_of(ConnectionResetError()) == "ConnectionResetError"
