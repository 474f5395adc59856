"""Strengths that are found cost the whole network what was asked for, whatever the penalty's scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from espalier import trace
from espalier.errors import ConfigError, EspalierError
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Lines
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.search_run import run
from espalier.search.spaces.metric import Metric
from espalier.search.training.strengths import MOST, Rung, first_strength, rungs_by_cost

COSTS = (0.005, 0.01, 0.02)
TOP1 = Metric("top1", "top-1", "%", floor=10.0, ceiling=100.0)
LOSS = Metric("loss", "loss", greater_is_better=False)


def ladder(
    metric: Metric, plain: float, cost: Any, first: float, dense: float | None = None
) -> tuple[list[tuple[Rung, float]], list[float]]:
    """With networks that lose a share `cost(strength)` of `plain`, and the strengths that were tried."""
    tried: list[float] = []
    worth = plain - (metric.floor or 0.0)

    def trained(number: int, strength: float, below: Rung) -> Rung:
        assert number == (len(tried) + 1 if strength else 0) and strength >= below.strength
        tried.extend([strength] if strength else [])
        lost = worth * cost(strength) if strength else 0.0
        value = plain - lost if metric.greater_is_better else plain + lost
        return Rung(strength, nn.Identity(), f"{number}", value)

    start = Rung(0.0, nn.Identity(), "dense", plain if dense is None else dense)
    return rungs_by_cost(start, trained, metric, COSTS, first), tried


@given(scale=st.floats(-3, 1), power=st.floats(0.5, 2.0), metric=st.sampled_from([TOP1, LOSS]))
def test_a_ladder_reaches_the_greatest_cost_and_never_exceeds_it(
    scale: float, power: float, metric: Metric
) -> None:
    """Where a strength of 10^scale costs 1 %, and the first guess is up to a thousand times off."""
    rungs, tried = ladder(metric, 90.0, lambda s: 0.01 * (s / 10**scale) ** power, 10**-1.5)
    costs = [cost for _, cost in rungs]
    assert rungs[0][0].strength == 0.0 and len(tried) <= MOST
    assert costs == sorted(costs) and costs[-1] <= COSTS[-1] and 2 <= len(rungs) <= 4
    assert costs[-1] >= COSTS[-1] / 9 or len(tried) == MOST
    assert all(rung.strength in tried for rung, _ in rungs[1:])


def test_of_each_cost_the_strongest_is_kept() -> None:
    steps = {0.1: 0.001, 0.3: 0.004, 0.9: 0.008, 2.7: 0.1}

    def cost(strength: float) -> float:
        return next(lost for most, lost in {**steps, math.inf: 0.015}.items() if strength <= most * 1.001)

    rungs, tried = ladder(TOP1, 90.0, cost, 0.1)
    assert [round(rung.strength, 3) for rung, _ in rungs] == [0.0, 0.3, 0.9]
    assert tried[:4] == pytest.approx([0.1, 0.3, 0.9, 2.7])
    assert tried[4] == pytest.approx(0.9 * math.sqrt(3), rel=0.01)  # smaller steps from the last one that it bore


def test_a_strength_that_was_too_great_is_not_tried_again() -> None:
    _, tried = ladder(TOP1, 90.0, lambda s: 0.1 if s > 0.25 else 0.001, 0.09)
    assert len(set(tried)) == len(tried) and sum(strength > 0.25 for strength in tried) <= 4
    assert max(s for s in tried if s <= 0.25) > 0.2  # between one that is too great and one that is not


def test_a_dense_network_that_is_worth_nothing() -> None:
    with pytest.raises(EspalierError, match="trained without a penalty, the network has a held-out top-1 nan %"):
        ladder(TOP1, math.nan, lambda _: 0.0, 0.1)


def test_what_any_training_costs_is_not_the_penalty_s() -> None:
    """The held-out images were among those that public weights were trained on."""
    usual, tried = ladder(TOP1, 90.0, lambda s: 0.01 * s, 0.1)
    leaked, again = ladder(TOP1, 90.0, lambda s: 0.01 * s, 0.1, dense=99.7)
    assert tried == again and [rung.strength for rung, _ in usual] == [rung.strength for rung, _ in leaked]
    assert leaked[0][0].value == 99.7 and [cost for _, cost in leaked] == [cost for _, cost in usual]


def test_a_network_that_bears_nothing_keeps_its_dense_rung() -> None:
    rungs, tried = ladder(TOP1, 90.0, lambda _: 0.5, 1.0)
    assert [rung.strength for rung, _ in rungs] == [0.0] and len(tried) == MOST and tried == sorted(tried)[::-1]


@pytest.mark.parametrize("name", [name for name in REGULARIZERS if name != "none"])
def test_the_first_strength_follows_the_penalty(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    before = [tensor.clone() for tensor in network.state_dict().values()]
    found = first_strength(network, REGULARIZERS[name](graph), steps=100, lr=0.1)
    assert 0 < found < math.inf
    assert first_strength(network, REGULARIZERS[name](graph), steps=1000, lr=0.1) == pytest.approx(found / 10)
    assert all(torch.equal(*pair) for pair in zip(before, network.state_dict().values(), strict=True))


def test_a_lasso_at_ten_times_the_first_strength_would_zero_a_mean_channel() -> None:
    """Each step of gradient descent takes lr * strength from the norm of every channel."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).eval()
    regularizer = REGULARIZERS["oicsr_gl"](trace(network, torch.zeros(1, 4)))
    layers: Any = network
    first, second = (layers[number].weight.detach() for number in (0, 2))
    mean = float(torch.cat([first, second.t()], 1).norm(dim=1).mean())
    assert 10 * first_strength(network, regularizer, 50, 0.2) == pytest.approx(mean / (50 * 0.1), rel=1e-5)


def test_a_search_finds_its_strengths_once(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tiny | {"regularizer": tiny.get("regularizer", {}) | {"strengths": "auto", "costs": [0.05, 0.2]}}
    result = run(parse_config(content, "tiny"), study="s", out=tmp_path / "out", reporter=Lines())
    said = capsys.readouterr().out
    assert "strengths, with what each costs beside training without a penalty: 0" in said and result.trials
    trained = sorted((tmp_path / "out" / "ladder").iterdir())
    more = parse_config(content, "tiny", [f"search.trials={result.trials + 2}"])
    assert run(more, study="s", out=tmp_path / "out", reporter=Lines()).trials == result.trials + 2
    assert sorted((tmp_path / "out" / "ladder").iterdir()) == trained


def test_bad_input(tiny: dict[str, Any], tmp_path: Path) -> None:
    for section, message in (
        ({"strengths": "some"}, r"regularizer\.strengths"),
        ({"strengths": "auto", "costs": [0.02, 0.01]}, "costs must rise"),
        ({"strengths": "auto", "costs": []}, r"regularizer\.costs"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(tiny | {"regularizer": section}, "tiny")
    config = parse_config(tiny | {"regularizer": {"strengths": "auto"}}, "tiny")
    with pytest.raises(ConfigError, match=r"regularizer\.strengths: auto is for searches"):
        prune(config, tmp_path / "out", Lines())
