"""What the README shows is so: its lines of Python run, its commands are there, its figures are on record."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

import espalier
from espalier import cli
from espalier.search.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python)?\n(.*?)```", README, re.DOTALL)
SEARCHES = (ROOT / "docs" / "measurements" / "searches.md").read_text(encoding="utf-8")
WIDTHS = runpy.run_path(str(ROOT / "docs" / "widths.py"))
RESULTS = ROOT / "benchmarks" / "results"


def test_it_is_short_and_says_how_to_begin() -> None:
    assert len(README.splitlines()) < 110
    assert "```\nmake test\n```" in README and "`make demo`" in README
    assert README.index("widths.svg") < README.index("## Install") < README.index("## In Python")


def test_its_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    draw = torch.Generator().manual_seed(0)
    x_train, x_test = torch.randn(256, 8, generator=draw), torch.randn(100, 8, generator=draw)
    y_train, y_test = x_train[:, :3].argmax(1), x_test[:, :3].argmax(1)

    def accuracy(network: nn.Module) -> float:
        return float((network(x_test).argmax(1) == y_test).float().mean())

    def train(network: nn.Module, *, epochs: float, seed: int) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for rows in torch.arange(256).split(32) * int(epochs):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x_train[rows]), y_train[rows]).backward()
            optimizer.step()

    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    names: dict[str, Any] = {"network": network, "accuracy": accuracy, "train": train, "x_train": x_train}
    for long, short in {"trials=100": "trials=5", "workers=2": "workers=0", "epochs=5": "epochs=1"}.items():
        assert long in block
        block = block.replace(long, short)
    exec(block, names)
    shown = capsys.readouterr().out
    assert "\nsearched " in shown and "5 trials" in shown
    small = espalier.load("mine.espalier", network)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("line", re.findall(r"^espalier (.*)$", "".join(BLOCKS), re.MULTILINE))
def test_its_commands_are_there(line: str) -> None:
    words = line.partition("  ")[0].split()
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in re.findall(r"--[\w-]+", line)} <= known


@pytest.mark.parametrize("page", [README, SEARCHES], ids=["README", "searches"])
def test_its_figures_are_on_record(page: str) -> None:
    result = json.loads((RESULTS / "fashion_mnist_keep15.json").read_text())
    block = page[page.index("espalier search fashion_mnist\n") :]
    for name in ("dense", "greedy", "searched"):
        (row,) = re.findall(rf"^{name} +(.*)$", block.partition("```")[0], re.MULTILINE)
        outcome = result[name]
        share = 100 * outcome["macs"] / result["dense"]["macs"]
        told = f"{outcome['macs'] / 1e6:.3f} {share:.1f}% {outcome['params']:,} {outcome['strength']:g}"
        figures = [f"{outcome[key]:.2f}" for key in ("top1_proxy", "top1_before_finetune", "top1_after_finetune")]
        assert row.split()[:7] == [*told.split(), *figures]
    assert result["verdict"] in " ".join(block.split())


def test_its_table_counts_the_samplers() -> None:
    (count,) = re.findall(r"one of (\d+) \[samplers\]", README)
    assert int(count) == len(SAMPLERS)


def test_its_picture_is_of_that_result() -> None:
    drawn = WIDTHS["picture"](json.loads(WIDTHS["RESULT"].read_text()))
    assert WIDTHS["FILE"].read_text(encoding="utf-8") == drawn, "python docs/widths.py draws it again"
    assert WIDTHS["RESULT"] == RESULTS / "fashion_mnist_keep15.json"
