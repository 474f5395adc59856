"""How a network is run to look at it: once, alike each time, and left as it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.torch_private import tree_map


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Runs a network and returns the tensors of its output, in order."""
    return tensors_of(run_on(model, inputs))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples, dicts and dataclasses, in order."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor)]


def leaves_of(value: Any) -> list[Any]:
    """All that is in nested lists, tuples, dicts and dataclasses, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves_of(item)]
    return [value]


def cloned(inputs: Inputs) -> Inputs:
    """Inputs that a network may change in place."""
    clones: Inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    return clones


@contextlib.contextmanager
def noting_layers(
    model: nn.Module, enter: Callable[[str], None], leave: Callable[[str, Any], None]
) -> Iterator[None]:
    """Calls `enter` with the path of every module that runs, and `leave` with that and its output."""
    hooks: list[RemovableHandle] = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # which refuses hooks, and runs as a part of its parent
            before, after = partial(_enter, enter, path), partial(_leave, leave, path)
            hooks.append(module.register_forward_pre_hook(before, prepend=True))
            hooks.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _enter(enter: Callable[[str], None], path: str, *_: Any) -> None:
    enter(path)


def _leave(leave: Callable[[str, Any], None], path: str, _module: Any, _args: Any, output: Any) -> None:
    leave(path, output)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles: what a trace makes is kept, and walking it takes a quarter of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; modes, attributes, hooks and buffers are left as they were."""
    modules = list(model.modules())
    buffers = [buffer for module in modules for buffer in module._buffers.values() if buffer is not None]
    contents = [buffer.clone() for buffer in buffers]
    held = [(vars(module), dict(vars(module))) for module in modules]
    inside = [  # of lists and dictionaries, most of which are empty
        (value, copy.copy(value) if value else _EMPTY[type(value)])
        for _, attributes in held
        for value in attributes.values()
        if type(value) in _EMPTY
    ]
    model.eval()
    try:
        yield
    finally:
        for now, then in (*held, *inside):
            if now or then:
                _restore(now, then)
        for buffer, content in zip(buffers, contents, strict=True):
            if not torch.equal(buffer, content):
                with torch.no_grad():
                    buffer.copy_(content)


_EMPTY: dict[type, Any] = {list: [], dict: {}, OrderedDict: {}}


def _restore(now: Any, then: Any) -> None:
    """Puts back what was in a list or a dictionary."""
    keyed = isinstance(now, dict)
    values = (now.values(), then.values()) if keyed else (now, then)
    if len(now) != len(then) or (keyed and list(now) != list(then)) or not all(map(is_, *values)):
        now.clear()
        (now.update if keyed else now.extend)(then)
