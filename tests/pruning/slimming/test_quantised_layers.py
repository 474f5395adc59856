"""Layers in fewer bits: what they compute, what they cost, and that all else goes on as before."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import espalier
from espalier.errors import ArtefactError, BudgetInfeasible, ConfigError, TraceError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.precision import rounded
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.normalizations import NORMALIZATIONS, normalize
from espalier.pruning.latency.features import Features
from espalier.pruning.latency.measuring import draw_widths
from espalier.pruning.networks import build
from espalier.pruning.slimming.quantised_layers import in_float, quantise, quantised_layers
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.search.files.network_file import load, save


class Small(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.outer = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.outer(F.relu(self.norm(self.inner(x))))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


LAYERS = ["stem", "inner", "outer", "head"]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def graph(network: nn.Module, images: Tensor) -> ChannelGraph:
    return espalier.trace(network, images[:1], bits=(4, 8, 32))


def widths_with(graph: ChannelGraph, bits: dict[str, int]) -> np.ndarray:
    found = graph.sizes.copy()
    for each in graph.precisions:
        found[each.group] = 1 + each.bits.index(bits.get(each.layer, 32))
    return found


def test_every_convolution_and_linear_layer_has_a_group(graph: ChannelGraph) -> None:
    assert [each.layer for each in graph.precisions] == LAYERS
    assert [group.name for group in graph.groups[-4:]] == [f"{layer} bits" for layer in LAYERS]
    assert graph.bits_of(graph.sizes) == {}
    assert graph.bits_of(widths_with(graph, {"inner": 4, "head": 8})) == {"inner": 4, "head": 8}


def test_costs_are_those_of_each_layer(graph: ChannelGraph, network: nn.Module) -> None:
    macs = {"stem": 3 * 8 * 9 * 64, "inner": 8 * 12 * 9 * 64, "outer": 12 * 8 * 9 * 64, "head": 8 * 5}
    weights = {name: network.get_parameter(f"{name}.weight").numel() for name in LAYERS}
    params = sum(each.numel() for each in network.parameters())
    bits = {"stem": 8, "inner": 4}
    widths = np.stack([graph.sizes, widths_with(graph, bits)])
    products = {"stem": 8 * 8, "inner": 4 * 8}  # of 4 bits, only the weights are
    assert graph.bit_operations(widths).tolist() == [
        1024 * sum(macs.values()),
        sum(count * products.get(name, 1024) for name, count in macs.items()),
    ]
    assert graph.weight_bytes(widths).tolist() == [
        4 * params,
        4 * params - 3 * weights["stem"] - 3.5 * weights["inner"],
    ]
    assert graph.macs(widths[0]) == graph.macs(widths[1]) == sum(macs.values())
    assert graph.params(widths[1]) == params
    plain = espalier.trace(network, torch.zeros(1, 3, 8, 8))
    some = graph.sizes.copy()
    some[: len(plain.groups)] //= 2
    for metric in ("macs", "params", "peak_memory"):
        assert getattr(graph, metric)(some) == getattr(plain, metric)(some[: len(plain.groups)])


@pytest.mark.parametrize("metric", ["bit_operations", "weight_bytes"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.05])
def test_budgets_are_met_and_no_step_more_fits(
    graph: ChannelGraph, network: nn.Module, metric: str, share: float
) -> None:
    scores = espalier.channel_energies(network, graph).numpy()
    budget = espalier.Budget.of(espalier.Budget(**{metric: share}), graph)
    for widths in (espalier.greedy(graph, scores, budget), espalier.uniform(graph, budget)):
        assert budget.fits(graph, widths)
        more = widths + np.eye(len(widths), dtype=np.int64)
        assert not budget.fits(graph, more[widths < graph.sizes]).any()
    with pytest.raises(BudgetInfeasible, match=r"cannot be reached: with every group at its fewest channels"):
        espalier.greedy(graph, scores, espalier.Budget(**{metric: 0.0005}))


def test_rounded_weights_cost_what_their_energy_says(network: nn.Module, graph: ChannelGraph) -> None:
    scores = espalier.channel_energies(network, graph).double()
    channels = scores[: int(graph.offsets[graph.precisions[0].group])]
    for each in graph.precisions:
        own = scores[int(graph.offsets[each.group]) :][:3] / channels.mean() / 3
        weight = network.get_parameter(each.tensor).detach().double()
        lost = [float((weight - rounded(weight, bits)).norm() ** 2 / weight.norm() ** 2) for bits in (4, 8)]
        torch.testing.assert_close(
            own, torch.tensor([1 - lost[0], lost[0] - lost[1], lost[1]]).double(), rtol=1e-3, atol=0
        )
        assert own[0] > own[1] > own[2] > 0


@pytest.mark.parametrize("name", [name for name, each in CRITERIA.items() if not each.needs])
def test_every_criterion_ranks_bits_in_their_order(name: str, network: nn.Module, graph: ChannelGraph) -> None:
    small = build("resnet20", in_channels=1, num_classes=4).eval()
    traced = espalier.trace(small, torch.zeros(1, 1, 8, 8), bits=(4, 8, 32))
    scores = CRITERIA[name](small, traced).double().numpy()
    for normalization in NORMALIZATIONS:
        found = normalize(scores, traced, normalization)
        assert np.isfinite(found).all()
        for each in traced.precisions:
            own = found[int(traced.offsets[each.group]) :][:3]
            assert own[0] >= own[1] >= own[2], normalization


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, 3, 2, 1, groups=1), nn.Conv3d(3, 4, 2), nn.Linear(3, 4)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_computes_on_whole_numbers(layer: Any, bits: int) -> None:
    shapes = {nn.Conv1d: (2, 3, 9), nn.Conv2d: (2, 3, 9, 9), nn.Conv3d: (2, 3, 5, 5, 5), nn.Linear: (2, 7, 3)}
    x = torch.randn(shapes[type(layer)], generator=torch.Generator().manual_seed(0)).double() + 0.5
    own: Any = nn.Sequential(copy.deepcopy(layer)).double().eval()
    quantise(own, {"0": bits})
    recalibrate_bn(own, [x])
    low, high = own[0].input_range.tolist()
    assert low == pytest.approx(float(x.min())) and high == pytest.approx(float(x.max()))
    step = (high - low) / 255
    zero = round(-low / step)
    levels = (torch.round(x / step) + zero).clamp(0, 255)
    weight = layer.weight.detach().double()
    steps = weight.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    whole = torch.round(weight / steps.view(-1, *[1] * (weight.dim() - 1)))
    assert int(whole.abs().max()) == 2 ** (bits - 1) - 1
    integers = copy.deepcopy(layer).double()
    integers.weight.data, integers.bias.data = whole, torch.zeros_like(integers.bias.data)
    with torch.no_grad():
        padded = integers(levels - zero)
        along = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (weight.dim() - 2))
        expected = padded * step * steps.view(along) + layer.bias.double().view(along)
        torch.testing.assert_close(own(x), expected, rtol=1e-5, atol=1e-5)


def test_rounding_has_the_gradient_of_the_identity(network: nn.Module, images: Tensor) -> None:
    quantised = copy.deepcopy(network)
    quantise(quantised, dict.fromkeys(LAYERS, 8))
    quantised.train()
    network.train()
    for each in (network, quantised):
        each(images).square().sum().backward()
    for (name, one), other in zip(network.named_parameters(), quantised.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        if name == "inner.bias":  # before a batch norm it has none
            continue
        angle = F.cosine_similarity(one.grad.flatten(), other.grad.flatten(), 0)
        assert angle > 0.98, name


def test_what_it_reads_in_training_moves_the_range(network: nn.Module, images: Tensor) -> None:
    quantise(network, {"stem": 8})
    stem = quantised_layers(network)["stem"]
    assert torch.isnan(stem.input_range).all()
    with torch.no_grad():
        before = network(images)  # by the batch itself
        recalibrate_bn(network, [images])
        low, high = stem.input_range.tolist()
        torch.testing.assert_close(stem.rounded_input(images), stem.rounded_input(images.clone()))
        assert stem.input_range.tolist() == [low, high] and before.isfinite().all()
        network.train()
        network(2 * images)
        assert stem.input_range.tolist() == pytest.approx([1.1 * low, 1.1 * high])


def test_it_compiles_in_one_piece(network: nn.Module, images: Tensor) -> None:
    """Nothing in a pass asks for a tensor's value, which would make a GPU wait."""
    quantise(network, dict.fromkeys(LAYERS, 8) | {"stem": 4})
    for mode in (True, True, False):
        expected = copy.deepcopy(network.train(mode))(images)
        found = torch.compile(network, fullgraph=True, backend="aot_eager")(images)
        torch.testing.assert_close(found, expected)


def test_slimming_gives_the_layers_their_bits_and_leaves_the_network(
    network: nn.Module, graph: ChannelGraph, images: Tensor
) -> None:
    widths = widths_with(graph, {"inner": 4, "outer": 8})
    widths[1] = 5
    scores = espalier.channel_energies(network, graph).numpy()
    keep = graph.keep_best(scores, widths)
    small: Any = espalier.slim(network, graph, keep)
    assert {path: each.bits for path, each in quantised_layers(small).items()} == {"inner": 4, "outer": 8}
    assert not quantised_layers(network) and type(network.inner) is nn.Conv2d
    assert small.inner.weight.shape[0] == widths[1] == 5
    inside = espalier.slim(copy.deepcopy(network), graph, keep, inplace=True)
    with torch.no_grad():
        torch.testing.assert_close(inside(images), small(images))
    assert set(in_float(small)) == {"inner", "outer"} and not quantised_layers(small)
    plain = espalier.trace(network, images[:1])
    with torch.no_grad():
        torch.testing.assert_close(small(images), espalier.slim(network, plain, keep[: plain.n_channels])(images))


def test_bits_of_a_branch_that_is_out_are_nothing(network: nn.Module, images: Tensor) -> None:
    graph = espalier.trace(network, images[:1], depth=True, bits=(8, 32))
    widths = np.where(graph.removable, 0, graph.sizes)
    for each in graph.precisions:
        widths[each.group] = 1
    assert set(graph.bits_of(widths)) == {"stem", "head"}
    small = espalier.slim(network, graph, graph.keep_best(np.zeros(graph.n_channels), widths))
    assert set(quantised_layers(small)) == {"stem", "head"}
    assert graph.bit_operations(widths) < graph.bit_operations(np.where(graph.removable, 1, widths))


def test_a_file_holds_bits_and_ranges(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    network = build("resnet20", in_channels=3, num_classes=4).eval()
    quantise(network, {"conv1": 8, "layer1.0.conv1": 4})
    recalibrate_bn(network, [images])
    save(network, tmp_path / "q.espalier", name="resnet20", kwargs={"in_channels": 3, "num_classes": 4})
    again = load(tmp_path / "q.espalier")
    assert {path: each.bits for path, each in quantised_layers(again).items()} == {"conv1": 8, "layer1.0.conv1": 4}
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    assert torch.equal(pickle.loads(pickle.dumps(network)).eval()(images), network(images))


@pytest.mark.parametrize("bits", [{"nothing": 8}, {"norm": 8}, {"stem": 33}, {"stem": "8"}])
def test_what_cannot_be_quantised_is_named(network: nn.Module, bits: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(bits))):
        quantise(network, bits)


def test_a_file_with_wrong_bits_is_refused(images: Tensor, tmp_path: Path) -> None:
    from espalier.search.files.tensor_files import load_tensors, save_tensors

    network = build("resnet20", in_channels=3, num_classes=4).eval()
    save(network, tmp_path / "q.espalier", name="resnet20", kwargs={"in_channels": 3, "num_classes": 4})
    tensors, header = load_tensors(tmp_path / "q.espalier")
    for wrong in ({"conv1": 99}, {"bn1": 8}, ["conv1"]):
        save_tensors(tmp_path / "q.espalier", tensors, header | {"bits": wrong})
        with pytest.raises(ArtefactError, match="does not fit the network"):
            load(tmp_path / "q.espalier")


@pytest.mark.parametrize("bits", [(8,), (32,), (8, 4, 32), (1, 32), (8, 16), (8.0, 32)])
def test_bits_that_make_no_group_are_refused(network: nn.Module, images: Tensor, bits: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="bits must rise"):
        espalier.trace(network, images[:1], bits=bits)


def test_a_layer_that_has_read_nothing_but_zeros_gives_its_bias() -> None:
    network = nn.Sequential(nn.Linear(8, 4))
    quantise(network, {"0": 8})
    recalibrate_bn(network, [torch.zeros(4, 8)])
    with torch.no_grad():
        found = network(torch.full((1, 8), 5.0))
        assert torch.isfinite(found).all() and network(torch.zeros(0, 8)).shape == (0, 4)
        torch.testing.assert_close(network(torch.zeros(1, 8)), network[0].bias[None])  # type: ignore[index]


class Tied(nn.Module):
    """Two layers that share a weight, one whose weight is read from outside, fused ones, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.seen, self.plain = (nn.Linear(8, 8) for _ in range(4))
        self.other.weight = self.one.weight
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.other(self.one(x)))
        return self.encoder(self.seen(x) + self.seen.weight.sum())  # type: ignore[no-any-return]


def test_layers_whose_weight_others_read_or_that_are_fused_stay_in_float32() -> None:
    graph = espalier.trace(Tied().eval(), torch.randn(2, 3, 8), bits=(8, 32))
    assert [each.layer for each in graph.precisions] == ["plain"]


def test_a_network_with_layers_in_fewer_bits_is_not_traced(network: nn.Module, images: Tensor) -> None:
    quantise(network, {"stem": 8})
    with pytest.raises(TraceError, match="Small has layers that compute in fewer bits, such as stem"):
        espalier.trace(network, images[:1])


def test_bits_are_measured_where_they_are_computed(network: nn.Module, graph: ChannelGraph) -> None:
    with pytest.raises(ConfigError, match="eager computes in float32: bits are measured on onnxruntime"):
        espalier.measure_latency(network, graph, networks=8)


def test_an_agent_sees_which_layer_bits_are_of(network: nn.Module, graph: ChannelGraph) -> None:
    pytest.importorskip("torch_geometric")
    from espalier.agents.graph.network_graph import network_graph

    energies = espalier.channel_energies(network, graph).double().numpy()
    found = network_graph(graph, energies, budget=espalier.Budget(bit_operations=0.5))
    for each in graph.precisions:
        joined = found.edge_index[1, found.edge_index[0] == each.group].tolist()
        operations = sorted(set(graph.mac_operations))
        names = [graph.operations[operations[number - len(graph.groups)]].layer for number in joined]
        assert names == [each.layer]
    features = found.x[[each.group for each in graph.precisions]]
    assert len({tuple(row) for row in features[:, :5].tolist()}) == len(graph.precisions)


def test_a_network_without_such_layers_is_refused() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    with pytest.raises(TraceError, match="no layer of Sequential can compute in fewer bits"):
        espalier.trace(network, torch.zeros(1, 2, 5, 5), bits=(8, 32))


def test_latency_has_features_of_its_own_for_layers_in_8_bits(network: nn.Module, images: Tensor) -> None:
    graph = espalier.trace(network, images[:1], bits=(8, 32))
    features = Features(graph)
    dense, lower = graph.sizes.astype(float), widths_with(graph, {"inner": 8}).astype(float)
    found = dict(zip(features.columns, features(np.stack([dense, lower])).T, strict=True))
    macs = [
        name
        for name in features.columns
        if name.startswith("MACs of ") and " to 1" in name and name.endswith("to 1")
    ]
    ours, theirs = (
        [sum(found[name][row] for name in macs if ("8 bits" in name) == eight) for row in (0, 1)]
        for eight in (True, False)
    )
    assert ours == [0, 8 * 12 * 9 * 64]
    assert theirs[0] == ours[1] + theirs[1] == graph.macs(graph.sizes)
    drawn = draw_widths(graph, 40, 0)
    groups = [each.group for each in graph.precisions]
    assert (drawn[0] == graph.sizes).all() and set(drawn[1:, groups].ravel().tolist()) == {1, 2}
