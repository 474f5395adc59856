"""What Ray raises, as an error of ours in one line, and whether the cluster is there at all."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from espalier.errors import ClusterError, EspalierError

WATCH_SECONDS = 5.0
"""Between one look at the cluster and the next."""
HEAD_SECONDS = 30.0
"""A head that accepts no connection for so long is gone: one that is restarted is there again by then."""
GO_ON = "what is finished is kept: the same command, or `espalier resume`, goes on"


def told(error: RayError) -> Exception:
    """What a job raised, or that the cluster lost it.

    An error of ours and one of the file system come as they were raised in the worker; anything else that a job
    raises comes as one of ours that names it, see `espalier.search.cluster.jobs`.
    """
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, (EspalierError, OSError)):
            return error.cause
        if not isinstance(error.cause, RayError):
            return EspalierError(f"a job on Ray failed: {type(error.cause).__name__}: {_line(error.cause)}")
        error = error.cause
    if isinstance(error, GetTimeoutError):
        return ClusterError(f"the Ray cluster does not answer; see whether its nodes live; {GO_ON}")
    return ClusterError(f"the Ray cluster lost what it was at ({type(error).__name__}: {_line(error)}); {GO_ON}")


@contextmanager
def cluster_errors() -> Iterator[None]:
    """What Ray raises inside is raised as `told`."""
    try:
        yield
    except RayError as error:
        raise told(error) from error


def _line(error: Exception) -> str:
    """The first sentence or so: Ray explains at length."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return said[:300].rstrip(".: ")


class ClusterWatch:
    """Whether the cluster's head, and Ray on this machine, still accept connections.

    Ray itself waits for 15 to 60 seconds, and then ends this process without a word. To be made when Ray is joined.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._node = f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}"
        self._head = context.gcs_address
        self._answered = time.monotonic()
        self.lost = False

    def check(self) -> None:
        """Raises ClusterError where the cluster is gone."""
        if isinstance(_failure(self._node), ConnectionRefusedError):
            self.lost = True
            raise ClusterError(f"Ray on this machine, at {self._node}, has ended; {GO_ON}")
        error, now = _failure(self._head), time.monotonic()
        if error is None:
            self._answered = now
        elif now - self._answered > HEAD_SECONDS:
            self.lost = True
            raise ClusterError(f"the head of the Ray cluster, at {self._head}, is gone ({error}); {GO_ON}")


def _failure(address: str) -> OSError | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), WATCH_SECONDS).close()
    except OSError as error:
        return error
    return None
