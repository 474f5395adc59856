"""The command line: a file for each family of commands. Heavy imports happen inside the commands."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.text import Text

from espalier.cli import (
    agents,
    comparisons,
    configs,
    curves,
    doctor,
    exports,
    headroom,
    init,
    latency,
    networks,
    proxies,
    runs,
    studies,
    watch,
)
from espalier.cli.options import console, errors
from espalier.errors import EspalierError

app = typer.Typer(
    name="espalier",
    help=(
        "Find how wide each layer of a neural network must be, for a budget of multiply-adds, parameters, memory "
        "or latency. Begin with `espalier init`, or see all of it at once: `espalier search digits`."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_options = {"debug": False}

BEGIN, SEARCH, JUDGE, USE = "Begin", "Search", "Is it worth it?", "Networks and devices"

COMMANDS: tuple[tuple[str, Callable[..., None] | typer.Typer], ...] = (
    (BEGIN, init.init),
    (BEGIN, doctor.doctor),
    (BEGIN, networks.validate),
    (BEGIN, configs.app),
    (SEARCH, runs.search),
    (SEARCH, runs.resume),
    (SEARCH, runs.prune),
    (SEARCH, watch.watch),
    (SEARCH, studies.studies),
    (SEARCH, studies.study_app),
    (SEARCH, studies.storage_app),
    (SEARCH, agents.app),
    (JUDGE, headroom.headroom),
    (JUDGE, comparisons.compare),
    (JUDGE, proxies.proxy_study),
    (JUDGE, runs.rescore),
    (JUDGE, curves.app),
    (USE, networks.inspect),
    (USE, exports.export),
    (USE, latency.app),
)
"""Where ``--help`` shows each, in this order: commands first, then those that have commands of their own."""

for panel, command in COMMANDS:
    if isinstance(command, typer.Typer):
        app.add_typer(command, rich_help_panel=panel)
    else:
        app.command(rich_help_panel=panel)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.print(f"espalier {version('espalier')}")
        raise typer.Exit


@app.callback()
def _main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    _options["debug"] = debug


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except EspalierError as error:
        if _options["debug"]:
            raise
        _print_error(str(error))
        sys.exit(2)
    except OSError as error:
        if _options["debug"] or error.errno not in (*_FULL, *_PLACES):
            raise
        file = error.filename or "a file"
        if error.errno in _PLACES:
            _print_error(f"cannot use {file}: {error.strerror}; --debug shows what it was wanted for")
        else:
            _print_error(
                f"cannot write {file}: {error.strerror}; make room: the same command, or `espalier resume`, then "
                "goes on where this one stopped"
            )
        sys.exit(2)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_PLACES = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENOENT)


def _print_error(text: str) -> None:
    line = " ".join(text.split())
    errors.print(Text.assemble(("error:", "bold red"), " ", line), soft_wrap=True)


def main() -> None:
    """Entry point of the ``espalier`` command: bad input is one line and exit code 2."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # package.module:callable of the user's own; last, so that it hides no package
    # Ctrl-C in the middle of a query: SQLAlchemy logs that it could not close the cursor, and raises all the same.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    with _one_line_errors():
        app()
