"""The errors espalier raises on purpose.

Every one is an `EspalierError`, and also the builtin that a caller would expect, so
``except ValueError`` keeps working. A message states the rule, the value met and what to do.
"""

from __future__ import annotations

import traceback


class EspalierError(Exception):
    """Root of all errors that espalier raises on purpose."""


class ConfigError(EspalierError, ValueError):
    """A config, an option or an argument that breaks a rule; all faults in one message."""


class DataError(EspalierError, ValueError):
    """A data set that is missing, truncated or not what its name says."""


class WeightsError(EspalierError, ValueError):
    """A weights file that cannot be read or does not fit the network."""


class TraceError(EspalierError, ValueError):
    """A network that cannot be traced; names the operation."""


class BudgetInfeasible(EspalierError, ValueError):
    """A budget below the smallest cost that the network can be pruned to, which it states."""


class VerificationError(EspalierError, RuntimeError):
    """A slimmed network whose outputs differ from the masked one's."""


class ExportError(EspalierError, RuntimeError):
    """A network that a format or a runtime cannot take, which names layer and operation, or gives other outputs."""


class ArtefactError(EspalierError, ValueError):
    """A ``.espalier`` file that cannot be read."""


class StorageError(EspalierError, RuntimeError):
    """A storage that cannot be opened, or a study that is not in it."""


class ClusterError(EspalierError, RuntimeError):
    """A Ray cluster that cannot be joined, or that was lost during a run."""


class StudyMismatch(EspalierError, ValueError):
    """A study made with other settings than those asked for."""


class MissingPackage(EspalierError, ImportError):
    """An optional package that is not installed; says how to install it."""


def raised(error: Exception) -> str:
    """What code of the user's own raised, in one line, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
