"""``espalier studies``: what a storage holds."""

from __future__ import annotations

from rich.table import Table

from espalier.cli.options import StoredAt, console


def studies(
    storage: StoredAt,
) -> None:
    """List the studies of a storage."""
    from espalier.search.catalogue import summaries
    from espalier.search.storage import open_storage

    table = Table("study", "trials", "of", "best value", "sampler", "budget", box=None, header_style="bold")
    for row in summaries(open_storage(storage, create=False)):
        table.add_row(*row)
    console.print(table if table.row_count else "no studies")
