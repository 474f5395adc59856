"""The ladder of regularisation strengths: one network per strength.

Each is trained on from the one below it, or all from the dense network, side by side. A search then chooses the
strength like any other variable, and trains nothing. Rungs are kept in the run folder under a key of everything
they depend on, so none is trained twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from espalier.errors import ArtefactError, ConfigError, EspalierError, raised
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.regularizer import Regularizer, Weighting, check_step
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.pruning.slimming.surgery import assign
from espalier.search.cluster.jobs import InProcess, Workers
from espalier.search.files.json_files import json_digest
from espalier.search.files.tensor_files import digest, load_tensors, save_tensors, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.tasks.code_digests import code_of
from espalier.search.tasks.device import device_here
from espalier.search.tasks.module_path import imported
from espalier.search.tasks.task import Regularization, Stage, Task
from espalier.search.tasks.user_functions import not_finite
from espalier.search.training.strengths import Rung, first_strength, rungs_by_cost

VALUE = "top1"
"""Of a file's header: what the network is worth by the task's metric, whatever that is."""


def train_dense(
    model: nn.Module, task: Task, epochs: float, seed: int, folder: Path, origin: str, reporter: Reporter
) -> Rung:
    """The network that the ladder starts from, trained without regularisation.

    Args:
        model: untrained, or with weights loaded; `epochs` may then be 0. Left as it is.
        task: trains and evaluates it.
        epochs: of the training.
        seed: of the training.
        folder: where the checkpoint is kept.
        origin: names where the model's present weights come from.
        reporter: told the progress.
    """
    folder.mkdir(parents=True, exist_ok=True)  # where it cannot be made, nothing is trained
    stage = Stage("dense", epochs)
    inputs = {"origin": origin, "data": task.digest(), "recipe": task.recipe(stage), "seed": seed}
    step = _Step(0.0, seed, folder / f"dense-{json_digest(inputs)}")
    return _rung(model, task, stage, step, None, "dense training", reporter)


@dataclass(frozen=True)
class Penalty:
    """A regulariser, and how it is applied.

    Attributes:
        name: of the regulariser.
        weighting: weights of the channels' norms.
        with_norms: whether scale and shift of norms belong to a channel.
        proximal: proximal steps in place of subgradients.
        ramp: share of a rung's steps over which the strength rises.
        kwargs: what the regulariser takes beside these.
    """

    name: str
    weighting: Weighting = "none"
    with_norms: bool = False
    proximal: bool = False
    ramp: float = 0.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object, with the digest of a class of the user's own.

        Arguments are left out where there are none, as 0.1 knew of none.
        """
        code = {"code": code_of(self.name, "regularizer.name")} if ":" in self.name else {}
        return {key: value for key, value in asdict(self).items() if key != "kwargs" or value} | code

    def on(self, graph: ChannelGraph, strength: float) -> Regularization:
        """The penalty on a graph's groups.

        Raises:
            ConfigError: an argument is out of its range.
        """
        kind = regularizer_named(self.name)
        check_step(kind, self.proximal)
        try:
            regularizer = kind(graph, self.weighting, self.with_norms, **self.kwargs)
        except TypeError as error:
            raise ConfigError(f"regularizer.kwargs do not fit {self.name}: {error}") from error
        return Regularization(regularizer, strength, self.proximal, self.ramp)


def regularizer_named(name: str) -> type[Regularizer]:
    """The class of `REGULARIZERS`, or of the user's own, ``package.module:Class``.

    Raises:
        ConfigError: there is none, or it is no regulariser.
    """
    if ":" not in name:
        return REGULARIZERS[name]
    kind = imported(name, "regularizer.name")
    if not isinstance(kind, type) or not issubclass(kind, Regularizer):
        raise ConfigError(f"regularizer.name must be a subclass of Regularizer, and {name} is none")
    return kind


Start = Literal["below", "dense"]
"""Where a rung starts from: the one below it, or the dense network, so that none waits for another."""


def climb(
    dense: Rung,
    graph: ChannelGraph,
    task: Task,
    epochs: float,
    penalty: Penalty,
    strengths: Sequence[float] | None,
    seed: int,
    folder: Path,
    reporter: Reporter,
    *,
    costs: Sequence[float] = (),
    start: Start = "below",
    workers: Workers | None = None,
    check: Callable[[str], None] = lambda digest: None,
) -> list[Rung]:
    """Trains the rungs that the folder lacks.

    Args:
        dense: where the first one starts, and the rung of strength 0 itself.
        graph: the groups to regularise.
        task: trains and evaluates them.
        epochs: of each rung.
        penalty: the regulariser.
        strengths: rising; None finds them, one after another.
        seed: of the training.
        folder: where the checkpoints are kept.
        reporter: told the progress: of every step where rungs start from the one below, else of every rung.
        costs: by which strengths are found, as for `rungs_by_cost`.
        start: where the others start.
        workers: where rungs that do not wait for each other are trained; by default here, one after another.
        check: told the digest of every rung; may refuse it.
    """
    stage = Stage("regularized", epochs)
    training = _Training(dense.model, task, stage, penalty.on(graph, 0.0), penalty.name)
    inputs = {"data": task.digest(), "recipe": task.recipe(stage), "seed": seed}
    inputs |= {"regularizer": penalty.to_json(), "graph": graph.digest}

    def step(number: int, strength: float, below: Rung) -> _Step:
        own = inputs | {"below": below.digest, "strength": strength}
        return _Step(strength, seed + number, folder / f"rung{number}-{json_digest(own)}")

    def trained(number: int, strength: float, below: Rung) -> Rung:
        first = dense if start == "dense" else below
        return training.rung(step(number, strength, first), first.model, reporter)

    if strengths is None:
        lr = float(task.recipe(stage).get("lr", 0.01))
        strength = first_strength(dense.model, training.regularization.regularizer, task.steps(stage), lr)
        found = rungs_by_cost(dense, trained, task.metric, costs, strength)
        told = ["0", *(f"{rung.strength:.3g} ({100 * cost:+.1f} %)" for rung, cost in found[1:])]
        reporter.say(f"strengths, with what each costs beside training without a penalty: {', '.join(told)}")
        for rung, _ in found[1:]:
            check(rung.digest)
        return [rung for rung, _ in found]
    if start == "dense":
        steps = [step(number, strength, dense) for number, strength in enumerate(strengths) if strength > 0]
        _side_by_side(training, steps, workers or InProcess(), reporter)
    rungs = []
    below = dense
    for number, strength in enumerate(strengths):
        if strength > 0:
            below = trained(number, strength, below)
            check(below.digest)
        rungs.append(below)
    return rungs


@dataclass(frozen=True)
class _Step:
    """A rung to be: its strength, the seed of its training, and its file without the ending."""

    strength: float
    seed: int
    stem: Path


@dataclass(frozen=True)
class _Training:
    """What all rungs have in common, and `dense`, where the first one starts."""

    dense: nn.Module
    task: Task
    stage: Stage
    regularization: Regularization
    name: str

    def rung(self, step: _Step, start: nn.Module, reporter: Reporter) -> Rung:
        regularization = replace(self.regularization, strength=step.strength)
        title = f"{self.name}, strength {step.strength:g}"
        return _rung(start, self.task, self.stage, step, regularization, title, reporter)


def _side_by_side(training: _Training, steps: Sequence[_Step], workers: Workers, reporter: Reporter) -> None:
    """Sees to it that the rungs have their files."""
    missing = [replace(step, stem=step.stem.absolute()) for step in steps if not _file(step.stem).is_file()]
    if not missing:
        return
    missing[0].stem.parent.mkdir(parents=True, exist_ok=True)
    dense = copy.deepcopy(training.dense).cpu()
    shared = replace(training, dense=dense, task=training.task.only("held_out", training=True))
    with reporter.meter("ladder", len(steps), "rungs", done=len(steps) - len(missing)) as meter:
        for done, (step, rung) in enumerate(workers.map(_aside, shared, missing), len(steps) - len(missing) + 1):
            if not _file(step.stem).is_file():  # the worker does not see the run folder
                _write(rung, step.stem)
            metric = training.task.metric
            note = f"strength {step.strength:g}: {metric.words(rung.value)}"
            meter.update(done, note, {f"held-out {metric.title}": rung.value})


def _aside(training: _Training, step: _Step) -> Rung:
    """One rung away from the others; another driver may have it finished by now."""
    dense = training.dense.to(device_here(training.task.home))
    if step.stem.parent.is_dir():
        rung = training.rung(step, dense, Silent())
    else:
        with TemporaryDirectory() as folder:
            rung = training.rung(replace(step, stem=Path(folder) / step.stem.name), dense, Silent())
    return replace(rung, model=rung.model.cpu())


def _rung(
    start: nn.Module,
    task: Task,
    stage: Stage,
    step: _Step,
    regularization: Regularization | None,
    title: str,
    reporter: Reporter,
) -> Rung:
    model = copy.deepcopy(start).to(device_here(task.home))
    file, metric = _file(step.stem), task.metric
    if file.is_file():
        try:
            tensors, header = load_tensors(file)
        except ArtefactError as error:
            raise ArtefactError(f"{error}: remove it, and it is trained again") from error
        assign(model, tensors, {})
        return Rung(step.strength, model.to(device_here(task.home)).eval(), header["digest"], header[VALUE])
    checkpoint = step.stem.with_name(step.stem.name + PARTIAL)
    steps = task.steps(stage)
    title = title if steps else "dense network"
    try:
        if steps:
            with reporter.meter(title, steps, task.counts) as meter:
                task.train(
                    model,
                    stage,
                    seed=step.seed,
                    regularization=regularization,
                    on_step=lambda done, loss: meter.update(done, f"loss {loss:.3f}", {"loss": loss}),
                    checkpoint=checkpoint,
                )
                value = task.evaluate(model, "held_out").value
                meter.update(steps, metric.words(value), {f"held-out {metric.title}": value})
        else:
            value = task.evaluate(model.eval(), "held_out").value
    except (EspalierError, OSError):
        raise
    except Exception as error:  # whatever a user's network, training or score raises
        raise EspalierError(f"{title} failed: {raised(error)}") from error
    if diverged := set(not_finite(model)) - set(not_finite(start)):
        lower = "learning rate" if regularization is None else "learning rate or strength"
        raise EspalierError(
            f"{title} diverged: numbers in {min(diverged)} are not finite at its end; a lower {lower} may mend it"
        )
    rung = Rung(step.strength, model, digest(tensors_of(model.eval())), value)
    _write(rung, step.stem)
    checkpoint.unlink(missing_ok=True)
    held_out = task.size("held_out")
    reporter.say(
        f"{title}: {metric.words(value)} on " + (f"{held_out} held-out images" if held_out else "held-out data")
    )
    return rung


def _file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".safetensors")


def _write(rung: Rung, stem: Path) -> None:
    header = {"digest": rung.digest, VALUE: rung.value, "strength": rung.strength}
    save_tensors(_file(stem), tensors_of(rung.model), header)
