"""What docs/ shows holds: its Python runs, and its tables are what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from espalier.pruning.networks import NETWORKS, build

AGENTS_PAGE = Path(__file__).resolve().parents[1] / "docs" / "agents.md"
NETWORKS_PAGE = (Path(__file__).resolve().parents[1] / "docs" / "networks.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", NETWORKS_PAGE, re.DOTALL)
ROWS = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", NETWORKS_PAGE, re.MULTILINE)


def test_ten_lines_prune_a_network_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    network, small = names["network"], names["small"]
    assert isinstance(network, nn.Sequential) and isinstance(small, nn.Sequential)
    images = torch.randn(2, 3, 32, 32)
    assert small(images).shape == network(images).shape
    with FlopCounterMode(display=False) as dense:
        network(images)
    with FlopCounterMode(display=False) as pruned:
        small(images)
    assert 0.45 < pruned.get_total_flops() / dense.get_total_flops() <= 0.5
    assert "Conv2d" in capsys.readouterr().out


def test_a_network_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    names: dict[str, object] = {}
    exec("import torch, espalier\n" + BLOCKS[1], names)
    graph = names["graph"]
    sizes = {group.size for group in graph.groups}  # type: ignore[attr-defined]
    assert sizes == {48, 96, 4, 12}  # stream, MLPs, heads, channels of a head


def test_the_table_has_every_network() -> None:
    assert [name for name, *_ in ROWS] == list(NETWORKS)


@pytest.mark.parametrize(("name", "side", "parameters", "macs"), ROWS, ids=[row[0] for row in ROWS])
def test_the_table_says_what_the_networks_cost(name: str, side: str, parameters: str, macs: str) -> None:
    with torch.device("meta"):
        network, images = build(name).eval(), torch.empty(1, 3, int(side), int(side))
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert f"{sum(p.numel() for p in network.parameters()):,}" == parameters
    assert f"{counter.get_total_flops() // 2:,}" == macs


AGENT_BLOCKS = re.findall(r"```python\n(.*?)```", AGENTS_PAGE.read_text(), re.DOTALL)


def test_an_agent_in_a_plain_study() -> None:
    names: dict[str, Any] = {}
    exec(AGENT_BLOCKS[0], names)
    study = names["study"]
    assert len(study.trials) == 40
    assert study.best_value < study.trials[0].value


def test_somebody_elses_agent_prunes() -> None:
    pytest.importorskip("stable_baselines3")
    names: dict[str, Any] = {}
    exec(AGENT_BLOCKS[1], names)
    observation, _ = names["env"].reset()
    ended = False
    while not ended:
        action, _ = names["theirs"].predict(observation, deterministic=True)
        observation, _, ended, _, info = names["env"].step(action)
    graph, widths = names["graph"], info["widths"]
    dearest = int(graph.channel_costs().max())
    assert names["budget"] - dearest < graph.macs(widths) <= names["budget"]
