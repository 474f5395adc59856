"""The device that this process computes on."""

from __future__ import annotations

import torch

_assigned: list[str] = []
"""Of a Ray worker, once it has asked what Ray gave it."""


def in_worker() -> None:
    """Says that this process is a Ray worker, which computes on the GPU that Ray gave it, or a part of one."""
    import ray

    _assigned[:] = ["cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"]


def device_here(home: str | None = None) -> str:
    """``cuda`` or ``cpu``.

    Args:
        home: where networks lie outside of Ray workers; by default on the GPU, if there is one.
    """
    if _assigned:
        return _assigned[0]
    return home or ("cuda" if torch.cuda.is_available() else "cpu")
