"""The ladder: one network per strength, each from the one before, none trained twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from espalier.pruning.energy import channel_energies
from espalier.pruning.graph import ChannelGraph
from espalier.search import ladder, training
from espalier.search.checkpoint import digest, tensors_of
from espalier.search.data import Splits
from espalier.search.ladder import Penalty, Rung, climb, train_dense
from espalier.search.progress import Silent
from espalier.search.training import Recipe, top1

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.05)
Climb = Callable[..., list[Rung]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The strengths of the trainings that were run."""
    strengths: list[float] = []

    def counting(*args: object, strength: float, **kwargs: object) -> None:
        strengths.append(strength)
        training.train(*args, strength=strength, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "train", counting)
    return strengths


@pytest.fixture
def up(network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path) -> Climb:
    def climbing(
        strengths: tuple[float, ...] = (0.0, 0.01, 0.1),
        *,
        recipe: Recipe = RECIPE,
        seed: int = 0,
        origin: str = "o",
        regularizer: str = "oicsr_gl",
    ) -> list[Rung]:
        dense = train_dense(network, splits, RECIPE, seed, tmp_path, origin, Silent())
        return climb(dense, graph, splits, recipe, Penalty(regularizer), strengths, seed, tmp_path, Silent())

    return climbing


def test_each_rung_is_trained_once(up: Climb, runs: list[float]) -> None:
    first = up()
    assert runs == [0.0, 0.01, 0.1]
    again = up()
    assert runs == [0.0, 0.01, 0.1]
    assert [rung.digest for rung in again] == [rung.digest for rung in first]
    assert [rung.top1 for rung in again] == [rung.top1 for rung in first]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"seed": 1}, [0.0, 0.01, 0.1]),
        ({"origin": "other weights"}, [0.0]),
        ({"recipe": Recipe(epochs=5, batch_size=16, lr=0.05)}, [0.01, 0.1]),
        ({"strengths": (0.0, 0.01, 0.2)}, [0.2]),
        ({"strengths": (0.0, 0.02, 0.1)}, [0.02, 0.1]),
        ({"regularizer": "separated_gl"}, [0.01, 0.1]),
    ],
    ids=str,
)
def test_what_depends_on_a_change_is_trained_again(
    up: Climb, runs: list[float], change: dict[str, object], trained: list[float]
) -> None:
    up()
    runs.clear()
    up(**change)
    assert runs == trained


def test_strength_zero_is_the_dense_network(
    up: Climb, network: nn.Module, splits: Splits, tmp_path: Path, runs: list[float]
) -> None:
    dense = train_dense(network, splits, RECIPE, 0, tmp_path, "o", Silent())
    rungs = up((0.0, 0.01))
    assert rungs[0].digest == dense.digest != rungs[1].digest
    assert runs == [0.0, 0.01]


def test_rungs_know_what_they_are(up: Climb, splits: Splits) -> None:
    rungs = up()
    assert [rung.strength for rung in rungs] == [0.0, 0.01, 0.1]
    for rung in rungs:
        assert rung.digest == digest(tensors_of(rung.model))
        assert rung.top1 == top1(rung.model, splits.search, splits.mean, splits.std)
        assert not rung.model.training
    assert rungs[0].top1 > 60


def test_energies_fall_with_the_strength(up: Climb, graph: ChannelGraph) -> None:
    energies = [float(channel_energies(rung.model, graph).sum()) for rung in up((0.01, 0.1, 0.3))]
    assert energies == sorted(energies, reverse=True) and energies[-1] < 0.5 * energies[0]


def test_a_rung_starts_from_the_one_below(up: Climb, runs: list[float]) -> None:
    """The same strength on another ladder is another network."""
    assert up((0.0, 0.01, 0.1))[2].digest != up((0.0, 0.1))[1].digest


def test_the_network_given_stays_as_it_is(up: Climb, network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    up()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_weights_that_were_given_need_no_training(
    network: nn.Module, splits: Splits, tmp_path: Path, runs: list[float]
) -> None:
    recipe = Recipe(epochs=0, batch_size=16, lr=0.05)
    dense = train_dense(network, splits, recipe, 0, tmp_path, "o", Silent())
    assert runs == [] and dense.digest == digest(tensors_of(network))
