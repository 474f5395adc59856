"""The table on the terminal, at its usual width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from espalier.cli import comparisons
from espalier.search.compare.protocol import Compared
from tests.command_line import set_columns


def test_the_table_fits_eighty_columns(
    make: Callable[..., Compared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_columns(monkeypatch, 80)
    comparison = make(tmp_path).comparison
    comparisons.show(comparison)
    shown = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown and max(map(len, shown.splitlines())) <= 80
    assert shown.index("50 % of the MACs") < shown.index("25 % of the MACs")
    assert "latency" not in shown  # results of before have one number alone
    for row in comparison.rows:
        assert f"{row.after:.2f} ± {row.sd:.2f}" in shown
    assert " ".join(shown.split()).endswith(" ".join((comparison.verdict, *comparison.remarks)))


def test_right_and_wrong_count_in_the_unit_of_the_score(make: Callable[..., Compared], tmp_path: Path) -> None:
    """Of a score in [0, 1], what single images add is a hundredth of what it is in percent."""
    percent = make(tmp_path).comparison
    cells = tuple(replace(cell, after=cell.after / 100) for cell in percent.cells)
    share = replace(percent.asked, metric=replace(percent.asked.metric, unit="", floor=0.1, ceiling=1.0))
    found = replace(percent, asked=share, cells=cells)
    assert percent.test_examples == found.test_examples > 1
    for one, other in zip(percent.answers, found.answers, strict=True):
        for name, wide in one.differences.items():
            narrow = other.differences[name]
            assert narrow.p == pytest.approx(wide.p, rel=1e-6)
            assert (narrow.low, narrow.high) == pytest.approx((wide.low / 100, wide.high / 100), rel=1e-6)
    untold = replace(share, images={**share.images, "test": 0})  # as tasks of the user's own may say
    assert replace(found, asked=untold).answers == found.answers


def test_latencies_have_a_table_of_their_own(
    make: Callable[..., Compared],
    timed: Callable[[Compared, float], Compared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_columns(monkeypatch, 80)
    comparison = timed(make(tmp_path), 0.0).comparison
    asked = replace(comparison.asked, runtimes=("eager", "onnxruntime"), batches=(1, 32), threads=2)
    comparisons.show(replace(comparison, asked=asked))
    shown = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown and max(map(len, shown.splitlines())) <= 80
    assert shown.count("latency, ") == 2 and "latency, 50 % of the MACs; 2 threads" in shown
    lines = [line.split() for line in shown.splitlines() if "onnxruntime" in line]
    assert lines[0] == [
        "dense",
        "onnxruntime",
        "32",
        "1.5",
        "1",
        "to",
        "2",
        "21,333",
        "1.00\N{MULTIPLICATION SIGN}",
    ]
    assert ["auto", "onnxruntime", "32", "0.5", "0.25", "to", "1", "64,000", "3.00\N{MULTIPLICATION SIGN}"] in lines
    assert "not quiet" not in shown
    comparisons.show(timed(make(tmp_path), 0.5).comparison)
    assert "The machine was not quiet while networks were timed" in capsys.readouterr().out
