"""Optuna storages by their URLs, and the studies of espalier in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection

from espalier.errors import EspalierError, StorageError, StudyMismatch

PREFIX = "espalier:"
"""Of the names of attributes that espalier sets."""


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
    if differing := differences(study.user_attrs[PREFIX + "fingerprint"], wanted):
        raise StudyMismatch(
            f"the study {study.study_name!r} was made with other settings: {differing}; "
            "choose another --study name, or resume it as it was with `espalier resume`"
        )


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Up to five differences of two fingerprints, in words; empty where there are none."""
    differing = [key for key in sorted(made.keys() | wanted.keys()) if made.get(key) != wanted.get(key)]
    shown = ", ".join(f"{key} was {made.get(key)!r}, now {wanted.get(key)!r}" for key in differing[:5])
    return shown + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")


def keep(study: optuna.Study, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """An attribute of the study, made where nobody has yet: of two drivers that make it at a time, one is heard."""
    key = PREFIX + name
    if key not in study.user_attrs:
        made = make()
        if key not in study.user_attrs:  # another driver may have been quicker
            study.set_user_attr(key, made)
    kept: dict[str, Any] = study.user_attrs[key]
    return kept
