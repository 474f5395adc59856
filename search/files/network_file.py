"""The pruned network as one file: safetensors plus a JSON header, opened without tracing and without pickle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ArtefactError, ConfigError, raised
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.networks import build, is_built_in
from espalier.pruning.slimming.quantised_layers import quantise, quantised_layers
from espalier.pruning.slimming.removed import Removed, replace_module
from espalier.pruning.slimming.surgery import assign
from espalier.pruning.torch_private import tree_leaves, tree_map
from espalier.search.files.tensor_files import load_tensors, save_tensors, tensors_of

FORMAT = 1


def save(
    model: nn.Module,
    path: str | Path,
    *,
    name: str,
    kwargs: dict[str, Any] | None = None,
    kept: dict[str, list[int]] | None = None,
    notes: dict[str, Any] | None = None,
    dense: nn.Module | None = None,
) -> None:
    """Writes a slimmed network.

    Args:
        model: the network; of one that is wrapped to train on several devices, what is inside.
        path: of the file, ``*.espalier`` by custom.
        name: what builds the dense network: a built-in one or ``package.module:callable``.
        kwargs: its arguments.
        kept: group name -> kept channels, for the record.
        notes: anything else worth keeping that JSON can hold.
        dense: the dense network, so that `load` refuses another one.

    Raises:
        ArtefactError: `name` is neither built in nor of the form ``package.module:callable``.
    """
    if ":" not in name and not is_built_in(name):
        raise ArtefactError(
            f"{name!r} is no network that `load` could build: name one that is built in, or what makes it"
        )
    model = _inside(model)
    header = {"format": FORMAT, "name": name, "kwargs": kwargs or {}, "kept": kept or {}, "notes": notes or {}}
    header["integers"] = _counts(model)
    if dense is not None:
        header["dense"] = _sizes(_inside(dense))
    if removed := {path: each.result for path, each in model.named_modules() if isinstance(each, Removed)}:
        header["removed"] = removed
    if bits := {path: each.bits for path, each in quantised_layers(model).items()}:
        header["bits"] = bits
    save_tensors(Path(path), tensors_of(model), header)


def load(path: str | Path, network: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """The network of an ``.espalier`` file, in eval mode.

    The dense network is given the file's narrower tensors. The file alone imports and calls nothing: it can only
    name a network of `espalier.pruning.networks`, and any other one is given here.

    Args:
        path: of the file.
        network: the dense network, which is copied, or a callable that gives one; by default the built-in one that
            the file names.

    Raises:
        ArtefactError: the file cannot be read, the network it names is not built in or cannot be built, or its
            tensors do not fit.

    Warns:
        UserWarning: an integer of the dense network, such as a number of heads, is not that of the one which was
            pruned.
    """
    tensors, header = load_tensors(Path(path))
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise ArtefactError(f"{path} has format {found!r}; this espalier reads format {FORMAT}")
    name, kwargs = header.get("name"), header.get("kwargs")
    if not isinstance(name, str) or not isinstance(kwargs, dict):
        raise ArtefactError(f"{path} does not name a network and its arguments: it is damaged")
    model = _built(path, name, kwargs) if network is None else _given(network)
    _check_dense(path, model, header.get("dense", {}))
    try:
        for place, result in header.get("removed", {}).items():
            replace_module(model, place, Removed(result))
        quantise(model, header.get("bits", {}))
    except (AttributeError, ConfigError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} does not fit the network {name!r}: {error}") from error
    if (names := tensors_of(model).keys()) != tensors.keys():
        differing = sorted(names ^ tensors.keys())[:3]
        raise ArtefactError(f"{path} does not fit the network {name!r}: {', '.join(differing)} differ")
    try:
        assign(model, tensors, _integers(model, header.get("integers", [])))
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} does not fit the network {name!r}: {error}") from error
    return model.eval()


def class_of(network: nn.Module) -> str:
    """The class of a network, as `save` takes it: for the record, where nothing but the network itself is known."""
    return f"{type(network).__module__}:{type(network).__qualname__}"


def check_same(loaded: nn.Module, network: nn.Module, example: Inputs) -> None:
    """Raises ArtefactError where a file does not give back the network that was written."""
    with torch.no_grad():
        plain = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example)
        again, written = (tree_leaves(run_on(each.cpu().eval(), plain)) for each in (loaded, network))
    for one, other in zip(again, written, strict=True):
        if isinstance(one, Tensor) and not torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ArtefactError("the network's file gives another network than was written: its outputs differ")


def _built(path: str | Path, name: str, kwargs: dict[str, Any]) -> nn.Module:
    if ":" in name and not is_built_in(name):
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise ArtefactError(
            f"{path} names a network that cannot be built here: {name}({given}) is not built in, and nothing is "
            "imported on a file's word; give the network, espalier.load(path, network=mine), or what makes it"
        )
    try:
        return build(name, **kwargs)
    except ConfigError as error:
        raise ArtefactError(f"{path} names a network that cannot be built here: {error}") from error


def _given(network: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    try:
        model = copy.deepcopy(network) if isinstance(network, nn.Module) else network()
    except Exception as error:  # whatever the user's own raises
        raise ArtefactError(f"network cannot be copied or made: {raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise ArtefactError(f"network must give a torch.nn.Module, got an object of type {type(model).__name__}")
    return _inside(model)


def _inside(model: nn.Module) -> nn.Module:
    """The network itself, of one that is wrapped to train on several devices."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _sizes(model: nn.Module) -> dict[str, Any]:
    """What tells a dense network from others of its class: shapes of tensors, and integers such as heads."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors_of(model).items()}
    public = [entry for entry in _counts(model) if not entry[1].startswith("_")]
    return {"shapes": shapes, "integers": public}


def _check_dense(path: str | Path, model: nn.Module, sizes: dict[str, Any]) -> None:
    """Refuses a dense network that is not the one which was pruned; older files do not know of it.

    Raises:
        ArtefactError: a tensor has another shape.

    Warns:
        UserWarning: an integer is another one, such as a number of heads; it may be a count of calls.
    """
    tensors = tensors_of(model)
    for name, shape in sizes.get("shapes", {}).items():
        if name in tensors and list(tensors[name].shape) != shape:
            raise ArtefactError(
                f"{path} was pruned from another network than this one: {name} had the shape {tuple(shape)}, and "
                f"has {tuple(tensors[name].shape)} here"
            )
    now = {(place, key, item): value for place, key, item, value in _counts(model)}
    for place, key, item, value in sizes.get("integers", []):
        if (here := now.get((place, key, item), value)) != value:
            warnings.warn(
                f"{path} may have been pruned from another network than this one: {place}.{key} was {value}, "
                f"and is {here} here",
                stacklevel=3,
            )
            return


def _counts(model: nn.Module) -> list[list[Any]]:
    """Every integer that a module holds, some of which count channels: module, attribute, item, value."""
    found: list[list[Any]] = []
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if type(value) is int:
                found.append([path, name, None, value])
            elif isinstance(value, list | tuple) and all(type(item) is int for item in value):
                found += [[path, name, place, item] for place, item in enumerate(value)]
    return found


def _integers(model: nn.Module, entries: Any) -> dict[tuple[str, str, int | None], int]:
    """The integers of a header, which may only take the place of integers: no other attribute is the file's to set.

    Raises:
        ValueError: an entry is something else.
        AttributeError: there is no such module.
    """
    found: dict[tuple[str, str, int | None], int] = {}
    for place, key, item, value in entries:
        held = getattr(model.get_submodule(place), key, None)
        if held is None:  # the network that was written had noted it as it ran
            continue
        held = [held] if item is None else held
        if not isinstance(held, list | tuple) or {type(value), *map(type, held)} != {int}:
            raise ValueError(f"{place}.{key} does not count channels, or {value!r} is no number of them")
        found[place, key, item] = value
    return found
