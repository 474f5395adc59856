"""Image files at ImageNet's size: how fast they are decoded, and what a search of them holds in memory.

    python benchmarks/image_folder.py FOLDER [passes] [search]

Writes 20,000 JPEGs of 256 pixels into FOLDER, if they are not there. Then

- passes over 2,000 of them with no process that decodes, with one and with as many as there are cores: images a
  second, and cores that were busy;
- a search of a ResNet-18 at 224 pixels with two workers: memory that the driver and each worker have to themselves,
  sampled each second. It is flat where the last quarter of their time holds no more than those before.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from PIL import Image

from espalier.search.config.loading import parse_config
from espalier.search.files.json_files import read_json, write_json
from espalier.search.run.search_run import run
from espalier.search.tasks.classification.data.batches import Wanted, batches
from espalier.search.tasks.classification.data.folder import load_folder

RESULT = Path(__file__).parent / "results" / "image_folder.json"
IMAGES, CLASSES, SIDE = 20_000, 10, 256
PASSED = 2_000


def write(folder: Path, number: int) -> None:
    """One image: smooth noise, whose JPEG has about the bytes of a photograph."""
    draw = np.random.default_rng(number)
    part = "val" if number % (20 * CLASSES) < CLASSES else "train"  # one in twenty of each class
    path = folder / part / f"class{number % CLASSES}" / f"{number:05}.jpg"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    noise = draw.normal(0, 8, (SIDE, SIDE, 3))
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)


def passed(folder: Path, workers: int) -> dict[str, Any]:
    """Of a pass over some images with so many processes."""
    images = load_folder(folder, workers=max(1, workers)).train
    if not workers:
        images.decodes = False  # as those in memory, which this process hands out
    wanted = (Wanted(indices) for indices in torch.arange(PASSED).split(64))
    used, began = os.times(), time.perf_counter()
    for _ in batches(images, wanted, torch.device("cpu")):
        pass
    now, seconds = os.times(), time.perf_counter() - began
    busy = sum(now[:4]) - sum(used[:4])
    return {"processes": workers, "images_per_second": PASSED / seconds, "cores_busy": busy / seconds}


class Memory(threading.Thread):
    """Bytes of this process and of Ray's workers, each second: what each has to itself, without shared pages."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[dict[str, list[float]]] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Until it is over."""
        here = psutil.Process()
        while not self._over.wait(1.0):
            sample = {"driver": [_own(here)]}
            for child in here.children(recursive=True):
                try:
                    title = " ".join(child.cmdline())
                    for kind, mark in KINDS.items():
                        if mark in title:
                            sample.setdefault(kind, []).append(_own(child))
                except psutil.Error:
                    continue
            self.samples.append(sample)

    def stop(self) -> list[dict[str, list[float]]]:
        """What was seen, in MB."""
        self._over.set()
        self.join()
        return self.samples


KINDS = {"scoring": "ray::ResourceTrainable.train", "fine-tuning": "ray::_on_threads"}
"""What workers do -> in the title of their processes."""


def _own(process: psutil.Process) -> float:
    memory = process.memory_info()
    return float((memory.rss - memory.shared) / 2**20)


def searched(folder: Path, out: Path, trials: int) -> dict[str, Any]:
    """Of a search: greatest memory of a process of each kind in each quarter of its time, in MB."""
    config = parse_config(
        {
            "model": {"name": "resnet18", "kwargs": {"num_classes": CLASSES}},
            "data": {"name": "imagefolder", "root": str(folder), "search_images": 1024},
            "training": {"epochs": 0.05, "batch_size": 32},
            "regularizer": {"strengths": [0.0], "epochs": 0.02},
            "budget": {"keep": 0.5},
            "search": {
                "trials": trials,
                "proxy": "recalibrated",
                "scoring_images": 256,
                "calibration_images": 64,
                "batch_size": 32,
            },
            "finetune": {"epochs": 0.02, "seeds": 1, "selection_seeds": 1, "batch_size": 32},
            "workers": 2,
        },
        "benchmark",
    )
    memory = Memory()
    memory.start()
    run(config, study="folder", out=out, storage=f"sqlite:///{out}/study.db")
    samples = memory.stop()
    found: dict[str, Any] = {"trials": trials, "seconds": len(samples)}
    for kind in ("driver", *KINDS):
        seen = [max(sample[kind]) for sample in samples if kind in sample]
        quarters = [part for part in np.array_split(seen, 4) if len(part)]
        found[kind] = {
            "seconds": len(seen),
            "greatest_mb": [round(float(part.max())) for part in quarters],
            "median_mb": [round(float(np.median(part))) for part in quarters],
        }
    return found


def main() -> None:
    """Both, to the screen and into a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", default=["passes", "search"])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--trials", type=int, default=40)
    args = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write, args.folder), range(IMAGES), chunksize=200))
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = read_json(args.out) or {}
    found |= {"machine": f"{platform.machine()}, {cores} cores", "images": IMAGES, "pixels": SIDE}
    if "passes" in args.parts:
        found["passes"] = [passed(args.folder, workers) for workers in sorted({0, 1, cores})]
        for each in found["passes"]:
            print("{processes} processes: {images_per_second:.0f} images/s, {cores_busy:.2f} cores".format(**each))
    if "search" in args.parts:
        scratch = args.folder / "run"
        scratch.mkdir()
        found["search"] = searched(args.folder, scratch, args.trials)
        print(found["search"])
    write_json(args.out, found)


if __name__ == "__main__":
    main()
