"""Costs in closed form against torch's own counter, which counts two operations per multiply-add."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.networks import NETWORKS, build
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace

N_POLICIES = 40  # costs are polynomials in the widths: a term that is wrong shows at almost any random policy

# name -> (network, arguments, side of the images in pixels): small images, as the counter runs the networks
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet20 A": ("resnet20", {}, 8),
    "resnet20 B": ("resnet20", {"shortcut": "B"}, 8),
    "resnet56": ("resnet56", {}, 8),
    "vgg16_bn": ("vgg16_bn", {"pools": 3}, 8),
    "mobilenet_v2": ("mobilenet_v2", {}, 8),
    **{name: (name, {}, 8) for name in ("resnet32", "resnet44", "resnet110")},
    **{name: (name, {"pools": 3}, 8) for name in ("vgg11_bn", "vgg13_bn", "vgg19_bn")},
    **{name: (name, {}, 32) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    "shufflenet_v1 ungrouped": ("shufflenet_v1", {"groups": 1}, 8),
    **{name: (name, {}, 8) for name in ("cifarnet", "mobilenet_v1", "shufflenet_v1", "shufflenet_v2")},
    **{name: (name, {}, 8) for name in ("preact_senet18", "densenet40", "densenet89", "densenet100_bc")},
    **{name: (name, {}, 8) for name in ("regnet_x_200mf", "regnet_x_400mf", "regnet_y_200mf", "regnet_y_400mf")},
    **{name: (name, {}, 8) for name in ("efficientnet_b0", "ghostnet")},
    **{name: (name, {}, 8) for name in ("g_ghost_regnet_x_200mf", "g_ghost_regnet_x_400mf")},
    "vit_tiny": ("vit_tiny", {"depth": 2}, 16),
    **{name: (name, {}, 32) for name in ("alexnet", "alexnet_bn", "densenet121")},
}
FAST = {"resnet20 A", "resnet20 B", "vgg16_bn", "mobilenet_v2", "cifarnet", "alexnet", "densenet40", "vit_tiny"}
EVERY_FAMILY = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in FAMILIES]


def test_no_built_in_network_is_left_out() -> None:
    assert {name for name, _, _ in FAMILIES.values()} == set(NETWORKS)


class Counted(NamedTuple):
    graph: ChannelGraph
    widths: Ints  # (n_policies, n_groups)
    macs: list[int]
    params: list[int]


@pytest.fixture(scope="module", params=EVERY_FAMILY)
def counted(request: pytest.FixtureRequest) -> Counted:
    """Of every family; pytest runs all tests of one before it makes the next."""
    return count(request.param)


def count(family: str) -> Counted:
    """Random widths, and what somebody else's counters say about the networks slimmed to them."""
    name, kwargs, side = FAMILIES[family]
    network = build(name, **kwargs).eval()
    graph = trace(network, torch.zeros(1, 3, side, side))
    rng = np.random.default_rng(0)
    widths = rng.integers(1, graph.sizes + 1, (N_POLICIES, len(graph.groups)))
    widths[0], widths[1] = 1, graph.sizes
    macs, params = [], []
    for policy in widths:
        keep = graph.keep_best(rng.random(graph.n_channels), policy)
        slimmed = slim(network, graph, keep, verify=False)  # test_surgery.py compares with zeroed networks
        macs.append(macs_counted(slimmed, torch.empty(1, 3, side, side)))
        params.append(sum(parameter.numel() for parameter in slimmed.parameters()))
    return Counted(graph, widths, macs, params)


def macs_counted(network: nn.Module, images: torch.Tensor) -> int:
    # of fused attention, the counter knows the kernels of GPUs alone
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(images)
    flops: int = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


@cache
def resnet20() -> ChannelGraph:
    return trace(build("resnet20"), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 40.55), ("resnet56", 125.49)])
def test_published_macs(name: str, millions: float) -> None:
    graph = trace(build(name), torch.zeros(1, 3, 32, 32))
    assert round(int(graph.macs(graph.sizes)) / 1e6, 2) == millions


def test_macs_are_what_the_flop_counter_says(counted: Counted) -> None:
    graph, widths, macs, _ = counted
    assert graph.macs(widths).tolist() == macs


def test_params_are_those_of_the_slimmed_network(counted: Counted) -> None:
    graph, widths, _, params = counted
    assert graph.params(widths).tolist() == params


def test_a_batch_of_policies_is_one_by_one(counted: Counted) -> None:
    graph, widths, macs, params = counted
    assert graph.macs(widths).dtype == graph.params(widths).dtype == np.int64
    assert [int(graph.macs(policy)) for policy in widths] == macs
    assert [int(graph.params(policy)) for policy in widths] == params
    assert graph.macs(widths[0]).shape == () and graph.macs(widths[:0]).shape == (0,)
    assert int(graph.macs(widths[0].tolist())) == macs[0]


def test_every_channel_costs_something(counted: Counted) -> None:
    graph, widths, macs, params = counted
    for policy, mac, param in zip(widths[:20], macs, params, strict=False):
        wider = policy + np.eye(len(policy), dtype=np.int64)  # (n_groups, n_groups)
        assert (graph.macs(wider) > mac).all()
        assert (graph.params(wider) > param).all()


def test_terms_add_up_and_are_named_after_layers() -> None:
    graph, widths, macs, params = count("resnet20 A")
    assert graph.mac_terms.terms(widths.astype(float)).sum(1).tolist() == macs
    assert graph.param_terms.terms(widths.astype(float)).sum(1).tolist() == params
    stem = graph.mac_terms.names.index("conv1")
    expected = 8 * 8 * 9 * 3 * widths[:, 0]  # positions x kernel x inputs x outputs
    assert graph.mac_terms.terms(widths.astype(float))[:, stem].tolist() == expected.tolist()


def test_costs_are_per_example() -> None:
    one, many = (trace(build("resnet20"), torch.zeros(batch, 3, 16, 16)) for batch in (1, 3))
    assert int(one.macs(one.sizes)) == int(many.macs(many.sizes))


def test_channel_costs_are_what_the_first_channel_saves() -> None:
    graph = resnet20()
    dense = int(graph.macs(graph.sizes))
    for group, cost in enumerate(graph.channel_costs().tolist()):
        one_less = graph.sizes.copy()
        one_less[group] -= 1
        assert cost == dense - int(graph.macs(one_less)) > 0


@pytest.mark.parametrize("shape", [(), (11,), (13,), (5, 11), (12, 1), (2, 3, 12)])
def test_widths_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    graph = resnet20()
    given = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"widths must have shape \(n, 12\) or \(12,\), one number per group, got {given}"
    for cost in (graph.macs, graph.params):
        with pytest.raises(ConfigError, match=message):
            cost(np.ones(shape, dtype=np.int64))


def test_keep_best_keeps_the_best_and_widths_counts_them() -> None:
    graph = resnet20()
    rng = np.random.default_rng(1)
    for _ in range(20):
        widths = rng.integers(1, graph.sizes + 1)
        scores = rng.integers(0, 5, graph.n_channels).astype(float)  # with ties
        keep = graph.keep_best(scores, widths)
        assert graph.widths(keep).tolist() == widths.tolist()
        for group, part in enumerate(np.split(scores, graph.offsets[1:-1])):
            expected = sorted(range(len(part)), key=lambda c: (-part[c], c))[: widths[group]]
            assert graph.kept_indices(keep)[graph.groups[group].name] == sorted(expected)


def test_the_digest_names_structure_and_not_weights() -> None:
    graph = resnet20()
    again = copy.deepcopy(graph)
    assert trace(build("resnet20"), torch.zeros(2, 3, 32, 32)).digest == again.digest == graph.digest
    others: list[tuple[dict[str, Any], int]] = [({"width": 8}, 32), ({"shortcut": "B"}, 32), ({}, 16)]
    digests = {trace(build("resnet20", **kwargs), torch.zeros(1, 3, side, side)).digest for kwargs, side in others}
    assert len(digests | {graph.digest}) == 4


def test_the_graph_says_what_it_is() -> None:
    assert repr(resnet20()) == "ChannelGraph(12 groups, 400 channels, 40,551,040 MACs, 1 frozen)"
