"""``espalier plot``: pictures of energies, keep ratios and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.options import (
    ConfigArgument,
    ConfigsOutOption,
    FileOption,
    OverrideArgument,
    console,
    interruptible,
    reporter,
    settings_of,
)

app = typer.Typer(
    name="plot", no_args_is_help=True, help="Draw energies, keep ratios, damage or fronts as PNG or SVG."
)

RegularizersOption = Annotated[
    list[str] | None,
    typer.Option("--regularizer", help="One to draw: NAME, at the config's last strength, or NAME=STRENGTH."),
]


@app.command("energies")
def plot_energies(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    regularizer: RegularizersOption = None,
    group: Annotated[str | None, typer.Option(help="The channel group; by default the largest.")] = None,
    file: FileOption = None,
    out: ConfigsOutOption = None,
) -> None:
    """Sorted channel energies of a layer after training with each regulariser."""
    from espalier.drawing.files import FIGURE, check_picture
    from espalier.report import plots
    from espalier.search.analysis import figure_data as curves

    picture, folder = file or Path("energies.png"), out or Path("runs") / Path(config).stem
    check_picture(picture, FIGURE)
    with interruptible(f"the same command goes on with what is in {folder}"):
        found = curves.train(settings_of(config, overrides), regularizer, folder, reporter(), group)
        plots.energies(curves.energies(found, group), picture)
    console.print(f"{picture} written")


@app.command("damage")
def plot_damage(
    config: ConfigArgument,
    overrides: OverrideArgument = None,
    regularizer: RegularizersOption = None,
    file: FileOption = None,
    out: ConfigsOutOption = None,
) -> None:
    """Held-out score before retraining against the MACs removed, a line for each regulariser."""
    from espalier.drawing.files import FIGURE, check_picture
    from espalier.report import plots
    from espalier.search.analysis import figure_data as curves

    picture, folder = file or Path("damage.png"), out or Path("runs") / Path(config).stem
    check_picture(picture, FIGURE)
    with interruptible(f"the same command goes on with what is in {folder}"):
        found = curves.train(settings_of(config, overrides), regularizer, folder, reporter())
        plots.damage(curves.damage(found), picture, found.task.metric)
    console.print(f"{picture} written")


@app.command("ratios")
def plot_ratios(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished search or prune.", file_okay=False)],
    file: FileOption = None,
) -> None:
    """Share of the channels that each group keeps."""
    from espalier.report import plots
    from espalier.search.analysis import figure_data as curves

    plots.ratios(curves.ratios(folder), file or Path("ratios.png"))
    console.print(f"{file or 'ratios.png'} written")


@app.command("front")
def plot_front(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished search with budget.front.", file_okay=False)],
    file: FileOption = None,
) -> None:
    """Held-out value against MACs: the front that the search found, and greedy pruning."""
    from espalier.report import plots
    from espalier.search.analysis import figure_data as curves

    plots.front(curves.front(folder), file or Path("front.png"))
    console.print(f"{file or 'front.png'} written")
