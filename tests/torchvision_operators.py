"""torchvision where its compiled operators are missing, as in a build for another PyTorch: defined here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

_OTHERS = (
    "qnms",
    "roi_align",
    "qroi_align",
    "_roi_align_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)
_library: list[torch.library.Library] = []


def import_torchvision() -> None:
    """Imports it, or skips the tests that need it."""
    try:
        torch.ops.torchvision.nms  # noqa: B018
    except AttributeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _library.append(library)  # which holds the operators for as long as it lives
        library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        for name in _OTHERS:
            library.define(f"{name}(Tensor x) -> Tensor")
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    torchvision.extension._has_ops = lambda: True


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Boxes (n, 4) that no better one overlaps by more than the threshold."""
    left, kept = scores.argsort(descending=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        others = boxes[left]
        corners = torch.maximum(boxes[best, :2], others[:, :2]), torch.minimum(boxes[best, 2:], others[:, 2:])
        common = (corners[1] - corners[0]).clamp(min=0).prod(1)
        areas = (boxes[best, 2:] - boxes[best, :2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
        left = left[common / (areas - common) <= threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)
