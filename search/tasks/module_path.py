"""Where workers find the modules of the user's own: where the driver finds them, behind everything of their own.

Ray puts the driver's working folder in front of the path of its workers, where a file such as ``optuna.py`` would
be imported in the place of the package.
"""

from __future__ import annotations

import functools
import importlib
import os
import site
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from espalier.errors import ConfigError, EspalierError, raised


class DriversPath:
    """Appends the folders of this process's path to that of the process which unpickles it.

    What is pickled behind it may then be of modules that lie there.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _append, (tuple(os.path.abspath(folder) for folder in (*sys.path, "")),)


def imported(name: str, what: str) -> Any:
    """An object of the user's own.

    Args:
        name: ``package.module:name``.
        what: it is to be, for the message.

    Raises:
        ConfigError: there is no such object.
    """
    module, _, attributes = name.partition(":")
    try:
        return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} must be package.module:name, got {name!r} ({error})") from error


def instance(name: str, what: str) -> Any:
    """What a class of the user's own makes without arguments; what is no class is given as it is.

    Args:
        name: ``package.module:name``.
        what: it is to be, for the message.

    Raises:
        ConfigError: there is no such object, or it cannot be made.
    """
    found = imported(name, what)
    if not isinstance(found, type):
        return found
    try:
        return found()
    except EspalierError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"{what}: {name}() raised {raised(error)}; it is made without arguments") from error


def _append(folders: tuple[str, ...]) -> DriversPath:
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    return DriversPath()


def job_config() -> Any:
    """What makes Ray leave its workers' path alone, but that they import the driver's own espalier."""
    from ray.job_config import JobConfig

    class Config(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # then Ray adds no folders of the driver's

    here = find_spec("espalier")
    assert here is not None and here.origin is not None
    root = str(Path(here.origin).resolve().parents[1])
    installed = root in (*site.getsitepackages(), site.getusersitepackages())
    return Config(_py_driver_sys_path=[] if installed else [root])
