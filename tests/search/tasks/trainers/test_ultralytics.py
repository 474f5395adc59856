"""YOLOs from their yaml, on shapes that are drawn: pruned, fine-tuned by Ultralytics' trainer, saved, and used."""

from __future__ import annotations

import os
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
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Regularization, Stage
from tests.notebooks import check_run
from tests.torchvision_operators import import_torchvision

pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]
SIZE = 64
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


@pytest.fixture(scope="module", autouse=True)
def ultralytics() -> Any:
    import_torchvision()
    return pytest.importorskip("ultralytics")


def row(kind: str, label: int, x: float, y: float, w: float, h: float) -> str:
    """A line of a label file: a box, its corners, or a box and points."""
    box = f"{label} {x + w / 2} {y + h / 2} {w} {h}"
    corners = f"{x} {y} {x + w} {y} {x + w} {y + h} {x} {y + h}"
    points = " ".join(f"{x + w * k / 16} {y + h / 2} 2" for k in range(17))
    return {"detect": box, "segment": f"{label} {corners}", "obb": f"{label} {corners}", "pose": f"{box} {points}"}[
        kind
    ]


def drawn(root: Path, kind: str) -> Path:
    """Two boxes or discs on each of 40 images; one, and a folder for each kind of it, to classify."""
    draw = np.random.default_rng(0)
    for part, count in {"train": 32, "val": 8, "test": 4}.items():
        for number in range(count):
            image = Image.new("RGB", (SIZE, SIZE), tuple(draw.integers(0, 80, 3).tolist()))
            pen, lines, label = ImageDraw.Draw(image), [], 0
            for _ in range(1 if kind == "classify" else 2):
                (w, h), label = draw.integers(14, 26, 2).tolist(), int(draw.integers(0, 2))
                x, y = int(draw.integers(0, SIZE - w)), int(draw.integers(0, SIZE - h))
                shape = pen.ellipse if label else pen.rectangle
                shape([x, y, x + w, y + h], fill=tuple(draw.integers(150, 255, 3).tolist()))
                if kind != "classify":
                    lines.append(row(kind, label, x / SIZE, y / SIZE, w / SIZE, h / SIZE))
            folder = root / part / ("box", "disc")[label] if kind == "classify" else root / "images" / part
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
            if kind != "classify":
                (root / "labels" / part).mkdir(parents=True, exist_ok=True)
                (root / "labels" / part / f"{number}.txt").write_text("\n".join(lines))
    if kind == "classify":
        return root
    parts = {part: f"images/{part}" for part in ("train", "val", "test")}
    content = {"path": str(root), **parts, "names": {0: "box", 1: "disc"}}
    content |= {"kpt_shape": [17, 3]} if kind == "pose" else {}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("shapes"), "detect")


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
    root = str(Path(__file__).resolve().parents[4])
    script = PREDICT.format(root=root, name=name, file=str(file), image=image, size=SIZE)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    raw, boxes, columns = done.stdout.splitlines()[-1].split()
    with torch.no_grad():
        assert float(raw) == pytest.approx(float(small(torch.full((1, 3, SIZE, SIZE), 0.5))[0].sum()), rel=1e-4)
    assert int(boxes) > 0 and columns == "4"


@pytest.mark.parametrize(
    ("kind", "name", "metric"),
    [
        ("segment", "yolo11n-seg.yaml", "mAP50-95(M)"),
        ("classify", "yolo11n-cls.yaml", "accuracy_top1"),
        ("pose", "yolo11n-pose.yaml", "mAP50-95(P)"),
        ("obb", "yolo11n-obb.yaml", "mAP50-95"),
    ],
)
def test_every_kind_of_yolo_is_trained_and_scored(
    kind: Any, name: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = espalier.UltralyticsTask(drawn(tmp_path / "data", kind), kind=kind, imgsz=SIZE, batch=8)
    network = network_of(name)
    graph = espalier.trace(network, EXAMPLE)
    energies = espalier.channel_energies(network, graph).double().numpy()
    small = espalier.slim(
        network, graph, graph.keep_best(energies, espalier.greedy(graph, energies, espalier.Budget(macs=0.5)))
    )
    before, losses = next(small.parameters()).detach().clone(), list[float]()
    task.train(small, Stage("finetune", 1), seed=0, on_step=lambda _, loss: losses.append(loss))
    assert len(losses) == 1 and 0 < losses[0] < 100 and not torch.equal(next(small.parameters()), before)
    assert task.metric.title == metric and 0 <= task.evaluate(small, "held_out").value <= 1
    batches: Any = task.scoring("scoring", network, calibration=8, steps=0).calibration(Runner(Execution()))
    assert sum(map(len, batches)) >= 8 and batches[0].shape[1] == 3


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


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, startup = Path(__file__).resolve().parents[4], tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    operators = "from tests.torchvision_operators import import_torchvision\nimport_torchvision()\n"
    (startup / "operators.py").write_text(operators)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), *sys.path]))
    check_run("yolo", tmp_path)


@pytest.mark.parametrize(
    ("line", "there"),
    [("test: images/test", True), (" test : images/test", True), ("test: # images (optional)", False), ("", False)],
)
def test_a_test_split_is_one_that_is_named(line: str, there: bool, shapes: Path, tmp_path: Path) -> None:
    """Ultralytics' own files have the key and leave it empty; the last reading is of the validation images then."""
    content = yaml.safe_load(shapes.read_text())
    lines = [f"path: {content['path']}", "train: images/train", "val: images/val", line, "names: {0: box, 1: disc}"]
    file = tmp_path / "own.yaml"
    file.write_text("\n".join(f" {each.strip()}" for each in lines if each))
    own = espalier.UltralyticsTask(file, imgsz=SIZE, batch=8)
    assert own.has_test is there
    network = network_of("yolov8n.yaml")
    last, held_out = own.evaluate(network, "test").value, own.evaluate(network, "held_out").value
    assert there or last == held_out


def test_bad_input_ends_in_a_line(shapes: Path, task: espalier.UltralyticsTask) -> None:
    with pytest.raises(ConfigError, match=r"there is no data set file nowhere\.yaml"):
        espalier.UltralyticsTask("nowhere.yaml")
    broken = shapes.with_name("broken.yaml")
    broken.write_text("train: [")
    with pytest.raises(ConfigError, match=r"cannot read the data set file .*broken\.yaml: while parsing"):
        espalier.UltralyticsTask(broken)
    with pytest.raises(ConfigError, match="kind must be one of detect, segment"):
        espalier.UltralyticsTask(shapes, kind="boxes")  # type: ignore[arg-type]
    other = espalier.UltralyticsTask(shapes, imgsz=SIZE, metric="mAP")
    with pytest.raises(ConfigError, match=r"the validator gives no 'mAP': it gives metrics/precision"):
        other.evaluate(network_of("yolov8n.yaml"), "held_out")
    network = network_of("yolov8n.yaml")
    penalty = Regularization(espalier.REGULARIZERS["oicsr_gl"](espalier.trace(network, EXAMPLE)), 0.01, ramp=0.5)
    with pytest.raises(ConfigError, match=r"regularizer\.ramp is a share of the steps"):
        task.train(network, Stage("finetune", 1), seed=0, regularization=penalty)
