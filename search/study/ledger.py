"""The study: an Optuna storage is the one record of a search, and what survives whatever dies.

Drivers, the processes that ask and tell, sign in to the study with a lease that they renew. A trial that is
RUNNING under a driver that is gone is taken over as it is, number, vector and all, by the next driver that asks:
so the trials of an interrupted search are those of an uninterrupted one, and none is counted twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from espalier.errors import EspalierError, StorageError
from espalier.optuna_private import FIXED, id_of_trial, storage_of, study_id
from espalier.search.files.json_files import json_digest
from espalier.search.progress.reporter import Meter
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.metric import Metric
from espalier.search.spaces.space import Space
from espalier.search.study.keys import CANDIDATE, DRIVER, FAILURE, SCORE
from espalier.search.study.lease import LEASE_SECONDS, Lease, Watch, leases_of
from espalier.search.study.storage import first
from espalier.search.study.storage_cache import StorageCache

MAX_FAILURES = 20
"""Candidates that may fail in one run before it gives up."""
LAST_TRIALS = 50
"""So near its end, drivers that share a study read it anew for every proposal: none is asked for too many."""
READING_SHARE = 0.05
"""Share of a driver's time that goes into reading what other drivers wrote, before that."""
READING_PAUSE = 10.0
"""Seconds after which they are read in any case."""

REASON = 500
"""Characters of why a trial failed, at most."""


@dataclass(frozen=True)
class Proposal:
    """A trial to evaluate."""

    number: int
    candidate: Candidate


@dataclass(frozen=True)
class Record:
    """A finished trial, and the vector that its candidate came from."""

    number: int
    candidate: Candidate
    score: Score
    value: float
    params: dict[str, Any] = field(default_factory=dict, compare=False)


class Ledger:
    """One driver's view of a study: asks for candidates, tells scores, keeps count.

    Use as a context manager: signing in takes out the lease, signing out gives it back.

    Args:
        study: made by `create_study`.
        space: what is searched; its greedy vectors are enqueued first.
        sampler: what proposes.
        measure: what is maximised, or minimised where less is better.
        target: COMPLETE trials wanted in all.
        max_failures: candidates that may fail, and trials that may in a row, before this driver gives up.
        clock: seconds, by which leases run out.
        host: where this driver runs, for people.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        sampler: BaseSampler,
        *,
        measure: Metric,
        target: int,
        max_failures: int = MAX_FAILURES,
        clock: Callable[[], float] = time.monotonic,
        host: str | None = None,
    ) -> None:
        self._recorded = study
        self._view = StorageCache(storage_of(study), study_id(study), clock)
        self._study = optuna.load_study(study_name=study.study_name, storage=self._view, sampler=sampler)
        self._space = space
        self._measure, self.target, self._max_failures = measure, target, max_failures
        self._clock, self._watch = clock, Watch(clock)
        self._lease = Lease(study, DRIVER, host)
        self._driver = self._lease.name
        self._unsigned: dict[int, float] = {}  # trials that have no driver -> when that was seen first
        self._alive: set[str] = set()
        self._mine: set[int] = set()
        self._failed: set[str] = set()  # keys of candidates
        self._in_a_row = 0  # trials that failed since the last one that did not
        self._known: dict[str, Score] = {}  # of every candidate that was scored
        self._twins: dict[str, list[Proposal]] = {}  # of what is being evaluated: other trials of it
        self._best: FrozenTrial | None = None
        self._complete = 0

    def __enter__(self) -> Self:
        self.renew()
        self._lease.begin()
        self._read()
        self._enqueue_greedy()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, StorageError):
            self._lease.leave()
            return  # nobody hears that it leaves: its lease runs out
        self._lease.give_back()

    def _enqueue_greedy(self) -> None:
        """Greedy pruning is tried first; where that failed in an earlier run, again: all is compared to it."""
        if again := sum(self._enqueue(params, again=True) for params in self._space.greedy_params()):
            self.target = max(self.target, self._complete + again)

    def enqueue(self, vectors: Sequence[dict[str, Any]]) -> None:
        """Has vectors tried first that no trial has; not once a trial is finished, by an older espalier perhaps."""
        if any(trial.state is TrialState.COMPLETE for trial in self._study.get_trials(deepcopy=False)):
            return
        for params in vectors:
            self._enqueue(params, again=False)

    def _enqueue(self, params: dict[str, Any], *, again: bool) -> bool:
        """Enqueues a vector that is not there, or, `again`, has only failed; whether it was and has.

        Of drivers that begin at the same moment one claims to, looks once more, and does. Where it died in between,
        the next claim is another one's.
        """
        name = json_digest(params, 16)
        claim = 0
        while True:
            trials = self._trials_of(params)
            if any(not again or trial.state is not TrialState.FAIL for trial in trials):
                return False
            owner = first(self._recorded, f"enqueue:{name}:{len(trials)}:{claim}", self._driver)
            if owner == self._driver:
                break
            if owner in self._live_drivers():
                return False
            claim += 1
        self._view.refresh()
        if len(self._trials_of(params)) > len(trials):
            return False
        self._study.enqueue_trial(params)
        return bool(trials)

    def _trials_of(self, params: dict[str, Any]) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params | trial.system_attrs.get(FIXED, {}) == params]

    # -- reading

    def records(self) -> list[Record]:
        """Every COMPLETE trial, in order."""
        self._read()
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [record_of(trial) for trial in trials]

    @property
    def complete(self) -> int:
        """Number of COMPLETE trials, as far as this driver knows."""
        self._catch_up()
        return self._complete

    def best(self) -> Record:
        """The COMPLETE trial of greatest value; the earliest among equals."""
        self._catch_up()
        assert self._best is not None
        return record_of(self._best)

    def report(self, meter: Meter) -> None:
        """Tells a meter the finished trials and the best one."""
        if complete := self.complete:
            if self._space.seeks_front:
                meter.update(complete, f"{len(self._study.best_trials)} on the front")
                return
            best = self.best()
            latest = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))[-1]
            values = {"best": best.value, "value": latest.values[0]}
            meter.update(complete, f"best {self._measure.value(best.value):.4f} (trial {best.number})", values)

    # -- asking and telling

    def ask(self) -> Proposal | None:
        """The next candidate to evaluate, or None when enough are finished or on their way.

        A candidate that was scored before is told its score at once, one that is being evaluated when that score is
        there, and another one is asked for.
        """
        while True:
            trial = self._next_trial()
            if trial is None:
                return None
            self._mine.add(trial.number)
            if trial.distributions and CANDIDATE not in trial.user_attrs:
                self._redraw(trial)
            candidate = self._space.decode(self._space.suggest(trial))
            try:
                trial.set_user_attr(CANDIDATE, candidate.key)
                self._view.flush(id_of_trial(trial))
            except optuna.exceptions.UpdateFinishedTrialError:  # its driver was late, not dead, and has told it
                self._mine.discard(trial.number)
                continue
            proposal = Proposal(trial.number, candidate)
            if SCORE in trial.user_attrs:  # its driver died between writing the score and telling it
                self._finish(proposal, Score.from_json(trial.user_attrs[SCORE]))
            elif candidate.key in self._known:
                self._tell(proposal, self._known[candidate.key])
            elif candidate.key in self._twins:
                self._twins[candidate.key].append(proposal)
            else:
                self._twins[candidate.key] = []
                return proposal

    def tell(self, proposal: Proposal, score: Score) -> None:
        """Records a score, NaN as a failure; a trial that is finished already stays as it is.

        Raises:
            EspalierError: too many have failed.
        """
        for each in (proposal, *self._twins.pop(proposal.candidate.key, ())):
            self._tell(each, score)

    def _tell(self, proposal: Proposal, score: Score) -> None:
        number = id_of_trial(self._view.numbered(proposal.number))
        try:
            self._view.set_trial_user_attr(number, SCORE, score.to_json())
        except optuna.exceptions.UpdateFinishedTrialError:
            self._mine.discard(proposal.number)
            return
        self._known[proposal.candidate.key] = score
        self._finish(proposal, score)

    def fail(self, proposal: Proposal, reason: str) -> None:
        """Records that a candidate could not be scored.

        Raises:
            EspalierError: too many have failed.
        """
        for each in (proposal, *self._twins.pop(proposal.candidate.key, ())):
            self._fail(each, reason)

    def _fail(self, proposal: Proposal, reason: str) -> None:
        number, key = proposal.number, proposal.candidate.key
        try:
            self._view.set_trial_user_attr(id_of_trial(self._view.numbered(number)), FAILURE, reason[:REASON])
        except optuna.exceptions.UpdateFinishedTrialError:  # another driver was quicker
            self._mine.discard(number)
            return
        self._close(number, None)
        self._failed.add(key)
        self._in_a_row += 1
        for count, what in ((len(self._failed), "candidates"), (self._in_a_row, "trials in a row")):
            if count >= self._max_failures:
                raise EspalierError(f"{count} {what} failed, the last one with: {reason}")

    def _finish(self, proposal: Proposal, score: Score) -> None:
        values = [score.value(self._measure)]
        if math.isnan(values[0]):
            self._fail(proposal, "its score is NaN")
            return
        if self._space.seeks_front:
            values.append(float(self._space.graph.macs(proposal.candidate.widths)))
        self._in_a_row = 0
        self._close(proposal.number, values)

    def _close(self, number: int, values: list[float] | None) -> None:
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        try:
            self._study.tell(number, values, state=state, skip_if_finished=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # another driver was quicker
        self._mine.discard(number)

    def _redraw(self, trial: optuna.Trial) -> None:
        """Draws again what a driver had drawn of a vector when it died, so that the rest comes out the same."""
        frozen = self._view.numbered(trial.number)
        fixed = frozen.system_attrs.get(FIXED, {})
        for name, distribution in frozen.distributions.items():
            if name not in fixed and name not in trial.relative_params:
                self._study.sampler.sample_independent(self._study, frozen, name, distribution)

    def _next_trial(self) -> optuna.Trial | None:
        if self._must_read():
            self._read()
        self._catch_up()
        if (taken := self._take_over()) is not None:
            return taken
        if self._complete + len(self._view.running()) >= self.target:
            return None
        asked = self._study.ask()
        asked.set_user_attr(DRIVER, self._driver)
        if self._alive - {self._driver}:  # others must know whose it is, however long its vector takes
            self._view.flush(id_of_trial(asked), more=True)
        if asked.number >= self.target:  # fewer trials came before it otherwise
            self._read()
            counted = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
            if sum(trial.number < asked.number for trial in counted) >= self.target:
                self._study.tell(asked, state=TrialState.FAIL)  # another driver asked for the last one just now
                return None
        return asked

    def _take_over(self) -> optuna.Trial | None:
        """A trial of a dead driver, as it is; from now on it is this one's."""
        if not self._abandoned():
            return None
        self._read()  # its driver may have finished it before it died
        for trial in self._abandoned():
            taken = optuna.Trial(self._study, id_of_trial(trial))
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # it was not dead, but late
                taken.set_user_attr(DRIVER, self._driver)
                return taken
        return None

    def _abandoned(self) -> list[FrozenTrial]:
        """Trials that run as far as is known, and that no driver which is alive has."""
        return [
            trial for trial in self._view.running() if trial.number not in self._mine and not self._is_held(trial)
        ]

    def _must_read(self) -> bool:
        """Whether to read what others wrote: for a share of the time, and where there are others, at the end."""
        if self._view.age > min(self._view.read_seconds / READING_SHARE, READING_PAUSE):
            return True
        self._catch_up()
        wanted = self.target - self._complete - len(self._view.running())
        if not 0 < wanted < LAST_TRIALS:
            return False
        self._alive = self._live_drivers()
        return bool(self._alive - {self._driver})

    def _read(self) -> None:
        self._view.refresh()
        self._alive = self._live_drivers()
        self._catch_up()

    def _catch_up(self) -> None:
        """Takes note of trials that have finished."""
        for trial in self._view.news():
            if trial.state is TrialState.COMPLETE:
                self._complete += 1
                record = record_of(trial)
                self._known.setdefault(record.candidate.key, record.score)
                best = self._best
                if best is None or (record.value, -trial.number) > (best.values[0], -best.number):
                    self._best = trial

    # -- leases

    def renew(self) -> None:
        """Renews the lease; while the driver is signed in, a thread does so."""
        self._lease.renew()

    def abandon(self) -> None:
        """Renews the lease no more, and does not sign out: as if the driver were killed."""
        self._lease.stop()

    def _live_drivers(self) -> set[str]:
        live = self._watch.live(leases_of(self._recorded.user_attrs, DRIVER))
        return {key.rpartition(":")[2] for key in live}

    def _is_held(self, trial: FrozenTrial) -> bool:
        driver = trial.user_attrs.get(DRIVER)
        if driver is not None:
            return driver in self._alive and driver != self._driver
        # Asked for and not yet signed: its driver is at work on it, unless no other one lives.
        age = self._clock() - self._unsigned.setdefault(trial.number, self._clock())
        return bool(self._alive - {self._driver}) and age < LEASE_SECONDS


def record_of(trial: FrozenTrial) -> Record:
    """The record of a COMPLETE trial."""
    attributes = trial.user_attrs
    candidate = Candidate.from_key(attributes[CANDIDATE])
    return Record(trial.number, candidate, Score.from_json(attributes[SCORE]), trial.values[0], trial.params)
