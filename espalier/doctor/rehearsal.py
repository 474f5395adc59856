"""What a config would take on this machine: a few steps are measured, and the rest is arithmetic."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from espalier.doctor.machine import usable_cores
from espalier.pruning.slimming.surgery import slim
from espalier.search.cluster.process_settings import computing
from espalier.search.config.loading import Config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.tensor_files import tensors_of
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import Prepared
from espalier.search.tasks.device import device_here
from espalier.search.tasks.task import Regularization, Stage, Task

STEPS = 4
"""Of each training that are measured; the first is left out, which also warms up."""
CANDIDATES = 3
"""That are scored, likewise."""


@dataclass(frozen=True)
class Training:
    """What a training takes.

    Attributes:
        steps: of the whole training.
        seconds: of one step.
        activations: bytes that the passes of one step keep for its gradients.
    """

    steps: int
    seconds: float
    activations: int

    @property
    def whole(self) -> float:
        """Seconds of the whole training."""
        return self.steps * self.seconds


@dataclass(frozen=True)
class Rehearsal:
    """What was measured.

    Attributes:
        weights: bytes of the dense network's tensors.
        gpu: bytes that were allocated on the GPU at most; 0 without one.
        trainings: by name of the stage; those that the config asks for.
        candidate: seconds in which one is scored.
        baselines: networks per strength that are fine-tuned where the strength is chosen.
        greedy: of these, those of greedy pruning.
        again: whether the best candidates are scored again, on examples that the search has not seen.
    """

    weights: int
    gpu: int
    trainings: dict[str, Training]
    candidate: float
    baselines: int
    greedy: int
    again: bool

    @property
    def activations(self) -> int:
        """Bytes, of the training that needs most."""
        return max((each.activations for each in self.trainings.values()), default=0)


@dataclass(frozen=True)
class Estimate:
    """How long a stage would take.

    Attributes:
        stage: its name.
        sum: how the number comes about.
        seconds: of the clock.
    """

    stage: str
    sum: str
    seconds: float


@computing()
def rehearse(config: Config, prepared: Prepared, reporter: Reporter) -> Rehearsal:
    """Takes a few steps of every training, and scores a candidate, in a folder that is removed again.

    Args:
        config: checked settings.
        prepared: what they describe.
        reporter: told what takes longer.
    """
    task, graph = prepared.task, prepared.graph
    untrained = {
        "training": config.training.model_copy(update={"epochs": 0.0}),
        "regularizer": config.regularizer.model_copy(update={"strengths": (0.0,)}),
    }
    with TemporaryDirectory(prefix="espalier-doctor-") as folder:
        experiment = Experiment(config.model_copy(update=untrained), prepared, Path(folder), Silent())
        experiment.train_ladder()
        experiment.settle_execution(unrecorded)
        space, spec = experiment.space(), experiment.spec
        greedy = space.greedy_candidates()
        evaluator, times = Evaluator(spec), []
        for _ in range(CANDIDATES):
            start = time.perf_counter()
            evaluator(greedy[0])
            times.append(time.perf_counter() - start)
    dense = experiment.dense.model
    pruned = slim(dense, graph, spec.keep(greedy[0]), verify=False)
    asked: list[tuple[Stage, nn.Module, Regularization | None]] = [
        (Stage("dense", config.training.epochs), dense, None),
        (Stage("finetune", config.finetune.epochs), pruned, None),
    ]
    if config.regularizer.trainings:
        penalised = experiment.recipes.penalty.on(graph, 1e-6)  # any strength takes as long
        asked.insert(1, (Stage("regularized", config.regularizer.epochs), dense, penalised))
    trainings: dict[str, Training] = {}
    for stage, network, penalty in asked:
        if task.steps(stage):
            teacher = dense if task.wants_teacher(stage) else None
            trainings[stage.name] = _measured(task, network, stage, penalty, teacher, reporter)
    return Rehearsal(
        weights=sum(tensor.nbytes for tensor in tensors_of(dense).values()),
        gpu=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        trainings=trainings,
        candidate=statistics.median(times[1:]),
        baselines=len({*greedy, *space.uniform_candidates()}),
        greedy=len(set(greedy)),
        again=task.has_unseen or bool(config.search.ladder),
    )


def _measured(
    task: Task,
    network: nn.Module,
    stage: Stage,
    penalty: Regularization | None,
    teacher: nn.Module | None,
    reporter: Reporter,
) -> Training:
    """Trains for a few steps; for an epoch, where the task does not tell how many steps that is."""
    per_epoch = task.steps(replace(stage, epochs=1.0))
    tells = task.steps(replace(stage, epochs=2.0)) > per_epoch
    epochs = min(stage.epochs, STEPS / per_epoch if tells else 1.0)
    if not tells:
        reporter.say(f"{stage.name}: an epoch of the task's own training is run, as only it knows how long that is")
    network = copy.deepcopy(network).to(device_here(task.home))
    start = time.perf_counter()
    with _Watch(network) as watch:
        task.train(network, replace(stage, epochs=epochs), seed=0, regularization=penalty, teacher=teacher)
    lasted, ends = time.perf_counter() - start, watch.ends
    if tells:
        steps = task.steps(stage)
    else:
        steps = round(stage.epochs / epochs * max(1, len(ends)))
    between = [after - before for before, after in itertools.pairwise(ends)]
    seconds = statistics.median(between) if between else lasted
    return Training(steps, seconds, watch.activations)


class _Watch:
    """When every step of an optimiser ends, and what passes keep for their gradients.

    Attributes:
        ends: seconds.
        activations: bytes kept for one step, the greatest.
    """

    def __init__(self, network: nn.Module) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(network).values()}
        self._kept: dict[int, int] = {}
        self.ends: list[float] = []
        self.activations = 0
        self._saved = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> Self:
        self._hook = register_optimizer_step_post_hook(self._end)
        self._saved.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._saved.__exit__(kind, error, trace)
        self._hook.remove()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.activations = max(self.activations, sum(self._kept.values()))
        self._kept.clear()


def estimates(config: Config, found: Rehearsal) -> Iterator[Estimate]:
    """How long each stage of a search would take: measured seconds times how often.

    Left out are evaluations between the stages, and the start of Ray; latency, where a budget limits it, is timed
    before all of it.
    """
    at_once, trainings = slots(config), found.trainings
    share = f" / {at_once} at a time" if at_once > 1 else ""

    def steps(training: Training) -> str:
        return f"{training.steps:,} steps x {training.seconds:.3g} s"

    if (dense := trainings.get("dense")) is not None:
        yield Estimate("dense network", steps(dense), dense.whole)
    ladder = config.regularizer
    if (rung := trainings.get("regularized")) is not None:
        count, aside = ladder.trainings, ladder.start == "dense" and ladder.strengths != "auto"
        seconds = math.ceil(count / (at_once if aside else 1)) * rung.whole
        yield Estimate("strengths", f"{count} x {steps(rung)}" + share * aside, seconds)
    tuning, section = trainings.get("finetune"), config.finetune
    budgets = max(1, len(config.budget.keeps))
    chosen = config.search.strength == "finetuned" and ladder.most_rungs > 1
    if tuning is not None and chosen:
        runs, left = halved(found.baselines * ladder.most_rungs, section.halvings)
        yield _finetunings("choice of strength", budgets * (runs + left), tuning, at_once)
    if tuning is not None and config.supernet.epochs:
        count = min(budgets, ladder.most_rungs) if chosen else ladder.most_rungs
        shared = replace(tuning, steps=round(tuning.steps * config.supernet.epochs / section.epochs))
        yield Estimate("shared weights", f"{count} x {steps(shared)}", count * shared.whole)
    again = math.ceil(config.search.promote * config.search.trials) if found.again else 0
    words = f" and up to {again} again" if again else ""
    yield Estimate(
        "search",
        f"{config.search.trials} candidates{words} x {found.candidate:.3g} s{share}",
        math.ceil((config.search.trials + again) / at_once) * found.candidate,
    )
    if tuning is not None:
        greedy, left = halved(found.greedy, section.halvings)
        finalists, best = halved(config.search.finalists, section.halvings)
        known = chosen or left > 1  # then greedy pruning is fine-tuned with the first seed already
        runs = finalists + (0 if chosen else greedy + (left if left > 1 else 0))
        runs += (best + 1) * section.selection_seeds - known + 2 * section.seeds
        yield _finetunings("fine-tuning", budgets * runs, tuning, at_once)


def _finetunings(stage: str, runs: float, tuning: Training, at_once: int) -> Estimate:
    share = f" / {at_once} at a time" if at_once > 1 else ""
    words = f"{runs:g} x {tuning.steps:,} steps x {tuning.seconds:.3g} s{share}"
    return Estimate(stage, words, math.ceil(runs / at_once) * tuning.whole)


def slots(config: Config) -> int:
    """Jobs that run at a time: one per worker, on this machine as many as there are cores for."""
    workers = max(1, config.workers)
    if config.cluster.address not in (None, "local"):
        return workers
    return max(1, min(workers, int(usable_cores() / config.cluster.cpus_per_worker)))


def halved(networks: int, halvings: int) -> tuple[float, int]:
    """Successive halving, as whole fine-tunings: what it takes, and how many networks are left.

    >>> halved(4, 1), halved(3, 0)
    ((2.0, 2), (0, 3))
    """
    taken: float = 0
    for halving in range(halvings, 0, -1):
        if networks < 2:
            break
        taken, networks = taken + networks / 2**halving, math.ceil(networks / 2)
    return taken, networks
