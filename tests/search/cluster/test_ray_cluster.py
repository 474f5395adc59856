"""Joining a cluster: what goes wrong is one line that says what to do."""

from __future__ import annotations

import importlib
import socket
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import torch

import espalier
from espalier.errors import ClusterError, EspalierError
from espalier.search.cluster.jobs import OnRay, Share
from espalier.search.cluster.ray_cluster import _check_room, _refused, ray_session
from espalier.search.tasks import device
from espalier.search.tasks.device import device_here


def refused(address: str) -> str:
    began = time.monotonic()
    with pytest.raises(EspalierError) as caught:
        with ray_session(2, address):
            pass
    assert time.monotonic() - began < 30 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_a_head_that_does_not_answer(closed_port: int) -> None:
    line = refused(f"127.0.0.1:{closed_port}")
    assert (
        "nothing answers at " in line
        and f":{closed_port} (" in line
        and "`ray start --head`" in line
        and "6379" in line
    )


def test_the_file_of_a_cluster_that_is_gone(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: f"127.0.0.1:{closed_port}")
    line = refused("auto")
    assert "nothing answers at " in line and f":{closed_port} (" in line
    assert "ray_current_cluster" in line and "--address local" in line


def test_no_cluster_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    assert "Could not find any running Ray instance" in refused("auto")


def test_rays_client_is_refused() -> None:
    assert "got ray://head:10001: Ray's client cannot run a search" in refused("ray://head:10001")


def test_nonsense() -> None:
    assert refused("nonsense").startswith("cannot join a Ray cluster at nonsense: ")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("InvalidAuthToken: Unauthenticated"), "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"),
        (ray.exceptions.AuthenticationError("no credentials"), "set RAY_AUTH_MODE=token"),
        (RuntimeError("Version mismatch: Ray: 2.59.0"), "the same versions of Ray and Python on every node"),
        (RuntimeError("This node has an IP address of 10.0.0.1, and Ray expects"), "a driver runs on a node"),
    ],
    ids=["token", "credentials", "versions", "no node"],
)
def test_refusals_say_what_to_do(error: Exception, advice: str) -> None:
    line = _refused("10.0.0.2:6379", error)
    assert line.startswith("cannot join a Ray cluster at 10.0.0.2:6379: ") and advice in line


@pytest.mark.parametrize(("slow", "joined"), [(2, True), (3, False)])
def test_ray_is_started_again_where_it_was_too_slow(
    monkeypatch: pytest.MonkeyPatch, slow: int, joined: bool
) -> None:
    real: Any = ray.init
    starts: list[int] = []

    def init(**options: object) -> object:
        starts.append(1)
        if len(starts) <= slow:
            raise Exception(
                "The current node timed out during startup. This could happen because some of the raylet"
            )
        return real(**options)

    monkeypatch.setattr(ray, "init", init)
    if joined:
        with ray_session(1, None):
            assert ray.is_initialized()
    else:
        said = r"cannot start Ray here: .* this machine is busy: try again"
        with pytest.raises(ClusterError, match=said), ray_session(1, None):
            pass
    assert len(starts) == 3 and not ray.is_initialized()


def test_a_worker_must_fit_somewhere() -> None:
    said: list[str] = []
    nodes = [{"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 1.0, "GPU": 1.0}}]
    _check_room(nodes, Share(4), True, said.append)
    _check_room(nodes, Share(1, 0.25), True, said.append)
    assert said == []
    with pytest.raises(EspalierError, match=r"needs 2 CPUs and 1 GPUs, which this machine has not: lower --cpus"):
        _check_room(nodes, Share(2, 1), True, said.append)
    _check_room(nodes, Share(8), False, said.append)
    assert said == ["no node of the cluster has 8 CPUs for a worker yet: waiting until one joins"]


def test_a_share_of_a_node() -> None:
    assert Share().resources == {"cpu": 1.0} and Share(0.5).threads == 1
    assert Share(4, 0.5).resources == {"cpu": 4, "gpu": 0.5} and Share(4, 0.5).threads == 4


def test_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Ray the GPU, if there is one, or where the user's network lies; in a worker what Ray gives."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_here() == "cuda" and device_here("cpu") == "cpu"
    with monkeypatch.context() as patch:
        patch.setattr(device, "_assigned", ["cpu"])
        assert device_here() == device_here("cuda") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_here() == "cpu"


def _found(_: None, name: str) -> str:
    """Where a worker imports a module from."""
    return str(importlib.import_module(name).__file__)


@pytest.mark.distributed
def test_workers_find_modules_of_the_working_folder_behind_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("optuna", "networkx", "hidden_nowhere_else"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with ray_session(1, "local"):
        names = ["optuna", "networkx", "hidden_nowhere_else", "espalier"]
        found = dict(OnRay(workers=1).map(_found, None, names))
    assert found["optuna"] == optuna.__file__ and found["espalier"] == espalier.__file__
    assert Path(found["networkx"]).parent != tmp_path
    assert found["hidden_nowhere_else"] == str(tmp_path / "hidden_nowhere_else.py")
