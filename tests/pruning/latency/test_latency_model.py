"""The latency of any widths from measurements of some: what is planted is found, and budgets are met by it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import BudgetInfeasible, ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.latency import Device, LatencyModel, measure_latency
from espalier.pruning.latency.features import Features, timing_digest
from espalier.pruning.latency.measuring import draw_widths
from espalier.pruning.networks import build
from espalier.pruning.networks.cifar_resnet import CifarResNet

IMAGE = torch.zeros(1, 3, 16, 16)
PLANTED = {
    "constant": 20_000.0,
    "MACs of conv2d 9 at 16x16 to 8": 0.05,
    "values of contractions written off 8": 3.0,
    "parameters": 2.0,
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CifarResNet(8).eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> ChannelGraph:
    return espalier.trace(network, IMAGE)


@pytest.fixture(scope="module")
def mobile() -> ChannelGraph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return espalier.trace(build("mobilenet_v2", form="cifar").eval(), torch.zeros(1, 3, 32, 32))


def planted(graph: ChannelGraph) -> LatencyModel:
    dense = float(
        LatencyModel("a device", timing_digest(graph), PLANTED, 1.0, 40, 0.0).on(graph).latency(graph.sizes)
    )
    return LatencyModel("a device", timing_digest(graph), PLANTED, dense, 40, 0.0)


def test_what_is_planted_is_found(graph: ChannelGraph) -> None:
    """On widths that it was not fitted to, with measurements that are five per cent off."""
    drawn = draw_widths(graph, 120, 0)
    exact = planted(graph).on(graph).latency(drawn)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, len(drawn)))
    found = LatencyModel.fitted(graph, drawn[:60], (exact * noise)[:60].tolist(), "a device")
    apart = np.abs(found.on(graph).latency(drawn[60:]) / exact[60:] - 1)
    assert np.median(apart) < 0.02 and apart.max() < 0.1
    assert all(value > 0 for value in found.coefficients.values())
    assert 0.01 < found.error < 0.05 and found.measured == 60


def test_widths_off_a_block_may_take_longer_than_wider_ones(graph: ChannelGraph) -> None:
    timed = planted(graph).on(graph)
    assert timed.latency(graph.sizes - 1) > timed.latency(graph.sizes)


def test_features_of_networks_without_norms_and_of_depthwise_layers_are_told_apart(mobile: ChannelGraph) -> None:
    columns = Features(mobile).columns
    assert any("depthwise" in name for name in columns) and "depthwise off 8" in columns
    found = Features(mobile)(draw_widths(mobile, 5, 0).astype(float))
    assert found.shape == (5, len(columns)) and (found >= 0).all()
    few = Features(mobile)(mobile.sizes[None].astype(float), ["constant", "parameters"])
    assert few.tolist() == [[1, int(mobile.params(mobile.sizes))]]


def test_a_budget_of_latency_is_met_and_filled(graph: ChannelGraph) -> None:
    timed = planted(graph).on(graph)
    scores = np.random.default_rng(0).uniform(size=graph.n_channels)
    dense = int(timed.latency(graph.sizes))
    for step in (1, 8):
        widths = espalier.greedy(timed, scores, espalier.Budget(latency=0.6), round_to=step)
        assert timed.latency(widths) <= 0.6 * dense
        one_more = [widths + step * np.eye(len(widths), dtype=int)[group] for group in range(len(widths))]
        able = [wider for wider in one_more if (wider <= graph.sizes).all()]
        assert all(timed.latency(wider) > 0.6 * dense for wider in able)
    both = espalier.Budget(macs=0.3, latency=0.8)
    widths = espalier.uniform(timed, both)
    assert graph.macs(widths) <= 0.3 * graph.macs(graph.sizes) and timed.latency(widths) <= 0.8 * dense
    with pytest.raises(BudgetInfeasible, match=r"a budget of 0.001 ms of latency cannot be .* costs 0.04"):
        espalier.greedy(timed, scores, espalier.Budget(latency=1000))


def test_a_budget_that_only_rounded_widths_meet_names_them(graph: ChannelGraph) -> None:
    """One channel a group may take longer than eight."""
    digest = timing_digest(graph)
    slow = LatencyModel("a device", digest, {"constant": 5e4, "contractions off 8": 2e4}, 1e6, 40, 0.0).on(graph)
    rounded = np.minimum(8, graph.sizes)
    assert slow.latency(np.ones_like(graph.sizes)) > 1.2 * slow.latency(rounded)
    limit = espalier.Budget(latency=int(1.1 * slow.latency(rounded)))
    scores = np.random.default_rng(0).uniform(size=graph.n_channels)
    with pytest.raises(BudgetInfeasible, match="raise the budget or round widths to multiples of 8, which"):
        espalier.greedy(slow, scores, limit)
    assert slow.latency(espalier.greedy(slow, scores, limit, round_to=8)) <= limit.limits["latency"]


def test_a_graph_that_knows_of_no_device_says_so(graph: ChannelGraph) -> None:
    with pytest.raises(ConfigError, match=r"latency has to be measured first"):
        espalier.uniform(graph, espalier.Budget(latency=0.5))


def test_a_fraction_is_of_what_was_measured(graph: ChannelGraph) -> None:
    """Not of what is modelled, which a correction makes longer."""
    slow = planted(graph).times(1.25).on(graph)
    dense = planted(graph).dense
    widths = espalier.uniform(slow, espalier.Budget(latency=0.6))
    assert slow.latency(widths) <= 0.6 * dense
    assert planted(graph).on(graph).latency(widths) <= 0.6 / 1.25 * dense + 1


def test_networks_that_only_run_differently_are_told_apart() -> None:
    kinds = nn.ReLU, nn.GELU
    nets = [nn.Sequential(nn.Conv2d(3, 8, 3), kind(), nn.Conv2d(8, 4, 3)) for kind in kinds]
    one, other = (espalier.trace(net, IMAGE) for net in nets)
    assert one.digest == other.digest and timing_digest(one) != timing_digest(other)


def test_it_is_of_one_network(graph: ChannelGraph, mobile: ChannelGraph) -> None:
    with pytest.raises(ConfigError, match="the latency model was made for another network"):
        planted(graph).on(mobile)


def test_it_survives_json_and_pickle(graph: ChannelGraph) -> None:
    model = planted(graph).times(1.5)
    again = LatencyModel.from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    timed = again.on(graph)
    sent = pickle.loads(pickle.dumps(timed))
    widths = draw_widths(graph, 7, 1)
    assert np.array_equal(sent.latency(widths), timed.latency(widths))
    assert np.allclose(timed.latency(widths), 1.5 * planted(graph).on(graph).latency(widths), atol=1)
    assert graph.latency_model is None  # the graph itself stays as it was


WHOLE = {"device": "a", "graph": "b", "coefficients": {}, "dense": 1, "measured": 1, "error": 0, "factor": 1}


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        WHOLE | {"coefficients": []},
        WHOLE | {"coefficients": {"x": -1}},
        WHOLE | {"dense": "inf"},
        WHOLE | {"measured": None},
    ],
)
def test_a_damaged_model_is_refused(content: object) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        LatencyModel.from_json(content)


# ---------------------------------------------------------------------------------------------- measuring


def test_measurements_go_on_from_their_file(network: nn.Module, graph: ChannelGraph, tmp_path: Path) -> None:
    file, counts = tmp_path / "times" / "here.jsonl", list[int]()
    whole = measure_latency(network, graph, networks=10, repeats=2, file=file, on_measured=counts.append)
    assert counts == [0, 7, 10] and whole.measured == 10 and whole.device.startswith("eager ")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 11
    file.write_text("".join(lines[:8]) + lines[8][:5])  # killed while it wrote
    counts.clear()
    again = measure_latency(network, graph, networks=10, repeats=2, file=file, on_measured=counts.append)
    assert counts == [7, 10] and again.graph == whole.graph
    now = file.read_text().splitlines(keepends=True)
    assert now[:8] == lines[:8] and len(now) == 11
    counts.clear()
    with file.open("a") as stream:
        stream.write("[3, 99.0, 1.0]\n")  # of another process, which measured at the same time
    third = measure_latency(network, graph, networks=10, repeats=2, file=file, on_measured=counts.append)
    assert counts == [10] and third.coefficients == again.coefficients
    file.write_text("")  # killed before it had written anything
    measure_latency(network, graph, networks=8, repeats=1, file=file)
    model = whole.on(graph)
    assert model.latency(graph.sizes) > 0


@pytest.mark.parametrize(
    ("device", "seed", "message"),
    [(Device(batch=2), 0, r"of something else \(device "), (Device(), 1, r"of something else \(seed 0\)")],
)
def test_measurements_of_something_else_are_refused(
    network: nn.Module, graph: ChannelGraph, tmp_path: Path, device: Device, seed: int, message: str
) -> None:
    file = tmp_path / "here.jsonl"
    measure_latency(network, graph, networks=8, repeats=1, file=file)
    kept = file.read_text()
    with pytest.raises(ConfigError, match=message):
        measure_latency(network, graph, device=device, seed=seed, networks=8, repeats=1, file=file)
    file.write_text("no measurements\n")
    with pytest.raises(ConfigError, match="holds no measurements of latency"):
        measure_latency(network, graph, networks=8, repeats=1, file=file)
    assert kept.count("\n") == 9


def test_too_few_networks_and_unknown_runtimes_are_refused(network: nn.Module, graph: ChannelGraph) -> None:
    with pytest.raises(ConfigError, match="latency is modelled from 8 networks or more, got 3"):
        measure_latency(network, graph, networks=3)
    with pytest.raises(ConfigError, match="unknown runtime 'onnx_runtime', did you mean 'onnxruntime'"):
        measure_latency(network, graph, device=Device("onnx_runtime"))


def test_drawn_widths_begin_with_the_dense_ones_and_half_are_rounded(graph: ChannelGraph) -> None:
    drawn = draw_widths(graph, 60, 3)
    assert np.array_equal(drawn[0], graph.sizes) and (drawn >= 1).all() and (drawn <= graph.sizes).all()
    assert ((drawn[1::2] % 8 == 0) | (drawn[1::2] == graph.sizes)).all()
    assert (drawn[2::2] % 8 != 0).any()
    shares = graph.macs(drawn) / graph.macs(graph.sizes)
    assert shares.min() < 0.05 and np.median(shares) < 0.6
    assert np.array_equal(drawn, draw_widths(graph, 60, 3))


# ------------------------------------------------------------------------------------------------ without branches


@pytest.fixture(scope="module")
def deep() -> ChannelGraph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return espalier.trace(CifarResNet(20).eval(), IMAGE, depth=True)


def layers_of(graph: ChannelGraph, widths: Ints) -> Ints:
    """Convolutions and linear layers that are left: (n,)."""
    return np.stack([(graph.macs_per_operation(each) > 0).sum() for each in widths])


def test_a_device_on_which_layers_take_time_whatever_their_widths(deep: ChannelGraph) -> None:
    drawn = draw_widths(deep, 160, 0)
    out = np.array([len(deep.removed(widths)) for widths in drawn])
    assert (out > 0).mean() == pytest.approx(0.5, abs=0.1) and len(set(out.tolist())) > 5
    for widths in drawn:
        np.testing.assert_array_equal(widths == 0, deep.gone(deep.removed(widths)))
    taken = 20_000.0 + 30_000.0 * layers_of(deep, drawn) + 0.01 * deep.macs(drawn)
    model = LatencyModel.fitted(deep, drawn[:60], taken[:60].tolist(), "a device")
    timed = model.on(deep)
    np.testing.assert_allclose(timed.latency(drawn[60:]), taken[60:], rtol=0.02)
    # So little time needs fewer layers, and is filled by what is left.
    scores = np.abs(np.random.default_rng(0).standard_normal(deep.n_channels))
    with pytest.raises(BudgetInfeasible, match="ms of latency cannot be reached"):
        espalier.greedy(timed, scores, espalier.Budget(latency=0.3))
    budget = espalier.Budget(latency=0.3)
    widths = espalier.greedy(timed, scores, budget, depth=True)
    limit = int(0.3 * timed.dense_cost("latency"))
    assert timed.latency(widths) <= limit and len(deep.removed(widths)) >= 6
    for group in np.flatnonzero((widths > 0) & (widths < deep.sizes)):
        assert timed.latency(widths + (np.arange(len(widths)) == group)) > limit


def test_what_is_out_has_no_features(deep: ChannelGraph) -> None:
    """Those of the network are those of one that never had the branches, but for the sums that stay."""
    every = Features(deep)
    widths = np.stack([deep.sizes, np.where(deep.gone(range(9)), 0, deep.sizes)]).astype(float)
    dense, without = every(widths)
    names = list(every.columns)
    left = dict(zip(names, without.tolist(), strict=True))
    assert sum(value for name, value in left.items() if name.startswith("layers of ")) == 2  # the stem and the head
    assert sum(value for name, value in left.items() if name.endswith(" to 1")) == int(deep.macs(widths[1]))
    assert left["parameters"] == int(deep.params(widths[1]))
    assert (without <= dense).all() and left["constant"] == 1
    assert sum(value for name, value in left.items() if "batch_norm" in name) == 16 * 16 * 16 * 4  # the stem's


def test_graphs_that_know_of_no_branches_are_measured_as_ever(graph: ChannelGraph) -> None:
    deep = espalier.trace(CifarResNet(8).eval(), IMAGE, depth=True)
    assert [name for name in Features(deep).columns if name not in Features(graph).columns] != []
    assert not any(name.startswith("layers of") for name in Features(graph).columns)
    assert timing_digest(graph) != timing_digest(deep)
    assert (draw_widths(graph, 40, 0) > 0).all()


def test_a_device_is_measured_without_branches_too(tmp_path: Path) -> None:
    network = CifarResNet(14, width=4).eval()
    graph = espalier.trace(network, IMAGE, depth=True)
    model = measure_latency(network, graph, networks=8, repeats=2, file=tmp_path / "times.jsonl")
    assert model.on(graph).latency(np.where(graph.gone(range(6)), 0, graph.sizes)) < model.on(graph).latency(
        graph.sizes
    )
