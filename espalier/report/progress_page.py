"""The page of a comparison that is under way: ``report.html``, until the comparison's own takes its place.

It is written a few times a minute, and loads itself anew. What it says of cells is read from the comparison's
folder: it holds for every process that works there.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self

from espalier.persistence import whole_file
from espalier.report.page import environment
from espalier.search.compare.cells import ASKED, Cell
from espalier.search.files.json_files import read_json
from espalier.search.progress.reporter import NONE, Meter, Reporter, Values

TEMPLATE = "progress.html.j2"
SECONDS = 10.0
"""Between two writings."""
WAITING, FINALISTS, CHOSEN, FINISHED = "waiting", "finalists chosen", "widths chosen", "finished"
"""States of a cell: its method has yet to choose; fine-tuning has, among its finalists; what was chosen has yet to
be fine-tuned and read; it is done."""


@dataclass
class Stage:
    """One stage of the run.

    Attributes:
        title: what it is.
        unit: what is counted.
        total: so many of them.
        done: of these.
        note: what is worth saying.
        rate: per second, since it began here.
        running: whether it is under way.
    """

    title: str
    unit: str
    total: int
    done: int
    note: str = ""
    rate: float = 0.0
    running: bool = True

    @property
    def left(self) -> str:
        """Time that is left, in words; empty where nothing tells."""
        if not self.running or not self.rate or self.done >= self.total:
            return ""
        return f"{duration((self.total - self.done) / self.rate)} left"


def duration(seconds: float) -> str:
    """Seconds in words, to two units.

    >>> duration(7300)
    '2 h 2 min'
    """
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class ProgressPage(Reporter):
    """Tells another reporter everything, and keeps the page for as long as a block is open.

    Args:
        inner: the other one.
        folder: of the comparison.
        seconds: between two writings.
    """

    def __init__(self, inner: Reporter, folder: Path, seconds: float = SECONDS) -> None:
        self._inner, self._folder, self._seconds = inner, folder, seconds
        self._stages: list[Stage] = []
        self._lines: list[str] = []
        self._lock, self._closed = Lock(), Event()
        self._clock = Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._closed.set()
        self._clock.join()
        if kind is not None:
            self.write(
                ended="interrupted" if issubclass(kind, KeyboardInterrupt) else f"ended by an error: {error}"
            )

    def _tick(self) -> None:
        while not self._closed.wait(self._seconds):
            self.write()

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """A stage of the page and of the other reporter."""
        stage = Stage(title, unit, total, done)
        self._stages.append(stage)
        self.write()
        try:
            with self._inner.meter(title, total, unit, done) as meter:
                yield _StageMeter(stage, meter)
        finally:
            stage.running = False
            self.write()

    def say(self, line: str) -> None:
        """A line of the page, too."""
        self._lines.append(line)
        self._inner.say(line)

    def write(self, ended: str = "") -> None:
        """Writes the page; nothing before the comparison says what is asked, and begins with a stage.

        So a comparison that is refused leaves the report of an earlier one as it is.

        Args:
            ended: how the run has ended; it is under way where that is empty.
        """
        asked = read_json(self._folder / ASKED)
        if asked is None or not self._stages:
            return
        with self._lock:
            self._write(asked, ended)

    def _write(self, asked: dict[str, Any], ended: str) -> None:
        tables = {words: rows(self._folder, budget, asked) for budget, words in asked["budgets"].items()}
        counts = Counter(state for table in tables.values() for _, states in table for state in states)
        text = (
            environment()
            .get_template(TEMPLATE)
            .render(
                asked=asked,
                ended=ended,
                stages=self._stages,
                lines=self._lines,
                tables=tables,
                counts=[
                    (state, counts[state]) for state in (FINISHED, CHOSEN, FINALISTS, WAITING) if counts[state]
                ],
                total=counts.total(),
                now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
                every=math.ceil(self._seconds),
            )
        )
        with whole_file(self._folder / "report.html") as partial:
            partial.write_text(text, encoding="utf-8")


class _StageMeter(Meter):
    def __init__(self, stage: Stage, inner: Meter) -> None:
        self._stage, self._inner = stage, inner
        self._began, self._start = stage.done, time.monotonic()

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        stage, elapsed = self._stage, time.monotonic() - self._start
        stage.done, stage.note = done, note
        stage.rate = (done - self._began) / elapsed if elapsed > 0 else 0.0
        self._inner.update(done, note, values)


def rows(folder: Path, budget: str, asked: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Of every method its state with each seed."""
    return [
        (method, [state(folder, Cell(budget, method, seed)) for seed in asked["seeds"]])
        for method in asked["methods"]
    ]


def state(folder: Path, cell: Cell) -> str:
    """What has been done of a cell."""
    if (folder / "cells" / f"{cell.key}.json").is_file():
        return FINISHED
    choice = read_json(folder / "choices" / f"{cell.key}.json")
    if choice is None:
        return WAITING
    return FINALISTS if choice.get("finalists") else CHOSEN
