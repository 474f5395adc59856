"""What follows the search, under each budget: promotion, fine-tuning, one reading of the test split, the artefact.

A vector means a candidate under every budget. The search scores it under the tightest one (as LeGR does: Chin et
al., CVPR 2020, arXiv 1904.12368); the best vectors, and greedy's, are then judged again under each of the others.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from espalier.errors import BudgetInfeasible, EspalierError
from espalier.pruning.graph.budget import Budget
from espalier.pruning.latency.model import latency_model_of
from espalier.pruning.slimming.surgery import slim
from espalier.search.config.fields import GIVEN
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.network_file import check_same, class_of, load, save
from espalier.search.files.tensor_files import tensors_of
from espalier.search.run.experiment import Experiment
from espalier.search.run.exporting import example_note
from espalier.search.run.latency_budget import TOLERANCE, measured_here, modelled
from espalier.search.run.result import Outcome, Result, verdict
from espalier.search.run.share_of_headroom import known_headroom, words_of_share
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.space import Space
from espalier.search.statistics.differences import FEWEST
from espalier.search.statistics.readings import differences_of
from espalier.search.statistics.seeds import selection_seeds
from espalier.search.study.keys import FAILURE, FINAL_SEEDS, LATENCY
from espalier.search.study.ledger import Record
from espalier.search.study.pareto_front import near
from espalier.search.study.storage import once
from espalier.search.tasks.task import Reading
from espalier.search.training.contest import Contest, best_greedy, decide
from espalier.search.training.finalists import Finals, Rejudging, distinct
from espalier.search.training.finetune import (
    Finetuned,
    ReadingSpec,
    Tested,
    network_of,
    read,
    to_read,
)

ATTEMPTS = 3
"""Times that finalists which take too long are made narrower."""

Seconds = dict[str, float]
"""Stage -> seconds spent on it in this run."""


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Adds the time that the block takes to its stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def versions() -> dict[str, str]:
    """Versions of what computes a result."""
    names = ("espalier", "torch", "optuna", "ray", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def same_scores(records: Sequence[Record]) -> str:
    """A sentence where a search had nothing to choose by; else nothing."""
    tried = {record.candidate for record in records}
    if len(tried) < 2 or len({record.value for record in records}) > 1:
        return ""
    return (
        f"all {len(tried)} candidates have the same score, so that there is nothing to choose by: see whether the "
        "score reads the network, and whether its data tell networks apart"
    )


class FinalEvaluation:
    """Turns the record of a search into results.

    Args:
        experiment: whose ladder, task and workers these are.
        study: the record.
        searched: what was searched.
        spaces: budget -> what is open under it.
        seconds: per stage; added to.
    """

    def __init__(
        self,
        experiment: Experiment,
        study: optuna.Study,
        *,
        searched: Space,
        spaces: Mapping[Budget, Space],
        seconds: Seconds,
    ) -> None:
        self.experiment, self.config, self.prepared = experiment, experiment.config, experiment.prepared
        self.task = experiment.task
        self.study, self.searched, self.spaces, self.seconds = study, searched, spaces, seconds
        self.spec, self.workers, self.reporter = experiment.spec, experiment.workers, experiment.reporter
        self.device = measured_here(self.config, self.prepared, self.reporter)

    def under(self, budget: Budget, records: Sequence[Record], artefact: Path) -> Result:
        """The result under one budget.

        Args:
            budget: the search's own, or another one.
            records: every finished trial of the search.
            artefact: file for the winner's network.

        Raises:
            EspalierError: greedy pruning is not among the records.
        """
        section, seed = self.config.finetune, self.config.seed
        choosing, seeds = selection_seeds(seed, section.selection_seeds), [seed + n for n in range(section.seeds)]
        with timed(self.seconds, "promotion"):
            finals = self._finals_in_time(budget, records)
        by_candidate = {record.candidate: record for record in (*finals.greedy, *finals.finalists)}
        with timed(self.seconds, "finetune"):
            greedy, winner = self._chosen(finals, choosing)
            compared = list(dict.fromkeys((greedy, winner)))
            runs = self.experiment.finetuner.titled("final fine-tuning").finished(compared, seeds)
        tuned = {c: [run for run in runs if run.candidate == c] for c in (greedy, winner)}
        metric = self.task.metric
        if section.seeds >= FEWEST:  # with fewer there is no verdict that more seeds could turn
            once(self.study, FINAL_SEEDS, lambda: {"count": section.seeds})
        with timed(self.seconds, "test"):
            readings = self._read(tuned)
        own = {c: {run.seed: readings[c.key, run.seed] for run in tuned[c]} for c in (greedy, winner)}
        found = differences_of(own[winner], own[greedy], metric)
        if found is None:
            raise EspalierError(
                f"no seed of {len(seeds)} has both greedy pruning and the search's winner fine-tuned, as runs of "
                "theirs failed: `espalier resume` tries those again"
            )
        self._write_artefact(artefact, budget, max(tuned[winner], key=lambda run: metric.order(run.judged)))
        after = {c: tuple(reading.value for reading in own[c].values()) for c in (greedy, winner)}
        before = {c: readings[c.key, None].value for c in (greedy, winner)}
        searched = budget == self.prepared.budget and not self.searched.seeks_front and not finals.anew
        return Result(
            metric=metric,
            tested=self.task.has_test,
            finetuned=self.config.finetune.epochs > 0,
            dense=self._dense_outcome(readings["dense", None].value),
            greedy=self._outcome(by_candidate[greedy], before[greedy], after[greedy], searched),
            searched=self._outcome(by_candidate[winner], before[winner], after[winner], searched),
            budget=budget.limits,
            binding=budget.binding(self.prepared.graph, winner.widths),
            verdict=verdict(
                found, winner == greedy, metric, tested=self.task.has_test, finetuned=section.epochs > 0
            ),
            trials=len(records),
            promotion=[
                {"proxy": risen.proxy, "candidates": len(risen.values), "agreement": risen.agreement}
                for risen in finals.rises
            ],
            seeds={"study": seed, "selection": choosing, "finetune": seeds},
            execution=self.experiment.execution.to_json(),
            seconds={stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
            versions=versions(),
            study=self.study.study_name,
            artefact=str(artefact),
            latency=self._latency(budget, {"greedy": greedy.widths, "searched": winner.widths}),
            headroom=""
            if (known := known_headroom(self.experiment.out, budget, self.config, self.experiment.digests)) is None
            else words_of_share(known, {"the search": found.mean}, metric),
            supernet=self.config.supernet.words,
            remark=same_scores(records),
        )

    # -- stages

    def _finals_in_time(self, budget: Budget, records: Sequence[Record]) -> Finals:
        """The finals, of which none takes longer than a limit on latency allows, as measured.

        Where the model was wrong, it is made to say so, and the vectors are decoded anew, to narrower networks.
        """
        space = self.spaces[budget]
        finals = self._finals(space, records, as_searched=budget == self.prepared.budget)
        if self.device is None:
            return finals
        for _ in range(ATTEMPTS):
            every = {each.candidate.key: each.candidate.widths for each in (*finals.greedy, *finals.finalists)}
            slowest = partial(self.device.slowest, every, budget)
            these = hashlib.sha256(" ".join(sorted(every)).encode()).hexdigest()[:16]  # others are measured anew
            over = once(self.study, f"{LATENCY}:{budget.key}:{these}", slowest)["times"]
            if over <= 1 + TOLERANCE:
                break
            try:
                model = latency_model_of(space.graph).times(over)
                space = self.experiment.space(budget, space.rungs, model.on(space.graph))
            except BudgetInfeasible:
                self.reporter.say(
                    f"finalists take up to {over:.2f} times the limit, as measured, and none is faster"
                )
                break
            self.reporter.say(f"finalists take up to {over:.2f} times the limit, as measured: narrower ones follow")
            finals = replace(self._finals(space, records, as_searched=False), anew=True)
        return finals

    def _finals(self, space: Space, records: Sequence[Record], *, as_searched: bool) -> Finals:
        """Judges the best vectors, and greedy pruning, in a space, on examples that the search has not seen."""
        section = self.config.search
        if self.searched.seeks_front:
            best = distinct(near(records, space))
        elif not as_searched:
            best = distinct(self._under(space, records))
        else:
            best = distinct(records)
        every = set(space.greedy_candidates())
        if not any(record.candidate in every for record in best):
            raise EspalierError(
                f"greedy pruning, which is tried first, is not among the {len(records)} finished trials, "
                f"{self._why_no_greedy(len(records))}"
            )
        again = Rejudging(
            self.study,
            self.experiment.unseen,
            self.experiment.promoting,
            measure=self.experiment.measure,
            share=section.promote,
            workers=self.workers,
            parts=max(1, self.config.workers),
            reporter=self.reporter,
        )
        return again.finals(best, every, section.finalists)

    def _under(self, space: Space, records: Sequence[Record]) -> list[Record]:
        """What the vectors of records mean under another budget, and at its strength.

        Greedy's stand for greedy pruning there, which they need not mean: ratios are scaled, not ranked anew.
        """
        greedy: dict[Candidate, list[Candidate]] = {}
        for searched, here in zip(self.searched.greedy_candidates(), space.greedy_candidates(), strict=True):
            greedy.setdefault(searched, []).append(here)
        return [
            replace(record, candidate=candidate)
            for record in records
            for candidate in (*greedy.get(record.candidate, ()), space.decode(record.params))
        ]

    def _why_no_greedy(self, finished: int) -> str:
        if finished < self.config.search.trials:
            return "as the time was over before: `espalier resume` goes on"
        reasons = [trial.user_attrs[FAILURE] for trial in self.study.trials if FAILURE in trial.user_attrs]
        said = f" ({reasons[0]})" if reasons else ""
        return f"as its evaluations failed{said}: `espalier resume` tries them once more"

    def _chosen(self, judged: Finals, seeds: Sequence[int]) -> tuple[Candidate, Candidate]:
        """The greedy baseline, and the winner: the best once fine-tuned, on held-out examples."""
        finetuner, halvings = self.experiment.finetuner, self.config.finetune.halvings
        candidates = [record.candidate for record in judged.greedy]
        greedy = best_greedy(finetuner, candidates, halvings, seeds[0]).winner
        contest = Contest([record.candidate for record in judged.finalists], seeds, greedy)
        return greedy, decide(finetuner, [contest], halvings)[0].winner

    def _read(self, finetuned: dict[Candidate, list[Finetuned]]) -> dict[tuple[str, int | None], Reading]:
        """The one reading of the test split: (candidate key or "dense", seed, None for before) -> what it says."""
        runs = [run for own in finetuned.values() for run in own]
        dense: Tested = (None, None, tensors_of(self.experiment.dense.model))
        networks, count = chain([dense], to_read(self.spec, list(finetuned), runs)), 1 + len(finetuned) + len(runs)
        readings: dict[tuple[str, int | None], Reading] = {}
        shared = ReadingSpec(self.spec, self.task.only("test"), "test")
        title = "test split" if self.task.has_test else "last reading"
        with self.reporter.meter(title, count, "networks") as meter:
            for (tested, seed, _), reading in self.workers.map(read, shared, networks):
                if not math.isfinite(reading.value):
                    which = "the dense network" if tested is None else f"candidate {tested.key}"
                    raise EspalierError(
                        f"{self.task.metric.title} of {which} is {reading.value} in the last reading; what "
                        "is finished is kept, and the same call goes on from there"
                    )
                readings["dense" if tested is None else tested.key, seed] = reading
                meter.update(len(readings))
        return readings

    def _write_artefact(self, path: Path, budget: Budget, chosen: Finetuned) -> None:
        """Writes the pruned network, after checking the slimming, and that the file gives it back."""
        graph, candidate = self.prepared.graph, chosen.candidate
        keep = self.spec.keep(candidate)
        slim(self.experiment.rungs[candidate.rung].model, graph, keep)  # refuses what is not the masked network
        network = network_of(self.spec, chosen.tensors(), candidate)
        notes = self.task.notes() | {
            "macs": int(graph.macs(candidate.widths)),
            "params": int(graph.params(candidate.widths)),
            "study": self.study.study_name,
            "budget": budget.limits,
            "seed": chosen.seed,
            "versions": versions(),
            **example_note(graph.example),
        }
        model = self.config.model
        kept, dense = graph.kept_indices(keep), self.prepared.model
        name = class_of(dense) if model.name == GIVEN else model.name
        save(network, path, name=name, kwargs=model.kwargs, kept=kept, notes=notes, dense=dense)
        check_same(load(path, dense), network, graph.example)

    # -- parts of a result

    def _latency(self, budget: Budget, widths: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """What the networks take; None where latency is not limited."""
        if budget.latency is None:
            return None
        if self.device is None:
            return modelled(self.prepared.graph, widths, budget)
        return self.device.report(widths, budget, self.reporter.say)

    def _outcome(self, record: Record, before: float, after: tuple[float, ...], searched: bool) -> Outcome:
        """Of a candidate; its score is the record's where this is the budget that was searched."""
        graph, candidate = self.prepared.graph, record.candidate
        score = record.score if searched else Evaluator(self.spec)(candidate)
        return Outcome(
            macs=int(graph.macs(candidate.widths)),
            params=int(graph.params(candidate.widths)),
            held_out=score.measures.get(self.task.metric.key, math.nan),
            before=before,
            after=float(np.mean(after)),
            after_seeds=after,
            widths={group.name: width for group, width in zip(graph.groups, candidate.widths, strict=True)},
            strength=self.experiment.rungs[candidate.rung].strength,
            bits=graph.bits_of(candidate.widths),
        )

    def _dense_outcome(self, test: float) -> Outcome:
        graph = self.prepared.graph
        return Outcome(
            macs=self.prepared.dense_macs,
            params=int(graph.params(graph.sizes)),
            held_out=self.task.evaluate(self.experiment.dense.model, "scoring").value,
            before=test,
            after=test,
            after_seeds=(),
            widths={group.name: group.size for group in graph.groups},
            strength=0.0,
        )
