"""After a library call, the process is as it was: its environment, the threads of torch, the levels of loggers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray  # noqa: F401  its import sets levels and variables, which are not given back
import torch
import yaml

import espalier
from espalier.errors import DataError, EspalierError, StorageError
from espalier.search.analysis.proxy_study import study_proxies
from espalier.search.analysis.rescoring import rescore
from espalier.search.cluster.process_settings import computing, environment, log_levels
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import Config, parse_config
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.agent_training import train_agent
from espalier.search.run.search_run import resume, run

OF_OTHERS = ("PYTEST_", "TORCHINDUCTOR_", "KMP_")
"""Variables that pytest sets, and torch itself where it compiles for the first time."""
LOGGERS = ("ray", "ray.tune", "optuna", "sqlalchemy", "")


def state() -> dict[str, Any]:
    return {
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(OF_OTHERS)},
        "threads": torch.get_num_threads(),
        "optuna": optuna.logging.get_verbosity(),
        "loggers": {name: logging.getLogger(name).level for name in LOGGERS},
    }


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A caller with two threads and an Optuna that talks."""
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(2)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")  # the user's own
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    logging.getLogger("ray.tune").setLevel(logging.DEBUG)
    yield state()
    logging.getLogger("ray.tune").setLevel(logging.NOTSET)
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(verbosity)


def test_a_search_and_what_reads_its_study(before: dict[str, Any], tmp_path: Path, tiny_text: str) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_text, encoding="utf-8")
    espalier.search_widths(tmp_path / "tiny.yaml", overrides=["search.trials=3"], out=tmp_path / "run", study="s")
    assert state() == before
    url = f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    rescore(url, "s", 0)
    assert state() == before
    resume(url, "s")
    assert state() == before
    with pytest.raises(StorageError):
        rescore(url, "s", 99)
    with pytest.raises(StorageError):
        resume(url, "another")
    assert state() == before


during: list[dict[str, Any]] = []
"""How the process was when its data were loaded."""


def no_luck(root: str | None) -> Any:
    """A data set that cannot be read."""
    during.append(state())
    raise DataError("no luck")


@pytest.mark.parametrize(
    "call",
    [
        lambda config, out: run(config, study="s", out=out),
        lambda config, out: compare(config, name="c", out=out, command="c"),
        lambda config, out: prune(config, out, Silent()),
        lambda config, out: study_proxies(config, out),
        lambda config, out: train_agent([("a", config)], out, episodes=1, seed=0, reporter=Silent()),
    ],
    ids=["run", "compare", "prune", "study_proxies", "train_agent"],
)
def test_after_an_error(
    before: dict[str, Any],
    tmp_path: Path,
    tiny_text: str,
    call: Callable[[Config, Path], object],
) -> None:
    during.clear()
    content = yaml.safe_load(tiny_text) | {"data": {"name": f"{__name__}:no_luck"}}
    with pytest.raises(DataError, match="no luck"):
        call(parse_config(content, "the config"), tmp_path)
    assert during[0]["threads"] == 1 and during[0]["optuna"] == optuna.logging.WARNING
    assert state() == before


@pytest.mark.distributed
def test_a_session_of_ray(before: dict[str, Any]) -> None:
    from espalier.search.cluster.ray_cluster import SETTINGS, ray_session

    for _ in range(2):
        with ray_session(1, "local"):
            assert all(os.environ[name] for name in SETTINGS)
            assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1" and logging.getLogger("ray.tune").level == logging.ERROR
        assert state() == before


def test_a_cluster_that_is_not_joined(before: dict[str, Any]) -> None:
    from espalier.search.cluster.ray_cluster import ray_session

    with pytest.raises(EspalierError, match="nothing answers"):
        with ray_session(1, "127.0.0.1:1025"):
            pass
    assert state() == before


def test_variables_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MINE", "mine")
    before = dict(os.environ)
    with pytest.raises(KeyError), environment({"TEST_MINE": "ours", "TEST_OURS": "ours"}, ("TEST_RAYS",)):
        assert (os.environ["TEST_MINE"], os.environ["TEST_OURS"]) == ("mine", "ours")
        os.environ |= {"TEST_MINE": "changed", "TEST_RAYS_1": "x"}
        raise KeyError
    assert dict(os.environ) == before


def test_what_others_set_meanwhile_stays() -> None:
    with environment({"TEST_OURS": "ours"}):
        os.environ["TEST_ANOTHERS"] = "x"
    assert os.environ.pop("TEST_ANOTHERS") == "x" and "TEST_OURS" not in os.environ


def test_computing_is_a_decorator_and_may_be_nested(before: dict[str, Any]) -> None:
    @computing()
    def inner() -> int:
        return torch.get_num_threads()

    with log_levels({"espalier.test": logging.ERROR, "ray": None}), computing():
        assert inner() == 1 == torch.get_num_threads()
        assert logging.getLogger("espalier.test").level == logging.ERROR
    assert state() == before and logging.getLogger("espalier.test").level == logging.NOTSET
