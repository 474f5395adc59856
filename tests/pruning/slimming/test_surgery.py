"""Slimmed networks against networks whose removed channels are zero, with norms as training leaves them."""

from __future__ import annotations

import copy
import pickle
import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from espalier.errors import ConfigError, VerificationError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import NETWORKS, build
from espalier.pruning.slimming.surgery import as_mask, assign, check, clone_structure, mask, slice_tensors, slim
from espalier.pruning.trace import trace

# One of each family for small images.
FAST = {
    *("resnet20", "vgg11_bn", "mobilenet_v2", "cifarnet", "alexnet", "preact_senet18"),
    *("densenet40", "shufflenet_v2", "regnet_y_200mf", "ghostnet", "g_ghost_regnet_x_200mf"),
}
EVERY_NETWORK = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in NETWORKS]
CONVOLUTIONAL = [param for param in EVERY_NETWORK if not str(param.values[0]).startswith("vit")]
TOLERANCE = 1e-4  # of the greatest output


def train_norms(network: nn.Module, images: Tensor) -> None:
    """Norms as training leaves them: statistics of activations, but not exactly those, any scale and shift."""
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        for parameter, centre in ((norm.weight, 1.0), (norm.bias, 0.0)):
            nn.init.normal_(parameter, centre, 0.3, generator)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, 0, 0.3, generator)
    with torch.no_grad():
        network.train()(images)
    for norm in norms:
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        mean += 0.3 * var.sqrt() * torch.randn(mean.shape, generator=generator)
        var *= torch.empty(var.shape).uniform_(0.5, 2, generator=generator)


@cache
def trained(name: str, **kwargs: Any) -> tuple[nn.Module, ChannelGraph, Tensor]:
    large = ("vgg", "resnet18", "resnet34", "resnet50", "resnet101", "alexnet", "densenet121", "regnet")
    side = 32 if name.startswith(large) else 8
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    network = build(name, **kwargs)
    train_norms(network, images)
    return network.eval(), trace(network, images), images[:2]


@st.composite
def policies(draw: st.DrawFn, graph: ChannelGraph) -> Tensor:
    """Any channels of any group, at least one of each: few of some groups, most of others."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    densities = low + (high - low) * torch.rand(len(graph.groups), generator=generator)
    sizes = torch.from_numpy(graph.sizes)
    keep = torch.rand(graph.n_channels, generator=generator) < densities.repeat_interleave(sizes)
    keep[(torch.rand(len(sizes), generator=generator) * sizes).long() + torch.from_numpy(graph.offsets[:-1])] = True
    return keep


def zeroed(model: nn.Module, graph: ChannelGraph, keep: Tensor) -> nn.Module:
    """The slow reference: removed channels are set to zero one by one, member by member."""
    network = copy.deepcopy(model)
    parameters = dict(network.named_parameters())
    for group, part in zip(graph.groups, torch.split(keep, graph.sizes.tolist()), strict=True):
        for member in group.members:
            if member.tensor in parameters:
                positions = member.positions[~part.numpy()[member.channels]]
                parameters[member.tensor].data.index_fill_(member.dim, torch.from_numpy(positions), 0)
    return network.eval()


def difference(got: nn.Module, expected: nn.Module, images: Tensor) -> float:
    """Greatest difference of outputs, as a share of the greatest output."""
    with torch.no_grad():
        outputs, wanted = got(images), expected(images)
    return float((outputs - wanted).abs().max() / wanted.abs().max())


def check_slimmed_equals_zeroed(model: nn.Module, graph: ChannelGraph, images: Tensor, keep: Tensor) -> None:
    slimmed, reference = slim(model, graph, keep, verify=False), zeroed(model, graph, keep)
    assert difference(slimmed, reference, images) < TOLERANCE
    assert sum(p.numel() for p in slimmed.parameters()) == int(graph.params(graph.widths(keep)))
    for name, parameter in mask(model, graph, keep).named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name))


# Without shrinking: a policy is a seed, and no seed is simpler than another. A position that is wrong shows with
# almost any policy, so a few are enough.
MANY = settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@MANY
@given(data=st.data())
def test_slimmed_equals_zero_masked(name: str, data: st.DataObject) -> None:
    model, graph, images = trained(name)
    check_slimmed_equals_zeroed(model, graph, images, data.draw(policies(graph)))


@MANY
@given(data=st.data())
def test_a_vision_transformer_equals_the_masked_one_whose_norms_see_what_is_left(data: st.DataObject) -> None:
    model, graph, images = trained("vit_tiny", depth=2)
    keep = data.draw(policies(graph))
    slimmed = slim(model, graph, keep, verify=False)
    assert check(model, graph, keep, slimmed) < TOLERANCE
    assert sum(p.numel() for p in slimmed.parameters()) == int(graph.params(graph.widths(keep)))
    assert slimmed(images).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet20", {"shortcut": "B"}),
        ("vgg11_bn", {"pools": 3}),
        ("mobilenet_v2", {"width_mult": 0.35}),
        ("mobilenet_v1", {"width_mult": 0.25}),
        ("shufflenet_v1", {"groups": 1, "width_mult": 0.25}),
    ],
)
@MANY
@given(data=st.data())
def test_slimmed_equals_zero_masked_in_other_forms(name: str, kwargs: dict[str, Any], data: st.DataObject) -> None:
    model, graph, images = trained(name, **kwargs)
    check_slimmed_equals_zeroed(model, graph, images, data.draw(policies(graph)))


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_pruning_matters_and_zero_masks_are_not_the_dense_network(name: str) -> None:
    model, graph, images = trained(name)
    keep = torch.rand(graph.n_channels, generator=torch.Generator().manual_seed(3)) < 0.5
    keep[torch.from_numpy(graph.offsets[:-1])] = True
    slimmed = slim(model, graph, keep)
    assert difference(slimmed, model, images) > 100 * TOLERANCE
    with torch.no_grad():
        first, second = slimmed(images)
    assert not torch.allclose(first, second, rtol=1e-3), "no signal reaches the output: nothing here shows anything"
    assert difference(slim(model, graph, torch.ones_like(keep)), model, images) < 1e-5


# ------------------------------------------------------------------------------- what comes back, what stays


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_the_slimmed_network_is_of_the_same_classes_with_true_attributes(name: str) -> None:
    model, graph, _ = trained(name)
    widths = graph.sizes // 3 + 1
    slimmed = slim(model, graph, graph.keep_best(np.random.default_rng(0).random(graph.n_channels), widths))
    cut = {
        member.tensor
        for group, width in zip(graph.groups, widths, strict=True)
        for member in group.members
        if width < group.size and member.dim == 0
    }
    modules, dense = dict(slimmed.named_modules()), dict(model.named_modules())
    assert [type(module) for module in modules.values()] == [type(module) for module in dense.values()]
    assert cut
    for path, module in modules.items():
        if isinstance(module, nn.Conv2d):
            before = dense[path]
            assert isinstance(before, nn.Conv2d)
            assert (module.out_channels, module.in_channels // module.groups) == module.weight.shape[:2]
            assert module.in_channels % module.groups == 0
            depthwise = before.groups == before.in_channels
            assert module.groups == (module.in_channels if depthwise else before.groups)
            assert (module.out_channels < before.out_channels) == (f"{path}.weight" in cut)
        elif isinstance(module, nn.BatchNorm2d):
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            assert {(module.num_features,)} == {tuple(tensor.shape) for tensor in tensors if tensor is not None}
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


@pytest.mark.parametrize("name", sorted(FAST))
def test_the_dense_network_stays_as_it_is(name: str) -> None:
    model, graph, _ = trained(name)
    before = copy.deepcopy(model.state_dict())
    keep = graph.keep_best(np.random.default_rng(0).random(graph.n_channels), (graph.sizes + 1) // 2)
    for made in (slim(model, graph, keep), mask(model, graph, keep)):
        with torch.no_grad():
            for tensor in (*made.parameters(), *made.buffers()):
                tensor.fill_(7)
            made.train()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(module.training for module in model.modules())


def test_mode_and_requires_grad_are_the_models_own() -> None:
    model = build("resnet20").train()
    model.get_parameter("conv1.weight").requires_grad_(False)
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    slimmed = slim(model, graph, torch.ones(graph.n_channels, dtype=torch.bool))
    assert slimmed.training and model.training
    assert [p.requires_grad for p in slimmed.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_slimmed_network_trains_and_is_traced_and_slimmed_again() -> None:
    model, graph, images = trained("mobilenet_v2")
    slimmed = slim(model, graph, graph.keep_best(np.arange(graph.n_channels, dtype=float), graph.sizes // 2))
    slimmed.train()(images).sum().backward()
    assert all(p.grad is not None for p in slimmed.parameters())
    smaller = trace(slimmed.eval(), images)
    assert smaller.sizes.tolist() == (graph.sizes // 2).tolist()
    assert int(smaller.macs(smaller.sizes)) == int(graph.macs(graph.sizes // 2))
    check_slimmed_equals_zeroed(slimmed, smaller, images, torch.arange(smaller.n_channels) % 2 == 0)


# ------------------------------------------------------------------------------------ skeletons used again


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.depthwise(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_skeleton_takes_policies_one_after_another() -> None:
    """A depthwise convolution of one channel, or a grouped one with one channel per group, is not forgotten."""
    model, images = Grouped().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, images)
    assert graph.sizes.tolist() == [2, 4]
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    skeleton = clone_structure(model)
    rng = np.random.default_rng(0)
    for widths in ([1, 4], [2, 1], [1, 1], [2, 4], [1, 2], [2, 3]):
        keep = graph.keep_best(rng.random(graph.n_channels), widths)
        assign(skeleton, slice_tensors(state, graph, keep), graph.integers_of(keep))
        assert difference(skeleton, zeroed(model, graph, keep), images) < TOLERANCE
        depthwise, grouped, norm = (skeleton.get_submodule(name) for name in ("depthwise", "grouped", "norm"))
        assert isinstance(depthwise, nn.Conv2d) and isinstance(grouped, nn.Conv2d)
        assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (
            4 * widths[0],
            4 * widths[0],
            8 * widths[0],
        )
        assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (4, 8 * widths[0], 4 * widths[1])
        assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 4 * widths[1]


def test_a_depthwise_convolution_comes_back_from_one_channel() -> None:
    model, graph, images = trained("mobilenet_v2")
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    skeleton = clone_structure(model)
    for widths in (np.ones_like(graph.sizes), graph.sizes // 2, graph.sizes):
        keep = graph.keep_best(np.arange(graph.n_channels, dtype=float), widths)
        assign(skeleton, slice_tensors(state, graph, keep), graph.integers_of(keep))
        got, expected = skeleton(images), slim(model, graph, keep)(images)
        assert torch.equal(got, expected)


# ------------------------------------------------------------------------------------------ what to keep


def test_keep_by_name_is_keep_by_mask() -> None:
    model, graph, _ = trained("resnet20")
    keep = torch.ones(graph.n_channels, dtype=torch.bool)
    keep[: graph.groups[0].size] = False
    keep[[1, 4, 9]] = True
    by_name = {graph.groups[0].name: [9, 1, 4]}
    assert torch.equal(as_mask(graph, by_name), keep)
    assert torch.equal(as_mask(graph, graph.kept_indices(keep)), keep)
    first, second = slim(model, graph, keep).state_dict(), slim(model, graph, by_name).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.ones(5, dtype=torch.bool), r"bool tensor of shape \(400,\), .*, got torch\.bool of shape \(5,\)"),
        (torch.ones(400), r"bool tensor of shape \(400,\), .*, got torch\.float32 of shape \(400,\)"),
        (torch.zeros(400, dtype=torch.bool), r"at least one channel, got none in conv1, layer1\.0\.conv1, "),
        ({"conv1": []}, r"every group must keep at least one channel, got none in conv1$"),
        ({"conv9": [0]}, r"a group 'conv9' that the graph lacks; it has conv1, layer1\.0\.conv1, "),
        ({"conv1": [0, 16]}, r"keep\['conv1'\] must lie in 0 \.\. 15, got \[0, 16\]"),
        ({"conv1": [True] * 16}, r"keep\['conv1'\] must list the indices of kept channels, got torch\.bool"),
        ({"conv1": [-1]}, r"keep\['conv1'\] must lie in 0 \.\. 15, got \[-1\]"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(keep: Any, message: str) -> None:
    model, graph, _ = trained("resnet20")
    for function in (slim, mask):
        with pytest.raises(ConfigError, match=message):
            function(model, graph, keep)


def test_a_graph_of_another_network_is_refused() -> None:
    """As that of the dense network, for one that is slimmed already."""
    model, graph, _ = trained("resnet20")
    slimmed = slim(model, graph, {"conv1": [0, 1]})
    with pytest.raises(ConfigError, match=r"the graph must be that of the network: it has 16 channels along"):
        slim(slimmed, graph, {"conv1": [0]})
    with pytest.raises(ConfigError, match=r"of conv1\.weight, the network no such tensor; trace the network"):
        slim(torch.nn.Linear(3, 4), graph, {"conv1": [0]})


def test_what_cannot_be_copied_is_shared() -> None:
    model, graph, _ = trained("resnet20")
    model = copy.deepcopy(model)
    lock = threading.Lock()
    model.lock = lock  # type: ignore[assignment]
    slimmed = slim(model, graph, {"conv1": [0, 1]})
    assert slimmed.__dict__["lock"] is lock


# --------------------------------------------------------------------------------------------- verify


def test_verify_returns_the_difference_and_keeps_the_mode() -> None:
    model, graph, _ = trained("resnet20")
    keep = torch.arange(graph.n_channels) % 3 > 0
    slimmed = slim(model, graph, keep).train()
    statistics = copy.deepcopy(slimmed.state_dict())
    assert 0 <= check(model, graph, keep, slimmed) < 1e-5
    assert slimmed.training
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in slimmed.state_dict().items())


def test_verify_refuses_another_network() -> None:
    model, graph, _images = trained("resnet20")
    keep, other = torch.arange(graph.n_channels) % 2 == 0, torch.arange(graph.n_channels) % 2 == 1
    message = r"slimmed CifarResNet differs from the masked one, first at conv1: .* more than"
    with pytest.raises(VerificationError, match=message):
        check(model, graph, keep, slim(model, graph, other))


def test_verify_names_the_first_layer_that_differs() -> None:
    model, graph, _images = trained("resnet20")
    keep = torch.arange(graph.n_channels) % 3 > 0
    slimmed = slim(model, graph, keep)
    slimmed.get_parameter("layer2.1.bn1.weight").data[0] += 0.1
    with pytest.raises(VerificationError, match=r"first at layer2\.1\.bn1: by \d"):
        check(model, graph, keep, slimmed)


def test_verify_names_the_layer_that_cannot_run() -> None:
    model, graph, _images = trained("resnet20")
    keep = torch.arange(graph.n_channels) % 3 > 0
    slimmed = slim(model, graph, keep)
    weight = slimmed.get_parameter("layer2.1.conv1.weight")
    weight.data = weight.data[:, :-1]
    with pytest.raises(
        VerificationError, match=r"CifarResNet cannot run, it fails in layer2\.1\.conv1: .*channels"
    ):
        check(model, graph, keep, slimmed)


def test_an_example_of_zeros_hides_nothing() -> None:
    model, _, images = trained("resnet20")
    graph = trace(model, torch.zeros_like(images))
    keep, other = torch.arange(graph.n_channels) % 2 == 0, torch.arange(graph.n_channels) % 2 == 1
    with pytest.raises(VerificationError, match="first at conv1"):
        check(model, graph, keep, slim(model, graph, other))


def test_a_graph_that_was_pickled_verifies_too() -> None:
    model, graph, _images = trained("resnet20")
    again = pickle.loads(pickle.dumps(graph))
    keep, other = torch.arange(graph.n_channels) % 2 == 0, torch.arange(graph.n_channels) % 2 == 1
    slim(model, again, keep)
    with pytest.raises(VerificationError, match="first at conv1"):
        check(model, again, keep, slim(model, graph, other))


def test_verify_refuses_nan() -> None:
    model, graph, _images = trained("resnet20")
    keep = torch.ones(graph.n_channels, dtype=torch.bool)
    slimmed = slim(model, graph, keep)
    slimmed.get_parameter("linear.bias").data[0] = float("nan")
    with pytest.raises(VerificationError, match="first at linear: by nan"):
        check(model, graph, keep, slimmed)


class Stubborn(nn.Module):
    """Looks at a width and does something else when it is 6, and at no other: no tracing can see that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if str(x.shape[1]) == "6":
            x = -x
        logits: Tensor = self.head(self.mix(x).mean((2, 3)))
        return logits


def test_slim_refuses_what_does_something_else_once_it_is_narrower() -> None:
    model, images = Stubborn().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(model, images)
    keep = graph.keep_best(np.arange(graph.n_channels, dtype=float), [6, 6])
    message = r"slimmed Stubborn differs .*, first at mix: .*depends on a width that slimming cannot see"
    with pytest.raises(VerificationError, match=message):
        slim(model, graph, keep)
    assert slim(model, graph, keep, verify=False)(images).shape == (2, 3)
