"""``espalier compare``: is the search worth it?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from espalier.cli.options import (
    AddressOption,
    ConfigArgument,
    OutOption,
    OverrideArgument,
    StorageOption,
    StudyOption,
    WorkersOption,
    console,
    interruptible,
    reporter,
    settings_of,
    shown_whole,
)

if TYPE_CHECKING:
    from espalier.search.compare.comparison import Comparison


def compare(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    storage: StorageOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    study: StudyOption = None,
    out: OutOption = None,
) -> None:
    """Compare searches with greedy pruning and other methods over several seeds, and write report.html."""
    from espalier.drawing.files import NETWORK, check_packages
    from espalier.report.page import write_report
    from espalier.report.progress_page import ProgressPage
    from espalier.search.compare.protocol import compare as run
    from espalier.search.study.run_folder import folder_of

    check_packages(NETWORK)
    settings = settings_of(config, overrides, workers)
    name = study or Path(config).stem
    folder = out or folder_of(name)
    named = [] if study is None else ["--study", study]
    named += [] if workers is None else ["--workers", str(workers)]
    named += [] if out is None else ["--out", str(out)]
    command = shlex.join(["espalier", "compare", config, *(overrides or []), *named])
    page = folder / "compare" / "report.html"
    console.print(f"the page of this run: {page}", soft_wrap=True)
    how = f"the same command goes on where {folder} stands"
    with interruptible(how), ProgressPage(reporter(), page.parent) as told:
        found = run(
            settings,
            name=name,
            out=folder,
            command=command,
            storage=storage,
            address=address,
            reporter=told,
        )
    show(found.comparison)
    console.print(f"\nreport   {write_report(found, page, reporter())}", soft_wrap=True)
    console.print(f"numbers  {found.folder / 'compare.json'}, table.csv, cells.csv", soft_wrap=True)


def show(found: Comparison) -> None:
    """The table of every budget, and the verdict."""
    from espalier.search.compare.comparison import NOISY
    from espalier.search.compare.summary import table_of

    for budget, words in found.asked.budgets.items():
        table = table_of(found, budget, words)
        console.print()
        shown_whole(table)
        if any(row.timings for row in found.rows):
            console.print()
            shown_whole(latencies(found, budget, words))
    if found.asked.supernet:
        console.print(f"\n{found.asked.supernet}", style="dim")
    if not found.quiet:
        console.print(f"\n{NOISY}", style="dim")
    for sentence in (f"\n{found.verdict}", *found.remarks):
        console.print(sentence)


def latencies(found: Comparison, budget: str, words: str) -> Table:
    """How long networks take under a budget, in every runtime with every batch size."""
    from espalier.report.page import TIMINGS, timing_lines

    title = f"latency, {words}; {found.asked.threads} thread{'s' if found.asked.threads > 1 else ''}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("", *TIMINGS):
        table.add_column(name, justify="left" if name in ("", "runtime") else "right", no_wrap=True)
    for method, texts in timing_lines(found, budget):
        table.add_row(method, *texts)
    return table
