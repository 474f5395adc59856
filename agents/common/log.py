"""Where agents write what they log: a CSV file, and TensorBoard's where the extra ``tensorboard`` is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from espalier.tensorboard import event_writer


class Log:
    """One row per call in ``FOLDER/agent.csv``, and events of TensorBoard in the folder.

    Args:
        folder: made if it is not there; a file that is there is gone on with, and what it holds not written again.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "agent.csv"
        self._last = self._last_step()
        self._events = event_writer(folder)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs named numbers of a step; one file holds one set of names, its steps rising."""
        if step <= self._last:
            return  # an agent that is rebuilt comes by its old updates again
        self._last = step
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            rows = csv.writer(file)
            if fresh:
                rows.writerow(["step", *numbers])
            rows.writerow([step, *numbers.values()])
        if self._events is not None:
            for name, number in numbers.items():
                self._events.add_scalar(name, number, step)
            self._events.flush()

    def _last_step(self) -> int:
        if not self.path.exists():
            return -1
        with self.path.open(newline="") as file:
            return max((int(row["step"]) for row in csv.DictReader(file)), default=-1)
