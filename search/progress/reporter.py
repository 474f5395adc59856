"""Progress on everything that takes longer than two seconds: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from io import StringIO
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

Values = Mapping[str, float]
"""Name -> number."""
NONE: Values = {}


FEWEST, LONG = 5, 60.0
"""Units, or seconds, before which no time left is told: the first unit takes longer than those that follow."""


class Meter(ABC):
    """One running stage."""

    @abstractmethod
    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        """States how much is done, what is worth saying of it (best so far, loss), and numbers for curves."""


class Reporter(ABC):
    """Where a run tells how far it is."""

    @abstractmethod
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Meter]:
        """A stage of `total` units, `done` of them already; used as ``with reporter.meter(...) as meter``."""

    @abstractmethod
    def say(self, line: str) -> None:
        """One line of text."""


class Silent(Reporter):
    """Says nothing."""

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """A meter that ignores updates."""
        yield _SilentMeter()

    def say(self, line: str) -> None:
        """Nothing."""


class _SilentMeter(Meter):
    def update(self, done: int, note: str = "", values: Values = NONE) -> None: ...


class _Rate(ProgressColumn):
    """Units a second, counted from where this run began."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        made = task.completed - task.fields["began"]
        if not elapsed or made <= 0:
            return Text("")
        return Text(f"{_rounded(made / elapsed)}{task.fields['per']}", style="cyan")


class _Remaining(TimeRemainingColumn):
    """Time left; none of a stage that has ended before its total."""

    def render(self, task: Task) -> Text:
        few = task.completed - task.fields["began"] < FEWEST and (task.elapsed or 0.0) < LONG
        ended = task.stop_time is not None and not task.finished
        return Text("") if ended or (few and not task.finished) else super().render(task)


def _rounded(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 1000 else f"{rate:.3g}"


class _CutText(ProgressColumn):
    """A text in one line, of which a narrow terminal shows the beginning."""

    def __init__(self, text: Callable[[Task], str], style: str = "") -> None:
        super().__init__()
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        return Text(self._text(task), style=self._style, no_wrap=True, overflow="crop")


class Terminal(Reporter):
    """Bars with rate, a note and the time left, each in one line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """A bar; its last state stays on the screen."""
        wide = self._console.width >= 112
        columns = (
            _CutText(lambda task: f"{task.description:<{26 if wide else 20}}"),
            BarColumn(bar_width=24 if wide else 10),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Rate(table_column=Column(no_wrap=True)),
            _Remaining(table_column=Column(no_wrap=True)),
            _CutText(lambda task: str(task.fields["note"]), style="green"),
        )
        with Progress(*columns, console=self._console) as progress:
            per = f" {unit}/s" if wide else "/s"
            task = progress.add_task(title, total=total, completed=done, per=per, note="", began=done)
            yield _Bar(progress, task)
            progress.stop_task(task)

    def say(self, line: str) -> None:
        """Prints above the bars."""
        self._console.print(line, highlight=False, markup=False, emoji=False)  # a path may hold brackets


class _Bar(Meter):
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        self._progress.update(self._task, completed=done, note=note)  # type: ignore[arg-type]


class Lines(Reporter):
    """Plain lines, at most one per `interval` seconds and stage: for logs and pipes."""

    def __init__(self, stream: IO[str] | None = None, interval: float = 5.0) -> None:
        self._stream, self._interval = stream, interval

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """Lines such as ``search: 40/200 candidates, 8.1/s, 20 s left, best 0.31``."""
        meter = _LineMeter(self, title, total, unit, done, self._interval)
        meter.line(done, "")
        yield meter
        if meter.unsaid is not None:
            meter.line(*meter.unsaid)

    def say(self, line: str) -> None:
        """One line."""
        print(line, file=self._stream or sys.stdout, flush=True)


class _LineMeter(Meter):
    def __init__(self, reporter: Lines, title: str, total: int, unit: str, began: int, interval: float) -> None:
        self._reporter, self._title, self._total, self._unit = reporter, title, total, unit
        self._began, self._interval = began, interval
        self._start = self._last = time.monotonic()
        self.unsaid: tuple[int, str] | None = None

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        if time.monotonic() - self._last >= self._interval:
            self.line(done, note)
        else:
            self.unsaid = (done, note)

    def line(self, done: int, note: str) -> None:
        self._last, self.unsaid = time.monotonic(), None
        elapsed = self._last - self._start
        parts = [f"{self._title}: {done}/{self._total} {self._unit}"]
        if done > self._began and elapsed > 0:
            rate = (done - self._began) / elapsed
            parts.append(f"{_rounded(rate)}/s")
            if done < self._total and (done - self._began >= FEWEST or elapsed >= LONG):
                parts.append(f"{(self._total - done) / rate:.0f} s left")
        self._reporter.say(", ".join([*parts, note] if note else parts))


WIDTH = 100
"""Columns of plain text."""


def plain_text(parts: Iterable[Table | str]) -> str:
    """Tables and lines, one below the other."""
    stream = StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, markup=False, emoji=False)
    for part in parts:
        console.print(part, highlight=False)
    return stream.getvalue().strip()


def here(progress: bool | None) -> Reporter:
    """For a call in Python: bars in a terminal and in a notebook; lines elsewhere.

    Args:
        progress: False tells nothing. True writes the lines to stdout every few seconds; by default they go to
            stderr and are few, as a log file wants them.
    """
    if progress is False:
        return Silent()
    console = Console(markup=False, emoji=False)
    widgets = console.is_jupyter and find_spec("ipywidgets") is not None  # which bars in a notebook are made of
    if _redraws(console) or widgets:
        return Terminal(console)
    few = progress is None and not console.is_terminal and not console.is_jupyter
    return Lines(sys.stderr, interval=30) if few else Lines()


def for_console(console: Console) -> Reporter:
    """Bars where the console is a terminal that can redraw a line, lines where it is not."""
    return Terminal(console) if _redraws(console) else Lines(console.file)


def _redraws(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
