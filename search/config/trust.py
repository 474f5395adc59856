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


def check_trusted(key: str, name: str, kwargs: Mapping[str, Any], trust: Sequence[str], origin: str) -> None:
    """Refuses the name of a network or a data set that a storage gives and the user does not trust.

    Nothing is imported but what is trusted. Of a trusted package only what is defined in a trusted package may be
    called, and not what its modules have imported: ``my.package:os.system`` is not of ``my.package``.

    Args:
        key: of the config, ``model.name`` or ``data.name``.
        name: a name without a colon is looked up in a table and imports nothing.
        kwargs: what it is called with, for the message.
        trust: as from `names_of`.
        origin: what names it, for the message.

    Raises:
        ConfigError: says how to allow it.
    """
    if not needed(name) or name in trust:
        return
    module = name.partition(":")[0]
    if not _covers(trust, module):
        package = module if _NAME.fullmatch(module) else "PACKAGE"
        raise ConfigError(
            f"{origin} names {key} {name!r}, called with {_short(kwargs)}, and nothing is imported on a storage's "
            f"word: if you know that package, allow it with --trust {package}, or trust={package!r} in Python"
        )
    home = _home(name)
    if home is not None and not _covers(trust, home):
        raise ConfigError(
            f"{origin} names {key} {name!r}, which is not defined in {module} but in {home or 'no module'}: if you "
            f"know it, allow it alone with --trust {name}"
        )


def needed(*names: str) -> list[str]:
    """Those of a config's names that whoever resumes its study has to trust."""
    return [name for name in names if ":" in name and not is_built_in(name)]


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
