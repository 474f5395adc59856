"""Curves for TensorBoard: what is drawn of a run, and nothing without the extra."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Silent
from espalier.search.progress.tensorboard import curves, losses_of
from espalier.search.run.search_run import run


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_draws_its_ladder_its_search_and_its_fine_tuning(tiny: dict[str, Any], tmp_path: Path) -> None:
    search = tiny["search"] | {"trials": 4, "finalists": 1}
    regularizer = tiny["regularizer"] | {"strengths": [0.01]}
    content = tiny | {"search": search, "regularizer": regularizer, "finetune": tiny["finetune"] | {"seeds": 1}}
    result = run(parse_config(content, "tiny"), study="s", out=tmp_path)
    found = scalars(tmp_path / "tensorboard")
    assert len(found["dense training/loss"]) == 16 and len(found["oicsr_gl, strength 0.01/loss"]) == 8
    ((steps, accuracy),) = found["dense training/held-out top-1"]
    assert steps == 16 and 0 <= accuracy <= 100
    best = [value for _, value in found["search/best"]]
    assert best == sorted(best) and dict(found["search/best"]).keys() == dict(found["search/value"]).keys()
    assert max(value for _, value in found["search/value"]) == best[-1]
    folders = [folder for folder in (tmp_path / "tensorboard").iterdir() if folder.is_dir()]
    fine_tuned = len(list((tmp_path / "finetuned").glob("*.safetensors")))
    assert 1 + (result.searched != result.greedy) <= fine_tuned <= 3  # greedy by raw and by normalised energies
    judged = [name for name in found if "fine-tuning" in name and name.endswith("/held-out top-1")]
    assert len(folders) == sum(len(found[name]) for name in judged) == fine_tuned
    assert all(len(scalars(folder)["fine-tuning/loss"]) == 4 for folder in folders)


def test_without_the_extra_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    silent = Silent()
    with curves(silent, tmp_path) as reporter, losses_of(tmp_path / "finetuned" / "a.safetensors") as on_step:
        assert reporter is silent and on_step is None
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_does_not_see_the_run_folder_draws_nothing(tmp_path: Path) -> None:
    with losses_of(tmp_path / "finetuned" / "a.safetensors") as on_step:
        assert on_step is None
    assert list(tmp_path.iterdir()) == []
