"""What a search, or a comparison, took of the headroom that was found before it in the same run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier.pruning.graph.budget import Budget
from espalier.search.config.loading import Config
from espalier.search.files.json_files import read_json
from espalier.search.spaces.metric import Metric

FILE = "headroom.json"
"""In the run folder."""


def what_it_depends_on(config: Config, rungs: Sequence[str]) -> dict[str, Any]:
    """What headroom depends on: networks, their order of channels, and fine-tuning."""
    tuning = config.finetune.model_dump(mode="json", exclude={"seeds", "selection_seeds", "halvings"})
    made = {"rungs": list(rungs), "criterion": config.search.criterion, "finetune": tuning}
    return made | {key: value for key in ("depth", "bits") if (value := config.budget.model_dump(mode="json")[key])}


def known_headroom(out: Path, budget: Budget, config: Config, rungs: Sequence[str]) -> dict[str, float] | None:
    """What a study of headroom found under a budget, of the same ladder and recipe: expected, low and high."""
    found = read_json(out / FILE) or {}
    if found.get("budget") != str(budget) or found.get("made") != what_it_depends_on(config, rungs):
        return None
    return {key: float(found["headroom"][key]) for key in ("expected", "low", "high")}


def words_of_share(known: Mapping[str, float], ahead: Mapping[str, float], metric: Metric) -> str:
    """What searches took of it.

    Args:
        known: from `known_headroom`.
        ahead: name of a search -> by how much it is better than greedy pruning.
        metric: of both.
    """
    ends = f"{metric.gain(known['low'])} to {metric.gain(known['high'])}"
    said = (
        f"The best policies were to be {metric.gain(known['expected'])} than greedy pruning (95 % interval: {ends})"
    )
    if known["expected"] <= 0:
        return f"{said}: there was nothing to take."
    took = [f"{name} took {100 * own / known['expected']:.0f} %" for name, own in ahead.items()]
    return f"{said}: {', '.join(took)} of it."
