"""Studies as a whole: copied to another storage, renamed, deleted, written out as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from espalier.errors import StorageError
from espalier.optuna_private import database_of, rename_row, study_id
from espalier.search.progress.reporter import Reporter
from espalier.search.spaces.candidate import Candidate
from espalier.search.study.active_runs import ActiveRun, present
from espalier.search.study.keys import CANDIDATE, PREFIX, RUN, SCORE
from espalier.search.study.lease import LEASE_SECONDS, Watch, leases_of
from espalier.search.study.overview import find, groups_of
from espalier.search.study.storage import redact

_CONFIG, _FINGERPRINT = PREFIX + "config", PREFIX + "fingerprint"


def copy_study(
    source: BaseStorage,
    name: str,
    source_url: str,
    target: BaseStorage,
    target_name: str,
    target_url: str,
    reporter: Reporter,
) -> int:
    """Copies a study: attributes, trials, their numbers and times.

    The config goes last. Without it nothing takes the copy for whole, and what an interrupted copy left can be
    deleted.

    Args:
        source: holds the study.
        name: of the study.
        source_url: for messages.
        target: another storage, or the same.
        target_name: of the copy.
        target_url: for messages.
        reporter: told the progress.

    Returns:
        The number of trials.

    Raises:
        StorageError: a run is at work on the study, or there is one of the new name already.
    """
    study = find(source, name, source_url)
    check_idle(study)
    try:
        copied = target.create_new_study(study.directions, target_name)
    except optuna.exceptions.DuplicatedStudyError:
        raise _taken(target_name, target_url) from None
    for key, value in source.get_study_system_attrs(study_id(study)).items():
        target.set_study_system_attr(copied, key, value)
    attributes = study.user_attrs
    for key, value in attributes.items():
        if key != _CONFIG:
            target.set_study_user_attr(copied, key, value)
    trials = study.get_trials(deepcopy=False)
    with reporter.meter(f"copying {name}", len(trials), "trials") as meter:
        for done, trial in enumerate(trials, start=1):
            target.create_new_trial(copied, template_trial=trial)
            meter.update(done)
    target.set_study_user_attr(copied, _CONFIG, attributes[_CONFIG])
    return len(trials)


def rename_study(storage: BaseStorage, name: str, url: str, new: str, reporter: Reporter) -> None:
    """Gives a study another name: in a database in one step; elsewhere it is copied, and the old one deleted.

    Raises:
        StorageError: as `copy_study`.
    """
    study = find(storage, name, url)
    if (database := database_of(storage)) is not None:
        check_idle(study)
        if not rename_row(database, name, new):
            raise _taken(new, url)
        return
    copied = copy_study(storage, name, url, storage, new, url, reporter)
    if leases_of(study.user_attrs, RUN).keys() - leases_of(find(storage, new, url).user_attrs, RUN).keys() or (
        len(study.get_trials(deepcopy=False)) > copied
    ):
        optuna.delete_study(study_name=new, storage=storage)
        raise StorageError(f"a run began on the study {name!r} while it was copied: it keeps its name; end the run")
    optuna.delete_study(study_name=name, storage=storage)


def _taken(name: str, url: str) -> StorageError:
    return StorageError(
        f"{redact(url)} holds a study {name!r} already, and nothing is overwritten: rename or delete it with "
        "`espalier study`, or choose another name"
    )


def check_deletable(storage: BaseStorage, name: str, url: str) -> int:
    """The number of trials of a study that may be deleted: one of espalier's, or what was left of a copy.

    Raises:
        StorageError: there is none, espalier did not make it, or a run is at work on it.
    """
    for frozen in storage.get_all_studies():
        if frozen.study_name == name and _CONFIG not in frozen.user_attrs and _FINGERPRINT in frozen.user_attrs:
            return storage.get_n_trials(study_id(frozen))
    study = find(storage, name, url)
    check_idle(study)
    return len(study.get_trials(deepcopy=False))


def delete_study(storage: BaseStorage, name: str, url: str) -> None:
    """Deletes a study.

    Raises:
        StorageError: as `check_deletable`.
    """
    check_deletable(storage, name, url)
    optuna.delete_study(study_name=name, storage=storage)


def check_idle(study: optuna.Study) -> None:
    """Refuses a study that a run is at work on.

    Raises:
        StorageError: names the machine and the process.
    """
    if runs := _at_work(study):
        who = ", ".join(f"process {run.pid} on {run.host}" for run in runs)
        raise StorageError(
            f"at work on the study {study.study_name!r}: {who}; end it, or wait a minute if it is dead"
        )


def _at_work(study: optuna.Study) -> list[ActiveRun]:
    """Runs that signed within the last minute; of those that may only have another clock, who is seen to sign."""
    signed = leases_of(study.user_attrs, RUN)
    runs, until = present(signed, Watch()), time.monotonic() + LEASE_SECONDS / 2
    if not runs or any(0 <= run.age <= LEASE_SECONDS for run in runs):
        return runs
    while time.monotonic() < until:
        time.sleep(LEASE_SECONDS / 60)
        entries = leases_of(study.user_attrs, RUN).items()
        renewed = {key: new for key, new in entries if key not in signed or new["renewed"] > signed[key]["renewed"]}
        if runs := present(renewed, Watch()):
            return runs
    return []


# ------------------------------------------------------------------------------------------------- export


def export(study: optuna.Study, kind: str) -> str:
    """A study as text.

    Args:
        study: of espalier's.
        kind: ``csv``, a row per trial; or ``json``, with the study's attributes beside the trials.
    """
    attributes = study.user_attrs
    rows = [_row(trial, attributes) for trial in study.get_trials(deepcopy=False)]
    if kind == "json":
        shown = {key.removeprefix(PREFIX): value for key, value in attributes.items() if key.startswith(PREFIX)}
        content = {"study": study.study_name, "attributes": shown, "trials": rows}
        return json.dumps(_worded(content), indent=2, allow_nan=False) + "\n"
    flat = [dict(_flat(row)) for row in rows]
    columns = dict.fromkeys(column for row in flat for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _row(trial: FrozenTrial, attributes: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values or [],
        "start": trial.datetime_start and trial.datetime_start.isoformat(),
        "complete": trial.datetime_complete and trial.datetime_complete.isoformat(),
        "score": trial.user_attrs.get(SCORE, {}),
    }
    if CANDIDATE in trial.user_attrs:
        candidate = Candidate.from_key(trial.user_attrs[CANDIDATE])
        names = [name for name, _ in groups_of(attributes)] or [str(n) for n in range(len(candidate.widths))]
        row |= {"rung": candidate.rung, "widths": dict(zip(names, candidate.widths, strict=True))}
    row["params"] = trial.params
    others = {key.removeprefix(PREFIX): value for key, value in trial.user_attrs.items()}
    return row | {"attributes": {key: others[key] for key in others if PREFIX + key not in (SCORE, CANDIDATE)}}


def _worded(content: Any) -> Any:
    """Numbers that are not finite as texts, as JSON has no words for them."""
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, dict):
        return {key: _worded(value) for key, value in content.items()}
    return [_worded(value) for value in content] if isinstance(content, list | tuple) else content


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if key == "values":
            names = ("value", "macs")
            yield from zip(names, value or [None], strict=False)
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield f"{key}.{name}", json.dumps(inner) if isinstance(inner, dict | list) else inner
        else:
            yield key, value
