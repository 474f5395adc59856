"""The ledger: how often a candidate is counted, evaluated and told, whatever dies in between."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from espalier.errors import EspalierError
from espalier.search.cluster.in_process import search_in_process
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.study.keys import CANDIDATE, DRIVER, SCORE
from espalier.search.study.lease import LEASE_SECONDS, Lease
from espalier.search.study.ledger import MAX_FAILURES, Ledger, Proposal
from espalier.search.study.storage import create_study, find_study, open_storage
from espalier.search.tasks.classification.measures import MEASURES


class Calls:
    """A scorer that remembers what it was asked; wide networks score best."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, candidate: Candidate) -> Score:
        self.keys.append(candidate.key)
        return score_of(candidate)


class Meters:
    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def update(self, done: int, note: str = "", values: object = None) -> None:
        self.seen.append((done, note))


def score_of(candidate: Candidate) -> Score:
    return Score({"top1": 50.0, "cross_entropy": 1 + (sum(candidate.widths) * 31 % 97) / 97 + candidate.rung}, 0.01)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield


def open_study(url: str) -> optuna.Study:
    storage = open_storage(url, create=True)
    return find_study(storage, "s", url) or create_study(storage, "s", {"config": {"a": 1}})


def ledger(study: optuna.Study, space: Multipliers, target: int, sampler: str = "random", seed: int = 0) -> Ledger:
    return Ledger(study, space, SAMPLERS[sampler](space, seed), measure=MEASURES["cross_entropy"], target=target)


def search(book: Ledger, evaluate: Callable[[Candidate], Score]) -> None:
    search_in_process(book, evaluate, Meters())  # type: ignore[arg-type]


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials()]


def kill(book: Ledger) -> None:
    """What a dead driver leaves behind: a lease of a process that is gone."""
    book.abandon()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lease = {"host": socket.gethostname(), "pid": gone.pid, "renewed": time.time()}
    book._study.set_user_attr(f"{DRIVER}:{book._driver}", lease)


# ---------------------------------------------------------------------------------------------- counting


def test_the_target_is_met_exactly_and_greedy_comes_first(url: str, space: Multipliers) -> None:
    study, calls = open_study(url), Calls()
    with ledger(study, space, target=9) as book:
        search(book, calls)
        assert book.ask() is None
        assert book.complete == 9
    assert states(study) == [TrialState.COMPLETE] * 9
    records = book.records()
    assert [record.number for record in records] == list(range(9))
    assert [record.candidate for record in records[:2]] == [
        space.decode(params) for params in space.greedy_params()
    ]
    assert all(record.score == score_of(record.candidate) for record in records)
    assert all(record.value == -record.score.measures["cross_entropy"] for record in records)
    assert book.best().value == max(record.value for record in records)


def test_a_finished_study_evaluates_nothing_and_more_trials_are_added(url: str, space: Multipliers) -> None:
    with ledger(open_study(url), space, target=4) as book:
        search(book, Calls())
    before = book.records()
    calls = Calls()
    with ledger(open_study(url), space, target=4) as again:
        search(again, calls)
    assert calls.keys == [] and again.records() == before
    with ledger(open_study(url), space, target=7) as more:
        search(more, calls)
    assert len(calls.keys) == 3 and more.records()[:4] == before and more.complete == 7


def test_in_parts_or_at_once_the_trials_are_the_same(tmp_path: Path, space: Multipliers) -> None:
    urls = [f"sqlite:///{tmp_path / name}" for name in ("whole.db", "parts.db")]
    with ledger(open_study(urls[0]), space, 14, "tpe") as whole:
        search(whole, Calls())
    for target in (3, 11, 14):
        with ledger(open_study(urls[1]), space, target, "tpe") as parts:
            search(parts, Calls())
    assert parts.records() == whole.records()


def test_the_measure_says_what_is_maximised(url: str, space: Multipliers) -> None:
    score = Score({"top1": 61.5, "cross_entropy": 1.25}, 0)
    assert (score.value(MEASURES["top1"]), score.value(MEASURES["cross_entropy"])) == (61.5, -1.25)
    book = Ledger(open_study(url), space, SAMPLERS["random"](space, 0), measure=MEASURES["top1"], target=2)
    with book:
        search(book, lambda candidate: score)
    assert [record.value for record in book.records()] == [61.5, 61.5]


def test_the_earliest_of_equals_is_best(url: str, space: Multipliers) -> None:
    with ledger(open_study(url), space, 5) as book:
        search(book, lambda candidate: Score({"top1": 1.0, "cross_entropy": 1.0}, 0.0))
        assert book.best().number == 0


def test_progress_is_told_with_the_best_so_far(url: str, space: Multipliers) -> None:
    meters = Meters()
    with ledger(open_study(url), space, 4) as book:
        search_in_process(book, Calls(), meters)  # type: ignore[arg-type]
    assert [done for done, _ in meters.seen] == [1, 2, 3, 4, 4]
    best = book.best()
    shown = -best.value  # a loss, as it is
    assert meters.seen[-1][1] == f"best {shown:.4f} (trial {best.number})"


# -------------------------------------------------------------------------------------------- duplicates


class SameAgain(BaseSampler):
    """Proposes the middle of every range, whatever came before."""

    def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return (param_distribution.low + param_distribution.high) // 2 if param_name == "rung" else 0.0

    @classmethod
    def candidate(cls, space: Multipliers) -> Candidate:
        """What it proposes."""
        middle = {
            name: cls().sample_independent(None, None, name, distribution)
            for name, distribution in space.distributions().items()
        }
        return space.decode(middle)


class NowAndThen(SameAgain):
    """The same in trials of even numbers, anything else in the others."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if trial.number % 2 == 0:
            return super().sample_independent(study, trial, param_name, param_distribution)
        rng = np.random.default_rng([trial.number, sum(map(ord, param_name))])
        if param_name == "rung":
            return int(rng.integers(param_distribution.low, param_distribution.high + 1))
        return float(rng.uniform(param_distribution.low, param_distribution.high))


def test_a_duplicate_is_told_its_known_score_and_not_evaluated(url: str, space: Multipliers) -> None:
    study, calls = open_study(url), Calls()
    with Ledger(study, space, SameAgain(), measure=MEASURES["cross_entropy"], target=6) as book:
        search(book, calls)
    assert len(calls.keys) == len(set(calls.keys)) == 2
    assert book.complete == 6
    assert len({record.candidate for record in book.records()}) == 2
    assert {record.value for record in book.records()[2:]} == {book.records()[0].value}


def test_scores_of_an_earlier_driver_are_known(url: str, space: Multipliers) -> None:
    with Ledger(open_study(url), space, SameAgain(), measure=MEASURES["cross_entropy"], target=2) as book:
        search(book, Calls())
    calls = Calls()
    with Ledger(open_study(url), space, SameAgain(), measure=MEASURES["cross_entropy"], target=5) as book:
        search(book, calls)
    assert calls.keys == [] and book.complete == 5


def test_a_duplicate_of_what_is_being_evaluated_waits_for_its_score(url: str, space: Multipliers) -> None:
    study = open_study(url)
    with Ledger(study, space, NowAndThen(), measure=MEASURES["cross_entropy"], target=9) as book:
        held = []
        while (proposal := book.ask()) is not None:
            held.append(proposal)
        assert len({proposal.candidate for proposal in held}) == len(held) < 9
        waiting = {*range(9)} - {proposal.number for proposal in held}
        (twice,) = (each for each in held if each.candidate == SameAgain.candidate(space))
        book.tell(twice, score_of(twice.candidate))
        told = {number for number, state in enumerate(states(study)) if state is TrialState.COMPLETE}
        assert told == waiting | {twice.number} and len(waiting) >= 2
        for proposal in held:
            book.tell(proposal, score_of(proposal.candidate))
    assert states(study) == [TrialState.COMPLETE] * 9
    assert {book.records()[number].value for number in told} == {
        -score_of(twice.candidate).measures["cross_entropy"]
    }


def test_a_duplicate_of_what_fails_fails_with_it_and_is_replaced(url: str, space: Multipliers) -> None:
    study, calls = open_study(url), Calls()
    with Ledger(study, space, NowAndThen(), measure=MEASURES["cross_entropy"], target=7) as book:
        first = [book.ask() for _ in range(4)]
        assert book.ask() is None  # three wait
        for proposal in first:
            assert proposal is not None
            if proposal.candidate == SameAgain.candidate(space):
                book.fail(proposal, "its worker died")
            else:
                book.tell(proposal, calls(proposal.candidate))
        failed = states(study).count(TrialState.FAIL)
        assert failed >= 2
        search(book, calls)
    assert states(study).count(TrialState.COMPLETE) == 7 and states(study).count(TrialState.FAIL) == failed


# ---------------------------------------------------------------------------------------------- failures


def test_nan_is_a_failure_and_another_candidate_is_asked_for(url: str, space: Multipliers) -> None:
    study = open_study(url)
    calls = Calls()

    def evaluate(candidate: Candidate) -> Score:
        score = calls(candidate)
        return Score({"top1": score.measures["top1"]}, 0.0) if len(calls.keys) in (2, 5) else score

    with ledger(study, space, 6) as book:
        search(book, evaluate)
    assert [number for number, state in enumerate(states(study)) if state is TrialState.FAIL] == [1, 4]
    assert states(study).count(TrialState.COMPLETE) == 6 and len(states(study)) == 8


@pytest.mark.timeout(30)
def test_a_network_that_only_gives_nan_ends_the_search(url: str, space: Multipliers) -> None:
    with ledger(open_study(url), space, 4) as book:
        with pytest.raises(EspalierError, match=rf"^{MAX_FAILURES} candidates failed, the last one with: .*NaN"):
            search(book, lambda candidate: Score({"top1": 10.0}, 0.0))


@pytest.mark.timeout(30)
def test_a_known_nan_ends_the_search_too(url: str, space: Multipliers) -> None:
    with Ledger(open_study(url), space, SameAgain(), measure=MEASURES["cross_entropy"], target=4) as book:
        with pytest.raises(EspalierError, match=rf"^{MAX_FAILURES} trials in a row failed, .*NaN"):
            search(book, lambda candidate: Score({"top1": 10.0}, 0.0))


def test_one_candidate_that_fails_again_and_again_is_one(url: str, space: Multipliers) -> None:
    """A sampler that likes it may propose it often, as long as others come between."""
    bad, study = SameAgain.candidate(space), open_study(url)

    def evaluate(candidate: Candidate) -> Score:
        return Score({"top1": 10.0}, 0.0) if candidate == bad else score_of(candidate)

    with Ledger(study, space, NowAndThen(), measure=MEASURES["cross_entropy"], target=20, max_failures=3) as book:
        search(book, evaluate)
    assert states(study).count(TrialState.COMPLETE) == 20 and states(study).count(TrialState.FAIL) >= 5


def test_greedy_pruning_that_failed_is_tried_again_by_the_next_run(url: str, space: Multipliers) -> None:
    greedy, calls = {candidate.key for candidate in space.greedy_candidates()}, Calls()

    def evaluate(candidate: Candidate) -> Score:
        if candidate.key in greedy and len(calls.keys) < len(greedy):
            calls.keys.append(candidate.key)
            raise RuntimeError("out of memory")
        return calls(candidate)

    with ledger(open_study(url), space, 4) as book:
        search(book, evaluate)
    assert not greedy & {record.candidate.key for record in book.records()} and book.complete == 4
    with ledger(open_study(url), space, 4) as book:
        search(book, calls)
    assert greedy <= {record.candidate.key for record in book.records()}
    assert book.complete == 4 + len(greedy)
    before = len(calls.keys)
    with ledger(open_study(url), space, 4) as book:
        search(book, calls)
    assert len(calls.keys) == before and book.complete == 4 + len(greedy)


def test_a_candidate_that_cannot_be_scored_is_replaced(url: str, space: Multipliers) -> None:
    study, calls = open_study(url), Calls()

    def evaluate(candidate: Candidate) -> Score:
        if len(calls.keys) == 2:
            calls.keys.append("failed")
            raise RuntimeError("out of luck")
        return calls(candidate)

    with ledger(study, space, 5) as book:
        search(book, evaluate)
    assert states(study).count(TrialState.COMPLETE) == 5
    assert states(study)[2] is TrialState.FAIL and len(states(study)) == 6


def test_too_many_failures_end_the_search_in_one_line(url: str, space: Multipliers) -> None:
    study = open_study(url)

    def evaluate(candidate: Candidate) -> Score:
        raise ZeroDivisionError("no such luck")

    with ledger(study, space, 50) as book:
        message = rf"^{MAX_FAILURES} candidates failed, the last one with: ZeroDivisionError: no such luck$"
        with pytest.raises(EspalierError, match=message):
            search(book, evaluate)
    assert states(study) == [TrialState.FAIL] * MAX_FAILURES


def test_an_interrupt_is_passed_on_and_leaves_its_trial_running(url: str, space: Multipliers) -> None:
    study, calls = open_study(url), Calls()

    def evaluate(candidate: Candidate) -> Score:
        if len(calls.keys) == 3:
            raise KeyboardInterrupt
        return calls(candidate)

    with pytest.raises(KeyboardInterrupt), ledger(study, space, 6) as book:
        search(book, evaluate)
    assert states(study) == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    with ledger(study, space, 6) as book:
        search(book, calls)
    assert states(study) == [TrialState.COMPLETE] * 6
    assert len(calls.keys) == 6


# ------------------------------------------------------------------------------------------ two drivers


def test_two_drivers_that_ask_for_the_last_trial_at_once(
    url: str, space: Multipliers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger(open_study(url), space, 4) as one, ledger(open_study(url), space, 4) as other:
        for _ in range(3):
            told = one.ask()
            assert told is not None
            one.tell(told, score_of(told.candidate))
        ask, asked = one._study.ask, []

        def ask_after_the_other() -> optuna.Trial:
            asked.append(other.ask())
            return ask()

        monkeypatch.setattr(one._study, "ask", ask_after_the_other)
        assert one.ask() is None
        (last,) = asked
        assert last is not None
        other.tell(last, score_of(last.candidate))
        while one.complete < 4:  # another driver's scores are read for a share of the time
            assert one.ask() is None
            time.sleep(0.05)
        assert one.ask() is None and other.complete == 4
    assert states(open_study(url)).count(TrialState.COMPLETE) == 4
    assert TrialState.RUNNING not in states(open_study(url))


# ------------------------------------------------------------------------------------------ dead drivers


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_dead_drivers_trial_is_taken_over_with_its_number_and_vector(
    url: str, space: Multipliers, sampler: str
) -> None:
    dead = ledger(open_study(url), space, 6, sampler)
    dead.__enter__()
    for _ in range(3):
        told = dead.ask()
        assert told is not None
        dead.tell(told, score_of(told.candidate))
    left = dead.ask()
    assert left is not None
    before = open_study(url).trials
    assert [trial.state for trial in before] == [TrialState.COMPLETE] * left.number + [TrialState.RUNNING]
    kill(dead)
    study = open_study(url)
    with ledger(study, space, 6, sampler) as book:
        assert book.ask() == left
        book.tell(left, score_of(left.candidate))
        search(book, Calls())
    assert study.trials[left.number].params == before[left.number].params
    assert states(study) == [TrialState.COMPLETE] * 6


@pytest.mark.parametrize(
    "written", [pytest.param(0, marks=pytest.mark.faults), 1, pytest.param(3, marks=pytest.mark.faults)]
)
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_driver_that_dies_while_it_draws_a_vector_changes_nothing(
    tmp_path: Path, space: Multipliers, sampler: str, written: int
) -> None:
    """Nothing of the vector is in a database then, and a part of it may be in other storages."""
    whole = ledger(open_study(f"sqlite:///{tmp_path / 'whole.db'}"), space, 6, sampler)
    with whole:
        search(whole, Calls())

    class Dying(Multipliers):
        def suggest(self, trial: Any) -> dict[str, Any]:
            if trial.number < 3:
                return super().suggest(trial)
            trial.suggest_int("rung", 0, 1)
            raise KeyboardInterrupt

    dying = Dying.__new__(Dying)
    dying.__dict__.update(space.__dict__)
    url = f"sqlite:///{tmp_path / 'parts.db'}"
    with pytest.raises(KeyboardInterrupt), ledger(open_study(url), dying, 6, sampler) as book:
        search(book, Calls())
    left = open_study(url).trials[3]
    assert left.state is TrialState.RUNNING and left.params == {}
    drawn = open_study(f"sqlite:///{tmp_path / 'whole.db'}").trials[3]
    for name, distribution in list(drawn.distributions.items())[:written]:
        internal = distribution.to_internal_repr(drawn.params[name])
        open_storage(url, create=False).set_trial_param(left._trial_id, name, internal, distribution)
    with ledger(open_study(url), space, 6, sampler) as book:
        search(book, Calls())
    resumed, expected = (open_study(f"sqlite:///{tmp_path / name}") for name in ("parts.db", "whole.db"))
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in expected.trials]
    assert book.records() == whole.records()


def test_a_score_that_was_written_and_not_told_is_not_evaluated_again(url: str, space: Multipliers) -> None:
    dead = ledger(open_study(url), space, 4)
    dead.__enter__()
    proposal = dead.ask()
    assert proposal is not None
    score = Score({"top1": 12.5, "cross_entropy": 2.25}, 0.5)
    dead._view.set_trial_user_attr(dead._view.numbered(proposal.number)._trial_id, SCORE, score.to_json())
    kill(dead)
    calls = Calls()
    with ledger(open_study(url), space, 4) as book:
        search(book, calls)
    assert proposal.candidate.key not in calls.keys and len(calls.keys) == 3
    assert book.records()[0].score == score and book.records()[0].value == -2.25


def test_what_a_driver_finished_before_it_died_is_not_taken_over(url: str, space: Multipliers) -> None:
    dead, other = ledger(open_study(url), space, 4), ledger(open_study(url), space, 4)
    dead.__enter__()
    with other:
        left, own = dead.ask(), other.ask()  # the other one has read that the first is at work
        assert isinstance(left, Proposal) and isinstance(own, Proposal)
        dead.tell(left, score_of(left.candidate))
        kill(dead)
        other._view.read_seconds = 1e9  # so dear that it does not read again at once
        other._alive = other._live_drivers()
        asked = other.ask()
        assert isinstance(asked, Proposal) and asked.number not in (left.number, own.number)


def test_a_driver_that_was_late_and_not_dead_may_tell_what_was_taken_over(
    url: str, space: Multipliers, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = ledger(open_study(url), space, 4), ledger(open_study(url), space, 4)
    late.__enter__()
    left = late.ask()
    assert isinstance(left, Proposal)
    study = open_study(url)
    lease = next(value for key, value in study.user_attrs.items() if key.startswith(DRIVER))
    late._lease.stop()
    study.set_user_attr(late._lease.key, lease | {"renewed": 0.0})
    decode = other._space.decode

    def tells(params: dict[str, Any]) -> Candidate:
        monkeypatch.undo()
        late.tell(left, score_of(left.candidate))
        return decode(params)

    with other:
        monkeypatch.setattr(other._space, "decode", tells)
        asked = other.ask()
        assert isinstance(asked, Proposal) and asked.number != left.number
    assert study.trials[left.number].state is TrialState.COMPLETE


def test_a_trial_that_nobody_signed_is_taken_over(url: str, space: Multipliers) -> None:
    """A driver that dies between asking for a trial and writing its name on it."""
    study = open_study(url)
    study.enqueue_trial(space.greedy_params()[0])
    study.ask()
    with ledger(open_study(url), space, 3) as book:
        search(book, Calls())
    assert states(study) == [TrialState.COMPLETE] * 3


def test_a_driver_whose_lease_has_run_out_is_dead(
    url: str, space: Multipliers, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = ledger(open_study(url), space, 2)
    dead.__enter__()
    left = dead.ask()
    dead.abandon()
    key = f"{DRIVER}:{dead._driver}"
    elsewhere = {"host": "another-machine", "pid": os.getpid(), "renewed": time.time()}
    with ledger(open_study(url), space, 2) as book:
        dead._study.set_user_attr(key, elsewhere)
        other = book.ask()
        assert other is not None and left is not None and other.number != left.number
        assert book.ask() is None
        dead._study.set_user_attr(key, elsewhere | {"renewed": time.time() - LEASE_SECONDS - 1})
        while (taken := book.ask()) is None:  # leases are read for a share of the time
            time.sleep(0.05)
        assert taken == left


def test_a_lease_is_renewed_and_given_back(url: str, space: Multipliers) -> None:
    study = open_study(url)
    with ledger(study, space, 2) as book:
        key = f"{DRIVER}:{book._driver}"
        assert study.user_attrs[key]["renewed"] > 0 and book._lease.renewer.is_alive()
    assert study.user_attrs[key]["renewed"] == 0 and not book._lease.renewer.is_alive()
    lease = Lease(study, DRIVER, every=0.1)
    lease.renew()
    lease.begin()
    signed = study.user_attrs[lease.key]["renewed"]
    deadline = time.monotonic() + 20
    while study.user_attrs[lease.key]["renewed"] == signed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert study.user_attrs[lease.key]["renewed"] > signed
    lease.give_back()
    assert study.user_attrs[lease.key]["renewed"] == 0


# ---------------------------------------------------------------------------------------- living drivers


def test_two_live_drivers_share_a_study_and_leave_each_others_trials_alone(url: str, space: Multipliers) -> None:
    first, second = ledger(open_study(url), space, 8), ledger(open_study(url), space, 8)
    calls = Calls()
    with first, second:
        held = first.ask()
        assert held is not None
        for _ in range(3):
            theirs = second.ask()
            assert theirs is not None and theirs.number != held.number
            second.tell(theirs, calls(theirs.candidate))
        mine, theirs = first.ask(), second.ask()
        assert mine is not None and theirs is not None
        first.tell(held, calls(held.candidate))
        second.tell(theirs, calls(theirs.candidate))
        first.tell(mine, calls(mine.candidate))
        search(first, calls)
        assert second.ask() is None
    assert states(open_study(url)) == [TrialState.COMPLETE] * 8
    assert len(calls.keys) == len(set(calls.keys)) == 8


def test_no_more_is_asked_for_than_the_target_needs(url: str, space: Multipliers) -> None:
    first, second = ledger(open_study(url), space, 3), ledger(open_study(url), space, 3)
    with first, second:
        held = [first.ask(), second.ask(), first.ask()]
        assert None not in held
        assert first.ask() is None and second.ask() is None


def test_telling_twice_counts_once(url: str, space: Multipliers) -> None:
    with ledger(open_study(url), space, 3) as book:
        proposal = book.ask()
        assert proposal is not None
        book.tell(proposal, Score({"top1": 1.0, "cross_entropy": 2.0}, 0.0))
        book.tell(proposal, Score({"top1": 9.0, "cross_entropy": 9.0}, 0.0))
        book.fail(proposal, "too late")
        assert [(record.number, record.value) for record in book.records()] == [(0, -2.0)]


# ----------------------------------------------------------------------------------------------- records


def test_records_hold_what_rebuilds_a_candidate(url: str, space: Multipliers) -> None:
    study = open_study(url)
    with ledger(study, space, 3) as book:
        search(book, Calls())
    for trial, record in zip(study.trials, book.records(), strict=True):
        assert space.decode(trial.params) == record.candidate
        assert trial.user_attrs[CANDIDATE] == record.candidate.key
        assert Score.from_json(trial.user_attrs[SCORE]) == record.score


def test_a_proposal_is_a_number_and_a_candidate() -> None:
    assert Proposal(3, Candidate(0, (1, 2))) == Proposal(3, Candidate(0, (1, 2)))
