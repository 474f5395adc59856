"""The pruned network as one file: safetensors plus a JSON header, opened without tracing and without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from espalier.errors import ArtefactError, ConfigError
from espalier.pruning.networks import build
from espalier.pruning.surgery import assign
from espalier.search.checkpoint import load_tensors, save_tensors, tensors_of

FORMAT = 1


def save(
    model: nn.Module,
    path: str | Path,
    *,
    name: str,
    kwargs: dict[str, Any] | None = None,
    kept: dict[str, list[int]] | None = None,
    integers: Mapping[tuple[str, str, int | None], int] | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Writes a slimmed network.

    Args:
        model: the network.
        path: of the file, ``*.espalier`` by custom.
        name: what builds the dense network: a built-in one or ``package.module:callable``.
        kwargs: its arguments.
        kept: group name -> kept channels, for the record.
        integers: attributes of modules that count channels, as from `ChannelGraph.integers_of`.
        notes: anything else worth keeping that JSON can hold.
    """
    header = {"format": FORMAT, "name": name, "kwargs": kwargs or {}, "kept": kept or {}, "notes": notes or {}}
    header["integers"] = [[*place, value] for place, value in (integers or {}).items()]
    save_tensors(Path(path), tensors_of(model), header)


def load(path: str | Path) -> nn.Module:
    """The network of an ``.espalier`` file, in eval mode.

    The dense network is built by name and given the file's narrower tensors.

    Raises:
        ArtefactError: the file cannot be read, the network it names cannot be built, or its tensors do not fit.
    """
    tensors, header = load_tensors(Path(path))
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise ArtefactError(f"{path} has format {found!r}; this espalier reads format {FORMAT}")
    if not isinstance(header.get("name"), str) or not isinstance(header.get("kwargs"), dict):
        raise ArtefactError(f"{path} does not name a network and its arguments: it is damaged")
    try:
        model = build(header["name"], **header["kwargs"])
    except ConfigError as error:
        raise ArtefactError(f"{path} names a network that cannot be built here: {error}") from error
    names = tensors_of(model).keys()
    if names != tensors.keys():
        differing = sorted(names ^ tensors.keys())[:3]
        raise ArtefactError(f"{path} does not fit the network {header['name']!r}: {', '.join(differing)} differ")
    try:
        assign(model, tensors, {(path, key, item): value for path, key, item, value in header.get("integers", [])})
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} does not fit the network {header['name']!r}: {error}") from error
    return model.eval()
