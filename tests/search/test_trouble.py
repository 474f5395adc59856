"""What a user's own code and places may do: one line, exit code 2, and nothing is trained for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.errors import ConfigError, DataError
from espalier.pruning.networks import build
from espalier.search.tasks.classification.data.custom import load_callable
from tests.command_line import command_of

PRETRAINED = ("search.sampler=agent", "search.agent.pretrained=mine.yaml")


@pytest.fixture
def config(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    Path("mine.yaml").write_text(yaml.safe_dump(tiny))
    return "mine.yaml"


def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    answer = command_of(monkeypatch, capfd)(*words)
    assert answer.code == 2
    said = answer.err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


@pytest.mark.parametrize(
    "words",
    [
        ("search", "--out", "afile"),
        ("compare", "--out", "afile"),
        ("prune", "--out", "afile"),
        ("proxy-study", "--out", "afile"),
        ("plot energies", "--out", "afile"),
        ("agents train", "--out", "afile"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("no_training")
def test_a_run_folder_that_cannot_be_is_found_before_anything_is_trained(
    words: tuple[str, ...],
    config: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("afile").touch()
    said = refused(capfd, monkeypatch, *words[0].split(), config, *words[1:])
    assert "afile" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plot", "energies", "mine.yaml", "--file", "e.gif"), "a picture must end in .png or .svg, got 'e.gif'"),
        (("plot", "damage", "mine.yaml", "--file", "e.gif"), "a picture must end in .png or .svg, got 'e.gif'"),
        (("plot", "energies", "mine.yaml", "--group", "nope"), "there is no channel group 'nope'"),
        (
            ("search", "mine.yaml", "search.sampler=agent", "search.agent.pretrained=mine.yaml"),
            "is not an agent of",
        ),
        (
            ("compare", "mine.yaml", "search.sampler=agent", "search.agent.pretrained=mine.yaml"),
            "is not an agent of",
        ),
    ],
)
def test_what_can_be_known_before_is_said_before(
    words: tuple[str, ...],
    message: str,
    config: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = sorted(Path().rglob("*"))
    assert message in refused(capfd, monkeypatch, *words)
    assert sorted(Path().rglob("*")) == before, "no ladder, and no study that takes the name"


def network(**kwargs: object) -> None:
    raise FileNotFoundError("no such table")


def images(root: object, **kwargs: object) -> None:
    raise KeyError("labels")


def test_what_the_users_own_code_raises_is_told_with_its_place() -> None:
    here = f"{Path(__file__).name}:"
    said = r":images\(root='x', n=1\) raised KeyError: 'labels' at "
    with pytest.raises(DataError, match=said) as of_data:
        load_callable(f"{__name__}:images", "x", {"n": 1})
    with pytest.raises(ConfigError, match=r":network raised FileNotFoundError: no such table at ") as of_network:
        build(f"{__name__}:network")
    assert all(here in str(error.value) and error.value.__cause__ is not None for error in (of_data, of_network))
