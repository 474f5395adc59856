"""What a storage holds: its studies, how far each is, and who is at work on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from espalier.errors import StorageError
from espalier.search.files.json_files import json_digest
from espalier.search.spaces.candidate import Candidate
from espalier.search.study.active_runs import ActiveRun, present
from espalier.search.study.keys import CANDIDATE, CHECKPOINTS, COMPARISON, EXECUTION, FAILURE, PREFIX, RESULT
from espalier.search.study.lease import Watch
from espalier.search.study.storage import find_study, redact

RECENT = 50
"""Finished trials by which the rate is told."""

State = Literal["running", "interrupted", "finished"]


@dataclass(frozen=True)
class Best:
    """The trial of greatest value.

    Attributes:
        number: of the trial.
        value: by the study's measure, higher is better.
        shares: per channel group, the share of its channels that are kept.
        kept: the share of all prunable channels.
    """

    number: int
    value: float
    shares: tuple[float, ...]
    kept: float


@dataclass(frozen=True)
class Overview:
    """A study at one moment.

    Attributes:
        name: of the study.
        state: whether a run is at work on it, or has brought it to its result.
        complete: finished trials.
        target: trials wanted in all.
        running: trials under way.
        failed: trials that could not be scored.
        best: the best trial, if there is one.
        measure: what trials are compared by.
        metric: what a task of the user's own says of its score, ``MAE, less is better``; else empty.
        sampler: what proposes.
        budget: in words.
        digest: of everything on which the values of trials depend; equal for studies that can be compared. It
            is final once the networks to cut from are trained.
        rate: finished trials a second, by the last ones since the runs at work began; None for fewer than two.
        runs: those that are at work.
        failures: (number, reason) of the last trials that failed, the latest first.
        verdict: of the last result, if there is one.
        artefact: path of the network that it gave, likewise.
    """

    name: str
    state: State
    complete: int
    target: int
    running: int
    failed: int
    best: Best | None
    measure: str
    metric: str
    sampler: str
    budget: str
    digest: str
    rate: float | None
    runs: tuple[ActiveRun, ...]
    failures: tuple[tuple[int, str], ...]
    verdict: str | None
    artefact: str | None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the trials are done, as fast as of late; None where no run is at work or none finished."""
        if self.state != "running" or not self.rate:
            return None
        return max(0, self.target - self.complete) / self.rate


def find(storage: BaseStorage, name: str, url: str) -> optuna.Study:
    """The study of that name.

    Raises:
        StorageError: there is none, or espalier did not make it; names those that there are.
    """
    study = find_study(storage, name, url)
    if study is None:
        names = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none"
        raise StorageError(f"there is no study {name!r} in {redact(url)}; it holds {names}")
    return study


def names_of(storage: BaseStorage) -> list[str]:
    """Names of the studies that espalier made."""
    studies = storage.get_all_studies()
    return sorted(study.study_name for study in studies if PREFIX + "config" in study.user_attrs)


def overviews(storage: BaseStorage) -> list[Overview]:
    """Of every study that espalier made, by name."""
    return [overview(optuna.load_study(study_name=name, storage=storage)) for name in names_of(storage)]


def overview(study: optuna.Study, watch: Watch | None = None) -> Overview:
    """How far a study is; `watch` knows better who lives, for those who look again and again."""
    attributes = study.user_attrs
    config = attributes[PREFIX + "config"]
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state for trial in trials)
    complete, target = counts[TrialState.COMPLETE], int(config["search"]["trials"])
    result = attributes.get(PREFIX + RESULT)
    runs = tuple(present(attributes, watch))
    state: State = "running" if runs else "interrupted"
    compared = PREFIX + COMPARISON in attributes and complete >= target
    if not runs and (compared or (result is not None and result["trials"] >= target)):
        state = "finished"
    failed = [trial for trial in trials if trial.state is TrialState.FAIL and FAILURE in trial.user_attrs]
    return Overview(
        name=study.study_name,
        state=state,
        complete=complete,
        target=target,
        running=counts[TrialState.RUNNING],
        failed=counts[TrialState.FAIL],
        best=_best(trials, attributes),
        measure=config["search"]["measure"],
        metric=attributes.get(PREFIX + "fingerprint", {}).get("task.metric", ""),
        sampler=config["search"]["sampler"],
        budget=budget_in_words(config["budget"]),
        digest=digest_of(attributes),
        rate=_rate(trials, min((run.since for run in runs), default=0.0)),
        runs=runs,
        failures=tuple((trial.number, trial.user_attrs[FAILURE]) for trial in failed[:-4:-1]),
        verdict=None if result is None else result["verdict"],
        artefact=None if result is None else result.get("artefact"),
    )


def budget_in_words(budget: Mapping[str, Any]) -> str:
    """The limits of a config's budget, for people."""
    kept = {"keep": "MACs", "keep_params": "parameters", "keep_memory": "activation memory", "latency": "latency"}
    kept |= {"keep_bit_operations": "bit operations", "keep_weight_bytes": "bytes of weights"}
    most = {
        "max_macs": "MACs",
        "max_params": "parameters",
        "max_memory": "bytes of activations",
        "max_latency_ms": "ms of latency",
        "max_bit_operations": "bit operations",
        "max_weight_bytes": "bytes of weights",
    }
    given = [f"{_fractions(keep)} of the {what}" for key, what in kept.items() if (keep := budget.get(key))]
    given += [f"{limit:,} {what}" for key, what in most.items() if (limit := budget.get(key))]
    return " and ".join(given)


def _fractions(kept: float | Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in (kept if isinstance(kept, Sequence) else (kept,)))


def digest_of(attributes: dict[str, Any]) -> str:
    """Eight hex digits that name everything on which the values of trials depend, as far as it is known.

    Settings, data and weights are known from the start; how candidates are run, and the networks that they are cut
    from, once these are trained.
    """
    execution = attributes.get(PREFIX + EXECUTION, {})
    known = {
        "fingerprint": attributes.get(PREFIX + "fingerprint", {}),
        "execution": {key: execution.get(key) for key in ("batch_size", "memory_format", "precision")},
        "checkpoints": attributes.get(PREFIX + CHECKPOINTS),
    }
    return json_digest(known, 8)


def groups_of(attributes: dict[str, Any]) -> list[tuple[str, int]]:
    """Name and size of the network's channel groups."""
    network = attributes.get(PREFIX + "network", {"groups": []})
    return [(name, size) for name, size in network["groups"]]


def _best(trials: Sequence[FrozenTrial], attributes: dict[str, Any]) -> Best | None:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.values]
    if not complete:
        return None
    best = max(complete, key=lambda trial: (trial.values[0], -trial.number))
    sizes = [size for _, size in groups_of(attributes)]
    widths = Candidate.from_key(best.user_attrs[CANDIDATE]).widths if CANDIDATE in best.user_attrs else ()
    shares = tuple(width / size for width, size in zip(widths, sizes, strict=False))
    return Best(best.number, best.values[0], shares, sum(widths) / sum(sizes) if shares else 1.0)


def _rate(trials: Sequence[FrozenTrial], since: float) -> float | None:
    moments = [trial.datetime_complete for trial in trials if trial.state is TrialState.COMPLETE]
    finished = sorted(moment.timestamp() for moment in moments if moment is not None)
    recent = [moment for moment in finished if moment >= since][-RECENT:]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    return (len(recent) - 1) / (recent[-1] - recent[0])
