"""Shared weights: a pass is that of the slimmed network, and nothing of it is left behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import espalier
from espalier.errors import ConfigError
from espalier.pruning.gates.gated import gated
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.slimming.surgery import slices_of
from espalier.pruning.supernet.shared_weights import GENERATOR, STEPS, generator_in, weights_shared
from espalier.pruning.trace import trace
from tests.pruning.gates.test_gates import ALL, made

Draw = Callable[[np.random.Generator], Tensor]


def drawn(graph: ChannelGraph) -> Draw:
    """Any widths from 1, and any channels."""

    def draw(generator: np.random.Generator) -> Tensor:
        scores = generator.random(graph.n_channels)
        widths = np.array([generator.integers(1, size + 1) for size in graph.sizes])
        return graph.keep_best(scores, widths)

    return draw


def held(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def assert_same(model: nn.Module, plain: nn.Module) -> None:
    """Parameters, attributes and names of buffers are those of another network, and there are no hooks."""
    assert held(model).keys() == held(plain).keys()
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        own = {key: value for key, value in vars(module).items() if isinstance(value, int | tuple)}
        assert own | {"training": None} == {key: vars(other)[key] for key in own} | {"training": None}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("name", ALL)
def test_a_pass_and_its_gradient_are_those_of_the_slimmed_network(name: str) -> None:
    model, graph, inputs = made(name)
    keep = drawn(graph)(np.random.default_rng(1))
    small = without_dropout(espalier.slim(model, graph, keep))
    wanted = small(inputs)
    wanted.square().sum().backward()
    with weights_shared(without_dropout(model), graph, lambda _: keep):
        found = model(inputs)
        found.square().sum().backward()
    torch.testing.assert_close(found, wanted)
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    others = {name: tensor for name, tensor in held(model).items() if name not in gradients}
    left = slices_of(gradients | others, graph, keep)
    rescaled = {rescaling.tensor for rescaling in graph.rescalings}  # by constants, as their gradients are
    for name, parameter in small.named_parameters():
        if name not in rescaled:
            own = left.get(name, gradients.get(name))
            torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ALL)
def test_what_is_cut_off_has_no_gradient_and_keeps_its_statistics(name: str) -> None:
    model, graph, inputs = made(name)
    keep = drawn(graph)(np.random.default_rng(2))
    before = {name: tensor.clone() for name, tensor in held(model).items()}
    small = without_dropout(espalier.slim(model, graph, keep))
    small(inputs)
    with weights_shared(without_dropout(model), graph, lambda _: keep):
        model(inputs).sum().backward()
    numbered = {n: torch.arange(t.numel()).view(t.shape).double() for n, t in before.items()}
    rescaled = {rescaling.tensor for rescaling in graph.rescalings}
    places = {n: kept.long().flatten() for n, kept in slices_of(numbered, graph, keep).items() if n not in rescaled}
    assert places
    for name, place in places.items():
        cut_off = torch.ones(before[name].numel(), dtype=torch.bool)
        cut_off[place] = False
        now = held(model)[name].detach().flatten()
        if name in dict(model.named_parameters()):
            gradient = model.get_parameter(name).grad
            assert gradient is None or not gradient.flatten()[cut_off].any()
        else:
            assert torch.equal(now[cut_off], before[name].flatten()[cut_off])
            torch.testing.assert_close(now[place], small.get_buffer(name).flatten())


@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_the_network_is_its_own_afterwards(name: str, generator: bool) -> None:
    model, graph, inputs = made(name)
    plain = copy.deepcopy(model)
    with weights_shared(model.train(), graph, drawn(graph), generator=generator):
        model(inputs)
        with pytest.raises(RuntimeError):
            model(inputs.to(torch.int8))  # a pass that fails
        with torch.no_grad():
            whole = copy.deepcopy(model).eval()(inputs)  # runs whole, as does a copy
        assert whole.shape == plain(inputs).shape
    assert_same(model, plain)


def trained(
    model: nn.Module, graph: ChannelGraph, inputs: Tensor, steps: int, *, stop: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Shared weights after so many steps; interrupted, and gone on with from a checkpoint, behind one of them."""
    kept: tuple[dict[str, Tensor], dict[str, object]] | None = None
    for first, last in ((0, steps),) if stop is None else ((0, stop), (stop, steps)):
        network = copy.deepcopy(model).train()
        with weights_shared(network, graph, drawn(graph), generator=True, seed=seed) as shared:
            optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
            if kept is not None:
                network.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
            for _ in range(first, last):
                optimizer.zero_grad()
                network(inputs).square().mean().backward()
                optimizer.step()
            kept = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    return shared.tensors


def test_it_goes_on_from_a_checkpoint_to_the_last_bit() -> None:
    model, graph, inputs = made("small")
    once, again = trained(model, graph, inputs, 6), trained(model, graph, inputs, 6, stop=3)
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(
        not torch.equal(once[name], tensor) for name, tensor in trained(model, graph, inputs, 6, seed=1).items()
    )


def test_a_generator_begins_with_the_networks_own_weights_and_learns_others_for_other_widths() -> None:
    model, graph, inputs = made("resnet20")
    weights = held(model)
    with weights_shared(copy.deepcopy(model), graph, drawn(graph), generator=True) as begun:
        pass
    generator = generator_in(begun.tensors, graph, model)
    assert generator is not None
    wide, narrow = (drawn(graph)(np.random.default_rng(seed)) for seed in (3, 4))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in generator(weights, wide).items())
    shared = trained(model, graph, inputs, 3)
    generator = generator_in(shared, graph, model)
    assert generator is not None
    own = {name: tensor for name, tensor in shared.items() if not name.startswith(GENERATOR)}
    of_wide, of_narrow = generator(own, wide), generator(own, narrow)
    assert any(not torch.equal(of_wide[name], of_narrow[name]) for name in own)
    assert {name for name in own if not torch.equal(of_wide[name], own[name])} <= {
        name for name, tensor in own.items() if tensor.dim() > 1
    }


def test_passes_between_two_steps_have_other_widths() -> None:
    model, graph, inputs = made("chain")
    seen = []

    def draw(generator: np.random.Generator) -> Tensor:
        seen.append(drawn(graph)(generator))
        return seen[-1]

    with weights_shared(model.train(), graph, draw):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(inputs).sum().backward()
        optimizer.step()
        assert int(model.get_buffer(STEPS)) == 1
        model(inputs).sum().backward()
    assert len({tuple(keep.tolist()) for keep in seen}) == 3


def test_what_cannot_be_sliced_is_refused() -> None:
    model, graph, inputs = made("chain")
    nn.utils.parametrizations.weight_norm(model.get_submodule("2"))
    with pytest.raises(ConfigError, match=r"2\.\S+ is computed from other tensors|graph must be that"):
        with weights_shared(model.train(), graph, drawn(graph)):
            model(inputs)
    for name in ALL:
        model, graph, inputs = made(name)
        plain = copy.deepcopy(model)
        with pytest.raises(ConfigError, match="one of 0 was drawn"):
            with weights_shared(model.train(), graph, nothing(graph), generator=True):
                model(inputs)
        assert_same(model, plain)


def nothing(graph: ChannelGraph) -> Draw:
    return lambda _: torch.zeros(graph.n_channels, dtype=torch.bool)


def test_a_graph_of_another_network_leaves_the_network_as_it_was() -> None:
    (_, graph, inputs), (other, _, _) = made("small"), made("resnet20")
    plain = copy.deepcopy(other)
    with pytest.raises(ConfigError, match="the graph must be that of the network"):
        with weights_shared(other.train(), graph, drawn(graph)):
            other(inputs)
    assert_same(other, plain)


def test_blocks_do_not_lie_within_each_other() -> None:
    model, graph, _ = made("chain")
    with weights_shared(model.train(), graph, drawn(graph)):
        with pytest.raises(ConfigError, match="are shared already"), weights_shared(model, graph, drawn(graph)):
            pass


class Recomputing(nn.Module):
    """Two layers between which the width is whole, the first of them computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        self.head, self.reentrant = nn.Conv2d(2, 3, 1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        kept = checkpoint(self.block, x, use_reentrant=self.reentrant) if self.training else self.block(x)
        found: Tensor = self.head(kept)
        return found


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("changed", ["shared", "gated"])
def test_layers_that_are_computed_again_are_refused(changed: str, reentrant: bool) -> None:
    """They would run with the whole weights then, and gradients be wrong without a word."""
    model = Recomputing(reentrant=reentrant).eval()
    inputs = torch.randn(2, 2, 4, 4, requires_grad=True)
    graph = trace(model, inputs.detach())
    plain = copy.deepcopy(model)
    block = (
        weights_shared(model.train(), graph, drawn(graph))
        if changed == "shared"
        else gated(model.train(), graph, "hard_concrete", Budget(macs=0.8))
    )
    with pytest.raises(ConfigError, match="turn gradient checkpointing off"), block:
        model(inputs).sum().backward()
    assert_same(model, plain)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_copies_and_other_passes_in_the_backward_pass_are_not_refused() -> None:
    """A copy may checkpoint its own layers, in the block and behind it; a hook on gradients may ask the network."""
    model = Recomputing(reentrant=True)
    inputs = torch.randn(2, 2, 4, 4, requires_grad=True)
    graph = trace(model.eval(), inputs.detach())
    with weights_shared(model.train(), graph, drawn(graph)):
        copied, part = copy.deepcopy(model), pickle.loads(pickle.dumps(model.block))
        copied(inputs).sum().backward()
        assert isinstance(part, nn.Sequential) and len(part) == 3
        other = inputs.detach().clone().requires_grad_()
        other.register_hook(lambda gradient: model.eval()(gradient).sum() + gradient)
        (other * 2).sum().backward()
    copied(inputs).sum().backward()


def test_layers_whose_weights_are_used_by_another_are_watched_too() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(nn.functional.linear(x, self.inner.weight).relu(), self.outer.weight)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Functional(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            kept = checkpoint(self.block, x, use_reentrant=True) if self.training else self.block(x)
            found: Tensor = self.head(kept)
            return found

    model, inputs = Whole().eval(), torch.randn(3, 4, requires_grad=True)
    graph = trace(model, inputs.detach())
    with pytest.raises(ConfigError, match="turn gradient checkpointing off"):
        with gated(model.train(), graph, "hard_concrete", Budget(macs=0.8)):
            model(inputs).sum().backward()


class Moving(nn.Module):
    """Keeps a mean in a buffer that it assigns, and another one that it writes to, laid out with channels last."""

    assigned: Tensor
    written: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)
        self.register_buffer("assigned", torch.ones(1, 6, 1, 1))
        self.register_buffer("written", torch.ones(1, 6, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) * self.assigned * self.written
        if self.training:
            self.assigned = self.assigned * 0.5
            self.written.mul_(0.25)
        found: Tensor = self.head(x)
        return found


def test_buffers_may_be_assigned_and_lie_in_any_order() -> None:
    model, inputs = Moving().eval(), torch.randn(2, 2, 2, 2)
    graph = espalier.trace(model, inputs)
    keep = torch.tensor([True, False, True, True, False, False])
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with weights_shared(model.train(), graph, lambda _: keep):
        model(inputs.double().float()).sum()
    for buffer, factor in ((model.assigned, 0.5), (model.written, 0.25)):
        assert torch.equal(buffer, torch.where(keep.view(1, 6, 1, 1), factor, 1.0).expand_as(buffer))
    assert model.written.is_contiguous(memory_format=torch.channels_last)


def test_steps_that_follow_no_such_pass_are_not_counted() -> None:
    model, graph, inputs = made("chain")
    with weights_shared(model.eval(), graph, drawn(graph)) as shared:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(inputs).sum().backward()
        optimizer.step()
        model.train()
        for _ in range(2):
            model(inputs).sum().backward()
            optimizer.step()
    assert shared.steps == 2
