"""The names of Optuna that espalier uses without a promise are there, and are what they are taken for."""

from __future__ import annotations

import importlib
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import InMemoryStorage, RDBStorage, get_storage

from espalier import optuna_private
from espalier.optuna_private import (
    FIXED,
    database_of,
    delete_attributes,
    id_of_trial,
    insert_claim,
    insert_vector,
    rename_row,
    storage_of,
    study_id,
)
from espalier.search.study.storage_cache import StorageCache
from espalier.search.study.storage_retry import with_retries

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def database(tmp_path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.fixture
def study(database: RDBStorage) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=database)


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        ("StudyModel", {"study_id", "study_name"}),
        ("StudyUserAttributeModel", {"study_id", "key", "value_json"}),
        ("StudySystemAttributeModel", {"study_id", "key", "value_json"}),
        ("TrialUserAttributeModel", {"trial_id", "key", "value_json"}),
        ("TrialParamModel", {"trial_id", "param_name", "param_value", "distribution_json"}),
    ],
)
def test_a_table_has_its_columns(model: str, columns: set[str]) -> None:
    table = sqlalchemy.inspect(getattr(optuna_private.models, model)).columns
    assert columns <= set(table.keys())


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("StudySystemAttributeModel", {"study_id", "key"}),
        ("TrialUserAttributeModel", {"trial_id", "key"}),
        ("TrialParamModel", {"trial_id", "param_name"}),
    ],
)
def test_there_is_one_row_of_a_key(model: str, key: set[str]) -> None:
    constraints = getattr(optuna_private.models, model).__table__.constraints
    unique = [set(c.columns.keys()) for c in constraints if isinstance(c, sqlalchemy.UniqueConstraint)]
    assert key in unique


def test_a_study_knows_its_storage_and_number(study: optuna.Study, database: RDBStorage) -> None:
    assert storage_of(study).get_study_id_from_name("s") == study_id(study)
    assert study_id(database.get_all_studies()[0]) == study_id(study)


def test_a_trial_knows_its_number_in_the_storage(study: optuna.Study) -> None:
    trial = study.ask()
    assert id_of_trial(trial) == id_of_trial(study.trials[0])
    assert storage_of(study).get_trial(id_of_trial(trial)).number == trial.number


def test_an_enqueued_trial_holds_its_parameters(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.5})
    assert study.trials[0].system_attrs[FIXED] == {"x": 0.5}


def test_what_frozen_studies_are_called() -> None:
    assert importlib.import_module("optuna.study._frozen").FrozenStudy


def test_the_database_is_found_behind_what_wraps_it(study: optuna.Study, database: RDBStorage) -> None:
    for storage in (
        database,
        get_storage(database),
        with_retries(database),
        StorageCache(with_retries(database), study_id(study)),
        storage_of(study),
    ):
        assert database_of(storage) is database
    assert database_of(InMemoryStorage()) is None


def test_without_the_tables_public_calls_do(
    study: optuna.Study, database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_private, "models", None)
    assert database_of(database) is None
    seen = StorageCache(database, study_id(study))
    driver = optuna.load_study(study_name="s", storage=seen)
    trial = driver.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("key", 1)
    seen.flush(id_of_trial(trial))
    assert study.trials[0].params == trial.params != {} and study.trials[0].user_attrs == {"key": 1}


def test_a_row_that_is_there_does_not_take_the_others_with_it(study: optuna.Study, database: RDBStorage) -> None:
    """An answer was lost, and part of it is there from another writer."""
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    frozen = study.trials[0]
    frozen.distributions = frozen.distributions | {"y": frozen.distributions["x"]}
    insert_vector(database, frozen, {"x": 0.1, "y": 0.25}, {"key": 1})
    found = optuna.load_study(study_name="s", storage=RDBStorage(str(database.engine.url))).trials[0]
    assert found.params == frozen.params | {"y": 0.25} and found.user_attrs == {"key": 1}


def test_a_claim_is_made_once(study: optuna.Study, database: RDBStorage) -> None:
    assert [insert_claim(database, study_id(study), "key", value) for value in ({"a": 1}, 2)] == [{"a": 1}] * 2
    assert storage_of(study).get_study_system_attrs(study_id(study)) == {"key": {"a": 1}}


def test_attributes_are_deleted(study: optuna.Study, database: RDBStorage) -> None:
    other = optuna.create_study(study_name="other", storage=database)
    for each in (study, other):
        each.set_user_attr("a", 1)
        each.set_user_attr("b", 2)
    delete_attributes(database, study_id(study), ["a", "none"])
    assert (study.user_attrs, other.user_attrs) == ({"b": 2}, {"a": 1, "b": 2})


def test_a_row_is_renamed_unless_the_name_is_taken(study: optuna.Study, database: RDBStorage) -> None:
    assert rename_row(database, "s", "t")
    optuna.create_study(study_name="s", storage=database)
    assert not rename_row(database, "s", "t")
    assert sorted(found.study_name for found in database.get_all_studies()) == ["s", "t"]


def test_private_names_of_optuna_stand_in_one_module() -> None:
    names = ("._storage", "._study_id", "._trial_id", "optuna.study._", "optuna.storages._", '"fixed_params"')
    for folder in ("search", "agents", "espalier/cli", "espalier/report", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [line for line in lines if any(name in line.replace("self._", "") for name in names)]
            assert found == [], path
