"""YOLO, by Ultralytics' own trainer and validator: detection, segmentation, classification, poses.

Ultralytics is under the AGPL-3.0: the extra ``ultralytics`` installs it, and it is imported here alone.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.search.spaces.metric import Metric
from espalier.search.tasks.functions import FunctionScoring
from espalier.search.tasks.task import Part, Reading, Regularization, Scoring, Stage, Task, penalised

Kind = Literal["detect", "segment", "classify", "pose", "obb"]

NAMES: Mapping[str, str] = {
    "detect": "Detection",
    "segment": "Segmentation",
    "classify": "Classification",
    "pose": "Pose",
    "obb": "OBB",
}
"""Kind -> what the names of Ultralytics' trainer and validator begin with."""
METRICS: Mapping[str, str] = {
    "segment": "mAP50-95(M)",
    "classify": "accuracy_top1",
    "pose": "mAP50-95(P)",
}
"""Kind -> what is scored by, where it is not the mAP of boxes."""
QUIET: Mapping[str, Any] = {
    "plots": False,
    "save": False,
    "val": False,
    "verbose": False,
    "workers": 0,
    "amp": False,  # whose check downloads a network
    "deterministic": False,  # of the whole process; seeds are given back
    "exist_ok": True,
}
"""Settings that are ours unless the user gives them."""


class UltralyticsTask(Task):
    """What a YOLO is for.

        yolo = YOLO("best.pt")
        task = espalier.UltralyticsTask("shapes.yaml", imgsz=640)
        example = torch.zeros(1, 3, 640, 640)
        found = espalier.search_widths(yolo.model, example, task, budget=espalier.Budget(macs=0.5))
        yolo.model = found.network

    Args:
        data: Ultralytics' data set file; its training images train and calibrate, its validation images score, its
            test images, if it names some, are read at the end.
        kind: what the network does.
        imgsz: side of the images, in pixels.
        batch: images per batch.
        metric: key of what the validator gives; by default mAP at 50 to 95 % overlap of boxes, masks or poses, or
            top-1.
        settings: any other setting of Ultralytics' training: ``lr0``, ``optimizer``, ``mosaic``, ``workers``.

    Raises:
        ConfigError: Ultralytics is not installed, or there is no such kind or file.
    """

    offers = frozenset({"batches", "training"})
    tells_epochs = False
    counts = "epochs"

    def __init__(
        self,
        data: str | Path,
        *,
        kind: Kind = "detect",
        imgsz: int = 640,
        batch: int = 16,
        metric: str | None = None,
        **settings: Any,
    ) -> None:
        if kind not in NAMES:
            raise ConfigError(f"kind must be one of {', '.join(NAMES)}, got {kind!r}")
        try:
            importlib.import_module("ultralytics")
        except Exception as error:  # torchvision may be there and broken
            raise ConfigError(
                f"Ultralytics cannot be imported ({error}): pip install 'espalier[ultralytics]', which is AGPL-3.0"
            ) from error
        key = metric or f"metrics/{METRICS.get(kind, 'mAP50-95(B)')}"
        self.metric = Metric("score", key.removeprefix("metrics/").removesuffix("(B)"), floor=0.0, ceiling=1.0)
        self.measures = {"score": self.metric}
        self._data, self._kind, self._key = str(data), kind, key
        self._settings = {"imgsz": imgsz, "batch": batch, **settings}
        if kind != "classify":
            path = Path(data)
            if not path.is_file():
                raise ConfigError(f"there is no data set file {path}")
            self.has_test = _has_test(path)

    def fingerprint(self) -> Mapping[str, str]:
        """Of the data set file and the settings."""
        text = Path(self._data).read_text() if Path(self._data).is_file() else self._data
        content = json.dumps([text, self._kind, self._key, self._settings], sort_keys=True, default=str)
        return {"task": hashlib.sha256(content.encode()).hexdigest()[:16]}

    def evaluate(self, network: nn.Module, part: Part) -> Reading:
        """By Ultralytics' validator, on a copy, which it fuses."""
        split = "test" if part == "test" and self.has_test else "val"
        with _own_process_state(), tempfile.TemporaryDirectory() as folder:
            arguments = self._arguments(network, folder) | {"mode": "val", "task": self._kind, "split": split}
            found = self._class("Validator")(args=arguments)(model=copy.deepcopy(network).float().eval())
        if self._key not in found:
            raise ConfigError(f"the validator gives no {self._key!r}: it gives {', '.join(found)}")
        return Reading(float(found[self._key]))

    def scoring(self, part: Part, dense: nn.Module, *, calibration: int, steps: int) -> Scoring:
        """By the validator, and batches of training images."""
        return FunctionScoring(_Score(self.only()), self._batches(dense, calibration))

    def steps(self, stage: Stage) -> int:
        """Epochs."""
        return round(stage.epochs)

    def recipe(self, stage: Stage) -> dict[str, Any]:
        """Ultralytics' settings."""
        return {"epochs": round(stage.epochs), **self._settings}

    def train(
        self,
        network: nn.Module,
        stage: Stage,
        *,
        seed: int,
        regularization: Regularization | None = None,
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """By Ultralytics' trainer; the weights are its running average, as in the networks that it saves."""
        if on_epoch is not None:
            raise ConfigError("soft pruning changes weights after every epoch, and Ultralytics keeps their average")
        penalty = penalised(network, regularization)
        device = next(network.parameters()).device
        with _own_process_state(), tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(network, folder, epochs=self.steps(stage), seed=seed)
            if on_step is not None:
                told = on_step
                trainer.add_callback("on_train_epoch_end", lambda made: told(made.epoch + 1, _loss_of(made)))
            with penalty:
                trainer.train()
        if trainer.ema is not None:
            averages = trainer.ema.ema.state_dict()
            with torch.no_grad():
                for name, tensor in network.state_dict().items():
                    tensor.copy_(averages[name])
        network.__dict__.pop("criterion", None)  # which holds on to the network
        network.to(device).float().eval()

    def only(self, *parts: Part, training: bool = False) -> Self:
        """As it is: images stay in their files."""
        return self

    # -- Ultralytics

    def _class(self, kind: str) -> Any:
        module = importlib.import_module(f"ultralytics.models.yolo.{self._kind}")
        return getattr(module, NAMES[self._kind] + kind)

    def _arguments(self, network: nn.Module, folder: str) -> dict[str, Any]:
        device = next(network.parameters()).device
        where = {"data": self._data, "project": folder, "name": "run", "device": _device(device)}
        return {**QUIET, **self._settings, **where}

    def _trainer(self, network: nn.Module, folder: str, **options: Any) -> Any:
        """Ultralytics' trainer of a network, which keeps no files."""
        base = self._class("Trainer")
        without: dict[str, Any] = {"save_model": _nothing, "final_eval": _nothing, "validate": lambda _: ({}, 0.0)}
        kind = type(base.__name__, (base,), without)
        arguments = {"model": "given.yaml", "task": self._kind, **self._arguments(network, folder), **options}
        trainer = kind(overrides=arguments)
        trainer.callbacks = importlib.import_module(
            "ultralytics.utils.callbacks"
        ).get_default_callbacks()  # no reports
        trainer.model = network
        return trainer

    def _batches(self, network: nn.Module, images: int) -> list[Tensor]:
        """Training images as the network takes them, not augmented."""
        found: list[Tensor] = []
        with _own_process_state(), tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(network, folder)
            trainer.device = torch.device("cpu")
            loader = trainer.get_dataloader(trainer.data["train"], self._settings["batch"], rank=-1, mode="val")
            for batch in loader:
                found.append(trainer.preprocess_batch(batch)["img"].float())
                if sum(map(len, found)) >= images:
                    break
        return found


class _Score:
    """The validation images, as a function of a network."""

    def __init__(self, task: UltralyticsTask) -> None:
        self._task = task

    def __call__(self, network: nn.Module) -> float:
        return self._task.evaluate(network, "scoring").value


def _loss_of(trainer: Any) -> float:
    """Mean over the epoch, all parts together."""
    parts = trainer.tloss.values() if isinstance(trainer.tloss, Mapping) else [trainer.tloss]
    return sum(float(torch.as_tensor(part).sum()) for part in parts)


def _nothing(_: object) -> None: ...


def _device(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else str(device.index or 0)


def _has_test(path: Path) -> bool:
    """Whether a data set file names test images; Ultralytics' own have the key, and leave it empty."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the data set file {path}: {' '.join(str(error).split())}") from error
    return isinstance(content, dict) and bool(content.get("test"))


@contextmanager
def _own_process_state() -> Iterator[None]:
    """Gives back what Ultralytics changes: generators, threads, and how much it says."""
    logger = importlib.import_module("ultralytics.utils").LOGGER
    threads, level, numbers, drawn = torch.get_num_threads(), logger.level, np.random.get_state(), random.getstate()
    logger.setLevel("ERROR")
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices), contextlib.redirect_stdout(None):
            yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
        np.random.set_state(numbers)
        random.setstate(drawn)
