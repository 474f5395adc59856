"""What the commands share: their arguments and options, the terminal, and what says how far they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.search.config.loading import Config
    from espalier.search.progress.reporter import Reporter

_PLAIN: Any = {"markup": False, "emoji": False, "highlight": False}
"""Names, paths and messages come from users and storages: brackets in them are brackets. A `Text` has style."""
console = Console(**_PLAIN)
errors = Console(stderr=True, **_PLAIN)


def shown_whole(part: Table | str) -> None:
    """Prints a text, or a table whose numbers are not cut: its lines may be longer than the terminal's."""
    if isinstance(part, str):
        return console.print(part)
    needed = Measurement.get(console, console.options.update(max_width=1000), part).maximum
    whole = Console(
        file=console.file, width=max(needed, console.width), force_terminal=console.is_terminal, **_PLAIN
    )
    return whole.print(part)


ConfigArgument = Annotated[str, typer.Argument(help="YAML file, or the name of a shipped config: digits.")]
OverrideArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that win over the config's: budget.keep=0.5", metavar="[KEY=VALUE]..."),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="URL of an Optuna storage, or a *.db or *.log file. Default: SQLite in the run folder.",
        envvar="OPTUNA_STORAGE",
    ),
]
StudyOption = Annotated[str | None, typer.Option(help="Name of the study. Default: the config's name.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: local, auto or HOST:PORT. Default: local.", envvar="RAY_ADDRESS")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Evaluations at a time; 0 runs in this process, without Ray.", min=0)
]
CpusOption = Annotated[
    float | None,
    typer.Option("--cpus-per-worker", help="Cores of each worker; 1 unless configured."),
]
GpusOption = Annotated[
    float | None, typer.Option("--gpus-per-worker", help="GPUs of each worker; 0.25 shares one between four.")
]
TimeBudgetOption = Annotated[
    str | None,
    typer.Option(help="Search no longer than this, then conclude: 90 (seconds), 30m, 2h.", metavar="DURATION"),
]
CandidateTimeoutOption = Annotated[
    str | None,
    typer.Option(help="A candidate that takes longer fails, and its worker is replaced.", metavar="DURATION"),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(help="Candidates that may fail before the search gives up; 20 unless configured."),
]
OutOption = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/STUDY.")]
ConfigsOutOption = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/CONFIG.")]
StudysOutOption = Annotated[
    Path | None, typer.Option(help="Run folder. Default: the one that a run of the study has marked here.")
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="The picture, .png or .svg; by default PLOT.png, here.", dir_okay=False),
]
MirrorOption = Annotated[
    str | None,
    typer.Option(help="Keep the checkpoints here too, for other machines: s3://bucket/path, /mnt/share, ..."),
]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A package of yours, or package.module:callable, that the study may name; several times for several.",
        metavar="PACKAGE",
    ),
]


def _given_or_of_the_study(context: typer.Context, value: str) -> str:
    """The storage, or that in the run folder of a study."""
    from espalier.search.run.search_run import default_storage
    from espalier.search.study.run_folder import folder_of

    if value:
        return value
    if not (study := context.params.get("study")):  # an empty --storage stands before it
        raise typer.BadParameter("give the storage's URL, or its file")
    folder = folder_of(study)
    if not (folder / "study.db").is_file():
        raise ConfigError(
            f"there is no study {study!r} in ./runs, as there is no {folder / 'study.db'}: if it lies elsewhere, "
            "name its storage by --storage"
        )
    return default_storage(folder)


StoredAll = Annotated[
    str,
    typer.Option(
        "--storage",
        help="URL of the storage, or its *.db or *.log file; by default all of those in ./runs.",
        envvar="OPTUNA_STORAGE",
        show_default=False,
    ),
]
StoredAt = Annotated[
    str,
    typer.Option(
        "--storage",
        help="URL of the storage, or its *.db or *.log file; by default that of the study in ./runs.",
        envvar="OPTUNA_STORAGE",
        callback=_given_or_of_the_study,
        show_default=False,
    ),
]
StoredStudy = Annotated[str, typer.Option("--study", help="Name of the study.")]


def settings_of(config: str, overrides: list[str] | None, workers: int | None = None) -> Config:
    """The config, with what the command line changes in it."""
    from espalier.search.config.loading import settings_of as found

    return found(config, overrides or [], workers=workers)[0]


def on_cluster(settings: Config, **given: object) -> Config:
    """The config with options of the section ``cluster`` in the place of its keys; None leaves a key as it is."""
    from espalier.search.config.loading import with_section

    return with_section(settings, "cluster", {key: value for key, value in given.items() if value is not None})


@contextmanager
def interruptible(how: str) -> Iterator[None]:
    """Ctrl-C says how to go on, and exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"interrupted; {how}", soft_wrap=True)
        raise typer.Exit(130) from None


def reporter() -> Reporter:
    """Tells the terminal how far a run is."""
    from espalier.search.progress.reporter import for_console

    return for_console(console)
