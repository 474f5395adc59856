"""The page of a comparison that is under way says how far it is, and makes way for the report."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from espalier.report.page import write_report
from espalier.report.progress_page import (
    CHOSEN,
    FINALISTS,
    FINISHED,
    WAITING,
    ProgressPage,
    Stage,
    duration,
    state,
)
from espalier.search.compare.cells import ASKED, Cell
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import NONE, Meter, Reporter, Silent, Values

ASKING = {
    "name": "mine",
    "network": "resnet20 & <more>",
    "data": "digits",
    "budgets": {"macs5": "5 % of the MACs", "macs9": "9 % of the MACs"},
    "methods": ["greedy", "auto"],
    "seeds": [0, 1],
    "command": "espalier compare mine.yaml",
}


class Kept(Reporter, Meter):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        self.told.append((title, total, unit, done))
        yield self

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        self.told.append((done, note, dict(values)))

    def say(self, line: str) -> None:
        self.told.append(line)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / ASKED, ASKING)
    return tmp_path


def of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_other_reporter_is_told_everything(folder: Path) -> None:
    kept = Kept()
    page = ProgressPage(kept, folder)
    page.say("a line")
    with page.meter("search", 9, "candidates", 2) as meter:
        meter.update(3, "best 1", {"best": 1.0})
    assert kept.told == ["a line", ("search", 9, "candidates", 2), (3, "best 1", {"best": 1.0})]


def test_it_shows_stages_states_and_what_was_said(folder: Path) -> None:
    write_json(folder / "cells" / "macs5" / "greedy-seed0.json", {})
    for name, finalists in {
        "macs5/greedy-seed0": [],
        "macs5/greedy-seed1": [],
        "macs5/auto-seed0": [["0:1", {}]],
    }.items():
        write_json(folder / "choices" / f"{name}.json", {"finalists": finalists})
    cells = [Cell("macs5", method, seed) for method in ("greedy", "auto") for seed in (0, 1)]
    assert [state(folder, cell) for cell in cells] == [FINISHED, CHOSEN, FINALISTS, WAITING]
    page = ProgressPage(Silent(), folder)
    page.say("9 < 10 & more")
    with page.meter("dense training", 2, "steps") as meter:
        meter.update(2, "top-1 90 %")
    with page.meter("fine-tuning", 8, "runs", 3):
        text = of(folder)
    assert "8 cells. Finished: 1, widths chosen: 1, finalists chosen: 1, waiting: 5." in text
    assert "resnet20 &amp; &lt;more&gt;" in text and "9 &lt; 10 &amp; more" in text
    assert re.search(r"dense training.*2/2 steps.*top-1 90 %", text)
    assert re.search(r'class="base".*fine-tuning.*value="3".*3/8 runs', text)
    assert "espalier compare mine.yaml" in text and 'http-equiv="refresh"' in text
    assert text.count("<caption") == 2


def test_it_is_written_now_and_then_and_as_stages_end(folder: Path) -> None:
    with ProgressPage(Silent(), folder, seconds=0.05) as page:
        with page.meter("fine-tuning", 100, "runs") as meter:
            assert "0/100 runs" in of(folder)
            meter.update(10)
            deadline = time.monotonic() + 20
            while "10/100 runs" not in of(folder):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            meter.update(20)
        assert "20/100 runs" in of(folder) and "left</td>" not in of(folder)


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyboardInterrupt(), "was interrupted"), (ValueError("9 < 10"), "ended by an error: 9 &lt; 10")],
)
def test_it_says_how_the_run_ended(folder: Path, error: BaseException, said: str) -> None:
    with pytest.raises(type(error)), ProgressPage(Silent(), folder) as page, page.meter("search", 9, "candidates"):
        raise error
    assert said in of(folder) and "not finished" in of(folder) and "http-equiv" not in of(folder)
    assert 'class="base"' not in of(folder)  # no stage is under way


def test_a_run_that_is_refused_leaves_the_report_of_an_earlier_one(folder: Path) -> None:
    (folder / "report.html").write_text("finished")
    with pytest.raises(ValueError), ProgressPage(Silent(), folder, seconds=0.01):
        time.sleep(0.1)
        raise ValueError("other settings")
    assert of(folder) == "finished"


def test_nothing_is_written_before_the_comparison_says_what_is_asked(tmp_path: Path) -> None:
    with ProgressPage(Silent(), tmp_path).meter("ladder", 2, "steps"):
        pass
    assert not (tmp_path / "report.html").exists()


def test_the_report_takes_its_place(folder: Path, make: Callable[..., Any]) -> None:
    with ProgressPage(Silent(), folder).meter("search", 9, "candidates"):
        assert "under way" in of(folder)
    write_report(make(folder), folder / "report.html")
    assert "under way" not in of(folder) and "http-equiv" not in of(folder)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (29, "29 s"), (31, "1 min"), (3599, "1 h 0 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_nothing_tells_how_long_a_stage_without_a_rate_takes() -> None:
    assert Stage("s", "runs", 9, 3).left == ""
    assert Stage("s", "runs", 9, 3, rate=0.1).left == "1 min left"
    assert Stage("s", "runs", 9, 9, rate=0.1).left == ""
