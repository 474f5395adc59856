"""``espalier inspect`` and ``validate``: what a config asks for and what its network is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.options import ConfigArgument, OverrideArgument, console, settings_of


def inspect(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    keep: Annotated[
        float | None,
        typer.Option(
            help="Show beside it what a network with this fraction of the MACs costs, pruned evenly. The config's "
            "budget stays what it is."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every operation, and all names in full.")] = False,
    depth: Annotated[
        int | None, typer.Option(help="Sum operations by module, so deep in the network.", min=0)
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write everything as JSON into FILE; - prints it alone.", metavar="FILE"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the network into FILE, .svg or .png.", metavar="FILE")
    ] = None,
) -> None:
    """Show every operation with its cost, the groups of coupled channels, and what is frozen and why."""
    import torch

    from espalier.drawing.files import NETWORK, check_picture
    from espalier.drawing.network import draw
    from espalier.inspection.document import inspection, write_json
    from espalier.inspection.tables import show
    from espalier.search.run.prepare import prepare

    torch.set_num_threads(1)
    settings = settings_of(config, overrides)
    if picture is not None:
        check_picture(picture, NETWORK)
    prepared = prepare(settings, takes_latency=True)
    graph, channels = prepared.graph, prepared.graph.without_precisions
    found = inspection(channels, settings.model.name, keep, prepared.floor[: len(channels.groups)])
    if json_file is not None:
        write_json(found, None if str(json_file) == "-" else json_file)
    if picture is not None:
        draw(found, picture)
    if str(json_file) == "-":
        return
    show(console, found, every, depth)
    latency = settings.budget.latency or settings.budget.max_latency_ms
    budgets = "; ".join(map(str, prepared.budgets)) if latency is None else settings.budget.words()
    console.print(
        f"{channels.n_channels} prunable channels in {len(channels.groups)} groups; budget {budgets}"
        + ("" if keep is None else f", the config's: a search keeps to it, and --keep {keep:g} is only shown"),
    )
    if graph.branches:
        names = [" and ".join(graph.groups[group].name for group in branch.triggers) for branch in graph.branches]
        console.print(f"{len(names)} residual branches can be taken out, those of {', '.join(names)}")
    if graph.precisions:
        bits = ", ".join(map(str, graph.precisions[0].bits[:-1]))
        console.print(f"{len(graph.precisions)} layers can compute in {bits} bits, as in 32")
    for file in (json_file, picture):
        if file is not None:
            console.print(f"written: {file}", soft_wrap=True)


def validate(config: ConfigArgument, overrides: OverrideArgument = None) -> None:
    """Check a config and say what it asks for. Loads no data and no network."""
    settings = settings_of(config, overrides)
    strengths = settings.regularizer.strengths
    console.print(
        f"valid: {settings.model.name} on {settings.data.name}, {settings.budget.words()}, "
        f"{settings.search.trials} trials of {settings.search.sampler}, strengths "
        f"{'found' if strengths == 'auto' else ', '.join(f'{s:g}' for s in strengths)}",
    )
