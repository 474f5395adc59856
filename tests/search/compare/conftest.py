"""A small comparison that is run once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.search.compare.protocol import Compared, compare
from espalier.search.config.loading import Config, parse_config
from espalier.search.progress.reporter import Reporter

METHODS = ("greedy", "l1_mean", "uniform", "random", "scratch", "dense")

Settings = Callable[..., Config]
Go = Callable[..., Compared]


def _settings(text: str, **section: Any) -> Config:
    content = yaml.safe_load(text)
    content["budget"]["keep"] = [0.6, 0.4]
    content["compare"] = {"methods": METHODS, "seeds": 2, "trials": 5} | section
    return parse_config(content, "tiny")


def _go(config: Config, out: Path, reporter: Reporter | None = None) -> Compared:
    return compare(config, name="tiny", out=out, command="espalier compare tiny.yaml", reporter=reporter)


@pytest.fixture
def settings(tiny_text: str) -> Settings:
    """Two budgets, two seeds, and methods of every kind; keys of the section ``compare`` win."""
    return lambda **section: _settings(tiny_text, **section)


@pytest.fixture
def go() -> Go:
    """Compares, by a config and a run folder; a reporter may be told."""
    return _go


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> tuple[Path, Compared]:
    """A run folder, and what came of it."""
    out = tmp_path_factory.mktemp("comparison")
    return out, _go(_settings(tiny_text), out)
