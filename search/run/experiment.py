"""What a search works with, put together from a config: the ladder, the space, what workers need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espalier.pruning.budget import Budget
from espalier.pruning.costs import Floats
from espalier.pruning.int8 import has_int8
from espalier.search.cluster.jobs import Workers
from espalier.search.config.loading import Config
from espalier.search.config.recipes import Recipes
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.execution import AUTO, RULE, Execution
from espalier.search.evaluation.importance import channel_scores
from espalier.search.evaluation.proxies import STEPS
from espalier.search.progress.reporter import Reporter
from espalier.search.run.prepare import Prepared
from espalier.search.spaces.space import Space
from espalier.search.spaces.table import SPACES
from espalier.search.study.run_folder import LADDER
from espalier.search.tasks.device import device_here
from espalier.search.tasks.precision import has_bf16
from espalier.search.training.finetune import FinetuneSpec
from espalier.search.training.ladder import Rung, climb, train_dense

ENOUGH = 100
"""Images that a judgement needs at least, if there are so many; as many as classes, where these are more."""


class Assembly:
    """The parts of a search.

    Args:
        config: checked settings.
        prepared: network, graph and images.
        out: the run folder.
        reporter: told the progress.
    """

    def __init__(self, config: Config, prepared: Prepared, out: Path, reporter: Reporter) -> None:
        self.config, self.prepared, self.out, self.reporter = config, prepared, out, reporter
        self.recipes = Recipes.of(config)
        self._on_gpus = config.cluster.gpus_per_worker > 0
        if slow := self._emulated():
            reporter.say(f"{' and '.join(slow)}: this processor is not built for bf16, and slow in it; try auto")
        if config.search.precision == "int8" and (self._on_gpus or not has_int8()):
            reporter.say("search.precision: int8 is for x86 processors; candidates run in fp32")

    def ladder(
        self, workers: Workers, check: Callable[[str], None] = lambda digest: None
    ) -> tuple[Rung, list[Rung]]:
        """The dense network and the rungs; trains those that the run folder lacks.

        Args:
            workers: where rungs that do not wait for each other are trained.
            check: told the digest of every network as it is there; may refuse it.
        """
        config, prepared, folder = self.config, self.prepared, self.out / LADDER
        dense = train_dense(
            prepared.model,
            prepared.splits,
            self.recipes.dense,
            config.seed,
            folder,
            prepared.origin,
            self.reporter,
        )
        check(dense.digest)
        rungs = climb(
            dense,
            prepared.graph,
            prepared.splits,
            self.recipes.regularized,
            self.recipes.penalty,
            config.regularizer.strengths,
            config.seed,
            folder,
            self.reporter,
            start=config.regularizer.start,
            workers=workers,
            check=check,
        )
        return dense, rungs

    def energies(self, rungs: Sequence[Rung]) -> list[Floats]:
        """What channels are worth on every rung, (n_channels,): their energies, or another criterion's scores."""
        criterion, prepared, seed = self.config.search.criterion, self.prepared, self.config.seed
        return [channel_scores(criterion, rung.model, prepared.graph, prepared.splits, seed) for rung in rungs]

    def space(
        self, energies: Sequence[Floats], budget: Budget | None = None, rungs: Sequence[int] | None = None
    ) -> Space:
        """What is searched.

        Args:
            energies: of every rung.
            budget: the one it is under; by default the tightest, or all of them where a front is searched.
            rungs: which rungs candidates may be cut from; all by default.
        """
        section = self.config.search
        return SPACES[section.space](
            self.prepared.graph,
            energies,
            normalization=section.normalization,
            budget=budget or self.prepared.budget,
            floor=self.prepared.floor,
            round_to=self.config.budget.round_to,
            width=section.range,
            front=self.prepared.budgets if self.config.budget.front and budget is None else (),
            rungs=rungs,
        )

    def evaluation(
        self,
        dense: Rung,
        rungs: Sequence[Rung],
        energies: Sequence[Floats],
        proxies: Sequence[str],
        scoring: Tensor,
    ) -> EvaluationSpec:
        """What a worker needs to judge candidates by these proxies, the first by default, on held-out images.

        How they are run is settled by `execution`, and put in by `Execution.of`.
        """
        section, execution = self.config.search, Execution()
        return EvaluationSpec.of(
            self.prepared.graph,
            self.prepared.splits,
            dense.model,
            [rung.model for rung in rungs],
            energies,
            calibration_images=section.calibration_images,
            scoring=scoring,
            steps=max(STEPS.get(name, 0) for name in proxies),
            recipe=self.recipes.finetune,
            batch_size=execution.batch_size,
            precision=execution.precision,
            proxy=proxies[0],
            race=section.measure if section.race else None,
            memory_format=execution.memory_format,
        )

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

    def execution(self, workers: Workers) -> Execution:
        """How candidates are run: as the config says, and by the rule, on a worker's device, for the rest."""
        section = self.config.search
        settings = {name: getattr(section, name) for name in ("batch_size", "memory_format", "precision")}
        if AUTO in settings.values():
            self.reporter.say(RULE)
        return next(found for _, found in workers.map(_execution_here, settings, [None]))

    def finetuning(self, spec: EvaluationSpec) -> FinetuneSpec:
        """What a worker needs to fine-tune, and to judge on held-out images that the search has not seen."""
        splits = self.prepared.splits
        judge = splits.search.take(self.judging_indices())
        return FinetuneSpec(spec, splits.train, judge, self.recipes.finetune)

    def scoring_indices(self) -> Tensor:
        """The held-out images that the search scores on: as many as asked for, if that leaves enough unseen."""
        held_out = len(self.prepared.splits.search)
        unseen = min(self._enough, held_out // 2)
        return torch.arange(min(self.config.search.scoring_images, held_out - unseen))

    def promotion_indices(self) -> Tensor:
        """Held-out images that the search did not score on, to judge its best candidates again."""
        return self._unseen()[0]

    def judging_indices(self) -> Tensor:
        """Held-out images that neither the search nor promotion has seen, where there are enough of them."""
        return self._unseen()[1]

    def _unseen(self) -> tuple[Tensor, Tensor]:
        """Two parts of what the search did not score on; both the same where there is too little to part."""
        rest = torch.arange(len(self.scoring_indices()), len(self.prepared.splits.search))
        promoting = min(self.config.search.scoring_images, len(rest) // 2)
        if promoting < self._enough:
            return rest, rest
        return rest[:promoting], rest[promoting:]

    @property
    def _enough(self) -> int:
        """Images that a judgement needs at least."""
        return max(ENOUGH, self.prepared.splits.num_classes)


def _execution_here(settings: Mapping[str, Any], _: None) -> Execution:
    return Execution.asked(settings, torch.device(device_here()))
