"""What a library call changes of the process that it runs in, and gives back: threads, log levels, variables."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import optuna
import torch


@contextmanager
def computing() -> Iterator[None]:
    """Torch computes on one thread, so that sums come in one order, and Optuna warns only.

    A decorator too: of every function that a library's user calls.
    """
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)


@contextmanager
def environment(settings: Mapping[str, str], prefixes: tuple[str, ...] = ()) -> Iterator[None]:
    """Sets variables of the environment; what the user has set wins.

    Args:
        settings: name -> value.
        prefixes: variables whose names begin so are given back too, whoever changes them meanwhile.
    """

    def ours() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k in settings or k.startswith(prefixes)}

    before = ours()
    os.environ.update({name: value for name, value in settings.items() if name not in before})
    try:
        yield
    finally:
        for name in ours().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def log_levels(levels: Mapping[str, int | None]) -> Iterator[None]:
    """Sets the levels of loggers; None leaves one as it is, and gives it back."""
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        if level is not None:
            logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
