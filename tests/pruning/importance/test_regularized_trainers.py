"""Other people's trainers inside the block give the weights of a hand-written loop over loss + strength R."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset

import espalier
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.regularizers import REGULARIZERS

STRENGTH, EPOCHS = 0.02, 4


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def traced() -> ChannelGraph:
    return espalier.trace(network(), torch.zeros(1, 3))


def data(rank: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1 + rank)
    return torch.randn(8, 3, generator=generator), torch.randint(2, (8,), generator=generator)


def by_hand(model: nn.Module, graph: ChannelGraph, optimizer: torch.optim.Optimizer) -> None:
    x, y = data()
    made = REGULARIZERS["oicsr_gl"](graph)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + STRENGTH * made(dict(model.named_parameters()))).backward()
        optimizer.step()


def assert_near(one: nn.Module, other: nn.Module) -> None:
    for (name, weight), wanted in zip(one.named_parameters(), other.parameters(), strict=True):
        assert float((weight - wanted).detach().abs().max()) < 1e-6, name


class Trainer:
    """Owns the optimiser, computes gradients in a closure and clips them there, as Lightning does."""

    def __init__(self, clip: float | None = None) -> None:
        self.clip = clip

    def fit(self, model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        x, y = data()
        for _ in range(EPOCHS):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                return loss.detach()

            optimizer.step(closure)
            schedule.step()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_trainer_with_closures(clip: float | None) -> None:
    inside, wanted = network(), network()
    with espalier.regularized(inside, traced(), "oicsr_gl", strength=STRENGTH):
        Trainer(clip).fit(inside)
    made = REGULARIZERS["oicsr_gl"](traced())
    optimizer = torch.optim.AdamW(wanted.parameters(), 0.01)
    x, y = data()
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.9**epoch
        optimizer.zero_grad()
        F.cross_entropy(wanted(x), y).backward()
        if clip is not None:
            assert float(nn.utils.clip_grad_norm_(wanted.parameters(), clip)) > clip
        (STRENGTH * made(dict(wanted.named_parameters()))).backward()  # not clipped
        optimizer.step()
    assert_near(inside, wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("given", ["network", "module"])
def test_lightning(given: str, tmp_path: Path) -> None:
    lightning: Any = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.parameters(), 0.01)

    inside, wanted = network(), network()
    module = Module(inside)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    of = inside if given == "network" else module
    with espalier.regularized(of, traced(), "oicsr_gl", strength=STRENGTH):
        trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=8))
    by_hand(wanted, traced(), torch.optim.AdamW(wanted.parameters(), 0.01))
    assert_near(inside, wanted)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_of_transformers(accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inside = transformers.BertForSequenceClassification(config)
    inside.accepts_loss_kwargs = False  # else the trainer sums the losses that it accumulates
    wanted = copy.deepcopy(inside)
    graph = espalier.trace(inside, torch.zeros(1, 6, dtype=torch.long))
    words, labels = torch.randint(20, (8, 6), generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    rows = [{"input_ids": x, "labels": y} for x, y in zip(words, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    with espalier.regularized(inside, graph, "oicsr_gl", strength=STRENGTH):
        transformers.Trainer(model=inside, args=arguments, train_dataset=rows).train()
    made = REGULARIZERS["oicsr_gl"](graph)
    optimizer = torch.optim.SGD(wanted.parameters(), 0.1)
    wanted.train()
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss = wanted(input_ids=words, labels=labels).loss
        (loss + STRENGTH * made(dict(wanted.named_parameters()))).backward()
        optimizer.step()
    assert_near(inside, wanted)
    assert graph.n_channels > 0 and float(made(dict(wanted.named_parameters())).detach()) > 0


def rank_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    inside, wanted, graph = network(), network(), traced()
    made, (x, y) = REGULARIZERS["oicsr_gl"](graph), data(rank)

    def train(model: nn.Module, hand: bool) -> None:
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            (loss + STRENGTH * made(dict(model.named_parameters())) if hand else loss).backward()
            optimizer.step()

    with espalier.regularized(inside, graph, "oicsr_gl", strength=STRENGTH):
        train(inside, False)
    train(wanted, True)
    assert_near(inside, wanted)
    torch.save(inside.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_data_of_their_own(tmp_path: Path) -> None:
    spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
