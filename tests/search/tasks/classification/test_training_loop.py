"""Training: reproducible, alone with its random numbers, and regularised where it should be."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.importance.regularizer import Regularizer
from espalier.pruning.importance.regularizers import REGULARIZERS, OICSRGroupLasso
from espalier.search.files.tensor_files import load_header
from espalier.search.tasks.classification.data import InMemoryImages, Splits
from espalier.search.tasks.classification.training_loop import Recipe, top1, train

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


@pytest.mark.parametrize("built_for", [False, True])
def test_the_precision_that_the_device_is_built_for(
    network: nn.Module, splits: Splits, bf16: Callable[[bool], None], built_for: bool
) -> None:
    bf16(built_for)
    full, low, auto = (
        trained(network, splits, replace(RECIPE, precision=asked)) for asked in ("fp32", "bf16", "auto")
    )
    assert not equal(full, low)
    assert equal(auto, low if built_for else full)


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


def test_gradients_are_no_longer_than_they_may_be(
    network: nn.Module, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: dict[float | None, list[float]] = {}
    step = torch.optim.SGD.step

    def recording(self: torch.optim.SGD) -> None:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths[most].append(float(torch.cat(gradients).norm()))
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    for most in (None, 0.5, 100.0):
        lengths[most] = []
        trained(network, splits, replace(RECIPE, clip_norm=most))
    assert lengths[100.0] == lengths[None] and max(lengths[None]) > 0.9
    assert max(lengths[0.5]) <= 0.5001
    assert lengths[0.5][0] == pytest.approx(0.5, rel=1e-4)


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


# ----------------------------------------------------------------------------------------- interruption


class Killed(Exception):
    pass


HARD = Recipe(epochs=2.5, batch_size=16, lr=0.05, pad=1, flip=True, label_smoothing=0.1)


def hardest(
    model: nn.Module,
    splits: Splits,
    penalty: Regularizer,
    *,
    proximal: bool = True,
    seed: int = 3,
    recipe: Recipe = HARD,
    kill: int | None = None,
    checkpoint: Path | None = None,
    seconds: float = 0.0,
) -> list[int]:
    """Trains with everything that draws or remembers; returns the steps that were made."""
    made: list[int] = []

    def told(step: int, _: float) -> None:
        if step == kill:
            raise Killed
        made.append(step)

    def halve(epoch: int) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.5 * epoch)

    train(
        model,
        splits.train,
        splits.mean,
        splits.std,
        recipe,
        seed=seed,
        regularizer=penalty,
        strength=0.02,
        proximal=proximal,
        ramp=0.6,
        on_step=told,
        on_epoch=halve,
        checkpoint=checkpoint,
        seconds=seconds,
    )
    return made


@pytest.mark.parametrize("proximal", [False, True], ids=["subgradient", "proximal"])
@pytest.mark.parametrize("kill", [1, 2, 6, 7, 12, 15])
@pytest.mark.parametrize("name", ["oicsr_growl", "growing"])  # which remembers the weights that it began with
def test_killed_at_any_step_it_ends_as_if_it_had_not_been(
    network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path, proximal: bool, kill: int, name: str
) -> None:
    penalty, file = REGULARIZERS[name](graph), tmp_path / "partial.safetensors"
    network.register_forward_pre_hook(lambda module, x: nn.functional.dropout(x[0], 0.2, module.training))
    whole, first, second = (copy.deepcopy(network) for _ in range(3))
    hardest(whole, splits, penalty, proximal=proximal)
    with pytest.raises(Killed):
        hardest(first, splits, penalty, proximal=proximal, kill=kill, checkpoint=file)
    again = REGULARIZERS[name](graph)
    made = hardest(second, splits, again, proximal=proximal, checkpoint=file)
    assert made == list(range(kill, 16))  # the step that was not told is made again
    assert equal(second, whole)


def test_a_penalty_is_told_the_weights_that_a_training_began_with(
    network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path
) -> None:
    told: list[dict[str, Tensor]] = []

    class Told(OICSRGroupLasso):
        def begin(self, weights: Mapping[str, Tensor]) -> None:
            told.append({name: weight.detach().clone() for name, weight in weights.items()})

    file = tmp_path / "partial.safetensors"
    with pytest.raises(Killed):
        hardest(copy.deepcopy(network), splits, Told(graph), kill=7, checkpoint=file)
    assert hardest(copy.deepcopy(network), splits, Told(graph), checkpoint=file)[0] == 7
    start = {name: weight.detach() for name, weight in network.named_parameters()}
    assert len(told) == 2 and all(all(torch.equal(each[n], w) for n, w in start.items()) for each in told)


def test_killed_again_and_again(network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path) -> None:
    penalty, file = OICSRGroupLasso(graph), tmp_path / "partial.safetensors"
    whole = copy.deepcopy(network)
    hardest(whole, splits, penalty)
    for kill in (4, 5, 11):
        with pytest.raises(Killed):
            hardest(copy.deepcopy(network), splits, penalty, kill=kill, checkpoint=file)
    last = copy.deepcopy(network)
    assert hardest(last, splits, penalty, checkpoint=file) == [11, 12, 13, 14, 15]
    assert equal(last, whole)


def test_a_finished_training_is_in_its_checkpoint(
    network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path
) -> None:
    penalty, file = OICSRGroupLasso(graph), tmp_path / "partial.safetensors"
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    hardest(first, splits, penalty, checkpoint=file, seconds=3600)
    assert hardest(second, splits, penalty, checkpoint=file) == []
    assert equal(first, second)


@pytest.mark.parametrize("other", ["seed", "recipe", "weights", "step", "junk"])
def test_the_checkpoint_of_another_training_is_not_taken(
    other: str, network: nn.Module, graph: ChannelGraph, splits: Splits, tmp_path: Path
) -> None:
    penalty, file = OICSRGroupLasso(graph), tmp_path / "partial.safetensors"
    with pytest.raises(Killed):
        hardest(copy.deepcopy(network), splits, penalty, kill=9, checkpoint=file)
    model = copy.deepcopy(network)
    changes: dict[str, Any] = {}
    if other == "seed":
        changes = {"seed": 4}
    elif other == "recipe":
        changes = {"recipe": replace(HARD, lr=0.04)}
    elif other == "weights":
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
    elif other == "step":
        changes = {"proximal": False}
    else:
        file.write_bytes(b"nothing of ours")
    expected = copy.deepcopy(model)
    assert len(hardest(model, splits, penalty, checkpoint=file, **changes)) == 15
    hardest(expected, splits, penalty, **changes)
    assert equal(model, expected)


def test_it_is_written_when_it_is_time(
    network: nn.Module, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    model, file = copy.deepcopy(network), tmp_path / "partial.safetensors"
    seen: list[int] = []

    def look(step: int, _: float) -> None:
        """At the file as it was written after the step before."""
        seen.append(load_header(file)["steps"] if file.exists() else 0)

    train(
        model,
        splits.train,
        splits.mean,
        splits.std,
        RECIPE,
        seed=0,
        checkpoint=file,
        seconds=5.0,
        on_step=look,
    )
    # The clock is read at the beginning, after every step but the last, and after every writing.
    assert seen == [0] * 5 + [5] * 5 + [10] * 5 + [15] * 3 and load_header(file)["steps"] == 18


def test_epochs_are_told_once_each(network: nn.Module, splits: Splits) -> None:
    told: list[int] = []
    recipe = replace(RECIPE, epochs=2.5)
    model = copy.deepcopy(network)
    train(model, splits.train, splits.mean, splits.std, recipe, seed=0, on_epoch=told.append)
    assert told == [1, 2, 3]  # the last one ends half-way


def test_every_epoch_sees_each_image_once_in_another_order(network: nn.Module, splits: Splits) -> None:
    """As many batches as there are; the last images of an order that fill no batch are left out."""
    seen: list[Tensor] = []

    class Watched(InMemoryImages):
        def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
            seen.append(indices)
            return super().fetch(indices, crops)

    assert isinstance(splits.train, InMemoryImages)
    images = Watched(splits.train.images, splits.train.labels)
    train(copy.deepcopy(network), images, splits.mean, splits.std, RECIPE, seed=0)
    epochs = [torch.cat(seen[start : start + 6]).tolist() for start in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(96)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
