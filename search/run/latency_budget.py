"""Budgets of latency: the device is measured before the search, and what was found is measured on it at the end."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from espalier.errors import BudgetInfeasible, ConfigError, MissingPackage
from espalier.pruning.graph.allocation import FASTER, check_budget, greedy, uniform
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.importance.normalizations import normalize
from espalier.pruning.latency import Device, LatencyModel, measure_latency
from espalier.pruning.latency.features import timing_digest
from espalier.pruning.latency.measuring import narrowed
from espalier.pruning.latency.model import latency_model_of
from espalier.pruning.runtimes import Latency
from espalier.pruning.runtimes.timing import QUIET, prepared, time_in_turn
from espalier.search.config.budget_sections import BudgetConfig
from espalier.search.config.loading import Config
from espalier.search.files.json_files import json_digest
from espalier.search.progress.reporter import Reporter
from espalier.search.run.prepare import Prepared, limits

STEPS = (1, *FASTER)
"""Multiples that widths may be rounded to where `budget.round_to` leaves it open."""
ROUNDS = 3
"""Of measuring, at most, while a network takes longer than its limit."""
TOLERANCE = 0.03
"""Share by which a measured latency may exceed its limit."""


@dataclass(frozen=True)
class Settled:
    """What a search knows of its device.

    Attributes:
        model: of the latency of any widths.
        round_to: what widths are multiples of.
    """

    model: LatencyModel
    round_to: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"model": self.model.to_json(), "round_to": self.round_to}

    @staticmethod
    def from_json(content: Any) -> Settled:
        """From what `to_json` gave.

        Raises:
            ConfigError: it is something else.
        """
        try:
            model, round_to = content["model"], int(content["round_to"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"what the study knows of its device is damaged ({error!r})") from error
        return Settled(LatencyModel.from_json(model), round_to)


def device_of(section: BudgetConfig) -> Device:
    """What latency is of."""
    return Device(section.device.runtime, section.device.batch, section.device.threads)


def settle_latency(config: Config, prepared: Prepared, reporter: Reporter) -> Settled:
    """Measures this machine, or reads a model of another one, and chooses what widths are rounded to.

    Networks near the limit are then measured too; where they take longer than modelled, the model is corrected.

    Args:
        config: whose budget limits latency.
        prepared: network and graph.
        reporter: told the progress.

    Raises:
        ConfigError: the model is of another network.
        MissingPackage: the runtime is not installed.
        ExportError: it cannot take the network.
        BudgetInfeasible: no widths are fast enough.
    """
    section, graph, network = config.budget, prepared.graph, prepared.model
    device = device_of(section)
    if section.device.model is not None:
        model = read_model(section.device.model)
        reporter.say(f"latency: modelled from {model.measured} networks on {model.device}")
        timed = replace(prepared, graph=model.on(graph))
        return Settled(model, _rounded(section, timed))
    count = section.device.networks
    key = [platform.node(), device.words(), timing_digest(graph), config.seed]
    file = cache_folder() / f"{json_digest(key, 16)}.jsonl"
    with reporter.meter("latency", count, "networks") as meter:
        model = measure_latency(
            network, graph, device=device, networks=count, seed=config.seed, file=file, on_measured=meter.update
        )
    reporter.say(
        f"latency: {model.dense / 1e6:.3g} ms unpruned on {model.device}; half of the measured networks within "
        f"{100 * model.error:.1f} % of what the others say"
    )
    timed = replace(prepared, graph=model.on(graph))
    step = _rounded(section, timed)
    budget = limits(section, timed.graph)[-1]
    factor = _underestimate(network, timed.graph, _near(network, timed.graph, budget, prepared.floor, step), device)
    if factor <= 1:
        return Settled(model, step)
    longer = f"latency: networks near the limit take up to {factor:.2f} times as long"
    try:
        check_budget(model.times(factor).on(graph), budget, prepared.floor, step, depth=section.depth)
    except BudgetInfeasible:
        reporter.say(
            f"{longer}, with which none is fast enough: the model stays, what is found is measured at the end"
        )
        return Settled(model, step)
    reporter.say(f"{longer}: the model follows")
    return Settled(model.times(factor), step)


def with_latency(config: Config, prepared: Prepared, settled: Settled) -> Prepared:
    """The same with latency among its costs and limits.

    Raises:
        BudgetInfeasible: no widths are fast enough; states the smallest latency.
    """
    graph = settled.model.on(prepared.graph)
    budgets = limits(config.budget, graph)
    check_budget(graph, budgets[-1], prepared.floor, settled.round_to, depth=config.budget.depth)
    return replace(prepared, graph=graph, budgets=budgets, round_to=settled.round_to)


def measured_here(config: Config, prepared: Prepared, reporter: Reporter) -> OnDevice | None:
    """The device that the model is of, where this machine is it; None where latency is not limited, too."""
    if not config.budget.limits_latency:
        return None
    device, known = device_of(config.budget), latency_model_of(prepared.graph).device
    try:
        words = device.words()
    except MissingPackage as error:
        words = str(error)
    if words == known:
        return OnDevice(prepared, device)
    if config.budget.device.model is None:
        reporter.say(f"latency is modelled, and not measured: the study's is of {known}; here is {words}")
    return None


class OnDevice:
    """Measures pruned networks beside the unpruned one, on this machine.

    Args:
        prepared: with latency among its costs.
        device: that the model is of.
    """

    def __init__(self, prepared: Prepared, device: Device) -> None:
        self._network, self._graph, self._device = prepared.model, prepared.graph, device

    def slowest(self, widths: Mapping[str, Sequence[int]], budget: Budget) -> dict[str, float]:
        """By how many times, "times", the slowest of some networks takes the limit."""
        found = self._measured(widths, budget)
        return {"times": max(found[name]["measured_ms"] for name in widths) / _limit(budget)}

    def report(
        self, widths: Mapping[str, Sequence[int]], budget: Budget, say: Callable[[str], object]
    ) -> dict[str, Any]:
        """What ``result.json`` says: the device, the limit, and what "dense" and the named networks take."""
        told = modelled(self._graph, widths, budget)
        for name, found in self._measured(widths, budget).items():
            told[name] |= found
        for name in widths:
            if (over := told[name]["measured_ms"] / told["limit_ms"] - 1) > TOLERANCE:
                noise = told[name]["noise"]
                why = (
                    "the machine was too noisy to meet it closely"
                    if noise > QUIET
                    else "the model of the device is too far from it there, which more budget.device.networks mend"
                )
                loop = f"a fixed loop took {100 * noise:.0f} % longer on average"
                say(f"{name} takes {100 * over:.0f} % more than the limit, as measured last: {why} ({loop})")
        return told

    def _measured(self, widths: Mapping[str, Sequence[int]], budget: Budget) -> dict[str, dict[str, float]]:
        """Of each network, and "dense": the least of several rounds, as other work on the machine only adds.

        In milliseconds in which the unpruned network takes what it took when the device was measured.
        """
        every = {name: np.asarray(own) for name, own in widths.items()} | {"dense": self._graph.sizes}
        networks = {name: narrowed(self._network, self._graph, own) for name, own in every.items()}
        clock = clock_of(networks, self._graph, self._device)
        least = dict.fromkeys(every, math.inf)
        for _ in range(ROUNDS):
            found = clock()
            least = {name: min(least[name], found[name].least) for name in every}
            scale = latency_model_of(self._graph).dense / 1e6 / least["dense"]
            if all(scale * least[name] <= _limit(budget) * (1 + TOLERANCE) for name in widths):
                break
        return {
            name: {
                "measured_ms": scale * least[name],
                "median_ms": found[name].milliseconds,
                "noise": found[name].noise,
            }
            for name in every
        }


def modelled(graph: ChannelGraph, widths: Mapping[str, Sequence[int]], budget: Budget) -> dict[str, Any]:
    """The device, the limit, and what "dense" and the named networks take by the model."""
    every: dict[str, Any] = {"dense": graph.sizes, **widths}
    took = {name: {"modelled_ms": float(graph.latency(np.asarray(own))) / 1e6} for name, own in every.items()}
    return {"device": latency_model_of(graph).device, "limit_ms": _limit(budget), **took}


def clock_of(
    networks: Mapping[str, nn.Module], graph: ChannelGraph, device: Device
) -> Callable[[], dict[str, Latency]]:
    """Times the networks in turn, in this process, each time it is called."""
    how = device.runtime, (device.batch,), device.threads
    ready = {name: prepared(network, graph.example, *how) for name, network in networks.items()}
    return lambda: time_in_turn(ready, graph.example, device.batch)


def _limit(budget: Budget) -> float:
    """Milliseconds."""
    return budget.limits["latency"] / 1e6


def read_model(path: Path) -> LatencyModel:
    """A file of `espalier latency`.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        return LatencyModel.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read the latency model {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def cache_folder() -> Path:
    """Where measurements of this machine are kept for other searches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier" / "latency"


def _rounded(section: BudgetConfig, prepared: Prepared) -> int:
    """What widths are rounded to: as asked, or so that the most MACs fit into the latency, evenly spread."""
    if section.round_to != "auto":
        return section.round_to
    graph, budget = prepared.graph, limits(section, prepared.graph)[-1]
    kept: dict[int, int] = {}
    refused: BudgetInfeasible | None = None
    for step in STEPS:
        try:
            kept[step] = int(graph.macs(uniform(graph, budget, prepared.floor, step, depth=section.depth)))
        except BudgetInfeasible as error:
            refused = refused or error
    if not kept:
        assert refused is not None
        raise refused
    return max(kept, key=lambda step: (kept[step], -step))


def _underestimate(network: nn.Module, graph: ChannelGraph, near: Sequence[Ints], device: Device) -> float:
    """By how many times, at most, widths take longer than modelled: of several rounds the least."""
    networks = {str(number): narrowed(network, graph, each) for number, each in enumerate(near)} | {
        "dense": network
    }
    clock = clock_of(networks, graph, device)
    least = dict.fromkeys(networks, math.inf)
    for _ in range(ROUNDS):
        found = clock()
        least = {name: min(least[name], found[name].least) for name in networks}
        beside = latency_model_of(graph).dense / least["dense"]
        factor = max(least[str(number)] * beside / float(graph.latency(each)) for number, each in enumerate(near))
        if factor <= 1 + TOLERANCE:
            break
    return factor


def _near(network: nn.Module, graph: ChannelGraph, budget: Budget, floor: Ints, step: int) -> list[Ints]:
    """Widths that the search begins with, or may: evenly, and by energy in two ways; without branches, too."""
    energies = channel_energies(network, graph).double().numpy()
    found = [uniform(graph, budget, floor, step, depth=bool(graph.branches))]
    for how in ("raw", "mean"):
        scores = normalize(energies, graph, how)
        found.append(greedy(graph, scores, budget, floor, step, depth=bool(graph.branches)))
    seen: dict[bytes, Ints] = {widths.tobytes(): widths for widths in found}
    return list(seen.values())
