"""Samplers by name: everything that proposes is an `optuna.samplers.BaseSampler`.

A sampler is made afresh for every trial, from the study's seed and the trial's number, and learns from the
storage alone. So a resumed study proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

SamplerFactory = Callable[[int], BaseSampler]
"""Seed -> sampler."""


def _cmaes(seed: int) -> BaseSampler:
    # The ranges of the spaces are centred on greedy, which is where CMA-ES begins.
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _gp(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(seed=seed, deterministic_objective=True)


SAMPLERS: dict[str, SamplerFactory] = {
    "cmaes": _cmaes,
    "tpe": lambda seed: TPESampler(seed=seed),
    "gp": _gp,
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Name in a config -> how to make one."""


def trial_seed(seed: int, number: int) -> int:
    """The seed of the sampler that proposes trial `number`: independent streams, whatever came before."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % (2**31))
