"""What a storage holds: its studies, and what became of them."""

from __future__ import annotations

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from espalier.search.config import BudgetConfig
from espalier.search.storage import PREFIX


def summaries(storage: BaseStorage) -> list[tuple[str, str, str, str, str, str]]:
    """Of every study that espalier made: name, COMPLETE trials, target, best value, sampler, budget."""
    rows = []
    for summary in optuna.get_all_study_summaries(storage):
        config = summary.user_attrs.get(PREFIX + "config")
        if config is None:
            continue
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max((trial.values[0] for trial in complete), default=None)
        search, wanted = config["search"], BudgetConfig.model_validate(config["budget"]).words()
        value = "-" if best is None else f"{best:.4f} ({search['measure']})"
        rows.append((study.study_name, str(len(complete)), str(search["trials"]), value, search["sampler"], wanted))
    return sorted(rows)
