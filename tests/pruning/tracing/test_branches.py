"""Residual branches that are taken out: found, cut, and the network without them is the masked one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import espalier
from espalier.errors import ConfigError, VerificationError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.latency.features import Features
from espalier.pruning.networks import build
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.removed import Removed
from espalier.pruning.slimming.surgery import mask, slim

# -- networks


class Basic(nn.Module):
    """As of torchvision: one ReLU, in place, twice, and a sum in place of the branch."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        found: Tensor = self.relu(out)
        return found


class Encoder(nn.Module):
    """PyTorch's own, whose fused kernel reads the weights of its layers."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, norm_first=norm_first)
        self.first, self.encoder = (
            nn.Linear(8, 12),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first),
        )
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Any:
        return self.last(self.encoder(self.first(x), src_key_padding_mask=padding).mean(1))


class Plain(nn.Module):
    """Two convolutions that nothing goes around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class PreActivated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv2(F.relu(self.bn2(self.conv1(F.relu_(self.bn1(x)))))))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """As of MobileNetV3: the squeezed group goes with the branch, and not alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * width
        self.conv = nn.Sequential(
            nn.Conv2d(width, inner, 1),
            nn.BatchNorm2d(inner),
            nn.SiLU(inplace=True),
            nn.Conv2d(inner, inner, 3, 1, 1, groups=inner),
            nn.BatchNorm2d(inner),
            SqueezeExcite(inner),
            nn.Conv2d(inner, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.conv(x)
        return found


class ConvNeXt(nn.Module):
    """Its norm and depthwise convolution are before the group, its scale and a permutation are its own code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.down(F.gelu(self.up(out))).permute(0, 3, 1, 2)
        return torch.add(out * self.gamma.reshape(1, -1, 1, 1), x)


class Nested(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)
        self.inner = PreActivated(width // 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.up(self.inner(self.down(x)))
        return found


class Bordered(nn.Module):
    """What is left behind is another number at the border of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.c = nn.Conv2d(width, width, 3, 1, 1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.c(self.b(F.relu(self.a(x))))
        return found


class Inline(nn.Module):
    """Weights in the block's own code, which stays."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2 * width, width)), nn.Parameter(torch.randn(width, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(F.relu(F.linear(x.permute(0, 2, 3, 1), self.a)), self.b)
        return x + y.permute(0, 3, 1, 2)


class Shared(nn.Module):
    """A layer of the branch that is used elsewhere, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(x))
        return torch.add(x, self.b(F.relu(self.a(x))))


class Gated(nn.Module):
    """Without the branch the gate is a constant, but nothing is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = SqueezeExcite(width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.gate(x)
        return found


class Images(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 16, 3, 1, 1), nn.Sequential(*blocks), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))
        return found


class Attention(nn.Module):
    """As of timm: its code is one module's, and it divides by the number of heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2)
        return self.proj(out.reshape(b, n, self.num_heads * self.head_dim)), None


class Layer(nn.Module):
    def __init__(self, width: int, after: bool) -> None:
        super().__init__()
        self.after = after
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.after:  # the norm sees the constant that is left, over the channels of the stream that are
            x = x + self.norm1(self.attention(x)[0])
            return torch.add(x, self.norm2(self.mlp(x)))
        x = x + self.attention(self.norm1(x))[0]
        return torch.add(x, self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    def __init__(self, after: bool) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32), nn.Linear(32, 10)
        self.layers = nn.Sequential(Layer(32, after), Layer(32, after))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.layers(self.patches(x).flatten(2).transpose(1, 2))).mean(1))
        return found


def huggingface_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    network: nn.Module = ViTForImageClassification(config)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "basic": (lambda: Images(Basic(16, 16), Basic(16, 16, 2), Basic(16, 16)), 3, 3),
    "plain": (lambda: Images(Plain(16), PreActivated(16)), 1, 1),
    "pre-activated": (lambda: Images(PreActivated(16), PreActivated(16)), 2, 2),
    "inverted": (lambda: Images(Inverted(16), Inverted(16)), 2, 2),
    "convnext": (lambda: Images(ConvNeXt(16), ConvNeXt(16)), 2, 2),
    "nested": (lambda: Images(Nested(16), Nested(16)), 4, 4),
    "bordered": (lambda: Images(Bordered(16), PreActivated(16)), 1, 1),
    "inline": (lambda: Images(Inline(16), PreActivated(16)), 1, 1),
    "shared": (lambda: Images(Shared(16), PreActivated(16)), 1, 1),
    "gated": (lambda: Images(Gated(16), PreActivated(16)), 1, 1),
    "transformer": (lambda: Transformer(after=False), 4, 6),
    "norms after": (lambda: Transformer(after=True), 4, 6),
    "huggingface": (huggingface_vit, 4, 6),
    "resnet20": (lambda: build("resnet20"), 9, 9),
    "resnet20 B": (lambda: build("resnet20", shortcut="B"), 9, 9),
    "mobilenet_v2": (lambda: build("mobilenet_v2", width_mult=0.25), 11, 11),
}
"""Name -> what makes it, its branches, and its removable groups."""
WITHOUT: dict[str, int] = {"resnet56": 27, "resnet50": 16}


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose biases, norms and statistics are none of zero, so that what is left behind is a number."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make().eval()
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.data.uniform_(0.2, 1.0)
    return network


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def without(graph: ChannelGraph, removed: list[int], rng: np.random.Generator) -> Ints:
    """Random widths, none for what goes."""
    widths = np.maximum(1, (graph.sizes * rng.uniform(0.4, 1.0, len(graph.sizes))).astype(np.int64))
    return np.where(graph.gone(removed), 0, widths)


def check(network: nn.Module, graph: ChannelGraph, widths: Ints, inputs: Tensor, scores: Floats) -> nn.Module:
    """Slims, which compares with the masked network, and counts; the slimmed network."""
    keep = graph.keep_best(scores, widths)
    slimmed = slim(network, graph, keep)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        slimmed(inputs)
    assert counter.get_total_flops() == 2 * len(inputs) * int(graph.macs(widths))
    assert sum(parameter.numel() for parameter in slimmed.parameters()) == int(graph.params(widths))
    return slimmed


# -- what is found


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_branches_go_and_the_network_is_the_masked_one(name: str) -> None:
    make, branches, removable = NETWORKS[name]
    network, inputs = drawn(make), images()
    graph = espalier.trace(network, inputs, depth=True)
    assert (len(graph.branches), int(graph.removable.sum())) == (branches, removable)
    rng = np.random.default_rng(0)
    for first in (0, 1):
        removed = list(range(first, branches, 2))
        widths = without(graph, removed, rng)
        assert graph.removed(widths)[: len(removed)] or not removed
        slimmed = check(network, graph, widths, inputs, rng.random(graph.n_channels))
        assert any(isinstance(module, Removed) for module in slimmed.modules()) == bool(removed)
    nothing = without(graph, list(range(branches)), rng)
    check(network, graph, nothing, inputs, rng.random(graph.n_channels))


@pytest.mark.parametrize("name", WITHOUT)
def test_large_networks(name: str) -> None:
    network, inputs = drawn(lambda: build(name)), images(1, 32)
    graph = espalier.trace(network, inputs, depth=True)
    assert len(graph.branches) == WITHOUT[name]
    rng = np.random.default_rng(0)
    widths = without(graph, list(range(0, len(graph.branches), 2)), rng)
    check(network, graph, widths, inputs, rng.random(graph.n_channels))


BLOCKS: list[Callable[[int], nn.Module]] = [
    lambda width: Basic(width, width),
    lambda width: Basic(width, width, 2),
    PreActivated,
    Inverted,
    ConvNeXt,
    Nested,
    Plain,
    Bordered,
]


@settings(max_examples=15)
@given(
    chosen=st.lists(st.integers(0, len(BLOCKS) - 1), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    share=st.floats(0.1, 1.0),
)
def test_random_networks_without_random_branches(chosen: list[int], seed: int, share: float) -> None:
    network, inputs = drawn(lambda: Images(*(BLOCKS[number](16) for number in chosen)), seed), images()
    graph = espalier.trace(network, inputs, depth=True)
    rng = np.random.default_rng(seed)
    removed = [number for number in range(len(graph.branches)) if rng.random() < share]
    check(network, graph, without(graph, removed, rng), inputs, rng.random(graph.n_channels))


def test_what_goes_is_named_and_streams_and_stems_are_not() -> None:
    graph = espalier.trace(build("resnet20"), images(1, 32), depth=True)
    removable = [group.name for group, found in zip(graph.groups, graph.removable, strict=True) if found]
    assert removable == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    assert list(graph.branches[0].modules) == [f"layer1.0.{layer}" for layer in ("conv1", "bn1", "conv2", "bn2")]


def test_both_inner_groups_of_a_bottleneck_take_one_branch_out() -> None:
    graph = espalier.trace(build("resnet50"), images(1, 64), depth=True)
    branch = graph.branches[0]
    assert branch.groups == branch.triggers
    assert [graph.groups[group].name for group in branch.groups] == ["layer1.0.conv1", "layer1.0.conv2"]
    one = graph.sizes.copy()
    one[branch.groups[1]] = 0
    both = np.where(graph.gone([0]), 0, graph.sizes)
    for cost in (graph.macs, graph.params, graph.peak_memory):
        assert cost(one) == cost(both) <= cost(graph.sizes)
    assert graph.macs(both) < graph.macs(graph.sizes)
    features = Features(graph)
    np.testing.assert_array_equal(features(one[None].astype(float)), features(both[None].astype(float)))
    keep = espalier.pruning.slimming.surgery.as_mask(graph, {graph.groups[branch.groups[1]].name: []})
    np.testing.assert_array_equal(graph.widths(keep), both)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_without_a_branch_runs_as_its_user_runs_it(norm_first: bool) -> None:
    """Verification runs the code of its layers; in eval mode without gradients a fused kernel takes their place."""
    torch.manual_seed(0)
    network, inputs = Encoder(norm_first).eval(), torch.randn(2, 5, 8)
    graph = espalier.trace(network, inputs, depth=True)
    assert len(graph.branches) == 2
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    keep = graph.keep_best(np.arange(float(graph.n_channels)), np.where(graph.gone([0]), 0, graph.sizes))
    for inplace in (False, True):
        small = slim(network, graph, keep, inplace=inplace)
        expected = small(inputs).detach()
        with torch.no_grad():
            torch.testing.assert_close(small(inputs), expected)
            assert small(inputs, padding).shape == expected.shape


def test_a_slimmed_network_must_run_with_fused_attention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the dense one does; and the message is one line."""
    network, inputs = Encoder().eval(), torch.randn(2, 5, 8)
    graph = espalier.trace(network, inputs)
    real = nn.TransformerEncoderLayer.forward

    def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.backends.mha.get_fastpath_enabled() and layer.linear1.out_features < widest:
            raise RuntimeError("no kernel\nfor this")
        return real(layer, *args, **kwargs)

    monkeypatch.setattr(nn.TransformerEncoderLayer, "forward", forward)
    keep = graph.keep_best(np.arange(float(graph.n_channels)), np.maximum(graph.sizes // 2, 1))
    widest = 20
    with pytest.raises(VerificationError, match="cannot run with PyTorch's fused attention: no kernel for this"):
        slim(network, graph, keep)
    widest = 100  # where the dense network does not run so either, nobody runs it so
    slim(network, graph, keep)


def test_by_default_every_group_keeps_a_channel() -> None:
    network = build("resnet20")
    graph, deep = (espalier.trace(network, images(1, 32), depth=depth) for depth in (False, True))
    assert not graph.removable.any() and not graph.branches
    with pytest.raises(
        ConfigError, match=r"^every group must keep at least one channel, got none in layer1\.0\.conv1$"
    ):
        slim(network, graph, {"layer1.0.conv1": []})
    with pytest.raises(ConfigError, match=r"but for those whose branch can be taken out, got none in conv1$"):
        slim(network, deep, {"conv1": [], "layer1.0.conv1": []})
    rng = np.random.default_rng(0)
    widths = np.stack([without(graph, [], rng) for _ in range(50)])
    for metric in ("macs", "params", "peak_memory"):
        np.testing.assert_array_equal(getattr(graph, metric)(widths), getattr(deep, metric)(widths))
    assert graph.digest != deep.digest


# -- what is left


@pytest.mark.parametrize("name", ["basic", "convnext", "transformer"])
def test_the_network_with_zero_masks_computes_the_same_on_other_inputs(name: str) -> None:
    network = drawn(NETWORKS[name][0])
    graph = espalier.trace(network, images(), depth=True)
    widths = np.where(graph.gone([1]), 0, graph.sizes)
    keep = graph.keep_best(np.zeros(graph.n_channels), widths)
    slimmed, masked = slim(network, graph, keep), mask(network, graph, keep)
    others = images(3, 24 if name != "transformer" else 16)
    with torch.no_grad():
        torch.testing.assert_close(slimmed(others), masked(others), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(slimmed(others), network(others), atol=1e-2)


@pytest.mark.parametrize("name", ["basic", "pre-activated", "inverted", "nested", "resnet20"])
def test_recalibrated_it_is_the_recalibrated_masked_network(name: str) -> None:
    """A norm that sees nothing but zeros gives its shift."""
    network = drawn(NETWORKS[name][0])
    graph = espalier.trace(network, images(), depth=True)
    keep = graph.keep_best(np.zeros(graph.n_channels), np.where(graph.gone([0]), 0, graph.sizes))
    slimmed, masked = slim(network, graph, keep), mask(network, graph, keep)
    with torch.no_grad():
        before = slimmed(images(4))
        for each in (slimmed, masked):
            recalibrate_bn(each, images(16).split(8))
        torch.testing.assert_close(slimmed(images(4)), masked(images(4)), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(slimmed(images(4)), before, rtol=1e-2)


def test_a_graph_that_was_pickled_takes_branches_out_too() -> None:
    network = drawn(NETWORKS["transformer"][0])
    graph = espalier.trace(network, images(), depth=True)
    again = pickle.loads(pickle.dumps(graph))
    assert again.digest == graph.digest
    widths = np.where(graph.gone([0, 3]), 0, graph.sizes)
    keep = graph.keep_best(np.zeros(graph.n_channels), widths)
    one, other = (slim(network, each, keep).state_dict() for each in (graph, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_in_place() -> None:
    network = drawn(NETWORKS["basic"][0])
    graph = espalier.trace(network, images(), depth=True)
    keep = graph.keep_best(np.zeros(graph.n_channels), np.where(graph.gone([0, 2]), 0, graph.sizes // 2))
    apart, whole = slim(network, graph, keep), copy.deepcopy(network)
    slim(whole, graph, keep, inplace=True)
    with torch.no_grad():
        assert torch.equal(whole(images()), apart(images()))


@pytest.mark.parametrize("name", ["resnet20", "convnext", "transformer"])
def test_the_slimmed_network_is_traced_and_costs_what_it_should(name: str) -> None:
    network, inputs = drawn(NETWORKS[name][0]), images(1)
    graph = espalier.trace(network, inputs, depth=True)
    widths = np.where(graph.gone(range(0, len(graph.branches), 2)), 0, graph.sizes)
    slimmed = slim(network, graph, graph.keep_best(np.zeros(graph.n_channels), widths))
    found = espalier.trace(slimmed, inputs, depth=True)
    assert int(found.macs(found.sizes)) == int(graph.macs(widths))
    assert int(found.params(found.sizes)) == int(graph.params(widths))
    assert len(found.branches) == len(graph.branches) // 2
    ours, theirs = int(graph.peak_memory(widths)), int(found.peak_memory(found.sizes))
    assert theirs == pytest.approx(ours, rel=0.05)  # which has a number here and there


def test_a_branch_that_is_trained_goes_on_as_a_constant() -> None:
    network = drawn(NETWORKS["resnet20"][0])
    graph = espalier.trace(network, images(1, 32), depth=True)
    keep = graph.keep_best(np.zeros(graph.n_channels), np.where(graph.gone([0]), 0, graph.sizes))
    slimmed = slim(network, graph, keep).train()
    slimmed(images(4, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in slimmed.parameters())
    assert "layer1.0.bn2.constant0" in dict(slimmed.named_buffers())


@pytest.mark.parametrize("name", ["resnet20", "basic", "transformer"])
@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_the_exported_file_has_nothing_of_what_is_out(name: str, batch: Any, tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    network = drawn(NETWORKS[name][0])
    graph = espalier.trace(network, images(1), depth=True)
    widths = np.where(graph.gone(range(0, len(graph.branches), 2)), 0, graph.sizes)
    slimmed = slim(network, graph, graph.keep_best(np.zeros(graph.n_channels), widths))
    espalier.export(slimmed, images(1), tmp_path / "network.onnx", batch=batch)
    content = onnx.load(tmp_path / "network.onnx").graph
    kinds = [node.op_type for node in content.node]
    assert sum(kind in ("Conv", "Gemm", "MatMul") for kind in kinds) == (graph.macs_per_operation(widths) > 0).sum()
    assert {"ConstantOfShape", "Mul", "Tile"}.isdisjoint(kinds) or name == "transformer"
    assert "Expand" not in kinds or batch == "dynamic"
    numbers = sum(np.prod(tensor.dims) for tensor in content.initializer)
    if name != "basic":  # whose constants are images, as sums are written into them
        assert numbers < 1.1 * int(graph.params(widths)) < int(graph.params(graph.sizes))
