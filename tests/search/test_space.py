"""Spaces: every vector is a candidate that fills the budget, and greedy pruning is one of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import BudgetInfeasible
from espalier.pruning.allocation import greedy, uniform
from espalier.pruning.costs import Floats
from espalier.pruning.energy import Normalization, normalize
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.networks import CifarResNet
from espalier.pruning.trace import trace
from espalier.search.candidate import Candidate
from espalier.search.space import NORMALIZATION, RUNG, SPACES, Multipliers, Ratios, Space

How = Normalization | Literal["searched"]

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
    normalization: How = "mean",
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
    """The vector at these places, 0 to 1, of the space's range."""
    low, high = space.bounds()
    values = {
        group.name: low + share * (high - low) for group, share in zip(space.graph.groups, shares, strict=True)
    }
    return values | {RUNG: rung}


def vectors() -> st.SearchStrategy[list[float]]:
    count = len(resnet8().groups)
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
    assert graph.macs(widths) <= space.budget
    for group in range(len(widths)):
        if widths[group] < graph.sizes[group]:
            one_more = widths + np.eye(len(widths), dtype=np.int64)[group]
            assert graph.macs(one_more) > space.budget


@every_space
@given(shares=vectors(), rung=st.integers(0, 1))
def test_the_same_vector_is_the_same_candidate(kind: type[Space], shares: list[float], rung: int) -> None:
    first, second = make(kind), make(kind)
    assert first.decode(params(first, shares, rung)) == second.decode(params(second, shares, rung))


@every_space
@pytest.mark.parametrize("normalization", ["raw", "mean", "max", "per_mac"])
@pytest.mark.parametrize("keep", [0.15, 0.4, 0.9])
def test_greedy_params_are_greedy_global_pruning_on_every_rung(
    kind: type[Space], normalization: Normalization, keep: float
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
@pytest.mark.parametrize("normalization", ["searched", "mean"])
def test_greedy_params_lie_in_the_bounds(kind: type[Space], normalization: How) -> None:
    for keep in (0.1, 0.5, 1.0):
        space = make(kind, keep=keep, normalization=normalization)
        low, high = space.bounds()
        for number, vector in enumerate(space.greedy_params()):
            searched = normalization == "searched"
            assert (NORMALIZATION in vector) == (searched and kind.normalizes)
            assert vector.pop(NORMALIZATION, 1.0) in (0.0, 1.0)
            assert vector.pop(RUNG) == number // (2 if searched else 1)
            assert all(low <= value <= high for value in vector.values())


@every_space
def test_the_whole_budget_keeps_every_channel(kind: type[Space]) -> None:
    space = make(kind, keep=1.0)
    shares = np.random.default_rng(0).random(len(space.graph.groups)).tolist()
    assert space.decode(params(space, shares, 0)).widths == tuple(space.graph.sizes)


@every_space
def test_more_of_a_group_is_never_fewer_of_its_channels(kind: type[Space]) -> None:
    space = make(kind)
    middle = [0.5] * len(space.graph.groups)
    reach = []
    for group in range(len(middle)):
        widths = []
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            shares = [*middle]
            shares[group] = share
            widths.append(space.decode(params(space, shares, 0)).widths[group])
        assert widths == sorted(widths)
        reach.append(widths[-1] - widths[0])
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
@pytest.mark.parametrize(
    ("n_rungs", "normalization", "others"),
    [
        (1, "mean", []),
        (2, "mean", [RUNG]),
        (1, "searched", [NORMALIZATION]),
        (2, "searched", [RUNG, NORMALIZATION]),
    ],
)
def test_a_trial_is_asked_for_every_group_and_for_what_else_is_open(
    kind: type[Space], n_rungs: int, normalization: How, others: list[str]
) -> None:
    space = make(kind, n_rungs=n_rungs, normalization=normalization)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    suggested = space.suggest(trial)
    assert suggested == trial.params
    wanted = set(others) if kind.normalizes else set(others) - {NORMALIZATION}
    assert set(suggested) == {group.name for group in space.graph.groups} | wanted
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
