"""The evaluator against a slow reference that builds every candidate from scratch."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espalier.pruning.costs import Ints
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.recalibration import recalibrate_bn
from espalier.pruning.surgery import slim
from espalier.search.candidate import Candidate, Score
from espalier.search.data import InMemoryImages, Splits, normalize
from espalier.search.evaluation import EvaluationSpec, Evaluator, empty_skeleton, numpy_state
from espalier.search.training import Recipe, train

CANDIDATES = [
    Candidate(0, (6, 8, 10)),
    Candidate(1, (3, 4, 5)),
    Candidate(0, (1, 1, 1)),
    Candidate(1, (6, 1, 9)),
    Candidate(0, (3, 4, 5)),
]
BATCH = 32


@pytest.fixture
def networks(network: nn.Module) -> list[nn.Module]:
    """The networks of two rungs."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return [network, other]


@pytest.fixture
def ranks(graph: ChannelGraph) -> list[Ints]:
    draw = np.random.default_rng(1)
    return [graph.ranks(draw.random(graph.n_channels)) for _ in range(2)]


@pytest.fixture
def spec(networks: list[nn.Module], graph: ChannelGraph, splits: Splits, ranks: list[Ints]) -> EvaluationSpec:
    return EvaluationSpec(
        skeleton=empty_skeleton(networks[0]),
        graph=graph,
        states=tuple(numpy_state(rung) for rung in networks),
        ranks=tuple(ranks),
        calibration=splits.train.fetch(torch.arange(80)).numpy(),
        scoring=splits.search.fetch(torch.arange(48)).numpy(),
        labels=splits.search.labels.numpy(),
        mean=splits.mean,
        std=splits.std,
        batch_size=BATCH,
        precision="fp32",
        steps=0,
        recipe=Recipe(epochs=1, batch_size=16, lr=0.05, warmup=0.0),
        practice=splits.train.fetch(torch.arange(48)).numpy(),
        practice_labels=splits.train.labels[:48].numpy(),
    )


def reference(spec: EvaluationSpec, networks: list[nn.Module], candidate: Candidate) -> tuple[nn.Module, Score]:
    keep = torch.from_numpy(spec.ranks[candidate.rung] < np.array(candidate.widths)[spec.graph.group_of])
    small = slim(networks[candidate.rung], spec.graph, keep)
    images = normalize(torch.from_numpy(spec.calibration), spec.mean, spec.std)
    recalibrate_bn(small, images.split(BATCH))
    if spec.steps:
        practice = InMemoryImages(torch.from_numpy(spec.practice), torch.from_numpy(spec.practice_labels))
        train(small, practice, spec.mean, spec.std, spec.recipe, seed=0)
        recalibrate_bn(small, images.split(BATCH))
    with torch.no_grad():
        logits = small(normalize(torch.from_numpy(spec.scoring), spec.mean, spec.std))
    labels = torch.from_numpy(spec.labels)
    right = 100 * (logits.argmax(1) == labels).double().mean()
    return small, Score(float(right), float(F.cross_entropy(logits, labels)), 0.0)


@pytest.fixture(params=[0, 3], ids=["as cut", "three steps"])
def stepping(spec: EvaluationSpec, request: pytest.FixtureRequest) -> EvaluationSpec:
    """Both proxies."""
    return replace(spec, steps=request.param)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: str(candidate.key))
def test_it_scores_as_the_slow_reference_does(
    stepping: EvaluationSpec, networks: list[nn.Module], candidate: Candidate
) -> None:
    spec = stepping
    evaluator = Evaluator(spec)
    score = evaluator(candidate)
    _, expected = reference(spec, networks, candidate)
    assert score.top1 == pytest.approx(expected.top1, abs=1e-4)
    assert score.cross_entropy == pytest.approx(expected.cross_entropy, abs=1e-5)
    assert score.seconds > 0
    small = reference(replace(spec, steps=0), networks, candidate)[0]
    cut = evaluator.recalibrated(candidate)
    for (name, tensor), (_, other) in zip(cut.state_dict().items(), small.state_dict().items(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5, msg=name)


def test_the_candidates_are_told_apart(spec: EvaluationSpec) -> None:
    evaluator = Evaluator(spec)
    assert len({evaluator(candidate).cross_entropy for candidate in CANDIDATES}) == len(CANDIDATES)


def test_steps_make_a_cut_network_better(spec: EvaluationSpec) -> None:
    candidate = CANDIDATES[1]
    assert Evaluator(replace(spec, steps=3))(candidate).cross_entropy < Evaluator(spec)(candidate).cross_entropy


def test_a_score_does_not_depend_on_what_came_before(stepping: EvaluationSpec) -> None:
    spec = stepping
    alone = {candidate: Evaluator(spec)(candidate) for candidate in CANDIDATES}
    evaluator = Evaluator(spec)
    for candidate in [*CANDIDATES, *reversed(CANDIDATES)]:
        score = evaluator(candidate)
        assert (score.top1, score.cross_entropy) == (alone[candidate].top1, alone[candidate].cross_entropy)


def test_the_networks_it_was_made_from_stay_as_they_are(
    stepping: EvaluationSpec, networks: list[nn.Module]
) -> None:
    spec = stepping
    before = [{name: tensor.clone() for name, tensor in rung.state_dict().items()} for rung in networks]
    arrays = pickle.dumps((spec.states, spec.calibration, spec.scoring))
    evaluator = Evaluator(spec)
    for candidate in CANDIDATES:
        evaluator(candidate)
    for rung, state in zip(networks, before, strict=True):
        for name, tensor in rung.state_dict().items():
            assert torch.equal(tensor, state[name])
    assert pickle.dumps((spec.states, spec.calibration, spec.scoring)) == arrays


def test_a_spec_survives_pickling_and_its_skeleton_holds_no_weights(spec: EvaluationSpec) -> None:
    again: EvaluationSpec = pickle.loads(pickle.dumps(spec))
    for candidate in CANDIDATES:
        one, other = Evaluator(spec)(candidate), Evaluator(again)(candidate)
        assert (one.top1, one.cross_entropy) == (other.top1, other.cross_entropy)
    assert all(tensor.numel() == 0 for tensor in [*spec.skeleton.parameters(), *spec.skeleton.buffers()])


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_enough(stepping: EvaluationSpec) -> None:
    spec = stepping
    expected = [Evaluator(spec)(candidate).cross_entropy for candidate in CANDIDATES]
    for state in spec.states:
        for array in state.values():
            array.flags.writeable = False
    for array in (*spec.ranks, spec.calibration, spec.scoring, spec.labels, spec.practice):
        array.flags.writeable = False
    assert [Evaluator(spec)(candidate).cross_entropy for candidate in CANDIDATES] == expected


def test_half_precision_scores_nearly_the_same(spec: EvaluationSpec) -> None:
    half = replace(spec, precision="bf16")
    for candidate in CANDIDATES:
        exact, rough = Evaluator(spec)(candidate).cross_entropy, Evaluator(half)(candidate).cross_entropy
        assert rough != exact and rough == pytest.approx(exact, rel=0.1)


def test_a_score_survives_json() -> None:
    score = Score(12.5, 1.25, 0.5)
    assert Score.from_json(score.to_json()) == score
