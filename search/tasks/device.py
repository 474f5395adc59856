"""The device that a worker computes on."""

from __future__ import annotations

import sys

import torch


def device_here() -> str:
    """``cuda`` in a worker that Ray gave a GPU, or a part of one; else ``cpu``."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return "cpu"
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
