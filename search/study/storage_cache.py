"""A driver's own view of its study: it reads what it knows, and writes a trial's vector at once.

Optuna asks its storage for every trial several times for each one that it proposes, and writes a vector parameter
by parameter, a transaction each. With thousands of trials, a thousand of them running, a driver would do little
else.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from espalier.optuna_private import database_of, id_of_trial, insert_vector

if TYPE_CHECKING:
    from espalier.optuna_private import FrozenStudy


class StorageCache(BaseStorage):
    """A storage seen by one driver that works on one study.

    What this driver writes is seen at once; what others write, after `refresh`. Parameters and attributes of a new
    trial are kept back until `flush`, which writes them together.

    Args:
        backend: the storage.
        study_id: of the study.
        clock: seconds, by which what was read grows old.
    """

    def __init__(self, backend: BaseStorage, study_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._backend, self._study_id = get_storage(backend), study_id
        self._trials: dict[int, FrozenTrial] = {}  # by number
        self._numbers: dict[int, int] = {}  # by trial id
        self._kept_back: dict[int, FrozenTrial] = {}  # by trial id: as the storage has it, not flushed yet
        self._unfinished: set[int] = set()  # numbers
        self._news: list[FrozenTrial] = []
        self._read_at, self.read_seconds = -1.0, 0.0
        self.refresh()

    # -- reading

    @property
    def age(self) -> float:
        """Seconds since other drivers' writes were read."""
        return self._clock() - self._read_at

    def refresh(self) -> None:
        """Reads what other drivers wrote."""
        began = time.monotonic()
        for trial in self._backend.get_all_trials(self._study_id, deepcopy=False):
            if id_of_trial(trial) not in self._kept_back:
                self._keep(trial)
        self._read_at = self._clock()
        self.read_seconds = time.monotonic() - began

    def running(self) -> list[FrozenTrial]:
        """Those that some driver has in hand, in order."""
        trials = (self._trials[number] for number in sorted(self._unfinished))
        return [trial for trial in trials if trial.state is TrialState.RUNNING]

    def news(self) -> list[FrozenTrial]:
        """Trials that were first seen finished since the last call."""
        news, self._news = self._news, []
        return news

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As far as this driver knows them, in order."""
        found = [self._trials[n] for n in sorted(self._trials)]
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As far as this driver knows it; a copy, which Optuna changes as it writes."""
        trial = copy.copy(self._known(trial_id))
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        return trial

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Of a trial that this driver knows."""
        return id_of_trial(self._trials[trial_number])

    def numbered(self, number: int) -> FrozenTrial:
        """The trial of a number that this driver knows."""
        return self._trials[number]

    # -- writing

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Made at once: its number is the storage's."""
        trial_id = self._backend.create_new_trial(study_id, template_trial)
        trial = self._backend.get_trial(trial_id)
        self._keep(trial)
        if template_trial is None:
            self._kept_back[trial_id] = trial
        return trial_id

    def flush(self, trial_id: int, *, more: bool = False) -> None:
        """Writes what was kept back of a trial, in one transaction where the storage is a database.

        Args:
            trial_id: of the trial; nothing is done where nothing was kept back.
            more: whether what comes next is kept back too.
        """
        if trial_id not in self._kept_back:
            return
        blank, trial = self._kept_back[trial_id], self._known(trial_id)
        for key, value in _differing(blank.system_attrs, trial.system_attrs).items():
            self._backend.set_trial_system_attr(trial_id, key, value)
        params = _differing(blank.params, trial.params)
        attributes = _differing(blank.user_attrs, trial.user_attrs)
        database = database_of(self._backend)
        if database is not None and not attributes.keys() & blank.user_attrs.keys():
            retried = getattr(self._backend, "retried", lambda call, *args: call(*args))
            retried(insert_vector, database, trial, params, attributes)
        else:
            for name in params:
                distribution = trial.distributions[name]
                internal = distribution.to_internal_repr(trial.params[name])
                self._backend.set_trial_param(trial_id, name, internal, distribution)
            for key, value in attributes.items():
                self._backend.set_trial_user_attr(trial_id, key, value)
        if more:
            self._kept_back[trial_id] = trial
        else:
            del self._kept_back[trial_id]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Kept back for a new trial."""
        if trial_id not in self._kept_back:
            self._backend.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        trial = self._changed(trial_id)
        trial.distributions = trial.distributions | {param_name: distribution}
        trial.params = trial.params | {param_name: distribution.to_external_repr(param_value_internal)}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Kept back for a new trial."""
        if trial_id not in self._kept_back:
            self._write(trial_id, lambda: self._backend.set_trial_user_attr(trial_id, key, value))
        trial = self._changed(trial_id)
        trial.user_attrs = trial.user_attrs | {key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Kept back for a new trial."""
        if trial_id not in self._kept_back:
            self._write(trial_id, lambda: self._backend.set_trial_system_attr(trial_id, key, value))
        trial = self._changed(trial_id)
        trial.system_attrs = trial.system_attrs | {key: value}

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Flushes the trial first."""
        self.flush(trial_id)
        done = bool(self._write(trial_id, lambda: self._backend.set_trial_state_values(trial_id, state, values)))
        if state is TrialState.RUNNING:  # taken from the queue, by this driver or by another
            trial = self._backend.get_trial(trial_id)
            self._keep(trial)
            if done:
                self._kept_back[trial_id] = trial
            return done
        trial = copy.copy(self._known(trial_id))
        trial.state, trial.datetime_complete = state, datetime.now()
        trial.values = None if values is None else list(values)
        self._keep(trial)
        return done

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Written at once."""
        self._write(
            trial_id, lambda: self._backend.set_trial_intermediate_value(trial_id, step, intermediate_value)
        )
        trial = self._changed(trial_id)
        trial.intermediate_values = trial.intermediate_values | {step: intermediate_value}

    def _write(self, trial_id: int, write: Any) -> Any:
        try:
            return write()
        except UpdateFinishedTrialError:  # another driver has told it
            self._keep(self._backend.get_trial(trial_id))
            raise

    def _known(self, trial_id: int) -> FrozenTrial:
        if trial_id not in self._numbers:
            self._keep(self._backend.get_trial(trial_id))
        return self._trials[self._numbers[trial_id]]

    def _changed(self, trial_id: int) -> FrozenTrial:
        """A copy that takes the place of a trial: those handed out stay as they were."""
        trial = copy.copy(self._known(trial_id))
        self._keep(trial)
        return trial

    def _keep(self, trial: FrozenTrial) -> None:
        known = self._trials.get(trial.number)
        if trial.state.is_finished():
            if known is None or not known.state.is_finished():
                self._news.append(trial)
            self._unfinished.discard(trial.number)
        else:
            self._unfinished.add(trial.number)
        self._trials[trial.number] = trial
        self._numbers[id_of_trial(trial)] = trial.number

    # -- the study, as the storage has it

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """The storage's."""
        return self._backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """The storage's."""
        self._backend.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """The storage's."""
        self._backend.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """The storage's."""
        self._backend.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """The storage's."""
        return self._backend.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """The storage's."""
        return self._backend.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The storage's."""
        return self._backend.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """The storage's."""
        return self._backend.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """The storage's."""
        return self._backend.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """The storage's."""
        return self._backend.get_all_studies()


def _differing(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in after.items() if key not in before or before[key] != value}
