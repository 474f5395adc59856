"""Precision: which numbers networks are trained and run in, and what a device is built for."""

from __future__ import annotations

from typing import Literal

import torch

from espalier.pruning.slimming.int8_convolutions import has_int8
from espalier.pruning.torch_private import computes_in_bf16

TrainingPrecision = Literal["auto", "fp32", "bf16"]
ScoringPrecision = Literal["auto", "fp32", "bf16", "int8"]


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
    return bool(torch.backends.mkldnn.is_available() and computes_in_bf16())


def has_int8_on(device: torch.device) -> bool:
    """Whether convolutions run in 8-bit integers on a device."""
    return device.type == "cpu" and has_int8()
