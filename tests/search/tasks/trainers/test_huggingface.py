"""A search of a network that a trainer of Hugging Face transformers trains."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from ray import cloudpickle
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import espalier
from espalier.errors import EspalierError, MissingPackage, StudyMismatch
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.search.study.storage import open_storage
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Regularization, Stage
from espalier.search.tasks.trainers.huggingface import HuggingFaceTask

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

WORDS, LENGTH = 20, 6
EXAMPLE = {"input_ids": torch.zeros(1, LENGTH, dtype=torch.long)}
HALF = espalier.Budget(macs=0.5)


def draw(count: int, seed: int) -> Rows:
    texts = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": text, "labels": (text > WORDS // 2).sum() // 4} for text in texts]


Rows = list[dict[str, Any]]
TRAINING, HELD_OUT, TEST = draw(48, 0), draw(32, 1), draw(32, 2)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).eval()


def arguments(folder: Path, **options: Any) -> Any:
    plain: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(str(folder), **plain | options)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer_of(network: nn.Module, folder: Path, kind: Any = None, **options: Any) -> Any:
    given = {"args": arguments(folder), "train_dataset": TRAINING, "eval_dataset": HELD_OUT}
    return (kind or transformers.Trainer)(network, **given | {"compute_metrics": accuracy} | options)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checked(task: HuggingFaceTask, network: nn.Module, example: Any = EXAMPLE) -> HuggingFaceTask:
    made = task.on(example, network)
    made.check(network)
    return made


def calibration(task: HuggingFaceTask, network: nn.Module, examples: int) -> Sequence[Any]:
    runner = Runner(Execution(memory_format="contiguous"))
    return task.scoring("scoring", network, calibration=examples, steps=0).calibration(runner)


def test_a_candidate_takes_a_few_steps_of_the_trainer(tmp_path: Path) -> None:
    """The same for every candidate, and what comes after it is as ever."""
    network, seen = bert(), list[int]()
    task = checked(HuggingFaceTask(trainer_of(network, tmp_path), metric="accuracy"), network)
    scoring = task.scoring("scoring", network, calibration=8, steps=3)
    runner = Runner(Execution(memory_format="contiguous"))
    one, other = copy.deepcopy(network), copy.deepcopy(network)
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        scoring.step(runner, one, 3)
    finally:
        handle.remove()
    scoring.step(runner, other, 3)
    assert len(seen) == 3 and not one.training
    assert_equal(one, other)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), network.parameters(), strict=True))
    trained, again = copy.deepcopy(network), copy.deepcopy(network)
    for each in (trained, again):
        task.train(each, Stage("finetune", 1.0), seed=0)
    assert_equal(trained, again)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, weight), wanted in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, wanted), name


# ------------------------------------------------------------------------------------------------ from end to end


class Stops(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends a training after three steps of all that it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += 1
        control.should_training_stop = self.seen >= 3


def test_a_search(tmp_path: Path) -> None:
    network, folder = bert(), tmp_path / "theirs"
    trainer = trainer_of(network, folder)
    trainer.train()  # as users do before they search
    before, there = copy.deepcopy(network.state_dict()), sorted(folder.rglob("*"))
    wanted = trainer.evaluate()["eval_accuracy"], trainer.evaluate(TEST)["eval_accuracy"]
    task = HuggingFaceTask(trainer, metric="accuracy", test_dataset=TEST)
    found = espalier.search_widths(
        network.eval(), EXAMPLE, task, budget=HALF, trials=3, epochs=1, strengths=[0.0, 0.01], workers=0
    )
    result, graph = found.result, espalier.trace(network, EXAMPLE)
    assert result.searched.macs <= 0.5 * graph.macs(graph.sizes)
    assert (result.dense.held_out, result.dense.after) == pytest.approx(wanted)
    assert result.metric.title == "accuracy" and result.metric.greater_is_better
    assert result.tested and result.finetuned and len(result.searched.after_seeds) == 3
    assert sorted(folder.rglob("*")) == there  # nothing was written where the user's checkpoints are
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    of_found = trainer_of(copy.deepcopy(found.network), folder).evaluate(TEST)["eval_accuracy"]
    assert any(of_found == pytest.approx(value) for value in result.searched.after_seeds)


@pytest.mark.timeout(300)
@pytest.mark.distributed
def test_workers_get_trainers_that_are_no_ones_module(tmp_path: Path) -> None:
    network, arguments_of = bert(), arguments(tmp_path / "theirs")

    class Halved(transformers.Trainer):  # type: ignore[misc]
        def __init__(self, share: float, model: nn.Module) -> None:
            self.share = share
            super().__init__(model, arguments_of, train_dataset=TRAINING, eval_dataset=HELD_OUT)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return (self.share * loss[0], loss[1]) if isinstance(loss, tuple) else self.share * loss

    values = {}
    for name, workers in {"here": 0, "there": 1}.items():
        task = HuggingFaceTask(lambda model: Halved(0.5, model))
        found = espalier.search_widths(
            network,
            EXAMPLE,
            task,
            budget=HALF,
            trials=3,
            epochs=0.5,
            strengths=[0.0],
            workers=workers,
            study=name,
            overrides=["finetune.seeds=1", "finetune.selection_seeds=1"],
        )
        study = optuna.load_study(
            study_name=name, storage=open_storage(f"sqlite:///runs/{name}/study.db", create=False)
        )
        values[name] = sorted(trial.value for trial in study.trials if trial.value is not None)
        loss = trainer_of(copy.deepcopy(network), tmp_path / "theirs").evaluate()["eval_loss"]
        assert found.result.dense.held_out == pytest.approx(loss / 2)
        assert not found.result.metric.greater_is_better
    assert values["here"] == pytest.approx(values["there"], rel=1e-5)


def test_a_trainer_is_sent_without_its_network_and_devices(tmp_path: Path) -> None:
    network = bert()
    trainer = trainer_of(network, tmp_path, callbacks=[Stops()], compute_metrics=lambda given: accuracy(given))
    task = checked(HuggingFaceTask(trainer, metric="accuracy"), network)
    sent = cloudpickle.dumps(task.only("judging", training=True))
    again = cloudpickle.loads(sent)
    assert network.classifier.weight.detach().numpy().tobytes() not in sent
    assert again.evaluate(network, "judging").value == task.evaluate(network, "judging").value
    here, there = copy.deepcopy(network), copy.deepcopy(network)
    task.train(here, Stage("finetune", 1.0), seed=5)
    again.train(there, Stage("finetune", 1.0), seed=5)
    assert_equal(here, there)


# ------------------------------------------------------------------------------------------------ training


class Counts(transformers.TrainerCallback):  # type: ignore[misc]
    steps = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        Counts.steps += 1


SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": lambda folder: {},
    "warm-up and clipping": lambda folder: {
        "args": arguments(folder, lr_scheduler_type="cosine", warmup_steps=3, max_grad_norm=0.1, weight_decay=0.1)
    },
    "accumulation": lambda folder: {"args": arguments(folder, gradient_accumulation_steps=2, max_steps=77)},
    "bfloat16": lambda folder: {"args": arguments(folder, bf16=True)},
    "another optimiser": lambda folder: {
        "optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5})
    },
    "a loss and a collator": lambda folder: {
        "compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean(),
        "data_collator": lambda rows: (
            {"input_ids": torch.stack([row["input_ids"] for row in rows]).flip(1)}
            | {"labels": torch.stack([row["labels"] for row in rows])}
        ),
    },
}


@pytest.mark.parametrize("strength", [0.0, 0.05])
@pytest.mark.parametrize("settings", SETTINGS)
def test_training_is_the_trainers_own(settings: str, strength: float, tmp_path: Path) -> None:
    network, graph = bert(), espalier.trace(bert(), EXAMPLE)
    options = SETTINGS[settings](tmp_path / "theirs")
    task = checked(
        HuggingFaceTask(trainer_of(network, tmp_path / "theirs", callbacks=[Counts()], **options)), network
    )
    inside, wanted = copy.deepcopy(network), copy.deepcopy(network)
    penalty = Regularization(REGULARIZERS["oicsr_gl"](graph), strength)
    Counts.steps = 0
    task.train(inside, Stage("finetune", 2.0), seed=7, regularization=penalty)
    counted = Counts.steps

    by_hand = options | {"args": copy.deepcopy(options.get("args", arguments(tmp_path)))}
    for name, value in {"num_train_epochs": 2.0, "max_steps": -1, "seed": 7, "save_strategy": "no"}.items():
        setattr(by_hand["args"], name, value)
    trainer = trainer_of(wanted, tmp_path / "by_hand", **by_hand)
    with espalier.regularized(wanted, graph, "oicsr_gl", strength=strength):
        trainer.train()
    assert counted == trainer.state.global_step == (4 if settings == "accumulation" else 6)
    assert_equal(inside, wanted)
    assert not inside.training and "forward" not in vars(inside)
    assert not torch.equal(inside.classifier.weight, network.classifier.weight)


def test_the_best_of_a_training_is_taken(tmp_path: Path) -> None:
    """Early stopping and load_best_model_at_end need checkpoints, which are nowhere afterwards."""
    network, folder = bert(), tmp_path / "theirs"
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    args = arguments(folder, eval_strategy="epoch", save_strategy="epoch", learning_rate=0.3, **best)
    stopping = transformers.EarlyStoppingCallback(1)
    task = checked(HuggingFaceTask(trainer_of(network, folder, args=args, callbacks=[stopping])), network)
    first, again = copy.deepcopy(network), copy.deepcopy(network)
    task.train(first, Stage("finetune", 4.0), seed=0)
    task.train(again, Stage("finetune", 4.0), seed=0)  # its patience begins anew
    assert_equal(first, again)
    seen = []

    class Records(transformers.TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, *args: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            seen.append(metrics["eval_loss"])

    args.num_train_epochs, args.seed, args.output_dir = 4, 0, str(tmp_path / "by_hand")
    trainer_of(copy.deepcopy(network), folder, args=args, callbacks=[copy.deepcopy(stopping), Records()]).train()
    assert task.evaluate(first, "scoring").value == pytest.approx(min(seen)) and seen[-1] > min(seen)
    assert not list(folder.rglob("*"))


def test_callbacks_begin_anew_with_every_training(tmp_path: Path) -> None:
    network = bert()
    task = checked(HuggingFaceTask(trainer_of(network, tmp_path, callbacks=[Stops()])), network)
    first, again, longer = (copy.deepcopy(network) for _ in range(3))
    task.train(first, Stage("finetune", 4.0), seed=0)
    task.train(again, Stage("finetune", 4.0), seed=0)
    assert_equal(first, again)
    checked(HuggingFaceTask(trainer_of(network, tmp_path)), network).train(longer, Stage("finetune", 4.0), seed=0)
    assert not torch.equal(longer.classifier.weight, first.classifier.weight)


def test_nobodys_generators_and_verbosity_change(tmp_path: Path) -> None:
    network = bert()
    own = HuggingFaceTask(trainer_of(network, tmp_path))

    def state() -> tuple[Any, ...]:
        generators = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()
        return (*generators, transformers.logging.get_verbosity())

    before = state()
    task = checked(own, network)
    task.evaluate(network, "scoring")
    task.train(copy.deepcopy(network), Stage("finetune", 1.0), seed=3)
    assert state() == before


# ------------------------------------------------------------------------------------------------ heads


class OwnHead(nn.Module):
    """A model of the trainer that holds the network, and the loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = self.network(x)
        return {"loss": (found[:, 0] - labels).square().mean(), "logits": found}


def test_the_network_may_be_a_part_of_the_trainers_model(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    generator = torch.Generator().manual_seed(0)
    rows: Rows = [{"x": row, "labels": row.sum()} for row in torch.randn(64, 3, generator=generator)]

    def make(part: nn.Module) -> Any:
        settings = arguments(tmp_path, learning_rate=0.05)
        return transformers.Trainer(OwnHead(part), settings, train_dataset=rows, eval_dataset=rows)

    found = espalier.search_widths(
        network,
        torch.zeros(1, 3),
        HuggingFaceTask(make),
        budget=HALF,
        trials=2,
        epochs=4,
        strengths=[0.0],
        workers=0,
    )
    assert isinstance(found.network, nn.Sequential) and found.result.searched.after < found.result.dense.after
    task = checked(HuggingFaceTask(make), network, torch.zeros(1, 3))
    assert [len(batch) for (batch,) in calibration(task, network, 20)] == [16, 16]


def vit() -> tuple[Any, Any, Rows]:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    rows: Rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": number % 2} for number in range(8)]
    return transformers.ViTForImageClassification(config), rows[0]["pixel_values"][None], rows


def segformer() -> tuple[Any, Any, Rows]:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=3,
    )
    rows: Rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": torch.randint(3, (16, 16))} for _ in range(8)]
    return transformers.SegformerForSemanticSegmentation(config), rows[0]["pixel_values"][None], rows


def llama() -> tuple[Any, Any, Rows]:
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
    )
    rows: Rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in TRAINING[:8]]
    return transformers.LlamaForCausalLM(config), EXAMPLE | {"use_cache": False}, rows


def yolos() -> tuple[Any, Any, Rows]:
    config = transformers.YolosConfig(
        image_size=[16, 16],
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_detection_tokens=3,
        num_labels=2,
    )
    boxes = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
    rows: Rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": boxes} for _ in range(8)]
    return transformers.YolosForObjectDetection(config), rows[0]["pixel_values"][None], rows


def boxes_collated(rows: Rows) -> dict[str, Any]:
    images = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": images, "labels": [row["labels"] for row in rows]}


@pytest.mark.parametrize("head", [vit, segformer, llama, yolos], ids=lambda head: head.__name__)
def test_whatever_a_trainer_trains(head: Callable[[], Any], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, example, rows = head()
    network.eval()
    trainer = transformers.Trainer(
        network,
        arguments(tmp_path, per_device_train_batch_size=4),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=boxes_collated if head is yolos else None,
    )
    found = espalier.search_widths(
        network,
        example,
        HuggingFaceTask(trainer),
        budget=espalier.Budget(macs=0.7),
        trials=2,
        epochs=4,
        strengths=[0.0],
        workers=0,
        overrides=["finetune.seeds=1", "finetune.selection_seeds=1", "search.finalists=1"],
    )
    assert found.result.searched.macs <= 0.7 * found.result.dense.macs
    assert found.result.searched.after < found.result.searched.before  # its loss


# ------------------------------------------------------------------------------------------------ inputs


def test_batches_hold_labels_only_where_the_example_names_them(tmp_path: Path) -> None:
    network = bert()
    for example, names in [
        (EXAMPLE, {"input_ids"}),
        (EXAMPLE | {"labels": torch.zeros(1).long()}, set(TRAINING[0])),
    ]:
        task = checked(HuggingFaceTask(trainer_of(network, tmp_path)), network, example)
        one, two = (calibration(task, network, count) for count in (1, 40))
        assert [len(batch["input_ids"]) for batch in two] == [16, 16, 16] and len(one) == 1
        assert all(set(batch) == names for batch in two)
        assert torch.equal(one[0]["input_ids"], two[0]["input_ids"])


def test_a_study_goes_on_with_the_same_trainer_only(tmp_path: Path) -> None:
    network = bert()

    def task(metric: str = "eval_loss", **options: Any) -> HuggingFaceTask:
        return HuggingFaceTask(trainer_of(network, tmp_path / "theirs", **options), metric=metric)

    short = ["finetune.seeds=1", "finetune.selection_seeds=1", "search.finalists=1"]
    espalier.search_widths(
        network, EXAMPLE, task(), budget=HALF, trials=2, epochs=0.5, strengths=[0.0], workers=0, overrides=short
    )
    where = "sqlite:///runs/search/study.db", "search", network
    elsewhere = arguments(tmp_path / "elsewhere", logging_steps=3, seed=9)
    assert espalier.resume(*where, task(args=elsewhere), overrides=["search.trials=3"]).result.trials == 3
    for other in [
        task(args=arguments(tmp_path, learning_rate=1.0)),
        task("accuracy"),
        task(compute_metrics=lambda prediction: {"accuracy": 0.0}),
        task(train_dataset=TEST),
        task(callbacks=[Counts()]),
    ]:
        with pytest.raises(StudyMismatch, match=r"task\.(trainer|batches)"):
            espalier.resume(*where, other)


def test_names_and_directions_of_metrics(tmp_path: Path) -> None:
    trainer = trainer_of(bert(), tmp_path)
    for name, better in [("eval_loss", False), ("loss", False), ("accuracy", True), ("eval_f1", True)]:
        metric = HuggingFaceTask(trainer, metric=name).metric
        assert metric.greater_is_better is better and metric.title == name.removeprefix("eval_")
    assert not HuggingFaceTask(trainer, metric="perplexity", greater_is_better=False).metric.greater_is_better
    trainer.args.metric_for_best_model, trainer.args.greater_is_better = "perplexity", False
    assert not HuggingFaceTask(trainer, metric="eval_perplexity").metric.greater_is_better


def test_without_training_data_there_is_a_score_alone(tmp_path: Path) -> None:
    network = bert()
    task = HuggingFaceTask(trainer_of(network, tmp_path, train_dataset=None))
    assert task.offers == frozenset()
    found = espalier.search_widths(network, EXAMPLE, task, budget=HALF, trials=2, workers=0)
    assert found.result.trials == 2 and not found.result.finetuned


# ------------------------------------------------------------------------------------------------ bad input


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return itertools.cycle(TRAINING)


class OfItsOwn(transformers.Trainer):  # type: ignore[misc]
    def __init__(self, model: nn.Module, weight: float, **options: Any) -> None:
        super().__init__(model, **options)


def with_optimiser(network: Any, folder: Path) -> Any:
    return trainer_of(network, folder, optimizers=(torch.optim.SGD(network.parameters(), 0.1), None))


def trained_with_optimiser(network: Any, folder: Path) -> Any:
    trainer = with_optimiser(network, folder)
    trainer.args.max_steps = 1
    trainer.train()
    return trainer


BAD: dict[str, tuple[Callable[[Any, Path], Any], dict[str, Any], str]] = {
    "no data": (
        lambda network, folder: trainer_of(network, folder, eval_dataset=None),
        {},
        "the trainer must have an eval_dataset",
    ),
    "no training data": (
        lambda network, folder: lambda part: trainer_of(part, folder, train_dataset=None),
        {},
        "the trainer must have a train_dataset",
    ),
    "data without end": (
        lambda network, folder: trainer_of(
            network, folder, train_dataset=Endless(), args=arguments(folder, max_steps=3)
        ),
        {},
        "the train_dataset must have a length",
    ),
    "no such metric": (
        lambda network, folder: trainer_of(network, folder),
        {"metric": "f1"},
        "metric must be one that the trainer's evaluate gives, eval_loss, eval_accuracy, got 'f1'",
    ),
    "another network": (
        lambda network, folder: trainer_of(vit()[0], folder),
        {},
        "the trainer must be that of the network that is searched, which differs in ",
    ),
    "a function of another network": (
        lambda network, folder: lambda part: trainer_of(network, folder),
        {},
        "trainer must make a trainer of the network that it is given, and made one of another",
    ),
    "a function of nothing": (
        lambda network, folder: lambda part: 3,
        {},
        "must make a transformers.Trainer, got int",
    ),
    "a number": (lambda network, folder: 3, {}, "trainer must be a transformers.Trainer, or a function .* got int"),
    "an optimiser": (
        with_optimiser,
        {},
        "an optimiser or a scheduler that holds weights of one network: give a func",
    ),
    "an optimiser that trained": (trained_with_optimiser, {}, "an optimiser or a scheduler that holds weights"),
    "a trainer of its own": (
        lambda network, folder: trainer_of(network, folder, OfItsOwn, weight=1.0),
        {},
        "a OfItsOwn has an __init__ of its own, give a function",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_ends_in_a_line(bad: str, tmp_path: Path) -> None:
    make, options, message = BAD[bad]
    network = bert()
    with pytest.raises(EspalierError, match=message) as raised:
        checked(HuggingFaceTask(make(network, tmp_path / "theirs"), **options), network)
    assert "\n" not in str(raised.value)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(bert(), tmp_path)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackage, match=r"pip install 'espalier\[huggingface\]'"):
        HuggingFaceTask(trainer)
