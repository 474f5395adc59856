"""Other people's trainers learn the gates of a hand-written loop, and go on from their own checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import espalier
from espalier.pruning.gates.gated import PREFIX
from tests.pruning.importance.test_regularized_trainers import EPOCHS, assert_near, data, network, traced


def values(model: nn.Module) -> Tensor:
    return model.get_buffer(PREFIX + "values").clone()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("gate", ["hard_concrete", "bottleneck"])
def test_lightning(gate: str, tmp_path: Path) -> None:
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
    with espalier.gated(module, traced(), gate, espalier.Budget(macs=0.5)) as gates:
        trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=8))
        learned = values(inside)
    with espalier.gated(wanted, traced(), gate, espalier.Budget(macs=0.5)) as by_hand:
        optimizer = torch.optim.AdamW(wanted.train().parameters(), 0.01)
        x, y = data()
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            F.cross_entropy(wanted(x), y).backward()
            optimizer.step()
        assert torch.allclose(learned, values(wanted), atol=1e-6)
    assert gates.steps == by_hand.steps == EPOCHS and torch.equal(gates.keep, by_hand.keep)
    assert_near(inside, wanted)


def test_the_trainer_of_transformers_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        dense = transformers.BertForSequenceClassification(config)
    graph = espalier.trace(dense, torch.zeros(1, 6, dtype=torch.long))
    words, labels = torch.randint(20, (8, 6), generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    rows = [{"input_ids": x, "labels": y} for x, y in zip(words, labels, strict=True)]

    class Stop(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == 3

    def ended(folder: Path, *, stops: bool, resumes: bool) -> tuple[nn.Module, Any, Tensor]:
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            optim="adamw_torch",
            learning_rate=0.01,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = copy.deepcopy(dense)
        with espalier.gated(model, graph, "hard_concrete", espalier.Budget(macs=0.6), steps=8) as gates:
            trainer = transformers.Trainer(
                model=model, args=arguments, train_dataset=rows, callbacks=[Stop()] if stops else []
            )
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resumes else None)
            learned = values(model)
        return model, gates, learned

    whole, gates, learned = ended(tmp_path / "whole", stops=False, resumes=False)
    ended(tmp_path / "stopped", stops=True, resumes=False)
    resumed, again, relearned = ended(tmp_path / "stopped", stops=False, resumes=True)
    assert gates.steps == again.steps == 2 * EPOCHS and torch.equal(learned, relearned)
    assert torch.equal(gates.keep, again.keep) and float(learned.std()) > 0
    for (name, tensor), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
