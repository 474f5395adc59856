"""Data sets of the user's own: any callable that returns the images, named as ``package.module:callable``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from espalier.errors import DataError, EspalierError, raised
from espalier.search.tasks.classification.data.files import check_labels
from espalier.search.tasks.classification.data.images import InMemoryImages, RawData

_T = TypeVar("_T")


def call(name: str, loader: Callable[..., _T], root: str | Path | None, kwargs: Mapping[str, object]) -> _T:
    """Returns ``loader(root=root, **kwargs)``, once it is known that these arguments fit.

    Raises:
        DataError: they do not; errors of the loader itself pass through.
    """
    try:
        signature = inspect.signature(loader)
        signature.bind(root=root, **kwargs)
    except TypeError as error:
        raise DataError(
            f"data.kwargs must fit the data set {name!r}, which is called as (root=..., **data.kwargs) and "
            f"takes {signature}: {error}"
        ) from error
    except ValueError:  # a callable written in C that tells no signature
        pass
    return loader(root=root, **kwargs)


def load_callable(name: str, root: str | Path | None, kwargs: Mapping[str, object]) -> RawData:
    """Calls the user's callable.

    Args:
        name: ``package.module:callable``; called as ``callable(root=root, **kwargs)``. It returns a
            `RawData`, or four arrays or tensors: training images ``uint8`` ``(n, c, h, w)``, training labels
            ``(n,)``, test images, test labels.
        root: passed on.
        kwargs: passed on.

    Returns:
        What it returned. For four arrays, the classes are named by their numbers, and the mean and std are
        left to be computed.

    Raises:
        DataError: it cannot be imported, does not take these arguments, raises, or returns something else.
    """
    try:
        returned = call(name, _import(name), root, kwargs)
    except EspalierError:
        raise
    except Exception as error:  # whatever the user's own code raises
        given = ", ".join(f"{key}={value!r}" for key, value in {"root": root, **kwargs}.items())
        raise DataError(
            f"{name}({given}) raised {raised(error)}; correct data.root, data.kwargs or the callable"
        ) from error
    if isinstance(returned, RawData):
        data = returned
    elif isinstance(returned, tuple) and len(returned) == 4:
        train = _images(name, "train", returned[0], returned[1])
        test = _images(name, "test", returned[2], returned[3])
        highest = max((int(part.labels.max()) for part in (train, test) if len(part)), default=-1)
        data = RawData(train, test, classes=tuple(str(label) for label in range(highest + 1)))
    else:
        got = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
        raise DataError(
            f"{name} must return RawData or the four arrays (train_images, train_labels, test_images, "
            f"test_labels), got {got}: change what it returns"
        )
    for part, images in (("train", data.train), ("test", data.test)):
        check_labels(images.labels.cpu().numpy(), len(data.classes), f"{name} ({part})")
    return data


def _import(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise DataError(
            f"data.name must be package.module:callable with a module that can be imported, got {name!r} "
            f"({error}): install its package, or add its folder to PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise DataError(
            f"data.name must be package.module:callable, got {name!r}, and {module_name} has no callable "
            f"{attribute!r}: correct the part after the colon"
        )
    return found


def _images(name: str, part: str, images: object, labels: object) -> InMemoryImages:
    try:
        return InMemoryImages(_tensor(images), _tensor(labels))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{name} returned {part} data that cannot be used: {error}") from error


def _tensor(values: object) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
