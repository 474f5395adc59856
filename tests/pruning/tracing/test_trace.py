"""What tracing finds: in networks whose coupling is known by hand, and in random ones, where only the outcome is.

Every network here is also slimmed by random policies: it must compute what the zero-masked one computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espalier.errors import TraceError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import Group
from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import mask, slim
from espalier.pruning.trace import trace
from espalier.pruning.tracing.running import call

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


def traced(
    model: nn.Module, images: Inputs = IMAGES, along_channels: bool = False, countable: bool = True
) -> ChannelGraph:
    """The graph, once ten random policies have been found to compute and to cost what they should.

    Where something works along channels, as a norm does, zeroing weights is no reference; `slim` has its own.
    """
    randomise_norms(model)
    graph = trace(model.eval(), images)
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        keep = torch.rand(graph.n_channels, generator=generator) < 0.6
        keep[torch.from_numpy(graph.offsets[:-1])] = True
        slimmed = slim(model, graph, keep)
        if not along_channels:
            assert_is_masked(slimmed, model, graph, keep, images)
        widths = graph.widths(keep)
        assert not countable or counted(slimmed, images) == int(graph.macs(widths))
        assert sum(p.numel() for p in slimmed.parameters()) == int(graph.params(widths))
    return graph


def counted(model: nn.Module, images: Inputs) -> float:
    """MACs per example by torch's own counter; it knows attention only as matrix products."""
    args, kwargs = arguments(images)
    batch = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).shape[0]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return float(counter.get_total_flops()) / 2 / batch


def assert_is_masked(
    slimmed: nn.Module, model: nn.Module, graph: ChannelGraph, keep: Tensor, images: Inputs
) -> None:
    with torch.no_grad():
        got = call(slimmed, images)
        expected = call(mask(model, graph, keep), images)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


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
    assert roles == ["out", "norm", "shift", "buffer", "buffer", "in"]


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
    def unknown(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x)).mean((2, 3))
        return net.tied(x) @ torch.fft.fft(net.tied.weight).real

    graph = traced(Net(unknown, 8, a=conv(3, 6), b=conv(6, 8), tied=nn.Linear(8, 5)))
    assert sizes(graph) == {"a": 6}
    assert frozen(graph)["b"] == "fft_fft"
    assert "matmul: a weight that is computed" in frozen(graph).values()


def test_a_weight_that_is_used_twice_is_one_weight() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x)).mean((2, 3))
        return net.tied(x) @ net.tied.weight

    graph = traced(Net(body, 8, a=conv(3, 6), b=conv(6, 8), tied=nn.Linear(8, 5)))
    assert sizes(graph) == {"a": 6, "b": 8, "tied": 5}
    assert places(graph, "b")["tied.weight", 1] == alone(range(8))


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
    assert frozen(graph) == {"a": "add: meets channels that are fixed", "head": "network output"}


def attended(x: Tensor, is_causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=is_causal)


FREEZING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a reciprocal": (lambda x: x * (1.0 / x.shape[1]), "its width changes what the code computes"),
    "a loop over channels": (lambda x: x + sum(1.0 for _ in range(x.shape[1])), "its width changes what the code"),
    "a length": (lambda x: x * len(x.transpose(0, 1)), "its width changes what the code computes"),
    "roll": (lambda x: x.roll(2, 1), "roll"),
    "cumsum": (lambda x: x.cumsum(1), "cumsum"),
    "fft": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft"),
    "sort": (lambda x: x.sort(1).values, "sort"),
    "argmax": (lambda x: x * x.argmax(1, keepdim=True), "argmax"),
    "max with its place": (lambda x: x + x.max(1, keepdim=True).indices, "max"),
    "pooling over channels": (lambda x: F.avg_pool3d(x, 3, 1, 1), "avg_pool3d: works along dimension 1 of its"),
    "local response norm": (lambda x: F.local_response_norm(x, 3), "avg_pool3d: works along dimension"),
    "a constant per channel": (
        lambda x: x * torch.arange(6.0)[:, None, None],
        "mul: meets channels that are fixed",
    ),
    "indices": (lambda x: x[:, [3, 1, 0, 2, 5, 4]], "index: picks channels by number"),
    "a view of constants": (lambda x: x.reshape(2, 2, 3, 6, 6).transpose(1, 2).flatten(1, 2), "reshape: its size"),
    "a constant size": (lambda x: x.view(2, 6, -1)[..., None], "view: its size is written as a constant"),
    "its own width": (lambda x: x / x.shape[1], "div: depends on their number"),
    "its scale": (lambda x: x * x.shape[1] ** -0.5, "their number enters the arithmetic"),
    "its inverse root": (lambda x: x / np.sqrt(x.shape[1]), "their number enters the arithmetic"),
    "its width as a tensor": (lambda x: x / torch.tensor(x.shape[1]), "their number enters the arithmetic"),
    "an order": (lambda x: -x if x.shape[1] > 4 else x, "the number of channels is compared with 4"),
    "a remainder": (lambda x: x if x.shape[1] % 4 else -x, "the number of channels is compared with 0"),
    "the greater one": (lambda x: F.pad(x, (0, 0, 0, 0, 0, max(0, 6 - x.shape[1]))), "the number of channels is"),
    "a comparison": (lambda x: -x if x.shape[1] == 6 else x, "the number of channels is compared with 6"),
    "its bits": (lambda x: x.view(torch.int32).view(torch.float32), "view"),
    "its strides": (lambda x: x.contiguous().as_strided((2, 6, 6, 6), (216, 36, 6, 1)), "as_strided"),
    "mantissas": (lambda x: torch.frexp(x).mantissa, "frexp"),
    "halves": (lambda x: torch.cat(x.hsplit(2)[::-1], 1), "hsplit"),
    "a constant place": (lambda x: torch.cat(x.tensor_split([3], 1)[::-1], 1), "tensor_split: cuts channels"),
    "a constant length": (lambda x: x.narrow(1, 0, 6), "narrow: cuts channels at a constant place"),
    "a vector in place of a matrix": (lambda x: x + F.linear(x, torch.ones(6)).mean(1)[:, None, None], "linear"),
    "patches": (
        lambda x: F.unfold(x.transpose(1, 2), 3, padding=1).view(2, 6, 9, 6, 6).mean(2).transpose(1, 2),
        "im2col: works along dimension 2 of its channels",
    ),
    "causal attention": (
        lambda x: attended(x.flatten(2), is_causal=True).unflatten(2, (6, 6)),
        "scaled_dot_product_attention: what comes before what",
    ),
    "as many groups": (lambda x: F.group_norm(x, 6), "group_norm"),
    "uneven parts": (lambda x: torch.cat(x.chunk(4, 1)[::-1], 1), "chunk: cuts channels at a constant place")
    if len(torch.zeros(6).chunk(4)) == 4
    else (lambda x: torch.cat(x.tensor_split(4, 1)[::-1], 1), "tensor_split: cuts channels at a constant place"),
}


@pytest.mark.parametrize("name", FREEZING)
def test_what_mixes_channels_freezes_them_and_is_named(name: str) -> None:
    operation, reason = FREEZING[name]

    def body(net: Any, x: Tensor) -> Any:
        return operation(net.b(net.a(x)))

    graph = traced(Net(body, 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == {"a": 8}
    assert str(frozen(graph)["b"]).startswith(reason)
    assert frozen(graph)["head"] == "network output"


ALONG_CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "log-softmax": lambda x: x.log_softmax(1),
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "mean of all": lambda x: x / (1 + x.abs().mean()),
    "sum": lambda x: x + x.sum(1, keepdim=True),
    "max": lambda x: x * torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1).sum(1, keepdim=True),
    "std": lambda x: x / (x.std(1, keepdim=True) + 1),
    "norm": lambda x: F.normalize(x, dim=1),
    "one group": lambda x: F.group_norm(x, 1),
    "by hand": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt(),
    "root mean square": lambda x: x * (x.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt(),
    "attention": lambda x: attended(x.flatten(2)).unflatten(2, (6, 6)),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
}


@pytest.mark.parametrize("name", ALONG_CHANNELS)
def test_what_works_along_channels_sees_those_that_are_left(name: str) -> None:
    operation = ALONG_CHANNELS[name]
    net = Net(lambda net, x: operation(net.b(net.a(x))), 6, a=conv(3, 8), b=conv(8, 6))
    graph = traced(net, along_channels=True)
    assert sizes(graph) == {"a": 8, "b": 6}
    keep = {"b": [0, 2, 5]}
    with torch.no_grad():
        kept = net.b(net.a(IMAGES))[:, [0, 2, 5]]  # type: ignore[operator]
        expected = net.head.weight[:, [0, 2, 5]] @ operation(kept).mean((2, 3)).T + net.head.bias[:, None]
        torch.testing.assert_close(slim(net, graph, keep)(IMAGES), expected.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_over_the_last_dimension(norm: Callable[[int], nn.Module]) -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.n(net.b(net.a(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = Net(body, 6, a=conv(3, 8), b=conv(8, 6), n=norm(6))
    graph = traced(net, along_channels=True)
    assert sizes(graph) == {"a": 8, "b": 6}
    assert places(graph, "b")["n.weight", 0] == alone(range(6))
    slimmed: Any = slim(net, graph, {"b": [1, 3, 4]}).get_submodule("n")
    assert slimmed.normalized_shape == (3,)
    assert type(slimmed.normalized_shape) is tuple


@pytest.mark.parametrize(("groups", "left"), [(2, 3), (3, 2), (6, 6)])
def test_group_norm_keeps_its_groups_even(groups: int, left: int) -> None:
    """Every group keeps the same places; where each channel is a group of its own, groups come and go."""
    net = Net(lambda net, x: net.n(net.b(net.a(x))), 6, a=conv(3, 8), b=conv(8, 6), n=nn.GroupNorm(groups, 6))
    graph = traced(net, along_channels=True)
    assert sizes(graph) == {"a": 8, "b": left}
    slimmed: Any = slim(net, graph, {"b": [0]}).get_submodule("n")
    assert (slimmed.num_groups, slimmed.num_channels) == ((1, 1) if groups == 6 else (groups, groups))


# ----------------------------------------------------------------------------------- cuts and sizes


CUTS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "from a constant": (lambda x: torch.cat([x[:, 2:], x[:, :2]], 1), 4),
    "from the end": (lambda x: torch.cat([x[:, -2:], x[:, :-2]], 1), 4),
    "one by its number": (lambda x: x + x[:, 3].unsqueeze(1), 2),
    "at half of the width": (lambda x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1), 3),
    "in parts of half": (lambda x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1), 3),
    "in a constant number of parts": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), 2),
    "every second": (lambda x: torch.cat([x[:, 1::2], x[:, ::2]], 1), 3),
    "every second to the fourth": (lambda x: torch.cat([x, x[:, :4:2]], 1)[:, : x.shape[1]], 0),
    "gated": (lambda x: torch.cat([F.glu(x, 1), F.glu(x, 1)], 1), 3),
    "padded": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 0))[:, : x.shape[1]], 0),
}


@pytest.mark.parametrize("name", CUTS)
def test_only_what_a_cut_needs_is_frozen(name: str) -> None:
    """A cut at a constant place needs the channels before it; a cut that follows the width needs equal parts."""
    operation, left = CUTS[name]
    graph = traced(Net(lambda net, x: operation(net.b(net.a(x))), 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == ({"a": 8, "b": left} if left else {"a": 8})


def test_padded_channels_are_always_there() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        return net.b(x) + F.pad(x, (0, 0, 0, 0, 2, 2))

    graph = traced(Net(body, 8, a=conv(3, 4), b=conv(4, 8)))
    assert sizes(graph) == {"a": 4}
    assert places(graph, "a")["b.weight", 0] == alone(range(2, 6))
    assert frozen(graph)["b"] == "add: meets channels that are fixed"


@pytest.mark.parametrize("constant", ["outer", "inner"])
def test_which_size_of_a_view_follows_the_width_is_read_from_the_code(constant: str) -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        batch, channels, height, width = x.shape
        sizes = (2, channels // 2) if constant == "outer" else (channels // 2, 2)
        return net.b(x.view(batch, *sizes, height, width).transpose(1, 2).reshape(x.shape))

    graph = traced(Net(body, 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == {"a": 4, "b": 6}
    pairs = [[c, c + 4] if constant == "outer" else [2 * c, 2 * c + 1] for c in range(4)]
    assert places(graph, "a")["a.weight", 0] == pairs


def test_a_width_remembered_from_another_tensor() -> None:
    """The reshape needs as many channels as the first layer has: the second keeps the same ones."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        shape = x.shape
        x = net.b(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return x.reshape(shape)

    graph = traced(Net(body, 8, a=conv(3, 8), b=nn.Linear(8, 8)))
    assert sizes(graph) == {"a": 8}
    assert ("b.weight", 0) in places(graph, "a") and ("b.weight", 1) in places(graph, "a")


def test_a_width_that_is_an_attribute_is_kept_true() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.sides = 8 * 36, (6, 6)
            self.a, self.head = conv(3, 8), nn.Linear(8 * 36, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.a(x).view(-1, self.features))
            return logits

    net = Head()
    graph = traced(net)
    assert sizes(graph) == {"a": 8}
    assert slim(net, graph, {"a": [0, 5, 6]}).features == 3 * 36
    assert net.features == 8 * 36


# --------------------------------------------------------------------------------------- contractions


class Attention(nn.Module):
    """Multi-head attention as most write it."""

    def __init__(self, width: int, heads: int, style: str) -> None:
        super().__init__()
        self.heads, self.head_dim, self.style = heads, width // heads, style
        self.scale = self.head_dim**-0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        first, last = self.heads, self.head_dim
        if self.style == "whole heads":
            first, last = -1, 3
        elif self.style == "constants":
            first, last = 4, 3
        q, k, v = (
            layer(x).view(batch, tokens, first, last).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.style == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(self.scale).softmax(-1)
            x = torch.einsum("bhqk,bhkd->bqhd", weights, v).flatten(2)
        elif self.style == "matmul":
            x = ((q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v).transpose(1, 2).flatten(2)
        else:
            scale = None if self.style == "no scale" else self.scale
            x = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).reshape(batch, tokens, -1)
        return self.out(x)  # type: ignore[no-any-return]


TOKENS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("matmul", {"0.query": 4, "0.query#2": 3}),
        ("einsum", {"0.query": 4, "0.query#2": 3}),
        ("fused", {"0.query": 4, "0.query#2": 3}),
        ("whole heads", {"0.query": 4}),
        ("no scale", {"0.query": 4, "0.query#2": 3}),
        ("constants", {}),
    ],
)
def test_attention(style: str, expected: dict[str, int]) -> None:
    """Heads come and go, and channels of a head, as far as the sizes in the code follow."""
    net = nn.Sequential(Attention(12, 4, style), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 5))
    graph = traced(
        net, TOKENS, countable=style != "einsum"
    )  # which multiplies what is of size one without counting
    assert {n: size for n, size in sizes(graph).items() if n[:2] == "0."} == expected | {"0.out": 12}


def test_slimmed_attention_has_its_attributes_true() -> None:
    net = nn.Sequential(Attention(12, 4, "fused"), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 5))
    graph = trace(net, TOKENS)
    slimmed: Any = slim(net, graph, {"0.query": [0, 2, 3], "0.query#2": [1, 2]}).get_submodule("0")
    assert (slimmed.heads, slimmed.head_dim) == (3, 2)
    assert slimmed.get_parameter("query.weight").shape == slimmed.get_parameter("value.weight").shape == (6, 12)
    assert torch.equal(slimmed.get_parameter("key.bias"), net.get_parameter("0.key.bias")[[1, 2, 7, 8, 10, 11]])


def test_multi_head_attention_of_torch_keeps_its_width() -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)
    graph = traced(nn.Sequential(layer, nn.Linear(12, 3)), TOKENS, along_channels=True, countable=False)
    assert sizes(graph) == {"0.linear1": 20}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_parameter_that_is_multiplied_by(side: str) -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x).mean((2, 3))
        return x @ net.w if side == "left" else (net.w.T @ x.T).T

    graph = traced(Net(body, 6, a=conv(3, 8), w=nn.Parameter(torch.randn(8, 6))))
    assert sizes(graph) == {"a": 8, "w": 6}
    roles = {m.tensor: m.role for m in group(graph, "a").members}
    assert roles["w"] == ("in" if side == "left" else roles["w"])


def test_a_gram_matrix() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x).flatten(2)
        return ((x @ x.transpose(1, 2)) @ x).unflatten(2, (6, 6))

    graph = traced(Net(body, 8, a=conv(3, 8)))
    assert sizes(graph) == {"a": 8}


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (nn.ConvTranspose2d(8, 6, 2, 2), {"a": 8, "b": 6}),
        (nn.ConvTranspose2d(8, 6, 2, 2, groups=2), {"a": 4, "b": 3}),
        (nn.ConvTranspose2d(8, 16, 2, 2, groups=8), {"a": 8}),
        (nn.Conv2d(8, 6, 3, padding="same", dilation=2), {"a": 8, "b": 6}),
        (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), {"a": 8, "b": 6}),
        (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), {"a": 8, "b": 6}),
    ],
)
def test_convolutions(layer: nn.Module, width: dict[str, int]) -> None:
    outputs = int(layer.out_channels)  # type: ignore[arg-type]
    graph = traced(Net(lambda net, x: net.b(net.a(x)), outputs, a=conv(3, 8), b=layer))
    assert sizes(graph) == width


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int) -> None:
    kinds: Any = {1: (nn.Conv1d, nn.BatchNorm1d, F.max_pool1d), 3: (nn.Conv3d, nn.BatchNorm3d, F.max_pool3d)}[rank]
    layer, norm, pool = kinds

    def body(net: Any, x: Tensor) -> Any:
        return pool(net.n(net.b(net.a(x))).relu(), 2).flatten(2).mean(2)

    net = Net(body, 6, a=layer(2, 8, 3), b=layer(8, 6, 1), n=norm(6))
    assert sizes(traced(net, torch.randn(2, 2, *(5,) * rank))) == {"a": 8, "b": 6}


@pytest.mark.parametrize("which", ["weight_norm", "standardised"])
def test_weights_that_are_computed(which: str) -> None:
    class Standardised(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / (weight.std((1, 2, 3), keepdim=True) + 0.1)

    layer = conv(8, 6)
    if which == "weight_norm":
        nn.utils.parametrizations.weight_norm(layer)
    else:
        nn.utils.parametrize.register_parametrization(layer, "weight", Standardised())
    net = Net(lambda net, x: net.b(net.a(x)), 6, a=conv(3, 8), b=layer)
    graph = traced(net, along_channels=True)
    assert sizes(graph) == {"a": 8, "b": 6} or sizes(graph).keys() == {"a", "b.parametrizations.weight"}
    inner = next(g for g in graph.groups if g.name != "a")
    assert "out" in {member.role for member in inner.members}


# ------------------------------------------------------------------------------------ inputs and outputs


@dataclass
class Pair:
    first: Tensor
    second: tuple[Tensor, ...]


class Several(nn.Module):
    """Two inputs and a dataclass of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(2, 8), conv(8, 5), conv(8, 4)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Pair:
        x = self.a(x) if y is None else self.a(x) + self.b(y)
        return Pair(self.c(x), (self.d(x),))


@pytest.mark.parametrize("named", [False, True])
def test_arguments_by_place_or_by_name_and_dataclasses(named: bool) -> None:
    x, y = torch.randn(1, 3, 6, 6), torch.randn(1, 2, 6, 6)
    net = Several()
    graph = traced(net, {"x": x, "y": y} if named else (x, y))
    assert sizes(graph) == {"a": 8}
    assert frozen(graph) == {"c": "network output", "d": "network output"}
    assert isinstance(slim(net, graph, {"a": [0, 1]})(x, y), Pair)


def test_learned_tokens_and_positions() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x).flatten(2).transpose(1, 2)
        x = torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1) + net.position
        return net.n(x)[:, 0]

    token, position = (nn.Parameter(torch.randn(1, n, 8)) for n in (1, 37))
    graph = traced(
        Net(body, 8, a=conv(3, 8), n=nn.LayerNorm(8), token=token, position=position), along_channels=True
    )
    assert sizes(graph) == {"a": 8}
    assert places(graph, "a")["position", 2] == places(graph, "a")["token", 2] == alone(range(8))
    assert frozen(graph) == {"head": "network output"}


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
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values

    graph = traced(Net(lambda net, x: net.n(net.b(net.a(x))), 6, a=conv(3, 8), b=conv(8, 6), n=Sorted()))
    assert frozen(graph)["b"] == "sort in n"


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


@pytest.mark.parametrize("what", ["parameter", "buffer"])
def test_a_stored_tensor_that_is_returned_keeps_its_shape(what: str) -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.prototypes = conv(3, 8), conv(8, 6), nn.Linear(6, 5)
            self.register_buffer("scale", torch.rand(6))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scale = self.get_buffer("scale")
            logits = self.prototypes(self.b(self.a(x)).mean((2, 3)) * scale)
            return logits, self.prototypes.weight if what == "parameter" else scale

    graph = traced(Prototypes(), along_channels=True)
    assert sizes(graph) == {"a": 8}
    assert frozen(graph)["b"] == "network output"


def test_an_output_of_unknown_type_is_refused() -> None:
    """It may hold tensors whose shapes would change."""

    class Normal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mean = conv(3, 8), conv(8, 4)

        def forward(self, x: Tensor) -> torch.distributions.Normal:
            return torch.distributions.Normal(self.mean(self.a(x)), 1.0, validate_args=False)

    with pytest.raises(TraceError, match=r"cannot trace Normal: its output holds a Normal: what may be returned"):
        trace(Normal(), IMAGES)


class DynamicCache:
    """What decoders of Transformers return beside their logits."""


def test_a_cache_in_the_output_is_told_how_to_leave_out() -> None:
    model = Net(lambda net, x: net.a(x), 8, a=conv(3, 8))
    model.register_forward_hook(lambda module, given, output: (output, DynamicCache()))
    with pytest.raises(TraceError, match=r"holds a DynamicCache: .*; use_cache=False leaves it out$"):
        trace(model, IMAGES)


def test_infinite_outputs_are_compared() -> None:
    """As of masked logits."""
    net = Net(lambda net, x: net.a(x), 8, a=conv(3, 8))
    masked = nn.Sequential(net, nn.Threshold(0.0, -float("inf")))
    assert sizes(traced(masked, along_channels=True)) == {"0.a": 8}


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


def test_buffers_and_inputs_that_a_network_changes_are_left_as_they_were() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = conv(3, 8), nn.Linear(8, 4)
            self.register_buffer("steps", torch.zeros(()))
            self.register_buffer("average", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2).sub_(0.5)
            steps, average = self.get_buffer("steps"), self.get_buffer("average")
            steps += 1
            x = self.a(x)
            average.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
            logits: Tensor = self.head((x - average[:, None, None]).mean((2, 3)) * steps)
            return logits

    net, images = Stateful(), IMAGES.clone()
    graph = traced(net, images, along_channels=True, countable=False)
    assert sizes(graph) == {"a": 8}
    slimmed = slim(net, graph, {"a": [0, 3]})
    assert torch.equal(images, IMAGES)
    for model in (net, slimmed):
        assert int(model.get_buffer("steps")) == 0 and not model.get_buffer("average").any()


def test_what_layers_say_of_their_widths_is_followed() -> None:
    """Slimming keeps it true, and what is computed of it would change."""

    def scaled(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x))
        return x * net.b.out_channels**-0.5

    graph = traced(Net(scaled, 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == {"a": 8}
    assert frozen(graph)["b"] == "their number enters the arithmetic"

    def residual(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x))
        return x + net.c(x) if net.c.in_channels == net.c.out_channels else net.c(x)

    graph = traced(Net(residual, 6, a=conv(3, 8), b=conv(8, 6), c=conv(6, 6)))
    assert sizes(graph) == {"a": 8, "b": 6}


def test_zeros_that_are_filled_are_no_weights() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        y = torch.zeros(x.shape[0], x.shape[1], 8, 8)
        y[:, :, 1:7, 1:7] = x
        return net.b(y)

    graph = traced(Net(body, 6, a=conv(3, 8), b=conv(8, 6)))
    assert sizes(graph) == {"a": 8, "b": 6}
    peaks = [int(trace(Net(body, 6, a=conv(3, 8), b=conv(8, 6)), IMAGES[:n]).peak_memory([8, 6])) for n in (1, 2)]
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize(
    ("move", "maps"),
    [
        (lambda y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 1),
        (lambda y: y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 2),
        (lambda y: y.transpose(1, 2).reshape(y.shape[0], -1).unflatten(1, (6, -1, 6)).transpose(1, 2), 2),
        (lambda y: y.contiguous().reshape(y.shape).relu_(), 1),
        (lambda y: y.relu(), 2),
    ],
    ids=["views", "contiguous", "reshape", "in place", "anew"],
)
def test_memory_is_held_once_by_views_and_again_by_copies(move: Callable[[Tensor], Tensor], maps: int) -> None:
    """Bytes: the image and the map that is made of it, or the map and its copy."""
    graph = trace(Net(lambda net, x: move(net.a(x)), 8, a=conv(3, 8)), IMAGES)
    for width in (8, 5):
        image, one = 4 * 36 * 3, 4 * 36 * width
        assert int(graph.peak_memory([width])) == (2 * one if maps == 2 else image + one)


def test_a_type_that_is_taken_over_couples_nothing() -> None:
    graph = traced(
        Net(lambda net, x: net.a(x) * torch.ones(5, dtype=torch.float64).type_as(x).sum(), 8, a=conv(3, 8))
    )
    assert sizes(graph) == {"a": 8}


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_changes_no_groups_and_no_costs(enabled: bool) -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            x = net.b(x).relu()
        return x.float()

    graph = traced(Net(body, 6, a=conv(3, 8), b=conv(8, 6)), countable=not enabled)
    assert sizes(graph) == {"a": 8, "b": 6}
    assert int(graph.macs([8, 6])) == 36 * 9 * (3 * 8 + 8 * 6) + 6 * 4


def test_moving_and_summing_by_einsum_costs_nothing() -> None:
    graph = traced(Net(lambda net, x: torch.einsum("bchw->bc", net.a(x)), 8, a=conv(3, 8)))
    assert sizes(graph) == {"a": 8}


def test_rotated_as_complex_numbers() -> None:
    """Pairs of neighbours are real and imaginary parts."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x).flatten(2).transpose(1, 2).contiguous()
        turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * net.angles
        return torch.view_as_real(turned).flatten(2).mean(1)

    net = Net(body, 8, a=conv(3, 8))
    net.register_buffer("angles", torch.polar(torch.ones(36, 4), torch.rand(36, 4)))
    assert sizes(traced(net)) == {"a": 4}


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


def test_branches_on_values_are_taken_as_the_example_has_them() -> None:
    model = DataDependent().train()
    assert sizes(trace(model, IMAGES)) == {"a": 8}
    assert model.training
    traced(model)


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
        self.a: nn.Module
        self.b: nn.Module
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
        elif kind == "attention":
            self.outputs = inputs
            self.heads, self.head_dim = 2, width // 2
            self.a, self.b = nn.Linear(inputs, 3 * width), nn.Linear(width, inputs)
        elif kind == "upsampled":
            self.a, self.b = nn.Conv2d(inputs, width, 2, 2), nn.ConvTranspose2d(width, width, 2, 2, groups=2)
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
        if self.kind == "attention":
            return x + self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        if self.kind == "upsampled":
            return F.elu(self.b(self.a(x)))
        if self.kind == "pool":
            return F.max_pool2d(x, 3, 1, 1)
        if self.kind == "gated":
            value, gate = torch.chunk(self.a(x), 2, 1)
            return torch.tanh(value) * torch.sigmoid(gate)
        scale: Tensor = self.b(F.relu(self.a(x.mean((2, 3), keepdim=True))))
        return x * scale.sigmoid()

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.a(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 4).softmax(-1)
        out: Tensor = self.b((weights @ v).transpose(1, 2).flatten(2))
        return out


class RandomNetwork(nn.Module):
    """Blocks one after another, a head on the last one, and one on the map that goes into it."""

    def __init__(self, blocks: list[tuple[str, int]], flat: bool) -> None:
        super().__init__()
        self.flat, width, layers = flat, 3, []
        for kind, wanted in blocks:
            layers.append(Block(kind, width, wanted))
            width = layers[-1].outputs
        self.blocks, self.last = nn.Sequential(*layers[:-1]), layers[-1]
        self.head = nn.Linear(width * 16 if flat else width, 3)
        self.auxiliary = nn.Conv2d(layers[-2].outputs if len(layers) > 1 else 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.blocks(x)
        maps = self.auxiliary(x)
        x = self.last(x)
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3))), {"maps": maps}


@st.composite
def networks(draw: st.DrawFn) -> RandomNetwork:
    """Any blocks around one plain convolution, which there is always something to prune in."""
    width, stem = 3, draw(st.integers(0, 1))
    blocks: list[tuple[str, int]] = []
    for place in range(draw(st.integers(stem + 1, 6))):
        kinds = ["plain", "residual", "concat", "squeeze", "gated", "pool", "attention", "upsampled"]
        kinds += ["depthwise"] * (width <= 24) + ["grouped"] * (width % 2 == 0 and width > 2)
        kinds += ["shuffle"] * (width % 2 == 0)
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
    try:
        graph = trace(model, images)
    except TraceError as error:  # shuffled and chunked until all channels are one
        assert re.search("nothing in .*all of it is one channel", str(error))
        reject()
    for _ in range(2):
        keep = data.draw(keep_masks(graph))
        widths, slimmed = graph.widths(keep), slim(model, graph, keep)
        assert_is_masked(slimmed, model, graph, keep, images)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            logits, others = slimmed(images[:1])
        assert logits.shape == (1, 3) and others["maps"].shape == (1, 2, 4, 4)
        macs = int(graph.macs(widths))
        assert counter.get_total_flops() == 2 * macs
        assert sum(p.numel() for p in slimmed.parameters()) == int(graph.params(widths))
        wider = np.minimum(widths + np.eye(len(widths), dtype=np.int64), graph.sizes)
        assert (graph.macs(wider) >= macs).all() and (graph.params(wider) >= graph.params(widths)).all()
        assert (graph.macs(wider)[widths < graph.sizes] > macs).all()
