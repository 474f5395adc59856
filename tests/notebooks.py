"""The notebooks of docs/tutorials: what each shows, wherever it is run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NOTEBOOKS = runpy.run_path(str(TUTORIALS.parent / "notebooks.py"))


TOLD = {
    "own_task": [
        r"squared error \d\.\d\d; the noise",
        r"^searched ",
        r"in_features=10, out_features=\d+",
        "^60 trials before, 80 now",
        "^a score must be a number, or one number per example, got a str",
    ],
    "huggingface": [
        r"^vit\.layers\.1\.attention\.q_proj +4$",
        "^685,728 multiply-adds, 39,610 parameters",
        r"^searched +1[67]\d,\d{3} +2\d\.\d%",
        r"^ViTForImageClassification \d+ parameters",
    ],
    "compare": [
        "[Aa]t 10 % of the MACs",
        r"^auto +18,\d{3} MACs .* p \d",
        r"^scratch ",
        "'differences.png'.*'history.png'",
    ],
    "latency": [
        r"^[\d.]+ ms unpruned; half of 10 networks within \d+ %",
        r"^\[.*\]: (4\d|50) % of the MACs, \d+ % of the time",
        r"^\[.*\]: \d+ % of the MACs, (4\d|50) % of the time",
        r"^Latency, measured in ms on eager",
        r"^searched \{'modelled_ms': [\d.]+, 'measured_ms': [\d.]+",
    ],
    "sampler": [
        r"^6 groups; greedy pruning has a cross-entropy of \d\.\d+",
        r"^mine +\d\.\d+ after 80 trials",
    ],
    "postgresql": [
        "^postgresql",
        "^the first driver has finished 10 trials",
        r"^ *study +state +trials +best value",
        r"^ *shared +running +\d+ of 200",
        r"^\d+ of 200 trials were finished when the first driver was killed\nthe second driver ends with 0",
        r"^searched +\d",
        r"^trials +200 of 200",
        "^2 drivers finished 200 trials",
    ],
    "yolo": [
        "^96 images",
        r"^DetectionModel with [\d,]+ parameters",
        r"^\d+ groups of [\d,]+ channels; [\d,]+ multiply-adds",
        r"^searched ",
        r"^\d+ boxes in the first test image",
        r"^[\d,]+ parameters are left; loaded again, the outputs are the same: True",
    ],
}
"""Notebook -> patterns of lines that it shows."""


def shown(notebook: Any) -> list[str]:
    """The outputs of every cell with code."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [[one.get("text") or one.data["text/plain"] for one in cell.outputs] for cell in cells]
    return ["".join(texts) for texts in outputs]


def check_run(name: str, folder: Path) -> None:
    """Runs a notebook in a folder; it must show what it was kept with, as far as that is the same everywhere."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    file = TUTORIALS / f"{name}.ipynb"
    kept, now = (shown(notebook) for notebook in (nbformat.read(file, 4), NOTEBOOKS["run"](file, folder)))
    assert [bool(text) for text in kept] == [bool(text) for text in now]
    for told in TOLD[name]:
        assert re.search(told, "\n".join(now), re.MULTILINE), (told, now)
