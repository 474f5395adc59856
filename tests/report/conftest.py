"""Made-up comparisons: the page is a function of the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from espalier.pruning.networks import CifarResNet
from espalier.pruning.runtimes import Latency
from espalier.pruning.trace import trace
from espalier.search.compare.cells import Measured, Timed, packed
from espalier.search.compare.comparison import Comparison
from espalier.search.compare.protocol import Compared
from espalier.search.compare.settings import ComparisonSettings
from espalier.search.spaces.metric import Metric

IMAGES = 400
Make = Callable[..., Any]


@pytest.fixture(scope="session")
def make() -> Make:
    """A comparison with given means of top-1 by method, and budgets by the share of the MACs."""
    graph = trace(CifarResNet(depth=8, width=4, in_channels=1), torch.zeros(1, 1, 8, 8))
    dense = int(graph.macs(graph.sizes))
    methods = {"greedy": 0.9, "uniform": 0.86, "auto": 0.95, "agent": 0.9, "scratch": 0.8}

    def made(folder: Any, shares: tuple[float, ...] = (0.5, 0.25), seeds: int = 4, **changed: float) -> Compared:
        draw = np.random.default_rng(0)
        rates = methods | changed
        cells = [
            _cell(graph, f"macs{share:g}", method, seed, share, rate, draw)
            for share in shares
            for method, rate in rates.items()
            for seed in range(seeds)
        ]
        whole = _cell(graph, "", "dense", 0, 1.0, 0.97, draw)
        asked = ComparisonSettings(
            name="made up",
            network="resnet8 & <more>",
            data="digits",
            images={"training": 900, "scoring": 100, "judging": 100, "test": IMAGES},
            metric=Metric("top1", "top-1", "%", floor=100 / 10, ceiling=100.0),
            budgets={f"macs{share:g}": f"{100 * share:g} % of the MACs" for share in shares},
            methods=tuple(rates),
            baseline="greedy",
            seeds=tuple(range(seeds)),
            trials=20,
            proxy="recalibrated (cross_entropy)",
            measure=Metric("cross_entropy", "cross-entropy", greater_is_better=False),
            epochs=2,
            scratch_epochs=9,
            latency_batch=1,
            command="espalier compare made-up.yaml 'budget.keep=[0.5,0.25]'",
        )
        comparison = Comparison(
            asked=asked,
            dense=whole,
            cells=tuple(cells),
            failures={},
            seconds={"ladder": 61.0, "choosing widths": 3.2},
            versions={"python": "3", "espalier": "0"},
            machine="machine",
            execution="batches of 64",
        )
        prepared: Any = type("Prepared", (), {"graph": graph, "dense_macs": dense})()
        energies = [draw.exponential(1.0, graph.n_channels) for _ in range(2)]
        return Compared(comparison, prepared, energies, folder)

    return made


@pytest.fixture(scope="session")
def timed() -> Callable[[Compared, float], Compared]:
    """The same comparison with timings, by how noisy the machine was: three times as fast as the dense network."""

    def made(compared: Compared, noise: float) -> Compared:
        settings: dict[str, Any] = {
            "runtime": "onnxruntime",
            "version": "1",
            "batch": 32,
            "threads": 2,
            "noise": noise,
        }
        own = Latency(0.5, low=0.25, high=1.0, **settings)
        dense = Latency(1.5, low=1.0, high=2.0, **settings)
        timings = {"onnxruntime-32": Timed(own, dense)}
        comparison = compared.comparison
        cells = tuple(replace(cell, timings=timings) for cell in comparison.cells)
        whole = replace(comparison.dense, timings={"onnxruntime-32": Timed(dense, dense)})
        return replace(compared, comparison=replace(comparison, cells=cells, dense=whole))

    return made


def _cell(
    graph: Any, budget: str, method: str, seed: int, share: float, rate: float, draw: np.random.Generator
) -> Measured:
    right = np.arange(IMAGES) < rate * IMAGES * share**0.1 + 2 * draw.random()
    widths = {group.name: max(1, round(group.size * share**0.5)) for group in graph.groups}
    searched = method in ("auto", "agent")
    macs = int(graph.macs(list(widths.values())))
    return Measured(
        budget=budget,
        method=method,
        seed=seed,
        macs=macs,
        params=int(graph.params(list(widths.values()))),
        kept=share,
        strength=0.01,
        rung=int(searched),
        widths=widths,
        criterion="energy",
        value=-0.5,
        held_out_before=60.0,
        held_out_after=90.0,
        before=None if method == "scratch" else 50.0 + 10 * draw.random(),
        after=100 * float(right.mean()),
        latency=1.0,
        dense_latency=2.0,
        evaluations=20,
        search_seconds=2.0,
        finetune_seconds=1.0,
        history=tuple((-1 + 0.02 * np.arange(20) + 0.1 * draw.random(20)).tolist()) if searched else (),
        importance={"rung": 0.6, "conv1": 0.4} if searched else {},
        right=packed(right),
    )
