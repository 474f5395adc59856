"""``espalier configs``: the configs that come with espalier, listed, and copied to begin with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from espalier.cli.options import console
from espalier.errors import ConfigError

app = typer.Typer(name="configs", invoke_without_command=True)


@app.callback()
def configs(context: typer.Context) -> None:
    """List the configs that come with espalier: what each one trains, and about how long it takes."""
    if context.invoked_subcommand is not None:
        return
    from espalier.search.config.loading import shipped_configs

    table = Table(box=None, show_header=False)
    for name, file in shipped_configs().items():
        table.add_row(name, first_comment(file))
    console.print(table)
    console.print(
        "\n`espalier configs copy NAME` writes one here; `espalier init` writes one for a network of yours."
    )


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="Name of a shipped config, as `espalier configs` lists it.")],
    file: Annotated[
        Path | None, typer.Argument(help="File to write. Default: NAME.yaml, here.", metavar="[FILE]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a shipped config into a file, to be changed."""
    from espalier.search.config.fields import unknown
    from espalier.search.config.loading import shipped_configs

    shipped = shipped_configs()
    if name not in shipped:
        raise ConfigError(f"no shipped config of that name: {unknown(name, list(shipped))}")
    target = file or Path(f"{name}.yaml")
    check_new([target], force=force)
    target.write_bytes(shipped[name].read_bytes())
    console.print(f"written: {target}; next: espalier search {target}", soft_wrap=True)


def check_new(files: Iterable[Path], *, force: bool) -> None:
    """Refuses to write files.

    Raises:
        ConfigError: one is there already, and is not to be replaced; or its folder is not.
    """
    for file in files:
        if file.is_dir() or (file.exists() and not force):
            advice = "" if file.is_dir() else ", or replace it with --force"
            raise ConfigError(f"{file} is there already: name another file{advice}")
        if not file.parent.is_dir():
            raise ConfigError(f"the folder {file.parent} is not there: make it, or name another file")


def first_comment(config: Path) -> str:
    """The first line of a config, which says what it trains and how long that takes."""
    return config.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
