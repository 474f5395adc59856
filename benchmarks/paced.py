"""Candidates that take a known time: for benchmarks of what lies around them."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
import optuna
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.trace import trace
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.spaces.space import Space
from espalier.search.study.storage import create_study, open_storage
from espalier.search.tasks.classification.data import InMemoryImages, Splits
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.execution import Execution

Pace = Literal["busy", "asleep"]

GROUPS = 19
"""Channel groups, as many as ResNet-20 has."""


class Paced(nn.Module):
    """A chain of small layers whose forward pass on scoring images takes a known time.

    Args:
        seconds: of the processor, or of the clock where it sleeps.
        pace: whether it computes or sleeps.
    """

    def __init__(self, seconds: float, pace: Pace) -> None:
        super().__init__()
        self.seconds, self.pace = seconds, pace
        layers: list[nn.Module] = []
        for _ in range(GROUPS):
            layers += [nn.LazyLinear(16), nn.ReLU()]
        self.body = nn.Sequential(nn.Flatten(), *layers, nn.LazyLinear(10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, 10)."""
        if not torch.compiler.is_compiling() and self.seconds:
            self._pass_time()
        logits: Tensor = self.body(x)
        return logits

    def _pass_time(self) -> None:
        if self.pace == "asleep":
            time.sleep(self.seconds)
            return
        began = time.thread_time()
        while time.thread_time() - began < self.seconds:
            pass


def paced_evaluation(seconds: float, pace: Pace) -> tuple[EvaluationSpec, Space]:
    """What workers need to score such candidates, and a space of them."""
    torch.manual_seed(0)
    network = Paced(0.0, pace).eval()
    network(torch.zeros(1, 1, 4, 4))
    graph = trace(network, torch.zeros(1, 1, 4, 4))
    images = InMemoryImages(torch.randint(256, (16, 1, 4, 4), dtype=torch.uint8), torch.arange(16) % 10)
    draw = np.random.default_rng(0)
    energies = [draw.uniform(0.1, 2.0, graph.n_channels)]
    spec = EvaluationSpec.of(
        graph,
        [network],
        energies,
        ImageScoring.of(
            Splits(images, images, images, tuple("0123456789"), (0.5,), (0.3,)),
            network,
            torch.arange(16),
            calibration=16,
            steps=0,
            recipe=Recipe(epochs=1, batch_size=16, lr=0.1),
        ),
        Execution(batch_size=16, precision="fp32"),
        proxy="as_cut",
    )
    skeleton: Any = spec.skeleton
    skeleton.seconds = seconds
    return spec, _space(graph, energies)


def _space(graph: ChannelGraph, energies: list[Any]) -> Space:
    return Multipliers(
        graph,
        energies,
        normalization="searched",
        budget=int(graph.macs(graph.sizes)) // 2,
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )


def study(url: str) -> optuna.Study:
    """A study in a storage, ready for a ledger."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return create_study(open_storage(url, create=True), "paced", {"config": {}})
