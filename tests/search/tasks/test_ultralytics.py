"""YOLOs from their yaml, on shapes that are drawn: pruned, fine-tuned by Ultralytics' trainer, saved, and used."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from torch import nn

import espalier
from espalier.errors import ConfigError
from espalier.search.tasks.task import Regularization, Stage
from tests.torchvision_operators import import_torchvision

pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]
SIZE = 64
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


@pytest.fixture(scope="module", autouse=True)
def ultralytics() -> Any:
    import_torchvision()
    return pytest.importorskip("ultralytics")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes or discs on each of 40 images."""
    root, draw = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for part, count in {"train": 32, "val": 8, "test": 4}.items():
        for folder in ("images", "labels"):
            (root / folder / part).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (SIZE, SIZE), tuple(draw.integers(0, 80, 3).tolist()))
            pen, lines = ImageDraw.Draw(image), []
            for _ in range(2):
                (w, h), kind = draw.integers(14, 26, 2).tolist(), int(draw.integers(0, 2))
                x, y = int(draw.integers(0, SIZE - w)), int(draw.integers(0, SIZE - h))
                shape = pen.ellipse if kind else pen.rectangle
                shape([x, y, x + w, y + h], fill=tuple(draw.integers(150, 255, 3).tolist()))
                lines.append(f"{kind} {(x + w / 2) / SIZE} {(y + h / 2) / SIZE} {w / SIZE} {h / SIZE}")
            image.save(root / "images" / part / f"{number}.png")
            (root / "labels" / part / f"{number}.txt").write_text("\n".join(lines))
    parts = {part: f"images/{part}" for part in ("train", "val", "test")}
    content = {"path": str(root), **parts, "names": {0: "box", 1: "disc"}}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


@pytest.fixture
def task(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> espalier.UltralyticsTask:
    monkeypatch.chdir(tmp_path)
    return espalier.UltralyticsTask(shapes, imgsz=SIZE, batch=8, optimizer="AdamW", lr0=0.01)


def network_of(name: str) -> nn.Module:
    from ultralytics import YOLO

    torch.manual_seed(0)
    made: nn.Module = YOLO(name, verbose=False).model
    return made


PREDICT = """
import sys
sys.path.insert(0, {root!r})
from tests.torchvision_operators import import_torchvision
import_torchvision()
import torch
from ultralytics import YOLO
import espalier

yolo = YOLO({name!r}, verbose=False)
yolo.model = espalier.load({file!r}, yolo.model)
raw = float(yolo.model(torch.full((1, 3, {size}, {size}), 0.5))[0].sum())
boxes = yolo.predict({image!r}, imgsz={size}, conf=1e-9, verbose=False)[0].boxes
print(raw, len(boxes), boxes.xyxy.shape[1])
"""


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n.yaml"])
def test_half_of_a_yolo_is_trained_saved_and_predicts(
    name: str, task: espalier.UltralyticsTask, shapes: Path, tmp_path: Path
) -> None:
    network = network_of(name)
    graph = espalier.trace(network, EXAMPLE)
    energies = espalier.channel_energies(network, graph).double().numpy()
    widths = espalier.greedy(graph, energies, espalier.Budget(macs=0.5))
    small = espalier.slim(network, graph, graph.keep_best(energies, widths))
    assert 0.45 < graph.macs(widths) / graph.macs(graph.sizes) <= 0.5
    losses: list[float] = []
    threads, numbers = torch.get_num_threads(), (random.getstate(), torch.get_rng_state())
    before = next(small.parameters()).detach().clone()
    task.train(small, Stage("finetune", 3), seed=0, on_step=lambda _, loss: losses.append(loss))
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), numbers[1])
    assert random.getstate() == numbers[0]
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)
    assert not torch.equal(next(small.parameters()), before)
    file = tmp_path / "small.espalier"
    espalier.save(small, file, name="ultralytics.nn.tasks:DetectionModel")
    image = str(shapes.parent / "images" / "val" / "0.png")
    root = str(Path(__file__).resolve().parents[3])
    script = PREDICT.format(root=root, name=name, file=str(file), image=image, size=SIZE)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    raw, boxes, columns = done.stdout.splitlines()[-1].split()
    with torch.no_grad():
        assert float(raw) == pytest.approx(float(small(torch.full((1, 3, SIZE, SIZE), 0.5))[0].sum()), rel=1e-4)
    assert int(boxes) > 0 and columns == "4"


def test_a_search_scores_by_the_validator(task: espalier.UltralyticsTask) -> None:
    network = network_of("yolov8n.yaml")
    options = ["finetune.seeds=1", "finetune.selection_seeds=1", "search.finalists=1"]
    found = espalier.search_widths(
        network,
        EXAMPLE,
        task,
        budget=espalier.Budget(macs=0.5),
        trials=2,
        epochs=1,
        strengths=[0.0],
        workers=0,
        overrides=options,
    )
    assert found.result.trials == 2 and found.result.tested and found.result.metric.title == "mAP50-95"
    assert found.result.searched.macs <= 0.5 * found.result.dense.macs
    assert found.network(EXAMPLE)[0].shape == network.eval()(EXAMPLE)[0].shape


def test_bad_input_ends_in_a_line(shapes: Path, task: espalier.UltralyticsTask) -> None:
    with pytest.raises(ConfigError, match=r"there is no data set file nowhere\.yaml"):
        espalier.UltralyticsTask("nowhere.yaml")
    with pytest.raises(ConfigError, match="kind must be one of detect, segment"):
        espalier.UltralyticsTask(shapes, kind="boxes")  # type: ignore[arg-type]
    other = espalier.UltralyticsTask(shapes, imgsz=SIZE, metric="mAP")
    with pytest.raises(ConfigError, match=r"the validator gives no 'mAP': it gives metrics/precision"):
        other.evaluate(network_of("yolov8n.yaml"), "held_out")
    network = network_of("yolov8n.yaml")
    penalty = Regularization(espalier.REGULARIZERS["oicsr_gl"](espalier.trace(network, EXAMPLE)), 0.01, ramp=0.5)
    with pytest.raises(ConfigError, match=r"regularizer\.ramp is a share of the steps"):
        task.train(network, Stage("finetune", 1), seed=0, regularization=penalty)
