"""What a search found, in a few lines: a table per budget, the verdict, and what the columns are."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from espalier.pruning.graph.budget import UNITS, Budget, text_of_macs
from espalier.search.progress.reporter import plain_text
from espalier.search.run.result import spoiled

if TYPE_CHECKING:
    from espalier.search.run.result import Outcome, Result
    from espalier.search.spaces.metric import Metric


def text_of(result: Result) -> str:
    """The summary as plain text."""
    return plain_text(summary(result))


def summary(result: Result) -> Iterator[Table | str]:
    """What is printed, one below the other."""
    for each in (*result.others, result):
        yield f"\nBudget: {_limits(each)}\n"
        yield _table(each)
        yield f"\n{each.verdict}"
        if each.remark:
            yield f"But {each.remark}."
        if each.headroom:
            yield each.headroom
        if each.finetuned:
            yield from _spoiled(each)
        if each.greedy.bits or each.searched.bits:
            yield _bits(each)
        if each.latency is not None:
            yield _latency(each.latency)
    shared = f" {result.supernet}" if result.supernet else ""
    yield f"\n{_legend(result)} MACs: multiply-adds of one example. {result.trials} trials.{shared}\n"


def _spoiled(result: Result) -> list[str]:
    """Which of the networks fine-tuning made worse."""
    found = []
    for name, outcome in {"the greedy network": result.greedy, "the searched network": result.searched}.items():
        runs = [(outcome.before, after) for after in outcome.after_seeds]
        found += [said] if (said := spoiled(name, runs, result.metric)) else []
    return found


def _legend(result: Result) -> str:
    """What the columns of numbers are."""
    unit = {"%": " in percent", "": ""}.get(result.metric.unit, f" in {result.metric.unit}")
    title = result.metric.title
    what = (title[0].upper() + title[1:] if title.split()[0].islower() else title) + unit  # mAP stays mAP
    if not result.metric.greater_is_better:
        what += ", less is better"
    before = " before and after fine-tuning" if result.finetuned else ""
    count = len(result.seeds["finetune"])
    runs = f"{count} seeds, mean ± sd" if count > 1 else "1 seed"
    seeds = f" ({runs}; dense is not fine-tuned)" if before else ""
    if result.tested:
        split = f"as cut, and after fine-tuning{seeds}" if before else "as cut"
        return (
            f"{what}. Held-out: as the search scored them, repaired by its proxy. Test: on the test split, {split}."
        )
    return f"{what}, by the score that the search chose by, as no other was given{before and ';' + before}{seeds}."


def _bits(result: Result) -> str:
    """How many layers compute in how many bits; the others in float32."""

    def counted(outcome: Outcome) -> str:
        counts = sorted(Counter(outcome.bits.values()).items())
        return " and ".join(f"{count} in {bits} bits" for bits, count in counts) or "none in fewer bits"

    return f"Layers: greedy {counted(result.greedy)}, searched {counted(result.searched)}."


def _latency(found: Mapping[str, Any]) -> str:
    """What the networks take on the device."""
    how = "measured_ms" if "measured_ms" in found["dense"] else "modelled_ms"
    times = ", ".join(f"{name} {found[name][how]:.3g}" for name in ("dense", "greedy", "searched"))
    return f"Latency, {how.removesuffix('_ms')} in ms on {found['device']}: {times}; limit {found['limit_ms']:.3g}."


def _table(result: Result) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    metric = result.metric
    last = "test" if result.tested else metric.title
    lasts = (f"{last} before", f"{last} after") if result.finetuned else (last,)
    dense = result.dense.macs
    _, macs = text_of_macs(dense, dense)
    for title in (macs, "kept", "params", "strength", "held-out", *lasts):
        table.add_column(title, justify="right", no_wrap=True)
    for name in ("dense", "greedy", "searched"):
        outcome: Outcome = getattr(result, name)
        finals = [metric.text(outcome.before)] + ([_with_spread(outcome, metric)] if result.finetuned else [])
        table.add_row(
            name,
            text_of_macs(outcome.macs, dense)[0],
            f"{outcome.macs / dense:.1%}",
            f"{outcome.params:,}",
            f"{outcome.strength:g}",
            "-" if math.isnan(outcome.held_out) else metric.text(outcome.held_out),
            *finals,
        )
    return table


def _limits(result: Result) -> str:
    several = f", of which the {UNITS[result.binding]} bind" if len(result.budget) > 1 else ""
    return f"{Budget(**result.budget)}{several}"


def _with_spread(outcome: Outcome, metric: Metric) -> str:
    seeds = outcome.after_seeds
    if len(seeds) < 2:
        return metric.text(outcome.after)
    spread = statistics.stdev(seeds)
    return f"{metric.text(outcome.after)} ± {metric.text(spread) if metric.unit == '%' else format(spread, '.1g')}"
