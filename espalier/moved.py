"""Modules of 0.1 that its pages imported from: they are found where they are now, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

MOVED = {
    "espalier.agents.network_graph": "espalier.agents.graph.network_graph",
    "espalier.agents.sampler": "espalier.agents.sampling.sampler",
    "espalier.pruning.allocation": "espalier.pruning.graph.allocation",
    "espalier.pruning.budget": "espalier.pruning.graph.budget",
    "espalier.pruning.criteria": "espalier.pruning.importance.criteria",
    "espalier.pruning.energy": "espalier.pruning.importance.energy",
    "espalier.pruning.regularizers": "espalier.pruning.importance.regularizers",
    "espalier.pruning.surgery": "espalier.pruning.slimming.surgery",
}
"""Old name -> new one."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        frame, level = sys._getframe(1), 2  # warnings passes over the import system's own frames
        while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
            level += "_bootstrap" not in frame.f_code.co_filename
            frame = frame.f_back
        warnings.warn(f"{module.__name__} is {new} now", DeprecationWarning, stacklevel=level)
        found = importlib.import_module(new)
        vars(module)["__getattr__"] = lambda name: getattr(found, name)


def install() -> None:
    """Has Python ask here, after it has looked everywhere else."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
