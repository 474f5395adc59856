"""Figures: energies, damage, keep ratios, proxies; the numbers come from `search`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espalier.drawing.files import FIGURE, check_picture
from espalier.drawing.picture import PALETTE

if TYPE_CHECKING:
    from espalier.pruning.graph.costs import Floats
    from espalier.search.analysis.proxy_study import ProxyStudy, Rated
    from espalier.search.spaces.metric import Metric
    from espalier.search.study.pareto_front import Point

MARKERS = "osD^vPX*"


def energies(found: tuple[str, Mapping[str, Floats]], file: Path) -> None:
    """Channel energies of one group, sorted, on a logarithmic scale; a line for each network."""
    name, lines = found
    with _axes(file, f"channel energies of {name}") as axes:
        for number, (title, values) in enumerate(lines.items()):
            floor = max(float(values.max()) * 1e-12, 1e-30)  # true zeros have no logarithm
            channels = np.arange(1, len(values) + 1)
            axes.plot(channels, np.maximum(values, floor), label=title, color=_colour(number), linewidth=2)
        axes.set_yscale("log")
        axes.set_xlabel("channels, the most energetic first")
        axes.set_ylabel("energy (squared norm of the out-in-channel)")
        axes.set_xlim(1, max(len(values) for values in lines.values()))


def damage(found: Mapping[str, Sequence[tuple[float, float]]], file: Path, metric: Metric) -> None:
    """The score before retraining against the share of MACs removed; a line for each network."""
    with _axes(file, "before retraining") as axes:
        for number, (title, points) in enumerate(found.items()):
            removed, right = zip(*points, strict=True)
            style = {"marker": MARKERS[number % len(MARKERS)], "color": _colour(number), "markersize": 5}
            axes.plot([100 * r for r in removed], right, label=title, **style)
        axes.set_xlabel("MACs removed, percent")
        axes.set_ylabel(f"held-out {metric.heading}")
        if metric.floor is not None:
            axes.set_ylim(bottom=0)


def ratios(found: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Share of its channels that each group keeps; a row of bars for each network."""
    groups = list(next(iter(found.values())))
    with _axes(file, "channels kept", wide=max(7.0, 0.34 * len(groups))) as axes:
        width = 0.8 / len(found)
        for number, (title, kept) in enumerate(found.items()):
            places = np.arange(len(groups)) + (number - (len(found) - 1) / 2) * width
            values = [100 * kept.get(group, 0.0) for group in groups]
            axes.bar(places, values, width, label=title, color=_colour(number))
        axes.set_xticks(range(len(groups)), groups, rotation=90)
        axes.set_ylabel("channels kept, percent")
        axes.set_ylim(0, 100)


def front(points: Sequence[Point], file: Path) -> None:
    """Value against MACs: the front as steps, greedy pruning as marks."""
    with _axes(file, "accuracy against cost") as axes:
        lines = {"front": [p for p in points if not p.beaten], "greedy": [p for p in points if p.greedy]}
        styles = {
            "front": {"drawstyle": "steps-post", "marker": "."},
            "greedy": {"linestyle": "none", "marker": "D"},
        }
        for number, (title, own) in enumerate(lines.items()):
            macs, values = [point.macs / 1e6 for point in own], [point.value for point in own]
            axes.plot(macs, values, label=title, color=_colour(number), **styles[title])
        axes.set_xlabel("million MACs")
        axes.set_ylabel("held-out value, higher is better")


def proxies(found: ProxyStudy, file: Path) -> None:
    """Rank correlation of every proxy with fine-tuned networks against its cost; a marker for each measure."""
    with _axes(file, "which proxy tells what fine-tuning will say?") as axes:
        from adjustText import adjust_text

        best: dict[str, Rated] = {}
        for rated in found.rated:
            best.setdefault(rated.proxy, rated)
        for number, measure in enumerate(dict.fromkeys(rated.measure for rated in found.rated)):
            own = [rated for rated in found.rated if rated.measure == measure]
            cost = [_share(rated, found) for rated in own]
            style = {"marker": MARKERS[number], "color": _colour(number), "linestyle": "none"}
            axes.plot(cost, [rated.rho for rated in own], label=measure, **style)
        axes.axhline(found.ceiling, color="0.5", linewidth=1, linestyle="--", label="one seed of fine-tuning")
        axes.axvline(10, color="0.5", linewidth=1, linestyle=":", label="a tenth of fine-tuning")
        axes.set_xscale("log")
        axes.set_xlabel("cost of a candidate, percent of a fine-tuning")
        axes.set_ylabel(f"Spearman's correlation with {found.metric.title} after fine-tuning")
        named = [axes.text(_share(each, found), each.rho, each.proxy, fontsize=7) for each in best.values()]
        adjust_text(
            named,
            x=[_share(each, found) for each in found.rated],
            y=[each.rho for each in found.rated],
            ax=axes,
            expand=(1.4, 1.6),
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
        )


def _share(rated: Rated, found: ProxyStudy) -> float:
    """Percent of a fine-tuning that a proxy costs; what costs next to nothing stands at the edge."""
    return max(0.05, 100 * rated.seconds / found.finetune_seconds)


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


@contextmanager
def _axes(file: Path, title: str, wide: float = 7.0) -> Iterator[Any]:
    """Axes to draw on; the figure is written when the block ends."""
    check_picture(file, FIGURE)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file)
