"""A small network, its graph, and a config that runs from end to end in a few seconds."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from espalier.pruning.graph import ChannelGraph
from espalier.pruning.networks import CifarResNet
from espalier.pruning.trace import trace
from espalier.search.bench import EvaluationSpec
from espalier.search.data import InMemoryImages, Splits
from espalier.search.spaces import Multipliers
from espalier.search.training import Recipe

TINY = """
model:
  name: espalier.pruning.networks:CifarResNet
  kwargs: {depth: 8, width: 4, in_channels: 1, num_classes: 10}
data: {name: digits, search_images: 300, train_images: 256}
training: {epochs: 2, batch_size: 32, lr: 0.1}
regularizer: {name: oicsr_gl, strengths: [0.001, 0.01], epochs: 1, lr: 0.05}
budget: {keep: 0.4}
search:
  {sampler: random, trials: 6, scoring_images: 64, calibration_images: 64, finalists: 2,
   batch_size: 64, memory_format: channels_last, precision: fp32}
finetune: {epochs: 0.5, batch_size: 32, lr: 0.02, seeds: 2}
workers: 0
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may have set for the command line is not this test's."""
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """A config as a file: ResNet-8 of width 4 on the digits, in this process."""
    return TINY


@pytest.fixture
def tiny(tiny_text: str) -> dict[str, Any]:
    """The same as a dict of one's own to change."""
    content: dict[str, Any] = yaml.safe_load(tiny_text)
    return content


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def small_network() -> nn.Module:
    """A group behind a residual sum, one inside it, one free, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Block(),
        nn.Conv2d(6, 10, 3, stride=2, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


@pytest.fixture
def network() -> nn.Module:
    """Small, with norms that look trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = small_network()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return made.eval()


@pytest.fixture(scope="session")
def graph() -> ChannelGraph:
    """Of `small_network`."""
    return trace(small_network().eval(), torch.zeros(1, 1, 8, 8))


@pytest.fixture(scope="session")
def resnet8() -> ChannelGraph:
    """Six groups of 88 channels: so many candidates that two random ones are hardly ever the same."""
    return trace(CifarResNet(depth=8, width=8, in_channels=1), torch.zeros(1, 1, 8, 8))


@pytest.fixture
def splits() -> Splits:
    """Four classes that a few steps of training tell apart: a bright quarter of an 8 x 8 image each."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> InMemoryImages:
        labels = torch.arange(count) % 4
        pixels = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
        for number, label in enumerate(labels.tolist()):
            row, column = 4 * (label // 2), 4 * (label % 2)
            pixels[number, 0, row : row + 4, column : column + 4] += 120
        return InMemoryImages(pixels.to(torch.uint8), labels)

    return Splits(images(96), images(48), images(48), tuple("abcd"), (0.3,), (0.25,))


@pytest.fixture
def space(resnet8: ChannelGraph) -> Multipliers:
    """Two rungs of random energies under half of the MACs."""
    graph = resnet8
    draw = np.random.default_rng(0)
    return Multipliers(
        graph,
        [draw.uniform(0.1, 2, graph.n_channels) for _ in range(2)],
        normalization="mean",
        budget=int(graph.macs(graph.sizes)) // 2,
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )


@pytest.fixture
def networks(network: nn.Module) -> list[nn.Module]:
    """The networks of two rungs."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return [network, other]


@pytest.fixture
def spec(networks: list[nn.Module], graph: ChannelGraph, splits: Splits) -> EvaluationSpec:
    """Both rungs, judged after recalibration on 48 images."""
    draw = np.random.default_rng(1)
    return EvaluationSpec.of(
        graph,
        splits,
        networks[0],
        networks,
        [draw.random(graph.n_channels) for _ in range(2)],
        calibration_images=80,
        scoring=torch.arange(48),
        steps=10,
        recipe=Recipe(epochs=1, batch_size=16, lr=0.05, warmup=0.0),
        batch_size=32,
        precision="fp32",
        proxy="recalibrated",
    )
