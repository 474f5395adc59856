"""What is public, and that what the README and the docs of 0.1 imported is there or says where it went."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

import espalier
from espalier.errors import ConfigError
from espalier.moved import MOVED

ZERO_ONE = {
    "espalier": ["ChannelGraph", "__version__", "channel_energies", "load", "save", "search", "slim", "trace"],
    "espalier.agents.environment": ["LayerwiseEnv"],
    "espalier.agents.network_graph": ["network_graph"],
    "espalier.agents.sampler": ["AgentSampler"],
    "espalier.agents.training": ["train"],
    "espalier.pruning.allocation": ["greedy"],
    "espalier.pruning.criteria": ["CRITERIA"],
    "espalier.pruning.networks": ["build", "CifarResNet"],
    "espalier.pruning.regularizers": ["REGULARIZERS"],
    "espalier.search.compare.protocol": ["compare"],
    "espalier.search.config": ["load_config"],
}


def test_every_public_name_is_there() -> None:
    assert all(getattr(espalier, name) is not None for name in espalier.__all__)
    assert isinstance(espalier.search, ModuleType)


@pytest.mark.filterwarnings("ignore:.* now$:DeprecationWarning")
@pytest.mark.parametrize(("module", "name"), [(module, name) for module in ZERO_ONE for name in ZERO_ONE[module]])
def test_what_the_pages_of_0_1_imported_is_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_moved_says_where_it_went(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=rf"^{old} is {MOVED[old]} now$") as told:
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    assert all(getattr(module, name) is getattr(new, name) for name in vars(new) if not name.startswith("__"))
    assert told[0].filename == __file__


def test_the_function_that_moved_says_where_it_went() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"^espalier.search.run_search is espalier.search_widths now$"
    ) as told:
        old = importlib.import_module("espalier.search").run_search
    assert told[0].filename == __file__
    with pytest.raises(ConfigError, match="nowhere"):
        old("nowhere")


def test_the_package_that_was_a_function_says_where_it_went() -> None:
    called: Any = espalier.__getattr__("search")  # as where nothing has imported the package yet
    with (
        pytest.warns(DeprecationWarning, match=r"^espalier.search\(...\) is espalier.search_widths now$") as told,
        pytest.raises(ConfigError, match="nowhere"),
    ):
        called("nowhere")
    assert told[0].filename == __file__


def test_another_name_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'espalier.search' has no attribute 'nothing'"):
        importlib.import_module("espalier.search").nothing  # noqa: B018
