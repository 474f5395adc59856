"""Name -> sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from espalier.search.samplers.agents import AGENTS, PRETRAINED, agent_sampler, factory, zero_shot
from espalier.search.samplers.auto import Auto
from espalier.search.samplers.cmaes import CmaEs
from espalier.search.samplers.evolution import Evolution
from espalier.search.samplers.legr import Legr
from espalier.search.samplers.local import Local
from espalier.search.samplers.per_trial import PerTrial
from espalier.search.samplers.quasirandom import Quasirandom
from espalier.search.samplers.sensitivity import Sensitivity
from espalier.search.spaces.space import Space

if TYPE_CHECKING:
    from torch import Tensor

SamplerFactory = Callable[[Space, int], BaseSampler]
"""What is searched, and the study's seed -> sampler."""

POPULATION = 20
"""Of the NSGAs: their default of 50 would be random search for most of a study of 200 trials."""


def _gp(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(seed=seed, deterministic_objective=True)


def _nsga3(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return NSGAIIISampler(population_size=POPULATION, seed=seed)


SAMPLERS: dict[str, SamplerFactory] = {
    **{name: factory(name) for name in AGENTS},
    "auto": Auto,
    "cmaes": CmaEs,
    "evolution": Evolution,
    "gp": lambda space, seed: PerTrial(_gp, seed),
    "legr": Legr,
    "local": Local,
    "nsga2": lambda space, seed: PerTrial(lambda s: NSGAIISampler(population_size=POPULATION, seed=s), seed),
    "nsga3": lambda space, seed: PerTrial(_nsga3, seed),
    "qmc": Quasirandom,
    "random": lambda space, seed: PerTrial(lambda s: RandomSampler(seed=s), seed),
    "sensitivity": Sensitivity,
    "sep_cmaes": lambda space, seed: CmaEs(space, seed, separable=True),
    "tpe": lambda space, seed: PerTrial(lambda s: TPESampler(seed=s), seed),
}
"""Name in a config -> how to make one."""

FRONT_SAMPLERS = ("nsga2", "nsga3", "random", "tpe")
"""Those that can search for high values at low costs at once."""


def begin(
    name: str,
    space: Space,
    seed: int,
    *,
    knowledge: Mapping[str, Tensor] | None = None,
    folder: Path | None = None,
) -> tuple[BaseSampler, list[dict[str, Any]]]:
    """The sampler of a search, and the vectors to be tried first besides greedy pruning's.

    Args:
        name: of the sampler.
        space: what is searched.
        seed: of the study.
        knowledge: what a trained agent knows; of use to those in `PRETRAINED`.
        folder: where an agent's state and log are kept; nowhere by default.
    """
    if name not in AGENTS:
        return SAMPLERS[name](space, seed), []
    pretrained = knowledge if name in PRETRAINED else None
    sampler = agent_sampler(name, space, seed, pretrained=pretrained, folder=folder)
    return sampler, [] if pretrained is None else [zero_shot(space, pretrained)]
