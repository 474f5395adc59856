"""The evaluator against a slow reference that builds every candidate from scratch."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from espalier.pruning.slimming.int8_convolutions import has_int8
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import slim
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.tasks import runner
from espalier.search.tasks.classification.data import InMemoryImages, normalize
from espalier.search.tasks.classification.training_loop import train
from tests.search.conftest import calibrated_on, images_of, run_as, scored_on

CANDIDATES = [
    Candidate(0, (6, 8, 10)),
    Candidate(1, (3, 4, 5)),
    Candidate(0, (1, 1, 1)),
    Candidate(1, (6, 1, 9)),
    Candidate(0, (3, 4, 5)),
]
BATCH = 32


def reference(spec: EvaluationSpec, networks: list[nn.Module], candidate: Candidate) -> tuple[nn.Module, Score]:
    keep = torch.from_numpy(spec.ranks[candidate.rung] < np.array(candidate.widths)[spec.graph.group_of])
    small = slim(networks[candidate.rung], spec.graph, keep)
    images = normalize(
        torch.from_numpy(images_of(spec).calibration_images), images_of(spec).mean, images_of(spec).std
    )
    batches = images.tensor_split(-(-len(images) // BATCH))
    recalibrate_bn(small, batches)
    if spec.proxy == "sgd5":
        practice = InMemoryImages(
            torch.from_numpy(images_of(spec).practice)[:80], torch.from_numpy(images_of(spec).practice_labels)[:80]
        )
        train(small, practice, images_of(spec).mean, images_of(spec).std, images_of(spec).recipe, seed=0)
        recalibrate_bn(small, batches)
    with torch.no_grad():
        logits = small(
            normalize(torch.from_numpy(images_of(spec).images), images_of(spec).mean, images_of(spec).std)
        )
    labels = torch.from_numpy(images_of(spec).labels)
    right = 100 * (logits.argmax(1) == labels).double().mean()
    with torch.no_grad():
        taught = networks[0](
            normalize(torch.from_numpy(images_of(spec).images), images_of(spec).mean, images_of(spec).std)
        ).softmax(1)
    distillation = (taught * (taught.log() - logits.log_softmax(1))).sum(1).mean()
    calibrated = min(float(F.cross_entropy(factor * logits, labels)) for factor in torch.logspace(-3, 1, 4000))
    return small, Score(
        {
            "top1": float(right),
            "cross_entropy": float(F.cross_entropy(logits, labels)),
            "distillation": float(distillation),
            "calibrated": calibrated,
        },
        0.0,
    )


@pytest.fixture(params=["recalibrated", "sgd5"])
def stepping(spec: EvaluationSpec, request: pytest.FixtureRequest) -> EvaluationSpec:
    """A proxy that trains, and one that does not."""
    return replace(spec, proxy=request.param)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: str(candidate.key))
def test_it_scores_as_the_slow_reference_does(
    stepping: EvaluationSpec, networks: list[nn.Module], candidate: Candidate
) -> None:
    spec = stepping
    evaluator = Evaluator(spec)
    score = evaluator(candidate)
    _, expected = reference(spec, networks, candidate)
    assert score.measures["top1"] == pytest.approx(expected.measures["top1"], abs=1e-4)
    assert score.measures["cross_entropy"] == pytest.approx(expected.measures["cross_entropy"], abs=1e-5)
    assert score.measures["distillation"] == pytest.approx(expected.measures["distillation"], abs=1e-5)
    assert score.measures["calibrated"] == pytest.approx(expected.measures["calibrated"], abs=1e-4)
    assert (score.images, score.against, score.signal) == (48, "", None)
    assert score.seconds > 0
    small = reference(replace(spec, proxy="recalibrated"), networks, candidate)[0]
    cut = evaluator.networks.recalibrated(candidate)
    for (name, tensor), (_, other) in zip(cut.state_dict().items(), small.state_dict().items(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("images", "most", "sizes"), [(48, 32, [24, 24]), (48, 48, [48]), (40, 15, [14, 13, 13])])
def test_batches_are_even(spec: EvaluationSpec, images: int, most: int, sizes: list[int]) -> None:
    networks = Evaluator(
        run_as(replace(spec, scoring=images_of(spec).first(images, images)), batch_size=most)
    ).networks
    own = images_of(spec)
    for batches, pixels in (
        (scored_on(networks), own.images),
        (calibrated_on(networks), own.calibration_images),
    ):
        assert [len(batch) for batch in batches] == sizes
        wanted = normalize(torch.from_numpy(pixels[:images]), images_of(spec).mean, images_of(spec).std)
        torch.testing.assert_close(torch.cat(list(batches)), wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_maps_stay_channels_last_behind_a_group_of_one_channel(spec: EvaluationSpec, precision: str) -> None:
    networks = Evaluator(run_as(spec, precision=precision)).networks
    network = networks.cut(Candidate(0, (6, 1, 9)))
    written: list[bool] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, __, result: written.append(result.is_contiguous(memory_format=torch.channels_last))
            )
    networks.runner.recalibrate(network, networks.calibration)
    assert len(list(networks.runner.outputs(network, scored_on(networks)))) == len(scored_on(networks))  # folded
    assert len(written) == 4 * (len(networks.calibration) + len(scored_on(networks))) and all(written)


def test_the_candidates_are_told_apart(spec: EvaluationSpec) -> None:
    evaluator = Evaluator(spec)
    assert len({evaluator(candidate).measures["cross_entropy"] for candidate in CANDIDATES}) == len(CANDIDATES)


def test_steps_make_a_cut_network_better(spec: EvaluationSpec) -> None:
    candidate = CANDIDATES[1]
    evaluator = Evaluator(spec)
    assert evaluator(candidate, "sgd5").measures["cross_entropy"] < evaluator(candidate).measures["cross_entropy"]


def test_a_score_does_not_depend_on_what_came_before(stepping: EvaluationSpec) -> None:
    spec = stepping
    alone = {candidate: Evaluator(spec)(candidate) for candidate in CANDIDATES}
    evaluator = Evaluator(spec)
    for candidate in [*CANDIDATES, *reversed(CANDIDATES)]:
        score = evaluator(candidate)
        assert (score.measures["top1"], score.measures["cross_entropy"]) == (
            alone[candidate].measures["top1"],
            alone[candidate].measures["cross_entropy"],
        )


def test_the_networks_it_was_made_from_stay_as_they_are(
    stepping: EvaluationSpec, networks: list[nn.Module]
) -> None:
    spec = stepping
    before = [{name: tensor.clone() for name, tensor in rung.state_dict().items()} for rung in networks]
    arrays = pickle.dumps((spec.states, spec.scoring))
    evaluator = Evaluator(spec)
    for candidate in CANDIDATES:
        evaluator(candidate)
    for rung, state in zip(networks, before, strict=True):
        for name, tensor in rung.state_dict().items():
            assert torch.equal(tensor, state[name])
    assert pickle.dumps((spec.states, spec.scoring)) == arrays


def test_a_spec_survives_pickling_and_its_skeleton_holds_no_weights(spec: EvaluationSpec) -> None:
    again: EvaluationSpec = pickle.loads(pickle.dumps(spec))
    for candidate in CANDIDATES:
        one, other = Evaluator(spec)(candidate), Evaluator(again)(candidate)
        assert (one.measures["top1"], one.measures["cross_entropy"]) == (
            other.measures["top1"],
            other.measures["cross_entropy"],
        )
    assert all(tensor.numel() == 0 for tensor in [*spec.skeleton.parameters(), *spec.skeleton.buffers()])


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_enough(stepping: EvaluationSpec) -> None:
    spec = stepping
    expected = [Evaluator(spec)(candidate).measures["cross_entropy"] for candidate in CANDIDATES]
    for state in spec.states:
        for array in state.values():
            array.flags.writeable = False
    for array in (*spec.ranks, *(each for each in vars(spec.scoring).values() if isinstance(each, np.ndarray))):
        array.flags.writeable = False
    assert [Evaluator(spec)(candidate).measures["cross_entropy"] for candidate in CANDIDATES] == expected


@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("int8", marks=pytest.mark.skipif(not has_int8(), reason="no 8-bit convolutions"))],
)
def test_low_precision_scores_nearly_the_same(spec: EvaluationSpec, precision: str) -> None:
    low = run_as(spec, precision=precision)
    for candidate in CANDIDATES:
        exact, rough = (
            Evaluator(spec)(candidate).measures["cross_entropy"],
            Evaluator(low)(candidate).measures["cross_entropy"],
        )
        assert rough != exact and rough == pytest.approx(exact, rel=0.1)


def test_where_there_is_no_int8_candidates_are_scored_in_full_precision(
    spec: EvaluationSpec, int8: Callable[[bool], None]
) -> None:
    int8(False)
    low = run_as(spec, precision="int8")
    for candidate in CANDIDATES:
        assert (
            Evaluator(low)(candidate).measures["cross_entropy"]
            == Evaluator(spec)(candidate).measures["cross_entropy"]
        )


def test_the_memory_format_does_not_matter(spec: EvaluationSpec) -> None:
    other = Evaluator(run_as(spec, memory_format="contiguous"))
    for candidate in CANDIDATES:
        assert Evaluator(spec)(candidate).measures["cross_entropy"] == pytest.approx(
            other(candidate).measures["cross_entropy"], rel=1e-5
        )


def test_a_network_has_its_norms_back_after_scoring(spec: EvaluationSpec) -> None:
    """Also where a race ends early, or an image cannot be scored."""
    labels = np.full_like(images_of(spec).labels, 9)  # there are four classes
    evaluator = Evaluator(replace(spec, scoring=replace(images_of(spec), labels=labels)))
    network = evaluator.networks.recalibrated(CANDIDATES[0])
    before = evaluator.networks.runner.inputs_of(network, "9", scored_on(evaluator.networks))

    folded = list[int]()

    def looks(*_: object) -> None:
        folded.append(sum("forward" in module.__dict__ for module in network.modules()))

    hook = list(network.modules())[-1].register_forward_hook(looks)
    with pytest.raises(IndexError, match="9 is out of bounds"):
        evaluator(CANDIDATES[0])
    assert folded[-1] == 4
    hook.remove()
    assert not any("forward" in module.__dict__ for module in network.modules())
    network = evaluator.networks.recalibrated(CANDIDATES[0])
    assert torch.equal(evaluator.networks.runner.inputs_of(network, "9", scored_on(evaluator.networks)), before)


def test_a_score_survives_json() -> None:
    score = Score({"top1": 12.5, "cross_entropy": 1.25, "distillation": 0.75}, 0.5, images=64, against="0:1,2")
    assert Score.from_json(score.to_json()) == score


# ------------------------------------------------------------------------------- racing


def raced(spec: EvaluationSpec, losses: list[torch.Tensor]) -> list[Score]:
    """The scores of candidates with these cross-entropies per image, (n,): one evaluator, in turn."""
    count = len(losses[0])
    images = np.zeros((count, 1, 8, 8), dtype=np.uint8)
    labels = np.zeros(count, dtype=np.int64)
    teacher = np.zeros((count, 4), dtype=np.float32)
    own = replace(images_of(spec), images=images, labels=labels, teacher=teacher)
    race = run_as(replace(spec, scoring=own, race="cross_entropy"), batch_size=64)
    evaluator, candidate = Evaluator(race), Candidate(0, (6, 8, 10))
    parts = iter(list[torch.Tensor]())

    def gives(*_: object) -> torch.Tensor | None:
        """What the last layer gives where it is scored, and not recalibrated."""
        return logits_of(next(parts)) if torch.is_inference_mode_enabled() else None

    list(evaluator.networks.recalibrated(candidate).modules())[-1].register_forward_hook(gives)
    scores = []
    for recorded in losses:
        parts = iter(recorded.split(64))
        scores.append(evaluator(candidate))
    return scores


def logits_of(losses: torch.Tensor) -> torch.Tensor:
    """Of four classes, (n, 4), with these cross-entropies, (n,), where all images are of the first one."""
    first = -losses[:, None]
    return torch.cat([first, torch.log1p(-first.exp()).sub(math.log(3)).expand(-1, 3)], 1)


def divergence_of(losses: torch.Tensor) -> torch.Tensor:
    """From a teacher that knows nothing, (n,): mean log(1 / 4) - log q."""
    return -math.log(4) - logits_of(losses.double()).mean(1)


def recorded_losses(seed: int) -> list[torch.Tensor]:
    """Thirty candidates on 640 images: some are hard for all, and tails are heavy, as those of cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.randn(640, generator=generator)
    quality = torch.rand(30, generator=generator)
    noise = torch.randn(30, 640, generator=generator)
    return list((hard + 0.7 * noise + quality[:, None] - 1).exp())


@pytest.mark.parametrize("seed", range(5))
def test_a_race_never_drops_the_winner_and_saves_images(spec: EvaluationSpec, seed: int) -> None:
    losses = recorded_losses(seed)
    scores = raced(spec, losses)
    means = [float(each.mean()) for each in losses]
    best = min(range(30), key=lambda number: means[number])
    assert scores[best].images == 640
    assert min(range(30), key=lambda number: scores[number].measures["cross_entropy"]) == best
    for score, mean in zip(scores, means, strict=True):
        if score.images == 640:
            assert score.measures["cross_entropy"] == pytest.approx(mean, rel=1e-4)
        else:
            assert score.against and score.images >= 100
    assert sum(score.images for score in scores) < 0.7 * 30 * 640


def test_a_loser_is_worse_than_the_one_it_lost_to(spec: EvaluationSpec) -> None:
    """Its own first images may be easy ones: what counts is how far behind it is on them."""
    leader = torch.cat([torch.full((128,), 0.5), torch.full((128,), 1.5)])
    loser = leader + torch.tensor([0.2, 0.4]).repeat(128)
    first, second = raced(spec, [leader, loser])
    assert (second.images, second.against) == (128, Candidate(0, (6, 8, 10)).key)
    assert first.measures["cross_entropy"] == pytest.approx(1.0)
    assert second.measures["cross_entropy"] == pytest.approx(1.3)
    behind = divergence_of(loser)[:128] - divergence_of(leader)[:128]
    assert second.measures["distillation"] == pytest.approx(float(divergence_of(leader).mean() + behind.mean()))
    assert not math.isnan(first.measures["calibrated"]) and "calibrated" not in second.measures


def test_a_first_candidate_without_a_loss_leads_no_race(
    spec: EvaluationSpec,
) -> None:
    leader = torch.cat([torch.full((128,), 0.5), torch.full((128,), 1.5)])
    loser = leader + torch.tensor([0.2, 0.4]).repeat(128)
    _, first, second = raced(spec, [leader * math.nan, leader, loser])
    assert (first.images, second.images) == (256, 128)


def test_without_a_race_every_image_is_run(spec: EvaluationSpec) -> None:
    evaluator = Evaluator(spec)
    assert all(evaluator(candidate).images == 48 for candidate in CANDIDATES)


def test_batches_that_are_made_anew_are_the_same(spec: EvaluationSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a worker holds images of a byte a pixel, where there are many."""
    expected = [Evaluator(spec)(candidate).measures for candidate in CANDIDATES]
    monkeypatch.setattr(runner, "KEPT_BYTES", 0)
    evaluator = Evaluator(spec)
    assert [evaluator(candidate).measures for candidate in CANDIDATES] == expected
    batches = scored_on(evaluator.networks)
    assert not isinstance(batches, list) and batches[0] is not batches[0]
    assert len(batches[1:]) == len(batches) - 1
