"""Name -> sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from espalier.pruning.paper import Paper
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


@dataclass(frozen=True)
class Entry:
    """A sampler by name.

    Attributes:
        make: makes one.
        paper: where it is from.
        words: what it does, where `make` is no class that says so.
    """

    make: SamplerFactory
    paper: Paper | None = None
    words: str = ""

    def __call__(self, space: Space, seed: int) -> BaseSampler:
        """A sampler of a space, with a study's seed."""
        return self.make(space, seed)


SAMPLERS: dict[str, Entry] = {
    "agent": Entry(
        factory("agent"),
        Paper("Schulman et al.", "2017", "arXiv 1707.06347"),
        "An agent that sees the network as a graph, by proximal policy optimisation.",
    ),
    "reinforce": Entry(
        factory("reinforce"),
        Paper("Williams", "Machine Learning 1992", "doi 10.1007/BF00992696"),
        "The same by REINFORCE.",
    ),
    "ddpg": Entry(
        factory("ddpg"),
        Paper("He et al.", "ECCV 2018", "arXiv 1802.03494"),
        "An agent that goes from group to group, as AMC does, by deterministic policy gradients.",
    ),
    "agmc": Entry(
        factory("agmc"),
        Paper("Yu et al.", "ICCV 2021", "arXiv 2011.12641"),
        "The same with a graph encoder and a recurrent network, as AGMC has them.",
    ),
    "auto": Entry(Auto),
    "cmaes": Entry(
        CmaEs,
        Paper("Hansen and Ostermeier", "Evolutionary Computation 2001", "doi 10.1162/106365601750190398"),
    ),
    "evolution": Entry(Evolution, Paper("Liu et al.", "ICCV 2019", "arXiv 1903.10258")),
    "gp": Entry(
        lambda space, seed: PerTrial(_gp, seed),
        Paper("Snoek et al.", "NeurIPS 2012", "arXiv 1206.2944"),
        "Bayesian optimisation with a Gaussian process, Optuna's.",
    ),
    "legr": Entry(Legr, Paper("Chin et al.", "CVPR 2020", "arXiv 1904.12368")),
    "local": Entry(Local),
    "nsga2": Entry(
        lambda space, seed: PerTrial(lambda s: NSGAIISampler(population_size=POPULATION, seed=s), seed),
        Paper("Deb et al.", "IEEE Trans. Evolutionary Computation 2002", "doi 10.1109/4235.996017"),
        "Evolution by non-dominated sorting, Optuna's.",
    ),
    "nsga3": Entry(
        lambda space, seed: PerTrial(_nsga3, seed),
        Paper("Deb and Jain", "IEEE Trans. Evolutionary Computation 2014", "doi 10.1109/TEVC.2013.2281535"),
        "The same with reference points, Optuna's.",
    ),
    "qmc": Entry(Quasirandom, Paper("Owen", "J. Complexity 1998", "doi 10.1006/jcom.1998.0487")),
    "random": Entry(
        lambda space, seed: PerTrial(lambda s: RandomSampler(seed=s), seed), None, "Random points: the control."
    ),
    "sensitivity": Entry(Sensitivity),
    "sep_cmaes": Entry(
        lambda space, seed: CmaEs(space, seed, separable=True),
        Paper("Ros and Hansen", "PPSN 2008", "doi 10.1007/978-3-540-87700-4_30"),
        "CMA-ES that learns variances alone, no covariances: faster with many numbers.",
    ),
    "tpe": Entry(
        lambda space, seed: PerTrial(lambda s: TPESampler(seed=s), seed),
        Paper("Bergstra et al.", "NeurIPS 2011"),
        "Tree-structured Parzen estimators, Optuna's.",
    ),
}
"""Name in a config -> sampler."""

AUTO = "auto"
"""The sampler that begins from several rankings, not from greedy pruning's alone."""

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
        return SAMPLERS[name](space, seed), space.starts() if name == AUTO and not space.seeks_front else []
    pretrained = knowledge if name in PRETRAINED else None
    sampler = agent_sampler(name, space, seed, pretrained=pretrained, folder=folder)
    return sampler, [] if pretrained is None else [zero_shot(space, pretrained)]
