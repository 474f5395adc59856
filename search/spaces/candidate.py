"""What a search proposes and what an evaluation answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from espalier.persistence import record_from
from espalier.search.spaces.metric import Metric


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


_MEASURES_OF_0_1 = ("top1", "cross_entropy", "distillation", "calibrated")


@dataclass(frozen=True)
class Score:
    """How good a candidate is on held-out training examples, before fine-tuning.

    Attributes:
        measures: by the keys of the task's metrics, in their own units. Of a race that was lost they are the
            leader's over all examples plus the mean difference over those that were run.
        seconds: that the evaluation took.
        signal: what a proxy that runs no held-out example says, higher is better; there are no measures then.
        images: of the held-out examples, how many were run; 0 where the task does not say.
        against: key of the candidate that it lost to after these; empty where all were run.
    """

    measures: Mapping[str, float]
    seconds: float
    signal: float | None = None
    images: int = 0
    against: str = ""

    def value(self, metric: Metric) -> float:
        """The number that the study maximises; NaN where it was not measured."""
        if self.signal is not None:
            return self.signal
        return metric.value(self.measures.get(metric.key, math.nan))

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is NaN is left out, and what is infinite a text, as JSON has no words for them."""
        return _worded(vars(self)) | {"measures": _worded(self.measures)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`, or as 0.1 wrote it, with the measures of a classifier beside the rest."""
        older = {key: content[key] for key in _MEASURES_OF_0_1 if key in content}
        found = {"measures": older} | dict(content)
        found["measures"] = {key: float(value) for key, value in found["measures"].items()}
        if found.get("signal") is not None:
            found["signal"] = float(found["signal"])
        return record_from(cls, found)


def _worded(values: Mapping[str, Any]) -> dict[str, Any]:
    infinite = (math.inf, -math.inf)
    return {key: str(value) if value in infinite else value for key, value in values.items() if value == value}
