"""What a search proposes and what an evaluation answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


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
    """

    top1: float
    cross_entropy: float
    seconds: float

    def value(self, proxy: str) -> float:
        """The number that the study maximises."""
        return self.top1 if proxy == "top1" else -self.cross_entropy

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        return cls(**content)
