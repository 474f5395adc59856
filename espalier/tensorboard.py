"""The one writer of TensorBoard's event files, where the extra ``tensorboard`` is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any


def event_writer(folder: Path) -> Any:
    """A `torch.utils.tensorboard.SummaryWriter` in a folder; None without the extra."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
