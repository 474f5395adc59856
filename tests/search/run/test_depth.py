"""Searches that may take residual branches out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import BudgetInfeasible, ConfigError
from espalier.pruning.graph.allocation import narrowest
from espalier.pruning.networks import CifarResNet
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.removed import Removed
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.config.loading import Config, parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import run
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import DEPTH
from espalier.search.tasks.classification.measures import MEASURES
from tests.search.conftest import calibrated_on, scored_on

KWARGS: dict[str, Any] = {"depth": 14, "width": 4, "in_channels": 1, "num_classes": 10}


def settings(tiny: dict[str, Any], keep: float, **more: Any) -> Config:
    model = tiny["model"] | {"kwargs": KWARGS}
    return parse_config(tiny | {"model": model, "budget": {"keep": keep, "depth": True}} | more, "tiny")


def least() -> tuple[float, float, int]:
    """Shares of the MACs that the narrowest networks keep, with all branches and with none; the dense network's."""
    graph = trace(CifarResNet(**KWARGS), torch.zeros(1, 1, 8, 8), depth=True)
    dense, every = int(graph.macs(graph.sizes)), range(len(graph.branches))
    with_all, with_none = (int(graph.macs(narrowest(graph, removed=out))) / dense for out in ((), every))
    return with_all, with_none, dense


def test_a_search_under_a_budget_that_no_widths_meet_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    with_all, with_none, dense = least()
    keep = (with_all + with_none) / 2
    with pytest.raises(BudgetInfeasible, match="at its fewest channels the network costs"):
        run(settings(tiny, keep, budget={"keep": keep}), study="s", out=tmp_path / "none")
    result = run(settings(tiny, keep), study="s", out=tmp_path / "out")
    for found in (result.greedy, result.searched):
        out = [name for name, width in found.widths.items() if not width]
        assert out and all(name.endswith(".conv1") for name in out) and found.macs <= keep * dense
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    assert all(DEPTH in trial.params for trial in study.trials)
    network = espalier.load(tmp_path / "out" / "pruned.espalier", network=CifarResNet(**KWARGS))
    assert any(isinstance(module, Removed) for module in network.modules())
    assert sum(parameter.numel() for parameter in network.parameters()) == result.searched.params
    kept = json.loads((tmp_path / "out" / "result.json").read_text())["searched"]["widths"]
    assert kept == result.searched.widths
    more = settings(tiny, keep, search=tiny["search"] | {"trials": 8})
    assert run(more, study="s", out=tmp_path / "out").trials == 8


@pytest.fixture
def deep(spec: EvaluationSpec, networks: list[nn.Module]) -> EvaluationSpec:
    """The small networks, whose block can be taken out."""
    return replace(spec, graph=trace(networks[0], torch.zeros(1, 1, 8, 8), depth=True))


CANDIDATES = [Candidate(0, (6, 8, 10)), Candidate(1, (3, 0, 5)), Candidate(0, (6, 0, 10)), Candidate(1, (6, 1, 9))]


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_judges_networks_without_a_branch_whatever_came_before(deep: EvaluationSpec, name: str) -> None:
    assert deep.graph.removable.tolist() == [False, True, False]
    evaluator = Evaluator(deep)
    first = [evaluator(candidate, name).value(MEASURES["cross_entropy"]) for candidate in CANDIDATES]
    again = [evaluator(candidate, name).value(MEASURES["cross_entropy"]) for candidate in reversed(CANDIDATES)]
    assert again[::-1] == first
    assert len(set(first)) == len(first) and all(map(math.isfinite, first))


def test_a_candidate_is_the_slimmed_network(deep: EvaluationSpec, networks: list[nn.Module]) -> None:
    made = CandidateNetworks(deep)
    for candidate in (*CANDIDATES, CANDIDATES[1]):
        slimmed = slim(networks[candidate.rung], deep.graph, deep.keep(candidate))
        recalibrate_bn(slimmed, calibrated_on(made))
        found = torch.cat(list(made.runner.outputs(made.recalibrated(candidate), scored_on(made))))
        with torch.no_grad():
            torch.testing.assert_close(found, torch.cat([slimmed(batch) for batch in scored_on(made)]))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["multipliers", "widths"])
def test_every_sampler_proposes_how_many_go(sampler: str, kind: str) -> None:
    graph = trace(CifarResNet(**KWARGS), torch.zeros(1, 1, 8, 8), depth=True)
    energies = np.random.default_rng(0).lognormal(0, 1, graph.n_channels)
    space = SPACES[kind](
        graph,
        [energies],
        normalization="searched",
        budget=int(0.04 * graph.macs(graph.sizes)),
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )
    study = optuna.create_study(sampler=SAMPLERS[sampler](space, 0), direction="maximize")

    def left(trial: optuna.Trial) -> float:
        candidate = space.decode(space.suggest(trial))
        assert space.budget.fits(graph, np.array(candidate.widths))
        return float(np.count_nonzero(candidate.widths))

    study.optimize(left, n_trials=12)
    assert all(0 <= trial.params[DEPTH] <= 1 for trial in study.trials)
    moves_seldom = sampler in ("local", "sensitivity")  # they look at groups first
    assert moves_seldom or len({trial.params[DEPTH] for trial in study.trials}) > 1


def test_what_does_not_take_it_says_so(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune.attention: it compares maps of layers that budget.depth may"):
        settings(tiny, 0.5, finetune=tiny["finetune"] | {"attention": 100.0})
    with pytest.raises(ConfigError, match=r"^budget.depth: searches and comparisons take it, and the pruning loop"):
        prune(settings(tiny, 0.5), tmp_path, Silent())
    plain = settings(tiny, 0.5, model={"name": "vgg11_bn", "kwargs": {"in_channels": 1, "pools": 3}})
    assert "budget.depth: the network has no residual branch that can be taken out" in prepare(plain).notes
    assert not prepare(settings(tiny, 0.5, budget={"keep": 0.5})).graph.branches
