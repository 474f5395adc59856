"""The page of a comparison: ``report.html``, one file, and its figures as PNG."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from espalier.report.figures import Drawn, Painter
from espalier.report.svg import inline
from espalier.search.compare.comparison import NOISY, Comparison
from espalier.search.compare.rows import Row, TimedRow, timed_rows, words_of_method
from espalier.search.methods import DENSE
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import Paired

if TYPE_CHECKING:
    import jinja2

    from espalier.search.compare.protocol import Compared

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Line:
    """A row of the page's table, as text.

    Attributes:
        method: name.
        cells: one per column of `COLUMNS`.
        baseline: whether this is what the others are measured by.
    """

    method: str
    cells: tuple[str, ...]
    baseline: bool


FINDING, MACS = "finding", "MACs"
COLUMNS = (
    MACS,
    "before",
    "after",
    "difference (95 % interval)",
    "p",
    FINDING,
    "parameters",
    "latency, ms",
    "evaluations",
    "search, s",
    "fine-tuning, s",
)


_VOLUME = Metric("hypervolume", "hypervolume", "%")

TIMINGS = ("runtime", "batch", "ms", "quartiles", "examples/s", "dense takes")
"""Columns of the table of latencies, behind the method."""


def write_report(compared: Compared, path: Path, reporter: Reporter | None = None) -> Path:
    """Writes the page, and its figures into ``figures/`` beside it.

    Args:
        compared: the comparison.
        path: of the page.
        reporter: told the progress.

    Returns:
        The page's path.
    """
    comparison = compared.comparison
    painter = Painter(compared, path.parent / "figures")
    figures = painter.all(reporter or Silent())
    page = (
        environment()
        .get_template(TEMPLATE)
        .render(
            comparison=comparison,
            asked=comparison.asked,
            answers=comparison.answers,
            columns=COLUMNS,
            finding=FINDING,
            tables={words: _lines(compared, budget) for budget, words in comparison.asked.budgets.items()},
            timing_columns=TIMINGS,
            timings={
                words: lines
                for budget, words in comparison.asked.budgets.items()
                if (lines := timing_lines(comparison, budget))
            },
            noisy="" if comparison.quiet else NOISY,
            sweeps=[(s.method, f"{s.mean:.2f}", beside(s.difference, _VOLUME)) for s in comparison.sweeps],
            words={method: words_of_method(method) for method in comparison.asked.methods},
            dense=_dense(compared),
            missing=comparison.asked.expected - len(comparison.cells),
            seconds={stage: _time(spent) for stage, spent in comparison.seconds.items()},
            total=_time(sum(comparison.seconds.values())),
            figures=figures,
            networks=_networks(compared, painter),
        )
    )
    path.write_text(page, encoding="utf-8")
    return path


def environment() -> jinja2.Environment:
    """Of the templates of this package."""
    import jinja2

    folder = resources.files("espalier.report")
    loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    made = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    made.filters["zip"] = zip
    return made


def _lines(compared: Compared, budget: str) -> list[Line]:
    asked = compared.comparison.asked
    return [_line(row, asked.baseline, asked.metric) for row in compared.comparison.rows if row.budget == budget]


def _line(row: Row, baseline: str, metric: Metric) -> Line:
    values = {
        MACS: f"{row.macs:,.0f}",
        "before": "\N{EN DASH}" if row.before is None else metric.text(row.before),
        "after": metric.text(row.after) + ("" if row.sd is None else f" ± {metric.text(row.sd)}"),
        "difference (95 % interval)": beside(row.difference, metric),
        "p": "" if row.p is None else f"{row.p:.2g}",
        FINDING: "baseline" if row.method == baseline else row.finding or "no pair",
        "parameters": f"{row.params:,.0f}",
        "latency, ms": _latency(row.latency, row.layout, f"{row.faster:.1f}\N{MULTIPLICATION SIGN}"),
        "evaluations": f"{row.evaluations:.0f}",
        "search, s": f"{row.search_seconds:.1f}",
        "fine-tuning, s": f"{row.finetune_seconds:.1f}",
    }
    return Line(row.method, tuple(values[column] for column in COLUMNS), row.method == baseline)


def timing_lines(comparison: Comparison, budget: str) -> list[tuple[str, list[str]]]:
    """Of the dense network and every method under a budget, a line for each runtime and batch size, as text."""
    rows: dict[str, Mapping[str, TimedRow]] = {DENSE: timed_rows([comparison.dense])}
    rows |= {row.method: row.timings for row in comparison.rows if row.budget == budget}
    if not any(timings for method, timings in rows.items() if method != DENSE):
        return []
    return [(method, _timing(timed)) for method, timings in rows.items() for timed in timings.values()]


def _timing(timed: TimedRow) -> list[str]:
    return [
        timed.runtime,
        str(timed.batch),
        f"{timed.milliseconds:.3g}",
        f"{timed.low:.3g} to {timed.high:.3g}",
        f"{timed.throughput:,.0f}",
        f"{timed.faster:.2f}\N{MULTIPLICATION SIGN}",
    ]


def beside(difference: Paired | None, metric: Metric) -> str:
    """A difference and its interval, as text; a minus is one."""
    if difference is None:
        return ""
    interval = f" ({metric.interval(difference.low, difference.high)})" if difference.seeds > 1 else ""
    return f"{metric.change(difference.mean)}{interval}".replace("-", "\N{MINUS SIGN}")


def _dense(compared: Compared) -> Mapping[str, str]:
    dense, metric = compared.comparison.dense, compared.comparison.asked.metric
    return {
        "MACs": f"{dense.macs:,}",
        "parameters": f"{dense.params:,}",
        f"{'test ' if compared.comparison.asked.tested else ''}{metric.title}": (
            f"{metric.text(dense.after)} {metric.unit}".rstrip()
        ),
        "latency in ms": _latency(dense.latency, dense.layout),
    }


def _networks(compared: Compared, painter: Painter) -> list[Drawn]:
    """The network graph with what each of two methods keeps of it under the tightest budget."""
    from espalier.drawing.network import draw
    from espalier.inspection.document import inspection

    comparison, graph = compared.comparison, compared.prepared.graph
    drawn = []
    for method in dict.fromkeys((comparison.asked.baseline, painter.leader)):
        cells = comparison.of(painter.tightest, method) if method else []
        if not cells or method == DENSE or method is None:
            continue
        widths = np.array([cells[0].widths[group.name] for group in graph.groups])
        found = inspection(graph, comparison.asked.network, widths=widths)
        draw(found, painter.folder / f"network-{method}.png")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.svg"
            draw(found, file)
            text = file.read_text(encoding="utf-8")
        title = f"{comparison.asked.network} as {method} cuts it at {painter.budgets[painter.tightest]}"
        caption = (
            "Boxes are operations, as large as their share of the MACs; the pale part is what is gone. Colours are "
            f"groups of coupled channels (seed {cells[0].seed})."
        )
        themed = {"#222222": "var(--ink)", "#ffffff": "var(--panel)", "#8a8a8a": "var(--faint)"}
        drawn.append(Drawn(f"network-{method}", title, caption, inline(text, f"network-{method}", title, themed)))
    return drawn


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _latency(milliseconds: float, layout: str, beside: str = "") -> str:
    """Milliseconds, and in brackets what stands beside them and the memory format, where it is known."""
    said = ", ".join(part for part in (beside, layout.replace("_", " ")) if part)
    return f"{milliseconds:.2f}" + (f" ({said})" if said else "")
