"""A task made of a trainer of Hugging Face transformers."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, MissingPackage
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.torch_private import tree_map
from espalier.search.tasks.code_digests import digest_of
from espalier.search.tasks.functions import length_of
from espalier.search.tasks.trainers.trainer_task import Runs, TrainerTask, as_it_was, inputs_of_calls
from espalier.search.tasks.user_functions import generators_kept, shapes_of

PARTS = (
    "data_collator",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "compute_loss_func",
    "compute_metrics",
    "optimizer_cls_and_kwargs",
    "preprocess_logits_for_metrics",
)
"""What a trainer is made of, beside its network, arguments and callbacks: attributes and arguments alike."""

SPEEDS = ("runtime", "per_second", "preparation_time", "epoch")
"""Ends of the names of what `evaluate` gives and is no metric."""

SILENT = ("output_", "log", "save_", "hub_", "push_", "report_", "run_", "disable_", "resume_", "dataloader_num")
"""Begins of the names of arguments that no result depends on."""


class HuggingFaceTask(TrainerTask):
    """What a network is for, as a `transformers.Trainer` has it.

        trainer = transformers.Trainer(network, arguments, train_dataset=..., eval_dataset=..., compute_metrics=...)
        task = espalier.HuggingFaceTask(trainer, metric="eval_accuracy")
        found = espalier.search_widths(network, example_inputs, task, budget=espalier.Budget(macs=0.5))

    Networks are scored by `Trainer.evaluate` and trained by `Trainer.train`. For each, a trainer is made anew, with
    the same arguments, optimiser, scheduler, collator, callbacks and loss. What differs:

    - the epochs and the seed are the search's, and ``max_steps`` is not used;
    - checkpoints are written only for ``load_best_model_at_end``, into a temporary folder;
    - nothing is reported to trackers, printed, or pushed, and callbacks take part in training alone.

    Batches are those of the training data, without labels, unless `example_inputs` name them.

    Args:
        trainer: a trainer of the network that is searched; or a function that makes one for a network it is given,
            as a trainer with arguments of its own, or with optimisers that hold weights, needs. Its network may
            be a part of the trainer's model. It is sent to workers by cloudpickle.
        metric: a key of what `evaluate` gives; ``eval_`` may be left out.
        greater_is_better: whether more of it is better; by default, as `TrainingArguments` has it, or unless its
            name is that of a loss, an error or a distance.
        unit: of the metric; percent are ``%``.
        test_dataset: data that nothing is chosen by, evaluated once, at the end.
        example_inputs: what the network takes, to trace it on; a search in Python is given it beside the network.

    Raises:
        ConfigError: no trainer can be made like it.
        MissingPackage: transformers or accelerate is not installed.
    """

    whose = "trainer = Trainer(network, ...)"

    def __init__(
        self,
        trainer: Any,
        *,
        metric: str = "eval_loss",
        greater_is_better: bool | None = None,
        unit: str = "",
        test_dataset: Any = None,
        example_inputs: Inputs | None = None,
    ) -> None:
        make: Callable[..., Any]
        if isinstance(trainer, _transformers().Trainer):
            make = again = _Again.of(trainer)
            trains, shapes, digests = trainer.train_dataset is not None, shapes_of(trainer.model), again.digests()
            if greater_is_better is None and _same(trainer.args.metric_for_best_model, metric):
                greater_is_better = trainer.args.greater_is_better
        elif callable(trainer):
            make, trains, shapes, digests = trainer, True, None, [digest_of(trainer)]
        else:
            raise ConfigError(
                f"trainer must be a transformers.Trainer, or a function that makes one for a network, got "
                f"{type(trainer).__name__}"
            )
        super().__init__(
            _Trainers(make, metric, test_dataset),
            hashlib.sha256(repr([metric, digests]).encode()).hexdigest()[:16],
            shapes,
            trains=trains,
            tests=test_dataset is not None,
            example_inputs=example_inputs,
            metric=metric.removeprefix("eval_"),
            unit=unit,
            greater_is_better=greater_is_better,
        )


@dataclass
class _Trainers(Runs):
    """Makes trainers, and has them score and train.

    Attributes:
        make: network -> trainer.
        metric: a key of what they give.
        test_dataset: or None.
    """

    make: Callable[..., Any]
    metric: str
    test_dataset: Any = None

    def score(self, network: nn.Module) -> float:
        """On the trainer's eval dataset."""
        return self._read(network, None)

    def test(self, network: nn.Module) -> float:
        """On the test dataset."""
        return self._read(network, self.test_dataset)

    def _read(self, network: nn.Module, dataset: Any) -> float:
        with self.trainer(copy.deepcopy(network)) as trainer:  # it may be cast, and moved
            found = trainer.evaluate(dataset) if dataset is not None else trainer.evaluate()
        if (key := next((key for key in found if _same(key, self.metric)), None)) is None:
            given = ", ".join(key for key in found if not key.endswith(SPEEDS)) or "none"
            raise ConfigError(f"metric must be one that the trainer's evaluate gives, {given}, got {self.metric!r}")
        return float(found[key])

    def inputs(self, network: nn.Module, example: Inputs, examples: int) -> list[Inputs]:
        """Without labels, unless the example names them."""
        taken: list[Inputs] = []
        with self.trainer(network) as trainer:
            if trainer.train_dataset is None:
                raise ConfigError("the trainer must have a train_dataset: pruned networks are trained on it")
            if not hasattr(trainer.train_dataset, "__len__"):
                raise ConfigError(
                    "the train_dataset must have a length: the search counts what it trains in epochs"
                )
            torch.manual_seed(0)
            left_out = set(trainer.label_names) - set(example if isinstance(example, Mapping) else ())
            loader = trainer.get_train_dataloader()
            for batch in getattr(loader, "base_dataloader", loader):  # accelerate's would be told to all trainers
                if trainer.model is network:
                    taken.append({key: value for key, value in batch.items() if key not in left_out})
                else:
                    with inputs_of_calls(network) as seen, torch.no_grad():
                        trainer.model.eval()(**tree_map(partial(_moved, trainer.args.device), dict(batch)))
                    taken += seen
                if sum(map(length_of, taken)) >= examples:
                    break
        return taken

    def train(self, network: nn.Module, *, epochs: float, seed: int, steps: int | None = None) -> None:
        """In place, for so many epochs, or steps of the optimiser."""
        length = {"num_train_epochs": epochs, "max_steps": -1 if steps is None else steps}
        settings = length | {"seed": seed, "data_seed": None}
        with as_it_was(network), self.trainer(network, settings) as trainer:
            _transformers().set_seed(seed)
            trainer.train()

    @contextmanager
    def trainer(self, network: nn.Module, settings: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """A silent trainer of a network, which writes into a temporary folder; leaves generators as they were.

        Args:
            network: that it is made for.
            settings: arguments of a training; by default there is none, and no callbacks either.
        """
        transformers = _transformers()
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            with TemporaryDirectory() as folder, generators_kept():
                again = isinstance(self.make, _Again)
                made = self.make(network, folder) if again else self.make(network)
                if not isinstance(made, transformers.Trainer):
                    raise ConfigError(f"trainer must make a transformers.Trainer, got {type(made).__name__}")
                if all(module is not network for module in made.model.modules()):
                    raise ConfigError(
                        "trainer must make a trainer of the network that it is given, and made one of another: "
                        "lambda network: Trainer(network, ...)"
                    )
                if made.eval_dataset is None:
                    raise ConfigError("the trainer must have an eval_dataset: networks are scored on it")
                for callback in list(made.callback_handler.callbacks):
                    wanted = (
                        settings is not None
                        if _is_own(callback)
                        else type(callback) is transformers.DefaultFlowCallback
                    )
                    if not wanted:
                        made.remove_callback(callback)
                transformers.logging.set_verbosity_error()  # a user's arguments may have set another
                made.args = copy.copy(made.args)
                saves = {} if made.args.load_best_model_at_end else {"save_strategy": "no"}
                for name, value in (dict(settings or {}) | saves | _quiet(folder)).items():
                    setattr(made.args, name, value)
                yield made
        finally:
            transformers.logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class _Again:
    """Makes trainers like another one.

    Attributes:
        kind: class of the trainers.
        args: `TrainingArguments`.
        callbacks: the user's.
        parts: what else they are made of, by name.
    """

    kind: Any
    args: Any
    callbacks: Sequence[Any]
    parts: Mapping[str, Any]

    @classmethod
    def of(cls, trainer: Any) -> _Again:
        """Takes it apart.

        Raises:
            ConfigError: it has what cannot be given to another one.
        """
        transformers, kind = _transformers(), type(trainer)
        made_by = "give a function that makes it: HuggingFaceTask(lambda network: "
        if kind.__init__ not in (transformers.Trainer.__init__, transformers.Seq2SeqTrainer.__init__):
            raise ConfigError(
                f"a {kind.__name__} has an __init__ of its own, {made_by}{kind.__name__}(network, ...))"
            )
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # within accelerate's
        fresh = trainer.state.global_step == 0
        if (fresh and (optimizer or trainer.lr_scheduler) is not None) or (
            optimizer is not None
            and trainer.optimizer_cls_and_kwargs is None
            and type(optimizer) is not kind.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)[0]
        ):
            raise ConfigError(
                f"the trainer was given an optimiser or a scheduler that holds weights of one network: {made_by}"
                "Trainer(network, ..., optimizers=...)), or give it optimizer_cls_and_kwargs"
            )
        parts = {name: getattr(trainer, name) for name in PARTS}
        return cls(kind, trainer.args, list(filter(_is_own, trainer.callback_handler.callbacks)), parts)

    def __call__(self, network: nn.Module, folder: str) -> Any:
        """A trainer of a network."""
        args = dataclasses.replace(self.args, **_quiet(folder))
        return self.kind(model=network, args=args, callbacks=copy.deepcopy(self.callbacks), **self.parts)

    def __getstate__(self) -> dict[str, Any]:
        # What arguments know of the devices of this process is not sent.
        return vars(self) | {"args": dataclasses.replace(self.args)}

    def digests(self) -> list[Any]:
        """What results depend on: arguments that are not the default, and the source of functions."""
        fields = [each for each in dataclasses.fields(self.args) if not each.name.startswith((*SILENT, "_"))]
        set_by_user = {
            each.name: str(value)
            for each in fields
            if (value := getattr(self.args, each.name)) != each.default and each.name not in ("seed", "data_seed")
        }
        parts = [name for name in PARTS if not name.endswith(("dataset", "class"))]
        functions = {name: digest_of(value) for name in parts if (value := self.parts[name]) is not None}
        return [self.kind.__name__, set_by_user, functions, [digest_of(each) for each in self.callbacks]]


def _transformers() -> Any:
    try:
        importlib.import_module("accelerate")
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingPackage(
            "HuggingFaceTask needs transformers and accelerate: pip install 'espalier[huggingface]'"
        ) from error


def _quiet(folder: str) -> dict[str, Any]:
    """Arguments of a trainer that tells nobody, and writes into a folder."""
    return {"output_dir": folder, "report_to": [], "push_to_hub": False, "disable_tqdm": True, "log_level": "error"}


def _is_own(callback: Any) -> bool:
    """Whether a callback is the user's: none that trainers add by themselves, to go on, to print and to report."""
    transformers = _transformers()
    defaults = (transformers.DefaultFlowCallback, transformers.PrinterCallback, transformers.ProgressCallback)
    elsewhere = ("transformers.integrations", "transformers.utils.notebook")
    return type(callback) not in defaults and not type(callback).__module__.startswith(elsewhere)


def _same(one: str | None, other: str) -> bool:
    """Whether two names are of one metric."""
    return one is not None and one.removeprefix("eval_") == other.removeprefix("eval_")


def _moved(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
