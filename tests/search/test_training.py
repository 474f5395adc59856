"""Training: reproducible, alone with its random numbers, and regularised where it should be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from espalier.pruning.energy import channel_energies
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.regularizers import REGULARIZERS, OICSRGroupLasso
from espalier.search.data import InMemoryImages, Splits
from espalier.search.training import Recipe, top1, train

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05, pad=1, flip=True)


def trained(
    network: nn.Module,
    splits: Splits,
    recipe: Recipe = RECIPE,
    *,
    seed: int = 0,
    regularizer: OICSRGroupLasso | None = None,
    strength: float = 0.0,
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    model = copy.deepcopy(network)
    train(
        model,
        splits.train,
        splits.mean,
        splits.std,
        recipe,
        seed=seed,
        regularizer=regularizer,
        strength=strength,
        on_step=on_step,
    )
    return model


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


class Dropping(nn.Module):
    """Draws from torch's generator in every step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.drop, self.network = nn.Dropout(0.2), network

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(self.drop(x))
        return result


def test_it_learns_and_ends_in_eval_mode(network: nn.Module, splits: Splits) -> None:
    before = top1(network, splits.search, splits.mean, splits.std)
    model = trained(network, splits, Recipe(epochs=10, batch_size=16, lr=0.05))
    assert top1(model, splits.search, splits.mean, splits.std) > max(90, before)
    assert not any(module.training for module in model.modules())


def test_the_same_seed_is_the_same_to_the_last_bit(network: nn.Module, splits: Splits) -> None:
    dropping = Dropping(network)
    torch.manual_seed(1)
    first = trained(dropping, splits)
    torch.manual_seed(2)
    assert equal(trained(dropping, splits), first)
    assert not equal(trained(dropping, splits, seed=1), first)


def test_the_global_generator_is_left_alone(network: nn.Module, splits: Splits) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained(Dropping(network), splits)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_epochs_change_nothing(network: nn.Module, splits: Splits) -> None:
    assert equal(trained(network, splits, Recipe(epochs=0, batch_size=16, lr=0.1)), network)


def test_every_step_is_told_with_its_loss(network: nn.Module, splits: Splits) -> None:
    told: list[tuple[int, float]] = []
    trained(network, splits, on_step=lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == list(range(1, 19))
    assert told[-1][1] < told[0][1]


@pytest.mark.parametrize(
    ("epochs", "batch_size", "images", "steps"),
    [(3, 16, 96, 18), (0.5, 16, 96, 3), (0, 16, 96, 0), (2, 128, 96, 2), (1.5, 10, 96, 14)],
)
def test_steps_of_epochs(epochs: float, batch_size: int, images: int, steps: int) -> None:
    assert Recipe(epochs=epochs, batch_size=batch_size, lr=0.1).steps(images) == steps


@pytest.mark.parametrize("epochs", [0.5, 2, 2.5])
@pytest.mark.parametrize("batch_size", [10, 16, 200])
def test_as_many_steps_are_made(network: nn.Module, splits: Splits, epochs: float, batch_size: int) -> None:
    steps: list[int] = []
    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=0.01)
    trained(network, splits, recipe, on_step=lambda step, _: steps.append(step))
    assert len(steps) == recipe.steps(96)


def test_the_learning_rate_rises_and_falls_as_its_formula_says() -> None:
    recipe, steps = Recipe(epochs=1, batch_size=1, lr=0.4, warmup=0.2), 50
    rates = [recipe.lr_at(step, steps) for step in range(steps)]
    for step in range(10):
        assert rates[step] == pytest.approx(0.4 * (step + 1) / 11)
    for step in range(10, 50):
        assert rates[step] == pytest.approx(0.2 * (1 + math.cos(math.pi * (step - 10) / 40)))
    assert max(rates) == rates[10] == 0.4
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert Recipe(epochs=1, batch_size=1, lr=0.4, warmup=0.0).lr_at(0, 50) == 0.4


def test_the_optimiser_is_given_these_rates(
    network: nn.Module, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[float, ...]] = []
    step = torch.optim.SGD.step

    def recording(self: torch.optim.SGD) -> None:
        used.append(tuple(group["lr"] for group in self.param_groups))
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    trained(network, splits)
    assert used == [(RECIPE.lr_at(number, 18),) * 2 for number in range(18)]


def test_weight_decay_leaves_norms_and_biases_alone(network: nn.Module, splits: Splits) -> None:
    """One step on images without labels to learn from: what shrinks was decayed."""
    flat = Splits(
        InMemoryImages(torch.zeros(16, 1, 8, 8, dtype=torch.uint8), torch.zeros(16, dtype=torch.int64)),
        splits.search,
        splits.test,
        splits.classes,
        (0.0,),
        (1.0,),
    )
    base = Recipe(epochs=1, batch_size=16, lr=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0)
    plain = dict(trained(network, flat, base).named_parameters())
    decayed = dict(trained(network, flat, Recipe(**{**base.__dict__, "weight_decay": 0.5})).named_parameters())
    start = dict(network.named_parameters())
    for name, parameter in plain.items():
        expected = parameter - (0.1 * 0.5 * start[name] if parameter.dim() > 1 else 0)
        torch.testing.assert_close(decayed[name], expected, msg=name)


# ----------------------------------------------------------------------------------------- regularisation


def test_a_regulariser_shrinks_energies(network: nn.Module, graph: ChannelGraph, splits: Splits) -> None:
    penalty = OICSRGroupLasso(graph)
    energies = [
        float(channel_energies(trained(network, splits, regularizer=penalty, strength=strength), graph).sum())
        for strength in (0.0, 0.01, 0.1)
    ]
    assert energies[2] < 0.5 * energies[0]
    assert energies[2] < energies[1] < energies[0]


def test_it_empties_whole_channels(network: nn.Module, graph: ChannelGraph, splits: Splits) -> None:
    """Group lasso leaves some channels with next to nothing, where weight decay shrinks all alike."""
    recipe = Recipe(epochs=30, batch_size=16, lr=0.05, weight_decay=0.0)
    model = trained(network, splits, recipe, regularizer=OICSRGroupLasso(graph), strength=0.05)
    energies = channel_energies(model, graph)
    assert (energies < 1e-6 * energies.max()).sum() >= 2
    assert top1(model, splits.search, splits.mean, splits.std) > 60


@pytest.mark.parametrize("name", REGULARIZERS)
def test_strength_zero_is_no_regulariser(
    name: str, network: nn.Module, graph: ChannelGraph, splits: Splits
) -> None:
    penalty = REGULARIZERS[name](graph)
    model = copy.deepcopy(network)
    train(model, splits.train, splits.mean, splits.std, RECIPE, seed=0, regularizer=penalty, strength=0.0)
    assert equal(model, trained(network, splits))


def test_the_loss_told_leaves_the_penalty_out(network: nn.Module, graph: ChannelGraph, splits: Splits) -> None:
    told: list[list[float]] = [[], []]
    for losses, strength in zip(told, (0.0, 1.0), strict=True):
        trained(
            network,
            splits,
            regularizer=OICSRGroupLasso(graph),
            strength=strength,
            on_step=lambda _, loss, losses=losses: losses.append(loss),  # type: ignore[misc]
        )
    assert told[0][0] == told[1][0] and told[0][1:] != told[1][1:]


# ------------------------------------------------------------------------------------------------- top-1


def test_top1_counts_every_image_once_in_any_batches(network: nn.Module, splits: Splits) -> None:
    model = trained(network, splits, Recipe(epochs=1, batch_size=16, lr=0.02))
    shares = {size: top1(model, splits.test, splits.mean, splits.std, batch_size=size) for size in (1, 7, 48, 100)}
    assert len(set(shares.values())) == 1

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 4)

    assert top1(Constant(), splits.test.take(torch.arange(10)), splits.mean, splits.std) == 30.0
