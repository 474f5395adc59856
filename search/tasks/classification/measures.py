"""What classifiers are compared by."""

from __future__ import annotations

from typing import Final

from espalier.search.spaces.metric import Metric

MEASURES: Final[dict[str, Metric]] = {
    "top1": Metric("top1", "top-1", "%", ceiling=100.0),
    "cross_entropy": Metric("cross_entropy", "cross-entropy", "nats", greater_is_better=False),
    "calibrated": Metric("calibrated", "calibrated cross-entropy", "nats", greater_is_better=False),
    "distillation": Metric("distillation", "divergence from the dense network", "nats", greater_is_better=False),
}
"""Key in a config -> measure; the calibrated one is at the temperature that suits the scoring images best."""
