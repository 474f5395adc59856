"""Where a study's runs keep their files: each machine remembers its own folders, and learns of the others'.

Trained networks lie in the run folder, and training repeats bit for bit only on the same machine and versions. So a
machine that goes on with a study trains what its folder lacks, and takes it if it is what the study searched.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from espalier.errors import ArtefactError, StudyMismatch
from espalier.search.attributes import CHECKPOINTS, PREFIX
from espalier.search.checkpoint import load_header
from espalier.search.config import Config
from espalier.search.storage import once

_PLACE = PREFIX + "place:"
_FILES = "ladder"
LADDER = "ladder"
"""Folder, inside the run folder, of the networks that the search cuts from."""


@dataclass(frozen=True)
class Place:
    """What one machine calls the study's paths.

    Attributes:
        out: the run folder.
        root: of the data, or None.
        weights: of the network, or None.
    """

    out: str
    root: str | None = None
    weights: str | None = None


def settle(study: optuna.Study, config: Config, out: Path) -> None:
    """Remembers the paths of a run on this machine."""
    root, weights = config.data.root, config.model.weights
    place = Place(str(out.resolve()), _absolute(root), _absolute(weights))
    if _places(study.user_attrs).get(socket.gethostname()) != place:
        study.set_user_attr(_PLACE + socket.gethostname(), asdict(place))


def config_here(config: Config, attributes: Mapping[str, Any]) -> Config:
    """A study's config with this machine's own paths, where it has run the study before."""
    place = _places(attributes).get(socket.gethostname())
    if place is None:
        return config
    data, model = {"root": place.root and Path(place.root)}, {"weights": place.weights and Path(place.weights)}
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "model": config.model.model_copy(update=model)}
    )


def folder_here(study: str, attributes: Mapping[str, Any]) -> Path:
    """The run folder of a study on this machine: its own, one of another machine's that it sees, or a new one."""
    places = _places(attributes)
    if socket.gethostname() in places:
        return Path(places[socket.gethostname()].out)
    seen = (Path(place.out) for place in places.values())
    return next((out for out in seen if (out / LADDER).is_dir()), Path("runs") / study)


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
        self._digests: dict[str, str] = attributes.get(PREFIX + _FILES, {})  # file -> digest
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


def _places(attributes: Mapping[str, Any]) -> dict[str, Place]:
    found = {key.removeprefix(_PLACE): value for key, value in attributes.items() if key.startswith(_PLACE)}
    return {host: Place(**value) for host, value in found.items()}


def _absolute(path: str | Path | None) -> str | None:
    """A path that exists holds wherever the next run starts; anything else is left as the user wrote it."""
    if path is None:
        return None
    expanded = Path(path).expanduser()
    return str(expanded.resolve()) if expanded.exists() else str(path)
