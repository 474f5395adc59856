"""Spaces: every vector is a candidate that fills the budget, and greedy pruning is one of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from espalier.errors import BudgetInfeasible
from espalier.pruning.graph.allocation import greedy, narrowest, uniform
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.normalizations import NORMALIZATIONS, normalize
from espalier.pruning.networks import CifarResNet
from espalier.pruning.trace import trace
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.named_spaces import (
    SPACES,
    Affine,
    BlockMultipliers,
    Multipliers,
    Ratios,
    StageMultipliers,
    Widths,
)
from espalier.search.spaces.space import DEPTH, EVENNESS, NORMALIZATION, RUNG, SEARCHED, Space

every_space = pytest.mark.parametrize("kind", SPACES.values(), ids=list(SPACES))


@functools.cache
def resnet8() -> ChannelGraph:
    return trace(CifarResNet(depth=8, width=4, in_channels=1), torch.zeros(1, 1, 8, 8))


def energies(n_rungs: int) -> list[Floats]:
    draw = np.random.default_rng(3)
    return [draw.lognormal(0, 2, resnet8().n_channels) for _ in range(n_rungs)]


def make(
    kind: type[Space],
    *,
    keep: float = 0.4,
    n_rungs: int = 2,
    normalization: str = "mean",
    floor: int = 1,
) -> Space:
    graph = resnet8()
    return kind(
        graph,
        energies(n_rungs),
        normalization=normalization,
        budget=int(keep * graph.macs(graph.sizes)),
        floor=np.minimum(graph.sizes, floor),
        width=1.5,
    )


def params(space: Space, shares: Sequence[float], rung: int) -> dict[str, float]:
    """The vector at these places, 0 to 1, of the ranges; the space takes as many as it has parameters."""
    values = {}
    for (name, distribution), share in zip(space.distributions().items(), shares, strict=False):
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        value = distribution.low + share * (distribution.high - distribution.low)
        values[name] = round(value) if isinstance(distribution, IntDistribution) else value
    return values | {RUNG: rung}


def vectors() -> st.SearchStrategy[list[float]]:
    count = 2 * len(resnet8().groups) + 3
    return st.lists(st.floats(0, 1), min_size=count, max_size=count)


@every_space
@given(data=st.data())
def test_every_vector_fills_the_budget_to_the_last_channel(kind: type[Space], data: st.DataObject) -> None:
    keep = data.draw(st.floats(0.2, 1.0))
    floor = data.draw(st.integers(1, 2))
    space = make(kind, keep=keep, floor=floor)
    graph = space.graph
    rung = data.draw(st.integers(0, 1))
    candidate = space.decode(params(space, data.draw(vectors()), rung))
    widths = np.array(candidate.widths)
    assert candidate.rung == rung
    assert (widths >= np.minimum(graph.sizes, floor)).all() and (widths <= graph.sizes).all()
    assert space.budget.fits(graph, widths)
    for group in range(len(widths)):
        if widths[group] < graph.sizes[group]:
            one_more = widths + np.eye(len(widths), dtype=np.int64)[group]
            assert not space.budget.fits(graph, one_more)


@every_space
@given(shares=vectors(), rung=st.integers(0, 1))
def test_the_same_vector_is_the_same_candidate(kind: type[Space], shares: list[float], rung: int) -> None:
    first, second = make(kind), make(kind)
    assert first.decode(params(first, shares, rung)) == second.decode(params(second, shares, rung))


@every_space
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("keep", [0.15, 0.4, 0.9])
def test_greedy_params_are_greedy_global_pruning_on_every_rung(
    kind: type[Space], normalization: str, keep: float
) -> None:
    space = make(kind, keep=keep, normalization=normalization)
    ranked = [normalize(rung, space.graph, normalization) for rung in energies(2)]
    expected = [greedy(space.graph, scores, space.budget) for scores in ranked]
    decoded = [space.decode(vector) for vector in space.greedy_params()]
    assert decoded == [Candidate(rung, tuple(widths.tolist())) for rung, widths in enumerate(expected)]


@every_space
def test_a_searched_normalization_begins_with_the_mean_and_with_raw_energies(kind: type[Space]) -> None:
    space = make(kind, normalization="searched")
    expected = []
    for rung, raw in enumerate(energies(2)):
        for scores in (normalize(raw, space.graph, "mean"), raw):
            expected.append(Candidate(rung, tuple(greedy(space.graph, scores, space.budget).tolist())))
    assert [space.decode(vector) for vector in space.greedy_params()] == expected
    assert expected[0] != expected[1]


@every_space
@pytest.mark.parametrize("keep", [0.15, 0.4, 0.9])
def test_uniform_params_are_uniform_pruning_on_every_rung(kind: type[Space], keep: float) -> None:
    space = make(kind, keep=keep, normalization="searched")
    expected = tuple(uniform(space.graph, space.budget).tolist())
    decoded = [space.decode(vector) for vector in space.uniform_params()]
    assert decoded == [Candidate(rung, expected) for rung in range(2)]


@every_space
@pytest.mark.parametrize("normalization", ["searched", "mean"])
def test_greedy_and_uniform_params_lie_in_the_ranges(kind: type[Space], normalization: str) -> None:
    for keep in (0.1, 0.5, 1.0):
        space = make(kind, keep=keep, normalization=normalization)
        ranges = space.distributions()
        for vector in space.greedy_params() + space.uniform_params():
            assert vector.keys() == ranges.keys()
            for name, value in vector.items():
                assert ranges[name]._contains(ranges[name].to_internal_repr(value))


@every_space
@pytest.mark.parametrize("normalization", ["mean", SEARCHED])
def test_starts_are_uniform_pruning_and_near_the_other_rankings(kind: type[Space], normalization: str) -> None:
    space = make(kind, normalization=normalization)
    graph, found = space.graph, space.starts()
    assert found[:2] == space.uniform_params()
    others = [name for name in NORMALIZATIONS if name not in ("raw", "mean")]
    assert len(found) == 2 * (1 + len(others))
    for vector, (rung, how) in zip(found[2:], itertools.product((0, 1), others), strict=True):
        candidate = space.decode(vector)
        wanted = space.filled(normalize(energies(2)[rung], graph, how))
        assert candidate.rung == rung and space.budget.fits(graph, candidate.widths)
        unmoved = np.abs(np.array(space.greedy_candidates()[0].widths) - wanted).sum()
        assert np.abs(np.array(candidate.widths) - wanted).sum() <= max(unmoved, len(wanted))
        if kind in (Ratios, Widths) or (kind in (Multipliers, Affine) and _within_range(space, vector)):
            assert np.abs(np.array(candidate.widths) - wanted).max() <= 1


def _within_range(space: Space, vector: Mapping[str, float]) -> bool:
    return all(abs(vector[name]) < space.width for name in space.moves())


@every_space
@pytest.mark.parametrize("round_to", [2, 4])
def test_widths_are_rounded_and_greedy_is_greedy_even_so(kind: type[Space], round_to: int) -> None:
    graph = resnet8()
    floor = np.ones_like(graph.sizes)
    budget = Budget(macs=int(0.7 * graph.macs(graph.sizes)))
    space = kind(graph, energies(2), normalization="mean", budget=budget, floor=floor, width=1.5, round_to=round_to)
    for rung, vector in enumerate(space.greedy_params()):
        scores = normalize(energies(2)[rung], graph, "mean")
        assert space.decode(vector).widths == tuple(greedy(graph, scores, budget, floor, round_to).tolist())
    widths = np.array(space.decode(params(space, np.random.default_rng(1).random(15).tolist(), 0)).widths)
    assert (widths % round_to == 0).all()


@every_space
def test_several_limits_are_met_together(kind: type[Space]) -> None:
    graph = resnet8()
    dense = graph.sizes
    budget = Budget(
        int(0.6 * graph.macs(dense)), int(0.3 * graph.params(dense)), int(0.7 * graph.peak_memory(dense))
    )
    space = kind(graph, energies(1), normalization="mean", budget=budget, floor=np.ones_like(dense), width=1.5)
    for draw in np.random.default_rng(0).random((10, 15)).tolist():
        widths = np.array(space.decode(params(space, draw, 0)).widths)
        assert budget.fits(graph, widths)
        for one_more in widths + np.eye(len(widths), dtype=np.int64):
            assert (one_more > dense).any() or not budget.fits(graph, one_more)


@every_space
def test_groups_that_are_left_alone_keep_every_channel_and_have_no_axis(kind: type[Space]) -> None:
    graph = resnet8()
    floor = np.ones_like(graph.sizes)
    floor[[0, 3]] = graph.sizes[[0, 3]]
    budget = int(0.6 * graph.macs(graph.sizes))
    space = kind(graph, energies(1), normalization="searched", budget=budget, floor=floor, width=1.5)
    assert not {graph.groups[0].name, graph.groups[3].name} & space.distributions().keys()
    for draw in np.random.default_rng(0).random((5, 15)).tolist():
        widths = np.array(space.decode(params(space, draw, 0)).widths)
        assert (widths[[0, 3]] == graph.sizes[[0, 3]]).all()
        assert space.budget.fits(graph, widths)
    scores = normalize(energies(1)[0], graph, "mean")
    assert space.decode(space.greedy_params()[0]).widths == tuple(greedy(graph, scores, budget, floor))


@every_space
def test_the_whole_budget_keeps_every_channel(kind: type[Space]) -> None:
    space = make(kind, keep=1.0)
    assert space.decode(params(space, np.random.default_rng(0).random(15).tolist(), 0)).widths == tuple(
        space.graph.sizes
    )


@every_space
def test_more_of_a_number_is_never_fewer_of_its_channels(kind: type[Space]) -> None:
    space = make(kind)
    ranges = [name for name in space.distributions() if name not in (RUNG, EVENNESS)]
    middle = {name: params(space, [0.5] * 15, 0)[name] for name in ranges} | {RUNG: 0, EVENNESS: 0.0}
    reach = []
    for name in ranges:
        if name.endswith("shift"):
            continue
        distribution = space.distributions()[name]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        widths_at = []
        group = [number for number, found in enumerate(space.graph.groups) if found.name == name]
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            value = distribution.low + share * (distribution.high - distribution.low)
            vector = middle | {name: round(value) if isinstance(distribution, IntDistribution) else value}
            widths_at.append(np.array(space.decode(vector).widths))
        if group:
            assert [widths[group[0]] for widths in widths_at] == sorted(widths[group[0]] for widths in widths_at)
        reach.append(int(np.abs(widths_at[-1] - widths_at[0]).sum()))
    assert sum(reach) > len(reach)


@every_space
def test_a_budget_that_cannot_be_reached_is_refused_at_once(kind: type[Space]) -> None:
    graph = resnet8()
    smallest = int(graph.macs(np.ones_like(graph.sizes)))
    with pytest.raises(
        BudgetInfeasible, match=rf"{smallest - 1:,} MACs cannot be reached: .* costs {smallest:,} MACs"
    ):
        kind(
            graph,
            energies(1),
            normalization="mean",
            budget=smallest - 1,
            floor=np.ones_like(graph.sizes),
            width=1.0,
        )
    dense = int(graph.macs(graph.sizes))
    with pytest.raises(BudgetInfeasible, match=rf"costs {dense:,} MACs"):
        kind(graph, energies(1), normalization="mean", budget=dense - 1, floor=graph.sizes, width=1.0)


@every_space
@pytest.mark.parametrize("n_rungs", [1, 2])
@pytest.mark.parametrize("normalization", ["mean", "searched"])
def test_a_trial_is_asked_for_what_is_open(kind: type[Space], n_rungs: int, normalization: str) -> None:
    space = make(kind, n_rungs=n_rungs, normalization=normalization)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    suggested = space.suggest(trial)
    assert suggested == trial.params
    assert trial.distributions == space.distributions()
    assert (RUNG in suggested) == (n_rungs > 1)
    assert (EVENNESS in suggested) == kind.ranks_by_energy
    assert (NORMALIZATION in suggested) == (kind.ranks_by_energy and normalization == "searched")
    space.decode(suggested)


# ------------------------------------------------------------------------------- what each one means


def test_zeros_of_multipliers_are_greedy() -> None:
    space = make(Multipliers)
    zeros = {group.name: 0.0 for group in space.graph.groups}
    expected = greedy(space.graph, normalize(energies(2)[1], space.graph, "mean"), space.budget)
    assert space.decode(zeros | {RUNG: 1}).widths == tuple(expected)


@given(shift=st.floats(-0.5, 0.5))
def test_a_common_factor_of_all_multipliers_changes_nothing(shift: float) -> None:
    space = make(Multipliers)
    plain = {group.name: value for group, value in zip(space.graph.groups, np.linspace(-0.5, 0.5, 6), strict=True)}
    shifted = {name: value + shift for name, value in plain.items()}
    assert space.decode(plain) == space.decode(shifted)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_equal_ratios_are_uniform(keep: float, ratio: float) -> None:
    space = make(Ratios, keep=keep)
    equal = {group.name: ratio for group in space.graph.groups}
    assert space.decode(equal).widths == tuple(uniform(space.graph, space.budget))


def test_ratios_are_kept_in_proportion() -> None:
    space = make(Ratios, keep=0.3)
    wide, narrow = space.graph.groups[1], space.graph.groups[4]
    vector = {group.name: 0.5 for group in space.graph.groups} | {wide.name: 1.0, narrow.name: 0.1}
    widths = dict(zip([g.name for g in space.graph.groups], space.decode(vector).widths, strict=True))
    assert widths[wide.name] / wide.size > 3 * widths[narrow.name] / narrow.size


def test_candidates_have_readable_keys() -> None:
    candidate = Candidate(2, (3, 14, 15))
    assert candidate.key == "2:3,14,15"
    assert Candidate.from_key(candidate.key) == candidate


def test_groups_of_a_resolution_or_of_a_block_move_together() -> None:
    names = [group.name for group in resnet8().groups]
    assert names == [
        "conv1",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
        "layer3.0.conv2",
    ]
    stages, blocks = make(StageMultipliers, n_rungs=1), make(BlockMultipliers, n_rungs=1)
    assert list(stages.axes()) == ["stage64", "stage16", "stage4"]
    assert list(blocks.axes()) == ["top@stage64", "layer1.0@stage64", "layer2.0@stage16", "layer3.0@stage4"]
    free = make(Multipliers, n_rungs=1)
    tied = free.decode(dict(zip(names, [0.5, 0.5, -1, -1, 0, 0], strict=True)))
    assert stages.decode({"stage64": 0.5, "stage16": -1.0, "stage4": 0.0}) == tied


def test_affine_maps_without_shifts_are_multipliers_and_shifts_matter() -> None:
    affine, free = make(Affine, n_rungs=1), make(Multipliers, n_rungs=1)
    factors = dict(zip(free.axes(), np.linspace(-0.5, 0.5, 6), strict=True))
    shifts = {f"{name} shift": 0.0 for name in factors}
    assert affine.decode(factors | shifts) == free.decode(factors)
    first = next(iter(factors))
    more = affine.decode(factors | shifts | {f"{first} shift": 1.5})
    assert more.widths[0] > free.decode(factors).widths[0]


@pytest.mark.parametrize("keep", [0.2, 0.6])
def test_widths_that_fill_the_budget_are_taken_as_they_are(keep: float) -> None:
    space = make(Widths, keep=keep, n_rungs=1)
    other = make(Multipliers, keep=keep, n_rungs=1)
    for draw in np.random.default_rng(0).random((10, 15)).tolist():
        widths = other.decode(params(other, draw, 0)).widths
        vector = dict(zip((group.name for group in space.graph.groups), widths, strict=True))
        assert space.decode(vector).widths == widths


# ------------------------------------------------------------------------------------------------ without branches


@functools.cache
def deep() -> ChannelGraph:
    return trace(CifarResNet(depth=14, width=4, in_channels=1), torch.zeros(1, 1, 8, 8), depth=True)


def deep_space(kind: type[Space], keep: float, floor: int = 1) -> Space:
    graph = deep()
    draw = np.random.default_rng(3)
    return kind(
        graph,
        [draw.lognormal(0, 2, graph.n_channels) for _ in range(2)],
        normalization=SEARCHED,
        budget=Budget(macs=keep),
        floor=np.minimum(graph.sizes, floor),
        width=1.5,
    )


@every_space
@given(st.data())
def test_with_branches_every_vector_fills_the_budget_with_what_is_left(
    kind: type[Space], data: st.DataObject
) -> None:
    space, graph = deep_space(kind, data.draw(st.sampled_from([0.03, 0.06, 0.5]))), deep()
    assert space.distributions()[DEPTH] == FloatDistribution(0.0, 1.0)
    shares = data.draw(
        st.lists(st.floats(0, 1), min_size=2 * len(graph.groups) + 4, max_size=2 * len(graph.groups) + 4)
    )
    vector = params(space, shares, rung=1)
    widths = np.array(space.decode(vector).widths)
    assert space.budget.fits(graph, widths)
    removed = graph.removed(widths)
    np.testing.assert_array_equal(graph.gone(removed), widths == 0)
    assert len(removed) >= round(vector[DEPTH] * len(graph.branches))
    for group in np.flatnonzero((widths > 0) & (widths < graph.sizes)):
        assert not space.budget.fits(graph, widths + (np.arange(len(widths)) == group))
    assert space.decode(vector).key == Candidate.from_key(space.decode(vector).key).key


@pytest.mark.parametrize("kind", [Multipliers, BlockMultipliers, StageMultipliers, Affine])
def test_greedy_pruning_with_and_without_branches_is_a_vector(kind: type[Space]) -> None:
    space, graph = deep_space(kind, 0.03), deep()
    candidates = space.greedy_candidates()
    wanted = greedy(graph, normalize(space.energies[0], graph, "mean"), space.budget, depth=True)
    assert candidates[0].widths == tuple(wanted.tolist()) and graph.removed(wanted)
    fewest = min(len(graph.removed(np.array(each.widths))) for each in candidates)
    assert 0 < fewest < len(graph.branches)  # without any out no network is small enough
    wide = deep_space(kind, 0.6)
    assert any(not graph.removed(np.array(each.widths)) for each in wide.greedy_candidates())


@every_space
def test_a_budget_that_needs_fewer_layers(kind: type[Space]) -> None:
    least = int(deep().macs(narrowest(deep(), removed=range(len(deep().branches)))))
    share = least / int(deep().macs(deep().sizes))
    space = deep_space(kind, share * 1.001)
    assert {len(deep().removed(np.array(each.widths))) for each in space.uniform_candidates()} == {6}
    with pytest.raises(BudgetInfeasible, match="6 branches out"):
        deep_space(kind, share * 0.9)


@every_space
def test_without_branches_to_go_there_is_no_depth(kind: type[Space]) -> None:
    assert DEPTH not in make(kind).distributions()
    assert DEPTH not in deep_space(kind, 1.0, floor=10**6).distributions()
