"""Optuna storages by their URLs, and the studies of espalier in them.

| URL | what it is |
|---|---|
| ``sqlite:///study.db``, ``study.db`` | a SQLite file, for drivers on one machine |
| ``journal:///study.log``, ``study.log`` | a journal file of Optuna's, which may lie on NFS |
| ``postgresql://user@host/database`` | PostgreSQL, with the extra ``postgresql`` |
| ``mysql://user@host/database`` | MySQL or MariaDB, with the extra ``mysql`` |

Three slashes and a path are a path from here, four an absolute one, as SQLAlchemy has it.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection

from espalier.errors import EspalierError, MissingPackage, StorageError, StudyMismatch
from espalier.optuna_private import database_of, insert_claim, storage_of, study_id
from espalier.search.study.keys import COMPARISON, OLDER, PREFIX

Kept = TypeVar("Kept")

_DATABASES, _JOURNALS = (".db", ".sqlite", ".sqlite3"), (".log", ".journal", ".jsonl")
_SERVERS = {
    "postgresql": ("postgresql+psycopg", "psycopg", "postgresql"),
    "postgres": ("postgresql+psycopg", "psycopg", "postgresql"),
    "mysql": ("mysql+pymysql", "pymysql", "mysql"),
    "mariadb": ("mysql+pymysql", "pymysql", "mysql"),
}
"""Scheme of a URL that names no driver -> what SQLAlchemy calls it, the driver's module, the extra that has it."""
_CONNECT_SECONDS = 15
_PAUSES = (0.1, 0.3, 1.0)
"""Seconds to wait where another driver is making the tables at the same moment."""


def redact(url: str) -> str:
    """A storage URL without its password, for messages."""
    try:
        parsed = _parsed(url)
    except StorageError:
        return "the storage given" if "@" in url else repr(url)
    if isinstance(parsed, Path):
        return url
    secret = [key for key in parsed.query if "pass" in key.lower()]
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)


def absolute(url: str) -> str:
    """The URL of a storage, as processes that start in other folders of this machine can open it.

    Raises:
        StorageError: it means no storage.
    """
    parsed = _parsed(url)
    if isinstance(parsed, Path):
        return f"journal:///{parsed.resolve()}"
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return url
    return sqlite_url(Path(parsed.database).resolve())


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file, whatever its name: in a URL, ``?``, ``#`` and ``%`` mean something else."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def open_storage(url: str, *, create: bool) -> BaseStorage:
    """Opens an Optuna storage.

    Args:
        url: see the top of this file; SQLite is put into WAL mode.
        create: whether files and tables that do not exist may be made.

    Raises:
        StorageError: it cannot be opened or read; the message holds no password.
        MissingPackage: the driver of a server is not installed.
    """
    try:
        parsed = _parsed(url)
        if isinstance(parsed, Path):
            return _open_journal(parsed, url, create)
        return _open_database(parsed, url, create)
    except EspalierError:
        raise
    except _REFUSALS as error:
        raise StorageError(f"cannot open the storage {redact(url)}: {_first_line(error)}") from error


_REFUSALS = (
    sqlalchemy.exc.SQLAlchemyError,
    optuna.exceptions.OptunaError,
    ImportError,
    RuntimeError,
    ValueError,
    OSError,
)


def check_writable(url: str) -> None:
    """Opens a storage, writes a study into it, and deletes the study; files that were not there are gone again.

    Args:
        url: as of `open_storage`. A server without tables of Optuna's gets them, as a search would make them.

    Raises:
        StorageError: it cannot be opened or written.
        MissingPackage: the driver of a server is not installed.
    """
    parsed = _parsed(url)
    named = parsed if isinstance(parsed, Path) else parsed.database if parsed.drivername == "sqlite" else None
    made = Path(named) if named is not None and not Path(named).exists() else None
    try:
        storage = open_storage(url, create=True)
        try:
            study = storage.create_new_study([StudyDirection.MAXIMIZE], f"espalier-check-{uuid.uuid4().hex}")
            storage.set_study_user_attr(study, PREFIX + "check", True)
            storage.delete_study(study)
        except _REFUSALS as error:
            raise StorageError(f"cannot write to the storage {redact(url)}: {_first_line(error)}") from error
        finally:
            if isinstance(storage, RDBStorage):
                storage.engine.dispose()
    finally:
        for suffix in ("", "-wal", "-shm") if made is not None else ():
            Path(f"{made}{suffix}").unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    inner = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    cause = getattr(inner, "orig", None) or inner
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def _parsed(url: str) -> Path | sqlalchemy.URL:
    """The journal file, or the database, that a URL or a bare path means.

    Raises:
        StorageError: it means neither.
    """
    if not isinstance(url, str):
        raise StorageError(f"a storage is named by a text, as 'sqlite:///study.db', got {url!r}")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _of_bare_path(url)
    if scheme == "journal":
        if not rest.startswith("/") or rest == "/":
            raise StorageError(
                "a journal file is named as journal:///study.log, or journal:////folder/study.log, and not as "
                + ("what was given" if "@" in url else repr(url))
            )
        return Path(rest[1:])
    try:
        return sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # their messages may quote the URL
        raise StorageError(
            f"cannot open the storage {'given' if '@' in url else repr(url)}: a URL reads sqlite:///study.db, "
            "journal:///study.log or postgresql://user@host/database"
        ) from None


def _of_bare_path(url: str) -> Path | sqlalchemy.URL:
    path = Path(url)
    if path.suffix in _DATABASES or _begins_with(path, b"SQLite format 3\0"):
        return sqlalchemy.URL.create("sqlite", database=url)
    if path.suffix in _JOURNALS or path.is_file():
        return path
    raise StorageError(
        f"cannot open the storage {'given' if '@' in url else repr(url)}: a file is named *.db for SQLite or *.log "
        "for a journal, and a URL reads sqlite:///study.db, journal:///study.log or postgresql://user@host/database"
    )


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------- databases


def _open_database(named: sqlalchemy.URL, url: str, create: bool) -> RDBStorage:
    parsed = _with_driver(named, url)
    backend = parsed.get_backend_name()
    options: dict[str, Any] = {"pool_pre_ping": True}
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise StorageError(
                "SQLite in memory is gone with its first connection: name a file, sqlite:///study.db"
            )
        if not create and not Path(str(parsed.database)).is_file():
            raise _nothing_at(url)
        options = {"connect_args": {"timeout": 60}}
    elif backend == "postgresql" and "connect_timeout" not in parsed.query:
        options |= {"connect_args": {"connect_timeout": _CONNECT_SECONDS}}
    if not create:
        _check_tables(parsed, options, url)
    storage = _with_tables(parsed, options, create)
    if backend == "sqlite":
        sqlalchemy.event.listen(storage.engine, "connect", _use_wal)
        storage.engine.dispose()
    _check_schema(storage, url)
    return storage


def _with_driver(named: sqlalchemy.URL, url: str) -> sqlalchemy.URL:
    """The URL with a driver, where espalier has an extra for it.

    Raises:
        MissingPackage: the driver is not installed.
    """
    if named.drivername not in _SERVERS:
        return named
    driver, module, extra = _SERVERS[named.drivername]
    if find_spec(module) is None:
        raise MissingPackage(f"the storage {redact(url)} needs {module}: pip install 'espalier[{extra}]'")
    return named.set(drivername=driver)


def _check_tables(parsed: sqlalchemy.URL, options: dict[str, Any], url: str) -> None:
    """Refuses a database without Optuna's tables: looking into it must not make them."""
    engine = sqlalchemy.create_engine(parsed, **options)
    try:
        if not sqlalchemy.inspect(engine).has_table("studies"):
            raise _nothing_at(url)
    finally:
        engine.dispose()


def _nothing_at(url: str) -> StorageError:
    where = "the search printed its URL; by default it is study.db in the run folder"
    return StorageError(f"there is no storage at {redact(url)}: {where}")


def _with_tables(parsed: sqlalchemy.URL, options: dict[str, Any], create: bool) -> RDBStorage:
    """The storage; another driver that makes the tables at the same moment is waited for."""
    template = (
        parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    )  # Optuna formats it
    for pause in _PAUSES if create else ():
        try:
            return RDBStorage(template, dict(options), skip_compatibility_check=True)
        except (sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            time.sleep(pause)
        except sqlalchemy.exc.OperationalError as error:
            if "already exists" not in str(error):
                raise
            time.sleep(pause)
    return RDBStorage(template, dict(options), skip_compatibility_check=True, skip_table_creation=not create)


def _check_schema(storage: RDBStorage, url: str) -> None:
    found, needed = storage.get_current_version(), storage.get_head_version()
    if found == needed:
        return
    if found in storage.get_all_versions():
        raise StorageError(
            f"the storage {redact(url)} was made by an older Optuna, schema {found}, and Optuna "
            f"{optuna.__version__} needs {needed}: make a backup, then `optuna storage upgrade --storage URL`"
        )
    raise StorageError(
        f"the storage {redact(url)} was made by a newer Optuna, schema {found}, than {optuna.__version__}, which "
        f"knows {needed}: pip install --upgrade optuna"
    )


def _use_wal(connection: Any, _: Any) -> None:
    """Readers and one writer at a time do not block each other; survives a killed process at any moment."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


# ----------------------------------------------------------------------------------------------- journals


def _open_journal(path: Path, url: str, create: bool) -> JournalStorage:
    if not create and not path.is_file():
        raise _nothing_at(url)
    if path.is_file() and path.stat().st_size and not _begins_with(path, _LINE):
        raise StorageError(f"cannot open the storage {redact(url)}: {path} is no journal of Optuna's")
    backend = JournalFileBackend(str(path), lock_obj=_MendingLock(path))
    try:
        return JournalStorage(backend)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot open the storage {redact(url)}: {path} is damaged ({error})") from error


_LINE = b'{"op_code"'
"""How every line of a journal begins."""


class _MendingLock(JournalFileSymlinkLock):
    """Cuts off the part of a line that a writer left which was killed, or whose disk was full.

    Without that the next line would be appended to it, and nobody could read the journal any more.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        """Takes the lock, and sees to it that the file ends with a whole line."""
        acquired = super().acquire()
        try:
            self._mend()
        except BaseException:
            self.release()
            raise
        return acquired

    def _mend(self) -> None:
        with self._path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


# ------------------------------------------------------------------------------------------------ studies


def find_study(storage: BaseStorage, name: str, url: str) -> optuna.Study | None:
    """The study of that name, or None.

    Raises:
        StorageError: it is there, but espalier did not make it.
    """
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    if PREFIX + "config" not in study.user_attrs:
        ours = all(key.startswith(PREFIX) for key in study.user_attrs)
        if ours and not study.trials and study.directions[0] is StudyDirection.MAXIMIZE:
            return None  # its driver died while making it; `create_study` makes it whole
        raise StorageError(f"the study {name!r} in {redact(url)} was not made by espalier: choose another name")
    return study


def create_study(
    storage: BaseStorage, name: str, attributes: dict[str, Any], *, front: bool = False
) -> optuna.Study:
    """A new study with espalier's attributes; the config comes last and marks it whole.

    It maximises the value of candidates, and for a front minimises their MACs as well. Of drivers that make it at
    the same moment all get the first one's attributes: `check_fingerprint` says whether they suit.

    Raises:
        StudyMismatch: another driver has begun it, for a front where this one is not, or conversely.
    """
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE] if front else [StudyDirection.MAXIMIZE]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    if study.directions != directions:
        raise StudyMismatch(f"the study {name!r} was begun with another budget.front: choose another study name")
    made = first(study, "attributes", attributes)
    for key, value in sorted(made.items(), key=lambda item: item[0] == "config"):
        study.set_user_attr(PREFIX + key, value)
    return study


def check_fingerprint(study: optuna.Study, wanted: dict[str, Any]) -> None:
    """Raises StudyMismatch, naming up to five differences, where a study was made with other settings."""
    if (comparison := study.user_attrs.get(PREFIX + COMPARISON)) is not None:
        raise StudyMismatch(
            f"the study {study.study_name!r} is a part of the comparison {comparison!r}, whose command "
            "goes on with it; choose another study name for a search of its own"
        )
    if differing := differences(study.user_attrs[PREFIX + "fingerprint"], wanted):
        raise StudyMismatch(
            f"the study {study.study_name!r} was made with other settings: {differing}; "
            "choose another study name, or resume it as it was"
        )


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Up to five differences of two fingerprints, in words; empty where there are none."""
    made = {key: value for key, value in OLDER.items() if key in wanted} | dict(made)
    differing = [key for key in sorted(made.keys() | wanted.keys()) if made.get(key) != wanted.get(key)]
    shown = ", ".join(_difference(key, made.get(key), wanted.get(key)) for key in differing[:5])
    return shown + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")


def _difference(key: str, made: Any, wanted: Any) -> str:
    if all(isinstance(each, str) and re.fullmatch("[0-9a-f]{16}", each) for each in (made, wanted)):
        return f"{key} is not the same any more"  # of code, weights and data a digest is kept
    return f"{key} was {made!r}, now {wanted!r}"


def once(study: optuna.Study, name: str, make: Callable[[], Kept]) -> Kept:
    """An attribute of the study, made where nobody has yet: of drivers that make it at once, the first decides."""
    key = PREFIX + name
    if key not in study.user_attrs:
        study.set_user_attr(key, first(study, name, make()))
    kept: Kept = study.user_attrs[key]
    return kept


def first(study: optuna.Study, name: str, value: Any) -> Any:
    """The value that was first claimed under a name, by whatever process: this one, unless there is another.

    Optuna's attributes are written over, and to look before does not help against a driver that looks at the same
    moment. So each writes a claim that none writes over, in the study's system attributes: in a database a row, of
    which there can be one, and elsewhere, in a journal or in memory, an attribute of its own. The first of those in
    the order in which the storage took them wins. It stays the first, and what was written twice, as an answer
    was lost, counts once. A driver that dies after its claim has decided.
    """
    storage, number, key = storage_of(study), study_id(study), f"{PREFIX}first:{name}"
    retried = getattr(storage, "retried", lambda call, *args: call(*args))
    if (database := database_of(storage)) is not None:
        return retried(insert_claim, database, number, key, value)
    storage.set_study_system_attr(number, f"{key}:{uuid.uuid4().hex}", value)
    claims = storage.get_study_system_attrs(number)
    return next(claims[claim] for claim in claims if claim.rpartition(":")[0] == key)
