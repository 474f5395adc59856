"""What a storage holds, and studies as a whole: copied, renamed, deleted, written out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from espalier.errors import StorageError, StudyMismatch
from espalier.search.progress.reporter import Silent
from espalier.search.spaces.candidate import Score
from espalier.search.study.copying import copy_study, delete_study, export, rename_study
from espalier.search.study.keys import CANDIDATE, FAILURE, PREFIX, RESULT, RUN, SCORE
from espalier.search.study.overview import Overview, names_of, overview, overviews
from espalier.search.study.storage import check_fingerprint, create_study, find_study, open_storage

CONFIG = {
    "search": {"trials": 5, "measure": "top1", "sampler": "tpe"},
    "budget": {"keep": 0.25, "max_macs": None},
}
NETWORK = {"macs": 1000, "groups": [["conv1", 8], ["conv2", 32]]}
BEGAN = datetime(2026, 11, 22, 7, 0, 0)


def made(url: str, name: str = "s", trials: int = 4, **attributes: Any) -> optuna.Study:
    """A study with `trials` finished trials two seconds apart, one that failed, and one under way."""
    known = {"config": CONFIG, "network": NETWORK, "fingerprint": {"seed": 0}} | attributes
    study = create_study(open_storage(url, create=True), name, known)
    for number in range(trials):
        score = Score({"top1": 50.0 + number % 3, "cross_entropy": 1.0}, 0.5)
        attributes = {CANDIDATE: f"{number % 2}:{4 + number},16", SCORE: score.to_json()}
        study.add_trial(finished(number, score.measures["top1"], attributes))
    study.add_trial(finished(trials, None, {FAILURE: "RuntimeError: out of luck"}))
    study.ask().set_user_attr("half", True)
    return study


def finished(number: int, value: float | None, attributes: dict[str, Any]) -> optuna.trial.FrozenTrial:
    trial = create_trial(
        state=TrialState.COMPLETE if value is not None else TrialState.FAIL,
        value=value,
        params={"conv1": number / 7, "rung": number % 2},
        distributions={"conv1": FloatDistribution(-3, 3), "rung": IntDistribution(0, 1)},
        user_attrs=attributes,
        system_attrs={"drawn": [1, number]},
        intermediate_values={3: 0.25},
    )
    trial.datetime_start = BEGAN + timedelta(seconds=2 * number)
    trial.datetime_complete = BEGAN + timedelta(seconds=2 * number + 1)
    return trial


def signed(study: optuna.Study, **changes: Any) -> None:
    entry = {"host": socket.gethostname(), "pid": os.getpid(), "since": 0.0, "renewed": time.time()}
    stage = {"stage": "search", "done": 4, "total": 5, "unit": "candidates", "note": ""}
    study.set_user_attr(f"{RUN}:a", entry | stage | changes)


def test_an_overview_says_how_far_a_study_is(url: str) -> None:
    study = made(url)
    found = overview(study)
    assert (found.name, found.state, found.complete, found.target) == ("s", "interrupted", 4, 5)
    assert (found.running, found.failed, found.failures) == (1, 1, ((4, "RuntimeError: out of luck"),))
    assert found.best is not None and (found.best.number, found.best.value) == (2, 52.0)
    assert (found.best.shares, found.best.kept) == ((6 / 8, 0.5), 22 / 40)
    assert (found.measure, found.sampler, found.budget) == ("top1", "tpe", "0.25 of the MACs")
    assert found.rate == pytest.approx(0.5) and found.seconds_left is None
    assert found.runs == () and found.verdict is None


def test_the_state_of_a_study(url: str) -> None:
    study = made(url)
    signed(study)
    found = overview(study)
    assert found.state == "running" and found.seconds_left == pytest.approx(2)
    assert [(run.host, run.pid, run.stage) for run in found.runs] == [(socket.gethostname(), os.getpid(), "search")]
    signed(study, since=time.time())
    assert overview(study).rate is None, "trials of an earlier sitting say nothing of this one"
    signed(study, renewed=0.0)
    assert overview(study).state == "interrupted"
    study.set_user_attr(PREFIX + RESULT, {"trials": 4, "verdict": "better"})
    assert (overview(study).state, overview(study).verdict) == ("interrupted", "better")
    study.set_user_attr(PREFIX + RESULT, {"trials": 5, "verdict": "better"})
    assert overview(study).state == "finished"


def test_a_study_of_a_comparison_is_finished_with_its_trials_and_searched_by_it_alone(url: str) -> None:
    study = made(url, comparison="all")
    assert overview(study).state == "interrupted"
    study.add_trial(finished(9, 1.0, {}))
    assert overview(study).state == "finished"
    with pytest.raises(
        StudyMismatch, match=r"^the study 's' is a part of the comparison 'all', whose command goes on"
    ):
        check_fingerprint(study, {})


def test_the_studies_of_a_storage(url: str) -> None:
    assert overviews(open_storage(url, create=True)) == []
    made(url, "b", fingerprint={"seed": 1})
    create_study(open_storage(url, create=False), "a", {"config": CONFIG, "fingerprint": {"seed": 1}})
    made(url, "c")
    optuna.create_study(study_name="theirs", storage=open_storage(url, create=False))
    a, b, c = overviews(open_storage(url, create=False))
    assert [found.name for found in (a, b, c)] == ["a", "b", "c"]
    assert a.best is None and (a.complete, a.rate) == (0, None)
    assert a.digest == b.digest != c.digest


# -------------------------------------------------------------------------------------------------- copying


def content(study: optuna.Study, whole_seconds: bool) -> Any:
    def moment(time: datetime | None) -> datetime | None:
        return time and time.replace(microsecond=0) if whole_seconds else time

    trials = [
        (
            t.number,
            t.state,
            t.values,
            t.params,
            t.distributions,
            t.user_attrs,
            t.system_attrs,
            t.intermediate_values,
        )
        for t in study.trials
    ]
    times = [(moment(trial.datetime_start), moment(trial.datetime_complete)) for trial in study.trials[:-1]]
    system = study._storage.get_study_system_attrs(study._study_id)
    return study.directions, study.user_attrs, system, trials, times


@pytest.mark.parametrize("front", [False, True])
def test_a_copy_is_the_same_in_any_storage(url: str, tmp_path: Any, front: bool) -> None:
    first, last = f"sqlite:///{tmp_path / 'first.db'}", str(tmp_path / "last.log")
    study = made(first)
    if front:
        study = create_study(open_storage(first, create=False), "s2", {"config": CONFIG}, front=True)
        study.add_trial(create_trial(state=TrialState.COMPLETE, values=[0.5, 100.0]))
        study.ask()
    name = study.study_name
    for source, target in ((first, url), (url, last)):
        opened = open_storage(source, create=False), open_storage(target, create=True)
        assert copy_study(opened[0], name, source, opened[1], name, target, Silent()) == len(study.trials)
        copied = find_study(open_storage(target, create=False), name, target)
        assert copied is not None
        assert content(copied, "mysql" in url) == content(study, "mysql" in url)


def test_a_copy_overwrites_nothing_and_takes_no_study_that_is_at_work(tmp_path: Any) -> None:
    one, other = str(tmp_path / "one.db"), str(tmp_path / "other.log")
    study, kept = made(one), made(other, trials=1)
    storages = open_storage(one, create=False), open_storage(other, create=False)
    before = content(kept, False)
    with pytest.raises(StorageError, match=r"other.log holds a study 's' already, and nothing is overwritten"):
        copy_study(storages[0], "s", one, storages[1], "s", other, Silent())
    assert content(kept, False) == before
    with pytest.raises(StorageError, match=r"there is no study 'none' in .*one.db; it holds s$"):
        copy_study(storages[0], "none", one, storages[1], "s", other, Silent())
    signed(study)
    with pytest.raises(StorageError, match=rf"at work on the study 's': process {os.getpid()} on "):
        copy_study(storages[0], "s", one, storages[1], "new", other, Silent())
    with pytest.raises(StorageError, match=r"at work on the study 's'"):
        delete_study(storages[0], "s", one)
    with pytest.raises(StorageError, match=r"at work on the study 's'"):
        rename_study(storages[0], "s", one, "new", Silent())
    assert names_of(storages[0]) == ["s"] and names_of(storages[1]) == ["s"]


def test_what_an_interrupted_copy_leaves_is_no_study_and_can_be_deleted(tmp_path: Any) -> None:
    class Interrupted(Silent):
        def meter(self, *_: Any) -> Any:
            raise KeyboardInterrupt

    one, other = str(tmp_path / "one.db"), str(tmp_path / "other.db")
    made(one)
    source, target = open_storage(one, create=False), open_storage(other, create=True)
    with pytest.raises(KeyboardInterrupt):
        copy_study(source, "s", one, target, "s", other, Interrupted())
    target.create_new_trial(target.get_study_id_from_name("s"))
    assert names_of(target) == []
    with pytest.raises(StorageError, match="was not made by espalier"):
        find_study(target, "s", other)
    delete_study(target, "s", other)
    assert copy_study(source, "s", one, target, "s", other, Silent()) == 6


def test_a_study_is_renamed_and_deleted(url: str) -> None:
    study = made(url)
    before = content(study, "mysql" in url)
    storage = open_storage(url, create=False)
    rename_study(storage, "s", url, "new", Silent())
    assert names_of(storage) == ["new"]
    renamed = find_study(storage, "new", url)
    assert renamed is not None and content(renamed, "mysql" in url) == before
    optuna.create_study(study_name="theirs", storage=storage)
    with pytest.raises(StorageError, match=r"the study 'theirs' in .* was not made by espalier"):
        delete_study(storage, "theirs", url)
    delete_study(storage, "new", url)
    assert [study.study_name for study in storage.get_all_studies()] == ["theirs"]


# --------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("file", ["study.db", "study.log"])
def test_a_study_is_not_renamed_to_one_that_is_there(file: str, tmp_path: Any) -> None:
    url = str(tmp_path / file)
    made(url)
    made(url, "new", trials=1)
    storage = open_storage(url, create=False)
    with pytest.raises(StorageError, match=r"holds a study 'new' already, and nothing is overwritten"):
        rename_study(storage, "s", url, "new", Silent())
    assert names_of(storage) == ["new", "s"]


def test_a_study_that_a_run_begins_on_while_it_is_copied_keeps_its_name(tmp_path: Any) -> None:
    url = str(tmp_path / "study.log")
    study = made(url)

    class Begun(Silent):
        def meter(self, *args: Any) -> Any:
            signed(study)
            return super().meter(*args)

    storage = open_storage(url, create=False)
    with pytest.raises(StorageError, match=r"^a run began on the study 's' while it was copied: it keeps its name"):
        rename_study(storage, "s", url, "new", Begun())
    assert names_of(storage) == ["s"]


def test_an_export_holds_every_trial(tmp_path: Any) -> None:
    study = made(str(tmp_path / "study.db"))
    rows = list(csv.DictReader(io.StringIO(export(study, "csv"))))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 4 + ["FAIL", "RUNNING"]
    third = rows[2]
    assert (third["number"], float(third["value"]), third["complete"]) == ("2", 52.0, "2026-11-22T07:00:05")
    assert (third["rung"], third["widths.conv1"], third["widths.conv2"]) == ("0", "6", "16")
    assert float(third["params.conv1"]) == 2 / 7 and float(third["score.seconds"]) == 0.5
    assert rows[4]["attributes.failure"] == "RuntimeError: out of luck" and rows[4]["value"] == ""
    whole = json.loads(export(study, "json"))
    assert whole["study"] == "s" and whole["attributes"]["config"] == CONFIG
    assert [trial["values"] for trial in whole["trials"]] == [[50.0], [51.0], [52.0], [50.0], [], []]
    assert whole["trials"][3]["widths"] == {"conv1": 7, "conv2": 16}


def test_a_front_has_two_values(tmp_path: Any) -> None:
    storage = open_storage(str(tmp_path / "study.db"), create=True)
    study = create_study(storage, "s", {"config": CONFIG, "network": NETWORK}, front=True)
    study.add_trial(create_trial(state=TrialState.COMPLETE, values=[0.5, 100.0], user_attrs={CANDIDATE: "0:4,16"}))
    (row,) = csv.DictReader(io.StringIO(export(study, "csv")))
    assert (row["value"], row["macs"]) == ("0.5", "100.0")
    found: Overview = overview(study)
    assert found.best is not None and found.best.value == 0.5


def test_values_that_are_infinite_are_text_in_json(tmp_path: Path) -> None:
    """As of a loss that overflows: JSON has no word for them, and strict readers refuse what Python writes."""
    study = made(f"sqlite:///{tmp_path}/study.db", trials=1)
    study.add_trial(finished(9, -math.inf, {"losses": [math.nan, 1.0]}))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    *_, last = json.loads(export(study, "json"), parse_constant=refuse)["trials"]
    assert last["values"] == ["-inf"] and last["params"]["conv1"] == 9 / 7
