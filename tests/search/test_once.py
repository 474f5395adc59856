"""What a study decides once: one value, whoever else decides it at the same moment."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from espalier.errors import StudyMismatch
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study.keys import PREFIX
from espalier.search.study.ledger import Ledger
from espalier.search.study.storage import check_fingerprint, create_study, find_study, once, open_storage
from espalier.search.tasks.classification.measures import MEASURES

DRIVERS, ROUNDS = 3, 20
_storages = pytest.mark.storages


@pytest.fixture(
    params=["sqlite", "journal", *(pytest.param(kind, marks=_storages) for kind in ("postgresql", "mysql"))]
)
def shared_url(request: pytest.FixtureRequest, storage_of: Callable[[str], str]) -> str:
    """A storage that is empty, of each kind that processes can share."""
    return storage_of(request.param)


def together(work: Callable[..., Any], url: str) -> list[Any]:
    """What so many processes give that begin at the same moment."""
    context = multiprocessing.get_context("fork")
    barrier, given = context.Barrier(DRIVERS), context.Queue()
    drivers = [context.Process(target=_report, args=(work, url, barrier, given)) for _ in range(DRIVERS)]
    for driver in drivers:
        driver.start()
    found = [given.get(timeout=60) for _ in drivers]
    for driver in drivers:
        driver.join(60)
    assert [driver.exitcode for driver in drivers] == [0] * DRIVERS
    return found


def _report(work: Callable[..., Any], url: str, barrier: Barrier, given: Queue[Any]) -> None:
    given.put(work(url, barrier))


def _decide(url: str, barrier: Barrier) -> list[int]:
    study = find_study(open_storage(url, create=False), "s", url)
    assert study is not None
    decided = []
    for number in range(ROUNDS):
        barrier.wait(60)
        decided.append(once(study, f"value:{number}", lambda: {"of": os.getpid()})["of"])
    return decided


def test_drivers_that_decide_at_the_same_moment_go_on_with_one_value(shared_url: str) -> None:
    create_study(open_storage(shared_url, create=True), "s", {"config": {}})
    first, *others = together(_decide, shared_url)
    assert others == [first] * (DRIVERS - 1)
    study = find_study(open_storage(shared_url, create=False), "s", shared_url)
    assert study is not None
    assert [study.user_attrs[f"{PREFIX}value:{number}"]["of"] for number in range(ROUNDS)] == first


def _make(url: str, barrier: Barrier) -> tuple[str, int]:
    storage = open_storage(url, create=True)
    mine, mismatches = {"seed": os.getpid()}, 0
    for number in range(ROUNDS):
        barrier.wait(60)
        assert find_study(storage, f"s{number}", url) is None
        barrier.wait(60)
        study = create_study(storage, f"s{number}", {"config": mine, "fingerprint": mine})
        assert study.user_attrs[PREFIX + "config"] == study.user_attrs[PREFIX + "fingerprint"]
        try:
            check_fingerprint(study, mine)
        except StudyMismatch:
            mismatches += 1
    return "mismatches", mismatches


def test_of_drivers_with_other_settings_that_make_a_study_at_the_same_moment_one_goes_on(shared_url: str) -> None:
    open_storage(shared_url, create=True)
    found = together(_make, shared_url)
    assert sum(mismatches for _, mismatches in found) == (DRIVERS - 1) * ROUNDS


def _begin(url: str, barrier: Barrier, space: Multipliers) -> int:
    study = find_study(open_storage(url, create=False), "s", url)
    assert study is not None
    barrier.wait(60)
    with Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=9) as book:
        book.enqueue([space.greedy_params()[0] | {"conv1": 0.5}])
        barrier.wait(60)  # all are at work while any may still enqueue
    return 0


def test_drivers_that_begin_at_the_same_moment_enqueue_greedy_pruning_once(
    shared_url: str, space: Multipliers
) -> None:
    study = create_study(open_storage(shared_url, create=True), "s", {"config": {}})
    together(partial(_begin, space=space), shared_url)
    first = [*space.greedy_params(), space.greedy_params()[0] | {"conv1": 0.5}]
    waiting = [trial.system_attrs["fixed_params"] for trial in study.trials]
    assert sorted(waiting, key=str) == sorted(first, key=str)


def test_what_a_driver_claimed_and_did_not_enqueue_another_does(space: Multipliers) -> None:
    study = create_study(InMemoryStorage(), "s", {"config": {}})
    dead = Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dead._study, "enqueue_trial", lambda params: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dead.__enter__()
    dead.abandon()
    dead._lease.give_back()
    with Ledger(study, space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=9):
        assert len(study.trials) == len(space.greedy_params())


def test_a_study_of_one_objective_is_no_front() -> None:
    storage = InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    with pytest.raises(StudyMismatch, match=r"^the study 's' was begun with another budget.front: choose another"):
        create_study(storage, "s", {"config": {}}, front=True)


def test_a_driver_that_died_before_it_wrote_its_value_down_has_decided_it(
    storage_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (storage_of("sqlite"), storage_of("journal")):
        study = create_study(open_storage(url, create=True), "s", {"config": {}})
        with monkeypatch.context() as patch:
            patch.setattr(study, "set_user_attr", lambda key, value: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                once(study, "precision", lambda: "bf16")
        assert PREFIX + "precision" not in study.user_attrs
        assert once(study, "precision", lambda: "fp32") == "bf16" == study.user_attrs[PREFIX + "precision"]


def test_what_an_older_version_decided_holds(tmp_path: Path) -> None:
    study = create_study(open_storage(str(tmp_path / "study.db"), create=True), "s", {"config": {}})
    study.set_user_attr(PREFIX + "precision", "bf16")
    assert once(study, "precision", lambda: "fp32") == "bf16"
