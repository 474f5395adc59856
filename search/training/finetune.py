"""Fine-tuning: every finalist and the greedy baseline, with the same recipe and the same seeds.

Fine-tuned networks stay in their files: a driver holds paths, and loads what it sends out when it sends it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from espalier.errors import EspalierError, raised
from espalier.pruning.slimming.quantised_layers import quantise
from espalier.pruning.slimming.removed import take_out
from espalier.pruning.slimming.surgery import assign, clone_structure
from espalier.search.cluster.jobs import Workers
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.evaluation.reconstruction import RECONSTRUCTED
from espalier.search.files.json_files import json_digest
from espalier.search.files.tensor_files import load_header, load_tensors, save_tensors, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import Reporter
from espalier.search.progress.tensorboard import losses_of
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.metric import Metric
from espalier.search.tasks.device import device_here
from espalier.search.tasks.runner import tensor_of
from espalier.search.tasks.task import Array, Part, Reading, Stage, Task
from espalier.search.training.ladder import VALUE


@dataclass(frozen=True)
class FinetuneSpec:
    """What every fine-tuning job needs.

    Attributes:
        evaluation: networks and calibration examples.
        task: trains them, and judges them on held-out examples that the search has not scored on.
        stage: of the fine-tuning.
        teacher: tensors of the dense network, where the task learns from it.
        reconstruct: whether layers are solved for what the whole network gives, before the training.
    """

    evaluation: EvaluationSpec
    task: Task
    stage: Stage
    teacher: Mapping[str, Array] | None = None
    reconstruct: bool = False

    @property
    def metric(self) -> Metric:
        """By which fine-tuned networks are judged."""
        return self.task.metric


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned candidate.

    Attributes:
        candidate: which.
        seed: of the fine-tuning.
        path: of the network's tensors.
        judged: by the task's metric on the judging examples.
        seconds: of the processor that the training took, the last part of it where it was interrupted.
    """

    candidate: Candidate
    seed: int
    path: Path
    judged: float
    seconds: float

    def tensors(self) -> dict[str, Tensor]:
        """The network's, by name, read anew."""
        return load_tensors(self.path)[0]


@dataclass(frozen=True)
class FineTuner:
    """Fine-tunes candidates with one recipe; what its folder holds already is not done again.

    Attributes:
        spec: task, stage and networks.
        folder: where fine-tuned networks are kept.
        rungs: digest of every rung, so that a candidate of another ladder is not taken for this one's.
        workers: where the jobs run.
        reporter: told the progress.
        title: what this stage is called.
    """

    spec: FinetuneSpec
    folder: Path
    rungs: Sequence[str]
    workers: Workers
    reporter: Reporter
    title: str = "fine-tuning"

    def titled(self, title: str) -> FineTuner:
        """The same under another title."""
        return replace(self, title=title)

    def for_share(self, share: float) -> FineTuner:
        """The same for a share of the epochs."""
        stage = self.spec.stage
        return replace(self, spec=replace(self.spec, stage=replace(stage, epochs=stage.epochs * share)))

    def finished(self, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[Finetuned]:
        """Fine-tunes each candidate with each seed, the same for all, so that differences can be paired.

        Returns:
            The runs, by candidate and seed; those that failed are left out.

        Raises:
            EspalierError: all of them failed.
        """
        found = self([(candidate, seed) for candidate in candidates for seed in seeds])
        finished = [run for run in found.values() if isinstance(run, Finetuned)]
        if found and not finished:
            raise EspalierError(
                f"all {len(found)} fine-tunings failed, the last one with {[*found.values()][-1]}; what is "
                "finished is kept, and the same command, or `espalier resume`, tries them again"
            )
        return finished

    def __call__(self, pairs: Sequence[tuple[Candidate, int]]) -> dict[tuple[Candidate, int], Finetuned | str]:
        """Fine-tunes candidates with seeds, each pair once.

        What a network or its device raises, such as want of memory, is that one's failure, and not the others'.

        Returns:
            The run of each pair, in their order, or why it failed.
        """
        inputs = _inputs(self.spec)
        found: dict[tuple[Candidate, int], Finetuned | str] = {}
        missing: list[_Job] = []
        for candidate, seed in pairs:
            path = _path(self.folder, inputs, candidate, seed, self.rungs)
            if path.is_file():
                header = load_header(path)
                found[candidate, seed] = Finetuned(candidate, seed, path, header[VALUE], header["seconds"])
            else:
                missing.append((candidate, seed, path.absolute()))
        if missing:
            self._train(missing, found)
        return {pair: found[pair] for pair in pairs}

    def _train(self, missing: Sequence[_Job], found: dict[tuple[Candidate, int], Finetuned | str]) -> None:
        """Fine-tunes what is missing, and adds it to what is found."""
        spec, metric = self.spec, self.spec.metric
        self.folder.mkdir(parents=True, exist_ok=True)
        title = self.title if spec.task.steps(spec.stage) else "judging"
        with self.reporter.meter(title, len(found) + len(missing), "runs", done=len(found)) as meter:
            for (candidate, seed, path), result in self.workers.map(_finetune, spec, missing):
                if isinstance(result, str):
                    self.reporter.say(f"fine-tuning of candidate {candidate.key} with seed {seed} failed: {result}")
                    found[candidate, seed] = result
                    continue
                own = {"candidate": candidate.key, "seed": seed, VALUE: result.judged, "seconds": result.seconds}
                save_tensors(path, result.tensors, own)
                _partial(path).unlink(missing_ok=True)
                found[candidate, seed] = Finetuned(candidate, seed, path, result.judged, result.seconds)
                judged = [run.judged for run in found.values() if isinstance(run, Finetuned)]
                best = max(judged, key=metric.order)
                values = {f"held-out {metric.title}": result.judged, "best": best}
                said = f"{metric.text(best)} {metric.unit}".rstrip()
                meter.update(len(found), f"best held-out {said}", values)


_Job = tuple[Candidate, int, Path]
"""A candidate, a seed, and the file that the driver keeps the fine-tuned network in."""


@dataclass(frozen=True)
class _Trained:
    """What a worker sends back; attributes as in `Finetuned`."""

    tensors: dict[str, Tensor]
    judged: float
    seconds: float


def _finetune(spec: FinetuneSpec, job: _Job) -> _Trained | str:
    candidate, seed, path = job
    checkpoint = _partial(path) if path.parent.is_dir() else None  # another machine may not see the run folder
    start = time.process_time()
    try:
        networks = CandidateNetworks(spec.evaluation.finetuned_from)
        network = networks.recalibrated(candidate)
        if spec.reconstruct:
            healed = PROXIES[RECONSTRUCTED].prepare(networks, candidate)
            assert isinstance(healed, nn.Module)
            network = healed
        del networks  # the networks of all rungs
        if spec.task.steps(spec.stage):
            teacher = None if spec.teacher is None else _teacher(spec.evaluation, spec.teacher)
            with losses_of(path) as on_step:
                spec.task.train(
                    network, spec.stage, seed=seed, teacher=teacher, on_step=on_step, checkpoint=checkpoint
                )
        seconds = time.process_time() - start
        tensors = {name: tensor.cpu().clone() for name, tensor in tensors_of(network).items()}
        return _Trained(tensors, spec.task.evaluate(network, "judging").value, seconds)
    except (EspalierError, OSError):  # of images, the storage or the disk: all would fail alike
        raise
    except Exception as error:
        return raised(error)


def _teacher(spec: EvaluationSpec, state: Mapping[str, Array]) -> nn.Module:
    """The dense network, on the device that this worker computes on."""
    return network_of(spec, {name: tensor_of(array).clone() for name, array in state.items()}).to(
        device_here(spec.home)
    )


def network_of(spec: EvaluationSpec, tensors: dict[str, Tensor], candidate: Candidate | None = None) -> nn.Module:
    """A candidate's network from its tensors, in eval mode; the dense network for no candidate."""
    network = clone_structure(spec.skeleton)
    if candidate is None:
        assign(network, tensors, {})
    else:
        keep = spec.keep(candidate)
        take_out(network, spec.graph.branches_without(keep))
        quantise(network, spec.graph.bits_of(candidate.widths))
        assign(network, tensors, spec.graph.integers_of(keep))
    return network.eval()


@dataclass(frozen=True)
class ReadingSpec:
    """The task with one part of its examples, and how networks look."""

    evaluation: EvaluationSpec
    task: Task
    part: Part


Tested = tuple[Candidate | None, int | None, dict[str, Tensor]]
"""A network to be read: its candidate, None for dense; its seed, None before fine-tuning; its tensors."""


def to_read(spec: EvaluationSpec, cut: Sequence[Candidate], runs: Sequence[Finetuned]) -> Iterator[Tested]:
    """Networks to be read, made one by one as they are asked for.

    Args:
        spec: networks and calibration examples.
        cut: candidates to read before fine-tuning.
        runs: fine-tuned networks.
    """
    networks = CandidateNetworks(spec.finetuned_from)
    for candidate in cut:
        before = tensors_of(networks.recalibrated(candidate))
        yield candidate, None, {name: tensor.cpu().clone() for name, tensor in before.items()}
    for run in runs:
        yield run.candidate, run.seed, run.tensors()


def read(spec: ReadingSpec, job: Tested) -> Reading:
    """What a network is worth on the spec's part; a job for `Workers`."""
    candidate, _, tensors = job
    network = network_of(spec.evaluation, tensors, candidate).to(device_here(spec.evaluation.home))
    return spec.task.evaluate(network, spec.part)


def _inputs(spec: FinetuneSpec) -> str:
    """Names what every fine-tuning depends on beside its candidate and seed: the recipe and the examples."""
    state, evaluation = hashlib.sha256(), spec.evaluation
    for part in spec.task.finetuning_key(spec.stage, evaluation.scoring, evaluation.execution):
        state.update(part)
    if evaluation.graph.precisions:
        state.update(repr(evaluation.graph.precisions).encode())
    for ranks in (*evaluation.ranks, *(spec.teacher or {}).values()):
        state.update(ranks.tobytes())
    if spec.reconstruct:
        state.update(RECONSTRUCTED.encode())
    state.update(evaluation.shared.encode())
    return state.hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(path.stem + PARTIAL)


def _path(folder: Path, inputs: str, candidate: Candidate, seed: int, rungs: Sequence[str]) -> Path:
    key = json_digest([inputs, candidate.key, rungs[candidate.rung], seed])
    return folder / f"{key}-seed{seed}.safetensors"
