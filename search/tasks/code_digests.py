"""Digests of code, by which an edited function is not taken for what it was."""

from __future__ import annotations

import functools
import hashlib
import inspect
import textwrap
import types
from typing import Any

from espalier.search.tasks.module_path import imported

UNKNOWN = "unknown"
"""The digest of what has no source and no code."""


def digest_of(function: Any) -> str:
    """16 hex digits of a function's source, or of its code where there is none; else `UNKNOWN`.

    What it calls, and what it closes over, is not looked at.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        function = function.__func__
    if not isinstance(function, types.FunctionType):
        function = type(function)
    return _source_digest(function)


def code_of(name: str, what: str) -> str:
    """The digest of a class of the user's own, as `digest_of` gives it for an object of that class.

    Args:
        name: ``package.module:Class``, or of an object of the class.
        what: it is to be, for the message.

    Raises:
        ConfigError: there is no such object.
    """
    found = imported(name, what)
    return _source_digest(found) if isinstance(found, type) else digest_of(found)


def _source_digest(function: Any) -> str:
    text = b""
    if getattr(function, "__name__", "") != "<lambda>":  # whose source is all of its line
        try:
            text = textwrap.dedent(inspect.getsource(function)).encode()
        except (OSError, TypeError):
            pass
    code = getattr(function, "__code__", None)
    if not text and code is not None:
        constants = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
        text = code.co_code + repr((code.co_names, constants)).encode()
    return hashlib.sha256(text).hexdigest()[:16] if text else UNKNOWN
