"""Ray's private names: all are there in the installed version, and a run can do without any of them."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from ray._private import auto_init_hook, node, ray_constants, services, utils

from espalier.errors import ClusterError
from espalier.search.cluster import ray_private

HERE = Path(ray_private.__file__).parents[1]


def test_the_names_are_there() -> None:
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == ray_private.LOOPBACK_SWITCH
    assert isinstance(auto_init_hook.enable_auto_connect, bool)
    assert next(iter(inspect.signature(services.canonicalize_bootstrap_address).parameters)) == "addr"


def test_the_file_of_errors_is_where_tune_writes_it(tmp_path: Path) -> None:
    from ray.air.constants import EXPR_ERROR_FILE

    assert EXPR_ERROR_FILE == "error.txt"
    assert ray_private.last_error(tmp_path) is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "error.txt").write_text("")
    assert ray_private.last_error(tmp_path) is None
    (tmp_path / "a" / "error.txt").write_text("Failure # 1\nTraceback\nRuntimeError: no luck\n")
    assert ray_private.last_error(tmp_path) == "RuntimeError: no luck"


def test_no_other_module_names_them() -> None:
    private = [path.name for path in HERE.rglob("*.py") if "ray._private" in path.read_text()]
    assert private == ["ray_private.py"]


def test_what_is_set_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
    with pytest.raises(KeyError), ray_private.loopback_only(), ray_private.no_auto_connect():
        assert not ray_constants.ENABLE_RAY_CLUSTER and not auto_init_hook.enable_auto_connect
        raise KeyError
    assert ray_constants.ENABLE_RAY_CLUSTER and auto_init_hook.enable_auto_connect


def test_a_run_does_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")
    monkeypatch.delattr(auto_init_hook, "enable_auto_connect")
    monkeypatch.delattr(services, "canonicalize_bootstrap_address")
    with ray_private.loopback_only(), ray_private.no_auto_connect():
        pass
    assert not hasattr(ray_constants, "ENABLE_RAY_CLUSTER")
    assert ray_private.head_address("10.0.0.1:6379") == "10.0.0.1:6379"
    assert ray_private.head_address("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert ray_private.head_address("auto") == "10.0.0.2:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_private.head_address("auto") is None


def test_a_run_does_without_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray_constants", "auto_init_hook", "services"):
        monkeypatch.setitem(sys.modules, f"ray._private.{name}", None)
    with ray_private.loopback_only(), ray_private.no_auto_connect():
        assert ray_private.head_address("10.0.0.1:6379") == "10.0.0.1:6379"


def test_the_sockets_of_ray_have_the_paths_that_are_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own names, the longest that they can be: microseconds and process numbers have six and seven digits."""
    source = Path(node.__file__).read_text()
    assert '"%Y-%m-%d_%H-%M-%S_%f"' in source and 'f"session_{date_str}_{os.getpid()}"' in source
    assert '"sockets"' in source and '"plasma_store"' in source
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 38)
    longest = (
        ray_private.check_socket_paths() / "session_2026-12-31_23-59-59_999999_4194304" / "sockets" / "plasma_store"
    )
    utils.validate_socket_filepath(str(longest))
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (38 + 107 - len(str(longest)) + 1))
    with pytest.raises(ClusterError, match="1 bytes shorter"):
        ray_private.check_socket_paths()
    monkeypatch.setitem(sys.modules, "ray._common.utils", None)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert ray_private.check_socket_paths() == Path("/tmp/ray")


def test_a_cluster_that_others_could_reach_is_refused() -> None:
    ray_private.check_loopback("127.0.0.1")
    with pytest.raises(
        ClusterError, match=r"listens on 10\.0\.0\.1: set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the"
    ):
        ray_private.check_loopback("10.0.0.1")
