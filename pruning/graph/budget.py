"""What a pruned network may cost: one limit, or several at once."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints

UNITS = {
    "macs": "MACs",
    "params": "parameters",
    "peak_memory": "bytes of activations",
    "latency": "nanoseconds of latency",
    "bit_operations": "bit operations",
    "weight_bytes": "bytes of weights",
}
"""Metric -> what its numbers count."""


def amount(metric: str, number: int) -> str:
    """A cost, for people, such as ``1,234 MACs`` or ``1.23 ms of latency``."""
    return f"{number / 1e6:.4g} ms of latency" if metric == "latency" else f"{number:,} {UNITS[metric]}"


def text_of_macs(macs: float, dense: int) -> tuple[str, str]:
    """A number of MACs as tables show it, and what it counts; of small networks single ones.

    >>> text_of_macs(7507.0, 15024), text_of_macs(20.2e6, 40_551_040)
    (('7,507', 'MACs'), ('20.200', 'M MACs'))
    """
    return (f"{macs:,.0f}", "MACs") if dense < 10**6 else (f"{macs / 1e6:.3f}", "M MACs")


@dataclass(frozen=True)
class Budget:
    """Limits that widths must meet, all of them; None sets none.

    A fraction, such as 0.5, is a share of what the unpruned network costs, for whatever is given a graph as well.

    Attributes:
        macs: most multiply-adds per example.
        params: most parameters.
        peak_memory: most bytes of activations alive at once; see `ChannelGraph.peak_memory`.
        latency: most nanoseconds per pass on a device, of a graph that knows of one; see `ChannelGraph.latency`.
        bit_operations: most products of bits; see `ChannelGraph.bit_operations`.
        weight_bytes: most bytes of parameters; see `ChannelGraph.weight_bytes`.
    """

    macs: int | float | None = None
    params: int | float | None = None
    peak_memory: int | float | None = None
    latency: int | float | None = None
    bit_operations: int | float | None = None
    weight_bytes: int | float | None = None

    def __post_init__(self) -> None:
        for metric, limit in vars(self).items():
            whole = isinstance(limit, numbers.Integral) and not isinstance(limit, bool) and int(limit) >= 0
            if limit is not None and not whole and not (isinstance(limit, float) and 0 < limit <= 1):
                rule = "a whole number, or a fraction above 0 and at most 1 of what the unpruned network costs"
                raise ConfigError(f"a budget's {metric} must be {rule}, got {limit!r}")

    @staticmethod
    def of(budget: Budget | int, graph: ChannelGraph) -> Budget:
        """The budget in whole numbers; a whole number alone means MACs, and fractions are of the graph's costs."""
        if not isinstance(budget, Budget):
            return Budget(macs=budget)
        shares = {metric: limit for metric, limit in vars(budget).items() if isinstance(limit, float)}
        return replace(budget, **{m: int(share * graph.dense_cost(m)) for m, share in shares.items()})

    @property
    def limits(self) -> dict[str, int]:
        """Metric -> limit, of those that are set.

        Raises:
            ConfigError: one is a fraction.
        """
        if shares := [metric for metric, limit in vars(self).items() if isinstance(limit, float)]:
            raise ConfigError(f"the budget's {shares[0]} is a fraction: Budget.of(budget, graph) says of what")
        return {metric: int(limit) for metric, limit in vars(self).items() if limit is not None}

    @property
    def key(self) -> str:
        """Names the exact limits: ``macs125837``."""
        return "-".join(f"{metric}{limit}" for metric, limit in self.limits.items())

    def costs(self, graph: ChannelGraph, widths: npt.ArrayLike) -> dict[str, Ints]:
        """Metric -> what widths (n, G) cost, (n,), of those that are limited; scalar arrays for (G,)."""
        return {metric: getattr(graph, metric)(widths) for metric in self.limits}

    def fits(self, graph: ChannelGraph, widths: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether widths (n, G) meet every limit: (n,), or a scalar array for (G,)."""
        within = [cost <= self.limits[metric] for metric, cost in self.costs(graph, widths).items()]
        return np.asarray(np.logical_and.reduce(within), dtype=np.bool_)

    def binding(self, graph: ChannelGraph, widths: npt.ArrayLike) -> str:
        """The metric of which widths (G,) use the greatest share of its limit."""
        used = {metric: int(cost) / self.limits[metric] for metric, cost in self.costs(graph, widths).items()}
        return max(used, key=lambda metric: used[metric])

    def on_the_way(self, graph: ChannelGraph, share: float) -> Budget:
        """Limits between the dense network's costs and these: at `share` of the way down, each in equal ratios."""
        dense = {metric: int(cost) for metric, cost in self.costs(graph, graph.sizes).items()}
        return Budget(**dense).between(self, share)

    def between(self, tighter: Budget, share: float) -> Budget:
        """Limits at `share` of the way from these to tighter ones, each in equal ratios; 1 is `tighter` itself."""
        limits: dict[str, int] = {}
        for metric, limit in tighter.limits.items():
            start = self.limits[metric]
            limits[metric] = limit if limit >= start else round(start * (limit / start) ** share)
        return Budget(**limits)

    def share(self, budget: Budget, tighter: Budget) -> float:
        """Where a budget lies between these limits and tighter ones: the `share` that `between` makes it from."""
        for metric, limit in tighter.limits.items():
            if limit < (start := self.limits[metric]):
                return math.log(budget.limits[metric] / start) / math.log(limit / start)
        return 1.0

    def __str__(self) -> str:
        found = []
        for metric, limit in vars(self).items():
            if isinstance(limit, float):
                found.append(f"{limit:.4g} of the {UNITS[metric].removeprefix('nanoseconds of ')}")
            elif limit is not None:
                found.append(amount(metric, int(limit)))
        return " and ".join(found)
