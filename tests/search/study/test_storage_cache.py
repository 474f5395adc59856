"""A driver's view of the storage: what it writes arrives, and what others write is seen when it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from espalier.search.study.storage_cache import StorageCache
from espalier.search.study.storage_retry import with_retries

Storages = dict[str, Callable[[Path], BaseStorage]]
STORAGES: Storages = {
    "sqlite": lambda folder: RDBStorage(f"sqlite:///{folder / 'study.db'}"),
    "sqlite with retries": lambda folder: with_retries(RDBStorage(f"sqlite:///{folder / 'study.db'}")),
    "journal": lambda folder: JournalStorage(JournalFileBackend(str(folder / "journal"))),
    "memory": lambda folder: InMemoryStorage(),
}


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    return STORAGES[request.param](tmp_path)


def viewed(storage: BaseStorage) -> tuple[optuna.Study, StorageCache]:
    known = {study.study_name for study in storage.get_all_studies()}
    if "s" not in known:
        optuna.create_study(study_name="s", storage=storage, direction="maximize")
    seen = StorageCache(storage, storage.get_study_id_from_name("s"))
    return optuna.load_study(study_name="s", storage=seen), seen


def draw(trial: optuna.Trial) -> None:
    trial.suggest_float("x", -1, 1)
    trial.suggest_int("n", 1, 64, log=True)
    trial.suggest_categorical("c", ["a", "b"])


def test_a_trial_in_the_storage_is_what_optuna_would_have_written(storage: BaseStorage, tmp_path: Path) -> None:
    study, seen = viewed(storage)
    study.enqueue_trial({"x": 0.25})
    for _ in range(2):
        trial = study.ask()
        draw(trial)
        trial.set_user_attr("key", {"a": [1, 2.5]})
        seen.set_trial_system_attr(trial._trial_id, "hidden", "s")
        assert storage.get_trial(trial._trial_id).params == {}  # kept back
        seen.flush(trial._trial_id)
        seen.flush(trial._trial_id)
        trial.set_user_attr("later", 1)
        study.tell(trial, 0.5)
    for mine, theirs in zip(study.trials, optuna.load_study(study_name="s", storage=storage).trials, strict=True):
        for name in ("number", "state", "params", "distributions", "user_attrs", "system_attrs", "values"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.distributions == {
            "x": FloatDistribution(-1, 1),
            "n": IntDistribution(1, 64, log=True),
            "c": CategoricalDistribution(["a", "b"]),
        }
    assert study.trials[0].params["x"] == 0.25 and study.best_trial.number == 0


def test_finishing_a_trial_writes_what_was_kept_back(storage: BaseStorage) -> None:
    study, _ = viewed(storage)
    trial = study.ask()
    draw(trial)
    study.tell(trial, 1.0)
    assert storage.get_trial(trial._trial_id).params == study.trials[0].params != {}


def test_others_are_seen_after_reading(storage: BaseStorage) -> None:
    (one, seen), (two, _) = viewed(storage), viewed(storage)
    trial = two.ask()
    assert one.trials == []
    seen.refresh()
    assert [t.number for t in seen.running()] == [0] and seen.news() == []
    two.tell(trial, 2.0)
    assert one.trials[0].state is TrialState.RUNNING
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        one.tell(0, 3.0)
    assert one.trials[0].value == 2.0  # it learned better
    assert [t.number for t in seen.news()] == [0] and seen.news() == [] and seen.running() == []


def test_a_trial_that_another_took_from_the_queue_is_not_taken(storage: BaseStorage) -> None:
    (one, seen), (two, _) = viewed(storage), viewed(storage)
    one.enqueue_trial({"x": 0.5})
    two.enqueue_trial({"x": -0.5})
    seen.refresh()
    theirs = optuna.load_study(study_name="s", storage=storage).ask()
    mine = one.ask()
    assert (theirs.number, mine.number) == (0, 1)
    assert mine.suggest_float("x", -1, 1) == -0.5


def test_an_attribute_that_was_there_is_replaced(storage: BaseStorage) -> None:
    study, seen = viewed(storage)
    study.enqueue_trial({"x": 0.5}, user_attrs={"key": 1})
    trial = study.ask()
    draw(trial)
    trial.set_user_attr("key", 2)
    seen.flush(trial._trial_id)
    assert storage.get_trial(trial._trial_id).user_attrs == {"key": 2}
    assert storage.get_trial(trial._trial_id).params["x"] == 0.5


def test_a_vector_is_one_transaction(tmp_path: Path) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study, seen = viewed(storage)
    trial = study.ask()
    commits: list[object] = []
    sqlalchemy.event.listen(storage.engine, "commit", commits.append)
    for number in range(40):
        trial.suggest_float(f"x{number}", 0, 1)
    trial.set_user_attr("key", 1)
    assert commits == []
    seen.flush(trial._trial_id)
    assert len(commits) == 1 and len(storage.get_trial(trial._trial_id).params) == 40
