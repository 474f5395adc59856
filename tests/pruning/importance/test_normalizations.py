"""Conformance of every normalisation, and those that know what a group is by their formulas."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.normalizations import NORMALIZATIONS, normalize
from espalier.pruning.networks import build
from espalier.pruning.trace import trace


@cache
def graph(name: str = "resnet20") -> ChannelGraph:
    with torch.random.fork_rng():
        return trace(build(name), torch.zeros(1, 3, 32, 32))


def scores_of(groups: ChannelGraph) -> Floats:
    """Of very different sizes in different groups, some of them equal and some zero."""
    drawn = np.random.default_rng(0).integers(0, 12, groups.n_channels) / 8
    return drawn * np.geomspace(1e-3, 1e3, len(groups.groups))[groups.group_of]


def parts(groups: ChannelGraph) -> list[slice]:
    return [slice(*pair) for pair in zip(groups.offsets[:-1].tolist(), groups.offsets[1:].tolist(), strict=True)]


@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v2"])
def test_the_order_inside_a_group_stays(how: str, name: str) -> None:
    groups = graph(name)
    scores = scores_of(groups)
    before = scores.copy()
    found = normalize(scores, groups, how)
    assert found.dtype == np.float64 and found.shape == scores.shape and found is not scores
    assert np.isfinite(found).all() and (found >= 0).all() and (scores == before).all()
    assert (groups.ranks(found) == groups.ranks(scores)).all()


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_permuting_channels_permutes_scores(how: str) -> None:
    scores, order = scores_of(graph()), np.arange(graph().n_channels)
    for part in parts(graph()):
        order[part] = np.random.default_rng(1).permutation(order[part])
    np.testing.assert_allclose(
        normalize(scores[order], graph(), how), normalize(scores, graph(), how)[order], 1e-12
    )


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_dead_groups_stay_finite(how: str) -> None:
    scores = scores_of(graph())
    scores[parts(graph())[3]] = 0
    assert np.isfinite(normalize(scores, graph(), how)).all()
    nothing = normalize(np.zeros(graph().n_channels), graph(), how)
    assert np.isfinite(nothing).all() and len(np.unique(nothing)) == 1


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_a_cut_fills_the_budget(how: str) -> None:
    budget = int(graph().macs(graph().sizes)) // 3
    widths = greedy(graph(), normalize(scores_of(graph()), graph(), how), budget)
    assert graph().macs(widths) <= budget
    wider = widths + np.eye(len(widths), dtype=np.int64)
    assert (graph().macs(wider) > budget)[widths < graph().sizes].all()


def test_per_member_counts_the_weights_of_a_group() -> None:
    scores, with_dims = scores_of(graph()), {name: p.dim() for name, p in build("resnet20").named_parameters()}
    found = normalize(scores, graph(), "per_member")
    for group, part in zip(graph().groups, parts(graph()), strict=True):
        weights = [member for member in group.members if with_dims.get(member.tensor, 0) > 1]
        np.testing.assert_allclose(found[part], scores[part] / len(weights))
    stem, inner = (graph().groups[number] for number in (0, 1))
    assert (stem.name, inner.name) == ("conv1", "layer1.0.conv1")
    np.testing.assert_allclose(found[parts(graph())[1]], scores[parts(graph())[1]] / 2)


def test_lamp_by_its_formula() -> None:
    scores = scores_of(graph())
    found = normalize(scores, graph(), "lamp")
    for part in parts(graph()):
        for value, own in zip(scores[part], found[part], strict=True):
            wanted = value / sum(other for other in scores[part] if other >= value) if value else 0.0
            assert own == pytest.approx(wanted, rel=1e-9)


def test_groups_of_like_structure_are_ranked_among_themselves() -> None:
    """The inner groups of all nine blocks are alike, whatever their widths; streams differ."""
    names = [group.name for group in graph().groups]
    inner = [number for number, name in enumerate(names) if name.startswith("layer") and name.endswith("conv1")]
    assert len(inner) == 9
    scores = scores_of(graph())
    found = normalize(scores, graph(), "isomorphic")
    alike = np.isin(graph().group_of, inner)
    for value, own in zip(scores[alike], found[alike], strict=True):
        assert own == pytest.approx((scores[alike] <= value).mean())
    changed = scores.copy()
    changed[~alike] *= 1e6  # what the others score does not matter
    np.testing.assert_array_equal(normalize(changed, graph(), "isomorphic")[alike], found[alike])


def test_a_global_cut_takes_the_same_share_of_every_structure() -> None:
    drawn = np.random.default_rng(2).random(graph().n_channels) * 10.0 ** (graph().group_of % 5)
    found = normalize(drawn, graph(), "isomorphic")
    inner = np.array([group.name.endswith("conv1") and "." in group.name for group in graph().groups])
    alike = inner[graph().group_of]
    for threshold in (0.25, 0.5):
        assert (found[alike] <= threshold).mean() == pytest.approx(threshold, abs=1 / alike.sum())
