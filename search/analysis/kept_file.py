"""What a study of this package has found out once, in a JSON file that is written as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from espalier.search.config.loading import comparable
from espalier.search.files.json_files import read_json, write_json


class KeptFile:
    """A JSON file that goes on from what it holds, or begins anew where that was found from other inputs.

    Args:
        path: of the file.
        inputs: what all of it depends on, as JSON; ``config`` is a fingerprint.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Any]) -> None:
        now: dict[str, Any] = json.loads(json.dumps(inputs))
        self._path, held = path, read_json(path) or {}
        if "inputs" in held:
            now["config"] = comparable(now["config"], held["inputs"]["config"])
        self._content: dict[str, Any] = held if held.get("inputs") == now else {"inputs": now}

    def part(self, name: str) -> dict[str, Any]:
        """One of its objects, to be read and added to; `write` keeps what was added."""
        found: dict[str, Any] = self._content.setdefault(name, {})
        return found

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is found out once: as it was, or made and kept now."""
        kept = self.part("kept")
        if name not in kept:
            kept[name] = make()
            self.write()
        found: dict[str, Any] = kept[name]
        return found

    def write(self) -> None:
        """Keeps all of it."""
        write_json(self._path, self._content)
