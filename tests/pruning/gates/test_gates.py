"""What holds of every gate: a user's own joins by a line in `KINDS`."""

from __future__ import annotations

import copy
import pickle
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import espalier
from espalier import GATES, Budget, Gate, gated
from espalier.errors import BudgetInfeasible, ConfigError
from espalier.pruning.gates.gated import PREFIX, Gated
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.slimming.surgery import mask
from tests.pruning.importance.conftest import network as of_the_suite
from tests.pruning.importance.conftest import permuted


class Own(Gate):
    """A user's: the clamped number itself."""

    def start(self, channels: int) -> Tensor:
        return torch.full((1, channels), 0.95)

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        return v[0].clamp(0.01, 1)

    def settled(self, v: Tensor) -> Tensor:
        return v[0].clamp(0.01, 1)

    def opening(self, v: Tensor, t: float) -> Tensor:
        return v[0].clamp(0.01, 1)


KINDS: dict[str, type[Gate]] = {**GATES, "own": Own}
NOT_BY_GRADIENT = ("straight_through",)
"""Whose samples are steps."""


class Transformer(nn.Module):
    """A residual stream under layer norms, with an embedding of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.block(self.embedding(x) + self.positions)).mean(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.cell, self.head = nn.Linear(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(torch.sigmoid(self.before(x)))[0].mean(1))
        return logits


def chain() -> nn.Module:
    """No norm, and a non-linearity that is not zero at zero."""
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 7), nn.Sigmoid(), nn.Linear(7, 3))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "chain": (chain, (6, 6)),
    "transformer": (Transformer, (6, 5, 6)),
    "recurrent": (Recurrent, (6, 5, 6)),
}
ALL = ("small", "resnet20", *NETWORKS)


@cache
def _made(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    if name not in NETWORKS:
        return of_the_suite(name)
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = make().eval(), torch.randn(*shape)
    return model, espalier.trace(model, images), images


def made(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    model, graph, images = _made(name)
    return copy.deepcopy(model), graph, images


class Fixed(Gate):
    """Gates that are given, and do not move."""

    rate = 0.0

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def start(self, channels: int) -> Tensor:
        return self.z[None].clone()

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        return v[0]

    def settled(self, v: Tensor) -> Tensor:
        return v[0]

    def opening(self, v: Tensor, t: float) -> Tensor:
        return v[0]


def train(model: nn.Module, images: Tensor, steps: int = 6, lr: float = 0.02) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    model.train()
    labels = torch.arange(len(images)) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()


def half(graph: ChannelGraph) -> Budget:
    return Budget.of(Budget(macs=0.5), graph)


def run(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(images)
    return result


# -- the distributions


def test_every_gate_has_a_paper() -> None:
    assert all(kind.paper is not None and kind.paper.url for kind in GATES.values())
    assert set(GATES) >= {
        "hard_concrete",
        "continuous_sparsification",
        "straight_through",
        "variational_dropout",
        "bottleneck",
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("t", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(name: str, t: float) -> None:
    gate, generator = KINDS[name](), torch.Generator().manual_seed(0)
    v = gate.start(5).double()
    v = (v + 0.3 * torch.randn(v.shape, generator=generator, dtype=torch.float64) * v.abs()).clamp(-6, 6)
    v, u = v.requires_grad_(), torch.rand(5, generator=generator, dtype=torch.float64)
    functions = [lambda v: gate.opening(v, t), lambda v: gate.settled(v) + gate.opening(v, t), gate.term]
    if name in NOT_BY_GRADIENT:
        (expected,) = torch.autograd.grad(gate.opening(v, t).sum(), v)
        (found,) = torch.autograd.grad(gate.sample(v, u, t).sum(), v)
        assert torch.equal(found, expected) and set(gate.sample(v, u, t).tolist()) <= {0.0, 1.0}
    else:
        functions.append(lambda v: gate.sample(v, u, t))
    for function in functions:
        if function(v).requires_grad:
            assert torch.autograd.gradcheck(function, (v,))


@pytest.mark.parametrize("name", KINDS)
def test_gates_begin_open_and_lie_between_zero_and_one(name: str) -> None:
    gate, generator = KINDS[name](), torch.Generator().manual_seed(0)
    start, u = gate.start(4000), torch.rand(4000, generator=generator)
    assert start.dtype == torch.float32 and start.shape[1] == 4000
    assert float(gate.settled(start).min()) > 0.9 and float(gate.sample(start, u, 0.0).mean()) > 0.85
    v = start + 4 * torch.randn(start.shape, generator=generator)
    for t in (0.0, 0.5, 1.0):
        for z in (gate.sample(v, u, t), gate.settled(v), gate.opening(v, t)):
            assert z.shape == (4000,) and bool(((z >= 0) & (z <= 1)).all())


@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
def test_hard_concrete_is_open_as_often_as_it_says(value: float) -> None:
    gate, v = GATES["hard_concrete"](), torch.full((1, 100_000), value)
    z = gate.sample(v, torch.rand(100_000, generator=torch.Generator().manual_seed(0)), 0.0)
    assert abs(float((z > 0).float().mean()) - float(gate.opening(v, 0.0)[0])) < 0.01
    assert bool((z == 0).any()) and bool((z == 1).any())


@pytest.mark.parametrize("value", [(-3.0, -3.0), (0.0, 0.0), (1.0, 1.0)])
def test_moments_of_the_truncated_log_normal(value: tuple[float, float]) -> None:
    gate, v = GATES["variational_dropout"](), torch.tensor(value)[:, None].expand(2, 400_000)
    z = gate.sample(v, torch.rand(400_000, generator=torch.Generator().manual_seed(0)), 0.0)
    mean, square = float(z.double().mean()), float(z.double().square().mean())
    assert mean == pytest.approx(float(gate.settled(v)[0]), rel=0.02)
    assert mean**2 / square == pytest.approx(float(gate.opening(v, 0.0)[0]), rel=0.02)


def test_sigmoids_grow_steeper_until_they_are_steps() -> None:
    gate, v = GATES["continuous_sparsification"](), torch.tensor([[-0.5, 0.5]])
    slopes = [float(gate.sample(v, v[0], t)[1]) for t in (0.0, 0.5, 1.0)]
    assert slopes == sorted(slopes) and torch.allclose(gate.sample(v, v[0], 1.0), gate.settled(v))


# -- in a network


@pytest.mark.parametrize("name", ALL)
def test_gates_of_one_leave_the_network_as_it_is(name: str) -> None:
    model, graph, images = made(name)
    plain, state = run(model, images), copy.deepcopy(model.state_dict())
    with gated(model, graph, Fixed(torch.ones(graph.n_channels)), Budget(macs=1.0)):
        assert torch.equal(run(model, images), plain)
        assert set(state) <= set(model.state_dict())
        train(model, images, 1, lr=0.0)
    after = model.state_dict()
    assert list(after) == list(state) and not model._forward_pre_hooks and not model._forward_hooks
    weights = dict(model.named_parameters())
    assert all(torch.equal(after[key], state[key]) for key in weights)


@pytest.mark.parametrize("name", ALL)
def test_gates_of_zero_are_channels_that_are_masked(name: str) -> None:
    model, graph, images = made(name)
    keep = torch.rand(graph.n_channels, generator=torch.Generator().manual_seed(1)) < 0.6
    keep[graph.offsets[:-1]] = True
    wanted = run(mask(model, graph, keep), images)
    assert not torch.allclose(run(model, images), wanted, atol=1e-3)
    with gated(model, graph, Fixed(keep.float()), Budget(macs=1.0)):
        assert torch.allclose(run(model, images), wanted, atol=1e-5)
        train(model, images, 1, lr=0.0)


@pytest.mark.parametrize("name", ALL)
def test_gates_are_multiplied_into_the_weights_for_good(name: str) -> None:
    model, graph, images = made(name)
    z = torch.rand(graph.n_channels, generator=torch.Generator().manual_seed(1)) + 0.2
    plain = run(model, images)
    with gated(model, graph, Fixed(z), Budget(macs=1.0)) as gates:
        inside = run(model, images)
        train(model, images, 1, lr=0.0)
        inside = run(model, images)  # the statistics of batch norms have moved
    assert bool(gates.keep.all()) and not torch.allclose(inside, plain, atol=1e-3)
    assert torch.allclose(run(model, images), inside, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_what_is_kept_computes_where_its_gate_was_shut(name: str) -> None:
    """The budget keeps some channels whatever their gates say: with their weights, not as zeros."""
    model, graph, images = made(name)
    few = torch.zeros(graph.n_channels)
    few[graph.offsets[:-1]] = 1.0
    with gated(model, graph, Fixed(few), half(graph)) as gates:
        train(model, images, 1, lr=0.0)
    assert int(gates.keep.sum()) > len(graph.groups)
    writes = {slot.tensor: slot for slot in graph.slots if slot.role == "out"}
    for tensor, slot in writes.items():
        rows = model.get_parameter(tensor).detach().movedim(slot.dim, 0).flatten(1).norm(dim=1)
        kept = graph.kept(slot.channels, gates.keep)
        assert bool((rows[kept] > 0).all())


@pytest.mark.parametrize("network", ALL)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_left_fits_the_budget_and_is_slimmed_as_it_is_masked(name: str, network: str) -> None:
    model, graph, images = made(network)
    budget = half(graph)
    with gated(model, graph, KINDS[name](), budget, steps=6) as gates:
        train(model, images)
    widths, keep = graph.widths(gates.keep), gates.keep
    assert gates.steps == 6 and budget.fits(graph, widths) and bool((widths > 0).all())
    more = widths + np.eye(len(widths), dtype=np.int64)
    assert not budget.fits(graph, more)[widths < graph.sizes].any()  # filled to the last channel
    small = espalier.slim(model, graph, keep)
    assert torch.equal(run(mask(model, graph, keep), images), run(model, images))
    if network != "transformer":  # where layer norms see the zeros; slim compares it with them counted out
        assert torch.allclose(run(small, images), run(model, images), atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_channels_in_another_order(name: str) -> None:
    model, graph, images = made("small")
    generator = torch.Generator().manual_seed(2)
    parts = [
        torch.randperm(size, generator=generator) + int(offset)
        for size, offset in zip(graph.sizes.tolist(), graph.offsets.tolist(), strict=False)
    ]
    order = torch.cat(parts)
    other = copy.deepcopy(model)
    other.load_state_dict(permuted(dict(model.state_dict()), graph, order))
    values, found = KINDS[name]().start(graph.n_channels), list[Any]()
    values = values + torch.randn(values.shape, generator=generator)
    for network, moved in ((model, values), (other, values[:, order])):
        with gated(network, graph, KINDS[name](), half(graph)) as gates:
            network.get_buffer(PREFIX + "values").copy_(moved)
            inside = run(network, images)
            cost = float(gates.costs(moved, 0.5)["macs"])
            network.get_buffer(PREFIX + "steps").fill_(1)  # as if it had been trained
        found.append((inside, cost, gates.keep, run(network, images)))
    (first, cost, keep, left), (second, other_cost, other_keep, other_left) = found
    assert torch.allclose(first, second, atol=1e-5) and cost == pytest.approx(other_cost)
    assert torch.equal(keep[order], other_keep) and torch.allclose(left, other_left, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_expected_costs_end_at_the_budget(name: str) -> None:
    """Without a threshold or strength: the multiplier finds it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU()), torch.randn(24, 6)
        model.append(nn.Linear(40, 3))
    graph = espalier.trace(model, images)
    with gated(model, graph, KINDS[name](), half(graph), steps=150) as gates:
        train(model, images, 150)
    assert gates.expected["macs"] == pytest.approx(half(graph).limits["macs"], rel=0.08)


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("name", ALL)
def test_expected_costs_of_gates_that_are_sure_are_costs(name: str, metric: str) -> None:
    model, graph, _ = made(name)
    keep = torch.rand(graph.n_channels, generator=torch.Generator().manual_seed(1)) < 0.6
    keep[graph.offsets[:-1]] = True
    made_of = Gated(model, graph, Fixed(keep.float()), Budget.of(Budget(**{metric: 0.5}), graph), None, 0)
    cost = getattr(graph, metric)(graph.widths(keep))
    assert float(made_of.costs(keep[None].double(), 0.0)[metric]) == pytest.approx(int(cost))


def test_both_limits_hold_where_there_are_two() -> None:
    model, graph, images = made("small")
    budget = Budget.of(Budget(macs=0.6, params=0.5), graph)
    with gated(model, graph, "hard_concrete", budget, steps=150) as gates:
        train(model, images, 150)
    shares = [gates.expected[metric] / budget.limits[metric] for metric in ("macs", "params")]
    assert max(shares) == pytest.approx(1, abs=0.08) and budget.fits(graph, graph.widths(gates.keep))


# -- in a training


@pytest.mark.parametrize("name", KINDS)
def test_a_training_goes_on_from_its_state_dict(name: str) -> None:
    images = made("small")[2]

    def ended(parts: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
        model, graph, _ = made("small")
        state: dict[str, Tensor] = {}
        for number, steps in enumerate(parts):
            with gated(model, graph, KINDS[name](), half(graph), steps=8) as gates:
                if number:
                    model.load_state_dict(state)
                optimizer = torch.optim.SGD(model.parameters(), 0.05)  # which holds no state
                model.train()
                for _ in range(steps):
                    optimizer.zero_grad()
                    F.cross_entropy(model(images), torch.arange(len(images)) % 3).backward()
                    optimizer.step()
                state = copy.deepcopy(model.state_dict())
            if number + 1 < len(parts):
                model = made("small")[0]
        return model.state_dict(), gates.keep

    (whole, keep), (resumed, other) = ended((8,)), ended((5, 3))
    assert torch.equal(keep, other) and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_noise_depends_on_the_seed_alone() -> None:
    images = made("small")[2]

    def ended(seed: int) -> Tensor:
        model, graph, _ = made("small")
        with gated(model, graph, "hard_concrete", half(graph), seed=seed):
            train(model, images)
            return model.get_buffer(PREFIX + "values").clone()

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = ended(0)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    assert torch.equal(ended(0), first) and not torch.equal(ended(1), first)


def by_closure(model: nn.Module, images: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    model.train()
    for _ in range(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), torch.arange(len(images)) % 3)
            loss.backward()
            return loss

        optimizer.step(closure)
    model.eval()


def scaled(model: nn.Module, images: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(images), torch.arange(len(images)) % 3)).backward()
        scaler.step(optimizer)
        scaler.update()
    model.eval()


def two_optimizers(model: nn.Module, images: Tensor, steps: int) -> None:
    first, *others = model.parameters()
    optimizers = [torch.optim.SGD(part, 0.02, momentum=0.9) for part in ([first], others)]
    model.train()
    for _ in range(steps):
        model.zero_grad()
        F.cross_entropy(model(images), torch.arange(len(images)) % 3).backward()
        for optimizer in optimizers:
            optimizer.step()
    model.eval()


def wrapped(model: nn.Module, images: Tensor, steps: int) -> None:
    train(nn.Sequential(model), images, steps)


@pytest.mark.parametrize("loop", [by_closure, scaled, two_optimizers, wrapped])
@pytest.mark.parametrize("name", ["hard_concrete", "bottleneck"])
def test_every_loop_learns_the_same(name: str, loop: Any) -> None:
    found = []
    for each in (partial(train, steps=5), partial(loop, steps=5)):
        model, graph, images = made("small")
        with gated(model, graph, name, half(graph), steps=5) as gates:
            each(model, images)
            values = model.get_buffer(PREFIX + "values").clone()
        found.append((gates.steps, values, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert found[0][0] == found[1][0] == 5
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5) and torch.allclose(
        found[0][2], found[1][2], atol=1e-5
    )


def test_gradients_of_several_passes_add_up() -> None:
    values = []
    for parts in (1, 2):
        model, graph, images = made("chain")
        with gated(model, graph, "continuous_sparsification", half(graph), steps=5):
            optimizer = torch.optim.SGD(model.train().parameters(), 0.02)
            labels = torch.arange(len(images)) % 3
            for _ in range(5):
                optimizer.zero_grad()
                for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                    (F.cross_entropy(model(x), y) / parts).backward()
                optimizer.step()
            values.append(model.get_buffer(PREFIX + "values").clone())
    assert torch.allclose(values[0], values[1], atol=1e-5)


def test_frozen_weights_and_statistics_stay() -> None:
    model, graph, images = made("small")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with gated(model, graph, "bottleneck", half(graph), steps=6) as gates:
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(images), torch.arange(len(images)) % 3).backward()
            optimizer.step()
        assert model.training and all(torch.equal(model.state_dict()[key], before[key]) for key in before)
        assert float(model.get_buffer(PREFIX + "values").std()) > 0
    wanted = mask(made("small")[0], graph, gates.keep).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_copies_compute_what_the_network_does() -> None:
    model, graph, images = made("small")
    with gated(model, graph, "hard_concrete", half(graph)):
        train(model, images)
        copied = copy.deepcopy(model)
        assert torch.equal(run(copied, images), run(model, images))
        averaged = torch.optim.swa_utils.AveragedModel(model)
        assert torch.equal(run(averaged, images), run(model, images))
        with pytest.raises(ConfigError, match=r"cannot be pickled while it is gated: save its state_dict$"):
            pickle.dumps(model)
    run(model, images)
    with pytest.raises(ConfigError, match="in the block alone: use the network itself"):
        run(copied, images)


def test_shared_weights_are_gated_wherever_they_are() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.again.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.relu(self.again(torch.relu(self.first(x)))))
            return logits

    model = Tied().eval()
    graph, images = espalier.trace(model, torch.randn(4, 6)), torch.randn(4, 6)
    keep = torch.ones(graph.n_channels, dtype=torch.bool)
    keep[1::2] = False
    wanted = run(mask(model, graph, keep), images)
    with gated(model, graph, Fixed(keep.float()), Budget(macs=1.0)):
        assert torch.allclose(run(model, images), wanted, atol=1e-6)
        train(model, images, 1, lr=0.0)


# -- what is refused


def test_what_cannot_be_is_told_in_a_line() -> None:
    model, graph, _ = made("small")
    with pytest.raises(ConfigError, match=r"gate must be one of hard_concrete, .* or a Gate, got 'soft'"):
        gated(model, graph, "soft", half(graph)).__enter__()
    with pytest.raises(ConfigError, match="driven to MACs and parameters, and the budget limits peak_memory"):
        gated(model, graph, "bottleneck", Budget(macs=0.5, peak_memory=0.5)).__enter__()
    with pytest.raises(ConfigError, match="this one limits nothing"):
        gated(model, graph, "bottleneck", Budget()).__enter__()
    with pytest.raises(BudgetInfeasible, match="cannot be reached"):
        gated(model, graph, "bottleneck", 1).__enter__()
    with pytest.raises(ConfigError, match="the graph must be that of the network"):
        gated(chain(), graph, "bottleneck", half(graph)).__enter__()
    with pytest.raises(ConfigError, match="blocks cannot lie within each other"):
        with gated(model, graph, "bottleneck", half(graph)), gated(model, graph, "bottleneck", half(graph)):
            pass
    assert not any(name.startswith(PREFIX) for name in model.state_dict()) and not model._forward_pre_hooks


def test_a_block_without_a_training_warns() -> None:
    model, graph, _ = made("small")
    with pytest.warns(UserWarning, match="no optimiser has stepped a weight of the network after a pass of it"):
        with gated(model, graph, "hard_concrete", half(graph)):
            pass


def test_an_error_within_the_block_leaves_the_weights() -> None:
    model, graph, images = made("small")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(ZeroDivisionError):
        with gated(model, graph, "hard_concrete", half(graph)):
            run(model, images)
            raise ZeroDivisionError
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(name.startswith(PREFIX) for name in model.state_dict())


class _Stopping(nn.ReLU):
    """A layer in whose pass somebody presses Ctrl-C."""

    on = False

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("name", ["hard_concrete", "bottleneck"])
def test_a_pass_that_is_interrupted_leaves_the_network_whole(name: str) -> None:
    layers: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), _Stopping(), nn.Conv2d(8, 4, 3)).train()
    images = torch.randn(2, 3, 8, 8)
    graph = espalier.trace(layers.eval(), images[:1])
    layers.train()
    with pytest.raises(KeyboardInterrupt), gated(layers, graph, name, half(graph)):
        layers[2].on = True
        layers(images)
    assert all("weight" not in vars(module) and module.training for module in layers.modules())


def test_gradients_that_the_loop_throws_away_do_not_reach_the_gates() -> None:
    def learned(thrown: float | None) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        graph = espalier.trace(model, images[:1])
        with gated(model.train(), graph, "bottleneck", half(graph), steps=4) as gates:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            if thrown is not None:
                (thrown * model(images).sum()).backward()
                optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
            values = model.get_buffer(f"{PREFIX}mean").clone()
        assert gates.steps == 1
        return values

    for thrown in (1e6, float("nan")):
        torch.testing.assert_close(learned(thrown), learned(None))


@pytest.mark.parametrize("steps", [0, -5, 2.5, "a"])
def test_steps_that_are_none(steps: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    graph = espalier.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="steps must be a whole number"):
        gated(model, graph, "hard_concrete", half(graph), steps=steps).__enter__()


@pytest.mark.parametrize("budget", [0.5, "0.5", True])
def test_a_share_is_no_budget(budget: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    graph = espalier.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"half is Budget\(macs=0.5\)"):
        gated(model, graph, "hard_concrete", budget).__enter__()


def test_replicas_and_computed_weights_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    graph = espalier.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.warns(UserWarning, match="no optimiser"), gated(model, graph, "hard_concrete", half(graph)):
        replica = copy.deepcopy(model)
        vars(replica)["_is_replica"] = True
        with pytest.raises(ConfigError, match="DataParallel uses several"):
            replica(torch.zeros(1, 3, 8, 8))
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    for layer in (normed[0], normed[2]):
        nn.utils.parametrizations.weight_norm(layer)
    graph = espalier.trace(normed, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="computed from other tensors, as by weight norm"):
        gated(normed, graph, "hard_concrete", half(graph)).__enter__()
