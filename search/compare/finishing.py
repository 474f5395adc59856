"""From widths to measured cells: fine-tuning, the test split, latency.

Equal networks are trained, read and timed once, whichever methods chose them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from espalier.errors import ExportError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.networks import build
from espalier.pruning.runtimes.timing import Prepared, prepared, time_in_turn
from espalier.pruning.seeding import seeded
from espalier.search.compare.cells import Cell, Measured, Store, Timed, packed
from espalier.search.config.search_sections import LatencyConfig
from espalier.search.evaluation.candidate_networks import EvaluationSpec, numpy_state
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.methods import DENSE, ENERGY, SCRATCH, Choice, Material
from espalier.search.run.experiment import Experiment
from espalier.search.run.final_evaluation import timed
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.task import Part, Reading, Stage
from espalier.search.training.finetune import (
    Finetuned,
    FineTuner,
    ReadingSpec,
    network_of,
    read,
    to_read,
)

PARTS: tuple[Part, ...] = ("scoring", "judging", "test")
"""On which the dense network is read."""
OWN = "own"
"""The network that is timed beside the dense one."""


@dataclass(frozen=True)
class _Group:
    """Cells whose fine-tuning starts from the same networks."""

    finetuner: FineTuner
    networks: Mapping[Cell, Candidate]


class Finishing:
    """The second half of a comparison, the same for every method.

    Args:
        experiment: dense network, ladder and workers.
        material: energies, spaces, and how networks are run.
        store: where finished cells are kept.
        seeds: all of the comparison's.
        scratch_epochs: of training from new weights.
        latency: runtimes and threads that networks are timed with.
        batches: examples of timed passes.
    """

    def __init__(
        self,
        experiment: Experiment,
        material: Material,
        *,
        store: Store,
        seeds: Sequence[int],
        scratch_epochs: float,
        latency: LatencyConfig,
        batches: Sequence[int],
    ) -> None:
        self._experiment, self._material, self._store = experiment, material, store
        self._workers, self._reporter = experiment.workers, experiment.reporter
        self._seeds, self._scratch_epochs = seeds, scratch_epochs
        self._latency, self._batches = latency, batches
        self._dense_ready: dict[str, Prepared] = {}

    def __call__(self, choices: dict[Cell, Choice], seconds: dict[str, float]) -> dict[str, str]:
        """Measures what was chosen, and keeps it.

        Args:
            choices: of the cells that are not finished.
            seconds: what each stage takes is added to it.

        Returns:
            Key of each cell whose fine-tuning failed -> why.
        """
        with timed(seconds, "fine-tuning"):
            runs = self._finetuned(choices)
        failures = {cell.key: run for cell, run in runs.items() if isinstance(run, str)}
        finetuned = {cell: run for cell, run in runs.items() if isinstance(run, Finetuned)}
        choices = {cell: choices[cell] for cell in finetuned}
        with timed(seconds, "test split"):
            before, after = self._tops(choices, finetuned)
        failures |= {
            cell.key: "its test score is NaN" for cell, read in after.items() if not math.isfinite(read.value)
        }
        choices = {cell: choice for cell, choice in choices.items() if cell.key not in failures}
        if choices:
            with timed(seconds, "latency"):
                self._finish(choices, finetuned, before, after)
        return failures

    def dense(self) -> Measured:
        """The dense network, as it is: read once."""
        cell = Cell("", DENSE, 0)
        if (found := self._store.measured(cell)) is not None:
            return found
        graph, spec, task = self._experiment.prepared.graph, self._material.spec, self._experiment.task
        tensors = tensors_of(self._experiment.dense.model)
        values = {part: read(ReadingSpec(spec, task.only(part), part), (None, None, tensors)) for part in PARTS}
        timings = self._time(None)
        took = next(iter(timings.values())).dense
        measured = Measured(
            budget="",
            method=DENSE,
            seed=0,
            macs=self._experiment.prepared.dense_macs,
            params=int(graph.params(graph.sizes)),
            kept=1.0,
            strength=0.0,
            rung=0,
            widths={group.name: group.size for group in graph.groups},
            criterion="",
            value=0.0,
            held_out_before=values["scoring"].value,
            held_out_after=values["judging"].value,
            before=values["test"].value,
            after=values["test"].value,
            latency=took.milliseconds,
            dense_latency=took.milliseconds,
            layout=took.layout,
            dense_layout=took.layout,
            evaluations=0,
            search_seconds=0.0,
            finetune_seconds=0.0,
            right=packed(values["test"].examples),
            timings=timings,
        )
        self._store.finish(cell, measured)
        return measured

    def _finetuned(self, choices: dict[Cell, Choice]) -> dict[Cell, Finetuned | str]:
        """Networks of cells that are not finished, or why there is none; equal ones are trained once."""
        found: dict[Cell, Finetuned | str] = {}
        for group in self._groups(choices):
            pairs = list(dict.fromkeys((candidate, cell.seed) for cell, candidate in group.networks.items()))
            methods = {cell.method for cell in group.networks}
            own = f" {methods.pop()}" if len(methods) == 1 else ""
            runs = group.finetuner.titled(f"fine-tuning{own}")(pairs)
            found |= {cell: runs[candidate, cell.seed] for cell, candidate in group.networks.items()}
        return found

    def _groups(self, choices: dict[Cell, Choice]) -> list[_Group]:
        """Cells by what their fine-tuning starts from: checkpoints ranked by a criterion, or new weights."""
        by_source: dict[tuple[str, str], tuple[Choice, dict[Cell, Candidate]]] = {}
        fresh: dict[Cell, Candidate] = {}
        made = self._experiment
        for cell, choice in choices.items():
            if cell.method == SCRATCH:  # a rung for each seed
                fresh[cell] = replace(choice.candidate, rung=self._seeds.index(cell.seed))
            else:
                _, networks = by_source.setdefault((choice.network, choice.criterion), (choice, {}))
                networks[cell] = choice.candidate
        groups = [
            _Group(
                replace(
                    made.finetuner,
                    spec=made.tuning_of(self._material.spec_of(choice)),
                    rungs=[choice.network] if choice.network else made.digests,
                ),
                networks,
            )
            for choice, networks in by_source.values()
        ]
        return [*groups, self._fresh(fresh)] if fresh else groups

    def _fresh(self, networks: dict[Cell, Candidate]) -> _Group:
        """Cells that are trained from new weights, which the seed draws."""
        spec, model, made = self._experiment.tuning_of(self._material.spec), self._experiment.config.model, []
        for seed in self._seeds:
            with seeded(seed):
                made.append(build(model.name, **model.kwargs))
        states, ranks = tuple(numpy_state(network) for network in made), (spec.evaluation.ranks[0],) * len(made)
        stage = Stage("dense", self._scratch_epochs)
        evaluation = spec.evaluation.of_networks(states, ranks)
        new = replace(spec, evaluation=evaluation, stage=stage, reconstruct=False, teacher=None)
        rungs = [digest(tensors_of(network)) for network in made]
        return _Group(replace(self._experiment.finetuner, spec=new, rungs=rungs), networks)

    def _tops(
        self, choices: dict[Cell, Choice], finetuned: dict[Cell, Finetuned]
    ) -> tuple[dict[Cell, Reading | None], dict[Cell, Reading]]:
        """Readings of the test split before and after fine-tuning; equal networks are read once."""
        before: dict[Cell, Reading | None] = dict.fromkeys(choices)
        after: dict[Cell, Reading] = {}
        for group in self._groups(choices):
            cut = dict.fromkeys(candidate for cell, candidate in group.networks.items() if cell.method != SCRATCH)
            runs = {run.path: run for run in (finetuned[cell] for cell in group.networks)}
            readings = self._read(group.finetuner.spec.evaluation, list(cut), list(runs.values()))
            for cell, candidate in group.networks.items():
                after[cell] = readings[candidate, cell.seed]
                before[cell] = readings.get((candidate, None))
        return before, after

    def _read(
        self, spec: EvaluationSpec, cut: Sequence[Candidate], runs: Sequence[Finetuned]
    ) -> dict[tuple[Candidate | None, int | None], Reading]:
        readings: dict[tuple[Candidate | None, int | None], Reading] = {}
        shared = ReadingSpec(spec, self._experiment.task.only("test"), "test")
        with self._reporter.meter("test split", len(cut) + len(runs), "networks") as meter:
            for (candidate, seed, _), reading in self._workers.map(read, shared, to_read(spec, cut, runs)):
                readings[candidate, seed] = reading
                meter.update(len(readings))
        return readings

    def _finish(
        self,
        choices: dict[Cell, Choice],
        finetuned: dict[Cell, Finetuned],
        before: dict[Cell, Reading | None],
        after: dict[Cell, Reading],
    ) -> None:
        """Times every network beside the dense one, and keeps the cells."""
        graph = self._experiment.prepared.graph
        key_of = self._experiment.task.metric.key
        ranking = self._experiment.config.search.criterion
        timings: dict[tuple[str, str, Candidate], dict[str, Timed]] = {}
        with self._reporter.meter("latency and cells", len(choices), "cells") as meter:
            for done, (cell, choice) in enumerate(choices.items(), 1):
                candidate, run = choice.candidate, finetuned[cell]
                key = choice.network, choice.criterion, candidate
                if key not in timings:
                    own = network_of(self._material.spec_of(choice), run.tensors(), candidate)
                    timings[key] = self._time(own)
                took = next(iter(timings[key].values()))
                macs, scratch = int(graph.macs(candidate.widths)), cell.method == SCRATCH
                measured = Measured(
                    budget=cell.budget,
                    method=cell.method,
                    seed=cell.seed,
                    macs=macs,
                    params=int(graph.params(candidate.widths)),
                    kept=macs / self._experiment.prepared.dense_macs,
                    strength=0.0 if choice.network or scratch else self._experiment.rungs[candidate.rung].strength,
                    rung=candidate.rung,
                    widths={group.name: w for group, w in zip(graph.groups, candidate.widths, strict=True)},
                    criterion=ranking if choice.criterion == ENERGY else choice.criterion,
                    value=math.nan if scratch else choice.score.value(self._material.measure),
                    held_out_before=math.nan if scratch else choice.score.measures.get(key_of, math.nan),
                    held_out_after=run.judged,
                    before=None if (first := before[cell]) is None else first.value,
                    after=after[cell].value,
                    latency=took.own.milliseconds,
                    dense_latency=took.dense.milliseconds,
                    layout=took.own.layout,
                    dense_layout=took.dense.layout,
                    evaluations=choice.evaluations,
                    search_seconds=choice.seconds,
                    finetune_seconds=run.seconds,
                    history=() if scratch else choice.history,
                    importance={} if scratch else choice.importance,
                    right=packed(after[cell].examples),
                    timings=timings[key],
                )
                self._store.finish(cell, measured)
                meter.update(done)

    def _time(self, own: nn.Module | None) -> dict[str, Timed]:
        """A network in turn with the dense one, or the dense one alone, in every runtime with every batch size.

        Raises:
            ExportError: no runtime takes the network.
        """
        inputs, found, refused = self._inputs(), dict[str, Timed](), list[ExportError]()
        for runtime in self._latency.runtimes:
            try:
                networks = {DENSE: self._dense(runtime)}
                if own is not None:
                    networks = {OWN: self._ready(own, runtime)} | networks
            except ExportError as error:
                self._reporter.say(f"not timed in {runtime}: {error}")
                refused.append(error)
                continue
            for batch in self._batches:
                took = time_in_turn(networks, inputs, batch)
                timed = Timed(took.get(OWN, took[DENSE]), took[DENSE])
                found[timed.key] = timed
        if not found:
            raise refused[0]
        return found

    def _ready(self, network: nn.Module, runtime: str) -> Prepared:
        return prepared(network, self._inputs(), runtime, self._batches, self._latency.threads)

    def _dense(self, runtime: str) -> Prepared:
        """The dense network, prepared once: exporting takes seconds."""
        if runtime not in self._dense_ready:
            self._dense_ready[runtime] = self._ready(self._dense_network(), runtime)
        return self._dense_ready[runtime]

    def _dense_network(self) -> nn.Module:
        return network_of(self._material.spec, tensors_of(self._experiment.dense.model))

    def _inputs(self) -> Inputs:
        """What networks are timed on."""
        return self._experiment.task.timed_inputs(self._material.spec.scoring)
