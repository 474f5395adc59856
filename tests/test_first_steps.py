"""``espalier configs``, ``init`` and ``doctor``: what a newcomer begins with."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from espalier import cli
from espalier.search.config.loading import load_config, shipped_configs


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs the command in this process, in a folder of its own."""
    for variable in ("OPTUNA_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["espalier", *arguments])
        monkeypatch.setitem(cli._options, "debug", False)
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return Answer(code, *capfd.readouterr())

    yield run
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


# ------------------------------------------------------------------------------------------------ configs


def test_the_shipped_configs_are_listed_with_their_length(command: Command) -> None:
    answer = command("configs")
    assert answer.code == 0 and len(shipped_configs()) == 5
    for name in shipped_configs():
        assert re.search(rf"^ *{name} +ResNet-\d+ on .*, in .*\b(minutes|hours?) on", answer.out, re.MULTILINE), (
            name
        )


def test_a_shipped_config_is_copied_and_nothing_is_replaced(command: Command, tmp_path: Path) -> None:
    assert "next: espalier search digits.yaml" in command("configs", "copy", "digits").out
    copied = tmp_path / "digits.yaml"
    assert copied.read_bytes() == shipped_configs()["digits"].read_bytes()
    assert load_config(copied) == load_config("digits")
    copied.write_text("mine")
    answer = command("configs", "copy", "digits")
    assert answer.code == 2 and "digits.yaml is there already: name another file, or replace it" in answer.err
    assert copied.read_text() == "mine"
    assert command("configs", "copy", "digits", "--force").code == 0 and copied.read_text() != "mine"
    assert command("configs", "copy", "cifar10_resnet56", "own.yaml").code == 0
    assert load_config("own.yaml").model.name == "resnet56"
    assert "did you mean 'digits'?" in command("configs", "copy", "digit").err
    assert "the folder none is not there" in command("configs", "copy", "digits", "none/x.yaml").err
