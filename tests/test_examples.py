"""Each example meets its budget exactly, and its metric stays as near the dense network's as its docstring says."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDS = {"text_classifier": ("transformers", "accelerate"), "causal_lm": ("transformers", "accelerate")}
"""Example -> packages that it cannot do without."""

# Runs an example, counts the MACs of what it found anew, and of widths of one channel more.
READ = """
import json, runpy, sys
import numpy as np, optuna, espalier
from espalier.search.files import example_inputs
from espalier.search.study.keys import EXAMPLE, PREFIX
from espalier.search.study.storage import open_storage

made = runpy.run_path(sys.argv[1], run_name="__main__")
result = made["found"].result
study = optuna.load_study(
    study_name=result.study, storage=open_storage(f"sqlite:///runs/{result.study}/study.db", create=False)
)
inputs = example_inputs.from_json(study.user_attrs[PREFIX + EXAMPLE])
dense, small = (espalier.trace(each, inputs) for each in (made["network"], made["found"].network))
widths = np.array([result.searched.widths[group.name] for group in dense.groups])
more = [widths + step for step in np.diag(dense.steps(1)) if (widths + step <= dense.sizes).all()]
print(json.dumps({
    "counted": int(small.macs(small.sizes)), "by_formula": int(dense.macs(widths)),
    "dense_macs": int(dense.macs(dense.sizes)), "more": [int(dense.macs(each)) for each in more],
    "after_training": result.finetuned and result.tested,
    "dense": result.dense.after, "pruned": result.searched.after,
    "sign": 1 if result.metric.greater_is_better else -1,
}))
"""


@pytest.mark.examples
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example(path: Path, tmp_path: Path) -> None:
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package)
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, path], cwd=tmp_path, env=os.environ | threads, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if path.stem == "lightning_module" and importlib.util.find_spec("lightning") is None:
        assert "lightning is not installed" in done.stdout
        pytest.skip("lightning is not installed")
    read = json.loads(done.stdout.splitlines()[-1])
    half = read["dense_macs"] * 0.5
    assert read["counted"] == read["by_formula"] <= half
    assert read["more"] and min(read["more"]) > half  # not one channel more
    assert read["after_training"]
    stated = re.search(r"stays\s+within\s+([\d.]*\d)", ast.get_docstring(ast.parse(path.read_text())) or "")
    assert stated is not None
    assert read["sign"] * (read["dense"] - read["pruned"]) <= float(stated[1]), read
