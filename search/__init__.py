"""The search over widths, in packages.

From the ground up: `files` and `progress`, `spaces`, `study`, `tasks`, `samplers`, `evaluation`, `cluster`,
`training`, `methods`, `statistics`, `config`, `run`, `compare`. Each imports only from those before it.
"""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "run_search":
        from espalier.search.run.search_widths import search_widths

        warnings.warn("espalier.search.run_search is espalier.search_widths now", DeprecationWarning, stacklevel=2)
        return search_widths
    raise AttributeError(f"module 'espalier.search' has no attribute {name!r}")
