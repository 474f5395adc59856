"""A trial of the record, rebuilt and scored again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from espalier.errors import StorageError
from espalier.search.cluster.process_settings import computing
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.run.experiment import Experiment
from espalier.search.run.latency_budget import Settled, with_latency
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import config_of, say_what_is_passed_over
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.metric import Metric
from espalier.search.study.keys import LATENCY, PREFIX
from espalier.search.study.ledger import record_of
from espalier.search.study.run_folder import LadderFiles
from espalier.search.study.storage import find_study, open_storage


@dataclass(frozen=True)
class Rescored:
    """What the record says of a trial, and what comes out now.

    Attributes:
        candidate: the trial's.
        macs: per image.
        recorded: the score in the storage.
        now: the score of the network rebuilt.
        measures: that the task knows.
        same: whether they are equal, but for the time taken.
    """

    candidate: Candidate
    macs: int
    recorded: Score
    now: Score
    measures: Mapping[str, Metric]
    same: bool


@computing()
def rescore(
    url: str,
    study: str,
    trial: int,
    out: Path | None = None,
    reporter: Reporter | None = None,
    *,
    trust: str | Sequence[str] = (),
) -> Rescored:
    """Rebuilds the candidate of a finished trial from the storage and the run folder, and scores it again.

    Args:
        url: of the storage.
        study: name of the study.
        trial: its number.
        out: the run folder; by default as in `resume`.
        reporter: told the progress.
        trust: as in `resume`.

    Raises:
        StorageError: there is no such study or no such finished trial.
        StudyMismatch: the run folder holds another ladder than the one that was searched.
        EspalierError: of the kinds of `prepare`.
    """
    config, folder = config_of(url, study, trust=trust, out=out)
    told = reporter or Silent()
    found = find_study(open_storage(url, create=False), study, url)
    assert found is not None
    complete = {t.number: t for t in found.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))}
    if trial not in complete:
        numbers = f"0 to {max(complete)}" if complete else "none"
        raise StorageError(f"study {study!r} has no finished trial {trial}: those that are finished are {numbers}")
    record = record_of(complete[trial])
    say_what_is_passed_over(found.user_attrs, folder, told)
    prepared = prepare(config, takes_latency=True)
    if (settled := found.user_attrs.get(PREFIX + LATENCY)) is not None:
        prepared = with_latency(config, prepared, Settled.from_json(settled))
    experiment = Experiment(config, prepared, folder, told)
    files = LadderFiles(found, folder)
    experiment.train_ladder(files.check)
    files.agree(experiment.dense.digest, experiment.digests)

    def recorded(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        kept: dict[str, Any] | None = found.user_attrs.get(PREFIX + name)
        return kept or make()

    experiment.settle_execution(recorded)
    if config.supernet.scores:
        experiment.choose_spaces(prepared.budgets, recorded)
    evaluator = Evaluator(experiment.spec)
    if record.score.against:
        evaluator(Candidate.from_key(record.score.against))  # whom it lost to
    now = evaluator(record.candidate)
    again = now.to_json()
    same = all(again.get(key) == value for key, value in record.score.to_json().items() if key != "seconds")
    macs = int(experiment.prepared.graph.macs(record.candidate.widths))
    return Rescored(record.candidate, macs, record.score, now, experiment.task.measures, same)
