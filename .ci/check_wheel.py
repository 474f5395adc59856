"""Builds the wheel, installs it in a fresh environment outside the checkout, and runs the command there.

The fresh environment borrows the third-party packages of the environment that runs this script; a ``.pth``
line adds them without their own ``.pth`` files, so that neither the checkout nor an editable install of it
can be seen.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOT_FOLDERS = ("search", "agents", "pruning", "configs")
SOURCE = ("pyproject.toml", "README.md", "LICENSE", "espalier", "tests", *ROOT_FOLDERS)

# Runs in the fresh environment.
CHECK_IMPORTS = f"""
import importlib.util, pathlib, sys
import espalier
home = pathlib.Path(espalier.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"espalier came from {{home}}"
for name in {ROOT_FOLDERS!r}:
    assert importlib.util.find_spec(name) is None, f"{{name}} can be imported by its bare name"
    assert importlib.util.find_spec("espalier." + name) is not None, f"espalier.{{name}} is missing"
"""


def main() -> None:
    """Builds, compares, installs and runs; the temporary folder goes in the end."""
    with tempfile.TemporaryDirectory(prefix="espalier-wheel-") as folder:
        work = Path(folder)
        wheel = build(work)
        compare_with_source(wheel)
        bin_folder = install(wheel, work)
        run_installed(bin_folder, work)
    print(f"{wheel.name}: complete, and it runs outside the checkout")


def build(work: Path) -> Path:
    """Builds from a copy, so that stale files of an earlier build cannot slip in; returns the wheel."""
    source = work / "source"
    source.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, source / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(source)], work)
    (wheel,) = work.glob("*.whl")
    return wheel


def compare_with_source(wheel: Path) -> None:
    """Every module and config is in the wheel under espalier/, and nothing else is."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"espalier/{path.name}" for path in (ROOT / "espalier").iterdir() if path.is_file()}
    folders = {f"espalier/{name}": ROOT / name for name in ROOT_FOLDERS}
    own = (path for path in (ROOT / "espalier").iterdir() if path.is_dir() and not path.is_symlink())
    folders |= {f"espalier/{path.name}": path for path in own}
    for name, folder in folders.items():
        for pattern in ("*.py", "*.yaml", "*.j2"):
            expected |= {f"{name}/{path.relative_to(folder)}" for path in folder.rglob(pattern)}
    if found != expected:
        sys.exit(
            "The wheel is not what the checkout holds.\n"
            f"  missing from it: {sorted(expected - found)}\n"
            f"  should not be in it: {sorted(found - expected)}\n"
            "Look at packages, package-dir and package-data in pyproject.toml."
        )


def install(wheel: Path, work: Path) -> Path:
    """Makes the fresh environment and installs the wheel; returns the folder of its commands."""
    home = work / "venv"
    venv.create(home, with_pip=False)
    fresh_python = home / "bin" / "python"
    scheme = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(borrowed)))
    pip = [sys.executable, "-m", "pip", "--python", str(fresh_python), "install", "--quiet"]
    # --ignore-installed: pip must not take the borrowed environment's espalier for one to replace.
    run([*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], work)
    return home / "bin"


def run_installed(bin_folder: Path, work: Path) -> None:
    """Imports and runs the installed espalier from an empty folder, with no path back to the checkout."""
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    run([str(bin_folder / "python"), "-c", CHECK_IMPORTS], elsewhere)
    for arguments in (["--version"], ["--help"], ["configs", "copy", "digits"], ["validate", "digits.yaml"]):
        run([str(bin_folder / "espalier"), *arguments], elsewhere)


def run(command: list[str], folder: Path) -> None:
    """Runs `command` in `folder`, silent unless it fails; no PYTHONPATH or the like reaches it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        sys.exit(f"{result.stdout}\nThis failed with exit status {result.returncode}: {shlex.join(command)}")


if __name__ == "__main__":
    main()
