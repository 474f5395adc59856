"""Whole searches on every kind of storage, by one driver and by two, counted in the storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from espalier.search.study.storage import find_study, open_storage
from tests.notebooks import check_run

pytestmark = [pytest.mark.storages, pytest.mark.timeout(600)]

TRIALS = 48
"""Few enough that drivers read the study anew for each proposal."""
SECRET = "open-sesame"
"""The password of the servers that these tests start."""


@pytest.fixture(scope="module")
def home(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, and a run folder whose ladder is there."""
    folder = tmp_path_factory.mktemp("home")
    content: dict[str, Any] = yaml.safe_load(tiny_text)
    content["search"] |= {"trials": 2, "finalists": 1, "scoring_images": 300, "calibration_images": 256}
    content["finetune"] |= {"seeds": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = start(folder, "search", "tiny.yaml", "--out", "first")
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0, said
    return folder


def start(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "espalier", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def search(
    home: Path, folder: Path, *more: str, drivers: int = 1, environment: Mapping[str, str] | None = None
) -> str:
    """Runs so many drivers at once, each with a run folder of its own; what they said."""
    running = []
    for number in range(drivers):
        out = folder / f"run{number}"
        shutil.copytree(home / "first" / "ladder", out / "ladder")
        config = [str(home / "tiny.yaml"), f"search.trials={TRIALS}"]
        running.append(
            start(folder, "search", *config, "--study", "s", "--out", str(out), *more, environment=environment)
        )
    said = ""
    for driver in running:
        said += driver.communicate(timeout=500)[0]
        assert driver.returncode == 0, said
    return said


def study_in(url: str) -> optuna.Study:
    found = find_study(open_storage(url, create=False), "s", url)
    assert found is not None
    return found


def check_counts(trials: list[FrozenTrial], wanted: int) -> None:
    """Exactly so many are COMPLETE, none is under way, and no candidate was evaluated after its score was known."""
    assert [trial.number for trial in trials] == list(range(len(trials)))
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert len(complete) == wanted
    assert all(trial.state in (TrialState.COMPLETE, TrialState.FAIL) for trial in trials)
    by_key: dict[str, list[FrozenTrial]] = {}
    for trial in complete:
        by_key.setdefault(trial.user_attrs["espalier:candidate"], []).append(trial)
    for same in by_key.values():
        seconds = {trial.user_attrs["espalier:score"]["seconds"] for trial in same}
        if len(seconds) > 1:  # two drivers at the same moment: asked for before the other's score was read
            first = min(trial.datetime_complete for trial in same if trial.datetime_complete)
            starts = [trial.datetime_start for trial in same if trial.datetime_start]
            assert sum(start < first + timedelta(seconds=1) for start in starts) >= len(seconds)


@pytest.fixture(params=["sqlite", "journal", "postgresql", "mysql"])
def any_url(request: pytest.FixtureRequest, storage_of: Any) -> str:
    """A storage that is empty, of each kind."""
    return str(storage_of(request.param))


def test_one_driver_counts_every_trial_once(home: Path, any_url: str, tmp_path: Path) -> None:
    search(home, tmp_path, "--storage", any_url, "--workers", "0")
    trials = study_in(any_url).trials
    check_counts(trials, TRIALS)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    result = json.loads((tmp_path / "run0" / "result.json").read_text())
    assert result["trials"] == TRIALS


def test_two_drivers_share_a_study(home: Path, any_url: str, tmp_path: Path) -> None:
    search(home, tmp_path, "--storage", any_url, "--workers", "0", drivers=2)
    trials = study_in(any_url).trials
    check_counts(trials, TRIALS)
    assert len({trial.user_attrs["espalier:driver"] for trial in trials}) == 2
    for number in range(2):
        assert json.loads((tmp_path / f"run{number}" / "result.json").read_text())["trials"] == TRIALS


def test_the_tutorial_on_postgresql_runs(storage_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(storage_of("postgresql"))
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("OPTUNA_STORAGE", url.replace(f":{SECRET}@", "@"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check_run("postgresql", tmp_path)


# ------------------------------------------------------------------------------------------------ passwords


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray writes; its sockets want a short path."""
    with tempfile.TemporaryDirectory(prefix="espalier-ray-") as folder:
        yield Path(folder)


@pytest.mark.distributed
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_search_on_ray_writes_no_password_anywhere(
    home: Path, given: str, storage_of: Any, tmp_path: Path, ray_folder: Path
) -> None:
    url = str(storage_of("postgresql"))
    assert SECRET in url
    environment = {"RAY_TMPDIR": str(ray_folder), "TMPDIR": str(ray_folder)}
    if given == "option":
        said = search(home, tmp_path, "--storage", url, "--workers", "2", environment=environment)
    else:
        said = search(home, tmp_path, "--workers", "2", environment=environment | {"OPTUNA_STORAGE": url})
    check_counts(study_in(url).trials, TRIALS)
    assert ":***@" in said and SECRET not in said
    assert list(ray_folder.rglob("*.log")) or list(ray_folder.rglob("*.out")), "Ray wrote its logs here"
    for folder in (tmp_path, ray_folder):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    exported = start(tmp_path, "study", "export", "s", "--format", "json", environment={"OPTUNA_STORAGE": url})
    text, _ = exported.communicate(timeout=100)
    assert json.loads(text)["study"] == "s" and SECRET not in text


# -------------------------------------------------------------------------------------- from one to the next


def test_a_search_moves_from_a_journal_to_postgresql_and_goes_on_elsewhere(
    home: Path, storage_of: Any, tmp_path: Path
) -> None:
    """Without its run folder, with more trials and other workers: the trials of a search in one piece."""
    journal, server = str(tmp_path / "study.log"), str(storage_of("postgresql"))
    config = str(home / "tiny.yaml")
    said = succeed(tmp_path, "search", config, "search.trials=8", "--storage", journal, "--study", "s")
    before = study_in(journal).trials
    check_counts(before, 8)
    shutil.rmtree(tmp_path / "runs")
    said += succeed(tmp_path, "storage", "copy", journal, server)
    said += succeed(tmp_path, "resume", "--study", "s", "--storage", server, "--trials", "+12", "--workers", "1")
    trials = study_in(server).trials
    check_counts(trials, 20)
    assert [(t.number, t.params, t.value, t.user_attrs) for t in trials[:8]] == [
        (t.number, t.params, t.value, t.user_attrs) for t in before
    ]
    succeed(tmp_path, "search", config, "search.trials=20", "--storage", "whole.db", "--study", "s")
    wanted = study_in(str(tmp_path / "whole.db")).trials
    assert [(t.params, t.value) for t in trials] == [(t.params, t.value) for t in wanted]
    assert "trained again" in said and SECRET not in said


def succeed(folder: Path, *arguments: str) -> str:
    command = start(folder, *arguments)
    said, _ = command.communicate(timeout=400)
    assert command.returncode == 0, said
    return said
