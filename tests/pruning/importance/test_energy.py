"""Energies against sums over single weights, and what must not change them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import WEIGHT_ROLES
from espalier.pruning.importance.energy import ChannelNorms, channel_energies
from espalier.pruning.importance.normalizations import normalize
from tests.pruning.importance.conftest import network, permuted

NETWORKS = ["small", "resnet20", "mobilenet_v2"]


def naive_energies(model: nn.Module, graph: ChannelGraph, roles: tuple[str, ...]) -> list[float]:
    """Channel by channel, member by member, slice by slice."""
    parameters = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    energies = []
    for group in graph.groups:
        members = [member for member in group.members if member.role in roles]
        for channel in range(group.size):
            energy = 0.0
            for member in members:
                for position in member.positions[member.channels == channel].tolist():
                    energy += float(parameters[member.tensor].select(member.dim, position).square().sum())
            energies.append(energy)
    return energies


@pytest.mark.parametrize("name", ["small", "resnet20"])
def test_energies_are_sums_over_members(name: str) -> None:
    model, graph, _ = network(name)
    energies = channel_energies(model, graph)
    assert energies.shape == (graph.n_channels,) and energies.dtype == torch.float32 and not energies.requires_grad
    np.testing.assert_allclose(energies.numpy(), naive_energies(model, graph, WEIGHT_ROLES), rtol=1e-5)
    assert bool((energies > 0).all())


@pytest.mark.parametrize("name", ["small", "resnet20"])
def test_separated_norms_are_sums_over_what_writes(name: str) -> None:
    model, graph, _ = network(name)
    with torch.no_grad():
        got = ChannelNorms(graph, ("out", "depthwise"))(dict(model.named_parameters()))
    np.testing.assert_allclose(got.numpy(), naive_energies(model, graph, ("out", "depthwise")), rtol=1e-5)


def test_a_single_weight_shows_where_it_belongs() -> None:
    """The stem's filter 2 and what reads it: nothing else has energy, norms and biases have none."""
    model, graph, _ = network("small")
    weights = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for name in ("stem.bias", "norm.weight", "norm.bias", "head.bias"):
        weights[name].fill_(9)
    weights["stem.weight"][2, 1, 0, 0] = 3
    got = ChannelNorms(graph)(weights)
    # The grouped convolution reads two groups of four depthwise channels, so the stem's channels are two pairs.
    assert [(group.name, group.size) for group in graph.groups] == [("stem", 2), ("grouped", 3)]
    assert got.tolist() == [9, 0, 0, 0, 0]
    weights["residual.weight"][4, 2] = 2  # writes channel 1 and reads channel 2 of the sum
    assert ChannelNorms(graph)(weights).tolist() == [9, 0, 0, 4, 4]


def test_only_the_named_tensors_are_read() -> None:
    model, graph, _ = network("resnet20")
    norms = ChannelNorms(graph)
    named = {name: parameter for name, parameter in model.named_parameters() if name in norms.tensors}
    assert len(named) == len(norms.tensors) == 20  # 19 convolutions and a linear layer
    with torch.no_grad():
        assert torch.equal(norms(named), norms(dict(model.named_parameters())))


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_channels_permutes_energies_and_nothing_else(name: str) -> None:
    model, graph, images = network(name)
    generator = torch.Generator().manual_seed(0)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    state = {key: tensor.detach() for key, tensor in state.items()}
    before = channel_energies(model, graph)
    chosen = range(len(graph.groups)) if name != "mobilenet_v2" else [0, 3]
    for group in chosen:
        start, end = graph.offsets[group : group + 2].tolist()
        order = torch.arange(graph.n_channels)
        cycle = start + torch.randperm(end - start, generator=generator)
        order[cycle] = cycle.roll(1)  # nothing stays in its place
        moved = permuted(state, graph, order)
        with torch.no_grad():
            after = ChannelNorms(graph)(moved)
            outputs = torch.func.functional_call(model, moved, images)
            torch.testing.assert_close(outputs, model(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after, before[order])
        assert not torch.allclose(after[start:end], before[start:end])


# ----------------------------------------------------------------------------------------- normalisations


def energies_of(graph: ChannelGraph) -> Any:
    return np.random.default_rng(0).random(graph.n_channels) * np.geomspace(1e-3, 1e3, graph.n_channels)


@pytest.mark.parametrize("how", ["raw", "mean", "max", "per_mac"])
def test_normalisations_are_their_formulas(how: Any) -> None:
    _, graph, _ = network("resnet20")
    energies = energies_of(graph)
    got = normalize(energies, graph, how)
    assert got.dtype == np.float64 and got.shape == energies.shape
    dense = int(graph.macs(graph.sizes))
    for number in range(len(graph.groups)):
        start, end = graph.offsets[number : number + 2]
        part = energies[start:end]
        one_less = graph.sizes.copy()
        one_less[number] -= 1
        divisor = {
            "raw": 1.0,
            "mean": sum(part) / len(part),
            "max": max(part),
            "per_mac": float(dense - int(graph.macs(one_less))),
        }[how]
        np.testing.assert_allclose(got[start:end], part / divisor, rtol=1e-12)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_relative_normalisations_forget_a_groups_scale(how: Any) -> None:
    _, graph, _ = network("resnet20")
    energies = energies_of(graph)
    scaled = energies * np.random.default_rng(1).uniform(0.1, 10, len(graph.groups))[graph.group_of]
    np.testing.assert_allclose(normalize(scaled, graph, how), normalize(energies, graph, how), rtol=1e-12)


@pytest.mark.parametrize("how", ["raw", "mean", "max", "per_mac"])
def test_dead_groups_stay_finite_and_the_input_is_left_alone(how: Any) -> None:
    _, graph, _ = network("resnet20")
    energies = energies_of(graph)
    energies[:16] = 0
    before = energies.copy()
    got = normalize(energies, graph, how)
    assert np.isfinite(got).all() and (got[:16] == 0).all() and (got[16:] > 0).all()
    assert (energies == before).all()


def test_an_unknown_normalisation_is_named() -> None:
    _, graph, _ = network("resnet20")
    message = r"normalization must be one of raw, mean, max, per_mac.*, got 'median'"
    with pytest.raises(ConfigError, match=message):
        normalize(energies_of(graph), graph, "median")
