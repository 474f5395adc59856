"""Spaces, samplers, evaluation, Ray Tune, studies and results.

The package is also the function that runs a search: ``espalier.search("digits")``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espalier.search.run.result import Result


def run_search(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    study: str | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    workers: int | None = None,
) -> Result:
    """Runs a search, as ``espalier search`` does; silent.

    Args:
        config: path of a YAML file, the name of a shipped one, or the settings themselves.
        overrides: ``key.path=value`` settings that win over them.
        study: name in the storage; by default the config file's, or ``search``.
        out: run folder; by default ``runs/<study>``.
        storage: any Optuna URL; by default SQLite in the run folder.
        address: a Ray cluster to join.
        workers: evaluations at a time, 0 for none but this process; by default the config's.

    Returns:
        What ``result.json`` holds.

    Raises:
        EspalierError: bad input; see `espalier.errors`.
    """
    from espalier.search.config.loading import load_config, parse_config
    from espalier.search.run.search_run import run
    from espalier.search.study.run_folder import folder_of

    if isinstance(config, Mapping):
        settings, name = parse_config(config, "the config", overrides), "search"
    else:
        settings, name = load_config(config, overrides), Path(config).stem
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    if address is not None:
        cluster = settings.cluster.model_copy(update={"address": address})
        settings = settings.model_copy(update={"cluster": cluster})
    name = study or name
    return run(settings, study=name, out=Path(out or folder_of(name)), storage=storage)


class _CallablePackage(ModuleType):
    """Makes ``espalier.search`` callable, though it is a package too."""

    __call__ = staticmethod(run_search)


sys.modules[__name__].__class__ = _CallablePackage
