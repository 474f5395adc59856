"""What 0.1 left behind is read: a study that was killed goes on, and a pruned network computes what it did."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import espalier
from espalier.errors import StudyMismatch
from espalier.search.run.search_run import default_storage

KEPT = Path(__file__).parent / "data" / "0.1"
PROPOSED = "1:1,1,2,8,1"
"""The candidate of trials 6 and 7 when the search was not killed, and its value."""
VALUE = -2.167942415959629
OUTPUTS = [
    *(0.3642639219760895, -0.11879382282495499, 0.17488059401512146, -0.04501578211784363, 0.4495231509208679),
    *(0.1284652203321457, 0.04331168532371521, -0.13697108626365662, 0.35671117901802063, 0.6285665035247803),
]
"""Of the pruned network, for an image that brightens from 0 to 1."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The run folder of a search that 0.1 began."""
    for folder in ("ladder", "finetuned"):
        shutil.copytree(KEPT / folder, tmp_path / folder)
    database = sqlite3.connect(tmp_path / "study.db")
    database.executescript((KEPT / "study.sql").read_text(encoding="utf-8"))
    database.close()
    return tmp_path


def study_in(out: Path) -> optuna.Study:
    return optuna.load_study(study_name="kept", storage=default_storage(out))


def files_in(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def without_leases(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in attributes.items() if not key.startswith(("espalier:driver", "espalier:run"))
    }


def test_a_study_goes_on_to_its_end(out: Path) -> None:
    before, attributes, files = study_in(out).trials, study_in(out).user_attrs, files_in(out)
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 6 + ["RUNNING"]

    result = espalier.resume(default_storage(out), "kept", out=out).result

    after = study_in(out).trials
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 8 and result.trials == 8
    assert after[:6] == before[:6]
    assert [trial.user_attrs["espalier:candidate"] for trial in after[6:]] == [PROPOSED, PROPOSED]
    assert [trial.value for trial in after[6:]] == pytest.approx([VALUE, VALUE], rel=1e-3)

    assert files.items() <= files_in(out).items()  # nothing was trained again
    assert {path.name for path in (out / "ladder").iterdir()} == {path.name for path in (KEPT / "ladder").iterdir()}
    decided = without_leases(attributes)
    del decided["espalier:config"]  # has the keys that came since
    assert decided.items() <= study_in(out).user_attrs.items()
    assert espalier.load(out / "pruned.espalier")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_its_fingerprint_still_refuses_other_settings(out: Path) -> None:
    with pytest.raises(StudyMismatch, match=r"budget\.keep"):
        espalier.resume(default_storage(out), "kept", overrides=["budget.keep=0.5"], out=out)


def test_a_pruned_network_computes_what_it_did() -> None:
    network = espalier.load(KEPT / "pruned.espalier")
    assert sum(parameter.numel() for parameter in network.parameters()) == 695
    with torch.no_grad():
        outputs = network(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8))
    torch.testing.assert_close(outputs, torch.tensor([OUTPUTS]), rtol=1e-4, atol=1e-5)
