"""What a config asks for, ready to score candidates: the ladder, energies, how candidates are run, the spaces.

A search, a comparison, a study of proxies, a rescoring and the training of an agent all begin with an `Experiment`,
so that the same candidate has the same score in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espalier.errors import ConfigError, StudyMismatch
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.slimming.int8_convolutions import has_int8
from espalier.search.cluster.jobs import InProcess, Workers
from espalier.search.config.loading import Config
from espalier.search.config.recipes import Recipes
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec, numpy_state
from espalier.search.evaluation.importance import channel_scores, check_offered, criterion_of
from espalier.search.evaluation.proxies import PROXIES, STEPS
from espalier.search.files.tensor_files import digest
from espalier.search.progress.reporter import Reporter
from espalier.search.run.prepare import Prepared
from espalier.search.run.strength import finetuned_baselines, ranked_rungs, words
from espalier.search.spaces.named_spaces import SPACES
from espalier.search.spaces.space import Space
from espalier.search.statistics.seeds import selection_seeds
from espalier.search.study.keys import EXECUTION, SHARED, STRENGTH
from espalier.search.study.run_folder import LADDER
from espalier.search.tasks.device import device_here
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.precision import has_bf16
from espalier.search.tasks.task import NEEDS, Array, Part, Stage, Task, missing
from espalier.search.training.finetune import FineTuner, FinetuneSpec
from espalier.search.training.ladder import climb, train_dense
from espalier.search.training.strengths import Rung
from espalier.search.training.supernet import Widths, train_shared

Once = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""Name, and how to make it -> what is on record by that name, made where there is none."""


def unrecorded(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A `Once` without a record: made anew."""
    return make()


class Experiment:
    """The parts of a search, made in this order: `train_ladder`, `settle_execution`, `choose_spaces`.

    With spaces come the weights that all widths share, where the config asks for them.

    Args:
        config: checked settings.
        prepared: network, graph and task.
        out: the run folder.
        reporter: told the progress.
        workers: where jobs run; by default in this process.
        proxies: that candidates are judged by, the first by default; unless given, those of the config.

    Attributes:
        dense: the dense network, from `train_ladder`.
        rungs: the ladder, likewise.
        execution: how candidates are run, from `settle_execution`.
    """

    dense: Rung
    rungs: Sequence[Rung]
    execution: Execution

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        out: Path,
        reporter: Reporter,
        workers: Workers | None = None,
        *,
        proxies: Sequence[str] = (),
    ) -> None:
        self.config, self.prepared, self.out, self.reporter = config, prepared, out, reporter
        self.workers: Workers = workers or InProcess()
        self.proxies = tuple(proxies) or (config.search.proxy, *config.search.ladder)
        self.recipes, self.task = Recipes.of(config), prepared.task
        self.measure = prepared.measure
        self._shared: dict[int, dict[str, Tensor]] = {}
        self.criterion = prepared.criterion or criterion_of(config.search.criterion)
        check_offered("search.criterion", self.criterion, self.task)
        self.recipes.penalty.on(prepared.graph, 0.0)  # arguments out of their range are told of now
        self._check_proxies()
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
        self._on_gpus = config.cluster.gpus_per_worker > 0
        if slow := self._emulated():
            reporter.say(f"{' and '.join(slow)}: this processor is not built for bf16, and slow in it; try auto")
        if config.search.precision == "int8" and (self._on_gpus or not has_int8()):
            reporter.say("search.precision: int8 is for x86 processors; candidates run in fp32")

    # -- the steps

    def train_ladder(self, check: Callable[[str], None] = lambda digest: None) -> None:
        """Trains the dense network and the rungs, those that the run folder lacks.

        Args:
            check: told the digest of every network as it is there; may refuse it.
        """
        config, prepared, folder = self.config, self.prepared, self.out / LADDER
        if not folder.is_dir():  # a cluster that cannot be joined is told of before anything is trained
            self.workers.ready()
        self.dense = train_dense(
            prepared.model,
            self.task,
            config.training.epochs,
            config.seed,
            folder,
            prepared.origin,
            self.reporter,
        )
        check(self.dense.digest)
        self.rungs = climb(
            self.dense,
            prepared.graph,
            self.task,
            config.regularizer.epochs,
            self.recipes.penalty,
            None if config.regularizer.strengths == "auto" else config.regularizer.strengths,
            config.seed,
            folder,
            self.reporter,
            costs=config.regularizer.costs,
            start=config.regularizer.start,
            workers=self.workers,
            check=check,
        )

    def settle_execution(self, once: Once) -> None:
        """Settles how candidates are run: as on record, or else as the config asks and the rule says.

        Args:
            once: of the record, whose scores must be comparable.
        """
        self.execution = Execution.from_json(once(EXECUTION, lambda: self.asked_execution().to_json()))
        if said := self.words_of_execution:
            self.reporter.say(said)

    def choose_spaces(self, budgets: Iterable[Budget], once: Once) -> dict[Budget, Space]:
        """What is open under each budget: the rung that serves it, or all where the config searches strengths.

        Args:
            budgets: of the config's.
            once: of the record, so that a study goes on with what was chosen for it.
        """
        found = {budget: self.space(budget) for budget in budgets}
        if self.config.search.strength != "searched" and len(self.rungs) > 1:
            for budget, space in found.items():
                ranked = ranked_rungs(
                    once(STRENGTH + budget.key, partial(self._finetuned_baselines, space)), self.task.metric
                )
                self.reporter.say(words(budget, ranked, self.rungs, self.task.metric))
                found[budget] = self.space(budget, [next(iter(ranked))])
        if self.config.supernet.epochs:
            self._share_weights(list(found.values()), once)
        return found

    def _share_weights(self, spaces: Sequence[Space], once: Once) -> None:
        """Trains the weights that all widths share, on every rung that is open.

        Raises:
            StudyMismatch: they are not those on record.
        """
        section, seed = self.config.supernet, self.config.seed
        task, stage = self.task, Stage("finetune", section.epochs)
        teacher = self.dense.model if task.wants_teacher(stage) else None
        for rung in sorted({rung for space in spaces for rung in space.rungs}):
            widths = Widths([space for space in spaces if rung in space.rungs], rung, self.energies[rung])
            name, self._shared[rung] = train_shared(
                self.rungs[rung],
                widths,
                task,
                section.epochs,
                seed,
                self.out / LADDER,
                self.reporter,
                generator=section.generator,
                teacher=teacher,
            )
            found: dict[str, Any] = {"digest": digest(self._shared[rung])}
            if once(SHARED + name, found.copy) != found:
                raise StudyMismatch(
                    f"{name} are not the shared weights on record: training repeats bit for bit only on the same "
                    f"machine and versions, so bring the {LADDER}/ folder of the first run"
                )
        for name in ("spec", "unseen", "tuning"):  # made before, to choose the strength
            self.__dict__.pop(name, None)
        greedy, own = spaces[-1].greedy_candidates()[0], [numpy_state(rung.model) for rung in self.rungs]
        specs = [self.spec.of_networks(states, self.spec.ranks) for states in (self._with_shared(own), own)]
        worth = [task.evaluate(CandidateNetworks(each).recalibrated(greedy), "held_out").value for each in specs]
        said, before = map(task.metric.words, worth)
        self.reporter.say(f"greedy pruning, as cut: {said} on held-out data from shared weights, {before} without")

    def _with_shared(self, own: Sequence[Mapping[str, Array]]) -> tuple[Mapping[str, Array], ...]:
        """The tensors of every rung, shared ones in their place where there are any."""
        shared = {rung: {name: t.numpy() for name, t in tensors.items()} for rung, tensors in self._shared.items()}
        return tuple(shared.get(rung, state) for rung, state in enumerate(own))

    # -- what follows from them

    @property
    def digests(self) -> list[str]:
        """Of the rungs."""
        return [rung.digest for rung in self.rungs]

    @cached_property
    def energies(self) -> list[Floats]:
        """What channels are worth on every rung, (n_channels,): their energies, or another criterion's scores."""
        prepared, seed = self.prepared, self.config.seed
        return [channel_scores(self.criterion, rung.model, prepared.graph, self.task, seed) for rung in self.rungs]

    @cached_property
    def spec(self) -> EvaluationSpec:
        """What a worker needs to judge candidates on the examples that the search scores on."""
        return self._evaluation("scoring")

    @cached_property
    def unseen(self) -> EvaluationSpec:
        """The same on examples that the search does not score on, to judge its best candidates again."""
        return self._evaluation("promotion").scored_only

    @cached_property
    def tuning(self) -> FinetuneSpec:
        """What a worker needs to fine-tune, and to judge on held-out examples that the search has not seen."""
        return self.tuning_of(self.spec)

    def tuning_of(self, spec: EvaluationSpec) -> FinetuneSpec:
        """The same for networks of another spec."""
        task = self.task.only("judging", training=True)
        stage = Stage("finetune", self.config.finetune.epochs)
        teacher = numpy_state(self.dense.model) if task.wants_teacher(stage) else None
        reconstruct = self.config.finetune.reconstruct
        if reconstruct and "batches" not in task.offers:
            raise ConfigError(f"finetune.reconstruct needs {NEEDS['batches']}, which this task does not offer")
        return FinetuneSpec(spec, task, stage, teacher, reconstruct)

    @property
    def finetuner(self) -> FineTuner:
        """Fine-tunes candidates of the ladder, into the run folder."""
        return FineTuner(self.tuning, self.out / "finetuned", self.digests, self.workers, self.reporter)

    def space(
        self,
        budget: Budget | None = None,
        rungs: Sequence[int] | None = None,
        graph: ChannelGraph | None = None,
    ) -> Space:
        """What is searched.

        Args:
            budget: the one it is under; by default the tightest, or all of them where a front is searched.
            rungs: which rungs candidates may be cut from; all by default.
            graph: by default the network's own; the same with other costs.
        """
        section = self.config.search
        return SPACES[section.space](
            graph or self.prepared.graph,
            self.energies,
            normalization=section.normalization,
            budget=budget or self.prepared.budget,
            floor=self.prepared.floor,
            round_to=self.prepared.round_to,
            width=section.range,
            front=self.prepared.budgets if self.config.budget.front and budget is None else (),
            rungs=rungs,
        )

    @property
    def words_of_execution(self) -> str:
        """How candidates are run; nothing where the task does so as it likes."""
        example = self.task.example_inputs
        of_images = isinstance(example, torch.Tensor) and example.ndim == 4
        return self.execution.words(of_images=of_images) if self.task.runs_batches else ""

    @property
    def promoting(self) -> Sequence[str]:
        """Proxies by which the best of a search are judged again on the unseen examples, if there are any."""
        section = self.config.search
        return section.ladder or ((section.proxy,) if self.task.has_unseen else ())

    def asked_execution(self) -> Execution:
        """How candidates are run: as the config says, and by the rule, on a worker's device, for the rest."""
        section = self.config.search
        settings = {name: getattr(section, name) for name in ("batch_size", "memory_format", "precision")}
        shared = self.task.only(), settings
        return next(found for _, found in self.workers.map(_execution_here, shared, [None]))

    def _evaluation(self, part: Part) -> EvaluationSpec:
        section, prepared = self.config.search, self.prepared
        steps = max(STEPS.get(name, 0) for name in self.proxies)
        scoring = self.task.scoring(part, self.dense.model, calibration=section.calibration_images, steps=steps)
        made = EvaluationSpec.of(
            prepared.graph,
            [rung.model for rung in self.rungs],
            self.energies,
            scoring,
            self.execution,
            proxy=self.proxies[0],
            race=section.measure if section.race else None,
            home=self.task.home,
        )
        if not self._shared:
            return made
        own, used = made.states, self.config.supernet.used_for
        shared = self._with_shared(own)
        scored, begun = (own if used == other else shared for other in ("finetuning", "scores"))
        key = "" if used == "scores" else " ".join(map(digest, self._shared.values()))
        return replace(made, states=scored, starts=begun, shared=key)

    def _check_proxies(self) -> None:
        """Refuses proxies that need more than the task offers."""
        for name in self.proxies:
            if lacking := missing(self.task.offers, PROXIES[name].needs):
                able = [other for other, proxy in PROXIES.items() if not missing(self.task.offers, proxy.needs)]
                raise ConfigError(
                    f"the proxy {name} needs {lacking}, which this task does not offer: choose one of "
                    f"{', '.join(able)}"
                )

    def _finetuned_baselines(self, space: Space) -> dict[str, float]:
        (seed,), halvings = selection_seeds(self.config.seed), self.config.finetune.halvings
        return finetuned_baselines(self.finetuner, space, halvings, seed)

    def _emulated(self) -> list[str]:
        """The settings that ask for a precision which the processor can only emulate."""
        config = self.config
        if self._on_gpus or has_bf16(torch.device("cpu")):
            return []
        asked = {
            "training.precision": config.training.precision,
            "finetune.precision": config.finetune.precision,
            "search.precision": config.search.precision,
        }
        return [key for key, precision in asked.items() if precision == "bf16"]


def _execution_here(shared: tuple[Task, Mapping[str, Any]], _: None) -> Execution:
    task, settings = shared
    return task.execution(settings, torch.device(device_here(task.home)))
