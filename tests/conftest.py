"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# One thread: small networks are faster so, and sums come in one order.
torch.set_num_threads(1)

# A shell's background jobs ignore Ctrl-C, and what they start would too: the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data sets and weights: ``ESPALIER_SHARED``, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("ESPALIER_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: ESPALIER_SHARED names the folder with data/ and weights/")
    return folder
