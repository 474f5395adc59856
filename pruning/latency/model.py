"""The latency of any widths, from measurements of some: a regression without negative coefficients.

    t(w) = sum_f c_f x_f(w),  c_f >= 0

with the features x of `features`, fitted to whole pruned networks by least squares of relative errors (NNLS, Lawson
and Hanson 1974). Whole networks are measured, not layers: what a runtime fuses, reorders and caches is in them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from espalier.errors import ConfigError
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.latency.features import Features, timing_digest

if TYPE_CHECKING:
    from espalier.pruning.graph.channel_graph import ChannelGraph

FOLDS = 8
"""Parts of the measurements, each of which is predicted from the others."""


@dataclass(frozen=True)
class LatencyModel:
    """How long networks of one graph take on one device.

    Attributes:
        device: what was measured, for people: runtime, version, processor, threads, batch.
        graph: `timing_digest` of the channel graph.
        coefficients: name of a feature -> nanoseconds per unit of it; those that are not named have none.
        dense: nanoseconds of the unpruned network, as measured.
        measured: pruned networks that it was fitted to.
        error: median of the relative errors on them, each predicted from others.
        factor: what predictions are multiplied by, where networks near a budget took longer than modelled.
    """

    device: str
    graph: str
    coefficients: Mapping[str, float]
    dense: float
    measured: int
    error: float
    factor: float = 1.0

    @staticmethod
    def fitted(
        graph: ChannelGraph, widths: npt.ArrayLike, nanoseconds: Sequence[float], device: str
    ) -> LatencyModel:
        """Of measurements.

        Args:
            graph: of the networks.
            widths: (n, G) of the networks, the unpruned one first.
            nanoseconds: (n,) what they took.
            device: where.
        """
        from scipy.optimize import nnls

        policies, taken = np.asarray(widths, dtype=np.float64), np.asarray(nanoseconds, dtype=np.float64)
        columns = Features(graph)
        found = columns(policies)
        scale = np.maximum(found.max(0), 1e-30)
        rows, iterations = found / scale / taken[:, None], 100 * found.shape[1]
        solved, _ = nnls(rows, np.ones(len(taken)), maxiter=iterations)
        coefficients = {
            name: float(value) for name, value in zip(columns.columns, solved / scale, strict=True) if value > 0
        }
        apart = np.zeros(len(taken))
        part = np.arange(len(taken)) % FOLDS
        for number in range(FOLDS):
            left, others = part == number, part != number
            of_others, _ = nnls(rows[others], np.ones(int(others.sum())), maxiter=iterations)
            apart[left] = np.abs(rows[left] @ of_others - 1)
        error = float(np.median(apart))
        return LatencyModel(device, timing_digest(graph), coefficients, float(taken[0]), len(taken), error)

    def on(self, graph: ChannelGraph) -> ChannelGraph:
        """The graph with this latency as one of its costs, for budgets.

        Raises:
            ConfigError: the model is of another network.
        """
        if timing_digest(graph) != self.graph:
            raise ConfigError("the latency model was made for another network: measure this one")
        timed = copy.copy(graph)
        timed.latency_model = Predictor(graph, self)
        return timed

    def times(self, factor: float) -> LatencyModel:
        """The same with predictions that are so many times as long."""
        return replace(self, factor=self.factor * factor)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(content: Any) -> LatencyModel:
        """From what `to_json` gave.

        Raises:
            ConfigError: it is something else.
        """
        try:
            numbers = {name: float(content[name]) for name in ("dense", "error", "factor")}
            coefficients = {str(name): float(value) for name, value in content["coefficients"].items()}
            device, graph, measured = str(content["device"]), str(content["graph"]), int(content["measured"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"this is no latency model, or it is damaged ({error!r})") from error
        if not all(np.isfinite(value) and value >= 0 for value in (*numbers.values(), *coefficients.values())):
            raise ConfigError("the latency model has numbers that are negative or not finite: it is damaged")
        return LatencyModel(device, graph, coefficients, measured=measured, **numbers)


class Predictor:
    """Nanoseconds of networks of one graph.

    Args:
        graph: theirs.
        model: of the device.

    Attributes:
        model: as given.
        dense: nanoseconds of the unpruned network, as measured.
    """

    def __init__(self, graph: ChannelGraph, model: LatencyModel) -> None:
        self._graph, self.model, self._features = graph, model, Features(graph)
        self.dense = model.dense
        self._names = [name for name in model.coefficients if name in self._features.columns]
        self._weights = np.array([model.coefficients[name] for name in self._names])

    def __reduce__(self) -> tuple[Any, ...]:
        return Predictor, (self._graph, self.model)

    def __call__(self, widths: Floats) -> Ints:
        """Of widths (n, G): (n,)."""
        if not self._names:
            return np.zeros(len(widths), dtype=np.int64)
        found: Ints = np.rint(self.model.factor * (self._features(widths, self._names) @ self._weights)).astype(
            np.int64
        )
        return found


def latency_model_of(graph: ChannelGraph) -> LatencyModel:
    """The model that a graph was given by `LatencyModel.on`."""
    assert isinstance(graph.latency_model, Predictor)
    return graph.latency_model.model
