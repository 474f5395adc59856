"""Samplers by name: everything that proposes is an `optuna.samplers.BaseSampler`.

What a sampler proposes depends on the seed, the trial's number and what the storage holds, and on nothing that
lives in the process. So a resumed study proposes what an uninterrupted one would have.
"""

from espalier.search.samplers.per_trial import PerTrial, trial_seed
from espalier.search.samplers.sampler_table import FRONT_SAMPLERS, SAMPLERS, SamplerFactory, begin

__all__ = ["FRONT_SAMPLERS", "SAMPLERS", "PerTrial", "SamplerFactory", "begin", "trial_seed"]
