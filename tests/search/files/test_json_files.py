"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import ArtefactError
from espalier.search.files.json_files import read_json, write_json


def test_what_is_written_is_read_and_no_number_is_out_of_jsons_reach(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    assert read_json(path) is None
    write_json(path, {"a": (1.5, math.nan), "b": {2: math.inf, "c": "text"}})
    assert read_json(path) == {"a": [1.5, None], "b": {"2": None, "c": "text"}}
    assert "NaN" not in path.read_text() and list(path.parent.iterdir()) == [path]


def test_innermost_lists_and_objects_stand_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"a": 1, "widths": {"conv1": 2}, "none": [], "ü": [{"x": [1, 2], "y": {}}, "text", [3]]}
    write_json(path, content)
    assert read_json(path) == content
    assert path.read_text() == (
        '{\n "a": 1,\n "widths": {"conv1": 2},\n "none": [],\n "\\u00fc": [\n'
        '  {\n   "x": [1, 2],\n   "y": {}\n  },\n  "text",\n  [3]\n ]\n}\n'
    )


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_file_that_is_half_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, 2')
    with pytest.raises(ArtefactError, match=r"^cannot read .*a\.json: .*; remove it, and it is made again$"):
        read_json(tmp_path / "a.json")
