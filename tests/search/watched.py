"""What a test hands to a whole run through the ways that a user has too: a task, a reporter, a clock.

`task.name` of a config names any callable that makes a task. `watched` names one here, whose trainings and
judgements are told to the test, which may change them or have them fail. So nothing inside of espalier is replaced.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from espalier.search.config.loading import Config, parse_config
from espalier.search.files.tensor_files import load_tensors, save_tensors
from espalier.search.progress.reporter import NONE, Meter, Silent, Values
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare, task_of
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.task import Part, Reading, Stage
from espalier.search.training.ladder import VALUE

Train = Callable[..., None]
"""The task's own training, the network, the stage and what `Task.train` takes by name."""
Evaluate = Callable[[Callable[[nn.Module, Part], Reading], nn.Module, Part], Reading]
"""The task's own judgement, the network and the part of the examples."""


def as_it_is(go: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Trains, or judges."""
    return go(*arguments, **named)


@dataclass
class Watch:
    """What a test is told."""

    content: dict[str, Any]
    train: Train = as_it_is
    evaluate: Evaluate = as_it_is


class WatchedTask(ClassificationTask):
    """Image classification whose trainings and judgements pass through a test."""

    watch: Watch

    def train(self, network: nn.Module, stage: Stage, **how: Any) -> None:
        """As the test says."""
        self.watch.train(super().train, network, stage, **how)

    def evaluate(self, network: nn.Module, part: Part) -> Reading:
        """Likewise."""
        return self.watch.evaluate(super().evaluate, network, part)


_latest: list[Watch] = []


def watched(content: dict[str, Any], train: Train = as_it_is, evaluate: Evaluate = as_it_is) -> dict[str, Any]:
    """The content of a config of the built-in task, with a `WatchedTask` in its place.

    The name is the same however often this is called, so that a study goes on with what another call has told of.
    """
    content = {key: value for key, value in content.items() if key != "task"}
    _latest[:] = [Watch(content, train, evaluate)]
    search = {"measure": "cross_entropy"} | content.get("search", {})
    return content | {"search": search, "task": {"name": f"{__name__}:watched_task"}}


def watched_task() -> WatchedTask:
    """The task of the latest `watched`."""
    (watch,) = _latest
    config = parse_config(watch.content, "watched")
    plain = task_of(config)
    assert isinstance(plain, ClassificationTask)
    made = WatchedTask(plain.splits, plain.recipes, config.search.scoring_images)
    made.watch = watch
    return made


class FailingTask(ClassificationTask):
    """Whose trainings fail."""

    def train(self, *_: Any, **__: Any) -> None:
        """Finds no images."""
        raise ZeroDivisionError("no images")


class SeveralProcesses(ClassificationTask):
    """That is to be trained by two processes."""

    def recipe(self, stage: Stage) -> dict[str, Any]:
        """Says so."""
        return super().recipe(stage) | {"processes": 2}


# ------------------------------------------------------------------------------------------- reporters


class Stopped(BaseException):
    """A run was stopped where a test wanted it to be."""


class Stops(Silent):
    """Keeps what a run tells of its progress, and stops it at a point, where one is named.

    Args:
        line: that begins so, as soon as it is said.
        stage: title of a stage, at its `opening`, or after its `update`, both counted from 1.
        after: title of a stage, at the beginning of the next one.
        error: how.
    """

    def __init__(
        self,
        *,
        line: str | None = None,
        stage: str | None = None,
        opening: int = 0,
        update: int = 0,
        after: str | None = None,
        error: type[BaseException] = Stopped,
    ) -> None:
        self._line, self._stage, self._after, self._error = line, stage, after, error
        self._opening, self._update = opening, update
        self.lines: list[str] = []
        self.titles: list[str] = []
        self.updates: list[tuple[str, str]] = []

    def say(self, line: str) -> None:
        """Listens."""
        self.lines.append(line)
        if self._line is not None and line.startswith(self._line):
            raise self._error

    @contextmanager
    def meter(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """Listens."""
        self.titles.append(title)
        if self.titles[:-1] and self.titles[-2] == self._after:
            raise self._error
        if title == self._stage and self.titles.count(title) == self._opening:
            raise self._error
        yield _Counted(self, title)

    def hear(self, title: str, note: str) -> None:
        """One update."""
        self.updates.append((title, note))
        if title == self._stage and sum(one == title for one, _ in self.updates) == self._update:
            raise self._error


class _Counted(Meter):
    def __init__(self, heard: Stops, title: str) -> None:
        self._heard, self._title = heard, title

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        self._heard.hear(self._title, note)


# ------------------------------------------------------------------------------------------ run folders


def greedy_candidates(config: Config, out: Path) -> list[Candidate]:
    """All greedy prunings under the tightest budget, of the ladder that a run folder has, or is given."""
    parts = Experiment(config, prepare(config), out, Silent())
    parts.train_ladder()
    return list(dict.fromkeys(parts.space().greedy_candidates()))


def prefer(folder: Path, candidate: Candidate) -> None:
    """Has the files of fine-tuned networks say that a candidate's were judged the best by far."""
    files = [(path, *load_tensors(path)) for path in folder.glob("*.safetensors")]
    assert candidate.key in {header["candidate"] for _, _, header in files}
    for path, tensors, header in files:
        judged = header.get("judged first", header[VALUE])
        best = header["candidate"] == candidate.key
        save_tensors(path, tensors, header | {"judged first": judged, VALUE: 101.0 if best else judged})


# ---------------------------------------------------------------------------------------------- clocks


def hasten(patch: pytest.MonkeyPatch, every: int = 1) -> None:
    """The clock runs so fast that a training's checkpoint is written at `every` so many steps."""
    readings = itertools.count()
    patch.setattr(time, "monotonic", lambda: next(readings) * 75.0 / every)
