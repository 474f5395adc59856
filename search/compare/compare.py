"""A comparison, as a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier.search.compare import protocol
from espalier.search.compare.comparison import Comparison
from espalier.search.config.loading import settings_of
from espalier.search.study.run_folder import folder_of


def compare(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    workers: int | None = None,
) -> Comparison:
    """Compares methods, as ``espalier compare`` does; silent, and without the report.

    Args:
        config: path of a YAML file, the name of a shipped one, or the settings themselves.
        overrides: ``key.path=value`` settings that win over them.
        out: run folder; by default ``runs/<config>``.
        storage: any Optuna URL that workers reach; by default SQLite in the run folder.
        address: a Ray cluster to join.
        workers: jobs at a time, 0 for none but this process; by default the config's.

    Returns:
        What ``compare.json`` holds.

    Raises:
        EspalierError: bad input; see `espalier.errors`.
    """
    settings, name = settings_of(config, overrides, otherwise="comparison", workers=workers, address=address)
    folder = Path(out or folder_of(name))
    return protocol.compare(settings, name=name, out=folder, command="", storage=storage).comparison
