"""The numbers of the figures: what is trained, what is sorted, what is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.errors import ConfigError
from espalier.pruning.importance.energy import channel_energies
from espalier.search.analysis import figure_data as curves
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Silent


def trained(tiny: dict[str, Any], folder: Path, *wanted: str) -> curves.Trained:
    return curves.train(parse_config(tiny, "mine"), wanted, folder, Silent())


def test_one_network_per_regulariser_and_none_twice(tiny: dict[str, Any], tmp_path: Path) -> None:
    found = trained(tiny, tmp_path, "oicsr_gl=0.05", "separated_gl")
    assert list(found.networks) == ["dense", "oicsr_gl 0.05", "separated_gl 0.01"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "ladder").iterdir()}
    assert len(files) == 3
    trained(tiny, tmp_path, "separated_gl", "oicsr_gl=0.05")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ladder").iterdir()} == files
    assert list(trained(tiny, tmp_path).networks) == ["dense", "oicsr_gl 0.001", "oicsr_gl 0.01"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("oicsr", r"--regularizer must be one of oicsr_gl, .*, got 'oicsr'"),
        *(
            (f"oicsr_gl={bad}", rf"a strength from 0 as in oicsr_gl=0.01, got '{bad}'")
            for bad in ("x", "nan", "-1")
        ),
    ],
)
def test_what_cannot_be_trained(wanted: str, message: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(tiny, tmp_path, wanted)
    assert not list(tmp_path.iterdir())


def test_a_group_that_there_is_not_is_not_trained_for(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no channel group 'nope'; the network has conv1, "):
        curves.train(parse_config(tiny, "tiny"), None, tmp_path, Silent(), "nope")
    assert not list(tmp_path.iterdir())


def test_energies_fall_and_are_those_of_the_group(tiny: dict[str, Any], tmp_path: Path) -> None:
    found = trained(tiny, tmp_path, "none")
    graph = found.graph
    for number, group in enumerate(graph.groups):
        name, lines = curves.energies(found, group.name)
        whole = channel_energies(found.networks["dense"], graph).numpy()
        own = whole[graph.offsets[number] : graph.offsets[number + 1]]
        assert name == group.name and lines["dense"].tolist() == pytest.approx(sorted(own, reverse=True))
    assert curves.energies(found)[0] == graph.groups[int(np.argmax(graph.sizes))].name
    with pytest.raises(ConfigError, match="no channel group 'conv9'; the network has conv1, "):
        curves.energies(found, "conv9")


def test_damage_begins_with_the_whole_network(tiny: dict[str, Any], tmp_path: Path) -> None:
    found = trained(tiny, tmp_path, "oicsr_gl=0.05")
    lines = curves.damage(found)
    assert list(lines) == ["dense", "oicsr_gl 0.05"]
    for points in lines.values():
        removed = [share for share, _ in points]
        assert removed[0] == 0 and removed == sorted(removed)
        for share, wanted in zip(removed, curves.REMOVED, strict=False):
            assert share >= wanted
        assert points[0][1] > points[-1][1]


def test_ratios_of_a_search_and_of_a_loop(tmp_path: Path) -> None:
    search, loop = tmp_path / "search", tmp_path / "loop"
    search.mkdir()
    loop.mkdir()
    widths = {"dense": {"a": 8, "b": 4}, "greedy": {"a": 2, "b": 4}, "searched": {"a": 4, "b": 1}}
    (search / "result.json").write_text(json.dumps({name: {"widths": own} for name, own in widths.items()}))
    assert curves.ratios(search) == {"greedy": {"a": 0.25, "b": 1.0}, "searched": {"a": 0.5, "b": 0.25}}
    rounds = [{"number": 1, "widths": {"a": 6, "b": 3}}, {"number": 2, "widths": {"a": 2, "b": 3}}]
    (loop / "prune.json").write_text(json.dumps({"dense_widths": widths["dense"], "rounds": rounds}))
    assert curves.ratios(loop) == {"round 1": {"a": 0.75, "b": 0.75}, "round 2": {"a": 0.25, "b": 0.75}}
    with pytest.raises(ConfigError, match=r"neither result\.json of a search nor prune\.json of a loop"):
        curves.ratios(tmp_path)
