"""Pictures of the paper's figures: the lines that were asked for are in them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.errors import ConfigError
from espalier.report import plots
from espalier.search.study.pareto_front import Point
from espalier.search.tasks.classification.measures import MEASURES

TOP1 = MEASURES["top1"]

DRAWN: dict[str, tuple[Callable[[Any, Path], None], Any]] = {
    "energies": (plots.energies, ("layer1", {"dense": np.array([3.0, 2.0]), "oicsr_gl": np.array([3.0, 0.0])})),
    "damage": (
        partial(plots.damage, metric=TOP1),
        {"dense": [(0.0, 90.0), (0.5, 20.0)], "oicsr_gl": [(0.0, 89.0), (0.5, 80.0)]},
    ),
    "ratios": (plots.ratios, {"dense": {"a": 0.5, "b": 1.0}, "oicsr_gl": {"a": 0.25, "b": 0.5}}),
}


POINTS = [Point(3, 10, -2.0, True, False), Point(1, 15, -2.5, True, True), Point(7, 20, -1.0, False, False)]


def test_a_front_shows_what_is_unbeaten_and_greedy(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.front(POINTS, tmp_path / "front.svg")
    assert {"front", "greedy"} <= set(re.findall(r"<!-- (\w+) -->", (tmp_path / "front.svg").read_text()))


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_every_figure_is_written(kind: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw, numbers = DRAWN[kind]
    file = tmp_path / "new" / f"{kind}{suffix}"
    draw(numbers, file)
    if suffix == ".png":
        assert file.read_bytes().startswith(b"\x89PNG")
    else:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
        assert file.read_text().count("dense") and file.read_text().count("oicsr_gl")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg, got 'damage\.pdf'"):
        plots.damage(DRAWN["damage"][1], tmp_path / "damage.pdf", TOP1)
