"""Curves for TensorBoard in the run folder, where the extra ``tensorboard`` is installed.

| curve | over |
|---|---|
| loss, held-out score of the dense training and of every rung | steps |
| value of the best candidate of the search, value of each | finished trials |
| loss of every fine-tuning, held-out score of each and of the best | steps, runs |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from espalier.search.progress.reporter import NONE, Meter, Reporter, Values
from espalier.tensorboard import event_writer

FOLDER = "tensorboard"
"""Inside the run folder."""


@contextmanager
def curves(reporter: Reporter, out: Path) -> Iterator[Reporter]:
    """A reporter that also writes the numbers it is told into the run folder; the same one without the extra."""
    with _writer(out / FOLDER) as writer:
        yield reporter if writer is None else _Curves(reporter, writer)


@contextmanager
def losses_of(path: Path) -> Iterator[Callable[[int, float], None] | None]:
    """Told the steps and losses of the fine-tuning that `path` is the file of; None where nobody could see them.

    Args:
        path: in the folder of fine-tuned networks, which another machine may not have.
    """
    if not path.parent.is_dir():
        yield None
        return
    with _writer(path.parent.parent / FOLDER / f"fine-tuning {path.stem}") as writer:
        yield None if writer is None else lambda step, loss: writer.add_scalar("fine-tuning/loss", loss, step)


def _writer(folder: Path) -> AbstractContextManager[Any]:
    return event_writer(folder) or nullcontext()


class _Curves(Reporter):
    def __init__(self, inner: Reporter, writer: Any) -> None:
        self._inner, self._writer = inner, writer

    def meter(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Meter]:
        return self._meter(title, total, unit, done)

    @contextmanager
    def _meter(self, title: str, total: int, unit: str, done: int) -> Iterator[Meter]:
        with self._inner.meter(title, total, unit, done) as meter:
            yield _Drawn(meter, title, self._writer)
        self._writer.flush()

    def say(self, line: str) -> None:
        self._inner.say(line)


class _Drawn(Meter):
    def __init__(self, inner: Meter, title: str, writer: Any) -> None:
        self._inner, self._title, self._writer = inner, title, writer

    def update(self, done: int, note: str = "", values: Values = NONE) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{self._title}/{name}", value, done)
        self._inner.update(done, note, values)
