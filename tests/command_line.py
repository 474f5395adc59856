"""The command ``espalier``, run in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from espalier import cli
from espalier.cli import options


class Answer(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def set_columns(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Says how wide the terminal is, whatever it was when the command was imported."""
    for console in (options.console, options.errors):
        monkeypatch.setattr(console, "width", columns)


def command_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], columns: int = 200) -> Command:
    """Runs ``espalier ARGUMENTS``, in a terminal of so many columns."""
    set_columns(monkeypatch, columns)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["espalier", *arguments])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return Answer(code, *capfd.readouterr())

    return run
