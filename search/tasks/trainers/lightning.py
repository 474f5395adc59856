"""A task made of a module and a data module of Lightning."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from espalier.errors import ConfigError
from espalier.pruning.graph.inputs import Inputs
from espalier.search.tasks.code_digests import digest_of
from espalier.search.tasks.functions import length_of
from espalier.search.tasks.trainers.trainer_task import Runs, TrainerTask, as_it_was, inputs_of_calls
from espalier.search.tasks.user_functions import generators_kept, shapes_of


class LightningTask(TrainerTask):
    """What a network is for, as a LightningModule and a LightningDataModule have it.

        task = espalier.LightningTask(module, datamodule, part="model", metric="val_f1", greater_is_better=True)
        found = espalier.search_widths(module.model, example_inputs, task, budget=espalier.Budget(macs=0.5))

    Networks are scored by `Trainer.validate`, trained by `Trainer.fit` and, where there are a ``test_step`` and a
    ``test_dataloader``, tested by `Trainer.test`: as a part of a copy of the module, or as the module itself. A
    trainer is made anew for each, with `trainer_kwargs`. What differs:

    - the epochs are the search's, and so is the device, of which there is one;
    - nothing is logged, printed or kept: there are no loggers, progress bars and checkpoints;
    - callbacks take part in training alone.

    Batches are what the network is called with when the training data are validated on.

    Args:
        module: the module; it stays as it is.
        datamodule: the data; ``prepare_data`` and ``setup`` are called for every trainer, in every process.
        metric: what ``validation_step`` logs.
        greater_is_better: whether more of it is better; by default, unless its name is that of a loss, an error or
            a distance.
        part: path of the network in the module, such as ``model``; where it is empty, the module is the network.
        unit: of the metric; percent are ``%``.
        test_metric: what ``test_step`` logs; by default the metric with ``test`` for ``val``.
        trainer_kwargs: of `lightning.Trainer`, such as ``precision`` and ``gradient_clip_val``.
        example_inputs: what the network takes, to trace it on; a search in Python is given it beside the network.

    Raises:
        ConfigError: there is nothing to validate with, or no such part.
    """

    whose = 'LightningTask(module, datamodule, part="model") goes with search_widths(module.model, ...)'

    def __init__(
        self,
        module: Any,
        datamodule: Any,
        *,
        metric: str = "val_loss",
        greater_is_better: bool | None = None,
        part: str = "",
        unit: str = "",
        test_metric: str | None = None,
        trainer_kwargs: Mapping[str, Any] | None = None,
        example_inputs: Inputs | None = None,
    ) -> None:
        base, data_base = _base(module, "LightningModule"), _base(datamodule, "LightningDataModule")

        def has(step: str, loader: str) -> bool:
            own, data = getattr(type(module), step), getattr(type(datamodule), loader)
            return own is not getattr(base, step) and data is not getattr(data_base, loader)

        if not has("validation_step", "val_dataloader"):
            raise ConfigError(
                "networks are scored by Trainer.validate: the module must have a validation_step, and the data "
                "module a val_dataloader"
            )
        try:
            shapes = shapes_of(module.get_submodule(part))
        except AttributeError:
            parts = ", ".join(name for name, _ in module.named_children()) or "none"
            raise ConfigError(f"part must be the path of a network in the module, {parts}, got {part!r}") from None
        names = {"validate": metric, "test": test_metric or metric.replace("val", "test")}
        settings = dict(trainer_kwargs or {})
        of_both = [(digest_of(type(each)), _plain(dict(each.hparams))) for each in (module, datamodule)]
        super().__init__(
            _Trainers(
                base.__module__.split(".")[0], _without(module, part), part, _alone(datamodule), names, settings
            ),
            hashlib.sha256(repr([names, part, of_both, _plain(settings)]).encode()).hexdigest()[:16],
            shapes,
            trains=has("training_step", "train_dataloader"),
            tests=has("test_step", "test_dataloader"),
            example_inputs=example_inputs,
            metric=metric.removeprefix("val_"),
            unit=unit,
            greater_is_better=greater_is_better,
        )


@dataclass
class _Trainers(Runs):
    """Makes trainers, and has them score and train.

    Attributes:
        package: that the module is of, ``lightning`` or ``pytorch_lightning``.
        module: without its network; None where it is the network.
        part: path of the network in the module.
        datamodule: the data.
        names: ``validate`` and ``test`` -> the metric of each.
        settings: of trainers.
    """

    package: str
    module: Any
    part: str
    datamodule: Any
    names: Mapping[str, str]
    settings: Mapping[str, Any]

    def score(self, network: nn.Module) -> float:
        """On the validation data."""
        return self._read(network, "validate")

    def test(self, network: nn.Module) -> float:
        """On the test data."""
        return self._read(network, "test")

    def _read(self, network: nn.Module, run: str) -> float:
        with self._trainer(network) as trainer:
            module = self._module_of(copy.deepcopy(network))  # it is moved
            found = getattr(trainer, run)(module, datamodule=self.datamodule, verbose=False)
        logged = {name: value for of_loader in found for name, value in of_loader.items()}
        if (name := self.names[run]) not in logged:
            which = "metric" if run == "validate" else "test_metric"
            given = ", ".join(logged) or "nothing"
            raise ConfigError(f"{which} must be one that {run} logs, which are {given}, got {name!r}")
        return float(logged[name])

    def train(self, network: nn.Module, *, epochs: float, seed: int, steps: int | None = None) -> None:
        """In place, for so many epochs, or steps; a fraction of an epoch is so many of its batches."""
        whole = max(1, math.ceil(epochs))
        limit = self.settings.get("limit_train_batches", 1.0) or 1.0
        share = limit * epochs / whole
        length = {
            "max_epochs": whole,
            "limit_train_batches": max(1, int(share)) if isinstance(limit, int) else share,
        }
        if steps is not None:
            length = {"max_epochs": -1, "max_steps": steps, "limit_train_batches": limit}
        with as_it_was(network), self._trainer(network, length, seed) as trainer:
            trainer.fit(self._module_of(network.train()), datamodule=self.datamodule)  # it leaves modes as they are

    def inputs(self, network: nn.Module, example: Inputs, examples: int) -> list[Inputs]:
        """What the network is called with when the training data are validated on."""
        module = self._module_of(copy.deepcopy(network))
        with self._trainer(network) as trainer, inputs_of_calls(module.get_submodule(self.part)) as seen:
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            loader = self.datamodule.train_dataloader()
            if isinstance(loader, Mapping | list | tuple):
                raise ConfigError("several training dataloaders at a time are not supported")
            trainer.validate(module, dataloaders=_UntilEnough(loader, seen, examples), verbose=False)
        return seen

    def _module_of(self, network: nn.Module) -> Any:
        """The module with this network in its place."""
        if self.module is None:
            return network
        module = copy.deepcopy(self.module)
        module.set_submodule(self.part, network)
        return module

    @contextmanager
    def _trainer(self, network: nn.Module, length: Mapping[str, Any] | None = None, seed: int = 0) -> Iterator[Any]:
        """A silent trainer, on the network's device; without callbacks where nothing is trained."""
        lightning = importlib.import_module("lightning.pytorch" if self.package == "lightning" else self.package)
        device = next(network.parameters()).device
        given = self.settings.get("callbacks") or []
        own = [each for each in (given if isinstance(given, Iterable) else [given]) if not _shows(lightning, each)]
        log = logging.getLogger(lightning.__name__)
        level, where = log.level, "cpu" if device.type == "cpu" else "gpu"
        with TemporaryDirectory() as folder, warnings.catch_warnings(), generators_kept(seed):
            warnings.filterwarnings("ignore", module=self.package)
            try:
                log.setLevel(logging.ERROR)
                yield lightning.Trainer(
                    **dict(self.settings)
                    | ({"max_steps": -1} | dict(length or {"max_epochs": 1}))
                    | {
                        "min_epochs": None,
                        "min_steps": None,
                        "callbacks": copy.deepcopy(own) if length else [],
                        "accelerator": where,
                        "devices": 1 if where == "cpu" else [device.index or 0],
                        "strategy": "auto",
                        "num_nodes": 1,
                        "logger": lightning.loggers.logger.DummyLogger(),
                        "enable_checkpointing": False,
                        "enable_progress_bar": False,
                        "enable_model_summary": False,
                        "default_root_dir": folder,
                    }
                )
            finally:
                log.setLevel(level)
                self.datamodule.trainer = None


class _UntilEnough:
    """A loader that ends when enough examples were seen.

    Args:
        loader: that batches come from.
        seen: what the network was called with so far.
        examples: how many are enough.
    """

    def __init__(self, loader: Any, seen: list[Inputs], examples: int) -> None:
        self._loader, self._seen, self._examples = loader, seen, examples

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if sum(map(length_of, self._seen)) >= self._examples:
                return
            yield batch


def _base(thing: Any, name: str) -> Any:
    """Lightning's own class of a module or a data module."""
    for kind in type(thing).__mro__:
        if kind.__name__ == name and kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning"):
            return kind
    raise ConfigError(f"{name.removeprefix('Lightning').lower()} must be a {name}, got {type(thing).__name__}")


def _without(module: Any, part: str) -> Any:
    """A copy of the module without the network, which is put there again; None where it is the network."""
    if not part:
        return None
    network = module.get_submodule(part)
    return copy.deepcopy(module, {id(network): nn.Identity()})


def _alone(datamodule: Any) -> Any:
    """The data without a trainer that they were used by."""
    made = copy.copy(datamodule)
    made.trainer = None
    return made


def _shows(lightning: Any, callback: Any) -> bool:
    """Whether a callback prints, or writes checkpoints."""
    callbacks = lightning.callbacks
    return isinstance(callback, callbacks.Checkpoint | callbacks.ProgressBar | callbacks.ModelSummary)


def _plain(value: Any) -> Any:
    """What does not change from one process to the next: of objects, the source of their class."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else digest_of(value)
