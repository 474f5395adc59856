"""The table on the terminal, at its usual width."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.cli import comparisons, options
from espalier.search.compare.protocol import Compared


def test_the_table_fits_eighty_columns(
    make: Callable[..., Compared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options.console, "_width", 80)
    comparison = make(tmp_path).comparison
    comparisons.show(comparison)
    shown = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown and max(map(len, shown.splitlines())) <= 80
    assert shown.index("50 % of the MACs") < shown.index("25 % of the MACs")
    for row in comparison.rows:
        assert f"{row.after:.2f} ± {row.sd:.2f}" in shown
    assert " ".join(shown.split()).endswith(comparison.verdict)
