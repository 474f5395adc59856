"""What users and storages name is shown as it is: brackets are no markup, and colons no emoji."""

from __future__ import annotations

import ast
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from espalier.cli import options
from espalier.search.config.loading import parse_config
from espalier.search.study.keys import CANDIDATE, FAILURE, RUN
from espalier.search.study.storage import create_study, open_storage
from tests.command_line import command_of

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("espalier", "search", "agents", "pruning") for path in (ROOT / folder).rglob("*.py")]
HOSTILE = "[/x] [old] [bold]b[/bold] :bug: a"

TINY: dict[str, Any] = {"model": {"name": "resnet20"}, "data": {"name": "digits"}, "budget": {"keep": 0.5}}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage with a study in which every text has brackets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / HOSTILE.replace("/", "|")).mkdir()
    url = str(tmp_path / HOSTILE.replace("/", "|") / "study.db")
    config = parse_config(TINY, "tiny").model_dump(mode="json")
    config["search"] |= {"sampler": HOSTILE, "measure": HOSTILE, "trials": 9}
    run = {"host": HOSTILE, "pid": 1, "since": time.time(), "renewed": time.time() + 1000}
    run |= {"stage": HOSTILE, "done": 1, "total": 2, "unit": HOSTILE, "note": HOSTILE}
    attributes: dict[str, Any] = {"config": config, "network": {"groups": [[HOSTILE, 4]]}}
    attributes["result"] = {"trials": 9, "verdict": HOSTILE}
    study = create_study(open_storage(url, create=True), HOSTILE, attributes)
    study.set_user_attr(f"{RUN}:1", run)
    told: tuple[tuple[TrialState, str, str, float | None], ...] = (
        (TrialState.FAIL, FAILURE, HOSTILE, None),
        (TrialState.COMPLETE, CANDIDATE, "0:2", 1.0),
    )
    for state, key, value, score in told:
        trial = study.ask()
        trial.set_user_attr(key, value)
        study.tell(trial, score, state=state)
    return url


@pytest.mark.parametrize(
    ("words", "times"),
    [
        (["studies"], 4),
        (["study", "show", HOSTILE], 8),
        (["watch", HOSTILE, "--once"], 8),
        (["study", "show", "none"], 1),
        (["resume", "--study", HOSTILE], 1),
        (["rescore", "--study", HOSTILE, "--trial", "7"], 1),
        (["storage", "copy", "{url}", "{url} copy.db"], 1),
        (["study", "rename", HOSTILE, f"{HOSTILE} 2"], 1),
        (["study", "delete", HOSTILE, "--yes"], 1),
        (["study", "export", HOSTILE, f"{HOSTILE}.csv".replace("/", "|")], 1),
        (["validate", f"{HOSTILE}.yaml"], 1),
        (["search", f"{HOSTILE}.yaml"], 1),
        (["compare", f"{HOSTILE}.yaml"], 1),
        (["prune", "digits", f"model.name={HOSTILE}"], 1),
        (["proxy-study", "digits", f"data.name={HOSTILE}"], 1),
        (["inspect", "digits", f"model.kwargs={{{HOSTILE!r}: 1}}"], 1),
        (["plot", "ratios", f"{HOSTILE} none"], 1),
        (["agents", "train", f"{HOSTILE}.yaml"], 1),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_every_command_shows_brackets_as_they_are(
    words: list[str],
    times: int,
    storage: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if words[0] == "storage" or words[:2] in (["study", "rename"], ["study", "delete"]):
        # They watch a run that signed ahead of time for half of it.
        clock = itertools.count()
        monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if words[0] in ("studies", "watch", "resume", "rescore", "study"):
        words = [*words, "--storage", storage]
    answer = command_of(monkeypatch, capfd, columns=400)(*(word.replace("{url}", storage) for word in words))
    shown = answer.out + answer.err
    assert shown.count(HOSTILE) + shown.count(HOSTILE.replace("/", "|")) >= times, shown


def test_no_other_console_is_made_and_no_markup_is_read() -> None:
    """So what the test above does not reach cannot be otherwise."""
    for console in (options.console, options.errors):
        assert not console._markup and not console._emoji
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                assert name != "from_markup", path
                if name == "Console" and path.name != "options.py":  # a search in Python tells its progress
                    assert path.name == "reporter.py" and ast.unparse(given["markup"]) == "False", path
                if name == "TextColumn":
                    assert ast.unparse(given["markup"]) == "False", path
