"""Soft pruning: zeroed after every epoch, trained on, and cut to what the zeros computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.slimming.surgery import mask, slim
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.training_loop import Recipe, train
from espalier.search.training.soft import SoftEpoch, SoftPruning

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.05)


def all_but(graph: ChannelGraph, *gone: int) -> Tensor:
    keep = torch.ones(graph.n_channels, dtype=torch.bool)
    keep[list(gone)] = False
    return keep


def test_a_zeroed_channel_comes_back(
    network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path
) -> None:
    """Each epoch another one is zeroed; by the end of the next all of them compute something again."""
    choices: Iterator[int] = iter(range(0, 16, 4))
    pruning = SoftPruning(network, graph, lambda _: all_but(graph, next(choices)), tmp_path / "history.json")
    alive: list[Tensor] = []

    def watched(epoch: int) -> None:
        alive.append(zeroed(network, graph))
        pruning(epoch)
        alive.append(zeroed(network, graph))

    train(network, splits.train, splits.mean, splits.std, RECIPE, seed=0, on_epoch=watched)
    for epoch, gone in enumerate(range(0, 16, 4)):
        assert not alive[2 * epoch].any()
        assert alive[2 * epoch + 1].nonzero()[:, 0].tolist() == [gone]
    expected = [SoftEpoch(1, 1, 0), SoftEpoch(2, 1, 1), SoftEpoch(3, 1, 1), SoftEpoch(4, 1, 1)]
    assert list(pruning.epochs()) == expected
    assert torch.equal(pruning.keep(), all_but(graph, 12))


def zeroed(network: nn.Module, graph: ChannelGraph) -> Tensor:
    """Channels of which every weight that writes them, and every scale and shift, is zero."""
    parameters = dict(network.named_parameters())
    found = torch.ones(graph.n_channels, dtype=torch.bool)
    for slot in graph.slots:
        if slot.tensor in parameters and slot.role in ("out", "norm", "shift", "bias"):
            rows = parameters[slot.tensor].detach().movedim(slot.dim, 0)
            silent = rows.reshape(len(rows), -1).abs().sum(1) == 0
            for column in slot.channels.T:
                found[column[column >= 0]] &= silent[column >= 0]
    return found


def test_the_zeroed_network_computes_what_the_slimmed_one_does(
    network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path
) -> None:
    def rank(model: nn.Module) -> Tensor:
        assert not model.training
        energies = channel_energies(model, graph).double().numpy()
        return graph.keep_best(energies, (graph.sizes + 1) // 2)

    pruning = SoftPruning(network, graph, rank, tmp_path / "history.json")
    train(network, splits.train, splits.mean, splits.std, RECIPE, seed=0, on_epoch=pruning)
    keep, images = pruning.keep(), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = mask(network, graph, keep)(images)
        torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slim(network, graph, keep)(images), expected, rtol=1e-5, atol=1e-5)


def test_what_reads_a_channel_stays(network: nn.Module, graph: ChannelGraph, tmp_path: Path) -> None:
    before = copy.deepcopy(dict(network.named_parameters()))
    pruning = SoftPruning(network, graph, lambda _: all_but(graph, 0), tmp_path / "history.json")
    pruning(1)
    assert network.training
    parameters = dict(network.named_parameters())
    for slot in graph.slots:
        if slot.role == "in" and slot.tensor in parameters and slot.tensor not in _written(graph):
            assert torch.equal(parameters[slot.tensor], before[slot.tensor])


def _written(graph: ChannelGraph) -> set[str]:
    return {slot.tensor for slot in graph.slots if slot.role == "out" and bool((slot.channels == 0).any())}


def test_no_epochs_rank_what_is_there(network: nn.Module, graph: ChannelGraph, tmp_path: Path) -> None:
    pruning = SoftPruning(network, graph, lambda _: all_but(graph, 3), tmp_path / "history.json")
    assert torch.equal(pruning.keep(), all_but(graph, 3)) and pruning.epochs() == ()


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_history_survives(network: nn.Module, graph: ChannelGraph, tmp_path: Path, epochs: int) -> None:
    first = SoftPruning(network, graph, lambda _: all_but(graph, 3, 5), tmp_path / "history.json")
    for epoch in range(1, epochs + 1):
        first(epoch)
    second = SoftPruning(network, graph, lambda _: all_but(graph, 5), tmp_path / "history.json")
    second(epochs + 1)
    assert second.epochs() == (*first.epochs(), SoftEpoch(epochs + 1, 1, 1))
