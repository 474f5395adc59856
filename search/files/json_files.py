"""JSON files of a run folder, which appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from espalier.errors import ArtefactError
from espalier.persistence import whole_file


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file, its innermost lists and objects on a line each; numbers that are not finite as null."""
    with whole_file(path) as partial:
        _write(partial, content)


def json_once(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a file holds, made where there is none: of several processes that make it at a time, one decides."""
    if (found := read_json(path)) is None:
        with suppress(FileExistsError), whole_file(path, replace=False) as partial:
            _write(partial, make())
        found = read_json(path)
    assert found is not None
    return found


def json_digest(content: Any, digits: int = 12) -> str:
    """Names what JSON can hold: equal content, equal digest; objects are equal in any order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:digits]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(_lines(_finite(content)) + "\n", encoding="utf-8")


def _lines(content: Any, indent: str = "") -> str:
    """JSON with a line for each value; the innermost lists and objects stand on one line."""
    inner = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    if not any(isinstance(value, dict | list) for value in inner):
        return json.dumps(content, allow_nan=False)
    deeper = indent + " "
    lines = [_lines(value, deeper) for value in inner]
    if isinstance(content, dict):
        lines = [f"{json.dumps(key)}: {line}" for key, line in zip(content, lines, strict=True)]
    opening, closing = "{}" if isinstance(content, dict) else "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(lines) + f"\n{indent}{closing}"


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file holds, None where there is none.

    Raises:
        ArtefactError: it cannot be read, or is not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"cannot read {path}: {error}; remove it, and it is made again") from error
    return content


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
