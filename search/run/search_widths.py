"""A search, as a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier.search.config.loading import settings_of
from espalier.search.run.result import Result
from espalier.search.run.search_run import run
from espalier.search.study.run_folder import folder_of


def search_widths(
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
    settings, name = settings_of(config, overrides, otherwise="search", workers=workers, address=address)
    name = study or name
    return run(settings, study=name, out=Path(out or folder_of(name)), storage=storage)
