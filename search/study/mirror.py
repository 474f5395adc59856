"""A copy of a run's checkpoints where other machines find them: object storage, or a folder that all of them mount.

Networks, those of the ladder and the fine-tuned ones, are too large for a study's storage. With a mirror, a machine
that never saw the run folder goes on with the same ones, to the last bit.
"""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import fsspec

from espalier.errors import ConfigError, MissingPackage, StorageError
from espalier.persistence import whole_file
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import Reporter
from espalier.search.study.run_folder import name_of_folder

FOLDERS = ("ladder", "finetuned")
"""Of the run folder, that are kept."""
SECONDS = 60.0
"""Between one look for new files and the next."""


class CheckpointMirror:
    """Fetches what the run folder lacks, and sends what is new for as long as the context lasts.

    A file of a finished training is never sent in place of one that is there; that of a training under way is, and
    goes when the training has ended.

    Args:
        out: the run folder.
        url: of the mirror, any that fsspec knows: ``s3://bucket/path``, ``gs://...``, ``file:///mnt/share``.
        study: names the folder there.
        reporter: told what was fetched, and what fails.

    Raises:
        ConfigError: the URL holds a password, or fsspec does not know it, or the study's name is no folder's.
        MissingPackage: fsspec needs a package for it.
    """

    def __init__(self, out: Path, url: str, study: str, reporter: Reporter) -> None:
        self._out, self._reporter, self._url = out, reporter, url
        self._remote, root = _opened(url)
        self._root = f"{root.rstrip('/')}/{name_of_folder(study)}"
        self._sent: dict[str, int] = {}  # file -> when it was changed, as it is there
        self._failing = False
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send_now_and_then, daemon=True)

    def __enter__(self) -> Self:
        if fetched := self.fetch():
            self._reporter.say(f"{len(fetched)} checkpoints fetched from {self._url}")
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join()
        self.try_to_send()

    def fetch(self) -> list[str]:
        """Brings the files that the run folder lacks, and names them.

        Raises:
            StorageError: the mirror cannot be read: without its files, the run would train others.
        """
        try:
            return self._fetched()
        except Exception as error:  # every remote file system has its own
            said = " ".join(str(error).split())
            raise StorageError(
                f"cannot fetch checkpoints from {self._url}: {type(error).__name__}: {said}; nothing is lost: "
                "the same command, or `espalier resume`, goes on when the mirror can be read"
            ) from error

    def _fetched(self) -> list[str]:
        fetched = []
        for folder in FOLDERS:
            place = f"{self._root}/{folder}"
            for entry in self._remote.ls(place, detail=False) if self._remote.exists(place) else ():
                name = f"{folder}/{entry.rsplit('/', 1)[-1]}"
                path = self._out / name
                if not name.endswith(".safetensors") or path.exists():
                    continue
                with whole_file(path) as partial:
                    self._remote.get_file(entry, str(partial))
                self._sent[name] = path.stat().st_mtime_ns
                fetched.append(name)
        return fetched

    def send(self) -> None:
        """Sends what is new, and removes there what belonged to a training that has ended."""
        found: dict[str, Path] = {}
        for folder in FOLDERS:
            found |= {f"{folder}/{path.name}": path for path in (self._out / folder).glob("*.safetensors")}
        for name, path in sorted(found.items()):
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:  # its training has ended at this moment
                continue
            if self._sent.get(name) == changed:
                continue
            there = f"{self._root}/{name}"
            if name.endswith(PARTIAL) or not self._remote.exists(there):
                self._send(path, there)
            self._sent[name] = changed
        for name in [name for name in self._sent if name.endswith(PARTIAL) and name not in found]:
            if self._remote.exists(there := f"{self._root}/{name}"):
                self._remote.rm_file(there)
            del self._sent[name]

    def _send(self, path: Path, there: str) -> None:
        folder, _, name = there.rpartition("/")
        beside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        self._remote.makedirs(folder, exist_ok=True)
        self._remote.put_file(str(path), beside)
        self._remote.mv(beside, there)  # whole, or not at all

    def _send_now_and_then(self) -> None:
        while not self._stop.wait(SECONDS):
            self.try_to_send()

    def try_to_send(self) -> None:
        """Sends, or tells that it fails: once, until it works again."""
        try:
            self.send()
            self._failing = False
        except Exception as error:  # every remote file system has its own; a run does not end by one
            if not self._failing:
                self._reporter.say(f"cannot send checkpoints to {self._url}: {type(error).__name__}: {error}")
            self._failing = True


def check_mirror(url: str) -> str:
    """The URL of a mirror as a study may remember it: a folder's from anywhere.

    Raises:
        ConfigError: it holds a password, which the study would show to everybody, or fsspec does not know it.
        MissingPackage: fsspec needs a package for it.
    """
    _opened(url)
    return url if "://" in url else str(Path(url).expanduser().resolve())


def _opened(url: str) -> tuple[Any, str]:
    parts = urlsplit(url)
    if parts.password or "pass" in parts.query.lower() or "secret" in parts.query.lower():
        raise ConfigError("the mirror's URL must hold no password: fsspec takes it from the environment")
    try:
        remote, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingPackage(f"the mirror {url} needs another package: {error}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot open the mirror {url}: {error}") from error
    return remote, root
