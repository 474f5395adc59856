"""Precision of training: bf16 where the device computes in it, fp32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def in_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run in bf16 on a device.

    Args:
        precision: ``fp32``, ``bf16``, or ``auto``: whichever the device is built for.
        device: that computes.
    """
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16: a processor that does not is tens of times slower in it than in fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
