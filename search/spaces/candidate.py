"""What a search proposes and what an evaluation answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from espalier.persistence import record_from

Measure = Literal["cross_entropy", "calibrated", "top1", "distillation"]
"""Which part of a score is compared."""


@dataclass(frozen=True)
class Candidate:
    """A rung of the ladder and the width of every group: all that is needed to rebuild a pruned network.

    Within a group the channels of highest energy on that rung are kept.

    Attributes:
        rung: which of the strengths, 0 for the weakest.
        widths: channels kept per group, in the graph's order.
    """

    rung: int
    widths: tuple[int, ...]

    @property
    def key(self) -> str:
        """Equal keys, equal networks."""
        return f"{self.rung}:" + ",".join(map(str, self.widths))

    @classmethod
    def from_key(cls, key: str) -> Self:
        """The candidate that a key names."""
        rung, _, widths = key.partition(":")
        return cls(int(rung), tuple(int(width) for width in widths.split(",")))


@dataclass(frozen=True)
class Score:
    """How good a candidate is on held-out training images, before fine-tuning.

    Attributes:
        top1: percent of the scoring images classified right.
        cross_entropy: mean, in nats.
        seconds: that the evaluation took.
        distillation: mean Kullback-Leibler divergence from the dense network's prediction, in nats.
        calibrated: cross-entropy at the temperature that suits the scoring images best; NaN after a lost race.
        signal: what a proxy that runs no scoring image says, higher is better; the rest is NaN then.
        images: of the scoring images, how many were run.
        against: key of the candidate that it lost to after these images; empty where all were run. The measures
            are then that one's over all images plus the mean difference over these.
    """

    top1: float
    cross_entropy: float
    seconds: float
    distillation: float = math.nan
    calibrated: float = math.nan
    signal: float | None = None
    images: int = 0
    against: str = ""

    def value(self, measure: Measure) -> float:
        """The number that the study maximises."""
        if self.signal is not None:
            return self.signal
        return self.top1 if measure == "top1" else -float(getattr(self, measure))

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is NaN, for which JSON has no word, is left out."""
        return {key: value for key, value in asdict(self).items() if value == value}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        return record_from(cls, {"top1": math.nan, "cross_entropy": math.nan} | dict(content))
