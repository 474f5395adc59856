"""Networks whose graphs the agents look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from espalier.agents.graph.network_graph import NetworkData, network_graph
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.networks import build
from espalier.pruning.trace import trace

Traced = tuple[ChannelGraph, Floats]


def traced_network(name: str) -> Traced:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name)
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    return graph, channel_energies(model, graph).double().numpy()


@pytest.fixture(scope="session")
def resnet() -> Traced:
    return traced_network("resnet20")


@pytest.fixture(scope="session")
def mobilenet() -> Traced:
    return traced_network("mobilenet_v2")


@pytest.fixture(scope="session")
def layers() -> Traced:
    """Four linear layers of eight channels, one behind the other."""
    graph = trace(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.zeros(1, 8))
    return graph, np.random.default_rng(0).random(graph.n_channels)


@pytest.fixture(scope="session")
def chain() -> Traced:
    """Eight linear layers of sixteen channels, one behind the other."""
    graph = trace(nn.Sequential(*(nn.Linear(16, 16) for _ in range(9))), torch.zeros(1, 16))
    return graph, np.random.default_rng(0).random(graph.n_channels)


@pytest.fixture(scope="session")
def data(resnet: Traced) -> NetworkData:
    return network_graph(*resnet)
