"""The Ray cluster that a run works on: one of its own on the loopback address, or one that is there already."""

from __future__ import annotations

import logging
import math
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.search.module_path import job_config
from espalier.search.workers import InProcess, OnRay, Share, Workers

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Environment under which Ray and Tune leave the terminal and the disk to us, and Ray starts when told to; what the
user has set wins."""

ANSWER = 10.0
"""Seconds in which a cluster's head must accept a connection."""


def join(
    workers: int,
    stack: ExitStack,
    *,
    address: str | None = None,
    share: Share | None = None,
    folder: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Workers:
    """Where jobs run: here for no workers, else on a Ray cluster that is joined when there is something to do.

    Args:
        workers: jobs at a time.
        stack: leaves the cluster when it closes.
        address: as for `ray_session`, like the others.
        share: likewise.
        folder: likewise.
        say: likewise.
    """
    if not workers:
        return InProcess()
    session = ray_session(workers, address, share=share, folder=folder, say=say)
    return OnRay(lambda: stack.enter_context(session), workers, share)


@contextmanager
def ray_session(
    workers: int,
    address: str | None,
    *,
    share: Share | None = None,
    folder: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[None]:
    """Joins a Ray cluster, or starts one, for as long as the context lasts.

    Args:
        workers: of a cluster of our own.
        address: None or ``local`` starts one that listens on the loopback address alone; ``auto`` and ``HOST:PORT``
            join one.
        share: of a node that each worker gets.
        folder: the run folder; nodes of the cluster that do not see it are named.
        say: told what the user should know of the cluster.

    Raises:
        EspalierError: no cluster can be joined at `address`, or this machine has too little for one worker.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._private import ray_constants

    share = share or Share()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": job_config()}
    reachable = ray_constants.ENABLE_RAY_CLUSTER
    own = address in (None, "local")
    if own:
        # Ray otherwise puts a machine's outward address in place of 127.0.0.1, and listens on all of them.
        ray_constants.ENABLE_RAY_CLUSTER = False
        cpus = math.ceil(workers * share.cpus)
        options |= {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"address": "local"}  # whatever RAY_ADDRESS names
    else:
        assert address is not None
        options |= {"address": _probed(address)}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray_constants.ENABLE_RAY_CLUSTER = reachable
        raise EspalierError(_refused(address, error)) from error
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        _check_room(_nodes(), share, own, say)
        if folder is not None and not own:
            blind = _blind_nodes(folder)
            if blind:
                say(
                    f"{len(blind)} of {len(_nodes())} nodes do not see {folder} ({', '.join(blind[:3])}): a "
                    "training that is interrupted there begins anew; put --out where all nodes see it"
                )
        yield
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = reachable


def _probed(address: str) -> str:
    """HOST:PORT of a cluster whose head accepts connections."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise EspalierError(
            f"--address must be local, auto or HOST:PORT, got {address}: Ray's client cannot run a search; run "
            "espalier on a node of the cluster, or submit it with `ray job submit`"
        )
    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise EspalierError(_refused(address, error)) from error
    if found is None:
        raise EspalierError(
            f"cannot join a Ray cluster at {address}: RAY_ADDRESS says local, which starts one; unset it, or give "
            "HOST:PORT"
        )
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except OSError as error:
        stale = (
            "a cluster that ended without `ray stop` leaves its address in /tmp/ray/ray_current_cluster: start a "
            "new one with `ray start --head`, or use --address local"
            if address == "auto"
            else "start it with `ray start --head`, and see that its port (6379 by default) is open to this machine"
        )
        raise EspalierError(
            f"cannot join a Ray cluster at {address}: nothing answers at {found} ({error}); {stale}"
        ) from error
    return found


def _refused(address: str | None, error: Exception) -> str:
    """Why a cluster was not joined, and what to do, in a line."""
    said = " ".join(str(error).split())
    advice = ""
    if "token" in said.lower() or "auth" in type(error).__name__.lower():
        advice = (
            "; the cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to "
            "what its head node has (`ray get-auth-token`), on every node"
        )
    elif "raylet" in said.lower() or ("node" in said.lower() and "ip" in said.lower()):
        advice = (
            "; a driver runs on a node of the cluster: start one here with `ray start --address`, or use "
            "`ray job submit`"
        )
    elif "version mismatch" in said.lower():
        advice = "; install the same versions of Ray and Python on every node"
    return f"cannot join a Ray cluster at {address or 'local'}: {said}{advice}"


def _check_room(nodes: list[dict[str, Any]], share: Share, own: bool, say: Callable[[str], object]) -> None:
    """Sees to it that a worker fits on some node: Ray would wait for one without a word."""

    def fits(node: dict[str, Any]) -> bool:
        has = node["Resources"]
        return bool(has.get("CPU", 0) >= share.cpus and has.get("GPU", 0) >= share.gpus)

    if not any(fits(node) for node in nodes):
        wants = f"{share.cpus:g} CPUs" + (f" and {share.gpus:g} GPUs" if share.gpus else "")
        if own:
            raise EspalierError(
                f"a worker needs {wants}, which this machine has not: lower --cpus-per-worker or --gpus-per-worker"
            )
        say(f"no node of the cluster has {wants} for a worker yet: waiting until one joins")


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()
    return [node for node in nodes if node["Alive"]]


def _blind_nodes(folder: Path) -> list[str]:
    """Addresses of the nodes that do not see a file in a folder of this machine's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder.mkdir(parents=True, exist_ok=True)
    marker = folder.absolute() / f".seen-{uuid.uuid4().hex[:8]}"
    marker.touch()
    try:
        look: Any = ray.remote(num_cpus=0, max_retries=0)(_sees)
        here = ray.get_runtime_context().get_node_id()
        others = [node for node in _nodes() if node["NodeID"] != here]
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(marker)
            ): node["NodeManagerAddress"]
            for node in others
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER) if asked else ([], [])
        return [asked[answer] for answer in answered if not ray.get(answer)]
    finally:
        marker.unlink()


def _sees(path: str) -> bool:
    return os.path.exists(path)
