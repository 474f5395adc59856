"""The command ``espalier``, run in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from espalier import cli


class Answer(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def command_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], columns: int = 200) -> Command:
    """Runs ``espalier ARGUMENTS``, in a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
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
