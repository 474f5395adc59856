"""What is written down and read back: files that appear whole or not at all, and records of other versions."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Kept = TypeVar("Kept", bound=DataclassInstance)

STALE_SECONDS = 3600.0
"""After which a temporary file is taken for one of a process that was killed."""


@contextmanager
def whole_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary file to write, which takes the place of a file once it is whole.

    No two writers have the same one, whatever machines, containers and threads they run in. If writing fails, it
    goes and the file stays as it was. If the process is killed, a later writer of that file removes what it left.

    Args:
        path: of the file; its folder is made.
        replace: whether a file that is there is replaced.

    Raises:
        FileExistsError: the file is there, and is not to be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        _remove_stale(path, partial)
        if replace:
            os.replace(partial, path)
        else:
            _link(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # also of a full disk this takes nothing away


def _remove_stale(path: Path, partial: Path) -> None:
    now = partial.stat().st_mtime  # by the clock of the file system, as the others' times are
    for other in path.parent.glob(f".{_escaped(path.name)}.{'?' * 32}.part"):
        try:
            if now - other.stat().st_mtime > STALE_SECONDS:
                other.unlink()
        except FileNotFoundError:  # another process has removed it
            pass


def _link(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # which, unlike a renaming, fails where the file is there
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: of two writers at the same moment the second one wins
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(partial, path)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def record_from(kind: type[Kept], content: Mapping[str, Any]) -> Kept:
    """A record as it was written by this version or another: fields that this one does not know are left out."""
    known = {field.name for field in fields(kind) if field.init}
    return kind(**{key: value for key, value in content.items() if key in known})
