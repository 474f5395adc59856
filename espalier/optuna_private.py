"""What espalier uses of Optuna that its documentation does not promise: every such name stands here.

Where a later Optuna lacks one whose loss can be borne, `database_of` finds no database, and its callers use
Optuna's public calls instead.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy
import sqlalchemy.orm
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

try:
    from optuna.storages._rdb import models as models
except ImportError:  # pragma: no cover
    models = None  # type: ignore[assignment]
if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy as FrozenStudy

FIXED = "fixed_params"
"""System attribute of a trial that was enqueued: its parameters."""


def storage_of(study: optuna.Study) -> BaseStorage:
    """Where a study is kept."""
    return study._storage


def study_id(study: optuna.Study | FrozenStudy) -> int:
    """Its number in the storage."""
    return study._study_id


def id_of_trial(trial: FrozenTrial | optuna.Trial) -> int:
    """Its number in the storage, which differs from its number in the study."""
    return trial._trial_id


def database_of(storage: BaseStorage) -> RDBStorage | None:
    """The database behind espalier's and Optuna's wrappers, if there is one whose tables are known."""
    found: Any = storage
    while found is not None and not isinstance(found, RDBStorage):
        found = getattr(found, "inner", None) or getattr(found, "_backend", None)
    return found if models is not None else None


# ------------------------------------------------------------------------------------------ rows of a database


def insert_vector(
    database: RDBStorage, trial: FrozenTrial, params: Mapping[str, Any], attributes: Mapping[str, Any]
) -> None:
    """Writes parameters and attributes that a trial has not got, in one transaction; what it has got, stays."""
    rows = [
        models.TrialParamModel(
            trial_id=id_of_trial(trial),
            param_name=name,
            param_value=trial.distributions[name].to_internal_repr(value),
            distribution_json=distribution_to_json(trial.distributions[name]),
        )
        for name, value in params.items()
    ]
    rows += [
        models.TrialUserAttributeModel(trial_id=id_of_trial(trial), key=key, value_json=json.dumps(value))
        for key, value in attributes.items()
    ]
    if not _insert(database, rows):
        for row in rows:  # some are there already: the others must not be lost with them
            sqlalchemy.orm.make_transient(row)
            _insert(database, [row])


def insert_claim(database: RDBStorage, study: int, key: str, value: Any) -> Any:
    """Writes a system attribute of a study, unless it is there; what it is then.

    Optuna itself would write over it. The database allows one row of a key, so that of two writers one fails.
    """
    model = models.StudySystemAttributeModel
    _insert(database, [model(study_id=study, key=key, value_json=json.dumps(value))])
    with sqlalchemy.orm.Session(database.engine) as session:
        found = session.query(model).filter(model.study_id == study, model.key == key).one()
        return json.loads(str(found.value_json))


def delete_attributes(database: RDBStorage, study: int, keys: Collection[str]) -> None:
    """Deletes user attributes of a study, for which Optuna has no call."""
    model = models.StudyUserAttributeModel
    with sqlalchemy.orm.Session(database.engine) as session:
        session.query(model).filter(model.study_id == study, model.key.in_(keys)).delete()
        session.commit()


def rename_row(database: RDBStorage, name: str, new: str) -> bool:
    """Gives a study another name, for which Optuna has no call; whether that was free."""
    with sqlalchemy.orm.Session(database.engine) as session:
        try:
            session.query(models.StudyModel).filter(models.StudyModel.study_name == name).update(
                {"study_name": new}
            )
            session.commit()
        except sqlalchemy.exc.IntegrityError:
            session.rollback()
            return False
    return True


def _insert(database: RDBStorage, rows: Collection[Any]) -> bool:
    """Whether the rows were written: none is where one of them is there already."""
    with sqlalchemy.orm.Session(database.engine) as session:
        session.add_all(rows)
        try:
            session.commit()
        except sqlalchemy.exc.IntegrityError:
            session.rollback()
            return False
    return True
