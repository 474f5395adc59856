"""What tracing finds: in networks whose coupling is known by hand, and in random ones, where only the outcome is.

Every network here is also slimmed by random policies: it must compute what the zero-masked one computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from espalier.errors import TraceError
from espalier.pruning.graph import ChannelGraph, Group
from espalier.pruning.networks import build
from espalier.pruning.surgery import mask, slim
from espalier.pruning.trace import trace

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs)


Body = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Layers by name, and what happens between them; the mean over the map goes to a linear head."""

    def __init__(self, body: Body, outputs: int, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self, x)
        logits: Tensor = self.head(x.mean((2, 3)) if x.dim() == 4 else x)
        return logits


def randomise_norms(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.3, generator=generator)
            module.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.3, generator)
                nn.init.normal_(module.bias, 0, 0.3, generator)


def traced(model: nn.Module, images: Tensor = IMAGES) -> ChannelGraph:
    """The graph, once ten random policies have been found to compute what they should."""
    randomise_norms(model)
    graph = trace(model.eval(), images)
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        keep = torch.rand(graph.n_channels, generator=generator) < 0.6
        keep[torch.from_numpy(graph.offsets[:-1])] = True
        assert_slimmed_is_masked(model, graph, keep, images)
    return graph


def assert_slimmed_is_masked(model: nn.Module, graph: ChannelGraph, keep: Tensor, images: Tensor) -> None:
    with torch.no_grad():
        got, expected = slim(model, graph, keep)(images), mask(model, graph, keep)(images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def sizes(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


def frozen(graph: ChannelGraph) -> dict[str, str | None]:
    return {group.name: group.frozen for group in graph.frozen}


def group(graph: ChannelGraph, name: str) -> Group:
    return next(group for group in graph.groups if group.name == name)


def places(graph: ChannelGraph, name: str) -> dict[tuple[str, int], list[list[int]]]:
    """(tensor, dimension) -> the positions of every channel of a group."""
    found = group(graph, name)
    return {
        (m.tensor, m.dim): [m.positions[m.channels == channel].tolist() for channel in range(found.size)]
        for m in found.members
    }


def alone(numbers: range | list[int]) -> list[list[int]]:
    return [[number] for number in numbers]


# -------------------------------------------------------------------------------- the residual networks


@cache
def resnet20() -> ChannelGraph:
    return traced(build("resnet20"), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_resnet20_has_twelve_groups() -> None:
    """A stream per stage, of which only the channels that no earlier stage pads are its own, and nine blocks."""
    assert sizes(resnet20()) == {
        "conv1": 16,
        **{f"layer1.{block}.conv1": 16 for block in range(3)},
        "layer2.0.conv1": 32,
        "layer2.0.conv2": 16,
        "layer2.1.conv1": 32,
        "layer2.2.conv1": 32,
        "layer3.0.conv1": 64,
        "layer3.0.conv2": 32,
        "layer3.1.conv1": 64,
        "layer3.2.conv1": 64,
    }
    assert frozen(resnet20()) == {"linear": "network output"}


def stream(stage: int, positions: list[int]) -> dict[tuple[str, int], list[list[int]]]:
    """Where the residual stream of a stage of ResNet-20 is written, normalised and read."""
    members = {}
    for block in range(3):
        prefix = f"layer{stage}.{block}"
        members[f"{prefix}.conv2.weight", 0] = alone(positions)
        for norm in ("weight", "bias", "running_mean", "running_var"):
            members[f"{prefix}.bn2.{norm}", 0] = alone(positions)
        if stage == 1 or block:
            members[f"{prefix}.conv1.weight", 1] = alone(positions)
    reader = "linear.weight" if stage == 3 else f"layer{stage + 1}.0.conv1.weight"
    members[reader, 1] = alone(positions)
    return members


def test_zero_padded_shortcuts_couple_the_streams_of_all_stages() -> None:
    stem = {("conv1.weight", 0): alone(range(16))}
    stem |= {(f"bn1.{n}", 0): alone(range(16)) for n in ("weight", "bias", "running_mean", "running_var")}
    first = stem | stream(1, [*range(16)]) | stream(2, [*range(8, 24)]) | stream(3, [*range(24, 40)])
    assert places(resnet20(), "conv1") == first
    padding: dict[tuple[str, int], list[list[int]]] = {
        ("layer2.0.shortcut.before", 1): [*alone(range(8)), *[[]] * 8],
        ("layer2.0.shortcut.after", 1): [*[[]] * 8, *alone(range(8))],
    }
    second = stream(2, [*range(8), *range(24, 32)]) | stream(3, [*range(16, 24), *range(40, 48)]) | padding
    assert places(resnet20(), "layer2.0.conv2") == second
    padding = {
        ("layer3.0.shortcut.before", 1): [*alone(range(16)), *[[]] * 16],
        ("layer3.0.shortcut.after", 1): [*[[]] * 16, *alone(range(16))],
    }
    assert places(resnet20(), "layer3.0.conv2") == stream(3, [*range(16), *range(48, 64)]) | padding


def test_inside_a_block_nothing_else_is_coupled() -> None:
    assert places(resnet20(), "layer3.1.conv1") == {
        ("layer3.1.conv1.weight", 0): alone(range(64)),
        **{(f"layer3.1.bn1.{n}", 0): alone(range(64)) for n in ("weight", "bias", "running_mean", "running_var")},
        ("layer3.1.conv2.weight", 1): alone(range(64)),
    }
    roles = [member.role for member in group(resnet20(), "layer3.1.conv1").members]
    assert roles == ["out", "norm", "norm", "buffer", "buffer", "in"]


def test_projected_shortcuts_keep_the_stages_apart() -> None:
    graph = trace(build("resnet20", shortcut="B"), torch.zeros(1, 3, 8, 8))
    assert [sizes(graph)[name] for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")] == [16, 32, 64]
    assert places(graph, "layer2.0.conv2")["layer2.0.shortcut.0.weight", 0] == alone(range(32))


# ------------------------------------------------------------------------------------- one idea at a time


def test_concatenation_reads_each_part_at_its_own_place() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return torch.cat([net.a(x), x, net.b(x)], 1)

    graph = traced(Net(body, 15, a=conv(3, 8), b=conv(3, 4)))
    assert sizes(graph) == {"a": 8, "b": 4}
    assert places(graph, "a")["head.weight", 1] == alone(range(8))
    assert places(graph, "b")["head.weight", 1] == alone(range(11, 15))
    assert frozen(graph) == {"head": "network output"}


def test_flattening_a_map_gives_each_channel_a_run_of_the_linear_layer() -> None:
    graph = traced(Net(lambda net, x: net.a(x).relu().flatten(1), 8 * 36, a=conv(3, 8)))
    assert places(graph, "a")["head.weight", 1] == [list(range(36 * c, 36 * c + 36)) for c in range(8)]
    assert int(graph.macs([5])) == 36 * 9 * 3 * 5 + 36 * 5 * 4


def test_flattening_a_map_with_its_channels_last() -> None:
    graph = traced(Net(lambda net, x: net.a(x).permute(0, 2, 3, 1).flatten(1), 8 * 36, a=conv(3, 8)))
    assert places(graph, "a")["head.weight", 1] == [list(range(c, 8 * 36, 8)) for c in range(8)]


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_convolution_belongs_to_its_channel(multiplier: int) -> None:
    wide = 4 * multiplier
    graph = traced(Net(lambda net, x: net.b(net.a(x)), wide, a=conv(3, 4), b=conv(4, wide, groups=4)))
    runs = [list(range(multiplier * c, multiplier * c + multiplier)) for c in range(4)]
    assert sizes(graph) == {"a": 4}
    assert places(graph, "a") == {
        ("a.weight", 0): alone(range(4)),
        ("a.bias", 0): alone(range(4)),
        ("b.weight", 0): runs,
        ("b.bias", 0): runs,
        ("head.weight", 1): runs,
    }
    assert [m.role for m in group(graph, "a").members if m.tensor == "b.weight"] == ["depthwise"]


def test_grouped_convolution_keeps_the_same_places_in_every_group() -> None:
    graph = traced(Net(lambda net, x: net.b(net.a(x)), 12, a=conv(3, 8), b=conv(8, 12, groups=4)))
    assert sizes(graph) == {"a": 2, "b": 3}
    assert places(graph, "a") == {
        ("a.weight", 0): [[0, 2, 4, 6], [1, 3, 5, 7]],
        ("a.bias", 0): [[0, 2, 4, 6], [1, 3, 5, 7]],
        ("b.weight", 1): [[0], [1]],
    }
    assert places(graph, "b")["head.weight", 1] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_chunks_that_meet_are_coupled() -> None:
    def gated(net: Any, x: Tensor) -> Any:
        value, gate = net.a(x).chunk(2, 1)
        return value * gate.sigmoid()

    graph = traced(Net(gated, 8, a=conv(3, 16)))
    assert sizes(graph) == {"a": 8}
    assert places(graph, "a")["a.weight", 0] == [[c, c + 8] for c in range(8)]
    assert places(graph, "a")["head.weight", 1] == alone(range(8))


def test_uneven_chunks_freeze() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.b(torch.cat(net.a(x).chunk(3, 1)[::-1], 1))

    graph = traced(Net(body, 5, a=conv(3, 16), b=conv(16, 5)))
    assert sizes(graph) == {"b": 5}
    assert frozen(graph)["a"] == "chunk: cuts channels at a constant place"


def viewed(net: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("shuffle", [viewed, lambda net, x: F.channel_shuffle(x, 2)], ids=["view", "operation"])
def test_channel_shuffle_keeps_the_same_places_in_both_halves(shuffle: Body) -> None:
    graph = traced(Net(lambda net, x: net.b(shuffle(net, net.a(x))), 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == {"a": 4, "b": 6}
    assert places(graph, "a")["a.weight", 0] == [[c, c + 4] for c in range(4)]
    assert places(graph, "a")["b.weight", 1] == [[2 * c, 2 * c + 1] for c in range(4)]


def test_a_layer_used_twice_couples_its_inputs_and_outputs() -> None:
    graph = traced(Net(lambda net, x: net.a(net.a(net.z(x)).relu()), 8, z=conv(3, 8), a=conv(8, 8)))
    assert sizes(graph) == {"z": 8}
    assert places(graph, "z")["a.weight", 0] == places(graph, "z")["a.weight", 1] == alone(range(8))
    # The layer is counted as often as it runs.
    assert int(graph.macs([5])) == 36 * 9 * (3 * 5 + 2 * 5 * 5) + 5 * 4


def test_a_weight_of_two_layers_stays_one_weight() -> None:
    net = Net(lambda net, x: net.b(net.a(net.z(x)).relu()), 8, z=conv(3, 8), a=conv(8, 8), b=conv(8, 8))
    net.get_submodule("b").weight = net.get_parameter("a.weight")
    graph = traced(net)
    assert sizes(graph) == {"z": 8}
    assert ("b.weight", 0) not in places(graph, "z") and ("b.bias", 0) in places(graph, "z")
    slimmed = slim(net, graph, {"z": [0, 2, 5]})
    assert slimmed.get_parameter("b.weight") is slimmed.get_parameter("a.weight")
    assert int(graph.params([3])) == sum(p.numel() for p in slimmed.parameters())


def test_a_weight_that_an_unknown_operation_reads_too_is_not_sliced() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x)).mean((2, 3))
        return net.tied(x) @ net.tied.weight

    graph = traced(Net(body, 8, a=conv(3, 6), b=conv(6, 8), tied=nn.Linear(8, 5)))
    assert sizes(graph) == {"a": 6}
    assert frozen(graph)["b"] == frozen(graph)["tied"] == "matmul"


def test_squeeze_and_excite_scales_the_channels_it_was_made_from() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        return x * net.expand(net.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    layers = {"a": conv(3, 8), "squeeze": nn.Conv2d(8, 4, 1), "expand": nn.Conv2d(4, 8, 1)}
    graph = traced(Net(body, 8, **layers))
    assert sizes(graph) == {"a": 8, "squeeze": 4}
    for member in (("a.weight", 0), ("squeeze.weight", 1), ("expand.weight", 0), ("expand.bias", 0)):
        assert places(graph, "a")[member] == alone(range(8))


def test_a_gate_that_all_channels_share_couples_nothing() -> None:
    graph = traced(Net(lambda net, x: (y := net.a(x)) * net.gate(y).sigmoid(), 8, a=conv(3, 8), gate=conv(8, 1)))
    assert sizes(graph) == {"a": 8}
    assert frozen(graph)["gate"] == "mul: is broadcast over channels"


def test_prelu_has_a_slope_per_channel_or_one_for_all() -> None:
    layers = {"a": conv(3, 8), "b": conv(8, 6), "p": nn.PReLU(8), "q": nn.PReLU()}
    graph = traced(Net(lambda net, x: net.q(net.b(net.p(net.a(x)))), 6, **layers))
    assert sizes(graph) == {"a": 8, "b": 6}
    assert places(graph, "a")["p.weight", 0] == alone(range(8))
    assert not any(tensor == "q.weight" for tensor, _ in places(graph, "b"))


def test_a_parameter_that_scales_channels_is_a_member() -> None:
    scale = nn.Parameter(torch.randn(8, 1, 1))
    graph = traced(Net(lambda net, x: net.a(x) * net.scale, 8, a=conv(3, 8), scale=scale))
    assert places(graph, "a")["scale", 0] == alone(range(8))
    assert int(graph.params([5])) == 5 * (3 * 9 + 1) + 5 + 4 * 5 + 4


def test_a_norm_without_an_affine_map() -> None:
    net = Net(lambda net, x: net.n(net.a(x)).relu(), 8, a=conv(3, 8), n=nn.BatchNorm2d(8, affine=False))
    graph = traced(net)
    assert places(graph, "a")["n.running_var", 0] == alone(range(8))
    norm = slim(net, graph, {"a": [1, 2, 7]}).get_submodule("n")
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 3


def test_pooling_resizing_and_reordering_keep_channels() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = F.interpolate(F.max_pool2d(net.a(x), 2), scale_factor=2).flip(1)
        return F.adaptive_avg_pool2d(F.pixel_unshuffle(x, 2), 2)

    graph = traced(Net(body, 32, a=conv(3, 8)))
    assert sizes(graph) == {"a": 8}
    assert places(graph, "a")["head.weight", 1] == [list(range(4 * (7 - c), 4 * (7 - c) + 4)) for c in range(8)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_residual_sum_with_the_input_freezes(order: tuple[int, int]) -> None:
    """Whichever comes first."""

    def body(net: Any, x: Tensor) -> Any:
        terms = (x, net.a(x))
        return net.b(terms[order[0]] + terms[order[1]])

    graph = traced(Net(body, 6, a=conv(3, 3), b=conv(3, 6)))
    assert sizes(graph) == {"b": 6}
    assert frozen(graph) == {"a": "add: meets a tensor whose channels are fixed", "head": "network output"}


FREEZING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(1), "softmax"),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "mean"),
    "mean of all": (lambda x: x / (1 + x.abs().mean()), "mean"),
    "slice": (lambda x: torch.cat([x[:, 2:], x[:, :2]], 1), "slice: cuts channels at a constant place"),
    "split": (lambda x: torch.cat(x.split(2, 1)[::-1], 1), "split: cuts channels at a constant place"),
    "select": (lambda x: x + x[:, 3].unsqueeze(1), "select: cuts channels at a constant place"),
    "roll": (lambda x: x.roll(2, 1), "roll"),
    "cumsum": (lambda x: x.cumsum(1), "cumsum"),
    "fft": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft"),
    "sort": (lambda x: x.sort(1).values, "sort"),
    "group_norm": (lambda x: F.group_norm(x, 2), "group_norm"),
    "matmul": (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) @ x.flatten(2), "matmul"),
}


@pytest.mark.parametrize("name", FREEZING)
def test_what_mixes_channels_freezes_them_and_is_named(name: str) -> None:
    operation, reason = FREEZING[name]

    def body(net: Any, x: Tensor) -> Any:
        x = operation(net.b(net.a(x)))
        return x if x.dim() == 4 else x.unsqueeze(-1)

    graph = traced(Net(body, 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == {"a": 8}
    assert frozen(graph)["b"] == reason
    assert frozen(graph)["head"] == "network output"


@pytest.mark.parametrize("name", ["softmax", "roll", "cumsum", "mean"])
def test_the_same_over_positions_freezes_nothing(name: str) -> None:
    operation: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: x.softmax(2),
        "roll": lambda x: x.roll((1, 2), (2, 3)),
        "cumsum": lambda x: x.flatten(2).mean(2).relu(),
        "mean": lambda x: x - x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True),
    }
    graph = traced(Net(lambda net, x: operation[name](net.a(x)), 8, a=conv(3, 8)))
    assert sizes(graph) == {"a": 8}


def test_the_reason_names_the_layer() -> None:
    graph = traced(Net(lambda net, x: net.n(net.b(net.a(x))), 6, a=conv(3, 8), b=conv(8, 6), n=nn.GroupNorm(2, 6)))
    assert frozen(graph)["b"] == "group_norm in n"


def test_every_output_is_frozen() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(8, 5)

        def forward(self, x: Tensor) -> dict[str, Any]:
            x = self.a(x)
            return {"maps": [self.b(x)], "mask": self.c(x)}

    graph = trace(Two(), IMAGES)
    assert sizes(graph) == {"a": 8}
    assert frozen(graph) == {"b": "network output", "c": "network output"}


def test_groups_of_one_layer_get_names_of_their_own() -> None:
    def body(net: Any, x: Tensor) -> Any:
        first, second = net.a(x).chunk(2, 1)
        return torch.cat([first, net.b(second)], 1)

    graph = traced(Net(body, 9, a=conv(3, 8), b=conv(4, 5)))
    assert len({group.name for group in graph.groups}) == len(graph.groups)


def test_the_model_is_left_as_it_was() -> None:
    model = build("mobilenet_v2").train()
    model.get_submodule("features.0").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trace(model, torch.randn(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = conv(3, 8), conv(2, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            logits: Tensor = self.head((self.a(x) + self.b(y)).mean((2, 3)))
            return logits

    graph = trace(Sum(), (torch.zeros(1, 3, 6, 6), torch.zeros(1, 2, 6, 6)))
    assert sizes(graph) == {"a": 8}
    assert ("b.weight", 0) in places(graph, "a")


# ---------------------------------------------------------------------------------------- what cannot be


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        logits: Tensor = self.head(self.a(x).mean((2, 3)))
        return logits


def test_control_flow_that_depends_on_data_is_told_in_one_line() -> None:
    model = DataDependent().train()
    line = DataDependent.forward.__code__.co_firstlineno + 1
    place = rf" at `if x\.sum\(\) > 0:` \(.*test_trace\.py.*line {line}, in forward"
    message = r"cannot trace DataDependent: .*data-dependent.*" + place
    with pytest.raises(TraceError, match=message) as caught:
        trace(model, IMAGES)
    assert "\n" not in str(caught.value)
    assert model.training


def test_a_network_that_cannot_run_is_told_in_its_own_words() -> None:
    message = r"cannot trace Net: .*expected input\[2, 3, 6, 6\] to have 5 channels"
    with pytest.raises(TraceError, match=message) as caught:
        trace(Net(lambda net, x: net.a(x), 8, a=conv(5, 8)), IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (conv(3, 8), r"nothing in Conv2d can be pruned: .*: network output$"),
        (nn.ReLU(), r"nothing in ReLU can be pruned: it has no channels$"),
        (
            Net(lambda net, x: net.a(x).cumsum(1), 8, a=conv(3, 8)),
            r"nothing in Net can be pruned: a: cumsum; head: network output$",
        ),
    ],
)
def test_nothing_to_prune_is_said_with_the_reasons(model: nn.Module, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(model, IMAGES)


# ---------------------------------------------------------------------------------------- random networks


class Block(nn.Module):
    """One of many kinds of block; `outputs` says how wide it leaves the network."""

    def __init__(self, kind: str, inputs: int, width: int) -> None:
        super().__init__()
        self.kind, self.outputs = kind, width
        if kind == "plain":
            self.a, self.n = conv(inputs, width, bias=False), nn.BatchNorm2d(width)
        elif kind == "residual":
            self.outputs = inputs
            self.a, self.b, self.n = conv(inputs, width), conv(width, inputs), nn.BatchNorm2d(inputs)
        elif kind == "concat":
            self.outputs = inputs + 2 * width
            self.a, self.b = conv(inputs, width), nn.Conv2d(inputs, width, 1)
        elif kind == "depthwise":
            self.outputs = 2 * inputs
            self.a, self.n = conv(inputs, 2 * inputs, groups=inputs), nn.BatchNorm2d(2 * inputs)
        elif kind == "grouped":
            self.a = conv(inputs, width, groups=2)
        elif kind in ("shuffle", "pool"):
            self.outputs = inputs
        elif kind == "gated":
            self.outputs = width // 2
            self.a = conv(inputs, width)
        else:  # squeeze and excite
            self.outputs = inputs
            self.a, self.b = nn.Conv2d(inputs, width, 1), nn.Conv2d(width, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "plain":
            return F.relu(self.n(self.a(x)))
        if self.kind == "residual":
            return F.relu(x + self.n(self.b(F.relu(self.a(x)))))
        if self.kind == "concat":
            return torch.cat([self.a(x), x, self.b(x)], 1)
        if self.kind == "depthwise":
            return F.relu6(self.n(self.a(x)))
        if self.kind == "grouped":
            return F.silu(self.a(x))
        if self.kind == "shuffle":
            return viewed(None, x)
        if self.kind == "pool":
            return F.max_pool2d(x, 3, 1, 1)
        if self.kind == "gated":
            value, gate = torch.chunk(self.a(x), 2, 1)
            return torch.tanh(value) * torch.sigmoid(gate)
        scale: Tensor = self.b(F.relu(self.a(x.mean((2, 3), keepdim=True))))
        return x * scale.sigmoid()


class RandomNetwork(nn.Module):
    def __init__(self, blocks: list[tuple[str, int]], flat: bool) -> None:
        super().__init__()
        self.flat, width, layers = flat, 3, []
        for kind, wanted in blocks:
            layers.append(Block(kind, width, wanted))
            width = layers[-1].outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width * 16 if flat else width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        logits: Tensor = self.head(x.flatten(1) if self.flat else x.mean((2, 3)))
        return logits


@st.composite
def networks(draw: st.DrawFn) -> RandomNetwork:
    """Any blocks around one plain convolution, which there is always something to prune in."""
    width, stem = 3, draw(st.integers(0, 1))
    blocks: list[tuple[str, int]] = []
    for place in range(draw(st.integers(stem + 1, 6))):
        kinds = ["plain", "residual", "concat", "squeeze", "gated", "pool"]
        kinds += ["depthwise"] * (width <= 24) + ["grouped"] * (width % 2 == 0 and width > 2)
        # Of channels that are coupled already, a view does not tell which of its sizes is the constant.
        kinds += ["shuffle"] * (bool(blocks) and blocks[-1][0] == "plain")
        kind = "plain" if place == stem else draw(st.sampled_from(kinds))
        wanted = 2 * draw(st.integers(2 if kind == "plain" else 1, 4))
        with torch.device("meta"):
            width = Block(kind, width, wanted).outputs
        blocks.append((kind, wanted))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 2**31)))
        model = RandomNetwork(blocks, draw(st.booleans()))
        randomise_norms(model)
    return model.eval()


@st.composite
def keep_masks(draw: st.DrawFn, graph: ChannelGraph) -> Tensor:
    parts = []
    for size in graph.sizes.tolist():
        part = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        part[draw(st.integers(0, size - 1))] = True
        parts += part
    return torch.tensor(parts)


# Without shrinking: it would outlast the time limit.
@settings(max_examples=40, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(networks(), st.data())
def test_random_networks(model: RandomNetwork, data: st.DataObject) -> None:
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    graph = trace(model, images)
    for _ in range(2):
        keep = data.draw(keep_masks(graph))
        assert_slimmed_is_masked(model, graph, keep, images)
        widths, slimmed = graph.widths(keep), slim(model, graph, keep)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            assert slimmed(images[:1]).shape == (1, 3)
        macs = int(graph.macs(widths))
        assert counter.get_total_flops() == 2 * macs
        assert sum(p.numel() for p in slimmed.parameters()) == int(graph.params(widths))
        wider = np.minimum(widths + np.eye(len(widths), dtype=np.int64), graph.sizes)
        assert (graph.macs(wider) >= macs).all() and (graph.params(wider) >= graph.params(widths)).all()
        assert (graph.macs(wider)[widths < graph.sizes] > macs).all()
