"""What every proxy must do, and what each repair and signal is, against slow and closed forms."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espalier.errors import ConfigError
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.evaluation import proxies
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.proxies import PROXIES, STEPS, Healed, Signal
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.scoring import head_of
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.functions import FunctionTask
from espalier.search.tasks.least_squares import RIDGE, ridge
from tests.search.conftest import calibrated_on, images_of, scored_on

CANDIDATES = [Candidate(0, (6, 8, 10)), Candidate(1, (3, 4, 5)), Candidate(0, (1, 1, 2)), Candidate(1, (6, 1, 9))]

every_proxy = pytest.mark.parametrize("name", list(PROXIES))


@every_proxy
def test_it_tells_candidates_apart_whatever_came_before(spec: EvaluationSpec, name: str) -> None:
    evaluator = Evaluator(spec)
    first = [evaluator(candidate, name) for candidate in CANDIDATES]
    for other in PROXIES:
        evaluator(CANDIDATES[2], other)
    again = [evaluator(candidate, name) for candidate in reversed(CANDIDATES)]
    values = [score.value(MEASURES["cross_entropy"]) for score in first]
    assert [score.value(MEASURES["cross_entropy"]) for score in reversed(again)] == values
    assert len(set(values)) == len(values) and all(math.isfinite(value) for value in values)
    signal = isinstance(PROXIES[name], Signal)
    assert all((score.signal is not None) == signal and score.images == (0 if signal else 48) for score in first)


@every_proxy
def test_it_leaves_the_checkpoints_as_they_are(spec: EvaluationSpec, name: str) -> None:
    before = pickle.dumps((spec.states, spec.scoring))
    evaluator = Evaluator(spec)
    for candidate in CANDIDATES:
        evaluator(candidate, name)
    assert pickle.dumps((spec.states, spec.scoring)) == before


def test_steps_are_those_of_the_names() -> None:
    assert {name for name in PROXIES if name.startswith("sgd")} == STEPS.keys()
    assert all(name == f"sgd{steps}" for name, steps in STEPS.items())


def logits(networks: CandidateNetworks, network: nn.Module) -> torch.Tensor:
    return torch.cat(list(networks.runner.outputs(network, scored_on(networks))))


def test_batch_statistics_are_those_of_each_batch(spec: EvaluationSpec) -> None:
    networks, candidate = CandidateNetworks(spec), CANDIDATES[1]
    proxy = PROXIES["batch_statistics"]
    network = proxy.prepare(networks, candidate)
    assert isinstance(network, nn.Module)
    found = logits(networks, network)
    plain = copy.deepcopy(networks.cut(candidate)).train()
    with torch.no_grad():
        expected = torch.cat([plain(batch) for batch in scored_on(networks)])
    torch.testing.assert_close(found, expected)


def test_ridge_regression_solves_the_normal_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = torch.randn(50, 7, generator=generator), torch.randn(50, 3, generator=generator)
    weights = ridge(inputs, outputs)
    size = RIDGE * float((inputs.T @ inputs).diagonal().mean())
    stacked = torch.cat([inputs, math.sqrt(size) * torch.eye(7)]), torch.cat([outputs, torch.zeros(7, 3)])
    torch.testing.assert_close(weights, torch.linalg.lstsq(*stacked).solution, rtol=1e-4, atol=1e-5)


def test_a_solved_head_is_better_on_the_images_that_it_was_solved_on(spec: EvaluationSpec) -> None:
    networks, candidate = CandidateNetworks(spec), CANDIDATES[1]

    def loss(name: str) -> float:
        network = PROXIES[name].prepare(networks, candidate)
        assert isinstance(network, nn.Module)
        given = torch.cat(list(networks.runner.outputs(network, networks.calibration)))
        return float(F.cross_entropy(given, torch.from_numpy(images_of(spec).calibration_labels)))

    assert loss("ridge") < 0.7 * loss("recalibrated")


def test_a_network_without_a_linear_head_is_refused(spec: EvaluationSpec) -> None:
    with pytest.raises(ConfigError, match="ridge-solved head need a network that ends in a linear layer"):
        Evaluator(replace(spec, scoring=replace(images_of(spec), head=None)))(CANDIDATES[0], "ridge")
    convolutional = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert head_of(convolutional, torch.zeros(1, 1, 8, 8)) is None
    assert head_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), torch.zeros(1, 1, 2, 2)) is None
    assert images_of(spec).head == "9"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 5, 3, stride=2, bias=False),
        nn.Conv2d(3, 5, (1, 4), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    ],
    ids=["same", "strided", "odd"],
)
def test_patches_are_what_a_convolution_reads(layer: nn.Conv2d) -> None:
    images = torch.randn(4, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = layer(images)
        at_positions = proxies._at_positions(output, output.shape)
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(
            proxies._patches(images, layer) @ layer.weight.flatten(1).T + bias, at_positions, rtol=1e-4, atol=1e-5
        )


def test_reconstruction_leaves_the_whole_network_as_it_is(spec: EvaluationSpec) -> None:
    networks, whole = CandidateNetworks(spec), CANDIDATES[0]
    expected = logits(networks, networks.cut(whole))
    network = Healed((proxies.reconstruct,)).prepare(networks, whole)
    torch.testing.assert_close(logits(networks, network), expected, rtol=1e-3, atol=1e-3)


class Tied(nn.Module):
    """Its head reads by the embedding's weights, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.outer = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, time, 11) of tokens (batch, time)."""
        x = self.embedding(tokens)
        read: torch.Tensor = self.head(x + self.outer(F.relu(self.inner(x))))
        return read


class Twice(nn.Module):
    """One convolution runs twice, and a head reads two maps, as detectors' do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Numbers (batch, 8)."""
        fine = self.again(F.relu(self.again(F.relu(self.stem(x)))))
        coarse = F.max_pool2d(fine, 2)
        return torch.cat([self.head(fine).mean((2, 3)), self.head(coarse).mean((2, 3))], 1)


IN_PLACE = nn.Sequential(
    nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 12), nn.ReLU(inplace=True), nn.Linear(12, 3)
)


@pytest.mark.parametrize("name", ["tied", "twice", "in place"])
def test_reconstruction_of_any_network_leaves_the_whole_one_as_it_is(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network, inputs = {
        "tied": (Tied(), torch.randint(11, (256, 5), generator=generator)),
        "twice": (Twice(), torch.randn(256, 1, 10, 10, generator=generator)),
        "in place": (IN_PLACE, torch.randn(256, 8, generator=generator)),
    }[name]
    graph = trace(network, inputs[:1])
    task = FunctionTask(lambda _: 0.0, [inputs], example_inputs=inputs[:1])
    scoring = task.scoring("scoring", network, calibration=256, steps=0)
    execution = Execution(memory_format="contiguous")
    worth = np.arange(graph.n_channels, 0.0, -1.0)
    networks = CandidateNetworks(EvaluationSpec.of(graph, [network], [worth], scoring, execution, proxy="as_cut"))
    whole, narrow = Candidate(0, tuple(graph.sizes)), Candidate(0, tuple((graph.sizes - 2).tolist()))
    with torch.no_grad():
        expected, cut = network(inputs), networks.cut(narrow)(inputs)
        for candidate in (narrow, whole):  # what one leaves behind must not reach the next
            found = Healed((proxies.reconstruct,)).prepare(networks, candidate)
            assert sum(p.numel() for p in found.parameters()) == graph.params(candidate.widths)
            healed = found(inputs)
        torch.testing.assert_close(healed, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(networks.cut(narrow)(inputs), cut)


def test_reconstruction_brings_a_cut_network_nearer_to_the_dense_one(
    spec: EvaluationSpec, networks: list[nn.Module]
) -> None:
    made, candidate = CandidateNetworks(spec), Candidate(1, (4, 5, 6))
    with torch.no_grad():
        dense = torch.cat([networks[1](batch) for batch in scored_on(made)])

    def error(proxy: Healed) -> float:
        return float((logits(made, proxy.prepare(made, candidate)) - dense).square().mean())

    assert error(Healed((proxies.reconstruct,))) < 0.5 * error(Healed())


def test_synflow_is_the_sum_over_weights_of_a_positive_network(spec: EvaluationSpec) -> None:
    networks = CandidateNetworks(spec)
    candidate = CANDIDATES[2]
    cut = copy.deepcopy(networks.cut(candidate))
    for module in cut.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():
        for tensor in cut.parameters():
            tensor.abs_()
    loss = cut(torch.ones(1, 1, 8, 8)).sum()
    loss.backward()
    total = sum(float((p.detach() * p.grad).abs().sum()) for p in cut.parameters() if p.grad is not None)
    assert proxies.synflow(networks, candidate) == pytest.approx(math.log(total), rel=1e-4)


def test_the_gradient_norm_is_that_of_one_batch(spec: EvaluationSpec, networks: list[nn.Module]) -> None:
    made, candidate = CandidateNetworks(spec), CANDIDATES[3]
    small = slim(networks[1], spec.graph, spec.keep(candidate))
    made.runner.recalibrate(small, made.calibration)
    batch = calibrated_on(made)[0]
    F.cross_entropy(small(batch), torch.from_numpy(images_of(spec).calibration_labels)[: len(batch)]).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in small.parameters() if p.grad is not None))
    assert proxies.gradient_norm(made, candidate) == pytest.approx(-math.log(norm), rel=1e-4)


def test_parameters_are_counted(spec: EvaluationSpec) -> None:
    network = CandidateNetworks(spec).cut(CANDIDATES[1])
    expected = sum(parameter.numel() for parameter in network.parameters())
    assert Evaluator(spec)(CANDIDATES[1], "parameters").signal == expected
