"""Detectors of Hugging Face: cut to half of their MACs, trained by a trainer, saved, and loaded elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import espalier
from espalier.search.tasks.trainers.huggingface import HuggingFaceTask

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[4]
SIZE, CLASSES = 64, 2
STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
SMALL: dict[str, Any] = {
    "num_queries": 6,
    "d_model": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "num_labels": CLASSES,
}


def detr() -> Any:
    backbone = transformers.ResNetConfig(**STAGES, out_features=["stage4"])
    config = transformers.DetrConfig(backbone_config=backbone, use_timm_backbone=False, encoder_layers=2, **SMALL)
    return transformers.DetrForObjectDetection(config)


def rt_detr() -> Any:
    backbone = transformers.RTDetrResNetConfig(**STAGES, out_features=["stage2", "stage3", "stage4"])
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[24, 32, 48],
        decoder_in_channels=[32, 32, 32],
        encoder_hidden_dim=32,
        num_denoising=0,
        **SMALL,
    )
    return transformers.RTDetrForObjectDetection(config)


def shapes(count: int) -> list[dict[str, Any]]:
    """A bright square in every image, of class 0 in red and 1 in green."""
    draw, rows = torch.Generator().manual_seed(0), []
    for _ in range(count):
        kind, side, left, top = (int(torch.randint(*bounds, (1,), generator=draw)) for bounds in PLACES)
        image = 0.1 * torch.rand(3, SIZE, SIZE, generator=draw)
        image[kind, top : top + side, left : left + side] = 1.0
        box = torch.tensor([[left + side / 2, top + side / 2, side, side]]) / SIZE
        rows.append({"pixel_values": image, "labels": {"class_labels": torch.tensor([kind]), "boxes": box}})
    return rows


PLACES = (0, CLASSES), (16, 32), (0, 32), (0, 32)


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    images = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": images, "labels": [row["labels"] for row in rows]}


PREDICT = """
import torch, espalier
from tests.search.tasks.trainers.test_huggingface_detection import SIZE, {name}
network = espalier.load({file!r}, {name})
found = network(torch.linspace(0, 1, 3 * SIZE**2).view(1, 3, SIZE, SIZE))
print(found.logits.shape[1], float(found.logits.double().sum() + found.pred_boxes.double().sum()))
"""


@pytest.mark.parametrize("make", [detr, rt_detr], ids=lambda make: make.__name__)
def test_half_of_a_detector_is_found_trained_saved_and_predicts(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().eval()
    arguments = transformers.TrainingArguments(
        str(tmp_path / "theirs"),
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
    )
    rows = shapes(12)
    trainer = transformers.Trainer(
        network, arguments, train_dataset=rows, eval_dataset=rows[:4], data_collator=collated
    )
    example: Tensor = rows[0]["pixel_values"][None]
    found = espalier.search_widths(
        network,
        example,
        HuggingFaceTask(trainer),
        budget=espalier.Budget(macs=0.5),
        trials=2,
        epochs=2,
        strengths=[0.0],
        workers=0,
        overrides=["finetune.seeds=1", "finetune.selection_seeds=1", "search.finalists=1"],
    )
    assert found.result.searched.macs <= found.result.dense.macs / 2
    assert found.result.searched.after < found.result.searched.before  # its loss
    file = str(tmp_path / "small.espalier")
    found.save(file)
    script = PREDICT.format(name=make.__name__, file=file)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = found.network(torch.linspace(0, 1, 3 * SIZE**2).view(1, 3, SIZE, SIZE))
    queries, total = done.stdout.split()
    assert int(queries) == SMALL["num_queries"]
    expected = outputs.logits.double().sum() + outputs.pred_boxes.double().sum()
    assert float(total) == pytest.approx(float(expected.detach()))
