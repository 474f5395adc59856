"""Criteria against loops over single filters, and what leaves a network as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.criteria import CRITERIA, folded, folded_energy
from espalier.pruning.importance.criterion import Criterion, by_removal
from espalier.pruning.importance.gradients import synflow, taylor
from espalier.pruning.importance.normalizations import NORMALIZATIONS, normalize
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import assign, mask, silence
from espalier.pruning.trace import trace
from tests.pruning.importance.conftest import network as small_network
from tests.pruning.importance.conftest import permuted

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str = "resnet20") -> tuple[nn.Module, ChannelGraph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.weight, 1, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval(), trace(model, IMAGES[:1])


def scores(name: str, model: nn.Module, graph: ChannelGraph) -> Tensor:
    supplies: dict[str, Any] = {
        "loss": lambda m: nn.functional.cross_entropy(m(IMAGES), torch.arange(4)),
        "batches": [IMAGES[:3], IMAGES[3:]],
        "generator": torch.Generator().manual_seed(0),
    }
    criterion = CRITERIA[name]
    return replace(criterion, iterations=min(4, criterion.iterations))(model, graph, **supplies)


def slices(model: nn.Module, graph: ChannelGraph, roles: tuple[str, ...]) -> list[list[Tensor]]:
    return slices_of(dict(model.named_parameters()), graph, roles)


def slices_of(weights: Mapping[str, Tensor], graph: ChannelGraph, roles: tuple[str, ...]) -> list[list[Tensor]]:
    return [
        [
            weights[member.tensor].detach().select(member.dim, position)
            for member in group.members
            if member.role in roles
            for position in member.positions[member.channels == channel].tolist()
        ]
        for group in graph.groups
        for channel in range(group.size)
    ]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_number_for_every_channel_and_the_network_untouched(name: str) -> None:
    model, graph = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first, again = scores(name, model, graph), scores(name, model, graph)
    assert first.shape == (graph.n_channels,) and bool(first.isfinite().all()) and bool((first >= 0).all())
    assert torch.equal(first, again) and len(first.unique()) > graph.n_channels // (8 if name == "hrank" else 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "roles", "value"),
    [
        ("energy", ("out", "in", "depthwise"), lambda parts: sum(p.square().sum() for p in parts)),
        ("l1", ("out", "depthwise"), lambda parts: sum(p.abs().sum() for p in parts)),
        ("l2", ("out", "depthwise"), lambda parts: sum(p.square().sum() for p in parts) ** 0.5),
        ("bn_scale", ("norm",), lambda parts: sum(p.abs() for p in parts)),
    ],
)
@pytest.mark.parametrize("which", ["resnet20", "mobilenet_v2"])
def test_filter_by_filter(which: str, name: str, roles: tuple[str, ...], value: Any) -> None:
    model, graph = network(which)
    expected = torch.stack([torch.as_tensor(value(parts)) for parts in slices(model, graph, roles)])
    torch.testing.assert_close(scores(name, model, graph), expected, rtol=1e-4, atol=1e-6)


def test_the_geometric_median_filter_by_filter() -> None:
    model, graph = network("vgg11_bn")
    group = graph.groups[2]
    weight = dict(model.named_parameters())[group.members[0].tensor].detach().flatten(1)
    expected = torch.stack([(weight - one).norm(dim=1).sum() for one in weight])
    start, end = graph.offsets[2:4]
    torch.testing.assert_close(scores("fpgm", model, graph)[start:end], expected, rtol=1e-3, atol=1e-3)


def test_taylor_is_the_slope_along_the_channel() -> None:
    """d/de L((1 - e) W_c) at 0, by a small step."""
    model, graph = network()
    model.double()

    def loss(candidate: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(candidate(IMAGES.double()), torch.arange(4))

    found = taylor(model, graph, loss)
    for channel in (0, 37, 200):
        parts = slices(model, graph, ("out", "in", "depthwise"))[channel]
        values = []
        for factor in (1 - 1e-6, (1 + 1e-6) / (1 - 1e-6)):
            for part in parts:
                part.mul_(factor)
            values.append(float(loss(model).detach()))
        for part in parts:
            part.div_(1 + 1e-6)
        assert abs(values[1] - values[0]) / 2e-6 == pytest.approx(float(found[channel]), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("which", ["resnet20", "vgg11_bn", "mobilenet_v2"])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_folded_energy_does_not_see_what_batch_norm_takes_back(which: str, per: str) -> None:
    """A convolution times s, its running mean times s, its variance times s^2: the same network."""
    model, graph = network(which)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    with torch.no_grad():
        outputs, raw, invariant = model(IMAGES), scores("energy", model, graph), folded_energy(model, graph)
        modules = list(model.modules())
        generator = torch.Generator().manual_seed(2)
        for conv, norm in pairwise(modules):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                size = 1 if per == "layer" else conv.out_channels
                s = torch.rand(size, generator=generator) * 3 + 0.3
                conv.weight.mul_(s.view(-1, 1, 1, 1))
                if conv.bias is not None:
                    conv.bias.mul_(s)
                norm.running_mean.mul_(s)
                norm.running_var.mul_(s.square())
        torch.testing.assert_close(model(IMAGES), outputs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(folded_energy(model, graph), invariant, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(scores("energy", model, graph), raw, rtol=0.1)


def test_folded_weights_are_those_of_the_network_without_norms() -> None:
    model, graph = network("vgg11_bn")
    conv, norm = (model.get_submodule(f"features.{n}") for n in (0, 1))
    weights = folded(model, graph)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain = nn.functional.conv2d(x, weights["features.0.weight"], padding=1)
        differences = norm(conv(x)) - plain
    spread = differences.flatten(2).transpose(1, 2)  # what is left is a constant per channel
    torch.testing.assert_close(spread, spread[:1, :1].expand_as(spread), rtol=1e-3, atol=1e-4)


def test_bn_scale_needs_norms() -> None:
    model = build("vgg11_bn")
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ConfigError, match="bn_scale ranks channels by the scale of their norm, and 0 has none"):
        scores("bn_scale", plain, trace(plain, IMAGES[:1]))
    assert scores("bn_scale", model, trace(model, torch.zeros(1, 3, 32, 32))).min() > 0


# ------------------------------------------------------------------------ conformance: an entry of the table joins

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class Plain(nn.Module):
    """No norms, one layer that is called twice, and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.twice(torch.relu(self.twice(y))))
        given: Tensor = self.last(y.mean((2, 3)))
        return given


def plain() -> tuple[Plain, ChannelGraph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Plain().eval()
    return model, trace(model, SMALL_IMAGES[:1])


SMALL_IMAGES = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def supplied(name: str, model: nn.Module, graph: ChannelGraph, images: Tensor, iterations: int = 5) -> Tensor:
    """Scores by a criterion, at most so many times, of a network that takes images."""
    supplies: dict[str, Any] = {
        "loss": lambda m: m(images).square().mean(),
        "batches": [images[:1], images[1:]],
        "generator": torch.Generator().manual_seed(0),
    }
    criterion = CRITERIA[name]
    return replace(criterion, iterations=min(iterations, criterion.iterations))(model, graph, **supplies)


@pytest.mark.parametrize("name", [name for name, each in CRITERIA.items() if "generator" not in each.needs])
@pytest.mark.parametrize("which", ["small", "resnet20"])
def test_permuting_channels_permutes_scores(name: str, which: str) -> None:
    model, graph, images = small_network(which)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    state = {key: tensor.detach() for key, tensor in tensors.items()}
    if (which, name) == ("small", "bn_scale"):  # has a group without a norm
        return
    before = supplied(name, model, graph, images)
    assert float(before.max()) > 0
    for start, end in list(pairwise(graph.offsets.tolist()))[:2]:
        order = torch.arange(graph.n_channels)
        order[start:end] = order[start:end].roll(1)
        other = copy.deepcopy(model)
        assign(other, permuted(state, graph, order), {})
        with torch.no_grad():
            torch.testing.assert_close(other(images), model(images), rtol=1e-4, atol=1e-4)
        after = supplied(name, other, graph, images)
        torch.testing.assert_close(after, before[order], rtol=1e-3, atol=1e-3 * float(before.max()))


@pytest.mark.parametrize("name", CRITERIA)
def test_dead_channels_have_finite_scores(name: str) -> None:
    """Their weights zero, their norms without variance; all but one channel of a group too."""
    model, graph = network()
    alive = torch.ones(graph.n_channels, dtype=torch.bool)
    alive[1:16] = alive[20:24] = False
    with torch.no_grad():
        silence(model, graph, alive)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var[module.weight == 0] = 0
    found = supplied(name, model, graph, IMAGES)
    assert bool(found.isfinite().all()) and bool((found >= 0).all())
    if name not in ("random", "fpgm", "grasp"):  # a filter of zeros is far from others; a shift has no zero
        assert float(found[~alive].max()) <= float(found[alive].max())


@pytest.mark.parametrize("name", CRITERIA)
def test_a_network_without_norms_is_scored_or_refused_in_one_line(name: str) -> None:
    model, graph = plain()
    if name == "bn_scale":
        with pytest.raises(ConfigError, match="bn_scale ranks channels by the scale of their norm"):
            supplied(name, model, graph, SMALL_IMAGES)
        return
    found = supplied(name, model, graph, SMALL_IMAGES)
    assert found.shape == (8,) and bool(found.isfinite().all()) and bool((found >= 0).all())


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_a_cut_by_any_criterion_fills_the_budget(name: str, how: str) -> None:
    model, graph = network()
    budget = int(graph.macs(graph.sizes)) // 3
    key = name, graph.digest
    if key not in _scored:
        _scored[key] = supplied(name, model, graph, IMAGES).double().numpy()
    widths = greedy(graph, normalize(_scored[key], graph, how), budget)
    assert graph.macs(widths) <= budget and (widths >= 1).all()
    wider = widths + np.eye(len(widths), dtype=np.int64)
    assert (graph.macs(wider) > budget)[widths < graph.sizes].all()


_scored: dict[tuple[str, str], Any] = {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CRITERIA)
def test_float32_on_any_device_gives_what_float64_gives(name: str, device: str) -> None:
    model, graph, images = small_network("resnet20" if name == "bn_scale" else "small")
    wide = supplied(name, copy.deepcopy(model).double(), graph, images.double())
    found = supplied(name, copy.deepcopy(model).to(device), graph, images.to(device))
    torch.testing.assert_close(found.cpu().double(), wide.double(), rtol=1e-3, atol=1e-3 * float(wide.max()))


# ----------------------------------------------------------------------------- those that differentiate


def test_connection_sensitivity_weight_by_weight() -> None:
    model, graph = network()
    loss = nn.functional.cross_entropy(model(IMAGES), torch.arange(4))
    named = dict(model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    sizes = {key: (gradients[key] * weight).abs() for key, weight in named.items()}
    parts = slices_of(sizes, graph, ("out", "in", "depthwise"))
    expected = torch.stack([torch.stack([part.sum() for part in own]).sum() for own in parts])
    torch.testing.assert_close(scores("snip", model, graph), expected, rtol=1e-4, atol=1e-6)


def test_gradient_flow_by_small_steps() -> None:
    """d/de ||g(w)||^2 / 2 along w_c is w_c H g."""
    model, graph = plain()
    model = model.double()
    images = SMALL_IMAGES.double()

    def loss(m: nn.Module) -> Tensor:
        given: Tensor = m(images).exp().mean()
        return given

    def flow() -> float:
        weights = [p for p in model.parameters() if p.dim() > 1]
        return 0.5 * sum(float(g.square().sum()) for g in torch.autograd.grad(loss(model), weights))

    found = CRITERIA["grasp"](model, graph, loss=loss)
    slopes = []
    for parts in slices(model, graph, ("out", "in")):
        values = []
        for factor in (1 - 1e-6, (1 + 1e-6) / (1 - 1e-6)):
            for part in parts:
                part.mul_(factor)
            values.append(flow())
        for part in parts:
            part.div_(1 + 1e-6)
        slopes.append((values[1] - values[0]) / 2e-6)
    expected = torch.tensor(slopes, dtype=torch.float64)
    # A weight that a channel writes and reads is in two slices, and is moved twice.
    torch.testing.assert_close(found, expected - expected.min(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_second_order_is_exact_where_the_hessian_is_diagonal() -> None:
    model, graph = network()

    def loss(m: nn.Module) -> Tensor:
        return torch.stack([(k + 1) * p.square().sum() for k, p in enumerate(m.parameters())]).sum()

    found = CRITERIA["obd_c"](model, graph, loss=loss, generator=torch.Generator().manual_seed(3))
    factor = {key: k + 1 for k, (key, _) in enumerate(model.named_parameters())}
    halves = {key: factor[key] * weight.square() for key, weight in model.named_parameters()}
    parts = slices_of(halves, graph, ("out", "in", "depthwise"))
    expected = torch.stack([torch.stack([part.sum() for part in own]).sum() for own in parts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_second_order_is_zero_for_a_linear_loss() -> None:
    model, graph = network()
    found = CRITERIA["obd_c"](
        model,
        graph,
        loss=lambda m: m.get_parameter("linear.weight").sum(),
        generator=torch.Generator().manual_seed(0),
    )
    assert (
        not found.any()
        and not CRITERIA["grasp"](model, graph, loss=lambda m: m.get_parameter("linear.weight").sum()).any()
    )


def test_synaptic_flow_of_a_chain() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    graph = trace(model, torch.randn(1, 4))
    first, second = (model.get_parameter(f"{k}.weight").detach().abs().double() for k in (0, 2))
    expected = 2 * first.sum(1) * second.sum(0)  # what flows in, flows out
    torch.testing.assert_close(synflow(model, graph), expected / expected.max())


def test_the_fisher_information_of_masks() -> None:
    """Per example, by small steps of a mask that all readers of the channel have in common."""
    model, graph = plain()
    model = model.double()
    images = SMALL_IMAGES.double()
    found = CRITERIA["fisher"](model, graph, loss=lambda m: m(images).square().sum(1).mean())
    mask = torch.ones(8, dtype=torch.float64)
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: (args[0] * mask.view(1, -1, *[1] * (args[0].dim() - 2)),))
        for layer in (model.twice, model.last)
    ]
    for channel in range(8):
        values = []
        for value in (1 - 1e-6, 1 + 1e-6):
            mask[channel] = value
            with torch.no_grad():
                values.append(model(images).square().sum(1))
        mask[channel] = 1
        expected = ((values[1] - values[0]) / 2e-6).square().mean()
        assert float(found[channel]) == pytest.approx(float(expected), rel=1e-5)
    for hook in hooks:
        hook.remove()


# ------------------------------------------------------------------------------ those that look at activations


def reading(images: Tensor) -> tuple[nn.Module, ChannelGraph, Tensor]:
    """A network whose last layer reads the images as they are."""
    channels = images.shape[1]
    model = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.Conv2d(channels, 2, 1)).eval()
    nn.init.eye_(model.get_parameter("0.weight").data.view(channels, channels))
    return model, trace(model, images[:1]), images


def test_activations_by_hand() -> None:
    model, graph, images = reading(torch.randn(5, 3, 4, 4).relu())
    batches = [images[:2], images[2:]]
    zeros = CRITERIA["apoz"](model, graph, batches=batches)
    torch.testing.assert_close(zeros.float(), (images > 0).float().mean((0, 2, 3)))
    means = CRITERIA["mean_activation"](model, graph, batches=batches)
    torch.testing.assert_close(means.float(), images.mean((0, 2, 3)))


def test_the_mean_over_readers_and_over_positions() -> None:
    model, graph, images = small_network("small")
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda _, args, path=path: seen.update({path: args[0]}))
        for path in ("depthwise", "grouped", "residual", "head")
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    found = CRITERIA["mean_activation"](model, graph, batches=[images])
    sizes = {path: value.abs().mean(0) for path, value in seen.items()}
    stem = [sizes["depthwise"][k::2].mean() for k in (0, 1)]  # two pairs, as the grouped convolution has it
    behind = [sizes["grouped"].view(4, 2, 2, 2)[k::2].mean() for k in (0, 1)]
    torch.testing.assert_close(found[:2].float(), (torch.stack(stem) + torch.stack(behind)) / 2)
    residual = sizes["residual"].mean((1, 2)).view(2, 3).mean(0)
    flattened = sizes["head"].view(8, 4)[2:].mean(1).view(2, 3).mean(0)
    torch.testing.assert_close(found[2:].float(), (residual + flattened) / 2)


def test_ranks_of_feature_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(6, 5, r, generator=generator) @ torch.randn(6, r, 7, generator=generator) for r in (1, 2, 4)
    ]
    model, graph, images = reading(torch.stack([*maps, torch.zeros(6, 5, 7)], 1))
    assert CRITERIA["hrank"](model, graph, batches=[images]).tolist() == [1, 2, 4, 0]


@pytest.mark.parametrize("side", [1, 2, 5])
def test_independence_of_channels(side: int) -> None:
    """More channels than positions, and fewer; against singular values of every masked matrix."""
    model, graph, images = reading(torch.randn(3, 6, side, side, generator=torch.Generator().manual_seed(0)))
    rows = images.flatten(2).double()
    whole = torch.linalg.svdvals(rows).sum(-1)
    expected = []
    for channel in range(6):
        masked = rows.clone()
        masked[:, channel] = 0
        expected.append((whole - torch.linalg.svdvals(masked).sum(-1)).mean())
    torch.testing.assert_close(CRITERIA["chip"](model, graph, batches=[images]), torch.stack(expected))


def test_attention_leaves_what_harms_the_loss() -> None:
    """Of three channels one carries the answer, one nothing, and one noise of the same size."""
    generator = torch.Generator().manual_seed(0)
    answers, noise = torch.randn(2, 200, generator=generator)
    inputs = torch.stack([answers, torch.zeros(200), noise], 1)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.eye(3))
        model.get_parameter("1.weight").copy_(torch.ones(1, 3))
    graph = trace(model, inputs[:1])
    found = CRITERIA["pcas"](model, graph, loss=lambda m: (m(inputs)[:, 0] - answers).square().mean())
    answer, nothing, harm = found.tolist()
    assert answer > nothing > harm
    assert nothing == pytest.approx(float(torch.sigmoid(torch.tensor(3.0)))) and harm < 0.5


def test_groups_that_no_layer_reads_are_named() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            given: Tensor = (self.left(x) * self.right(x)).sum(1)
            return given

    model = Gated().eval()
    graph = trace(model, torch.randn(2, 4))
    said = r"no layer with weights reads the channels of left: choose a criterion of weights, such as energy"
    for name in ("apoz", "mean_activation", "hrank", "chip"):
        with pytest.raises(ConfigError, match=said):
            CRITERIA[name](model, graph, batches=[torch.randn(3, 4)])
        with pytest.raises(ConfigError, match="batches of inputs, and there are none"):
            CRITERIA[name](model, graph, batches=[])
    for name in ("fisher", "pcas"):
        with pytest.raises(ConfigError, match=said):
            CRITERIA[name](model, graph, loss=lambda m: m(torch.randn(3, 4)).mean())


# ----------------------------------------------------------------------------------- scored again as channels go


def test_one_by_one_against_a_slow_reference() -> None:
    """Energy of what is left, the least removed, again and again; the best of every group stays."""
    model, graph, _ = small_network("small")
    found = by_removal(lambda m: CRITERIA["energy"](m, graph), model, graph, 1000)
    alive, order = torch.ones(graph.n_channels, dtype=torch.bool), []
    while alive.sum() > len(graph.groups):
        cut = mask(model, graph, alive)
        left = CRITERIA["energy"](cut, graph)
        best = [int(graph.offsets[g] + left[graph.offsets[g] : graph.offsets[g + 1]].argmax()) for g in range(2)]
        left[~alive] = torch.inf
        left[best] = torch.inf
        order.append(int(left.argmin()))
        alive[order[-1]] = False
    left = CRITERIA["energy"](mask(model, graph, alive), graph)
    order += sorted(alive.nonzero()[:, 0].tolist(), key=lambda channel: float(left[channel]))
    assert found.argsort().tolist() == order
    assert sorted(found.tolist()) == pytest.approx([(k + 1) / len(order) for k in range(len(order))])


def test_every_step_takes_the_same_share_and_sees_what_is_left() -> None:
    model, graph = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    counts = []

    def watching(m: nn.Module, g: ChannelGraph) -> Tensor:
        found = CRITERIA["energy"](m, g)
        counts.append(int((found > 0).sum()))
        return found

    Criterion(watching, iterations=10)(model, graph)
    wanted = [round(400 * (12 / 400) ** (k / 10)) for k in range(10)]
    assert counts == wanted
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_iterating_changes_what_is_kept() -> None:
    model, graph = network()
    once, again = synflow(model, graph).numpy(), CRITERIA["synflow"](model, graph).numpy()
    budget = int(graph.macs(graph.sizes)) // 20
    assert (greedy(graph, once, budget) != greedy(graph, again, budget)).any()


# ---------------------------------------------------------------------- those that reconstruct what layers give


def parts_of(model: nn.Module, path: str, images: Tensor) -> Tensor:
    """What every input channel of a layer gives, without its bias: (C, outputs)."""
    layer, seen = model.get_submodule(path), list[Tensor]()
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double()))
    model(images)
    handle.remove()
    layer = copy.deepcopy(layer).double()
    nothing = layer(torch.zeros_like(seen[0]))
    parts = []
    for channel in range(seen[0].shape[1]):
        alone = torch.zeros_like(seen[0])
        alone[:, channel] = seen[0][:, channel]
        parts.append((layer(alone) - nothing).detach().flatten())
    return torch.stack(parts)


class Chain(nn.Module):
    """Maps of 2 x 2: every position is sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 7, 3, padding=1), nn.Conv2d(7, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.relu(self.first(x)))
        return found


def chain() -> tuple[nn.Module, ChannelGraph, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = Chain().eval(), torch.randn(9, 2, 2, 2)
    return model, trace(model, images), images


def test_thinet_removes_greedily_what_the_next_layer_misses_least() -> None:
    model, graph, images = chain()
    parts = parts_of(model, "second", images)
    gone, expected = list[int](), dict[int, float]()
    while len(gone) < 7:
        sizes = {c: float(parts[[*gone, c]].sum(0).square().sum()) for c in range(7) if c not in gone}
        chosen = min(sizes, key=lambda c: sizes[c])
        gone.append(chosen)
        expected[chosen] = max(sizes[chosen], *expected.values(), 0.0)
    whole = float(parts.sum(0).square().sum())
    found = CRITERIA["thinet"](model, graph, batches=[images[:4], images[4:]])
    torch.testing.assert_close(
        found, torch.tensor([expected[c] / whole for c in range(7)]).double(), rtol=1e-4, atol=0
    )


def test_lasso_is_the_path_of_its_penalty() -> None:
    """The conditions of optimality: what a channel explains of the rest is the strength at which it enters."""
    model, graph, images = chain()
    parts = parts_of(model, "second", images)
    found = CRITERIA["lasso"](model, graph, batches=[images])
    wanted = parts @ parts.sum(0)
    assert int(found.argmax()) == int(wanted.abs().argmax())
    for strength in (0.5, 0.2, 0.05):
        weights = torch.zeros(7, dtype=torch.float64)
        level = strength * float(wanted.abs().max())
        for _ in range(20_000):  # proximal gradient
            step = 1 / float(torch.linalg.matrix_norm(parts @ parts.T, 2))
            weights = weights + step * (wanted - parts @ parts.T @ weights)
            weights = weights.sign() * (weights.abs() - step * level).clamp(min=0)
        inside, clear = weights.abs() > 1e-3, (found / strength - 1).abs() > 0.1
        assert torch.equal((found > strength)[clear], inside[clear])
