"""Who is alive, whatever the clocks, names and containers of machines say."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from espalier.errors import StorageError
from espalier.search.progress.reporter import Silent
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study import lease
from espalier.search.study.active_runs import Heartbeat, present
from espalier.search.study.copying import check_idle
from espalier.search.study.keys import DRIVER, RUN
from espalier.search.study.lease import CLOCK_TOLERANCE, LEASE_SECONDS, Lease, Watch, is_gone, leases_of
from espalier.search.study.ledger import Ledger
from espalier.search.study.storage import create_study, open_storage
from espalier.search.tasks.classification.measures import MEASURES

KEY = f"{DRIVER}:a"


def elsewhere(renewed: float, **more: Any) -> dict[str, Any]:
    """A lease of another machine."""
    return {"host": "far", "pid": 1, "machine": "another boot", "started": "5", "renewed": renewed} | more


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return create_study(open_storage(str(tmp_path / "study.db"), create=True), "s", {"config": {}})


# ------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("wrong", [-50_000.0, -600.0, 0.0, 600.0, 50_000.0])
def test_a_lease_lives_while_it_is_renewed_whatever_its_clock_says(wrong: float) -> None:
    clock, there = Clock(), time.time() + wrong
    watch = Watch(clock)
    for _ in range(10):
        assert watch.live({KEY: elsewhere(there)}) == {KEY}
        clock.now += LEASE_SECONDS / 4
        there += LEASE_SECONDS / 4
    assert watch.live({KEY: elsewhere(there)}) == {KEY}
    clock.now += LEASE_SECONDS - 1
    assert watch.live({KEY: elsewhere(there)}) == {KEY}
    clock.now += 2
    assert watch.live({KEY: elsewhere(there)}) == set()
    assert watch.live({KEY: elsewhere(there + 1)}) == {KEY}, "it comes back"
    assert watch.live({KEY: elsewhere(0.0)}) == set(), "it is given back"
    assert watch.live({}) == set()


def test_a_lease_of_long_ago_is_dead_at_first_sight() -> None:
    long_ago = time.time() - CLOCK_TOLERANCE - LEASE_SECONDS
    watch = Watch()
    assert watch.live({KEY: elsewhere(long_ago)}) == set()
    assert watch.live({KEY: elsewhere(long_ago + 15)}) == {KEY}, "but not if its clock is that wrong"


def test_who_looks_once_believes_what_was_signed() -> None:
    found = {KEY: elsewhere(time.time() - 2 * LEASE_SECONDS), KEY + "b": elsewhere(time.time() - 5)}
    assert Watch(believing=True).live(found) == {KEY + "b"}
    assert Watch().live(found) == {KEY, KEY + "b"}


def test_a_driver_whose_clock_is_ahead_does_not_outlive_its_process(
    study: optuna.Study, space: Multipliers
) -> None:
    """Ten minutes ahead: its trial is held while it renews, and for `LEASE_SECONDS` after that."""
    clock = Clock()
    study.set_user_attr(KEY, elsewhere(time.time() + 600))
    trial = study.ask()
    space.suggest(trial)
    trial.set_user_attr(DRIVER, "a")
    with Ledger(
        study, space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=3, clock=clock, max_failures=1
    ) as book:
        first, second = book.ask(), book.ask()
        assert first is not None and second is not None and 0 not in (first.number, second.number)
        assert book.ask() is None
        clock.now += LEASE_SECONDS + 1
        taken = book.ask()
        assert taken is not None and taken.number == 0


ASKED = """
import sys, time
from espalier.search.study.storage import open_storage
import optuna
study = optuna.load_study(study_name="s", storage=open_storage(sys.argv[1], create=False))
study.ask()
print(time.strftime("%z"))
"""


def test_a_trial_asked_for_in_another_time_zone_is_held(url: str, space: Multipliers) -> None:
    study = create_study(open_storage(url, create=True), "s", {"config": {}})
    study.set_user_attr(KEY, elsewhere(time.time()))
    zone = "UTC-14" if time.timezone >= 0 else "UTC+12"  # POSIX: the sign says how far UTC is ahead
    done = subprocess.run(
        [sys.executable, "-c", ASKED, url], env=os.environ | {"TZ": zone}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != time.strftime("%z")
    with Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=4) as book:
        asked = book.ask()
        assert asked is not None and asked.number == 1


def test_an_idle_study_is_told_from_one_whose_clock_is_wrong(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    run = elsewhere(time.time() + 600, since=0.0, stage="", done=0, total=0, unit="", note="")
    study.set_user_attr(f"{RUN}:a", run)
    check_idle(study)  # nobody renews it

    def renewed(*_: object) -> None:
        study.set_user_attr(f"{RUN}:a", run | {"renewed": run["renewed"] + 15})

    monkeypatch.setattr(time, "sleep", renewed)
    with pytest.raises(StorageError, match=r"at work on the study 's': process 1 on far; end it"):
        check_idle(study)


def test_a_clock_that_is_set_back_does_not_end_a_lease(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, watch = Lease(study, DRIVER), Watch()
    for now in (5000.0, 1000.0, 1000.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        mine.renew()
        assert watch.live(leases_of(study.user_attrs)) == {mine.key}


# ---------------------------------------------------------------------------------------------- processes


def gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_process_is_known_by_its_machine_namespace_and_start(study: optuna.Study) -> None:
    mine = Lease(study, DRIVER)
    mine.renew()
    entry = study.user_attrs[mine.key]
    assert not is_gone(entry)
    assert is_gone(entry | {"pid": gone()})
    assert not is_gone(entry | {"pid": gone(), "machine": "the same host, in another container"})
    assert not is_gone(entry | {"host": "renamed"}) and not is_gone(entry | {"pid": 1, "started": None})
    if sys.platform == "linux":
        assert is_gone(entry | {"started": "1"}), "another process has its number now"


@pytest.mark.skipif(sys.platform != "linux", reason="zombies are told by /proc")
def test_a_zombie_is_gone(study: optuna.Study) -> None:
    mine = Lease(study, DRIVER)
    mine.renew()
    child = subprocess.Popen([sys.executable, "-c", ""])
    entry, until = study.user_attrs[mine.key] | {"pid": child.pid, "started": lease.started(child.pid)}, 0
    while not is_gone(entry) and until < 200:
        time.sleep(0.1)
        until += 1
    assert is_gone(entry)
    child.wait()


def test_a_live_driver_in_another_container_of_the_same_name_keeps_its_trial(
    study: optuna.Study, space: Multipliers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has a number that nobody has here."""
    with monkeypatch.context() as patch:
        patch.setattr(lease, "machine", lambda: "same boot, other namespace")
        other = Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=3)
        other._lease._who["pid"] = gone()
        other.renew()
        held = other.ask()
    with Ledger(study, space, SAMPLERS["random"](space, 1), measure=MEASURES["top1"], target=3) as book:
        asked = book.ask()
        assert held is not None and asked is not None and asked.number != held.number


def test_leases_of_the_first_release_are_read() -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    assert Watch().live({KEY: here}) == {KEY}
    assert Watch().live({KEY: here | {"pid": gone()}}) == set()
    assert Watch().live({KEY: here | {"pid": gone(), "host": "far"}}) == {KEY}


# ------------------------------------------------------------------------------------------ what is left behind


def test_leases_that_are_dead_for_long_are_removed(study: optuna.Study) -> None:
    study.set_user_attr(KEY, elsewhere(time.time() - 2 * CLOCK_TOLERANCE))
    study.set_user_attr(f"{RUN}:b", elsewhere(0.0))
    study.set_user_attr(f"{RUN}:c", elsewhere(time.time() - 100, since=0.0, stage="", done=0) | {"total": 0})
    study.set_user_attr("espalier:driver", "no lease")
    with Heartbeat(study, Silent()):
        assert {KEY, f"{RUN}:b"}.isdisjoint(study.user_attrs)
        assert {f"{RUN}:c", "espalier:driver", "espalier:config"} <= study.user_attrs.keys()
        assert len(present(study.user_attrs)) == 1


def test_a_journal_keeps_them_and_nothing_breaks(tmp_path: Path) -> None:
    study = create_study(open_storage(str(tmp_path / "study.log"), create=True), "s", {"config": {}})
    study.set_user_attr(KEY, elsewhere(0.0))
    with Heartbeat(study, Silent()):
        assert KEY in study.user_attrs and len(present(study.user_attrs)) == 1
