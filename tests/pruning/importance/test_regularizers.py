"""Conformance of every regulariser: its gradient, its value, and how it behaves at zero."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.optimize import minimize
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import WEIGHT_ROLES
from espalier.pruning.importance.optimizer_hooks import regularized
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.pruning.networks import build
from espalier.pruning.trace import trace
from espalier.search.config.training_sections import RegularizerConfig
from espalier.search.training.ladder import Penalty
from tests.pruning.importance.conftest import permuted

# The roles whose slices each regulariser takes the norm of; joining the suite takes one line.
ROLES: dict[str, tuple[str, ...]] = {
    "oicsr_gl": WEIGHT_ROLES,
    "oicsr_growl": WEIGHT_ROLES,
    "separated_gl": ("out", "depthwise"),
    "separated_growl": ("out", "depthwise"),
    "group_l12": ("out", "depthwise"),
    "cross_layer": ("out", "depthwise"),
    "selective_decay": ("out", "depthwise"),
    "growing": ("out", "depthwise"),
    "auto_balanced": ("out", "depthwise"),
    "bn_l1": ("norm",),
    "l2": WEIGHT_ROLES,
    "none": (),
}

GROUP_NORMS = ("oicsr_gl", "oicsr_growl", "separated_gl", "separated_growl")
HOMOGENEOUS = (*GROUP_NORMS, "cross_layer", "bn_l1", "none")
PROXIMAL = [name for name, kind in REGULARIZERS.items() if not kind.subgradients_only]


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


def naive(name: str, weights: dict[str, Tensor], sqrt_size: bool = False, with_norms: bool = False) -> float:
    """Channel by channel, slice by slice."""
    if name == "none":
        return 0.0
    if name == "l2":
        layers = ("stem", "depthwise", "block", "back", "head")
        return 0.5 * sum(float(weights[f"{layer}.weight"].square().sum()) for layer in layers)
    if name == "cross_layer":
        total = 0.0
        for slices in channel_slices(ROLES[name], weights):
            lengths = [float(part.norm()) for part in slices]
            mean = sum(lengths) / len(lengths)
            spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
            total += len(lengths) * (mean + spread)
        return total
    roles = (*ROLES[name], "norm", "shift") if with_norms else ROLES[name]
    norms: list[float] = []
    for slices in channel_slices(roles, weights):
        norm = math.sqrt(sum(float(part.square().sum()) for part in slices))
        norms.append(norm * math.sqrt(sum(part.numel() for part in slices)) if sqrt_size else norm)
    if name == "group_l12":
        return sum(map(math.sqrt, norms))
    if name in ("selective_decay", "growing", "auto_balanced"):
        return naive_selective(name, norms)
    if "growl" not in name:
        return sum(norms)
    total = 0.0
    for start, end in pairwise(graph().offsets.tolist()):
        size = end - start
        for place, norm in enumerate(sorted(norms[start:end], reverse=True)):
            total += norm * (2 - place / max(1, size - 1))
    return total


def naive_selective(name: str, norms: list[float]) -> float:
    """Half of every group is to go: 1 of 3 and 2 of 4 channels."""
    going, kept = 0.0, 0.0
    for start, end in pairwise(graph().offsets.tolist()):
        rising = sorted(norms[start:end])
        least = rising[len(rising) // 2]
        for place, norm in enumerate(rising):
            if place < len(rising) // 2:
                going += (1 + math.log(least / norm) if name == "auto_balanced" else 1) * norm**2
            else:
                kept -= (1 + math.log(norm / least)) * norm**2
    return 0.5 * (going - going / kept * kept if name == "auto_balanced" else going)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_value_is_the_sum_over_channels(name: str) -> None:
    weights = random_weights()
    penalty = REGULARIZERS[name](graph())(weights)
    assert penalty.shape == ()
    assert float(penalty) == pytest.approx(naive(name, weights), rel=1e-6, abs=1e-9)
    if name != "auto_balanced":  # which begins at zero
        assert (float(penalty) > 0) == (name != "none")


@pytest.mark.parametrize("name", GROUP_NORMS)
@pytest.mark.parametrize(("sqrt_size", "with_norms"), [(True, False), (False, True), (True, True)])
def test_weighting_and_norms_are_options(name: str, sqrt_size: bool, with_norms: bool) -> None:
    weights = random_weights()
    penalty = REGULARIZERS[name](graph(), "sqrt_size" if sqrt_size else "none", with_norms)(weights)
    assert float(penalty) == pytest.approx(naive(name, weights, sqrt_size, with_norms), rel=1e-6)


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ConfigError, match="weighting must be none or sqrt_size, got 'size'"):
        REGULARIZERS["oicsr_gl"](graph(), "size")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- proximal steps


@pytest.mark.parametrize("name", PROXIMAL)
@pytest.mark.parametrize("step", [0.05, 0.4, 2.0])
def test_the_proximal_step_solves_its_own_problem(name: str, step: float) -> None:
    """Against a solver that knows nothing of groups, and against every small move away from the solution."""
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    start = {key: value.clone() for key, value in weights.items()}
    regularizer.proximal_step(weights, step)

    def objective(candidate: dict[str, Tensor]) -> Tensor:
        apart = sum(((candidate[key] - start[key]).square().sum() for key in start), torch.zeros(()))
        return 0.5 * apart + step * regularizer(candidate)

    found = float(objective(weights).detach())
    keys, sizes = list(start), [value.numel() for value in start.values()]

    def value_and_gradient(flat: Any) -> tuple[float, Any]:
        parts = torch.from_numpy(flat).split(sizes)
        candidate = {k: part.reshape(start[k].shape).requires_grad_() for k, part in zip(keys, parts, strict=True)}
        total = objective(candidate)
        gradients = torch.autograd.grad(total, list(candidate.values()), allow_unused=True)
        flat_gradient = [
            torch.zeros(size, dtype=torch.float64) if gradient is None else gradient.reshape(-1)
            for gradient, size in zip(gradients, sizes, strict=True)
        ]
        return float(total.detach()), torch.cat(flat_gradient).numpy()

    flat = torch.cat([start[key].reshape(-1) for key in keys]).numpy()
    solved = minimize(value_and_gradient, flat, jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    assert found <= solved.fun + 1e-6 * abs(solved.fun)
    if name != "group_l12":  # which is not convex: the solver stays where it came down
        assert found >= solved.fun - 0.02 * abs(solved.fun)  # the solver stops near kinks
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        nudged = {
            key: value + 1e-3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for key, value in weights.items()
        }
        assert float(objective(nudged)) >= found - 1e-9


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_a_great_proximal_step_leaves_nothing(name: str) -> None:
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    regularizer.proximal_step(weights, 1e3)
    for slices in channel_slices(ROLES[name], weights):
        assert max(float(part.abs().max()) for part in slices) < 1e-9
    assert float(weights["head.bias"].abs().min()) > 0


def test_oicsr_joins_what_the_separated_penalty_leaves_apart() -> None:
    weights = random_weights()
    joint, separated = (float(REGULARIZERS[name](graph())(weights)) for name in ("oicsr_gl", "separated_gl"))
    assert joint > separated
    for slices, whole in zip(
        channel_slices(("out", "depthwise"), weights), channel_slices(WEIGHT_ROLES, weights), strict=True
    ):
        assert 0 < len(slices) < len(whole)


@pytest.mark.parametrize("name", ["oicsr_gl", "separated_gl", "none"])
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


@pytest.mark.parametrize("name", HOMOGENEOUS)
@pytest.mark.parametrize("factor", [1e-3, 2.0, -7.0])
def test_the_penalty_is_proportional_to_the_weights(name: str, factor: float) -> None:
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    scaled = {key: factor * value for key, value in weights.items()}
    assert float(regularizer(scaled)) == pytest.approx(abs(factor) * float(regularizer(weights)), rel=1e-6)


@pytest.mark.parametrize("name", [*GROUP_NORMS, "l2", "none"])
def test_norms_and_biases_are_not_penalised(name: str) -> None:
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    before = float(regularizer(weights))
    for key in ("stem.bias", "norm.weight", "norm.bias", "block.bias", "head.bias"):
        weights[key] = weights[key] + 5
    assert float(regularizer(weights)) == before


@pytest.mark.parametrize("name", GROUP_NORMS)
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


# ------------------------------------------------------------------------------------ what every entry keeps to

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("name", REGULARIZERS)
def test_permuting_channels_leaves_the_penalty(name: str) -> None:
    weights, order = random_weights(), torch.tensor([2, 0, 1, 6, 3, 5, 4, 8, 7, 9])
    moved = permuted(weights | buffers(), graph(), order)
    for sqrt_size in ("none", "sqrt_size"):
        first, second = (REGULARIZERS[name](graph(), sqrt_size) for _ in range(2))
        first.begin(weights)
        second.begin(moved)
        for factor in (1.0, 1.7):  # away from where it began, too
            ours = float(first({key: factor**i * value for i, (key, value) in enumerate(weights.items())}))
            theirs = float(second({key: factor**i * moved[key] for i, key in enumerate(weights)}))
            assert theirs == pytest.approx(ours, rel=1e-9, abs=1e-9)


def buffers() -> dict[str, Tensor]:
    return dict(Small().named_buffers())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", REGULARIZERS)
def test_float32_on_any_device_gives_what_float64_gives(name: str, device: str) -> None:
    start = random_weights()
    weights = {key: value + 0.3 * torch.randn_like(value) for key, value in start.items()}
    found = []
    for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
        regularizer = REGULARIZERS[name](graph())
        regularizer.begin({key: value.to(place, dtype) for key, value in start.items()})
        given = {key: value.to(place, dtype).requires_grad_() for key, value in weights.items()}
        value = regularizer(given) + 0 * torch.stack([each.sum() for each in given.values()]).sum()
        gradients = torch.autograd.grad(value, list(given.values()))
        found.append(torch.cat([value.detach()[None], *(each.reshape(-1) for each in gradients)]).cpu().double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in REGULARIZERS if name not in PROXIMAL])
def test_penalties_without_a_proximal_step_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match="takes subgradients only: "):
        REGULARIZERS[name](graph()).proximal_step(random_weights(), 0.1)
    model = Small()
    with (
        pytest.raises(ConfigError, match="takes subgradients only: "),
        regularized(model, graph(), name, strength=0.1, proximal=True),
    ):
        pass
    section = {"name": name, "step": "proximal"}
    with pytest.raises(ValidationError, match=f"{name} takes step: subgradient only: "):
        RegularizerConfig.model_validate(section)


def test_arguments_of_a_config() -> None:
    assert RegularizerConfig(name="growing", kwargs={"share": 0.3}).kwargs == {"share": 0.3}
    with pytest.raises(ValidationError, match="kwargs: unknown name 'shar', did you mean 'share'"):
        RegularizerConfig(name="growing", kwargs={"shar": 0.3})
    with pytest.raises(ValidationError, match="oicsr_gl takes no kwargs, got share"):
        RegularizerConfig(kwargs={"share": 0.3})
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match=f"share must lie between 0 and 1, got {share}"):
            Penalty("growing", kwargs={"share": share}).on(graph(), 0.1)
    made = Penalty("growing", kwargs={"share": 0.3})
    assert made.on(graph(), 0.1).regularizer.settings == {"share": 0.3} == made.to_json()["kwargs"]
    assert "kwargs" not in Penalty("oicsr_gl").to_json()  # the key of the rungs of 0.1


# --------------------------------------------------------------------------------- channels that are to go


def smallest(weights: dict[str, Tensor]) -> list[int]:
    """Half of every group, rounded down."""
    norms, found = filters(weights), list[int]()
    for start, end in pairwise(graph().offsets.tolist()):
        found += sorted((start + norms[start:end].argsort()[: (end - start) // 2]).tolist())
    return found


def filters(weights: dict[str, Tensor]) -> Tensor:
    """Norms of the filters of all channels: (10,)."""
    return torch.tensor(
        [math.sqrt(sum(float(p.square().sum()) for p in s)) for s in channel_slices(("out", "depthwise"), weights)]
    )


@pytest.mark.parametrize(("name", "follows"), [("selective_decay", True), ("growing", False)])
def test_which_channels_are_to_go(name: str, follows: bool) -> None:
    """One chooses anew in every step, the other when training begins."""
    regularizer, weights = REGULARIZERS[name](graph()), random_weights()
    regularizer.begin(weights)

    def going() -> list[int]:
        given = {key: value.clone().requires_grad_() for key, value in weights.items()}
        gradients = torch.autograd.grad(regularizer(given), list(given.values()), allow_unused=True)
        named = {k: torch.zeros_like(given[k]) if g is None else g for k, g in zip(given, gradients, strict=True)}
        return filters(named).nonzero()[:, 0].tolist()

    before = smallest(weights)
    assert going() == before
    for part in channel_slices(("out", "depthwise"), weights)[before[0]]:
        part.mul_(10)
    after = smallest(weights)
    assert before != after and going() == (after if follows else before)
    regularizer.begin(weights)
    assert going() == after


def test_auto_balance_strengthens_what_it_does_not_weaken() -> None:
    regularizer, weights = REGULARIZERS["auto_balanced"](graph(), share=0.5), random_weights()  # type: ignore[call-arg]
    regularizer.begin(weights)
    assert float(regularizer(weights)) == pytest.approx(0, abs=1e-9)
    before = filters(weights)
    given = {key: value.clone().requires_grad_() for key, value in weights.items()}
    expected = smallest(weights)
    gradients = torch.autograd.grad(regularizer(given), [given[key] for key in regularizer.tensors])
    for key, gradient in zip(regularizer.tensors, gradients, strict=True):
        weights[key] -= 1e-4 * gradient
    assert (filters(weights) < before).nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("name", ["selective_decay", "growing", "auto_balanced"])
def test_dead_channels_and_groups_leave_penalties_finite(name: str) -> None:
    weights = random_weights()
    for part in [p for c in (0, 1, 2, 4) for p in channel_slices(WEIGHT_ROLES, weights)[c]]:
        part.zero_()
    regularizer = REGULARIZERS[name](graph())
    regularizer.begin(weights)
    given = {key: value.requires_grad_() for key, value in weights.items()}
    (regularizer(given) + 0 * sum(value.sum() for value in given.values())).backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in given.values())
