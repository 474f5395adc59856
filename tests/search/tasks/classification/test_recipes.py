"""What a recipe asks for beside SGD: optimisers, schedules, averages, accumulation, distillation."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espalier.search.files.tensor_files import tensors_of
from espalier.search.tasks.classification.data import Splits, normalize
from espalier.search.tasks.classification.losses import Distillation, Targets, last_of_each_resolution
from espalier.search.tasks.classification.optimizers import Lamb, OptimizerName, decay
from espalier.search.tasks.classification.training_loop import Recipe, train

RECIPE = Recipe(epochs=1, batch_size=16, lr=0.01, warmup=0.0)
KINDS = ["sgd", "adam", "adamw", "lamb"]


@pytest.fixture
def network() -> nn.Module:
    """Without norms, so that parts of a batch make the gradient of the whole."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(8, 4))


def trained(network: nn.Module, splits: Splits, recipe: Recipe, **options: object) -> dict[str, torch.Tensor]:
    own = copy.deepcopy(network)
    train(own, splits.train, splits.mean, splits.std, recipe, seed=3, **options)  # type: ignore[arg-type]
    return tensors_of(own)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimiser_lowers_the_loss(network: nn.Module, splits: Splits, kind: OptimizerName) -> None:
    losses: list[float] = []
    recipe = replace(RECIPE, optimizer=kind, epochs=20, lr=0.05 if kind == "sgd" else 0.01)
    trained(network, splits, recipe, on_step=lambda _, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_that_was_interrupted_ends_with_the_same_weights(
    network: nn.Module, splits: Splits, kind: OptimizerName, ema: float, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, optimizer=kind, epochs=2, ema=ema)
    whole = trained(network, splits, recipe)

    def stop(step: int, _: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "part", "seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        trained(network, splits, recipe, on_step=stop, **options)
    steps: list[int] = []
    again = trained(network, splits, recipe, on_step=lambda step, _: steps.append(step), **options)
    assert steps[0] == 5
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_the_average_is_that_of_the_weights_after_every_step(network: nn.Module, splits: Splits) -> None:
    own, weights = copy.deepcopy(network), []
    average = {name: tensor.clone() for name, tensor in tensors_of(network).items()}

    def keep(*_: object) -> None:
        weights.append({name: tensor.clone() for name, tensor in tensors_of(own).items()})

    recipe = replace(RECIPE, ema=0.5)
    train(own, splits.train, splits.mean, splits.std, recipe, seed=3, on_step=keep)
    for name, tensor in average.items():
        for step in weights:
            tensor.lerp_(step[name], 0.5)
        torch.testing.assert_close(tensors_of(own)[name], tensor)
    assert not torch.equal(tensors_of(own)["0.weight"], weights[-1]["0.weight"])


def test_parts_of_a_batch_make_the_same_step(network: nn.Module, splits: Splits) -> None:
    whole, parts = (trained(network, splits, replace(RECIPE, accumulate=parts)) for parts in (1, 3))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


def test_distillation_learns_from_the_dense_network(network: nn.Module, splits: Splits) -> None:
    """A network that only imitates comes near its teacher, whose labels are wrong."""
    wrong = replace(splits, train=splits.train.take(torch.arange(96)))
    wrong.train.labels = (wrong.train.labels + 1) % 4
    teacher = copy.deepcopy(network)
    train(teacher, splits.train, splits.mean, splits.std, replace(RECIPE, epochs=30, lr=0.1), seed=0)
    student = copy.deepcopy(network)
    recipe = replace(RECIPE, epochs=30, lr=0.1, distillation=1.0, temperature=2.0)
    train(student, wrong.train, splits.mean, splits.std, recipe, seed=1, teacher=teacher)
    images = normalize(splits.search.fetch(torch.arange(48)), splits.mean, splits.std)
    with torch.no_grad():
        near = (student(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert near > 0.9


def test_the_distillation_loss_is_hintons() -> None:
    logits, taught = torch.randn(5, 4), torch.randn(5, 4)
    loss = torch.tensor(1.25)
    found = Distillation(nn.Identity(), 0.25, 3.0, 0.0).add_to(loss, logits, taught)
    soft = (taught / 3).softmax(1)
    divergence = (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean() * 9
    torch.testing.assert_close(found, 0.75 * loss + 0.25 * divergence)


def test_attention_maps_are_compared_whatever_the_widths(network: nn.Module) -> None:
    """After the last layer at each resolution: the second ReLU, and nothing of one pixel."""
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    narrow = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.ReLU(), *pooled)
    images = torch.randn(6, 1, 8, 8)
    assert last_of_each_resolution(network, images[:1]) == ("1", "3")
    distance = Distillation(network, 0.0, 4.0, attention=10.0)
    with distance.watching(narrow, images[:1]):
        logits = narrow(images)
        found = distance.add_to(torch.tensor(1.0), logits, images)
    expected = torch.tensor(1.0)
    for depth in (2, 4):
        own, taught = (net[:depth](images).square().mean(1).flatten(1) for net in (narrow, network))  # type: ignore[index]
        apart = own / own.norm(dim=1, keepdim=True) - taught / taught.norm(dim=1, keepdim=True)
        expected = expected + 10 * apart.square().mean()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert narrow[0].weight.grad is not None and network[0].weight.grad is None  # type: ignore[index]
    assert not any(module._forward_hooks for net in (narrow, network) for module in net.modules())


def test_mixup_is_trained_on_both_labels(network: nn.Module, splits: Splits) -> None:
    """With no mixture of two classes left out: a network learns, and other weights come out than without."""
    losses: list[float] = []
    recipe = replace(RECIPE, epochs=20, lr=0.05, mixup=0.2)
    mixed = trained(network, splits, recipe, on_step=lambda _, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    plain = trained(network, splits, replace(recipe, mixup=0.0))
    assert any(not torch.equal(mixed[name], plain[name]) for name in plain)
    logits, labels, others = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.tensor([1, 1, 3])
    found = Targets(labels, others, 0.3).cross_entropy(logits, 0.0)
    soft = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(others, 4)
    torch.testing.assert_close(found, F.cross_entropy(logits, soft))


def test_lamb_scales_each_step_to_the_norm_of_its_tensor() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lamb([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    torch.testing.assert_close((weight.detach() - torch.tensor([3.0, 4.0])).norm(), torch.tensor(0.5))


@pytest.mark.parametrize(
    ("name", "done", "left"),
    [("cosine", 0.5, 0.5), ("step", 0.49, 1.0), ("step", 0.5, 0.1), ("step", 0.75, 0.01), ("constant", 1.0, 1.0)],
)
def test_schedules(name: str, done: float, left: float) -> None:
    assert decay(name, done) == pytest.approx(left)  # type: ignore[arg-type]


def test_a_recipe_of_0_1_is_written_as_it_was() -> None:
    assert "optimizer" not in RECIPE.to_json() and "ema" not in RECIPE.to_json()
    assert replace(RECIPE, optimizer="lamb", ema=0.9).to_json().items() >= {"optimizer": "lamb", "ema": 0.9}.items()
