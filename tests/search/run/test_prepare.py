"""Budgets and least widths of a config, on a network."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.errors import ConfigError
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.search.config.budget_sections import BudgetConfig
from espalier.search.run.prepare import least_widths, limits


def test_fractions_are_of_the_dense_network(resnet8: ChannelGraph) -> None:
    section = BudgetConfig(keep=0.5, keep_params=0.25, max_memory=9000)
    dense = resnet8.sizes
    expected = Budget(int(0.5 * resnet8.macs(dense)), int(0.25 * resnet8.params(dense)), 9000)
    assert limits(section, resnet8) == (expected,)
    assert limits(BudgetConfig(max_macs=7), resnet8) == (Budget(7),)
    several = limits(BudgetConfig(keep=(0.8, 0.4), max_params=9), resnet8)
    assert several == tuple(Budget(int(keep * resnet8.macs(dense)), 9) for keep in (0.8, 0.4))


def test_patterns_name_groups(resnet8: ChannelGraph) -> None:
    names = [group.name for group in resnet8.groups]
    section = BudgetConfig(
        keep=0.5, min_width=2, min_widths={"layer2.*": 5, "layer3.0.conv1": 3}, frozen=("conv1",)
    )
    floor = dict(zip(names, least_widths(section, resnet8).tolist(), strict=True))
    assert floor["conv1"] == resnet8.sizes[0]
    assert floor["layer1.0.conv1"] == 2
    assert (floor["layer2.0.conv1"], floor["layer2.0.conv2"], floor["layer3.0.conv1"]) == (5, 5, 3)


@pytest.mark.parametrize("key", ["frozen", "min_widths"])
def test_a_pattern_that_names_none_is_refused(resnet8: ChannelGraph, key: str) -> None:
    given = {"layer9.*": 4} if key == "min_widths" else ["layer9.*"]
    section = BudgetConfig.model_validate({"keep": 0.5, key: given})
    with pytest.raises(ConfigError, match=rf"budget.{key}: no group is named 'layer9\.\*'"):
        least_widths(section, resnet8)


def test_the_metric_that_binds_is_named(resnet8: ChannelGraph) -> None:
    dense = resnet8.sizes
    macs, params = int(resnet8.macs(dense)), int(resnet8.params(dense))
    assert Budget(macs, params - 1).binding(resnet8, dense) == "params"
    assert Budget(macs // 2, params).binding(resnet8, dense) == "macs"
    half = Budget(macs // 4, params).on_the_way(resnet8, 0.5)
    assert abs(half.limits["macs"] - macs // 2) <= 2
    assert half.limits["params"] == params
    assert np.array_equal(Budget(macs).fits(resnet8, np.stack([dense, dense + 1])), [True, False])
