"""The methods by name, and the networks that are compared without being chosen."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from espalier.errors import EspalierError, StorageError, StudyMismatch, raised
from espalier.pruning.gates.gates import GATES
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.normalizations import NORMALIZATIONS
from espalier.search.methods.fastnas import FastNas
from espalier.search.methods.gated import Gated
from espalier.search.methods.method import Choice, Material, Method
from espalier.search.methods.modelopt_fastnas import ModelOptFastNas
from espalier.search.methods.rankings import Greedy, RandomPolicy, Ranked, Uniform
from espalier.search.methods.scheduled import Scheduled
from espalier.search.methods.search import Search
from espalier.search.methods.torch_pruning import TorchPruning
from espalier.search.samplers import SAMPLERS
from espalier.search.training.schedules import SCHEDULES

METHODS: dict[str, Method] = {
    "greedy": Greedy(),
    "uniform": Uniform(),
    "random_policy": RandomPolicy(),
    "fastnas": FastNas(),
    "modelopt_fastnas": ModelOptFastNas(),
    "torch_pruning": TorchPruning(sparse=True),
    "torch_pruning_dense": TorchPruning(sparse=False),
    **{
        f"{criterion}_{how}": Ranked(criterion, how)
        for criterion in CRITERIA
        if criterion != "random"
        for how in NORMALIZATIONS
    },
    **{name: Gated(name) for name in GATES},
    **{name: Scheduled(name) for name in SCHEDULES},
    **{name: Search(name) for name in SAMPLERS},
}
"""Name in a config -> method; one of the user's own is a gate, see `method_named`."""

SCRATCH, DENSE = "scratch", "dense"
CONTROLS = {
    SCRATCH: "the widths of the first search that is named, from new weights, for as many epochs as those had seen "
    "(Liu et al., ICLR 2019, arXiv 1810.05270)",
    DENSE: "the network before regularisation and pruning, not fine-tuned",
}
"""Name in a config -> what it is: networks to compare with, for which nothing has to be chosen."""


def method_named(name: str) -> Method | None:
    """The method of a name, ``package.module:Class`` being a gate of the user's own; None for a control."""
    return Gated(name) if ":" in name else METHODS.get(name)


def methods_named(names: Iterable[str]) -> dict[str, Method]:
    """Those of the names that are methods."""
    return {name: method for name in names if (method := method_named(name)) is not None}


def choose(material: Material, job: tuple[str, str, int]) -> Choice | str:
    """What a method chooses under a budget with a seed, or why it failed; a job for `Workers`."""
    name, budget, seed = job
    start = time.process_time()
    try:
        method = method_named(name)
        assert method is not None  # nothing is chosen for controls
        found = method.choose(material, budget, seed)
    except (StorageError, StudyMismatch, OSError):
        raise
    except EspalierError as error:  # one method's failure is not the others'
        return str(error)
    except Exception as error:  # such as memory that does not do for it, or whatever a user's network raises
        return raised(error)
    return replace(found, seconds=found.seconds + time.process_time() - start)
