"""Files that appear whole or not at all, and records that another version wrote."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espalier import persistence
from espalier.agents.common.buffers import Episode, episodes_of, episodes_state
from espalier.agents.training.training import save
from espalier.persistence import record_from, whole_file
from espalier.search.analysis.figure_data import front
from espalier.search.compare.cells import Measured, Store
from espalier.search.files.json_files import json_once, read_json, write_json
from espalier.search.files.tensor_files import load_tensors, save_tensors
from espalier.search.methods import Choice
from espalier.search.pruning_loop.result import Round
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.study.active_runs import ActiveRun, present
from espalier.search.study.lease import machine
from espalier.search.study.pareto_front import Point
from espalier.search.study.run_folder import folder_here
from espalier.search.tasks.execution import Execution
from espalier.search.training.soft import SoftEpoch

WRITERS: dict[str, Callable[[Path, int], Any]] = {
    "tensors": lambda path, number: save_tensors(path, {"x": torch.full((2000,), number)}, {"n": number}),
    "json": lambda path, number: write_json(path, {"n": [number] * 2000}),
    "agent": lambda path, number: save(path, {"n": torch.full((2000,), number)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_processes_of_one_number_write_the_same_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers that share a folder: each has its process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, failed, barrier = tmp_path / "file", [], threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait(60)
        try:
            for _ in range(5):
                WRITERS[kind](path, number)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and list(tmp_path.iterdir()) == [path]
    if kind == "json":
        (one,) = set((read_json(path) or {})["n"])
        assert one in range(8)
    elif kind == "tensors":
        tensors, header = load_tensors(path)
        assert (tensors["x"] == header["n"]).all()


def test_a_writing_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with whole_file(path) as partial:
        partial.write_text("before")
    with pytest.raises(OSError, match="full"), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "before" and list(path.parent.iterdir()) == [path]


def test_what_killed_writers_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a[b]*.json"
    old, young, other = (
        tmp_path / f".{name}.{number:032x}.part" for number, name in enumerate((path.name, path.name, "ab.json"))
    )
    for left in (old, young, other):
        left.touch()
    long_ago = old.stat().st_mtime - persistence.STALE_SECONDS - 10
    for left in (old, other):
        os.utime(left, (long_ago, long_ago))
    write_json(path, {})
    assert {*tmp_path.iterdir()} == {path, young, other}


def test_of_processes_that_make_a_file_at_the_same_moment_one_decides(tmp_path: Path) -> None:
    path, found, barrier = tmp_path / "plan" / "file.json", [], threading.Barrier(6)

    def make(number: int) -> dict[str, Any]:
        barrier.wait(60)
        return {"n": number}

    threads = [
        threading.Thread(target=lambda n=n: found.append(json_once(path, lambda: make(n)))) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(each == found[0] for each in found)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "file.json"
    assert [json_once(path, lambda: {"n": 1}), json_once(path, lambda: {"n": 2})] == [{"n": 1}] * 2
    with pytest.raises(FileExistsError), whole_file(path, replace=False) as partial:
        partial.touch()


def test_comparisons_in_one_folder_go_on_with_one_value(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    assert one.once("strength:macs", lambda: {"a": 1}) == {"a": 1}
    assert other.once("strength:macs", lambda: {"a": 2}) == {"a": 1}
    assert Store(tmp_path).once("strength:macs", lambda: {"a": 3}) == {"a": 1}


def test_a_plan_of_an_older_version_holds(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"seconds": {}, "execution": {"a": 1}})
    assert Store(tmp_path).once("execution", lambda: {"a": 2}) == {"a": 1}


# --------------------------------------------------------------------------------- records of a newer version


def test_fields_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    score = Score({"top1": 50.0, "cross_entropy": 1.0}, 0.5)
    assert Score.from_json(score.to_json() | {"new": 1}) == score
    execution = Execution(64, "channels_last", "fp32")
    assert Execution.from_json(execution.to_json() | {"new": 1}) == execution
    choice = Choice(Candidate(0, (1, 2)), "energy", score, 3, 0.5, (1.0,))
    assert Choice.from_json(choice.to_json() | {"new": 1}) == choice
    cell = {key: 0 for key in Measured.__dataclass_fields__} | {"history": [1.0], "timings": {}, "new": 1}
    assert Measured.from_json(cell).history == (1.0,)
    assert folder_here("s", {"espalier:place:host": {"out": str(tmp_path), "new": 1}}, "sqlite:///a.db") == Path(
        "runs/s"
    )
    episode = Episode(torch.ones(1, 2), torch.ones(1, 1), torch.ones(1))
    (again,) = episodes_of([state | {"new": torch.ones(1)} for state in episodes_state([episode])])
    assert again.log_probs is None and torch.equal(again.actions, episode.actions)
    lease = {
        "host": "h",
        "pid": 1,
        "machine": machine() + "x",
        "renewed": 2e9,
        "since": 0.0,
        "stage": "",
        "done": 0,
    }
    entry = lease | {"total": 0, "unit": "", "note": "", "new": 1}
    assert present({"espalier:run:a": entry | {"renewed": time.time()}})[0].host == "h"


@pytest.mark.parametrize("kind", [Round, SoftEpoch, ActiveRun, Point])
def test_records_that_are_read_field_by_field(kind: type[Any]) -> None:
    content = dict.fromkeys(kind.__dataclass_fields__, 1)
    assert record_from(kind, content | {"new": 2}) == kind(**content)


def test_a_front_of_a_newer_version(tmp_path: Path) -> None:
    content: dict[str, Any] = dict.fromkeys(Point.__dataclass_fields__, 1)
    (tmp_path / "result.json").write_text(json.dumps({"front": [content | {"new": 2}]}))
    assert front(tmp_path) == [Point(**content)]


def test_a_network_is_written_whole(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", dict(nn.Linear(2, 2).named_parameters()), {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
