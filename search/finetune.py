"""Fine-tuning: every finalist and the greedy baseline, with the same recipe and the same seeds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from espalier.pruning.surgery import assign, clone_structure
from espalier.search.bench import Bench, EvaluationSpec
from espalier.search.candidate import Candidate
from espalier.search.checkpoint import load_tensors, save_tensors, tensors_of
from espalier.search.data.images import ImageSet
from espalier.search.partial import PARTIAL
from espalier.search.progress import Reporter
from espalier.search.tensorboard import losses_of
from espalier.search.training import Recipe, right, top1, train
from espalier.search.workers import Workers, device_here


@dataclass(frozen=True)
class FinetuneSpec:
    """What every fine-tuning job needs.

    Attributes:
        evaluation: networks and calibration images.
        train: images to train on.
        judge: held-out images that the search has not scored on.
        recipe: of the fine-tuning.
    """

    evaluation: EvaluationSpec
    train: ImageSet
    judge: ImageSet
    recipe: Recipe


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned candidate.

    Attributes:
        candidate: which.
        seed: of the fine-tuning.
        tensors: the network's, by name.
        top1: percent right on the judging images.
        seconds: of the processor that the training took, the last part of it where it was interrupted.
    """

    candidate: Candidate
    seed: int
    tensors: dict[str, Tensor]
    top1: float
    seconds: float


def finetune_all(
    spec: FinetuneSpec,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    folder: Path,
    rungs: Sequence[str],
    workers: Workers,
    reporter: Reporter,
) -> list[Finetuned]:
    """Fine-tunes each candidate with each seed, the same for all, so that differences can be paired."""
    pairs = [(candidate, seed) for candidate in candidates for seed in seeds]
    return finetune_pairs(spec, pairs, folder, rungs, workers, reporter)


def finetune_pairs(
    spec: FinetuneSpec,
    pairs: Sequence[tuple[Candidate, int]],
    folder: Path,
    rungs: Sequence[str],
    workers: Workers,
    reporter: Reporter,
) -> list[Finetuned]:
    """Fine-tunes candidates; what the folder holds already is not done again.

    Args:
        spec: images and recipe.
        pairs: candidates and seeds, each pair once.
        folder: where fine-tuned networks are kept.
        rungs: digest of every rung, so that a candidate of another ladder is not taken for this one's.
        workers: where the jobs run.
        reporter: told the progress.
    """
    inputs = _inputs(spec)
    finished: list[Finetuned] = []
    missing: list[_Job] = []
    for candidate, seed in pairs:
        path = _path(folder, inputs, candidate, seed, rungs)
        if path.is_file():
            tensors, header = load_tensors(path)
            finished.append(Finetuned(candidate, seed, tensors, header["top1"], header["seconds"]))
        else:
            missing.append((candidate, seed, path.absolute()))
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with reporter.meter("fine-tuning", len(pairs), "runs", done=len(finished)) as meter:
            for (candidate, seed, path), result in workers.map(_finetune, spec, missing):
                header = {"top1": result.top1, "seconds": result.seconds, "candidate": candidate.key, "seed": seed}
                save_tensors(path, result.tensors, header)
                _partial(path).unlink(missing_ok=True)
                finished.append(result)
                best = max(finished, key=lambda run: run.top1)
                note = f"best held-out {best.top1:.2f} %"
                meter.update(len(finished), note, {"held-out top-1": result.top1, "best": best.top1})
    order = {pair: number for number, pair in enumerate(pairs)}
    return sorted(finished, key=lambda run: order[run.candidate, run.seed])


_Job = tuple[Candidate, int, Path]
"""A candidate, a seed, and the file that the driver keeps the fine-tuned network in."""


def _finetune(spec: FinetuneSpec, job: _Job) -> Finetuned:
    candidate, seed, path = job
    network = Bench(spec.evaluation, device_here()).recalibrated(candidate)
    mean, std = spec.evaluation.mean, spec.evaluation.std
    checkpoint = _partial(path) if path.parent.is_dir() else None  # another machine may not see the run folder
    start = time.process_time()
    with losses_of(path) as on_step:
        train(network, spec.train, mean, std, spec.recipe, seed=seed, on_step=on_step, checkpoint=checkpoint)
    seconds = time.process_time() - start
    tensors = {name: tensor.cpu().clone() for name, tensor in tensors_of(network).items()}
    return Finetuned(candidate, seed, tensors, top1(network, spec.judge, mean, std), seconds)


def network_of(spec: EvaluationSpec, tensors: dict[str, Tensor], candidate: Candidate | None = None) -> nn.Module:
    """A candidate's network from its tensors, in eval mode; the dense network for no candidate."""
    network = clone_structure(spec.skeleton)
    integers = {} if candidate is None else spec.graph.integers_of(spec.keep(candidate))
    assign(network, tensors, integers)
    return network.eval()


@dataclass(frozen=True)
class TestSpec:
    """The test images, and how networks look."""

    __test__ = False  # not a test of pytest's

    evaluation: EvaluationSpec
    images: ImageSet


def read_test(spec: TestSpec, tensors: dict[str, Tensor], candidate: Candidate | None = None) -> float:
    """Percent of the test images that a candidate's network classifies right; the dense one for no candidate."""
    network = network_of(spec.evaluation, tensors, candidate)
    return top1(network, spec.images, spec.evaluation.mean, spec.evaluation.std)


def right_on_test(spec: TestSpec, tensors: dict[str, Tensor], candidate: Candidate | None = None) -> Tensor:
    """Which test images the same network classifies right: bool (n,)."""
    network = network_of(spec.evaluation, tensors, candidate)
    return right(network, spec.images, spec.evaluation.mean, spec.evaluation.std)


Tested = tuple[Candidate | None, int | None, dict[str, Tensor]]
"""A network for the test split: its candidate, None for dense; its seed, None before fine-tuning; its tensors."""


def read(spec: TestSpec, job: Tested) -> Tensor:
    """Which test images a network classifies right; a job for `Workers`."""
    candidate, _, tensors = job
    return right_on_test(spec, tensors, candidate)


def percent(right: Tensor) -> float:
    """How many of them are."""
    return 100 * int(right.sum()) / len(right)


def _inputs(spec: FinetuneSpec) -> str:
    """Names what every fine-tuning depends on beside its candidate and seed: the recipe and the images."""
    evaluation = spec.evaluation
    settings = [asdict(spec.recipe), evaluation.mean, evaluation.std, evaluation.batch_size, evaluation.precision]
    state = hashlib.sha256(json.dumps(settings).encode())
    for array in (evaluation.calibration, spec.train.labels.numpy(), spec.judge.labels.numpy(), *evaluation.ranks):
        state.update(array.tobytes())
    return state.hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(path.stem + PARTIAL)


def _path(folder: Path, inputs: str, candidate: Candidate, seed: int, rungs: Sequence[str]) -> Path:
    key = hashlib.sha256(json.dumps([inputs, candidate.key, rungs[candidate.rung], seed]).encode()).hexdigest()
    return folder / f"{key[:12]}-seed{seed}.safetensors"
