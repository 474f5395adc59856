"""The Ray cluster that a run works on: one of its own on the loopback address, or one that is there already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from espalier.errors import EspalierError

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment under which Ray and Tune leave the terminal and the disk to us; what the user has set wins."""


@contextmanager
def ray_session(workers: int, address: str | None) -> Iterator[None]:
    """Joins a Ray cluster, or starts one, for as long as the context lasts.

    Args:
        workers: CPUs of a cluster of our own.
        address: None or ``local`` starts one that listens on the loopback address alone; ``auto`` and ``HOST:PORT``
            join one.

    Raises:
        EspalierError: no cluster can be joined at `address`.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._private import ray_constants

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    if address in (None, "local"):
        # Ray otherwise puts a machine's outward address in place of 127.0.0.1, and listens on all of them.
        ray_constants.ENABLE_RAY_CLUSTER = False
        options |= {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"address": "local"}  # whatever RAY_ADDRESS names
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        raise EspalierError(f"cannot join a Ray cluster at {address}: {' '.join(str(error).split())}") from error
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = reachable
