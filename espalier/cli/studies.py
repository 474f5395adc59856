"""``espalier studies``, ``espalier study ...`` and ``espalier storage copy``: what a storage holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from espalier.cli.options import StoredAll, StoredAt, console, reporter
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from espalier.search.study.overview import Overview

NamedStudy = Annotated[str, typer.Argument(help="Name of the study.", metavar="STUDY")]

study_app = typer.Typer(name="study", no_args_is_help=True, help="Show, rename, delete or export a study.")
storage_app = typer.Typer(name="storage", no_args_is_help=True, help="Copy studies from one storage to another.")


def studies(storage: StoredAll = "") -> None:
    """List studies; a terminal of less than 100 columns leaves out digests and who is at work."""
    from espalier.search.study.overview import overviews

    table = Table(box=None, header_style="bold", pad_edge=False)
    titles = ("study", "state", "trials", "best value", "sampler", "budget", "digest", "at work")
    wide = console.width >= 100
    shown = titles if wide else titles[:6]
    for title in shown:
        table.add_column(title, overflow="fold", no_wrap=title in ("state", "trials", "digest"))
    urls = [storage] if storage else _in_runs()
    for found in (found for url in urls for found in overviews(opened(url))):
        runs = "\n".join(f"{run.host} {run.pid}" for run in found.runs) or "-"
        best = best_of(found) if wide else value_of(found)
        values = (found.name, found.state, f"{found.complete} of {found.target}", best)
        table.add_row(*(*values, found.sampler, found.budget, found.digest, runs)[: len(shown)])
    console.print(table if table.row_count else "no studies", soft_wrap=False)


def _in_runs() -> list[str]:
    """The storages in run folders here."""
    from espalier.search.run.search_run import default_storage

    folders = sorted(file.parent for file in Path("runs").glob("*/study.db"))
    if not folders:
        raise ConfigError("there is no storage in ./runs: give the URL of one, or its file, by --storage")
    return [default_storage(folder) for folder in folders]


@study_app.command("show")
def show_study(study: NamedStudy, storage: StoredAt = "") -> None:
    """Everything in a line or two each: state, trials, the best one by the proxy, who is at work, the result."""
    from espalier.search.study.overview import find, groups_of, overview

    record = find(opened(storage), study, storage)
    found = overview(record)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("study", found.name)
    table.add_row("state", found.state)
    begun = f"{found.running} {'running' if found.runs else 'begun'}"
    table.add_row("trials", f"{found.complete} of {found.target}, {begun}, {found.failed} failed")
    table.add_row("best trial", best_of(found))
    if found.best is not None and found.best.shares:
        groups = zip(groups_of(record.user_attrs), found.best.shares, strict=True)
        table.add_row(
            "its widths", ", ".join(f"{name} {share * size:.0f}/{size}" for (name, size), share in groups)
        )
    table.add_row("sampler", found.sampler)
    table.add_row("budget", found.budget)
    table.add_row("digest", found.digest)
    for run in found.runs:
        table.add_row("at work", f"process {run.pid} on {run.host}, {run.stage or 'between stages'}")
    for number, reason in found.failures:
        table.add_row("failed", f"trial {number}: {reason}")
    if found.verdict is not None:
        table.add_row("result", found.verdict)
    if found.artefact is not None:
        table.add_row("network", f"{found.artefact}, which the result is about")
    console.print(table)


@study_app.command("rename")
def rename_study(
    study: NamedStudy, new: Annotated[str, typer.Argument(help="Its new name.")], storage: StoredAt = ""
) -> None:
    """Give a study another name."""
    from espalier.search.study.copying import rename_study as rename

    rename(opened(storage), study, storage, new, reporter())
    console.print(f"{study} is {new} now")


@study_app.command("delete")
def delete_study(
    study: NamedStudy,
    storage: StoredAt = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a study; its run folder stays."""
    from espalier.search.study.copying import check_deletable
    from espalier.search.study.copying import delete_study as delete
    from espalier.search.study.storage import redact

    holding = opened(storage)
    trials = check_deletable(holding, study, storage)
    if not yes:
        typer.confirm(f"Delete {study} with its {trials} trials from {redact(storage)}?", abort=True)
    delete(holding, study, storage)
    console.print(f"{study} is deleted")


@study_app.command("export")
def export_study(
    study: NamedStudy,
    storage: StoredAt = "",
    file: Annotated[Path | None, typer.Argument(help="*.csv or *.json; by default the terminal.")] = None,
    kind: Annotated[
        Literal["csv", "json"] | None, typer.Option("--format", help="By default as the file's name ends, or csv.")
    ] = None,
) -> None:
    """Write a study's trials as CSV, or with all that the study holds as JSON."""
    from espalier.search.study.copying import export
    from espalier.search.study.overview import find

    ending = file.suffix.removeprefix(".") if file is not None else "csv"
    chosen = kind or ending
    if chosen not in ("csv", "json"):
        raise ConfigError(f"the file to export to must end in .csv or .json, got {file}: or give --format")
    text = export(find(opened(storage), study, storage), chosen)
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error}") from error
    console.print(f"{file} written", soft_wrap=True)


@storage_app.command("copy")
def copy_storage(
    source: Annotated[str, typer.Argument(help="URL of the storage to copy from.", metavar="FROM")],
    target: Annotated[str, typer.Argument(help="URL of the storage to copy to; made if need be.", metavar="TO")],
    study: Annotated[str | None, typer.Option(help="Copy this one only; by default all of espalier's.")] = None,
) -> None:
    """Copy studies to another storage: attributes, trials, numbers and times; overwrites nothing."""
    from espalier.search.study.copying import copy_study
    from espalier.search.study.overview import find, names_of
    from espalier.search.study.storage import redact

    holding = opened(source)
    names = names_of(holding) if study is None else [find(holding, study, source).study_name]
    if not names:
        raise ConfigError(f"{redact(source)} holds no study of espalier's")
    made = opened(target, create=True)
    for name in names:
        trials = copy_study(holding, name, source, made, name, target, reporter())
        console.print(f"{name}: {trials} trials copied to {redact(target)}", soft_wrap=True)


def opened(url: str, *, create: bool = False) -> BaseStorage:
    """A storage; what Optuna would say about it is not said."""
    import optuna

    from espalier.search.study.storage import open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return open_storage(url, create=create)


def best_of(found: Overview) -> str:
    """The best value in words."""
    if found.best is None:
        return "-"
    better = "less" if _less_is_better(found) else "greater"
    return f"{value_of(found)} (by {found.measure}, {better} is better; trial {found.best.number})"


def value_of(found: Overview) -> str:
    """The best trial's score as it is measured: of what is better when less, a storage holds the negative."""
    if found.best is None:
        return "-"
    return f"{-found.best.value if _less_is_better(found) else found.best.value:.4f}"


def _less_is_better(found: Overview) -> bool:
    from espalier.search.tasks.classification.measures import MEASURES

    measure = MEASURES.get(found.measure)
    return found.metric.endswith("less is better") if measure is None else not measure.greater_is_better
