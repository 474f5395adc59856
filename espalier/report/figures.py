"""The figures of a comparison, small enough for a phone and legible on a wall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from espalier.report.svg import SETTINGS, of_figure
from espalier.search.methods import CONTROLS, DENSE
from espalier.search.progress.reporter import Reporter
from espalier.search.spaces.space import RUNG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from espalier.search.compare.protocol import Compared

INK, FAINT, BASELINE = "#1f2328", "#d1d5da", "#59636e"
SERIES = (
    "#0a62b5",
    "#c2362b",
    "#1b7f3b",
    "#8250bf",
    "#b35a00",
    "#0b7b85",
    "#bf3989",
    "#776d00",
    "#7d4e2d",
)
"""Of methods, in turn; each has a lighter partner in the page's style sheet."""
MARKERS = "osD^vPX*<"
WIDTH = 4.8
"""Inches: on a phone a point is about a pixel."""
MOST_IMPORTANT = 8
"""Parameters that are shown."""


@dataclass(frozen=True)
class Drawn:
    """A figure on the page.

    Attributes:
        name: of its PNG file, and of its place.
        title: what it shows.
        caption: what to look for.
        svg: the picture.
        wide: whether it takes the page's whole width.
    """

    name: str
    title: str
    caption: str
    svg: str
    wide: bool = False


def colours() -> dict[str, str]:
    """Colour -> the variable of the page that stands for it."""
    named = {INK: "var(--ink)", FAINT: "var(--faint)", BASELINE: "var(--baseline)"}
    return named | {colour: f"var(--s{number})" for number, colour in enumerate(SERIES)}


class Painter:
    """Draws the figures of a comparison, and keeps each as PNG.

    Args:
        compared: the comparison.
        folder: of the PNG files.
    """

    def __init__(self, compared: Compared, folder: Path) -> None:
        self.compared, self.comparison, self.folder = compared, compared.comparison, folder
        folder.mkdir(parents=True, exist_ok=True)
        asked = self.comparison.asked
        others = [name for name in asked.methods if name not in (asked.baseline, DENSE)]
        self.styles = {asked.baseline: (BASELINE, "o")}
        for number, name in enumerate(others):
            self.styles[name] = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        self.budgets = {b: w for b, w in asked.budgets.items() if any(c.budget == b for c in self.comparison.cells)}

    def all(self, reporter: Reporter) -> list[Drawn]:
        """Every figure that there is something to show on; the reporter is told the progress."""
        wanted: list[Callable[[], Drawn | None]] = [self.differences, self.before_and_after]
        wanted += [self.fronts] if len(self.budgets) > 1 else []
        wanted += [self.history] if self.comparison.asked.searches else []
        wanted += [self.widths, self.importance, self.energies]
        found = []
        with reporter.meter("drawing the report", len(wanted), "figures") as meter:
            for done, draw in enumerate(wanted, 1):
                found.append(draw())
                meter.update(done)
        return [drawn for drawn in found if drawn is not None]

    @property
    def tightest(self) -> str:
        """Name of the last budget that has cells."""
        return list(self.budgets)[-1]

    @property
    def leader(self) -> str | None:
        """The search that the verdict is about under the tightest budget; else the first that has a cell."""
        names = list(self.comparison.asked.budgets)
        answer = self.comparison.answers[names.index(self.tightest)]
        searched = [name for name in self.comparison.asked.searches if self.comparison.of(self.tightest, name)]
        return answer.leader or next(iter(searched), None)

    # -- figures

    def differences(self) -> Drawn | None:
        """Mean differences to the baseline with their intervals, and the seeds behind them."""
        asked, panels = self.comparison.asked, []
        for budget, words in self.budgets.items():
            rows = [row for row in self.comparison.rows if row.budget == budget and row.difference is not None]
            if rows:
                panels.append((words, rows))
        if not panels:
            return None
        heights = [0.55 + 0.32 * len(rows) for _, rows in panels]
        with _figure(heights) as (figure, axes):
            for axis, (words, rows) in zip(axes, panels, strict=True):
                axis.axvline(0, color=BASELINE, linewidth=1, linestyle="--")
                for place, row in enumerate(reversed(rows)):
                    colour, marker = self.styles[row.method]
                    assert row.difference is not None
                    seeds = self._differences(row.budget, row.method)
                    style: dict[str, Any] = {"fillstyle": "none", "markersize": 3, "markeredgewidth": 0.8}
                    axis.plot(seeds, [place - 0.28] * len(seeds), "o", color=colour, **style)
                    ends = [asked.metric.value(end) for end in (row.difference.low, row.difference.high)]
                    axis.plot(ends, [place, place], color=colour, linewidth=1.8)
                    axis.plot(asked.metric.value(row.difference.mean), place, marker, color=colour, markersize=5.5)
                axis.set_yticks(range(len(rows)), [row.method for row in reversed(rows)])
                axis.set_ylim(-0.6, len(rows) - 0.4)
                axis.set_title(words)
            counted = asked.metric.differences(f"{asked.reading}{asked.metric.title}")
            axes[-1].set_xlabel(f"{counted} against {asked.baseline}, after fine-tuning")
            return self._drawn(
                figure,
                "differences",
                f"Differences to {asked.baseline}",
                "Means over seeds with their 95 % intervals; small rings are seeds. What crosses the "
                f"dashed line is not distinguishable from {asked.baseline}.",
            )

    def before_and_after(self) -> Drawn:
        """Test scores before and after fine-tuning."""
        panels = []
        for budget, words in self.budgets.items():
            panels.append((words, [row for row in self.comparison.rows if row.budget == budget]))
        heights = [0.55 + 0.27 * len(rows) for _, rows in panels]
        with _figure(heights) as (figure, axes):
            for axis, (words, rows) in zip(axes, panels, strict=True):
                axis.axvline(self.comparison.dense.after, color=FAINT, linewidth=1.5)
                for place, row in enumerate(reversed(rows)):
                    colour, marker = self.styles[row.method]
                    if row.before is not None:
                        axis.plot([row.before, row.after], [place, place], color=colour, linewidth=1, alpha=0.6)
                        axis.plot(row.before, place, marker, color=colour, markersize=5, fillstyle="none")
                    axis.plot(row.after, place, marker, color=colour, markersize=5.5)
                axis.set_yticks(range(len(rows)), [row.method for row in reversed(rows)])
                axis.set_ylim(-0.6, len(rows) - 0.4)
                axis.set_title(words)
            axes[-1].set_xlabel(f"{self.comparison.asked.reading}{self.comparison.asked.metric.heading}")
            return self._drawn(
                figure,
                "before-and-after",
                "Before and after fine-tuning",
                "Hollow: as cut, batch norms recalibrated if there are any. Filled: fine-tuned. The vertical line "
                "is dense.",
            )

    def fronts(self) -> Drawn:
        """Accuracy against MACs, a line for each method."""
        with _figure([3.2]) as (figure, (axis,)):
            axis.axhline(self.comparison.dense.after, color=FAINT, linewidth=1.5)
            for method, (colour, marker) in self.styles.items():
                points = []
                for budget in self.budgets:
                    if cells := self.comparison.of(budget, method):
                        tops = [cell.after for cell in cells]
                        spread = stdev(tops) if len(tops) > 1 else 0.0
                        points.append((fmean(cell.macs for cell in cells) / 1e6, fmean(tops), spread))
                if points:
                    macs, means, spreads = zip(*sorted(points), strict=True)
                    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "capsize": 2}
                    axis.errorbar(macs, means, spreads, label=method, linewidth=1.3, **style)
            axis.set_xlabel("MACs of an example, millions")
            axis.set_ylabel(
                f"{self.comparison.asked.reading}{self.comparison.asked.metric.heading} after fine-tuning"
            )
            _legend(axis)
            return self._drawn(
                figure,
                "fronts",
                f"{self.comparison.asked.metric.title} against MACs",
                "Means over seeds and their standard deviations. The horizontal line is the dense network.",
            )

    def history(self) -> Drawn | None:
        """Best so far against evaluations."""
        proxy, measure = self.comparison.asked.proxy, self.comparison.asked.measure
        panels = []
        for budget, words in self.budgets.items():
            curves = {}
            for method in self.comparison.asked.searches:
                found = [cell.history for cell in self.comparison.of(budget, method) if cell.history]
                if found:
                    length = min(map(len, found))
                    together = np.array([history[:length] for history in found])  # (seeds, trials)
                    best = np.maximum.accumulate(together, axis=1)
                    best[~np.isfinite(best)] = np.nan  # not drawn
                    curves[method] = best if measure.greater_is_better else -best
            if curves:
                panels.append((budget, words, curves))
        if not panels:
            return None
        with _figure([2.5] * len(panels)) as (figure, axes):
            for axis, (budget, words, curves) in zip(axes, panels, strict=True):
                baseline = self.comparison.of(budget, self.comparison.asked.baseline)
                if baseline and not baseline[0].history:
                    level = measure.value(baseline[0].value)
                    axis.axhline(level, color=BASELINE, linestyle="--", label=self.comparison.asked.baseline)
                for method, best in curves.items():
                    colour, _ = self.styles[method]
                    trials = np.arange(1, best.shape[1] + 1)
                    axis.plot(trials, best.mean(0), color=colour, linewidth=1.6, label=method)
                    axis.fill_between(trials, best.min(0), best.max(0), color=colour, alpha=0.15, linewidth=0)
                axis.set_title(words)
                axis.set_ylabel("best so far")
            axes[-1].set_xlabel(f"evaluations; the score is {proxy}")
            _legend(axes[-1])
            better = "higher" if measure.greater_is_better else "lower"
            return self._drawn(
                figure,
                "history",
                "How the searches went",
                f"Best score on held-out data so far, {better} is better: mean over seeds, and from the worst to "
                "the best of them. The dashed line is the baseline by the same score.",
            )

    def widths(self) -> Drawn:
        """Share of its channels that each group keeps."""
        groups = self.compared.prepared.graph.groups
        shown = self._shown(6)
        with _figure([0.9 + 0.24 * len(groups) + 0.2 * len(shown) / 2]) as (figure, (axis,)):
            for number, method in enumerate(shown):
                cells, (colour, marker) = self.comparison.of(self.tightest, method), self.styles[method]
                kept = [100 * fmean(c.widths[group.name] for c in cells) / group.size for group in groups]
                places = np.arange(len(groups))[::-1] + 0.3 * (number / max(1, len(shown) - 1) - 0.5)
                axis.plot(kept, places, marker, color=colour, label=method, markersize=4.5, alpha=0.9)
            axis.set_yticks(range(len(groups)), [group.name for group in reversed(groups)])
            axis.set_ylim(-0.7, len(groups) - 0.3)
            axis.set_xlim(0, 103)
            axis.set_xlabel("channels kept, percent")
            _legend(axis)
            return self._drawn(
                figure,
                "widths",
                f"Widths at {self.budgets[self.tightest]}",
                "Of every channel group, in the order of the network, the share of its channels that is kept; mean "
                "over seeds.",
            )

    def energies(self) -> Drawn:
        """Sorted energies of every group, with the cuts of the baseline and of the leading search."""
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

        graph, energies = self.compared.prepared.graph, self.compared.energies
        cuts = [(m, cells[0]) for m in self._pair() if (cells := self.comparison.of(self.tightest, m))]
        columns = 3
        rows = -(-len(graph.groups) // columns)
        with _figure([1.15] * rows, columns) as (figure, axes):
            for axis, group, first, last in zip(axes, graph.groups, graph.offsets, graph.offsets[1:], strict=False):
                for method, cell in cuts:
                    values = np.sort(energies[cell.rung][first:last])[::-1]
                    floor = max(float(values.max()) * 1e-9, 1e-30)
                    colour, dashed = self.styles[method][0], method == self.comparison.asked.baseline
                    style: Any = {"color": colour, "linestyle": "--" if dashed else "-", "label": method}
                    axis.plot(np.arange(1, len(values) + 1), np.maximum(values, floor), linewidth=1.2, **style)
                    axis.axvline(cell.widths[group.name] + 0.5, linewidth=1.4, **style)
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(numticks=4))
                axis.yaxis.set_minor_formatter(NullFormatter())
                low, high = axis.dataLim.intervaly
                if low < high < 10 * low:  # there may be no power of ten between them
                    ends = {f"{end:.2g}": end for end in (low, high)}
                    axis.set_yticks(list(ends.values()), list(ends))
                    axis.yaxis.set_minor_locator(NullLocator())
                axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                axis.set_title(group.name, fontsize=7)
                axis.tick_params(labelsize=6)
            for axis in axes[len(graph.groups) :]:
                axis.axis("off")
            handles, labels = axes[0].get_legend_handles_labels()
            named = dict(zip(labels, handles, strict=True))
            figure.legend(
                named.values(), named.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
            )
            return self._drawn(
                figure,
                "energies",
                f"Energies, and where they are cut at {self.budgets[self.tightest]}",
                "Channels of each group by falling energy; those left of a vertical line are kept (first seed). A "
                "search may cut at another height in every group.",
                wide=True,
            )

    def importance(self) -> Drawn | None:
        """Which numbers of the vector decide what is good, the strength among them where it is searched."""
        if self.leader is None:
            return None
        found = [cell.importance for cell in self.comparison.of(self.tightest, self.leader) if cell.importance]
        if not found:
            return None
        means = {name: fmean(each.get(name, 0.0) for each in found) for name in found[0]}
        order = sorted(means, key=lambda name: -means[name])
        shown = order[:MOST_IMPORTANT]
        if RUNG in means and RUNG not in shown:
            shown[-1] = RUNG
        with _figure([0.6 + 0.26 * len(shown)]) as (figure, (axis,)):
            names = ["strength" if name == RUNG else name for name in shown][::-1]
            values = [100 * means[name] for name in shown][::-1]
            shades = [self.styles[self.leader][0] if name == "strength" else BASELINE for name in names]
            axis.barh(names, values, color=shades, height=0.6)
            axis.set_xlabel("share of the importance, percent")
            place = f"; the strength is number {order.index(RUNG) + 1} of {len(order)}" if RUNG in means else ""
            return self._drawn(
                figure,
                "importance",
                f"What decided the search of {self.leader}",
                "PED-ANOVA of the trials: how far each number of the vector tells the best tenth from the rest, "
                f"mean over seeds{place}.",
            )

    # -- helpers

    def _pair(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.comparison.asked.baseline, self.leader) if name))

    def _shown(self, most: int) -> list[str]:
        """The baseline, the leader, then others, as far as they have cells under the tightest budget."""
        names = dict.fromkeys([*self._pair(), *self.comparison.asked.methods])
        return [name for name in names if name not in CONTROLS and self.comparison.of(self.tightest, name)][:most]

    def _differences(self, budget: str, method: str) -> list[float]:
        """Of the scores themselves, seed by seed."""
        beside = {cell.seed: cell.after for cell in self.comparison.of(budget, self.comparison.asked.baseline)}
        return [
            cell.after - beside[cell.seed] for cell in self.comparison.of(budget, method) if cell.seed in beside
        ]

    def _drawn(self, figure: Figure, name: str, title: str, caption: str, wide: bool = False) -> Drawn:
        figure.savefig(self.folder / f"{name}.png", dpi=200, facecolor="white")
        return Drawn(name, title, caption, of_figure(figure, name, f"{title}. {caption}", colours()), wide)


@contextmanager
def _figure(heights: Sequence[float], columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Panels below each other, in inches; to be written while the settings hold that it is drawn with."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {**SETTINGS, "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    settings |= {"axes.edgecolor": FAINT, "grid.color": FAINT, "grid.linewidth": 0.5, "axes.titlelocation": "left"}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
        ratios = {"height_ratios": list(heights)}
        grid = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw=ratios)
        for axis in grid.flat:
            axis.grid(True)
            axis.set_axisbelow(True)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        yield figure, list(grid.flat)


def _legend(axis: Axes) -> None:
    axis.figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
