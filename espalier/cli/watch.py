"""``espalier watch``: a study as it goes, read from its storage alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from espalier.cli.options import StoredAt, console
from espalier.cli.studies import NamedStudy, best_of, opened

if TYPE_CHECKING:
    from espalier.search.study.overview import Overview

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"running": "green", "finished": "bold green", "interrupted": "yellow"}


def watch(
    study: NamedStudy,
    storage: StoredAt = "",
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
) -> None:
    """Watch a study from any machine until it is finished: trials, best score, workers, failures."""
    from espalier.search.study.lease import Watch
    from espalier.search.study.overview import find, overview
    from espalier.search.study.storage_retry import with_retries

    record, seen = find(with_retries(opened(storage)), study, storage), Watch(believing=True)
    found = overview(record, seen)
    if once:
        console.print(_shown(found))
        return
    try:
        with Live(_shown(found), console=console, auto_refresh=False) as live:
            while found.state != "finished":
                time.sleep(every)
                found = overview(record, seen)
                live.update(_shown(found), refresh=True)
    except KeyboardInterrupt:
        return


def _shown(found: Overview) -> Group:
    head = Text.assemble((found.name, "bold"), "  ", (found.state, _STYLES[found.state]), f"  {found.budget}")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    counts = f"{found.complete}/{found.target}"
    under_way = f"{found.running} running, {found.failed} failed"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(found.target, min(found.complete, found.target), width=30), counts, under_way)
    facts.add_row("trials", bar)
    facts.add_row("speed", _speed(found))
    facts.add_row("best", best_of(found))
    if found.best is not None and found.best.shares:
        facts.add_row("widths", f"{found.best.kept:.1%} of the channels  {_bars(found.best.shares)}")
    facts.add_row("sampler", f"{found.sampler}, digest {found.digest}")
    parts: list[Text | Table] = [head, facts]
    if found.runs:
        runs = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("at work", "process", "lease", "stage", "done", ""):
            runs.add_column(title, no_wrap=title != "")
        for run in found.runs:
            done = f"{run.done}/{run.total} {run.unit}" if run.total else ""
            runs.add_row(run.host, str(run.pid), f"{run.age:.0f} s ago", run.stage or "-", done, run.note)
        parts.append(runs)
    parts += [Text(f"trial {number} failed: {reason}", style="red") for number, reason in found.failures]
    if found.verdict is not None:
        parts.append(Text(found.verdict))
    return Group(*parts)


def _speed(found: Overview) -> str:
    if found.rate is None:
        return "-"
    speed = f"{found.rate:.3g} trials/s"
    return speed if found.seconds_left is None else f"{speed}, {_duration(found.seconds_left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _bars(shares: tuple[float, ...]) -> str:
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))] for share in shares)
