"""What a comparison found, in a few lines: a table per budget, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from espalier.pruning.graph.budget import text_of_macs
from espalier.search.progress.reporter import plain_text
from espalier.search.spaces.metric import Metric

if TYPE_CHECKING:
    from espalier.search.compare.comparison import Comparison
    from espalier.search.compare.rows import Row


def text_of(found: Comparison) -> str:
    """The summary as plain text."""
    return plain_text(_summary(found))


def _summary(found: Comparison) -> Iterator[Table | str]:
    for budget, words in found.asked.budgets.items():
        yield ""
        yield table_of(found, budget, words)
    if found.asked.supernet:
        yield f"\n{found.asked.supernet}"
    yield f"\n{found.verdict}"
    yield from found.remarks


def table_of(found: Comparison, budget: str, words: str) -> Table:
    """The methods under a budget."""
    metric, (_, macs) = found.asked.metric, text_of_macs(found.dense.macs, found.dense.macs)
    better = "" if metric.greater_is_better else ", less is better"
    table = Table(
        title=f"{words}; {'test ' if found.asked.tested else ''}{metric.heading}{better}",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in (macs, "before", "after", f"against {found.asked.baseline} (95 %)", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        if row.budget == budget:
            table.add_row(*_cells(row, metric, found.dense.macs))
    return table


def _cells(row: Row, metric: Metric, dense: int) -> list[str]:
    """A row of the table, as text; `dense` is the MACs of the dense network."""
    difference = row.difference
    beside = ""
    if difference is not None:
        beside = metric.change(difference.mean)
        if difference.seeds > 1:
            beside += f" ({metric.interval(difference.low, difference.high)})"
    return [
        row.method,
        text_of_macs(row.macs, dense)[0],
        "-" if row.before is None else metric.text(row.before),
        metric.text(row.after) + ("" if row.sd is None else f" ± {metric.text(row.sd)}"),
        beside,
        "" if row.p is None else f"{row.p:.2g}",
    ]
