"""Criteria by name, of the user's own, and what they need of a task."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.errors import ConfigError, StudyMismatch
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.criterion import Criterion
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.importance import channel_scores, check_offered, code_of_criterion, criterion_of
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import config_of

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
OWN = """
import torch, espalier
from torch import nn

def network(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))

def score(net):
    return -float(net(torch.ones(1, 4)).abs())

def task():
    inputs = torch.randn(16, 4)
    return espalier.FunctionTask(score, inputs.split(4), example_inputs=inputs[:1])

def place(network, graph):
    return torch.arange(graph.n_channels, dtype=torch.float32)

class Spread:
    needs = ("batches",)
    def __call__(self, network, graph, batches):
        return torch.full((graph.n_channels,), float(torch.cat(list(batches)).std()))

made = espalier.Criterion(place)
three = 3
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1)).eval()


def task() -> espalier.FunctionTask:
    return espalier.FunctionTask(lambda net: -float(net(INPUTS[:8]).abs().mean()), INPUTS.split(16))


def backwards(net: nn.Module, graph: ChannelGraph) -> Tensor:
    return torch.arange(graph.n_channels, 0, -1)


def forwards(net: nn.Module, graph: ChannelGraph) -> Tensor:
    return torch.arange(1, graph.n_channels + 1)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a search whose network, task and criteria are in a module of the user's."""
    (tmp_path / "own_criteria.py").write_text(textwrap.dedent(OWN))
    sys.modules.pop("own_criteria", None)  # what another test has left
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return {
        "model": {"name": "own_criteria:network", "kwargs": {"width": 12}},
        "task": {"name": "own_criteria:task"},
        "training": {"epochs": 0},
        "finetune": {"epochs": 0, "seeds": 1, "selection_seeds": 1},
        "budget": {"keep": 0.5},
        "search": {"trials": 3, "criterion": "own_criteria:place"},
        "workers": 0,
    }


def test_a_task_that_does_not_offer_what_a_criterion_needs() -> None:
    blind = espalier.FunctionTask(lambda net: 0.0)
    for name, criterion in CRITERIA.items():
        needed = set(criterion.needs) & {"loss", "batches"}
        if not needed:
            check_offered("search.criterion", criterion, blind)
            continue
        words = "differentiates a loss" if "loss" in needed else "looks at batches of inputs"
        with pytest.raises(
            ConfigError, match=rf"^prune\.criterion: {name} {words}, which this task does not offer$"
        ):
            check_offered("prune.criterion", criterion, blind)


def test_a_criterion_gets_the_batches_of_the_task() -> None:
    net, seen = network(), []

    def watch(model: nn.Module, graph: ChannelGraph, batches: Any) -> Tensor:
        seen.extend(batches)
        return torch.ones(graph.n_channels)

    graph, given = espalier.trace(net, INPUTS[:1]), task().on(INPUTS[:1], net)
    assert channel_scores(Criterion(watch, needs=("batches",)), net, graph, given, 0).tolist() == [1.0] * 12
    assert torch.equal(torch.cat(seen), INPUTS)
    means = channel_scores(CRITERIA["mean_activation"], net, graph, given, 0)
    with torch.no_grad():
        wanted = net[:2](INPUTS).abs().mean(0)  # type: ignore[index]
    np.testing.assert_allclose(means, wanted.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            torch.ones(3),
            r"criterion bad must give one score per channel, a tensor of shape \(12,\), got shape \(3,\)",
        ),
        (7.0, r"a tensor of shape \(12,\), got float"),
        (torch.full((12,), float("nan")), "must give finite scores, none below zero, got nan"),
        (torch.arange(12) - 1.0, "must give finite scores, none below zero, got -1"),
    ],
)
def test_what_is_no_score(found: Any, message: str) -> None:
    def bad(model: nn.Module, graph: ChannelGraph) -> Any:
        return found

    net = network()
    with pytest.raises(ConfigError, match=message):
        channel_scores(Criterion(bad), net, espalier.trace(net, INPUTS[:1]), task(), 0)


def test_a_criterion_says_what_it_lacks() -> None:
    net = network()
    with pytest.raises(ConfigError, match=r"^obd_c takes loss= and generator= beside network and graph$"):
        CRITERIA["obd_c"](net, espalier.trace(net, INPUTS[:1]))
    with pytest.raises(ConfigError, match="a criterion may need loss, batches, generator, got 'labels'"):
        Criterion(backwards, needs=("labels",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="iterations must be at least 1, got 0"):
        Criterion(backwards, iterations=0)


# ---------------------------------------------------------------------------------------------- of one's own


def test_a_config_names_a_criterion_of_ones_own(own: dict[str, Any]) -> None:
    found = espalier.search_widths(own)
    kept = found.network[0].weight  # type: ignore[index]
    dense = own_network(own)[0].weight
    assert torch.equal(kept, dense[-len(kept) :])  # the last channels are worth most
    url = "sqlite:///runs/search/study.db"
    parts = ["own_criteria:network", "own_criteria:task"]
    with pytest.raises(
        ConfigError, match=r"names search\.criterion 'own_criteria:place', called with no arguments"
    ):
        config_of(url, "search", trust=parts)
    assert config_of(url, "search", ["search.criterion=own_criteria:place"], trust=parts)
    assert espalier.resume(url, "search", trust="own_criteria").result.trials == 3


def test_results_of_an_edited_criterion_are_not_taken(own: dict[str, Any], tmp_path: Path) -> None:
    espalier.search_widths(own)
    comparison = own | {"compare": {"methods": ["greedy", "random"], "seeds": 1, "trials": 3}}
    espalier.compare(comparison, out=tmp_path / "compared", workers=0)
    pruned = own | {"search": {}, "prune": {"criterion": "own_criteria:made"}, "regularizer": {"epochs": 0}}
    config = parse_config(pruned, "own")
    prune(config, tmp_path / "pruned", Silent())
    file = tmp_path / "pruned" / "pruned.espalier"
    before = file.read_bytes()
    for name in ("place", "made"):  # a function, and what holds one
        assert code_of_criterion(f"own_criteria:{name}") == code_of_criterion("own_criteria:place")
    (tmp_path / "own_criteria.py").write_text(OWN.replace("dtype=torch.float32)", "dtype=torch.float32).flip(0)"))
    sys.modules.pop("own_criteria")
    importlib.invalidate_caches()
    with pytest.raises(StudyMismatch, match=r"the code of search\.criterion"):
        espalier.search_widths(own)
    with pytest.raises(StudyMismatch, match=r"the code of own_criteria:place is not the same any more"):
        espalier.compare(comparison, out=tmp_path / "compared", workers=0)
    prune(config, tmp_path / "pruned", Silent())
    assert file.read_bytes() != before


def own_network(own: dict[str, Any]) -> Any:
    return prepare(parse_config(own, "own")).model


def test_what_a_name_may_mean(own: dict[str, Any]) -> None:
    net = network()
    graph, given = espalier.trace(net, INPUTS[:1]), task().on(INPUTS[:1], net)
    for name in ("place", "made"):
        scores = channel_scores(criterion_of(f"own_criteria:{name}"), net, graph, given, 0)
        assert scores.tolist() == list(range(12))
    spread = criterion_of("own_criteria:Spread")
    assert spread.needs == ("batches",)
    assert channel_scores(spread, net, graph, given, 0)[0] == pytest.approx(float(INPUTS.std()))
    for name, message in (
        ("own_criteria:three", "must be a function of network and graph, got int"),
        ("own_criteria:four", r"must be package.module:name, got 'own_criteria:four' \(.*four"),
        ("nowhere_at_all:x", "must be package.module:name, got 'nowhere_at_all:x'"),
        ("energie", "must be one of energy, folded_energy, .*, or your own, got 'energie'"),
    ):
        with pytest.raises(ConfigError, match=message):
            criterion_of(name)
    with pytest.raises(ConfigError, match="did you mean 'energy'"):
        parse_config(own | {"search": {"criterion": "energie"}}, "own")


def test_a_criterion_is_given_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = network()
    budget = espalier.Budget(macs=0.5)
    found = espalier.search_widths(net, INPUTS[:1], task(), budget=budget, trials=3, workers=0, criterion=backwards)
    kept = found.network[0].weight  # type: ignore[index]
    assert torch.equal(kept, net[0].weight[: len(kept)])  # type: ignore[index]
    url = "sqlite:///runs/search/study.db"
    with pytest.raises(ConfigError, match=r"criterion of this study was given in Python.*criterion=criterion\)"):
        espalier.resume(url, "search", net, task())
    with pytest.raises(StudyMismatch, match=r"search\.criterion"):
        espalier.resume(url, "search", net, task(), criterion=forwards)
    assert espalier.resume(url, "search", net, task(), criterion=backwards).result.trials == 3
    with pytest.raises(ConfigError, match="a criterion is given in Python, and here is 'l1'"):
        espalier.search_widths(
            net,
            INPUTS[:1],
            task(),
            budget=budget,
            workers=0,
            study="other",
            criterion=backwards,
            overrides=["search.criterion=l1"],
        )
