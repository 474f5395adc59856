"""What the fields of a config's sections are made of: numbers, durations, and names in tables."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]

CLASSIFICATION = "classification"
"""The built-in task, which a config has if it names no other."""
LISTED = 20
"""Names that a message lists."""
GIVEN = "given"
"""In the place of a name: the network, the task, or the criterion, is given in Python."""


def _named_in(names: Callable[[], Iterable[str]], own: bool = False, given: bool = False) -> AfterValidator:
    """Of a field that holds a name: one of those in a table, which is imported when a config is checked.

    Args:
        names: of the table.
        own: whether it may be one of the user's own as well, ``package.module:name``.
        given: whether one may be given in Python.
    """
    return AfterValidator(partial(_name, names=names, own=own, given=given))


def _name(value: str, names: Callable[[], Iterable[str]], own: bool, given: bool) -> str:
    known = list(names())
    if value not in known and not (own and ":" in value) and not (given and value == GIVEN):
        raise ValueError(unknown(value, known))
    return value


def unknown(value: str, names: Sequence[str], otherwise: str = "valid names are") -> str:
    """What is said of a name that there is not: the nearest one, or all, or the first of many."""
    near = difflib.get_close_matches(value, names, n=1)
    if near:
        return f"unknown name {value!r}, did you mean {near[0]!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED + 1 else ""
    return f"unknown name {value!r}, {otherwise} {', '.join(names[:LISTED] if more else names)}{more}"


def _networks() -> Iterable[str]:
    from espalier.pruning.networks import NETWORKS

    return NETWORKS


def _regularizers() -> Iterable[str]:
    from espalier.pruning.importance.regularizers import REGULARIZERS

    return REGULARIZERS


def _criteria() -> Iterable[str]:
    from espalier.pruning.importance.criteria import CRITERIA

    return CRITERIA


def _normalizations() -> Iterable[str]:
    from espalier.pruning.importance.normalizations import NORMALIZATIONS

    return NORMALIZATIONS


def _schedules() -> Iterable[str]:
    from espalier.search.training.schedules import SCHEDULES

    return ["rounds", *SCHEDULES]


def _samplers() -> Iterable[str]:
    from espalier.search.samplers import SAMPLERS

    return SAMPLERS


def _spaces() -> Iterable[str]:
    from espalier.search.spaces.named_spaces import SPACES

    return SPACES


def _proxies() -> Iterable[str]:
    from espalier.search.evaluation.proxies import PROXIES

    return PROXIES


def _runtimes() -> Iterable[str]:
    from espalier.pruning.runtimes import RUNTIMES

    return RUNTIMES


def _methods() -> Iterable[str]:
    from espalier.search.methods import CONTROLS, METHODS

    return [*METHODS, *CONTROLS]


NetworkName = Annotated[str, _named_in(_networks, own=True, given=True)]
Criterion = Annotated[str, _named_in(_criteria, own=True, given=True)]
ProxyName = Annotated[str, _named_in(_proxies)]
MethodName = Annotated[str, _named_in(_methods, own=True)]
RuntimeName = Annotated[str, _named_in(_runtimes)]
RegularizerName = Annotated[str, _named_in(_regularizers, own=True)]
PruningScheduleName = Annotated[str, _named_in(_schedules, own=True)]
NormalizationName = Annotated[str, _named_in(_normalizations)]
SearchedNormalization = Annotated[str, _named_in(lambda: ("searched", *_normalizations()))]
SamplerName = Annotated[str, _named_in(_samplers)]
SpaceName = Annotated[str, _named_in(_spaces)]


class Section(BaseModel):
    """A section: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(value: Any) -> Any:
    """Seconds of a duration: a number, or a number with s, m, h or d behind it.

    >>> seconds_of("90"), seconds_of("30m"), seconds_of("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    if not isinstance(value, str):
        return value
    number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        rule = f"a duration is a number, of seconds or with s, m, h or d behind it, got {value!r}"
        raise ValueError(rule) from None


Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0)]
"""Seconds."""
