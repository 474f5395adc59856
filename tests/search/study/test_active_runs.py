"""Who is at work on a study, and what at."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from espalier.search.progress.reporter import Silent
from espalier.search.study.active_runs import Heartbeat, present
from espalier.search.study.keys import RUN
from espalier.search.study.storage import create_study, open_storage


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return create_study(open_storage(str(tmp_path / "study.db"), create=True), "s", {"config": {}})


def test_a_run_is_there_while_it_lasts_and_says_what_it_does(study: optuna.Study) -> None:
    with Heartbeat(study, Silent(), every=0.1) as reporter:
        (run,) = present(study.user_attrs)
        assert (run.host, run.pid, run.stage) == (socket.gethostname(), os.getpid(), "")
        with reporter.meter("oicsr_gl 0.01", 500, "steps", done=3) as meter:
            (run,) = present(study.user_attrs)
            assert (run.stage, run.done, run.total, run.unit) == ("oicsr_gl 0.01", 3, 500, "steps")
            meter.update(70, "loss 0.123")
            deadline = time.monotonic() + 20
            while not run.note and time.monotonic() < deadline:
                time.sleep(0.05)
                (run,) = present(study.user_attrs)
            assert (run.done, run.note) == (70, "loss 0.123") and run.age < 20
        with Heartbeat(study, Silent()):
            assert len(present(study.user_attrs)) == 2
    assert present(study.user_attrs) == []


def test_a_run_whose_process_is_gone_is_not_there(study: optuna.Study) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    entry = {"host": socket.gethostname(), "pid": gone.pid, "renewed": time.time(), "stage": "search", "since": 0.0}
    study.set_user_attr(RUN + ":x", entry | {"done": 1, "total": 2, "unit": "candidates", "note": ""})
    assert present(study.user_attrs) == []
    study.set_user_attr(RUN + ":x", study.user_attrs[RUN + ":x"] | {"host": "another-machine"})
    assert [run.host for run in present(study.user_attrs)] == ["another-machine"]


def test_a_storage_that_is_gone_ends_nothing(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise sqlalchemy.exc.OperationalError("", {}, Exception("gone"))

    monkeypatch.setattr(study, "set_user_attr", gone)
    with Heartbeat(study, Silent()) as reporter, reporter.meter("search", 5, "candidates") as meter:
        meter.update(1)
