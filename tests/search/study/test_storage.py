"""Storages by their URLs: what is opened, what is refused, and what is never shown."""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage

from espalier.errors import MissingPackage, StorageError, StudyMismatch
from espalier.search.run.search_run import default_storage
from espalier.search.study.keys import PREFIX
from espalier.search.study.storage import (
    absolute,
    check_fingerprint,
    create_study,
    find_study,
    open_storage,
    redact,
)

# -------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("url", "kind", "file"),
    [
        ("sqlite:///{}/study.db", RDBStorage, "study.db"),
        ("{}/study.db", RDBStorage, "study.db"),
        ("{}/study.sqlite3", RDBStorage, "study.sqlite3"),
        ("sqlite:///{}/odd{{name}}.db", RDBStorage, "odd{name}.db"),
        ("journal:///{}/anything", JournalStorage, "anything"),
        ("{}/study.log", JournalStorage, "study.log"),
        ("{}/study.journal", JournalStorage, "study.journal"),
    ],
)
def test_files_are_made_opened_and_found_by_their_names(
    url: str, kind: type[optuna.storages.BaseStorage], file: str, tmp_path: Path
) -> None:
    url = url.format(tmp_path)
    with pytest.raises(StorageError, match=r"^there is no storage at .*: the search printed its URL; by default"):
        open_storage(url, create=False)
    assert list(tmp_path.iterdir()) == []
    storage = open_storage(url, create=True)
    assert isinstance(storage, kind) and (tmp_path / file).is_file()
    create_study(storage, "s", {"config": {"a": 1}})
    for again in (url, str(tmp_path / file)):
        found = find_study(open_storage(again, create=False), "s", again)
        assert found is not None and found.user_attrs == {PREFIX + "config": {"a": 1}}


@pytest.mark.parametrize("name", ["a?b", "a%25b", "a#b", "a b", "a@b:c", "ä&=+", "{a}", "%", "[x]"])
def test_the_url_of_a_run_folder_names_its_file_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "study.db"
    file.parent.mkdir()
    url = default_storage(file.parent)
    create_study(open_storage(url, create=True), "s", {"config": {}})
    assert file.is_file() and [path for path in tmp_path.iterdir()] == [file.parent]
    for again in (url, redact(url), absolute(url), str(file), absolute(str(file)), redact(str(file))):
        assert find_study(open_storage(again, create=False), "s", again) is not None, again


def test_a_bare_name_of_a_file_says_what_it_holds(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    create_study(open_storage(f"sqlite:///{plain}", create=True), "s", {"config": {}})
    assert isinstance(open_storage(str(plain), create=False), RDBStorage)
    other = tmp_path / "other"
    create_study(open_storage(f"journal:///{other}", create=True), "s", {"config": {}})
    assert isinstance(open_storage(str(other), create=False), JournalStorage)
    with pytest.raises(StorageError, match=r"'.*/none': a file is named \*\.db for SQLite or \*\.log"):
        open_storage(str(tmp_path / "none"), create=True)


def test_sqlite_is_put_into_wal_mode(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}", create=True)
    assert isinstance(storage, RDBStorage)
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


def test_sqlite_in_memory_is_refused() -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(StorageError, match=r"^SQLite in memory is gone with its first connection: name a file"):
            open_storage(url, create=True)


def _make_study(url: str, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    create_study(open_storage(url, create=True), "s", {"config": {"a": 1}})


def test_drivers_that_begin_at_the_same_moment_make_one_study(url: str) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    drivers = [context.Process(target=_make_study, args=(url, barrier)) for _ in range(3)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert [driver.exitcode for driver in drivers] == [0, 0, 0]
    (summary,) = optuna.get_all_study_summaries(open_storage(url, create=False))
    assert (summary.study_name, summary.user_attrs) == ("s", {PREFIX + "config": {"a": 1}})


# -------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize("name", ["garbage.db", "garbage.log", "garbage"])
def test_a_file_of_something_else_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no database" * 100)
    for create in (False, True):
        with pytest.raises(StorageError, match=r"^cannot open the storage .*garbage.*(not a database|no journal)"):
            open_storage(str(path), create=create)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"this is no database" * 100


def test_looking_into_a_database_of_something_else_makes_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(StorageError, match=r"^there is no storage at sqlite:///.*other.db: the search printed"):
        open_storage(str(path), create=False)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name, why in (("none.db", "unable to open"), ("none.log", "No such file")):
        with pytest.raises(StorageError, match=rf"^cannot open the storage .*nowhere/{name}: .*{why}"):
            open_storage(str(tmp_path / "nowhere" / name), create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        (
            "v2.4.0.a",
            r"was made by an older Optuna, schema v2\.4\.0\.a, and .* `optuna storage upgrade",
        ),
        ("v99.0.0.a", r"was made by a newer Optuna, schema v99\.0\.0\.a, than .*: pip install --upgrade optuna$"),
    ],
)
def test_another_version_of_the_tables_is_refused_in_a_line(revision: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    open_storage(str(path), create=True)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    for create in (False, True):
        with pytest.raises(StorageError, match=message) as caught:
            open_storage(str(path), create=create)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "extra"), [("postgresql://me:sesame@host/db", "postgresql"), ("mysql://me:sesame@host/db", "mysql")]
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in ("psycopg", "pymysql"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(MissingPackage, match=rf"pip install 'espalier\[{extra}\]'") as caught:
        open_storage(url, create=True)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:sesame@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql:///db?user=me&password=sesame", "postgresql:///db?user=me"),
        ("mysql+pymysql://me:ses{a}me@host/db", "mysql+pymysql://me:***@host/db"),
        ("sqlite:///runs/study.db", "sqlite:///runs/study.db"),
        ("runs/study.db", "sqlite:///runs/study.db"),
        ("journal:///runs/study.log", "journal:///runs/study.log"),
        ("me:sesame@host", "the storage given"),
        ("nonsense", "'nonsense'"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:sesame@127.0.0.1:1/db",
        "postgresql://me:{sesame}@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=sesame",
        "postgresql+nodriver://me:sesame@127.0.0.1:1/db",
        "mysql://me:sesame@127.0.0.1:1/db",
        "me:sesame@nonsense",
        "postgresql://me:sesame@127.0.0.1:port/db",
        "journal://me:sesame@host",
    ],
)
@pytest.mark.parametrize("create", [False, True])
def test_a_storage_that_cannot_be_reached_does_not_give_the_password_away(url: str, create: bool) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(url, create=create)
    assert "sesame" not in str(caught.value) and "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- journals


@pytest.mark.parametrize("left", [b'{"op_code":8,"worker_id":"x","trial', b"{", b'{"op_code":8,"worker_id":"x"}'])
def test_half_a_line_of_a_dead_writer_is_cut_off(left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study = create_study(open_storage(str(path), create=True), "s", {"config": {"a": 1}})
    before = path.read_bytes()
    path.write_bytes(before + left)
    assert study.user_attrs == {PREFIX + "config": {"a": 1}}
    study.set_user_attr("later", 2)
    assert path.read_bytes().startswith(before + b'{"op_code":2,')
    for found in (study, find_study(open_storage(str(path), create=False), "s", str(path))):
        assert found is not None and found.user_attrs["later"] == 2


def test_a_journal_with_a_broken_line_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    create_study(open_storage(str(path), create=True), "s", {"config": {}})
    path.write_bytes(path.read_bytes() + b'{"op_co\n{"op_code":4,"study_id":0}\n')
    with pytest.raises(StorageError, match=r"^cannot open the storage .*study.log: .*study.log is damaged \("):
        open_storage(str(path), create=False)


# --------------------------------------------------------------------------------------------------- studies


def test_a_mismatch_names_the_keys_that_differ(url: str) -> None:
    made = {"budget.keep": 0.5, "seed": 0, "gone": 1}
    study = create_study(open_storage(url, create=True), "mine", {"config": {}, "fingerprint": made})
    check_fingerprint(study, dict(made))
    with pytest.raises(
        StudyMismatch, match=r"'mine' was made with other settings: budget.keep was 0.5, now 0.25; "
    ):
        check_fingerprint(study, made | {"budget.keep": 0.25})
    with pytest.raises(StudyMismatch, match=r"gone was 1, now None, new was None, now 2; choose another study"):
        check_fingerprint(study, {"budget.keep": 0.5, "seed": 0, "new": 2})
    with pytest.raises(StudyMismatch, match=r"k4 was None, now 4 and 3 more; "):
        check_fingerprint(study, made | {f"k{number}": number for number in range(8)})


def test_a_study_of_somebody_elses_is_refused(url: str) -> None:
    storage = open_storage(url, create=True)
    foreign = optuna.create_study(study_name="theirs", storage=storage)
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert find_study(storage, "none", url) is None
    with pytest.raises(StorageError, match=r"the study 'theirs' in .* was not made by espalier: choose"):
        find_study(storage, "theirs", url)
    assert len(foreign.trials) == 1


def test_a_study_whose_driver_died_while_making_it_is_made_whole(url: str) -> None:
    storage = open_storage(url, create=True)
    half = optuna.create_study(study_name="mine", storage=storage, direction="maximize")
    half.set_user_attr(PREFIX + "fingerprint", {"seed": 0})
    assert find_study(storage, "mine", url) is None
    create_study(storage, "mine", {"config": {"a": 1}, "fingerprint": {"seed": 1}})
    found = find_study(storage, "mine", url)
    assert found is not None and found.user_attrs[PREFIX + "fingerprint"] == {"seed": 1}
