"""Where a study's runs keep their files: each machine remembers its own folders, and learns of the others'.

Trained networks lie in the run folder, and training repeats bit for bit only on the same machine and versions. So a
machine that goes on with a study trains what its folder lacks, and takes it if it is what the study searched.

Several people may write to a storage, so its word alone chooses no folder. The run folder is the one that the user
names; else the recorded one, if the storage is its ``study.db`` or a run of the study has left its mark there; else
``runs/STUDY``. Paths of data and weights are read, and never written to.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from espalier.errors import ArtefactError, ConfigError, StudyMismatch
from espalier.search.files.tensor_files import load_header
from espalier.search.study.keys import CHECKPOINTS, PREFIX
from espalier.search.study.storage import absolute, once

_PLACE = PREFIX + "place:"
_ID, _MARKS = "id", ".studies"
"""Attribute of a study, and folder inside a run folder where an empty file of that name says whose it is."""
_FILES = "ladder"
LADDER = "ladder"
"""Folder, inside the run folder, of the networks that the search cuts from."""


@dataclass(frozen=True)
class RunFolder:
    """What one machine calls the study's paths.

    Attributes:
        out: the run folder.
        root: of the data, or None.
        weights: of the network, or None.
    """

    out: str
    root: str | None = None
    weights: str | None = None


def settle(study: optuna.Study, out: Path, *, root: str | Path | None, weights: str | Path | None) -> None:
    """Remembers the paths of a run on this machine, and marks its folder as the study's.

    Args:
        study: the record.
        out: the run folder.
        root: of the data, or None.
        weights: of the network, or None.
    """
    place = RunFolder(str(out.resolve()), _absolute(root), _absolute(weights))
    if _places(study.user_attrs).get(socket.gethostname()) != place:
        study.set_user_attr(_PLACE + socket.gethostname(), asdict(place))
    once(study, _ID, lambda: uuid.uuid4().hex)
    if (mark := _mark(study.user_attrs, out)) is not None:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(attributes: Mapping[str, Any], out: Path) -> Path | None:
    """The file that marks a run folder as a study's."""
    found = attributes.get(PREFIX + _ID)
    return out / _MARKS / found if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found) else None


def is_shared(out: Path) -> bool:
    """Whether several studies have run in a folder."""
    marks = out / _MARKS
    return marks.is_dir() and len(list(marks.iterdir())) > 1


def run_folder_here(attributes: Mapping[str, Any]) -> RunFolder | None:
    """This machine's own paths, where it has run the study before."""
    return _places(attributes).get(socket.gethostname())


def folder_of(study: str) -> Path:
    """The run folder of a new study, ``runs/STUDY``.

    Raises:
        ConfigError: the study's name leads out of there.
    """
    return Path("runs") / name_of_folder(study)


def make_folder(folder: Path) -> None:
    """Makes a run folder, if it is not there.

    Raises:
        ConfigError: it cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}; choose another out") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"the run folder {folder} cannot be written to: choose another out")


def name_of_folder(study: str) -> str:
    """A study's name, as that of a folder.

    Raises:
        ConfigError: it leads elsewhere.
    """
    parts = Path(study).parts
    if not parts or Path(study).is_absolute() or ".." in parts or "\0" in study:
        raise ConfigError(
            f"the name of a study must name a folder below another one, and {study!r} leads elsewhere: give --out "
            "and no --mirror, or rename it with `espalier study rename`"
        )
    return study


def folder_here(study: str, attributes: Mapping[str, Any], url: str) -> Path:
    """The run folder of a study on this machine: its own, one of another machine's that it sees, or a new one.

    Args:
        study: its name.
        attributes: the study's.
        url: of its storage, as the user named it.

    Raises:
        ConfigError: none of its own is here, and its name cannot be a new one's.
    """
    places = _places(attributes)
    if (own := places.get(socket.gethostname())) is not None:
        recorded = [Path(own.out)]
    else:
        recorded = [Path(place.out) for place in places.values() if (Path(place.out) / LADDER).is_dir()]
    known = (out for out in recorded if _is_known(out, attributes, url))
    return next(known, None) or folder_of(study)


def folder_passed_over(attributes: Mapping[str, Any], out: Path) -> Path | None:
    """The run folder that the study says it had on this machine, where another one is used."""
    place = _places(attributes).get(socket.gethostname())
    return Path(place.out) if place is not None and Path(place.out) != out.resolve() else None


def _is_known(out: Path, attributes: Mapping[str, Any], url: str) -> bool:
    """Whether more than the study's word says so: the user's storage lies there, or a run has marked the folder."""
    mark = _mark(attributes, out)
    try:
        return absolute(url) == f"sqlite:///{out.resolve() / 'study.db'}" or (mark is not None and mark.is_file())
    except (OSError, ValueError):
        return False


def made_elsewhere(attributes: Mapping[str, Any]) -> str | None:
    """Where a study has run, if never on this machine."""
    places = _places(attributes)
    return None if socket.gethostname() in places else ", ".join(sorted(places)) or None


class LadderFiles:
    """The networks that a study searches over, and the files that they lie in.

    Args:
        study: the record.
        out: the run folder.
    """

    def __init__(self, study: optuna.Study, out: Path) -> None:
        self._study, self._folder = study, out / LADDER
        attributes = study.user_attrs
        made: dict[str, str] = attributes.get(PREFIX + _FILES, {})  # file -> digest
        self._digests = {name: digest for name, digest in made.items() if name == Path(name).name}
        self._rungs: list[str] | None = attributes.get(PREFIX + CHECKPOINTS)
        self._places = _places(attributes)

    @property
    def missing(self) -> list[str]:
        """Names of the files that the folder lacks."""
        return [name for name in self._digests if not (self._folder / name).is_file()]

    @property
    def where(self) -> str:
        """Where other runs had them."""
        here = (socket.gethostname(), self._folder.resolve())
        folders = [(host, Path(place.out) / LADDER) for host, place in self._places.items()]
        return " or ".join(f"{host}:{folder}" for host, folder in folders if (host, folder) != here)

    def check(self, digest: str) -> None:
        """Refuses a network that the study has not searched over.

        Raises:
            StudyMismatch: says which files are needed, and where they are.
        """
        if self._digests and digest not in self._digests.values():
            raise self._mismatch(digest)

    def agree(self, dense: str, rungs: list[str]) -> None:
        """Refuses the digests of another ladder.

        Raises:
            StudyMismatch: likewise.
        """
        for digest in (dense, *rungs):
            self.check(digest)
        if self._rungs is not None and self._rungs != rungs:
            raise self._mismatch(", ".join(rungs))

    def record(self, dense: str, rungs: list[str]) -> None:
        """Writes the ladder down, where no run has done so yet.

        Raises:
            StudyMismatch: another run was first, with other numbers.
        """
        self._rungs = once(self._study, CHECKPOINTS, lambda: rungs)
        self.agree(dense, rungs)  # or else it is the other run that says which files these are
        self._digests = once(self._study, _FILES, lambda: self._files_of({dense, *rungs}))
        self.agree(dense, rungs)

    def _files_of(self, digests: set[str]) -> dict[str, str]:
        found = {path.name: _digest(path) for path in sorted(self._folder.glob("*.safetensors"))}
        return {name: digest for name, digest in found.items() if digest in digests}

    def _mismatch(self, found: str) -> StudyMismatch:
        needed = [name for name, digest in self._digests.items() if _digest(self._folder / name) != digest]
        return StudyMismatch(
            f"the study {self._study.study_name!r} searched over other networks than those in {self._folder} "
            f"({found}): training repeats bit for bit only on the same machine and versions, so put there the "
            f"run's own {', '.join(needed)}" + (f" from {self.where}" if self.where else "")
        )


def _digest(path: Path) -> str:
    try:
        return str(load_header(path).get("digest", ""))
    except ArtefactError:
        return ""


def _places(attributes: Mapping[str, Any]) -> dict[str, RunFolder]:
    found = {key.removeprefix(_PLACE): value for key, value in attributes.items() if key.startswith(_PLACE)}
    return {
        host: RunFolder(value["out"], value.get("root"), value.get("weights"))
        for host, value in found.items()
        if isinstance(value, dict) and isinstance(value.get("out"), str)
        if all(isinstance(value.get(key), str | None) for key in ("root", "weights"))
    }


def _absolute(path: str | Path | None) -> str | None:
    """A path that exists holds wherever the next run starts; anything else is left as the user wrote it."""
    if path is None:
        return None
    expanded = Path(path).expanduser()
    return str(expanded.resolve()) if expanded.exists() else str(path)
