"""Rows of a comparison's table: a method under a budget, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from espalier.search.compare.cells import Measured
from espalier.search.methods import CONTROLS, method_named
from espalier.search.statistics.differences import Answer, Finding, Paired


@dataclass(frozen=True)
class TimedRow:
    """How long the networks of a method take in one runtime with one batch size: medians over seeds.

    Attributes:
        runtime: its name.
        batch: examples of a pass.
        milliseconds: of a pass, median of the repeats.
        low: first quartile.
        high: third quartile.
        throughput: examples per second.
        faster: times that the dense network takes.
        quiet: whether the machine was, for every seed.
    """

    runtime: str
    batch: int
    milliseconds: float
    low: float
    high: float
    throughput: float
    faster: float
    quiet: bool


@dataclass(frozen=True)
class Row:
    """A method under a budget, over its seeds.

    Attributes:
        budget: name of it.
        method: name of it.
        words: what it does.
        seeds: finished cells.
        macs: per image, mean.
        kept: share of the dense network's MACs, mean.
        params: number of parameters, mean.
        before: test score before fine-tuning, mean; None for networks that are trained from new weights.
        after: test score after fine-tuning, mean.
        sd: its standard deviation; None for one seed.
        difference: to the baseline, of the test score after fine-tuning; greater is better.
        p: of it, corrected for the number of methods that are judged where it is one of them.
        finding: what that says.
        latency: milliseconds of a pass, median over seeds.
        layout: memory format that was fastest; both where seeds differ.
        faster: times that the dense network takes, median over seeds.
        evaluations: candidates scored, mean.
        search_seconds: of the processor, mean.
        finetune_seconds: likewise.
        timings: key -> latency in each runtime with each batch size; empty in results that are older.
    """

    budget: str
    method: str
    words: str
    seeds: int
    macs: float
    kept: float
    params: float
    before: float | None
    after: float
    sd: float | None
    difference: Paired | None
    p: float | None
    finding: Finding | None
    latency: float
    layout: str
    faster: float
    evaluations: float
    search_seconds: float
    finetune_seconds: float
    timings: Mapping[str, TimedRow]


def row_of(cells: Sequence[Measured], judged: Answer) -> Row:
    """The row of cells of one method under one budget.

    Args:
        cells: one per seed.
        judged: what is said of the methods under that budget.
    """
    method = cells[0].method
    after = [cell.after for cell in cells]
    before = [cell.before for cell in cells if cell.before is not None]
    difference = judged.differences.get(method)
    p = judged.p_values.get(method, None if difference is None else difference.p)
    return Row(
        cells[0].budget,
        method,
        words_of_method(method),
        len(cells),
        statistics.fmean(cell.macs for cell in cells),
        statistics.fmean(cell.kept for cell in cells),
        statistics.fmean(cell.params for cell in cells),
        statistics.fmean(before) if before else None,
        statistics.fmean(after),
        statistics.stdev(after) if len(after) > 1 else None,
        difference,
        p,
        judged.findings.get(method),
        statistics.median(cell.latency for cell in cells),
        " or ".join(sorted({cell.layout for cell in cells})),
        statistics.median(cell.dense_latency / cell.latency for cell in cells),
        statistics.fmean(cell.evaluations for cell in cells),
        statistics.fmean(cell.search_seconds for cell in cells),
        statistics.fmean(cell.finetune_seconds for cell in cells),
        timed_rows(cells),
    )


def timed_rows(cells: Sequence[Measured]) -> dict[str, TimedRow]:
    """Key -> how long networks take, over the seeds that were timed so."""
    found: dict[str, TimedRow] = {}
    for key in dict.fromkeys(key for cell in cells for key in cell.timings):
        timed = [cell.timings[key] for cell in cells if key in cell.timings]
        own = [each.own for each in timed]
        found[key] = TimedRow(
            own[0].runtime,
            own[0].batch,
            statistics.median(each.milliseconds for each in own),
            statistics.median(each.low for each in own),
            statistics.median(each.high for each in own),
            statistics.median(each.throughput for each in own),
            statistics.median(each.dense.milliseconds / each.own.milliseconds for each in timed),
            all(each.quiet for each in own),
        )
    return found


def words_of_method(method: str) -> str:
    """What a method does, for people."""
    found = method_named(method)
    return CONTROLS[method] if found is None else found.words
