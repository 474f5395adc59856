"""espalier finds how wide each layer of a neural network needs to be.

    graph = espalier.trace(model, example_inputs)
    energies = espalier.channel_energies(model, graph)
    small = espalier.slim(model, graph, keep)
    result = espalier.search("digits")
    network = espalier.load("runs/digits/pruned.espalier")

Everything is imported when it is first used, so that ``espalier --help`` answers at once.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espalier.pruning.energy import channel_energies
    from espalier.pruning.graph import ChannelGraph
    from espalier.pruning.surgery import slim
    from espalier.pruning.trace import trace
    from espalier.search import run_search as search
    from espalier.search.files.network_file import load, save

__version__ = version("espalier")

__all__ = ["ChannelGraph", "__version__", "channel_energies", "load", "save", "search", "slim", "trace"]

_WHERE = {
    "ChannelGraph": "espalier.pruning.graph",
    "channel_energies": "espalier.pruning.energy",
    "load": "espalier.search.files.network_file",
    "save": "espalier.search.files.network_file",
    "slim": "espalier.pruning.surgery",
    "trace": "espalier.pruning.trace",
}


def __getattr__(name: str) -> Any:
    if name == "search":  # the package, which is callable
        return importlib.import_module("espalier.search")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")
