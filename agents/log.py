"""Where agents write what they log: a CSV file, and TensorBoard's where tensorboardX is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


class Log:
    """One row per call in ``FOLDER/agent.csv``, and events of TensorBoard in the folder.

    Args:
        folder: made if it is not there; rows are appended to a file that is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "agent.csv"
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._events = None
        else:
            self._events = SummaryWriter(str(folder), write_to_disk=True)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs named numbers of a step; one file holds one set of names."""
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
