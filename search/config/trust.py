"""What a study or a file may name: the built-in networks and data sets, and what the user of this call trusts.

Importing a module runs it. So what a storage names, which several people may write to, is imported only where the
user has named it too.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.errors import ConfigError
from espalier.pruning.networks import is_built_in

_NAME = re.compile(r"\w+(\.\w+)*(:\w+(\.\w+)*)?")


def names_of(trust: str | Sequence[str]) -> tuple[str, ...]:
    """What a user trusts, checked.

    Args:
        trust: packages or modules such as ``my.package``, with all that is defined in and below them, or single
            callables such as ``my.package:network``.

    Raises:
        ConfigError: one of them is no such name.
    """
    names = (trust,) if isinstance(trust, str) else tuple(trust)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"--trust must name a package, as my.package, or a callable, as my.nets:build, got {name!r}"
            )
    return names


def check_trusted(named: Sequence[tuple[str, str, Mapping[str, Any]]], trust: Sequence[str], origin: str) -> None:
    """Refuses names of networks, data sets and the like that a storage gives and the user does not trust.

    Nothing is imported but what is trusted. Of a trusted package only what is defined in a trusted package may be
    called, and not what its modules have imported: ``my.package:os.system`` is not of ``my.package``.

    Args:
        named: key of the config, such as ``model.name``; name; and what it is called with, for the message. A name
            without a colon is looked up in a table and imports nothing.
        trust: as from `names_of`.
        origin: what names them, for the message.

    Raises:
        ConfigError: says how to allow all that is not trusted.
    """
    asked = [each for each in named if needed(each[1]) and each[1] not in trust]
    unknown = [each for each in asked if not _covers(trust, _module(each[1]))]
    if unknown:
        told = " and ".join(f"{key} {name!r}, called with {_short(kwargs)}," for key, name, kwargs in unknown)
        modules = dict.fromkeys(_module(name) for _, name, _ in unknown)
        packages = [module if _NAME.fullmatch(module) else "PACKAGE" for module in modules]
        if len(packages) == 1:
            which, options, value = "that package, allow it", f"--trust {packages[0]}", repr(packages[0])
        else:
            which, value = "these packages, allow them", repr(packages)
            options = " ".join(f"--trust {package}" for package in packages)
        raise ConfigError(
            f"{origin} names {told} and nothing is imported on a storage's word: if you know {which} with "
            f"{options}, or trust={value} in Python"
        )
    homes = [(key, name, _home(name)) for key, name, _ in asked]
    foreign = [(key, name, home) for key, name, home in homes if home is not None and not _covers(trust, home)]
    if foreign:
        told = " and ".join(
            f"{key} {name!r}, which is not defined in {_module(name)} but in {home or 'no module'}"
            for key, name, home in foreign
        )
        options = " ".join(f"--trust {name}" for _, name, _ in foreign)
        raise ConfigError(f"{origin} names {told}: if you know it, allow it alone with {options}")


def needed(*names: str) -> list[str]:
    """Those of a config's names that whoever resumes its study has to trust."""
    return [name for name in names if ":" in name and not is_built_in(name)]


def _module(name: str) -> str:
    return name.partition(":")[0]


def _covers(trust: Sequence[str], module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in trust)


def _home(name: str) -> str | None:
    """The module that defines a callable, empty where it does not say; None where there is no such callable."""
    module, _, attributes = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception:  # whoever builds it says why
        return None
    return str(getattr(found, "__module__", None) or "")


def _short(kwargs: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
    return text if len(text) <= 200 else f"{text[:200]}..."
