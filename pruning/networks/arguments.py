"""Checks of constructor arguments that every network of this package shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.errors import ConfigError


def check_whole(name: str, value: Any, least: int, meaning: str) -> None:
    """Check that an argument is a whole number and not below the least that makes sense.

    Args:
        name: the argument, as the caller wrote it.
        value: what was given for it.
        least: the smallest value allowed.
        meaning: what the argument counts, which ends the message.

    Raises:
        ConfigError: the value is not an `int`, is a `bool`, or is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}: {meaning}.")


def check_choice(name: str, value: Any, choices: Sequence[Any], meaning: str) -> None:
    """Check that an argument is one of a few values.

    Args:
        name: the argument, as the caller wrote it.
        value: what was given for it.
        choices: the values allowed.
        meaning: what the argument chooses, which ends the message.

    Raises:
        ConfigError: the value is not among the choices.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{name} must be one of {listed}, got {value!r}: {meaning}.")


def check_width_mult(width_mult: Any) -> None:
    """Check a width multiplier.

    Args:
        width_mult: what every width is multiplied by.

    Raises:
        ConfigError: it is not a number above zero, or is infinite.
    """
    if not isinstance(width_mult, int | float) or not 0 < width_mult < float("inf"):
        raise ConfigError(
            f"width_mult must be a number above 0, got {width_mult!r}: it multiplies every width, so "
            f"write 0.5 to halve them."
        )


def check_dropout(dropout: Any) -> None:
    """Check a rate of dropout.

    Args:
        dropout: fraction of the classifier's inputs dropped in training.

    Raises:
        ConfigError: it does not lie in [0, 1).
    """
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(
            f"dropout must lie in [0, 1), got {dropout!r}: it is the fraction of the classifier's inputs "
            f"that is dropped, so write 0 for none."
        )


def check_classes_and_channels(num_classes: Any, in_channels: Any) -> None:
    """Check the two arguments that every network has.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.

    Raises:
        ConfigError: either is not a whole number of at least one.
    """
    check_whole("num_classes", num_classes, 1, "it is the number of outputs of the classifier")
    check_whole("in_channels", in_channels, 1, "it counts the channels of an image, 3 for RGB, 1 for grey")
