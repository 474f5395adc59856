"""Widths that fill a budget, against a reference that removes and returns one channel at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import BudgetInfeasible, ConfigError
from espalier.pruning.graph.allocation import (
    branch_order,
    branches_allowed,
    check_budget,
    greedy,
    narrowest,
    uniform,
)
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.networks import build
from espalier.pruning.trace import trace


@cache
def network(name: str) -> ChannelGraph:
    if name == "narrow":
        return trace(build("resnet20", width=4), torch.zeros(1, 3, 8, 8))
    return trace(build(name), torch.zeros(1, 3, 32, 32))


GRAPHS = st.sampled_from(["narrow", "resnet20", "mobilenet_v2"]).map(network)
SMALL = st.sampled_from(["narrow", "resnet20"]).map(network)


@st.composite
def scores_of(draw: st.DrawFn, graph: ChannelGraph, ties: bool = False) -> Floats:
    """Of many shapes: flat, heavy-tailed, negative; a group may be worth a thousand times another."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.standard_normal(graph.n_channels) * draw(st.sampled_from([1.0, 1e-6, 1e6]))
    if draw(st.booleans()):
        scores = np.exp(rng.standard_normal(graph.n_channels) * 3)
    if draw(st.booleans()):
        scores = scores * 10 ** rng.uniform(-3, 3, len(graph.groups))[graph.group_of]
    return np.round(scores) if ties else scores


@st.composite
def budget_of(draw: st.DrawFn, graph: ChannelGraph, floor: Ints) -> int:
    smallest, dense = int(graph.macs(floor)), int(graph.macs(graph.sizes))
    near = st.sampled_from([smallest, min(smallest + 1, dense), max(smallest, dense - 1), dense])
    return draw(st.integers(smallest, dense) | near)


@st.composite
def floor_of(draw: st.DrawFn, graph: ChannelGraph) -> Ints:
    if draw(st.booleans()):
        return np.ones_like(graph.sizes)
    return np.array([draw(st.integers(1, size)) for size in graph.sizes.tolist()])


def assert_full(graph: ChannelGraph, widths: Ints, budget: int) -> None:
    """Not above the budget, and with any one more channel above it."""
    assert widths.dtype == np.int64
    assert int(graph.macs(widths)) <= budget
    for group, size in enumerate(graph.sizes):
        if widths[group] < size:
            wider = widths.copy()
            wider[group] += 1
            assert int(graph.macs(wider)) > budget


def reference(graph: ChannelGraph, scores: Floats, budget: int, floor: Ints) -> list[int]:
    """Algorithm 1, one channel at a time; then what was removed returns, best first, where it fits."""
    widths = graph.sizes.copy()
    removed: list[int] = []
    for channel in np.argsort(scores).tolist():
        if int(graph.macs(widths)) <= budget:
            break
        group = graph.group_of[channel]
        if widths[group] > floor[group]:
            widths[group] -= 1
            removed.append(channel)
    returned = True
    while returned:
        returned = False
        for channel in sorted(removed, key=lambda c: -scores[c]):
            wider = widths.copy()
            wider[graph.group_of[channel]] += 1
            if int(graph.macs(wider)) <= budget:
                widths, returned = wider, True
                removed.remove(channel)
                break
    return [int(width) for width in widths]


@settings(max_examples=60)
@given(GRAPHS, st.data())
def test_greedy_never_exceeds_the_budget_and_leaves_no_room(graph: ChannelGraph, data: st.DataObject) -> None:
    floor = data.draw(floor_of(graph))
    budget, scores = data.draw(budget_of(graph, floor)), data.draw(scores_of(graph, data.draw(st.booleans())))
    widths = greedy(graph, scores, budget, floor)
    assert_full(graph, widths, budget)
    assert (widths >= floor).all() and (widths <= graph.sizes).all()
    # A budget that can be spent to the last MAC is.
    assert greedy(graph, scores, int(graph.macs(widths)), floor).tolist() == widths.tolist()


@settings(max_examples=60)
@given(GRAPHS, st.data())
def test_uniform_never_exceeds_the_budget_and_leaves_no_room(graph: ChannelGraph, data: st.DataObject) -> None:
    floor = data.draw(floor_of(graph))
    budget = data.draw(budget_of(graph, floor))
    widths = uniform(graph, budget, floor)
    assert_full(graph, widths, budget)
    assert (widths >= floor).all() and (widths <= graph.sizes).all()


@settings(max_examples=40)
@given(SMALL, st.data())
def test_greedy_is_one_channel_at_a_time(graph: ChannelGraph, data: st.DataObject) -> None:
    floor = data.draw(floor_of(graph))
    budget, scores = data.draw(budget_of(graph, floor)), data.draw(scores_of(graph))
    assert len(set(scores.tolist())) == graph.n_channels
    assert greedy(graph, scores, budget, floor).tolist() == reference(graph, scores, budget, floor)


@given(SMALL)
def test_a_graph_of_an_older_version_tells_what_is_reachable(graph: ChannelGraph) -> None:
    older = object.__new__(ChannelGraph)
    older.__setstate__({name: value for name, value in graph.__getstate__().items() if name != "mac_reasons"})
    with pytest.raises(BudgetInfeasible, match="cannot be reached"):
        check_budget(older, 0)


@given(SMALL, st.data())
def test_the_smallest_reachable_cost_is_stated(graph: ChannelGraph, data: st.DataObject) -> None:
    floor = data.draw(floor_of(graph))
    smallest, scores = int(graph.macs(floor)), data.draw(scores_of(graph))
    assert greedy(graph, scores, smallest, floor).tolist() == floor.tolist()
    check_budget(graph, smallest, floor)
    budget = data.draw(st.integers(0, smallest - 1))
    message = rf"budget of {budget:,} MACs cannot be reached: .* costs {smallest:,} MACs \(keep [01]\.\d+ of "
    with pytest.raises(BudgetInfeasible, match=message):
        greedy(graph, scores, budget, floor)
    with pytest.raises(BudgetInfeasible, match=message):
        uniform(graph, budget, floor)


def test_the_floor_is_one_channel_each_unless_it_is_said() -> None:
    graph = network("resnet20")
    scores = np.random.default_rng(0).random(graph.n_channels)
    least = int(graph.macs(np.ones_like(graph.sizes)))
    assert (greedy(graph, scores, least) == 1).all() and (uniform(graph, least) == 1).all()
    with pytest.raises(BudgetInfeasible, match=rf"costs {least:,} MACs"):
        greedy(graph, scores, least - 1)


@given(GRAPHS, st.data())
def test_the_dense_cost_keeps_everything(graph: ChannelGraph, data: st.DataObject) -> None:
    dense = int(graph.macs(graph.sizes))
    for budget in (dense, dense + 1, 10 * dense):
        assert greedy(graph, data.draw(scores_of(graph)), budget).tolist() == graph.sizes.tolist()
        assert uniform(graph, budget).tolist() == graph.sizes.tolist()


@given(SMALL, st.floats(1e-6, 1e6), st.data())
def test_a_common_factor_changes_nothing(graph: ChannelGraph, factor: float, data: st.DataObject) -> None:
    budget = data.draw(budget_of(graph, np.ones_like(graph.sizes)))
    # Whole numbers far apart: rounding makes no new ties.
    order = np.random.default_rng(data.draw(st.integers(0, 1000))).permutation(graph.n_channels)
    scores = (order + 1).astype(np.float64)
    assert greedy(graph, scores * factor, budget).tolist() == greedy(graph, scores, budget).tolist()


@given(SMALL, st.data())
def test_ties_are_broken_the_same_way_every_time(graph: ChannelGraph, data: st.DataObject) -> None:
    budget = data.draw(budget_of(graph, np.ones_like(graph.sizes)))
    scores = data.draw(scores_of(graph, ties=True))
    widths = greedy(graph, scores, budget).tolist()
    assert greedy(graph, scores.copy(), budget).tolist() == widths
    # Inside a group it makes no difference which channel has which score.
    shuffled = scores.copy()
    for start, end in zip(graph.offsets[:-1], graph.offsets[1:], strict=True):
        shuffled[start:end] = np.random.default_rng(0).permutation(shuffled[start:end])
    assert greedy(graph, shuffled, budget).tolist() == widths


def test_all_scores_equal_still_fills_the_budget() -> None:
    graph = network("resnet20")
    budget = int(graph.macs(graph.sizes)) // 2
    assert_full(graph, greedy(graph, np.zeros(graph.n_channels), budget), budget)


def test_the_lowest_scored_go_first() -> None:
    """A group whose channels are worth least is emptied to its floor before another loses one."""
    graph = network("resnet20")
    scores = np.ones(graph.n_channels) + np.arange(graph.n_channels) * 1e-6
    poor = graph.group_of == 3
    scores[poor] *= 1e-3
    widths = graph.sizes.copy()
    widths[3] = 1
    assert greedy(graph, scores, int(graph.macs(widths))).tolist() == widths.tolist()


def test_uniform_keeps_one_share() -> None:
    graph = network("resnet20")
    for part in (2, 4):
        exact = graph.sizes // part
        assert uniform(graph, int(graph.macs(exact))).tolist() == exact.tolist()
    for keep in (0.2, 0.37, 0.6, 0.9):
        shares = uniform(graph, int(keep * int(graph.macs(graph.sizes)))) / graph.sizes
        # Within a channel of each other, plus what fits into the rest of the budget.
        assert shares.max() - shares.min() <= 2 / graph.sizes.min()


# -------------------------------------------------------------------------------------- rounded widths


@settings(max_examples=60)
@given(GRAPHS, st.sampled_from([2, 3, 8, 16]), st.data())
def test_rounded_widths_fill_the_budget_in_their_steps(
    graph: ChannelGraph, round_to: int, data: st.DataObject
) -> None:
    floor = data.draw(floor_of(graph))
    smallest = narrowest(graph, floor, round_to)
    budget = data.draw(budget_of(graph, smallest))
    scores = data.draw(scores_of(graph, data.draw(st.booleans())))
    for widths in (greedy(graph, scores, budget, floor, round_to), uniform(graph, budget, floor, round_to)):
        assert ((widths % round_to == 0) | (widths == graph.sizes)).all()
        assert (widths >= floor).all() and int(graph.macs(widths)) <= budget
        for group, size in enumerate(graph.sizes):
            if widths[group] < size:
                wider = widths.copy()
                wider[group] = min(size, widths[group] + round_to)
                assert int(graph.macs(wider)) > budget


def test_the_lowest_step_goes_first() -> None:
    """Two groups of 8, in steps of 4: worth the mean of their channels, not the best or worst of them."""
    graph = network("narrow")
    first, second, *_ = np.flatnonzero(graph.sizes == 8).tolist()
    scores = np.full(graph.n_channels, 100.0)
    scores[graph.offsets[first] :][:8] = [9, 9, 9, 9, 1, 1, 1, 9]  # lowest step: mean of 1, 1, 1, 9 = 3
    scores[graph.offsets[second] :][:8] = [9, 9, 9, 9, 2, 2, 2, 2]  # 2
    dense = int(graph.macs(graph.sizes))
    widths = greedy(graph, scores, dense - 1, round_to=4)
    assert widths[second] == 4 and widths[first] == 8


def test_steps_follow_the_layers_that_are_written() -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 1)
            self.grouped = torch.nn.Conv2d(16, 48, 3, groups=4)
            self.query, self.key, self.value = (torch.nn.Linear(48, 48) for _ in range(3))
            self.heads, self.size = 3, 16
            self.head = torch.nn.Linear(48, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.grouped(self.stem(x)).flatten(2).transpose(1, 2)
            q, k, v = (
                layer(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
            x = (q @ k.transpose(2, 3)).softmax(-1) @ v
            logits: torch.Tensor = self.head(x.transpose(1, 2).flatten(2).mean(1))
            return logits

    graph = trace(Mixed(), torch.zeros(1, 3, 6, 6))
    steps = dict(zip([group.name for group in graph.groups], graph.steps(8).tolist(), strict=True))
    # A channel of the stem stands for four; one of the grouped convolution too; a head is 16 wide already.
    assert steps == {"stem": 2, "grouped": 2, "query": 1, "query#2": 8}
    assert graph.steps(1).tolist() == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match="round_to must be at least 1, got 0"):
        graph.steps(0)


def test_a_budget_is_words_before_it_is_whole_numbers() -> None:
    assert str(Budget(macs=0.5, params=1000)) == "0.5 of the MACs and 1,000 parameters"
    assert str(Budget(latency=0.25)) == "0.25 of the latency" and str(Budget()) == ""


def test_a_budget_that_rounding_makes_unreachable_says_so() -> None:
    graph = deep("resnet20")
    check_budget(graph, int(graph.macs(narrowest(graph))))
    line = r"fewest channels, a multiple of 4, the network costs .*; raise the budget{}$"
    with pytest.raises(BudgetInfeasible, match=line.format(" or lower round_to")):
        check_budget(graph, int(graph.macs(narrowest(graph))), round_to=4)
    with pytest.raises(BudgetInfeasible, match=line.format("")):
        check_budget(graph, int(graph.macs(narrowest(graph))) - 1, round_to=4)


# ------------------------------------------------------------------------------------------------ without branches


@cache
def deep(name: str) -> ChannelGraph:
    widths: dict[str, dict[str, Any]] = {"resnet20": {"width": 4}, "mobilenet_v2": {"width_mult": 0.25}}
    return trace(build(name, **widths.get(name, {})), torch.zeros(1, 3, 32, 32), depth=True)


DEEP = st.sampled_from(["resnet20", "mobilenet_v2"]).map(deep)


def assert_full_of(graph: ChannelGraph, widths: Ints, budget: Budget) -> None:
    """As `assert_full`, of the groups that are there; what is out is out as a whole."""
    assert budget.fits(graph, widths)
    np.testing.assert_array_equal(graph.gone(graph.removed(widths)), widths == 0)
    for group in np.flatnonzero((widths > 0) & (widths < graph.sizes)):
        wider = widths.copy()
        wider[group] += 1
        assert not budget.fits(graph, wider)


@settings(max_examples=40)
@given(DEEP, st.data())
def test_without_branches_the_budget_is_filled_by_what_is_left(graph: ChannelGraph, data: st.DataObject) -> None:
    scores = np.abs(data.draw(scores_of(graph)))
    removed = data.draw(st.sets(st.integers(0, len(graph.branches) - 1)))
    least = int(graph.macs(narrowest(graph, removed=removed)))
    limit = data.draw(st.integers(least, int(graph.macs(graph.sizes))))
    widths = greedy(graph, scores, limit, removed=removed)
    np.testing.assert_array_equal(widths == 0, graph.gone(removed))
    assert_full_of(graph, widths, Budget(macs=limit))


@settings(max_examples=25)
@given(DEEP, st.data())
def test_depth_keeps_the_most_of_what_any_number_of_branches_out_keeps(
    graph: ChannelGraph, data: st.DataObject
) -> None:
    scores = np.abs(data.draw(scores_of(graph)))
    every = range(len(graph.branches))
    low, shallow = (int(graph.macs(narrowest(graph, removed=out))) for out in (every, ()))
    budget = Budget(macs=data.draw(st.integers(low, 2 * shallow)))
    widths = greedy(graph, scores, budget, depth=True)
    assert_full_of(graph, widths, budget)

    def kept(found: Ints) -> float:
        return float(scores[graph.keep_best(scores, found).numpy()].sum())

    order = branch_order(graph, scores, budget)
    others = []
    for count in range(len(order) + 1):
        if budget.fits(graph, narrowest(graph, removed=order[:count])):
            others.append(greedy(graph, scores, budget, removed=order[:count]))
    assert kept(widths) == max(map(kept, others))


def test_a_budget_that_only_fewer_layers_meet() -> None:
    graph = deep("resnet20")
    scores = np.ones(graph.n_channels)
    budget = int(graph.macs(narrowest(graph))) - 1
    with pytest.raises(BudgetInfeasible, match="with every group at its fewest channels the network costs"):
        greedy(graph, scores, budget)
    widths = greedy(graph, scores, budget, depth=True)
    assert 0 < len(graph.removed(widths)) < len(graph.branches)
    least = int(graph.macs(narrowest(graph, removed=range(9))))
    assert_full_of(graph, greedy(graph, scores, least, depth=True), Budget(macs=least))
    with pytest.raises(BudgetInfeasible, match="at its fewest channels and 9 branches out the network costs"):
        greedy(graph, scores, least - 1, depth=True)
    with pytest.raises(BudgetInfeasible, match="9 branches out"):
        check_budget(graph, least - 1, depth=True)


def test_what_is_worth_least_goes_first_and_what_is_whole_stays() -> None:
    graph = deep("resnet20")
    scores = np.ones(graph.n_channels)
    number = {graph.groups[branch.groups[0]].name: n for n, branch in enumerate(graph.branches)}
    scores[graph.group_of == graph.branches[number["layer2.1.conv1"]].groups[0]] = 1e-6
    assert branch_order(graph, scores, 10**5)[0] == number["layer2.1.conv1"]
    floor = np.ones_like(graph.sizes)
    chosen = graph.branches[number["layer2.1.conv1"]].groups[0]
    floor[chosen] = graph.sizes[chosen]
    assert branches_allowed(graph, floor) == [n for n in range(9) if n != number["layer2.1.conv1"]]
    least = int(graph.macs(narrowest(graph, floor, removed=branches_allowed(graph, floor))))
    assert greedy(graph, scores, least, floor, depth=True)[chosen] == graph.sizes[chosen]


def test_rounded_widths_without_branches() -> None:
    graph = deep("resnet50")
    scores = np.abs(np.random.default_rng(0).standard_normal(graph.n_channels))
    budget = Budget(macs=0.1, params=0.2)
    widths = greedy(graph, scores, budget, round_to=8, removed=[0, 5, 9])
    limits = Budget.of(budget, graph)
    assert limits.fits(graph, widths) and (widths % 8 == 0).all()
    for group in np.flatnonzero((widths > 0) & (widths < graph.sizes)):
        assert not limits.fits(graph, widths + 8 * (np.arange(len(widths)) == group))
    assert ((widths == 0) == graph.gone([0, 5, 9])).all()


def test_a_graph_that_knows_of_branches_takes_none_out_unasked() -> None:
    plain = trace(build("resnet20", width=4), torch.zeros(1, 3, 32, 32))
    scores = np.abs(np.random.default_rng(0).standard_normal(plain.n_channels))
    for budget in (150_000, 300_000):
        assert greedy(plain, scores, budget).tolist() == greedy(deep("resnet20"), scores, budget).tolist()
        assert greedy(plain, scores, budget, depth=True).tolist() == greedy(plain, scores, budget).tolist()
