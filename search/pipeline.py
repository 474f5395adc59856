"""A whole run: prepare, climb the ladder, search, fine-tune, read the test split once, write the result."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import Tensor

from espalier.errors import EspalierError, StorageError, StudyMismatch
from espalier.pruning.costs import Floats
from espalier.pruning.surgery import slim
from espalier.search import data
from espalier.search.artefact import load, save
from espalier.search.assembly import Assembly
from espalier.search.bench import Bench, EvaluationSpec
from espalier.search.candidate import Candidate
from espalier.search.checkpoint import tensors_of
from espalier.search.config import Config, parse_config
from espalier.search.evaluation import Evaluator
from espalier.search.finals import diverse, halve, rise
from espalier.search.finetune import (
    Finetuned,
    TestSpec,
    finetune_all,
    network_of,
    read_test,
)
from espalier.search.ladder import Rung
from espalier.search.local import search_in_process
from espalier.search.prepare import prepare
from espalier.search.probe import Execution
from espalier.search.progress import Reporter, Silent
from espalier.search.promotion import Rise, order
from espalier.search.result import Outcome, Result, finite, verdict
from espalier.search.samplers import SAMPLERS
from espalier.search.study import (
    EXECUTION,
    PREFIX,
    Ledger,
    Record,
    check_fingerprint,
    create_study,
    find_study,
    keep,
    open_storage,
    redact,
)
from espalier.search.workers import InProcess, OnRay, Workers


def run(
    config: Config,
    *,
    study: str,
    out: Path,
    storage: str | None = None,
    address: str | None = None,
    reporter: Reporter | None = None,
    must_exist: bool = False,
) -> Result:
    """Runs a search from wherever it stands: a new study, or one that was interrupted or finished.

    Args:
        config: checked settings.
        study: its name in the storage.
        out: folder for checkpoints, ``result.json`` and ``pruned.espalier``.
        storage: any Optuna URL; by default SQLite in `out`.
        address: a Ray cluster to join; by default one is started here when there are workers.
        reporter: told the progress.
        must_exist: whether the study has to be there already.

    Raises:
        EspalierError: of the kinds of `prepare`, or StorageError, or StudyMismatch.
    """
    return _Run(config, study, out, storage or default_storage(out), address, reporter or Silent(), must_exist).go()


def default_storage(out: Path) -> str:
    """The SQLite storage in a run folder."""
    return f"sqlite:///{out / 'study.db'}"


def config_of(url: str, study: str) -> tuple[Config, Path]:
    """The config and the run folder of a study, from its storage.

    Raises:
        StorageError: the storage cannot be read, or has no such study.
    """
    storage = open_storage(url, create=False)
    found = find_study(storage, study, url)
    if found is None:
        names = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none"
        raise StorageError(f"there is no study {study!r} in {redact(url)}; it holds {names}")
    config = parse_config(found.user_attrs[PREFIX + "config"], f"the config of study {study!r}")
    return config, Path(found.user_attrs[PREFIX + "out"])


_Tested = tuple[Candidate | None, int | None, dict[str, Tensor]]
"""A network for the test split: its candidate, None for dense; its seed, None before fine-tuning; its tensors."""


@dataclass(frozen=True)
class _Found:
    """What the search left: the best greedy record, the finalists, the number of trials, the rungs of proxies."""

    greedy: Record
    finalists: list[Record]
    trials: int
    rises: list[Rise]


class _Run:
    def __init__(
        self,
        config: Config,
        study: str,
        out: Path,
        url: str,
        address: str | None,
        reporter: Reporter,
        must_exist: bool,
    ) -> None:
        self.config, self.study_name, self.out, self.url = config, study, out, url
        self.address, self.reporter, self.must_exist = address, reporter, must_exist
        self.seconds: dict[str, float] = {}

    def go(self) -> Result:
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._timed("prepare"):
            self.prepared = prepare(self.config)
            self.parts = Assembly(self.config, self.prepared, self.out, self.reporter)
            study = self._open_study()
        self.reporter.say(self._headline())
        with ExitStack() as stack:
            workers = self._workers(stack)
            dense, rungs = self._ladder(study, workers)
            energies = self.parts.energies(rungs)
            section = self.config.search
            proxies = (section.proxy, *section.ladder)
            spec = self.parts.evaluation(dense, rungs, energies, proxies, self.parts.scoring_indices())
            unseen = self.parts.evaluation(dense, rungs, energies, proxies, self.parts.promotion_indices())
            spec, unseen = self._run_as_probed(study, spec, unseen, energies)
            workers.ready()
            found = self._search(study, energies, spec, unseen, workers)
            return self._conclude(dense, rungs, spec, found, workers)

    # -- stages

    def _workers(self, stack: ExitStack) -> Workers:
        """Ray is joined when there is something for it to do: training a chain of rungs needs none."""
        if not self.config.workers:
            return InProcess()
        from espalier.search.cluster import ray_session

        return OnRay(lambda: stack.enter_context(ray_session(self.config.workers, self.address)))

    def _open_study(self) -> optuna.Study:
        """Finds or makes the study; refuses one that was made with other settings before writing anything."""
        fingerprint = self.config.fingerprint() | {
            "weights": self.prepared.origin,
            "data": self.prepared.splits.digest(),
            "graph": self.prepared.graph.digest,
        }
        if self.url == default_storage(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        storage = open_storage(self.url, create=not self.must_exist)
        study = find_study(storage, self.study_name, self.url)
        config = self.config.model_dump(mode="json")
        if study is None:
            attributes = {"config": config, "fingerprint": fingerprint, "versions": versions()}
            study = create_study(storage, self.study_name, attributes | {"out": str(self.out.resolve())})
        else:
            check_fingerprint(study, fingerprint)
            study.set_user_attr(PREFIX + "config", config)
        self.out.mkdir(parents=True, exist_ok=True)
        return study

    def _ladder(self, study: optuna.Study, workers: Workers) -> tuple[Rung, list[Rung]]:
        with self._timed("ladder"):
            dense, rungs = self.parts.ladder(workers)
        digests = [rung.digest for rung in rungs]
        recorded = study.user_attrs.get(PREFIX + "checkpoints")
        if recorded is None:
            study.set_user_attr(PREFIX + "checkpoints", digests)
        elif recorded != digests:
            raise StudyMismatch(
                f"the study {self.study_name!r} searched over checkpoints {', '.join(recorded)}, but "
                f"{self.out / 'ladder'} gives {', '.join(digests)}: training repeats bit for bit only on the same "
                "machine and versions, so bring the ladder/ folder of the first run and point --out at its parent"
            )
        return dense, rungs

    def _run_as_probed(
        self, study: optuna.Study, spec: EvaluationSpec, unseen: EvaluationSpec, energies: Sequence[Floats]
    ) -> tuple[EvaluationSpec, EvaluationSpec]:
        """Probes once in the life of a study, so that its trials are comparable."""
        with self._timed("probe"):
            made = keep(study, EXECUTION, lambda: self.parts.probe(spec, self.parts.space(energies)).to_json())
        self.execution = Execution.from_json(made)
        self.reporter.say(self.execution.words())
        return self.execution.of(spec), self.execution.of(unseen)

    def _search(
        self,
        study: optuna.Study,
        energies: Sequence[Floats],
        spec: EvaluationSpec,
        unseen: EvaluationSpec,
        workers: Workers,
    ) -> _Found:
        section = self.config.search
        space = self.parts.space(energies)
        ledger = Ledger(
            study,
            space,
            SAMPLERS[section.sampler](space, self.config.seed),
            measure=section.measure,
            target=section.trials,
        )
        with self._timed("search"), ledger:
            with self.reporter.meter("search", section.trials, "candidates", done=ledger.complete) as meter:
                if self.config.workers:
                    from espalier.search.tune import search_on_ray

                    search_on_ray(ledger, spec, self.config.workers, meter)
                else:
                    search_in_process(ledger, Evaluator(spec), meter)
        records = ledger.records()
        greedy = {space.decode(params) for params in space.greedy_params()}
        best = _best(records)
        baselines = [record.candidate for record in best if record.candidate in greedy]
        if not baselines:
            raise EspalierError(
                f"greedy pruning, which is tried first, is not among the {len(records)} finished trials: its "
                "evaluations failed, and there is nothing to compare with"
            )
        with self._timed("promotion"):
            rises = rise(
                study,
                best,
                baselines,
                unseen,
                section.ladder or (section.proxy,),
                measure=section.measure,
                share=section.promote,
                wanted=max(section.finalists, len(baselines)),
                workers=workers,
                parts=max(1, self.config.workers),
                reporter=self.reporter,
            )
        ranked = order([{record.candidate: record.value for record in best}, *(risen.values for risen in rises)])
        finalists = diverse(ranked, self.prepared.graph.sizes, section.finalists)
        by_candidate = {record.candidate: record for record in best}
        baseline = next(candidate for candidate in ranked if candidate in greedy)
        return _Found(by_candidate[baseline], [by_candidate[c] for c in finalists], len(records), rises)

    def _conclude(
        self,
        dense: Rung,
        rungs: Sequence[Rung],
        spec: EvaluationSpec,
        found: _Found,
        workers: Workers,
    ) -> Result:
        section, greedy = self.config.finetune, found.greedy
        seeds = [self.config.seed + offset for offset in range(section.seeds)]
        judge = self.parts.finetuning(spec)
        with self._timed("finetune"):
            digests = [rung.digest for rung in rungs]
            folder = self.out / "finetuned"
            finalists = [record.candidate for record in found.finalists]
            finalists = halve(judge, finalists, section.halvings, seeds[0], folder, digests, workers, self.reporter)
            records = {record.candidate: record for record in (greedy, *found.finalists)}
            records = {candidate: records[candidate] for candidate in (greedy.candidate, *finalists)}
            runs = finetune_all(judge, list(records), seeds, folder, digests, workers, self.reporter)
        by_candidate = {c: [run for run in runs if run.candidate == c] for c in records}
        winner = max(
            by_candidate, key=lambda c: (np.mean([run.top1 for run in by_candidate[c]]), c == greedy.candidate)
        )
        with self._timed("test"):
            readings = self._read_test(
                spec,
                dense,
                {greedy.candidate: by_candidate[greedy.candidate], winner: by_candidate[winner]},
                workers,
            )
        chosen = max(by_candidate[winner], key=lambda run: run.top1)
        artefact = self.out / "pruned.espalier"
        self._write_artefact(artefact, spec, rungs, chosen)
        after = {c: tuple(readings[c.key, run.seed] for run in by_candidate[c]) for c in (greedy.candidate, winner)}
        result = Result(
            dense=self._dense_outcome(dense, spec, readings["dense", None]),
            greedy=self._outcome(greedy, rungs, readings[greedy.candidate.key, None], after[greedy.candidate]),
            searched=self._outcome(records[winner], rungs, readings[winner.key, None], after[winner]),
            budget=self.prepared.budget.limits,
            binding=self.prepared.budget.binding(self.prepared.graph, winner.widths),
            verdict=verdict(after[winner], after[greedy.candidate], winner == greedy.candidate),
            trials=found.trials,
            promotion=[
                {"proxy": risen.proxy, "candidates": len(risen.values), "agreement": finite(risen.agreement)}
                for risen in found.rises
            ],
            seeds={"study": self.config.seed, "finetune": seeds},
            execution=self.execution.to_json(),
            seconds={stage: round(seconds, 2) for stage, seconds in self.seconds.items()},
            versions=versions(),
            study=self.study_name,
            artefact=str(artefact),
        )
        result.write(self.out / "result.json")
        return result

    def _read_test(
        self,
        spec: EvaluationSpec,
        dense: Rung,
        finetuned: dict[Candidate, list[Finetuned]],
        workers: Workers,
    ) -> dict[tuple[str, int | None], float]:
        """The one reading of the test split: (candidate key or "dense", seed or None for before) -> top-1."""
        networks: list[_Tested] = [(None, None, tensors_of(dense.model))]
        bench = Bench(spec)
        for candidate, runs in finetuned.items():
            cut = bench.recalibrated(candidate)
            before = {name: tensor.clone() for name, tensor in tensors_of(cut).items()}
            networks.append((candidate, None, before))
            networks += [(candidate, run.seed, run.tensors) for run in runs]
        readings: dict[tuple[str, int | None], float] = {}
        shared = TestSpec(spec, self.prepared.splits.test)
        with self.reporter.meter("test split", len(networks), "networks") as meter:
            for (tested, seed, _), reading in workers.map(_read, shared, networks):
                readings["dense" if tested is None else tested.key, seed] = reading
                meter.update(len(readings))
        return readings

    def _write_artefact(self, path: Path, spec: EvaluationSpec, rungs: Sequence[Rung], chosen: Finetuned) -> None:
        """Writes the pruned network, after checking the slimming, and that the file gives it back."""
        graph, candidate = self.prepared.graph, chosen.candidate
        dense = rungs[candidate.rung].model
        keep = spec.keep(candidate)
        slim(dense, graph, keep)  # refuses what does not compute what the masked network does
        example = torch.from_numpy(spec.scoring[:2]).float() / 255
        network = network_of(spec, chosen.tensors, candidate)
        notes = {
            "mean": spec.mean,
            "std": spec.std,
            "image_shape": self.prepared.splits.image_shape,
            "macs": int(graph.macs(candidate.widths)),
            "params": int(graph.params(candidate.widths)),
            "study": self.study_name,
            "seed": chosen.seed,
            "versions": versions(),
        }
        model = self.config.model
        kept, integers = graph.kept_indices(keep), graph.integers_of(keep)
        save(network, path, name=model.name, kwargs=model.kwargs, kept=kept, integers=integers, notes=notes)
        with torch.no_grad():
            torch.testing.assert_close(load(path)(example), network(example), rtol=1e-4, atol=1e-4)

    # -- parts

    def _outcome(self, record: Record, rungs: Sequence[Rung], before: float, after: tuple[float, ...]) -> Outcome:
        graph, widths = self.prepared.graph, record.candidate.widths
        return Outcome(
            macs=int(graph.macs(widths)),
            params=int(graph.params(widths)),
            top1_proxy=record.score.top1,
            top1_before_finetune=before,
            top1_after_finetune=float(np.mean(after)),
            top1_after_finetune_seeds=after,
            widths={group.name: width for group, width in zip(graph.groups, widths, strict=True)},
            strength=rungs[record.candidate.rung].strength,
        )

    def _dense_outcome(self, dense: Rung, spec: EvaluationSpec, test: float) -> Outcome:
        graph = self.prepared.graph
        scoring = data.InMemoryImages(torch.tensor(spec.scoring), torch.tensor(spec.labels))
        return Outcome(
            macs=self.prepared.dense_macs,
            params=int(graph.params(graph.sizes)),
            top1_proxy=read_test(TestSpec(spec, scoring), tensors_of(dense.model)),
            top1_before_finetune=test,
            top1_after_finetune=test,
            top1_after_finetune_seeds=(),
            widths={group.name: group.size for group in graph.groups},
            strength=0.0,
        )

    def _headline(self) -> str:
        prepared = self.prepared
        splits = prepared.splits
        return (
            f"{self.study_name}: {self.config.model.name}, {prepared.dense_macs / 1e6:.2f} M MACs in "
            f"{len(prepared.graph.groups)} groups of {prepared.graph.n_channels} channels; budget "
            f"{prepared.budget}; {len(splits.train)} training, {len(splits.search)} held-out, "
            f"{len(splits.test)} test images"
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _read(spec: TestSpec, job: _Tested) -> float:
    candidate, _, tensors = job
    return read_test(spec, tensors, candidate)


def _best(records: Sequence[Record]) -> list[Record]:
    """By falling value, the first trial of each candidate only."""
    distinct: dict[str, Record] = {}
    for record in records:
        distinct.setdefault(record.candidate.key, record)
    return sorted(distinct.values(), key=lambda record: (-record.value, record.number))


def versions() -> dict[str, str]:
    """Versions of what computes a result."""
    names = ("espalier", "torch", "optuna", "ray", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
