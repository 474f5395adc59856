"""Leases: a process that is at work on a study signs an entry there and renews it while it lives."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

LEASE_SECONDS = 60.0
"""A process that has not renewed its lease for this long is taken for dead."""


def is_live(entry: dict[str, Any], now: float | None = None, host: str | None = None) -> bool:
    """Whether who signed an entry lives, as far as this machine can tell, or `host` at a time `now`."""
    if (time.time() if now is None else now) - entry["renewed"] > LEASE_SECONDS:
        return False
    if entry["host"] != (host or socket.gethostname()):
        return True
    try:
        os.kill(entry["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
