"""What a release says of itself in several places is the same in all of them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert {"cff-version", "message", "title"} <= citation.keys()
    assert set(citation["keywords"]) <= set(PROJECT["keywords"])


def test_ci_runs_every_python_that_is_promised() -> None:
    promised = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", name)]
    linux, macos = WORKFLOW["jobs"]["linux"], WORKFLOW["jobs"]["macos"]
    assert linux["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    assert [step["run"] for step in linux["steps"] if "run" in step] == [".ci/run"]
    assert [step["run"] for step in macos["steps"] if "run" in step] == ["make test"]
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_interpreter_of_ci_is_the_one_that_makes_the_environment() -> None:
    """The Makefile would take the first that is new enough; `PYTHON` names another."""
    shown = subprocess.run(
        ["make", "-pn", "help"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "mine"},
        capture_output=True,
        text=True,
    )
    assert re.search(r"^PYTHON \??= mine$", shown.stdout, re.MULTILINE)
    for job in WORKFLOW["jobs"].values():
        assert job["env"]["PYTHON"] == "python"


@pytest.mark.parametrize("file", [form for form in FORMS if form.stem != "config"], ids=lambda form: str(form.stem))
def test_forms_of_issues_have_what_is_asked_of_them(file: Path) -> None:
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and len(form["body"]) <= 4
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "markdown") and field["attributes"]["label"]
    named = re.findall(r"`espalier (?:--debug )?(\w+)", file.read_text(encoding="utf-8"))
    assert set(named) <= {"COMMAND", "doctor", "inspect"}
