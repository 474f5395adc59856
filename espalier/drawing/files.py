"""Files that pictures are written into, and the packages that drawing takes: asked for before the work begins."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from espalier.errors import ConfigError, MissingPackage

SUFFIXES = (".png", ".svg")
FIGURE = ("matplotlib", "adjustText")
"""Packages that `espalier.report.plots` needs."""
NETWORK = ("matplotlib", "igraph")
"""Packages that `espalier.drawing.network` needs."""


def check_picture(file: Path, packages: tuple[str, ...] = ()) -> None:
    """Whether a picture can be written; makes its folder.

    Raises:
        ConfigError: the file is neither .png nor .svg, or its folder cannot be made.
        MissingPackage: a package is not installed.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a picture must end in .png or .svg, got {file.name!r}")
    check_packages(packages)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder of a picture cannot be made: {file.parent}: {error.strerror}") from error


def check_packages(packages: tuple[str, ...]) -> None:
    """Whether packages are installed.

    Raises:
        MissingPackage: one is not.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingPackage(
                f"drawing needs the package {error.name}, which is not installed: pip install 'espalier[plot]'"
            ) from error
