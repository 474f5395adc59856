"""Searches that choose in how many bits layers compute."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import ConfigError
from espalier.pruning.networks import CifarResNet
from espalier.pruning.slimming.quantised_layers import quantised_layers
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import Config, parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import run
from espalier.search.run.summary import text_of
from espalier.search.samplers import SAMPLERS
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.tasks.classification.measures import MEASURES
from tests.search.conftest import calibrated_on, scored_on

KWARGS: dict[str, Any] = {"depth": 14, "width": 4, "in_channels": 1, "num_classes": 10}


def settings(tiny: dict[str, Any], budget: Mapping[str, Any], **more: Any) -> Config:
    model = tiny["model"] | {"kwargs": KWARGS}
    return parse_config(tiny | {"model": model, "budget": {"bits": [4, 8, 32], **budget}} | more, "tiny")


def test_a_search_of_widths_and_bits_goes_on_and_its_file_computes_in_them(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = settings(tiny, {"keep_bit_operations": 0.03})
    result = run(config, study="s", out=tmp_path / "out")
    limit = result.budget["bit_operations"]
    for found in (result.greedy, result.searched):
        assert found.bits and set(found.bits.values()) <= {4, 8}
        of_bits = {name: width for name, width in found.widths.items() if name.endswith(" bits")}
        assert {name.removesuffix(" bits") for name, width in of_bits.items() if width < 3} == set(found.bits)
        assert found.macs * 4 * 8 <= limit
    assert "Layers: greedy " in text_of(result) and "bit operations" in text_of(result)
    network = espalier.load(tmp_path / "out" / "pruned.espalier", network=CifarResNet(**KWARGS))
    assert {path: each.bits for path, each in quantised_layers(network).items()} == result.searched.bits
    assert all(torch.isfinite(each.input_range).all() for each in quantised_layers(network).values())
    more = settings(tiny, {"keep_bit_operations": 0.03}, search=tiny["search"] | {"trials": 8})
    again = run(more, study="s", out=tmp_path / "out")
    assert again.trials == 8 and again.greedy.bits == result.greedy.bits


def test_bits_alone_or_with_widths_that_stay(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = run(settings(tiny, {"keep_weight_bytes": 0.3, "frozen": ["*"]}), study="s", out=tmp_path)
    assert result.searched.params == result.dense.params and result.searched.macs == result.dense.macs
    assert result.searched.bits and json.loads((tmp_path / "result.json").read_text())["searched"]["bits"]
    some = prepare(settings(tiny, {"keep_bit_operations": 0.5, "frozen": ["conv1 bits", "conv1"], "min_width": 3}))
    names = [group.name for group in some.graph.groups]
    floor = dict(zip(names, some.floor.tolist(), strict=True))
    assert floor["conv1 bits"] == 3 and floor["layer1.0.conv1 bits"] == 1
    assert floor["conv1"] == 4 and floor["layer1.0.conv1"] == 3


def test_other_bits_are_fine_tuned_anew_in_the_same_folder(tiny: dict[str, Any], tmp_path: Path) -> None:
    def found(bits: list[int], share: float, out: Path) -> tuple[float, ...]:
        config = settings(tiny, {"bits": bits, "keep_bit_operations": share, "frozen": ["*"]})
        return run(config, study=str(bits[0]), out=tmp_path / out).greedy.after_seeds

    found([8, 32], 0.0625, tmp_path / "shared")
    assert found([4, 32], 0.03125, tmp_path / "shared") == found([4, 32], 0.03125, tmp_path / "own")


def test_bits_need_inputs_to_round_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = espalier.FunctionTask(lambda network: 0.5)
    budget = espalier.Budget(bit_operations=0.1)
    with pytest.raises(ConfigError, match=r"budget\.bits needs batches of inputs, which this task does not offer"):
        espalier.search_widths(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
            torch.randn(2, 4),
            task,
            budget=budget,
            overrides=["budget.bits=[8,32]"],
            study="s",
        )


@pytest.fixture
def low(spec: EvaluationSpec, networks: list[nn.Module]) -> EvaluationSpec:
    """The small networks, whose layers can have fewer bits."""
    graph = trace(networks[0], torch.zeros(1, 1, 8, 8), bits=(4, 8, 32))
    ranks = tuple(graph.ranks(espalier.channel_energies(each, graph).numpy()) for each in networks)
    return replace(spec, graph=graph, ranks=ranks)


def candidates(spec: EvaluationSpec) -> list[Candidate]:
    sizes = spec.graph.sizes.copy()
    groups = [each.group for each in spec.graph.precisions]
    found = []
    for seed in range(4):
        draw = np.random.default_rng(seed)
        widths = sizes.copy()
        widths[groups] = draw.integers(1, 4, len(groups)) if seed else 3
        widths[1] = draw.integers(2, sizes[1])
        found.append(Candidate(seed % 2, tuple(widths.tolist())))
    return found


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_judges_networks_in_fewer_bits_whatever_came_before(low: EvaluationSpec, name: str) -> None:
    evaluator, some = Evaluator(low), candidates(low)
    first = [evaluator(candidate, name).value(MEASURES["cross_entropy"]) for candidate in some]
    again = [evaluator(candidate, name).value(MEASURES["cross_entropy"]) for candidate in reversed(some)]
    assert again[::-1] == first
    assert all(map(math.isfinite, first))


def test_a_candidate_is_the_slimmed_network(low: EvaluationSpec, networks: list[nn.Module]) -> None:
    made, some = CandidateNetworks(low), candidates(low)
    for candidate in (*some, some[1]):
        slimmed = slim(networks[candidate.rung], low.graph, low.keep(candidate))
        recalibrate_bn(slimmed, calibrated_on(made))
        found = torch.cat(list(made.runner.outputs(made.recalibrated(candidate), scored_on(made))))
        with torch.no_grad():
            expected = torch.cat([slimmed(batch) for batch in scored_on(made)])
        assert (
            float((found - expected).norm() / expected.norm()) < 0.02
        )  # norms are folded: some numbers round apart


@pytest.mark.parametrize(
    ("sampler", "kind"), [*((name, "multipliers") for name in SAMPLERS), *(("random", kind) for kind in SPACES)]
)
def test_every_sampler_chooses_bits_in_every_space(sampler: str, kind: str) -> None:
    graph = trace(CifarResNet(**KWARGS), torch.zeros(1, 1, 8, 8), bits=(8, 32))
    channels = np.random.default_rng(0).lognormal(0, 1, graph.without_precisions.n_channels)
    energies = np.concatenate([channels, np.tile([2.0, 1e-2], len(graph.precisions)) * channels.mean()])
    space = SPACES[kind](
        graph,
        [energies],
        normalization="searched",
        budget=espalier.Budget.of(espalier.Budget(bit_operations=0.4), graph),
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )
    study = optuna.create_study(sampler=SAMPLERS[sampler](space, 0), direction="maximize")

    def floats(trial: optuna.Trial) -> float:
        candidate = space.decode(space.suggest(trial))
        assert space.budget.fits(graph, np.array(candidate.widths))
        return float(len(graph.precisions) - len(graph.bits_of(candidate.widths)))

    study.optimize(floats, n_trials=8)
    assert any(trial.value != len(graph.precisions) for trial in study.trials)


def test_what_does_not_take_bits_says_so(tiny: dict[str, Any], tmp_path: Path) -> None:
    share = {"keep_bit_operations": 0.1}
    with pytest.raises(ConfigError, match=r"^budget.bits: searches and comparisons take it, and the pruning loop"):
        prune(settings(tiny, share), tmp_path, Silent())
    methods = {"methods": ["greedy", "hard_concrete"]}
    with pytest.raises(ConfigError, match=r"^hard_concrete cuts a network of its own, and chooses no bits: omit"):
        compare(settings(tiny, share, compare=methods), name="tiny", out=tmp_path, command="")
    for wrong, said in (
        ({"bits": [8]}, r"budget: bits must rise from 2 to 16 at most and end with 32"),
        ({"bits": [4, 32], "latency": 0.5}, "compute in 8 bits or in float32: bits:"),
        (
            {"bits": [8, 32], "latency": 0.5},
            "device.runtime: eager computes in float32; bits: .* onnxruntime and open",
        ),
        ({"max_bit_operations": 9}, "give one of keep_bit_operations and max_bit_operations"),
        ({"bits": [8, 32], "frozen": ["conv9 bits"]}, "no group is named 'conv9 bits'"),
    ):
        with pytest.raises(ConfigError, match=said):
            prepare(settings(tiny, share | wrong))
