"""A search of a network that Lightning trains."""

from __future__ import annotations

import copy
import logging
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

import espalier
from espalier.errors import ConfigError, EspalierError, StudyMismatch
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Regularization, Stage
from espalier.search.tasks.trainers.lightning import LightningTask

lightning: Any = pytest.importorskip("lightning")

EXAMPLE = torch.zeros(1, 4)
HALF = espalier.Budget(macs=0.5)
SHORT = ["finetune.seeds=1", "finetune.selection_seeds=1", "search.finalists=1"]
PLAIN: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def rows(seed: int, count: int = 64) -> TensorDataset:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, (inputs.prod(1, keepdim=True) > 0).float())


class Data(lightning.LightningDataModule):  # type: ignore[misc]
    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.size = size

    def setup(self, stage: str) -> None:
        self.parts = [rows(seed) for seed in range(3)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=self.size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=self.size)

    def test_dataloader(self) -> Any:
        return DataLoader(self.parts[2], batch_size=self.size)


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A loss that scales what the network gives, and a scale that is trained too."""

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 1))
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.scale * self.model(batch[0]), batch[1])

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        self.logger.experiment.add_scalar("loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log_dict({"val_loss": self.loss(batch), "val_size": float(len(batch[0]))})

    def test_step(self, batch: Any, _: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.rate)
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps), "interval": "step"}
        ]


class Whole(Module):
    """A module that is the network itself."""

    def forward(self, x: Tensor) -> Any:
        return self.model(x)

    def loss(self, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def module_of(kind: Any = Module, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checked(task: LightningTask, network: nn.Module, example: Any = EXAMPLE) -> LightningTask:
    made = task.on(example, network)
    made.check(network)
    return made


# ------------------------------------------------------------------------------------------------ from end to end


def test_names_and_directions_of_metrics() -> None:
    """By the name, as of other tasks: an accuracy is not to be made small."""
    for name, better in {"val_loss": False, "val_acc": True, "val_f1": True, "val_mae": False}.items():
        metric = LightningTask(module_of(Module), Data(), part="model", metric=name).metric
        assert metric.greater_is_better is better and metric.title == name.removeprefix("val_")
    task = LightningTask(module_of(Module), Data(), part="model", metric="val_perplexity", greater_is_better=False)
    assert not task.metric.greater_is_better


@pytest.mark.parametrize("kind", [Module, Whole])
def test_a_search(kind: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module, data = module_of(kind), Data()
    if kind is Whole:  # used before, as a user's are
        logger = lightning.pytorch.loggers.logger.DummyLogger()
        lightning.Trainer(max_epochs=1, **PLAIN | {"logger": logger}).fit(module, datamodule=data)
    wanted = [
        lightning.Trainer(**PLAIN).validate(module, datamodule=Data(), verbose=False)[0]["val_loss"],
        lightning.Trainer(**PLAIN).test(module, datamodule=Data(), verbose=False)[0]["test_loss"],
    ]
    before, there = copy.deepcopy(module.state_dict()), sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    network = (module if kind is Whole else module.model).eval()
    task = LightningTask(module, data, part="" if kind is Whole else "model")
    found = espalier.search_widths(
        network, EXAMPLE, task, budget=HALF, trials=3, epochs=2, strengths=[0.0, 0.01], workers=0, progress=False
    )
    said = capfd.readouterr()
    assert said.out == "" and "lightning" not in said.err.lower() and "gpu" not in said.err.lower()
    result, graph = found.result, espalier.trace(network, EXAMPLE)
    assert result.searched.macs <= 0.5 * graph.macs(graph.sizes)
    assert (result.dense.held_out, result.dense.after) == pytest.approx(wanted)
    assert result.metric.title == "loss" and not result.metric.greater_is_better
    assert result.tested and result.finetuned and len(result.searched.after_seeds) == 3
    assert {path.parts[len(tmp_path.parts)] for path in {*tmp_path.rglob("*")} - {*there}} == {"runs"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.timeout(300)
@pytest.mark.distributed
def test_workers_get_modules_that_are_no_ones_module() -> None:
    module = module_of()
    values = [
        espalier.search_widths(
            module.model,
            EXAMPLE,
            LightningTask(module, Data(), part="model"),
            budget=HALF,
            trials=3,
            epochs=1,
            strengths=[0.0],
            workers=workers,
            study=f"workers{workers}",
            overrides=SHORT,
        ).result
        for workers in (0, 1)
    ]
    assert values[0].dense.after == pytest.approx(values[1].dense.after, rel=1e-5)
    assert values[0].greedy.after == pytest.approx(values[1].greedy.after, rel=1e-3)


# ------------------------------------------------------------------------------------------------ training


class Counts(lightning.Callback):  # type: ignore[misc]
    """Counts steps, and ends a training after so many of all that it has seen."""

    seen: ClassVar[list[int]] = []

    def __init__(self, most: int) -> None:
        self.most, self.steps = most, 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps += 1
        Counts.seen.append(self.steps)
        trainer.should_stop = self.steps >= self.most


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipping and accumulation": {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
    "bfloat16": {"precision": "bf16-mixed"},
    "fewer batches": {"limit_train_batches": 2},
}


@pytest.mark.parametrize("strength", [0.0, 0.05])
@pytest.mark.parametrize("settings", SETTINGS)
def test_training_is_lightnings_own(settings: str, strength: float) -> None:
    module, graph = module_of(), espalier.trace(module_of().model, EXAMPLE)
    own = SETTINGS[settings]
    task = checked(LightningTask(module, Data(), part="model", trainer_kwargs=own), module.model)
    inside, by_hand = copy.deepcopy(module.model), module_of()
    penalty = Regularization(REGULARIZERS["oicsr_gl"](graph), strength)
    task.train(inside, Stage("finetune", 2.0), seed=7, regularization=penalty)

    by_hand.train()
    logger = lightning.pytorch.loggers.logger.DummyLogger()
    trainer = lightning.Trainer(max_epochs=2, **PLAIN | {"logger": logger} | own)
    with torch.random.fork_rng(), espalier.regularized(by_hand.model, graph, "oicsr_gl", strength=strength):
        torch.manual_seed(7)
        trainer.fit(by_hand, datamodule=Data())
    for (name, weight), wanted in zip(
        inside.state_dict().items(), by_hand.model.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, wanted), name
    assert not inside.training and "forward" not in vars(inside)
    assert not torch.equal(inside[0].weight, module.model[0].weight)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 2), (1.0, 4), (1.5, 6), (2.0, 8)])
def test_a_fraction_of_an_epoch_is_so_many_batches(epochs: float, steps: int) -> None:
    module = module_of()
    settings = {"callbacks": Counts(100)}
    task = checked(LightningTask(module, Data(), part="model", trainer_kwargs=settings), module.model)
    Counts.seen = []
    task.train(copy.deepcopy(module.model), Stage("finetune", epochs), seed=0)
    assert Counts.seen == list(range(1, steps + 1))


def test_callbacks_begin_anew_and_none_writes(tmp_path: Path) -> None:
    module = module_of()
    callbacks = [Counts(3), lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept")]
    settings = {"callbacks": callbacks, "max_steps": 1, "default_root_dir": tmp_path / "root", "logger": True}
    task = checked(LightningTask(module, Data(), part="model", trainer_kwargs=settings), module.model)
    Counts.seen = []
    for _ in range(2):
        task.train(copy.deepcopy(module.model), Stage("finetune", 3.0), seed=0)
    assert Counts.seen == [1, 2, 3, 1, 2, 3]
    assert not list(tmp_path.iterdir())


def test_nobodys_generators_and_loggers_change() -> None:
    module = module_of()
    log = logging.getLogger("lightning.pytorch")

    def state() -> tuple[Any, ...]:
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist(), log.level

    before = state()
    task = checked(LightningTask(module, Data(), part="model"), module.model)
    task.evaluate(module.model, "scoring")
    task.train(copy.deepcopy(module.model), Stage("finetune", 1.0), seed=3)
    assert state() == before


class Draws(Module):
    """Trains on what the generators of Python and NumPy draw."""

    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch) * (1 + random.random() + float(np.random.rand()))


def test_the_seed_is_that_of_every_generator() -> None:
    module = module_of(Draws)
    task = checked(LightningTask(module, Data(), part="model"), module.model)
    one, same, other = (copy.deepcopy(module.model) for _ in range(3))
    for network, seed in [(one, 1), (same, 1), (other, 2)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "manual_seed", lambda _: torch.default_generator.manual_seed(0))
            task.train(network, Stage("finetune", 1.0), seed=seed)
    assert torch.equal(one[0].weight, same[0].weight) and not torch.equal(one[0].weight, other[0].weight)


# ------------------------------------------------------------------------------------------------ inputs


def test_a_candidate_takes_a_few_steps_of_the_trainer() -> None:
    module, seen = module_of(), list[int]()
    task = checked(LightningTask(module, Data(), part="model"), module.model)
    scoring = task.scoring("scoring", module.model, calibration=8, steps=3)
    runner, networks = (
        Runner(Execution(memory_format="contiguous")),
        [copy.deepcopy(module.model) for _ in range(2)],
    )
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        for network in networks:
            scoring.step(runner, network, 3)
    finally:
        handle.remove()
    assert len(seen) == 6 and not networks[0].training
    weights = [network[0].weight for network in (*networks, module.model)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_batches_are_what_the_network_is_called_with() -> None:
    module = module_of()
    task = checked(LightningTask(module, Data(), part="model"), module.model)

    def calibration(examples: int) -> Any:
        runner = Runner(Execution(memory_format="contiguous"))
        return task.scoring("scoring", module.model, calibration=examples, steps=0).calibration(runner)

    one, many = calibration(10), calibration(40)
    assert [len(batch) for (batch,) in many][:3] == [16, 16, 16] and len(many) <= 4 and len(one) <= 2
    known = {tuple(row) for row in rows(0).tensors[0].tolist()}
    assert all(tuple(row) in known for (batch,) in many for row in batch.tolist())
    assert torch.equal(one[0][0], many[0][0])


def test_a_study_goes_on_with_the_same_modules_only() -> None:
    module = module_of()

    def task(other: Any = None, data: Any = None, **options: Any) -> LightningTask:
        return LightningTask(other or module_of(), data or Data(), part="model", **options)

    espalier.search_widths(
        module.model, EXAMPLE, task(), budget=HALF, trials=2, epochs=1, strengths=[0.0], workers=0, overrides=SHORT
    )
    where = "sqlite:///runs/search/study.db", "search", module.model
    assert espalier.resume(*where, task(), overrides=["search.trials=3"]).result.trials == 3
    for other in [
        task(module_of(rate=0.5)),
        task(data=Data(8)),
        task(trainer_kwargs={"gradient_clip_val": 0.1}),
        task(metric="val_size"),
    ]:
        with pytest.raises(StudyMismatch, match=r"task\.trainer"):
            espalier.resume(*where, other)


# ------------------------------------------------------------------------------------------------ bad input


class NoStep(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.model = module_of().model


class NoData(lightning.LightningDataModule):  # type: ignore[misc]
    def train_dataloader(self) -> Any:
        return DataLoader(rows(0))


class Several(Data):
    def train_dataloader(self) -> Any:
        return [super().train_dataloader()] * 2


BAD: dict[str, tuple[Callable[[], LightningTask], str]] = {
    "no step": (lambda: LightningTask(NoStep(), Data(), part="model"), "the module must have a validation_step"),
    "no data": (lambda: LightningTask(module_of(), NoData(), part="model"), "and the data module a val_dataloader"),
    "no part": (
        lambda: LightningTask(module_of(), Data(), part="body"),
        "part must be the path of a network in the module, model, got 'body'",
    ),
    "no module": (
        lambda: LightningTask(nn.Linear(2, 2), Data()),
        "module must be a LightningModule, got Linear",
    ),
    "loaders": (
        lambda: LightningTask(module_of(), DataLoader(rows(0))),
        "datamodule must be a LightningDataModule, got DataLoader",
    ),
    "another network": (
        lambda: LightningTask(module_of(), Data()),
        r"the trainer must be that of the network .* differs in .*part=\"model\"",
    ),
    "no such metric": (
        lambda: LightningTask(module_of(), Data(), part="model", metric="val_f1"),
        "metric must be one that validate logs, which are val_loss, val_size, got 'val_f1'",
    ),
    "several loaders": (
        lambda: LightningTask(module_of(), Several(), part="model"),
        "several training dataloaders at a time are not supported",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_ends_in_a_line(bad: str) -> None:
    make, message = BAD[bad]
    with pytest.raises(EspalierError, match=message) as raised:
        checked(make(), module_of().model)
    assert "\n" not in str(raised.value)


def test_a_test_metric_that_is_not_logged() -> None:
    module = module_of()
    task = checked(LightningTask(module, Data(), part="model", test_metric="test_f1"), module.model)
    with pytest.raises(
        ConfigError, match="test_metric must be one that test logs, which are test_loss, got 'test_f1'"
    ):
        task.evaluate(module.model, "test")
