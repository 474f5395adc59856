"""Everything of Ray that is not its public interface: each name behind a function that can do without it.

The names are those of Ray 2.50 to 2.60; tests/search/test_ray_private.py says whether they are still there.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from espalier.errors import ClusterError
from espalier.search.cluster.process_settings import environment

TUNE_THREAD = "espalier-tune"
"""Name of the threads that Tune runs in."""
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own, public one; it reads it when it is imported. With 0, whatever Ray starts listens on the loopback
address: otherwise it listens on all addresses."""


@contextmanager
def loopback_only() -> Iterator[None]:
    """A cluster that is started inside listens on the loopback address alone.

    The switch is read by the import of Ray, which may have been long ago: what it was read into is set too.
    """
    constants = _module("ray._private.ray_constants")
    name = "ENABLE_RAY_CLUSTER"
    before = getattr(constants, name, None)
    with environment({LOOPBACK_SWITCH: "0"}):
        if before is not None:
            setattr(constants, name, False)
        try:
            yield
        finally:
            if before is not None:
                setattr(constants, name, before)


@contextmanager
def no_auto_connect() -> Iterator[None]:
    """Ray starts when it is told to.

    By itself it starts a cluster at any call that needs one, such as those of a thread of Tune's that has not ended
    when the cluster is left: so while there is such a thread, it stays as it is here.
    """
    hook, name = _module("ray._private.auto_init_hook"), "enable_auto_connect"
    before = getattr(hook, name, None)
    if before is not None:
        setattr(hook, name, False)
    try:
        yield
    finally:
        if before is not None and not any(thread.name == TUNE_THREAD for thread in threading.enumerate()):
            setattr(hook, name, before)


def check_loopback(address: str) -> None:
    """Refuses a cluster of our own that others could reach.

    Args:
        address: of its node.

    Raises:
        ClusterError: says what to do.
    """
    if address not in ("127.0.0.1", "::1", "localhost"):
        raise ClusterError(
            "a Ray cluster of one's own must listen on the loopback address alone, and this version of Ray "
            f"listens on {address}: set {LOOPBACK_SWITCH}=0 in the environment before Ray is imported"
        )


def head_address(address: str) -> str | None:
    """HOST:PORT of the cluster that ``auto`` or HOST:PORT means.

    Returns:
        None where RAY_ADDRESS says ``local``; ``auto`` where nobody knows better than Ray.

    Raises:
        ConnectionError: no cluster is found.
        ValueError: the address is none.
    """
    resolve = getattr(_module("ray._private.services"), "canonicalize_bootstrap_address", None)
    if resolve is not None:
        found: str | None = resolve(address)
        return found
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    return None if named == "local" else named


def check_socket_paths() -> Path:
    """Refuses a temporary folder in which the paths of Ray's sockets would be longer than the system allows.

    Returns:
        The folder.

    Raises:
        ClusterError: says what to do.
    """
    named = getattr(_module("ray._common.utils"), "get_default_ray_temp_dir", None)
    folder = Path(named() if named is not None else Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray")
    longest = folder / "session_2000-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store"
    most = 103 if sys.platform == "darwin" else 107
    if (over := len(os.fsencode(longest)) - most) > 0:
        raise ClusterError(
            f"Ray cannot start: the paths of its sockets in {folder} would have up to {most + over} bytes, and "
            f"{most} are allowed: set RAY_TMPDIR to a folder whose path is {over} bytes shorter, such as /tmp"
        )
    return folder


def last_error(folder: Path) -> str | None:
    """The last line that Tune wrote of the trial which failed last, in the folder of its results."""
    files = sorted(folder.rglob("error.txt"), key=lambda path: path.stat().st_mtime)
    lines = [line for path in files[-1:] for line in path.read_text().strip().splitlines()]
    return lines[-1].strip() if lines else None


def _module(name: str) -> ModuleType | Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
