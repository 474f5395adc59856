"""Conformance of every regulariser: its gradient, its value, and how it behaves at zero."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from espalier.pruning.graph import WEIGHT_ROLES, ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.regularizers import REGULARIZERS
from espalier.pruning.trace import trace

# The roles whose slices each regulariser takes the norm of; joining the suite takes one line.
ROLES: dict[str, tuple[str, ...]] = {
    "oicsr_gl": WEIGHT_ROLES,
    "separated_gl": ("out", "depthwise"),
    "none": (),
}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.block = nn.Conv2d(3, 4, 1)
        self.back = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(torch.relu(self.norm(self.stem(x))))
        z = self.back(torch.relu(self.block(y)))
        logits: Tensor = self.head(torch.cat([x, z], 1).mean((2, 3)))
        return logits


@cache
def graph() -> ChannelGraph:
    return trace(Small(), torch.zeros(1, 2, 4, 4))


def random_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in Small().named_parameters()
    }


def channel_slices(roles: tuple[str, ...], weights: dict[str, Tensor]) -> list[list[Tensor]]:
    """Every slice of every channel, one by one."""
    slices = []
    for group in graph().groups:
        for channel in range(group.size):
            own = [member for member in group.members if member.role in roles]
            slices.append(
                [
                    weights[member.tensor].select(member.dim, position)
                    for member in own
                    for position in member.positions[member.channels == channel].tolist()
                ]
            )
    return slices


def test_every_regulariser_is_in_this_suite() -> None:
    assert set(ROLES) == set(REGULARIZERS)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_gradient_is_the_derivative(name: str) -> None:
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()

    def penalty(*values: Tensor) -> Tensor:
        return regularizer(dict(zip(weights, values, strict=True)))

    assert torch.autograd.gradcheck(penalty, tuple(value.requires_grad_() for value in weights.values()))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_value_is_a_sum_of_norms(name: str) -> None:
    weights = random_weights()
    expected = 0.0
    for slices in channel_slices(ROLES[name], weights):
        expected += sum(float(part.square().sum()) for part in slices) ** 0.5
    penalty = REGULARIZERS[name](graph())(weights)
    assert penalty.shape == ()
    assert float(penalty) == pytest.approx(expected, rel=1e-12)
    assert (expected > 0) == (name != "none")


def test_oicsr_joins_what_the_separated_penalty_leaves_apart() -> None:
    weights = random_weights()
    joint, separated = (float(REGULARIZERS[name](graph())(weights)) for name in ("oicsr_gl", "separated_gl"))
    assert joint > separated
    for slices, whole in zip(
        channel_slices(("out", "depthwise"), weights), channel_slices(WEIGHT_ROLES, weights), strict=True
    ):
        assert 0 < len(slices) < len(whole)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_dead_channels_the_gradient_is_zero_and_elsewhere_the_unit_vector(name: str, dtype: torch.dtype) -> None:
    weights = {key: value.to(dtype) for key, value in random_weights().items()}
    dead = [0, 4]  # a channel of each group
    for channel in dead:
        for part in channel_slices(WEIGHT_ROLES, weights)[channel]:
            part.zero_()
    weights = {key: value.requires_grad_() for key, value in weights.items()}
    (REGULARIZERS[name](graph())(weights) + 0 * sum(value.sum() for value in weights.values())).backward()
    gradients = {key: value.grad for key, value in weights.items() if value.grad is not None}
    assert len(gradients) == len(weights)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    for channel in dead:
        assert not any(bool(part.any()) for part in channel_slices(WEIGHT_ROLES, gradients)[channel])
    # A weight that one channel alone holds moves against its share of that channel's norm.
    alive = 1
    own = channel_slices(ROLES[name], weights)[alive]
    if own:
        norm = torch.stack([part.detach().square().sum() for part in own]).sum().sqrt()
        torch.testing.assert_close(gradients["stem.weight"][alive], weights["stem.weight"][alive].detach() / norm)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_all_weights_zero_is_no_penalty_and_no_nan(name: str) -> None:
    weights = {key: torch.zeros_like(value, requires_grad=True) for key, value in random_weights().items()}
    penalty = REGULARIZERS[name](graph())(weights)
    assert float(penalty.detach()) == 0
    if penalty.requires_grad:
        penalty.backward()
    assert not any(bool((value.grad != 0).any()) for value in weights.values() if value.grad is not None)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("factor", [1e-3, 2.0, -7.0])
def test_the_penalty_is_proportional_to_the_weights(name: str, factor: float) -> None:
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    scaled = {key: factor * value for key, value in weights.items()}
    assert float(regularizer(scaled)) == pytest.approx(abs(factor) * float(regularizer(weights)), rel=1e-12)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_norms_and_biases_are_not_penalised(name: str) -> None:
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    before = float(regularizer(weights))
    for key in ("stem.bias", "norm.weight", "norm.bias", "block.bias", "head.bias"):
        weights[key] = weights[key] + 5
    assert float(regularizer(weights)) == before


@pytest.mark.parametrize("name", ["oicsr_gl", "separated_gl"])
def test_descent_shrinks_every_channel_of_a_real_network(name: str) -> None:
    model = build("resnet20")
    regularizer = REGULARIZERS[name](trace(model, torch.zeros(1, 3, 8, 8)))
    weights = dict(model.named_parameters())
    optimizer = torch.optim.SGD(weights.values(), 0.01)
    penalties = []
    for _ in range(5):
        optimizer.zero_grad()
        penalty = regularizer(weights)
        penalty.backward()
        optimizer.step()
        penalties.append(float(penalty.detach()))
    assert penalties == sorted(penalties, reverse=True) and penalties[-1] < penalties[0]
