"""The mirror: what is fetched, what is sent, and what stays."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from espalier.errors import ConfigError, MissingPackage, StorageError
from espalier.search.progress.reporter import Silent
from espalier.search.study.mirror import CheckpointMirror


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(params=["{}/share", "file://{}/share", "memory://{}/share"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def listing(url: str) -> dict[str, str]:
    system, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root + "/"): system.cat_file(path).decode() for path in system.find(root)}


def test_what_is_new_is_sent_and_what_is_lacking_is_fetched(url: str, tmp_path: Path) -> None:
    one, other, said = tmp_path / "one", tmp_path / "other", Said()
    write(one, "ladder/dense-1.safetensors", "dense")
    with CheckpointMirror(one, url, "s", said):
        write(one, "finetuned/a-seed0.safetensors", "tuned")
        write(one, "finetuned/.b-seed0.safetensors.77", "half of a file")
        write(one, "result.json", "{}")
    kept = {"s/ladder/dense-1.safetensors": "dense", "s/finetuned/a-seed0.safetensors": "tuned"}
    assert listing(url) == kept and said.lines == []
    with CheckpointMirror(other, url, "s", said):
        assert (other / "ladder/dense-1.safetensors").read_text() == "dense"
        assert (other / "finetuned/a-seed0.safetensors").read_text() == "tuned"
    assert said.lines == [f"2 checkpoints fetched from {url}"] and listing(url) == kept
    with CheckpointMirror(tmp_path / "third", url, "another", said):
        assert not (tmp_path / "third").exists()


def test_a_finished_network_stays_what_it_was(url: str, tmp_path: Path) -> None:
    said = Said()
    for number in range(2):
        write(tmp_path / f"{number}", "ladder/dense-1.safetensors", f"of machine {number}")
        with CheckpointMirror(tmp_path / f"{number}", url, "s", said):
            pass
    assert listing(url) == {"s/ladder/dense-1.safetensors": "of machine 0"}
    assert (tmp_path / "1/ladder/dense-1.safetensors").read_text() == "of machine 1"


def test_a_training_under_way_moves_on_and_goes_when_it_has_ended(url: str, tmp_path: Path) -> None:
    name = "ladder/rung0-1.partial.safetensors"
    one, other = tmp_path / "one", tmp_path / "other"
    mirror = CheckpointMirror(one, url, "s", Said())
    for content in ("10 steps", "20 steps"):
        write(one, name, content)
        mirror.send()
        assert listing(url) == {f"s/{name}": content}
    elsewhere = CheckpointMirror(other, url, "s", Said())
    assert elsewhere.fetch() == [name] and (other / name).read_text() == "20 steps"
    (other / name).rename(other / "ladder/rung0-1.safetensors")
    elsewhere.send()
    assert listing(url) == {"s/ladder/rung0-1.safetensors": "20 steps"}


def test_a_mirror_that_fails_is_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    write(tmp_path / "run", "ladder/dense-1.safetensors", "dense")
    mirror = CheckpointMirror(tmp_path / "run", str(tmp_path / "share"), "s", said)
    (tmp_path / "share").write_text("in the way")
    mirror.try_to_send()
    mirror.try_to_send()
    (line,) = said.lines
    assert line.startswith(f"cannot send checkpoints to {tmp_path / 'share'}: ")
    (tmp_path / "share").unlink()
    mirror.try_to_send()
    assert listing(str(tmp_path / "share")) == {"s/ladder/dense-1.safetensors": "dense"}


@pytest.mark.parametrize(
    "url", ["ftp://me:sesame@host/x", "s3://bucket/x?secret_key=sesame", "ftp://h/x?password=sesame"]
)
def test_a_password_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the mirror's URL must hold no password: ") as caught:
        CheckpointMirror(tmp_path, url, "s", Silent())
    assert "sesame" not in str(caught.value)


def test_a_mirror_that_nobody_knows_or_that_needs_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^cannot open the mirror nonsense://x: Protocol not known"):
        CheckpointMirror(tmp_path, "nonsense://x", "s", Silent())

    def lacking(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    with pytest.raises(MissingPackage, match=r"^the mirror s3://bucket/x needs another package: Install s3fs"):
        CheckpointMirror(tmp_path, "s3://bucket/x", "s", Silent())


def test_a_mirror_that_cannot_be_read_is_an_error_in_a_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", "ladder/dense-1.safetensors", "dense")
    with CheckpointMirror(tmp_path / "one", url, "s", Silent()):
        pass
    mirror = CheckpointMirror(tmp_path / "other", url, "s", Silent())

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the connection\nwas reset")

    monkeypatch.setattr(mirror._remote, "get_file", fails)
    line = r"^cannot fetch checkpoints from .*/share: RuntimeError: the connection was reset; nothing is lost: "
    with pytest.raises(StorageError, match=line), mirror:
        pass
    assert list((tmp_path / "other").rglob("*.*")) == []
