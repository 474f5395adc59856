"""A comparison, as a call: of methods on a network and a task, or on what a config names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.importance.criterion import Criterion
from espalier.search.compare import protocol
from espalier.search.compare.comparison import Comparison
from espalier.search.config.loading import settings_of
from espalier.search.progress.reporter import here
from espalier.search.run.search_widths import STRENGTHS, given_or_named
from espalier.search.study.run_folder import folder_of
from espalier.search.tasks.task import Task

TRIALS = 200
"""Of a search, unless others are asked for."""


@overload
def compare(
    network: nn.Module,
    example_inputs: Inputs,
    task: Task,
    *,
    budget: Budget,
    methods: Sequence[str] = ...,
    seeds: int = ...,
    trials: int = ...,
    epochs: float = ...,
    strengths: Sequence[float] | Literal["auto"] = ...,
    criterion: str | Criterion | Callable[..., Tensor] = ...,
    overrides: Sequence[str] = ...,
    workers: int | None = ...,
    storage: str | None = ...,
    study: str | None = ...,
    out: str | Path | None = ...,
    address: str | None = ...,
    seed: int = ...,
    progress: bool | None = ...,
) -> Comparison: ...


@overload
def compare(
    network: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = ...,
    workers: int | None = ...,
    storage: str | None = ...,
    study: str | None = ...,
    out: str | Path | None = ...,
    address: str | None = ...,
    progress: bool | None = ...,
) -> Comparison: ...


def compare(
    network: nn.Module | str | Path | Mapping[str, Any],
    example_inputs: Inputs | None = None,
    task: Task | None = None,
    *,
    budget: Budget | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    trials: int | None = None,
    epochs: float = 5,
    strengths: Sequence[float] | Literal["auto"] = STRENGTHS,
    criterion: str | Criterion | Callable[..., Tensor] = "energy",
    overrides: Sequence[str] = (),
    workers: int | None = None,
    storage: str | None = None,
    study: str | None = None,
    out: str | Path | None = None,
    address: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Compares methods, as ``espalier compare`` does, without the report.

        found = espalier.compare(
            network, example_inputs, task, budget=espalier.Budget(macs=0.5), methods=["greedy", "l1_mean", "auto"])
        print(found.verdict)

    The same call goes on after an interruption.

    Args:
        network: the dense network, trained; left as it is. Or a config: path of a YAML file, name of a shipped one,
            or the settings themselves; it then names network, task, budget and methods.
        example_inputs: what the network takes; see `espalier.trace`.
        task: what the network is for.
        budget: what the pruned networks may cost; fractions are of what the dense one costs.
        methods: names, of which ``greedy`` is the baseline; see the docs of compare. By default greedy,
            uniform, random and auto.
        seeds: of search and fine-tuning, 5 by default; verdicts need three.
        trials: evaluations of each search, 200 by default.
        epochs: of every training, as in `espalier.search_widths`, like what follows.
        strengths: of regularisation.
        criterion: by which channels are ranked.
        overrides: ``key.path=value`` settings of a config that win over all of these.
        workers: jobs at a time, 0 for none but this process; 2 by default, or what the config says.
        storage: any Optuna URL that workers reach; by default SQLite in the run folder.
        study: what the names of the studies begin with; by default the config file's, or ``comparison``.
        out: run folder; by default ``runs/<study>``.
        address: a Ray cluster to join.
        seed: of everything that is drawn.
        progress: as in `espalier.search_widths`.

    Returns:
        What ``compare.json`` holds.

    Raises:
        EspalierError: bad input; see `espalier.errors`.
    """
    given, settings = given_or_named(
        network,
        example_inputs,
        task,
        budget,
        trials=trials or TRIALS,
        sampler="auto",
        epochs=epochs,
        strengths=strengths,
        criterion=criterion,
        seed=seed,
    )
    if given is not None:
        assert isinstance(settings, Mapping)
        asked = {"methods": None if methods is None else list(methods), "seeds": seeds}
        settings = {**settings, "compare": {key: value for key, value in asked.items() if value is not None}}
    elif (methods, seeds, trials) != (None, None, None):
        raise ConfigError("a config says methods, seeds and trials: in their place, overrides=['compare.seeds=3']")
    config, name = settings_of(settings, overrides, otherwise="comparison", workers=workers, address=address)
    name = study or name
    folder, told = Path(out or folder_of(name)), here(progress)
    return protocol.compare(
        config, name=name, out=folder, command="", storage=storage, reporter=told, given=given
    ).comparison
