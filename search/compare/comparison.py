"""What a comparison found: rows of a table, answers, the verdict, and all of it as JSON and CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from espalier.search.compare.cells import Measured, unpacked
from espalier.search.compare.rows import Row, row_of
from espalier.search.compare.settings import ComparisonSettings
from espalier.search.compare.summary import text_of
from espalier.search.files.json_files import write_json
from espalier.search.methods import CONTROLS, method_named
from espalier.search.run.latency_budget import TOLERANCE
from espalier.search.run.result import spoiled, words_of
from espalier.search.run.share_of_headroom import words_of_share
from espalier.search.statistics.differences import (
    Answer,
    Paired,
    Sample,
    answer,
    common,
    hypervolume,
    verdict,
)
from espalier.search.statistics.readings import scale_of
from espalier.search.tasks.task import Reading

NOISY = (
    "The machine was not quiet while networks were timed, as other processes ran: latencies are worth less than "
    "their quartiles say."
)
"""Of a comparison that is not `Comparison.quiet`."""


@dataclass(frozen=True)
class Sweep:
    """The hypervolume of a method over all budgets.

    Attributes:
        method: name of it.
        volumes: seed -> hypervolume in percent, of seeds that have every budget.
        difference: to the baseline.
    """

    method: str
    volumes: Sample
    difference: Paired | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.volumes.values())


@dataclass(frozen=True, repr=False)
class Comparison:
    """A comparison, finished as far as it goes; printed, the tables and the verdict.

    Attributes:
        asked: what was to be compared.
        dense: the unpruned network.
        cells: that are finished.
        failures: cell -> why it has no network.
        seconds: per stage, over all runs.
        versions: of what computed it.
        machine: processor and system.
        execution: how candidates were run.
        headrooms: budget -> what `espalier headroom` found in the run folder, where it was asked.
    """

    asked: ComparisonSettings
    dense: Measured
    cells: tuple[Measured, ...]
    failures: Mapping[str, str]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    machine: str
    execution: str
    headrooms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return text_of(self)

    def of(self, budget: str, method: str) -> list[Measured]:
        """The finished cells of a method under a budget, by seed."""
        found = [cell for cell in self.cells if (cell.budget, cell.method) == (budget, method)]
        return sorted(found, key=lambda cell: cell.seed)

    @property
    def quiet(self) -> bool:
        """Whether the machine was, whenever networks were timed."""
        return all(timed.own.quiet for cell in (self.dense, *self.cells) for timed in cell.timings.values())

    @property
    def strengths(self) -> dict[str, list[float]]:
        """Budget in words -> strengths of the rungs that its networks were cut from, rising."""
        found = {
            words: sorted({cell.strength for cell in self.cells if cell.budget == budget and _from_ladder(cell)})
            for budget, words in self.asked.budgets.items()
        }
        return {words: own for words, own in found.items() if own}

    @property
    def answers(self) -> list[Answer]:
        """One per budget."""
        asked, found = self.asked, []
        for budget, words in asked.budgets.items():
            cells = {name: own for name in asked.methods if (own := self.of(budget, name))}
            value = asked.metric.value
            tops = {name: {cell.seed: value(cell.after) for cell in own} for name, own in cells.items()}
            marks = {
                name: {cell.seed: share for cell in own if (share := self._shares(cell)) is not None}
                for name, own in cells.items()
            }
            found.append(answer(words, tops, asked.judged, asked.baseline, marks))
        return found

    def _shares(self, cell: Measured) -> npt.NDArray[Any] | None:
        """What single test examples add to a score: numbers whose mean it is, greater is better."""
        examples = unpacked(cell.right, self.asked.images["test"]) if cell.right else None
        if examples is None or len(examples) < 2:
            return None
        scale = scale_of([Reading(cell.after, examples)])
        return self.asked.metric.value(scale) * examples.astype(np.float64) if scale else None

    @property
    def test_examples(self) -> int:
        """How many test examples are known one by one; 0 where scores are known as a whole."""
        known = [len(share) for cell in self.cells if (share := self._shares(cell)) is not None]
        return min(known, default=0)

    @property
    def score(self) -> str:
        """What networks are compared by, such as ``test top-1 after fine-tuning``."""
        return words_of(self.asked.metric, self.asked.tested, self.asked.epochs > 0)

    @property
    def verdict(self) -> str:
        """Whether the search, or another method where none searches, is worth it, in a sentence or two."""
        asked = self.asked
        if not asked.judged:
            return f"Nothing was compared with {asked.baseline}. Name methods in compare.methods, such as auto."
        subject: Literal["search", "method"] = "search" if asked.searches else "method"
        return verdict(self.answers, asked.baseline, asked.metric, self.score, subject)

    @property
    def shares_of_headroom(self) -> list[str]:
        """What searches took of it, a sentence for each budget for which it is known."""
        found = []
        for (budget, words), judged in zip(self.asked.budgets.items(), self.answers, strict=True):
            ahead = {
                name: own.mean
                for name, own in judged.differences.items()
                if name in self.asked.searches and own is not None and self.asked.baseline == "greedy"
            }
            if (known := self.headrooms.get(budget)) is not None and ahead:
                found.append(f"{words}: {words_of_share(known, ahead, self.asked.metric)}")
        return found

    @property
    def remarks(self) -> list[str]:
        """What else is worth saying, a sentence each."""
        found = self.shares_of_headroom
        for budget, words in self.asked.budgets.items():
            for method in self.asked.searches:
                cells = self.of(budget, method)
                if len(cells) > 1 and all((c.widths, c.rung) == (cells[0].widths, cells[0].rung) for c in cells):
                    found.append(f"{words}: {method} chose the same widths with every seed.")
            found += [f"{words}: {said}" for said in self._too_slow(budget)]
            for method in self.asked.methods:
                runs = [(cell.before, cell.after) for cell in self.of(budget, method) if cell.before is not None]
                if self.asked.epochs and (said := spoiled(f"what {method} chose", runs, self.asked.metric)):
                    found.append(f"{words}: {said}")
        return found

    def _too_slow(self, budget: str) -> Iterator[str]:
        """Methods whose networks take longer than a limit on latency allows: widths are chosen by a model of it."""
        if (limit := self.asked.latency_limits.get(budget)) is None:
            return
        key = self.asked.limited
        for method in self.asked.methods:
            timed = [cell.timings[key] for cell in self.of(budget, method) if key in cell.timings]
            shares = [each.own.milliseconds / each.dense.milliseconds for each in timed]
            if shares and (over := statistics.median(shares) / limit) > 1 + TOLERANCE:
                yield f"what {method} chose takes {over:.2f} times the limit, as measured."

    @property
    def rows(self) -> list[Row]:
        """Of methods that have a finished cell, budget by budget."""
        found = []
        for budget, judged in zip(self.asked.budgets, self.answers, strict=True):
            for method in self.asked.methods:
                if cells := self.of(budget, method):
                    found.append(row_of(cells, judged))
        return found

    @property
    def sweeps(self) -> list[Sweep]:
        """Hypervolumes, where there are several budgets."""
        if len(self.asked.budgets) < 2 or self.asked.metric.floor is None or self.asked.metric.ceiling is None:
            return []
        volumes = {method: self._volumes(method) for method in self.asked.methods}
        baseline = volumes.get(self.asked.baseline, {})
        return [
            Sweep(method, own, None if method == self.asked.baseline else common(own, baseline))
            for method, own in volumes.items()
            if own
        ]

    def _volumes(self, method: str) -> dict[int, float]:
        by_seed: dict[int, list[Measured]] = {}
        for cell in self.cells:
            if cell.method == method:
                by_seed.setdefault(cell.seed, []).append(cell)
        metric = self.asked.metric
        assert metric.floor is not None and metric.ceiling is not None
        floor, ceiling = metric.value(metric.floor), metric.value(metric.ceiling)
        return {
            seed: hypervolume([(cell.kept, metric.value(cell.after)) for cell in cells], floor, ceiling)
            for seed, cells in sorted(by_seed.items())
            if len(cells) == len(self.asked.budgets)
        }

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "verdict": self.verdict,
            "asked": asdict(self.asked),
            "strengths": self.strengths,
            "headroom": self.shares_of_headroom,
            "answers": [asdict(each) for each in self.answers],
            "table": [asdict(row) for row in self.rows],
            "hypervolumes": [asdict(sweep) for sweep in self.sweeps],
            "dense": _without(asdict(self.dense), "right"),
            "cells": [_without(asdict(cell), "right") for cell in self.cells],
            "failures": dict(self.failures),
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "machine": self.machine,
            "execution": self.execution,
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes ``compare.json``, ``table.csv`` and ``cells.csv``."""
        paths = [folder / name for name in ("compare.json", "table.csv", "cells.csv")]
        write_json(paths[0], self.to_json())
        _write_csv(paths[1], [_flat(asdict(row)) for row in self.rows])
        shown = [_without(asdict(cell), "right", "history", "importance") for cell in (self.dense, *self.cells)]
        _write_csv(paths[2], [_flat(row) for row in shown])
        return paths


def _from_ladder(cell: Measured) -> bool:
    method = method_named(cell.method)
    return cell.method not in CONTROLS and (method is None or not method.own_network)


def _without(content: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{path}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
