"""The layout holds: links, packages, one-way names, light start, configs that say how to run them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("search", "agents", "pruning", "configs")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
import espalier

def failed(name):
    raise ImportError(f"{name} cannot be imported")

names = ["espalier"]
for module in pkgutil.walk_packages(espalier.__path__, "espalier.", onerror=failed):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
        names.append(module.name)
print(json.dumps({"imported": names, "loaded": sorted(sys.modules)}))
"""

SHOW_HELP = """
import json, sys
sys.argv = ["espalier", "--help"]
from espalier.cli import main
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code
assert not code, f"espalier --help exits with {code}"
print(json.dumps({"loaded": sorted(sys.modules)}))
"""


def run_python(code: str) -> dict[str, list[str]]:
    """Runs `code` in a new interpreter at the root; returns the JSON on the last line that it prints."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return loaded


def packages_on_disk() -> dict[str, str]:
    """Package name -> its folder relative to the root, for every folder that holds Python files."""
    found = {"espalier": "espalier"}
    own = [
        f"espalier/{path.name}" for path in (ROOT / "espalier").iterdir() if path.is_dir() and not path.is_symlink()
    ]
    for folder in own:
        for path in (ROOT / folder).rglob("*.py"):
            found[".".join(path.parent.relative_to(ROOT).parts)] = path.parent.relative_to(ROOT).as_posix()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            where = path.parent.relative_to(ROOT)
            found["espalier." + ".".join(where.parts)] = where.as_posix()
    return found


def setuptools_table() -> dict[str, object]:
    """The table [tool.setuptools] of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, object] = project["tool"]["setuptools"]
    return table


def test_packages_list_every_folder_with_python_files() -> None:
    listed = setuptools_table()["packages"]
    assert isinstance(listed, list)
    assert sorted(listed) == sorted(packages_on_disk())


def test_package_dir_maps_every_package_to_its_folder() -> None:
    assert setuptools_table()["package-dir"] == packages_on_disk()


def test_no_folder_has_more_than_a_dozen_modules() -> None:
    """Where each holds one command, network, runtime or sampler, there may be more."""
    one_each = {"espalier/cli", "pruning/networks", "pruning/runtimes", "search/samplers"}
    for where in set(packages_on_disk().values()) - one_each:
        modules = [path.name for path in (ROOT / where).glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 12, (where, sorted(modules))


def test_every_package_has_an_init() -> None:
    missing = [where for where in packages_on_disk().values() if not (ROOT / where / "__init__.py").is_file()]
    assert not missing


def test_espalier_itself_has_no_other_folders() -> None:
    folders = {path.name for path in (ROOT / "espalier").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {"cli", "doctor", "drawing", "inspection", "report", "starter", *FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_point_at_the_root_folders(folder: str) -> None:
    link = ROOT / "espalier" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"
    assert (ROOT / folder).is_dir() and not (ROOT / folder).is_symlink()


def test_no_init_at_the_root_or_in_tests() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_module_is_imported_by_a_bare_name() -> None:
    result = run_python(IMPORT_EVERYTHING)
    assert {f"espalier.{folder}" for folder in FOLDERS} <= set(result["imported"])
    assert {name.partition(".")[0] for name in result["loaded"]}.isdisjoint(FOLDERS)


def test_optional_packages_are_imported_where_they_are_used() -> None:
    result = run_python(
        "import json, sys, espalier; espalier.HuggingFaceTask, espalier.LightningTask, espalier.search_widths; "
        'print(json.dumps({"loaded": sorted(sys.modules)}))'
    )
    assert {"transformers", "accelerate", "lightning"}.isdisjoint(result["loaded"])


def test_help_imports_no_heavy_package() -> None:
    result = run_python(SHOW_HELP)
    assert {"torch", "ray", "optuna"}.isdisjoint(result["loaded"])


def test_there_are_configs() -> None:
    assert "digits.yaml" in {config.name for config in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_opens_with_the_command_that_runs_it(config: Path) -> None:
    opening = []
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        opening.append(line)
    assert f"espalier search configs/{config.name}" in "\n".join(opening)


def test_the_lowest_versions_are_those_that_the_project_allows() -> None:
    """`make test-lowest` tests what pyproject.toml promises."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    allowed = dict(re.sub(r"\[.*\]", "", each).lower().split(">=") for each in project["dependencies"])
    assert lowest.keys() == allowed.keys()
    for name, version in allowed.items():
        assert lowest[name] == version or lowest[name].startswith(version + "."), name


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt is made on Python 3.11")
def test_all_that_is_installed_has_an_exact_version() -> None:
    """Of what the project, `dev` and `docs` need, and what that needs, as far as it is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    asked = [Requirement(line) for line in (*project["dependencies"], *extras["dev"], *extras["docs"])]
    assert {canonicalize_name(each.name) for each in asked} <= pinned
    seen = set[str]()
    while asked:
        each = asked.pop()
        if str(each) in seen:
            continue
        seen.add(str(each))
        assert canonicalize_name(each.name) in pinned, each
        try:
            needed = [Requirement(line) for line in requires(each.name) or ()]
        except PackageNotFoundError:
            continue
        wanted = [{"extra": extra} for extra in ("", *each.extras)]
        asked += [need for need in needed if need.marker is None or any(map(need.marker.evaluate, wanted))]
    assert len(seen) > 100


def test_what_the_lowest_versions_are_tried_on_exists() -> None:
    found = re.search(r"^LOWEST \?= (.*?[^\\])$", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    paths = [path for path in found[1].split() if path != "\\"]
    assert len(paths) > 5 and [path for path in paths if not (ROOT / path).exists()] == []


def replaced(path: Path) -> list[str]:
    """What a test file puts something else in the place of by `setattr`, where it is no import from elsewhere.

    Tables such as `PROXIES` are extended by `setitem`, as users do, and do not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    foreign = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {(name.asname or name.name).partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("espalier"):
            foreign |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.AnnAssign | ast.Assign) and "importorskip" in ast.unparse(node):
            foreign |= {ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1]
    targets = [
        ast.unparse(call.args[0]).strip("'")
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and (call.func.attr == "setattr" or ast.unparse(call.func).startswith(("mock.patch", "patch.object")))
    ]
    foreign |= set(sys.stdlib_module_names)  # named in a string
    return [target for target in targets if re.split(r"[.(]", target)[0] not in foreign]


def test_few_tests_replace_what_is_inside() -> None:
    """A test gives a task that fails, a reporter that stops a run, a data set that counts, or an entry of a table.

    tests/search/watched.py has such things. What is replaced all the same has no such way in.
    """
    found = {path.name: targets for path in (ROOT / "tests").rglob("*.py") if (targets := replaced(path))}
    assert sum(map(len, found.values())) <= 30, found


def test_what_is_replaced_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\nfrom torch import nn\nfrom espalier.search.run import search_run as run\n"
        "def test_it(monkeypatch, study):\n"
        "    monkeypatch.setattr(run, 'join', None)\n"
        "    monkeypatch.setattr('espalier.search.run.search_run.join', None)\n"
        "    monkeypatch.setattr(study, 'ask', None)\n"
        "    monkeypatch.setattr(os.path, 'isdir', None)\n"
        "    monkeypatch.setattr(nn.Module, 'eval', None)\n"
    )
    assert replaced(tmp_path / "test_it.py") == ["run", "espalier.search.run.search_run.join", "study"]
