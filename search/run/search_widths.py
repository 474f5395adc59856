"""A search, as a call: of a network and a task, or of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from espalier.errors import ArtefactError, ConfigError
from espalier.persistence import whole_file
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.importance.criterion import Criterion
from espalier.pruning.networks import build
from espalier.pruning.runtimes.exporting import Exported, export
from espalier.search.config.fields import GIVEN, ProxyName
from espalier.search.config.loading import Config, settings_of
from espalier.search.evaluation.importance import criterion_of
from espalier.search.files.network_file import load
from espalier.search.progress.reporter import here
from espalier.search.run import search_run
from espalier.search.run.exporting import example_of, metadata_of
from espalier.search.run.prepare import Given
from espalier.search.run.result import Result
from espalier.search.run.summary import text_of
from espalier.search.study.run_folder import folder_of
from espalier.search.tasks.task import Need, Task

STRENGTHS = (0.0, 1e-3, 1e-2)
"""Of the ladder, where a task can train and no others are asked for."""


@dataclass(frozen=True, repr=False)
class Found:
    """What a search found; printed, the table and the verdict.

    Attributes:
        network: the pruned network, under the tightest budget, in eval mode; fine-tuned where the task can train.
        result: what ``result.json`` holds.
    """

    network: nn.Module
    result: Result

    def __repr__(self) -> str:
        return text_of(self.result)

    def save(self, path: str | Path) -> None:
        """Copies the network's file; `espalier.load` reads it, and is given a network that is not built in.

        Raises:
            ArtefactError: it cannot be read, or written there.
        """
        try:
            content = Path(self.result.artefact).read_bytes()
            with whole_file(Path(path)) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise ArtefactError(f"cannot copy {self.result.artefact} to {path}: {error.strerror}") from error

    def export(self, path: str | Path, *, example_inputs: Inputs | None = None, **options: Any) -> Exported:
        """Writes the network as a file that runs without espalier.

            found.export("mine.onnx")

        Args:
            path: of the file, which ends in .onnx, .pt2, .xml or .safetensors.
            example_inputs: what the network takes; by default the example that the search was given.
            **options: those of `espalier.export`.

        Raises:
            EspalierError: as `espalier.export`.
        """
        artefact = Path(self.result.artefact)
        inputs = example_of(artefact) if example_inputs is None else example_inputs
        if inputs is None:
            raise ConfigError(f"{artefact} holds no example of what the network takes: give example_inputs")
        metadata = {**metadata_of(artefact), **options.pop("metadata", {})}
        return export(self.network, inputs, path, metadata=metadata, **options)


@overload
def search_widths(
    network: nn.Module,
    example_inputs: Inputs,
    task: Task,
    *,
    budget: Budget,
    trials: int = ...,
    sampler: str = ...,
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
) -> Found: ...


@overload
def search_widths(
    network: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = ...,
    workers: int | None = ...,
    storage: str | None = ...,
    study: str | None = ...,
    out: str | Path | None = ...,
    address: str | None = ...,
    progress: bool | None = ...,
) -> Found: ...


def search_widths(
    network: nn.Module | str | Path | Mapping[str, Any],
    example_inputs: Inputs | None = None,
    task: Task | None = None,
    *,
    budget: Budget | None = None,
    trials: int = 200,
    sampler: str = "auto",
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
) -> Found:
    """Searches the widths of a network under a budget, and compares what it finds with greedy pruning.

        found = espalier.search_widths(
            network, example_inputs, espalier.FunctionTask(score=evaluate, batches=inputs, train=train),
            budget=espalier.Budget(macs=0.5), trials=200, workers=4, storage="sqlite:///study.db", study="mine")

    Every candidate is slimmed, healed and scored, on Ray where there are workers; every score is in the storage, so
    that the same call, or `espalier.resume`, goes on after an interruption. Without training, the network is
    returned slimmed and with its batch norms recalibrated.

    Args:
        network: the dense network, trained; left as it is. Or a config: path of a YAML file, name of a shipped one,
            or the settings themselves; it then names network, task and budget.
        example_inputs: what the network takes; see `espalier.trace`.
        task: what the network is for.
        budget: what the pruned network may cost; fractions are of what the dense one costs.
        trials: candidates that are scored.
        sampler: what proposes them; see the docs of search.
        epochs: of every training: of a rung of the ladder, and of fine-tuning.
        strengths: of regularisation, rising, each a network that candidates are cut from; where the task can train.
            ``auto`` finds them by what they cost the whole network.
        criterion: by which channels are ranked: a name in `espalier.CRITERIA`, an `espalier.Criterion`, or a
            function of network and graph that gives (n_channels,) scores.
        overrides: ``key.path=value`` settings of a config that win over all of these.
        workers: evaluations at a time, 0 for none but this process; 2 by default, or what the config says.
        storage: any Optuna URL; by default SQLite in the run folder.
        study: name in the storage; by default the config file's, or ``search``.
        out: run folder; by default ``runs/<study>``.
        address: a Ray cluster to join.
        seed: of everything that is drawn.
        progress: False tells nothing of how far it is. By default there are bars in a terminal and in a notebook;
            elsewhere, a line on stderr for each stage and every 30 seconds. True writes more lines, to stdout.

    Raises:
        EspalierError: bad input; see `espalier.errors`.
    """
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ConfigError(f"workers must be a whole number from 0, got {workers!r}")
    given, settings = given_or_named(
        network,
        example_inputs,
        task,
        budget,
        trials=trials,
        sampler=sampler,
        epochs=epochs,
        strengths=strengths,
        criterion=criterion,
        seed=seed,
    )
    config, name = settings_of(settings, overrides, otherwise="search", workers=workers, address=address)
    name = study or name
    folder, reporter = Path(out or folder_of(name)), here(progress)
    result = search_run.run(config, study=name, out=folder, storage=storage, reporter=reporter, given=given)
    return _found(config, result, given)


def resume(
    storage: str,
    study: str,
    network: nn.Module | None = None,
    task: Task | None = None,
    *,
    criterion: Criterion | Callable[..., Tensor] | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    mirror: str | None = None,
    trust: str | Sequence[str] = (),
    progress: bool | None = None,
) -> Found:
    """Goes on with a study from its storage alone, on any machine.

    Args:
        storage: its URL.
        study: its name.
        network: the dense network with the weights that it had, where the search was given one; left as it is.
        task: likewise.
        criterion: likewise.
        overrides: ``key.path=value`` settings that win over the study's, such as ``search.trials=400``; those on
            which its trials depend cannot.
        out: run folder; by default as in `espalier.search.run.search_run.resume`.
        mirror: fsspec URL where the checkpoints are kept too.
        trust: packages, or callables as ``package.module:callable``, that the study may name its network, task and
            data from; built-in ones need none.
        progress: as in `search_widths`.

    Raises:
        EspalierError: bad input; see `espalier.errors`.
    """
    if isinstance(network, list | tuple):
        raise ConfigError("settings that win over the study's are given by name: resume(..., overrides=[...])")
    configs: list[Config] = []

    def kept(config: Config) -> Config:
        configs.append(config)
        return config

    given = search_run.given_again(
        storage, study, network, task, None if criterion is None else criterion_of(criterion)
    )
    result = search_run.resume(
        storage,
        study,
        given=given,
        overrides=overrides,
        change=kept,
        out=None if out is None else Path(out),
        reporter=here(progress),
        mirror=mirror,
        trust=trust,
    )
    return _found(configs[-1], result, given)


def given_or_named(
    network: nn.Module | str | Path | Mapping[str, Any],
    example_inputs: Inputs | None,
    task: Task | None,
    budget: Budget | None,
    *,
    trials: int,
    sampler: str,
    epochs: float,
    strengths: Sequence[float] | Literal["auto"],
    criterion: str | Criterion | Callable[..., Tensor],
    seed: int,
) -> tuple[Given | None, str | Path | Mapping[str, Any]]:
    """What a call was given, and its settings; or None, and the config that it names.

    Arguments are those of `search_widths`.

    Raises:
        ConfigError: it was given neither, or parts of both.
    """
    if not isinstance(network, nn.Module):
        if not isinstance(network, str | Path | Mapping):
            kind = type(network).__name__
            raise ConfigError(f"network must be an nn.Module, or a config that names one, got {kind}")
        if isinstance(example_inputs, list) and all(isinstance(each, str) for each in example_inputs):
            raise ConfigError(f"settings that win over a config's are given by name: overrides={example_inputs!r}")
        if example_inputs is not None or task is not None or budget is not None:
            raise ConfigError(
                "a config names its network, task and budget: give it none, or a network in its place"
            )
        return None, network
    if example_inputs is None or task is None or budget is None:
        raise ConfigError("a network is searched with example_inputs, a task and a budget")
    if not isinstance(task, Task):
        trainer = {"Trainer": "HuggingFaceTask", "LightningModule": "LightningTask", "YOLO": "UltralyticsTask"}
        kinds = [made for each in type(task).__mro__ for name, made in trainer.items() if each.__name__ == name]
        how = f"by espalier.{kinds[0]}" if kinds else "of a score by espalier.FunctionTask(score)"
        raise ConfigError(f"a task is made {how}, got {type(task).__name__}")
    if not isinstance(budget, Budget):
        raise ConfigError(f"a budget is, for example, espalier.Budget(macs=0.5), got {budget!r}")
    _check_tensors(network)
    named = isinstance(criterion, str)
    given = Given(network, task.on(example_inputs, network), None if named else criterion_of(criterion))
    settings = settings_for(task, budget, trials, sampler, epochs, strengths, seed)
    settings["search"]["criterion"] = criterion if named else GIVEN
    return given, settings


def settings_for(
    task: Task,
    budget: Budget,
    trials: int,
    sampler: str,
    epochs: float,
    strengths: Sequence[float] | Literal["auto"],
    seed: int,
) -> dict[str, Any]:
    """The settings of a search of what is given in Python; arguments are those of `search_widths`."""
    trains = "training" in task.offers
    length = epochs if trains else 0
    seeds = {} if trains else {"seeds": 1, "selection_seeds": 1}  # without training, all seeds are the same
    return {
        "model": {"name": GIVEN},
        "task": {"name": GIVEN},
        "budget": _budget(budget),
        "training": {"epochs": 0},
        "regularizer": {"strengths": _ladder(strengths) if trains else [0.0], "epochs": length},
        "finetune": {"epochs": length, **seeds},
        "search": {
            "trials": trials,
            "sampler": sampler,
            "measure": task.metric.key,
            "proxy": _proxy(task.offers),
        },
        "seed": seed,
    }


def _proxy(offers: frozenset[Need]) -> ProxyName:
    """A few steps of training, where that can be had: it tells most (docs/measurements/proxies.md)."""
    if "steps" in offers:
        return "sgd20"
    return "recalibrated" if "batches" in offers else "as_cut"


def _ladder(strengths: Sequence[float] | Literal["auto"]) -> list[float] | Literal["auto"]:
    if isinstance(strengths, str) and strengths == "auto":
        return strengths
    if isinstance(strengths, str) or not isinstance(strengths, Iterable):
        raise ConfigError(f"strengths must be a list of numbers or 'auto', got {strengths!r}")
    return list(strengths)


def _check_tensors(network: nn.Module) -> None:
    """Refuses a network whose tensors cannot be kept and compared."""
    if next(network.parameters(), None) is None:
        raise ConfigError(f"{type(network).__name__} has no parameters: there is nothing to prune")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ConfigError(f"{name} has no shape yet: run the network once before it is searched")
        if tensor.dtype == torch.bfloat16:
            raise ConfigError(f"{name} is in bfloat16: search the network in float32, and cast what is found")


def _budget(budget: Budget) -> dict[str, Any]:
    keys = {"macs": ("keep", "max_macs"), "params": ("keep_params", "max_params")}
    keys |= {"peak_memory": ("keep_memory", "max_memory"), "latency": ("latency", "max_latency_ms")}
    keys |= {metric: (f"keep_{metric}", f"max_{metric}") for metric in ("bit_operations", "weight_bytes")}
    found: dict[str, Any] = {}
    for metric, limit in vars(budget).items():
        if limit is not None:
            share, most = keys[metric]
            found[share if isinstance(limit, float) else most] = limit
    if budget.latency is not None:
        found["round_to"] = "auto"
        if "max_latency_ms" in found:
            found["max_latency_ms"] /= 1e6
    return found


def _found(config: Config, result: Result, given: Given | None) -> Found:
    if given is not None:
        return Found(load(result.artefact, given.network), result)
    return Found(load(result.artefact, lambda: build(config.model.name, **config.model.kwargs)), result)
