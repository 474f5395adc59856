"""The search over widths, in packages.

From the ground up: `files` and `progress`, `spaces`, `study`, `tasks`, `samplers`, `evaluation`, `cluster`,
`training`, `methods`, `statistics`, `config`, `run`, `compare`. Each imports only from those before it.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "run_search":
        return _search_widths("espalier.search.run_search")
    raise AttributeError(f"module 'espalier.search' has no attribute {name!r}")


def _search_widths(old: str) -> Any:
    """What two names of 0.1 stood for: a search of a config, whose result they returned."""
    from espalier.search.run.search_widths import search_widths

    warnings.warn(f"{old} is espalier.search_widths now", DeprecationWarning, stacklevel=3)
    return lambda config, overrides=(), **options: search_widths(config, overrides=overrides, **options).result


class _CallableInZeroOne(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return _search_widths("espalier.search(...)")(*args, **options)


sys.modules[__name__].__class__ = _CallableInZeroOne
