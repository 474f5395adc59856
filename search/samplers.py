"""Samplers by name: everything that proposes is an `optuna.samplers.BaseSampler`.

What a sampler proposes depends on the seed, the trial's number and what the storage holds, and on nothing that
lives in the process. So a resumed study proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from espalier.search.space import Space

SamplerFactory = Callable[[Space, int], BaseSampler]
"""What is searched, and the study's seed -> sampler."""


class PerTrial(BaseSampler):
    """A sampler of Optuna's that is made afresh for every trial, seeded by the study's seed and the trial's number.

    Args:
        make: seed -> sampler.
        seed: of the study.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._number = -1
        self._sampler = make(trial_seed(seed, 0))

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number, self._sampler = trial.number, self._make(trial_seed(self._seed, trial.number))
        return self._sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """That of the trial's sampler."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Asks the trial's sampler."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Asks the trial's sampler."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tells the trial's sampler."""
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Tells the trial's sampler."""
        self._of(trial).after_trial(study, trial, state, values)


def trial_seed(seed: int, number: int) -> int:
    """The seed of the sampler that proposes trial `number`: independent streams, whatever came before."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % (2**31))


def _cmaes(seed: int) -> BaseSampler:
    # The ranges of the spaces are centred on greedy, which is where CMA-ES begins.
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _gp(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(seed=seed, deterministic_objective=True)


def _agent(space: Space, seed: int) -> BaseSampler:
    from espalier.agents.network_graph import network_graph
    from espalier.agents.sampler import AgentSampler

    groups = [group.name for group in space.graph.groups]
    return AgentSampler(network_graph(space.graph, space.energies[0]), groups, seed=seed)


SAMPLERS: dict[str, SamplerFactory] = {
    "agent": _agent,
    "cmaes": lambda space, seed: PerTrial(_cmaes, seed),
    "gp": lambda space, seed: PerTrial(_gp, seed),
    "random": lambda space, seed: PerTrial(lambda s: RandomSampler(seed=s), seed),
    "tpe": lambda space, seed: PerTrial(lambda s: TPESampler(seed=s), seed),
}
"""Name in a config -> how to make one."""
