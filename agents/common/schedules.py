"""Numbers that change as an agent learns: what has been learned so far -> the number."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int], float]
"""How many updates or episodes have been -> a learning rate, a standard deviation."""


def constant(value: float | Schedule) -> Schedule:
    """The same at all times; a schedule stays what it is."""
    return value if callable(value) else lambda _: value


def exponential(start: float, rate: float, *, after: int = 0, least: float = 0.0) -> Schedule:
    """`start` until step `after`, then `rate` times as much at every step, but no less than `least`.

    >>> sigma = exponential(0.5, 0.95, after=100)
    >>> sigma(100), round(sigma(110), 3)
    (0.5, 0.299)
    """
    return lambda step: max(least, start * rate ** max(0, step - after))
