"""``espalier doctor``: what this machine has, what a config would take on it, and what would stop it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from espalier.cli.options import (
    AddressOption,
    OutOption,
    OverrideArgument,
    StorageOption,
    StudyOption,
    WorkersOption,
    console,
    on_cluster,
    reporter,
    settings_of,
)
from espalier.errors import DataError, EspalierError

if TYPE_CHECKING:
    from espalier.doctor.machine import Finding
    from espalier.search.config.loading import Config
    from espalier.search.run.prepare import Prepared

WORKERS = 2
"""Of a search, where no config says how many."""


def doctor(
    config: Annotated[
        str | None, typer.Argument(help="YAML file, or the name of a shipped config, to be tried out.")
    ] = None,
    overrides: OverrideArgument = None,
    storage: StorageOption = None,
    study: StudyOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    out: OutOption = None,
) -> None:
    """Say what this machine has, what would stop a search, and how long a config would take.

    With a config, a few steps of every training and a few candidates are measured, and the rest is estimated from
    them. Nothing is left behind. Exits with 1 if a search could not run.
    """
    from espalier.doctor.machine import machine
    from espalier.search.cluster.process_settings import computing
    from espalier.search.run.search_run import default_storage
    from espalier.search.study.run_folder import folder_of

    settings = None
    if config is not None:
        settings = on_cluster(settings_of(config, overrides, workers), address=address)
    folder = out or folder_of(study or Path(config or "mine").stem)
    here = machine(
        workers=settings.workers if settings is not None else WORKERS if workers is None else workers,
        address=settings.cluster.address if settings is not None else address,
        storage=storage or default_storage(folder),
        folder=folder,
    )
    with computing():
        stops = _show("this machine", here)
        if settings is not None:
            stops += _show(str(config), _tried(settings))
    if stops:
        console.print(f"\nA search would not run: {stops} of these would stop it.")
        raise typer.Exit(1)
    console.print("\nNothing here would stop a search.")


def _show(title: str, findings: Iterable[Finding]) -> int:
    """Prints findings under a title; how many of them would stop a search."""
    table, stops, last = Table(box=None, show_header=False, pad_edge=False), 0, ""
    table.add_column(min_width=12, no_wrap=True)
    for finding in findings:
        words = Text.assemble(*([("stops: ", "bold red")] if finding.stops else []), finding.words)
        table.add_row("" if finding.subject == last else finding.subject, words)
        stops, last = stops + finding.stops, finding.subject
    console.print(title, style="bold")
    console.print(table)
    return stops


def _tried(settings: Config) -> Iterator[Finding]:
    """What a config describes, and what it would take."""
    from espalier.doctor.machine import Finding
    from espalier.errors import raised
    from espalier.search.run.prepare import prepare

    weights = settings.model.weights
    try:
        prepared = prepare(settings, takes_latency=True)
    except EspalierError as error:
        yield Finding("data" if isinstance(error, DataError) else "config", str(error), stops=True)
        if isinstance(error, DataError) and weights is not None and not weights.exists():
            yield Finding("weights", f"model.weights names {weights}, which does not exist", stops=True)
        return
    graph = prepared.graph
    params, macs = int(graph.params(graph.sizes)), prepared.dense_macs
    yield Finding("network", f"{settings.model.name}, {macs:,} MACs, {params:,} parameters")
    sizes = ", ".join(f"{count:,} {part}" for part, count in prepared.task.sizes().items())
    if sizes:
        yield Finding("data", f"{settings.data.name}: {sizes}")
    for note in prepared.notes:
        yield Finding("note", note)
    try:
        yield from _rehearsed(settings, prepared)
    except Exception as error:  # whatever a user's network or task raises, a search would raise too
        told = str(error) if isinstance(error, EspalierError) else raised(error)
        yield Finding("trial run", told, stops=True)


def _rehearsed(settings: Config, prepared: Prepared) -> Iterator[Finding]:
    from espalier.doctor.machine import Finding, in_bytes
    from espalier.doctor.rehearsal import estimates, rehearse

    found = rehearse(settings, prepared, reporter())
    kept = f", and {in_bytes(found.activations)} that a training step keeps for its gradients"
    gpu = f"; at most {in_bytes(found.gpu)} were allocated on the GPU" if found.gpu else ""
    weights = f"{in_bytes(found.weights)} of weights"
    yield Finding("memory", weights + (kept if found.activations else "") + gpu)
    total = 0.0
    for estimate in estimates(settings, found):
        total += estimate.seconds
        yield Finding("estimate", f"{estimate.stage}: {estimate.sum} = {_duration(estimate.seconds)}")
    if settings.budget.limits_latency and settings.budget.device.model is None:
        yield Finding(
            "estimate", f"latency: {settings.budget.device.networks} networks are timed first, not counted"
        )
    yield Finding(
        "estimate",
        f"all of it: {_duration(total)}, if the machine does nothing else; an estimate from a few measured steps",
    )


def _duration(seconds: float) -> str:
    """In words.

    >>> _duration(40), _duration(600), _duration(9000)
    ('40 s', '10 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
