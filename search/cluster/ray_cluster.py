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

from espalier.errors import ClusterError
from espalier.search.cluster.jobs import InProcess, OnRay, Share, Workers
from espalier.search.cluster.process_settings import environment, log_levels
from espalier.search.tasks.module_path import job_config

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Environment under which Ray and Tune leave the terminal and the disk to us, and Ray starts when told to; what the
user has set wins."""

OF_RAY = ("RAY_", "TUNE_", "PYTHONBREAKPOINT")
"""What the names of variables begin with that Ray itself sets in our environment."""

ANSWER = 10.0
"""Seconds in which a cluster's head must accept a connection."""
STARTS = 3
"""How often a cluster of our own is started, where the machine is so busy that Ray's half a minute does not do."""


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
        stack.enter_context(_tells_of_interrupts(say))
        return InProcess()
    session = ray_session(workers, address, share=share, folder=folder, say=say)

    def enter() -> None:
        stack.enter_context(session)
        stack.enter_context(_tells_of_interrupts(say))  # left first: a cluster takes its time to end

    return OnRay(enter, workers, share)


@contextmanager
def _tells_of_interrupts(say: Callable[[str], object]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("stopping: what is finished is kept, and the same call goes on with it")
        raise


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

    What Ray raises inside is raised as an error of ours in one line. When the context ends, the environment and the
    levels of Ray's loggers are as before.

    Raises:
        ClusterError: no cluster can be joined at `address`, this machine has too little for one worker, or the
            cluster is lost.
    """
    import ray

    from espalier.search.cluster import ray_private
    from espalier.search.cluster.ray_errors import cluster_errors

    share = share or Share()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": job_config()}
    own = address in (None, "local")
    with ExitStack() as stack:
        stack.enter_context(environment(SETTINGS, OF_RAY))
        stack.enter_context(log_levels({"ray": None, "ray.tune": logging.ERROR}))
        stack.enter_context(ray_private.no_auto_connect())
        if own:
            stack.enter_context(ray_private.loopback_only())
            options |= {"num_cpus": math.ceil(workers * share.cpus), "include_dashboard": False}
            options |= {"address": "local"}  # whatever RAY_ADDRESS names
        else:
            assert address is not None
            options |= {"address": probed(address)}
        for left in reversed(range(STARTS)):
            try:
                ray.init(**options)
                break
            except Exception as error:  # of many kinds, plain ones too
                ray.shutdown()
                if not (own and left and _too_slow(error)):
                    raise ClusterError(_refused(address, error)) from error
        stack.callback(ray.shutdown)
        stack.enter_context(cluster_errors())
        if own:
            for node in _nodes():
                ray_private.check_loopback(node["NodeManagerAddress"])
        _check_room(_nodes(), share, own, say)
        if folder is not None and not own:
            blind = _blind_nodes(folder)
            if blind:
                say(
                    f"{len(blind)} of {len(_nodes())} nodes do not see {folder} ({', '.join(blind[:3])}): a "
                    "training that is interrupted there begins anew; put --out where all nodes see it"
                )
        yield


def probed(address: str) -> str:
    """HOST:PORT of a cluster whose head accepts connections.

    Args:
        address: ``auto`` or HOST:PORT.

    Raises:
        ClusterError: there is none.
    """
    from espalier.search.cluster.ray_private import head_address

    if "://" in address:
        raise ClusterError(
            f"--address must be local, auto or HOST:PORT, got {address}: Ray's client cannot run a search; run "
            "espalier on a node of the cluster, or submit it with `ray job submit`"
        )
    try:
        found = head_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise ClusterError(_refused(address, error)) from error
    if found is None:
        raise ClusterError(
            f"cannot join a Ray cluster at {address}: RAY_ADDRESS says local, which starts one; unset it, or give "
            "HOST:PORT"
        )
    host, _, port = found.rpartition(":")
    if not host:  # Ray finds out by itself
        return found
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except OSError as error:
        stale = (
            "a cluster that ended without `ray stop` leaves its address in /tmp/ray/ray_current_cluster: start a "
            "new one with `ray start --head`, or use --address local"
            if address == "auto"
            else "start it with `ray start --head`, and see that its port (6379 by default) is open to this machine"
        )
        raise ClusterError(
            f"cannot join a Ray cluster at {address}: nothing answers at {found} ({error}); {stale}"
        ) from error
    return found


def _too_slow(error: Exception) -> bool:
    """Whether Ray gave up waiting for its own processes to start."""
    return "timed out during startup" in str(error)


def _refused(address: str | None, error: Exception) -> str:
    """Why a cluster was not joined, and what to do, in a line."""
    said = " ".join(str(error).split())
    advice = ""
    if "token" in said.lower() or "auth" in type(error).__name__.lower():
        advice = (
            "; the cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to "
            "what its head node has (`ray get-auth-token`), on every node"
        )
    elif _too_slow(error):
        advice = "; this machine is busy: try again, or use --workers 0, which does without Ray"
    elif "raylet" in said.lower() or ("node" in said.lower() and "ip" in said.lower()):
        advice = (
            "; a driver runs on a node of the cluster: start one here with `ray start --address`, or use "
            "`ray job submit`"
        )
    elif "version mismatch" in said.lower():
        advice = "; install the same versions of Ray and Python on every node"
    what = "start Ray here" if address in (None, "local") else f"join a Ray cluster at {address}"
    return f"cannot {what}: {said}{advice}"


def _check_room(nodes: list[dict[str, Any]], share: Share, own: bool, say: Callable[[str], object]) -> None:
    """Sees to it that a worker fits on some node: Ray would wait for one without a word."""

    def fits(node: dict[str, Any]) -> bool:
        has = node["Resources"]
        return bool(has.get("CPU", 0) >= share.cpus and has.get("GPU", 0) >= share.gpus)

    if not any(fits(node) for node in nodes):
        wants = f"{share.cpus:g} CPUs" + (f" and {share.gpus:g} GPUs" if share.gpus else "")
        if own:
            raise ClusterError(
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
        return [asked[answer] for answer in answered if not _told(answer)]
    finally:
        marker.unlink()


def _told(answer: Any) -> bool:
    """What a node says of a file; one that is gone does not matter."""
    import ray

    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError:
        return True


def _sees(path: str) -> bool:
    return os.path.exists(path)
