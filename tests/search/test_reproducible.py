"""The same machine, config and seed, in one process: the same trials to the last bit, however fast it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

SEARCH = """
import random, sys, time
config, out, noise = sys.argv[1:]
draw = random.Random(noise)
for name in ("process_time", "perf_counter"):  # a machine on which something else runs
    real, late = getattr(time, name), [0.0]
    def noisy(real=real, late=late):
        late[0] += draw.expovariate(100.0)
        return real() + late[0]
    setattr(time, name, noisy)
from espalier.cli import main
sys.argv = ["espalier", "search", config, "--study", "s", "--out", out]
main()
"""


@pytest.mark.parametrize(
    "search",
    [
        pytest.param({"sampler": "auto", "trials": 12}, id="auto", marks=pytest.mark.slow),
        pytest.param({"sampler": "tpe", "proxy": "sgd5"}, id="tpe", marks=pytest.mark.slow),
        pytest.param({"race": True, "measure": "top1", "space": "ratios"}, id="race", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_two_processes_find_the_same_to_the_last_bit(
    tiny: dict[str, Any], tmp_path: Path, search: dict[str, Any]
) -> None:
    for key in ("batch_size", "memory_format", "precision"):
        del tiny["search"][key]
    tiny["search"] |= search | {"finalists": 1}
    tiny["training"]["epochs"], tiny["finetune"]["seeds"] = 1, 1
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    first, second = (searched(tmp_path / "tiny.yaml", tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert len(first["trials"]) == tiny["search"]["trials"]


def searched(config: Path, out: Path) -> dict[str, Any]:
    """All numbers of a search in a process of its own, without seconds and paths."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SEARCH, str(config), str(out), out.name]
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{out / 'study.db'}")
    told = {key: value for key, value in study.user_attrs.items() if key.startswith(TOLD)}
    return {"study": told, "trials": [numbers(trial) for trial in study.trials]}


TOLD = tuple(f"espalier:{name}" for name in ("fingerprint", "execution", "strength:", "checkpoints", "ladder"))


def numbers(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """What a trial tried and found, as text: NaN is itself, and no digit is lost."""
    score = {key: value for key, value in trial.user_attrs["espalier:score"].items() if key != "seconds"}
    found = trial.number, trial.params, trial.values, score, trial.user_attrs["espalier:candidate"]
    return dict(zip(("number", "params", "values", "score", "candidate"), map(repr, found), strict=True))
