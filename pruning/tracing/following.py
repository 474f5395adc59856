"""Sizes and attributes are handed to a network's code as integers that know where they come from."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from espalier.pruning.torch_private import CONVOLUTIONS, NORMS, PYTHON_FUNCTIONS, tree_map
from espalier.pruning.tracing.integers import (
    Attribute,
    Expression,
    Integers,
    Size,
    TracedFloat,
    TracedInt,
    integers_in,
    leaves,
    make_plain,
)

Origin = Callable[[Tensor], str | int | None]
"""What a tensor is known by: a name if it is stored, the number of what made it, or None."""


class Following(TorchFunctionMode):
    """Hands out sizes and attributes as `TracedInt`, and notes the integers of calls of torch functions.

    Args:
        model: whose attributes.
        origin: what a tensor is known by.
        into_int: follow ``int(c / 2)``, too, in the code of the packages that the network's classes are from.

    Attributes:
        found: what became of the integers.
    """

    def __init__(self, model: nn.Module, origin: Origin, into_int: bool) -> None:
        super().__init__()
        self.found = Integers()
        self._model, self._origin, self._into_int = model, origin, into_int
        self._given: list[int] = []  # of the call of a torch function that runs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _COUNTS:
            size = 1
            for side in self._sizes(args[0]):
                size = size * side
            return size
        if func is Tensor.__len__:  # which must be a plain integer: that it was looked at is all that can be noted
            self._sizes(args[0], 0)
        elif func in _SIZES:
            func(*args, **kwargs)
            dim = kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else None
            return self._sizes(args[0]) if dim is None else self._sizes(args[0], int(dim))[int(dim)]
        elif func in _VALUES:  # what is recorded is its value alone
            args = tree_map(lambda n: n.escape() if isinstance(n, TracedInt) else n, args)
        outer, self._given = self._given, integers_in((args, kwargs))
        for number in self._given:
            if isinstance(number, TracedInt):
                self.found.shown |= leaves(number.expression)
        try:
            return func(*args, **kwargs)
        finally:
            self._given = outer

    def _sizes(self, tensor: Tensor, dim: int | None = None) -> torch.Size:
        """The sizes of a tensor, of which the code looks at one, or at those that it goes on to use."""
        origin, shape = self._origin(tensor), tensor.shape
        if origin is None:
            return shape
        frame = _asking()
        if "torch/nn/functional" not in frame.f_code.co_filename:
            read = _items_read(frame, len(shape)) if dim is None else [range(len(shape))[dim]]
            self.found.seen.update(Size(origin, number) for number in read)
        return torch.Size([self.found.leaf(value, Size(origin, number)) for number, value in enumerate(shape)])

    def traced(self, value: Any) -> Any:
        """An ATen call's arguments, with every integer that is known to be computed replaced by a `TracedInt`.

        The ATen call has plain integers. Where it has those of the torch function around it, one by one, they are
        the same ones; else an integer that occurs once is that one, and of two alike it cannot be told which.
        """
        if not any(isinstance(n, TracedInt) for n in self._given):
            return value
        own = integers_in(value)
        if len(own) == len(self._given) and all(map(int.__eq__, own, self._given)):
            return _replaced(value, iter(self._given))
        known: dict[int, dict[Expression | None, int]] = {}
        for n in self._given:
            expression = n.expression if isinstance(n, TracedInt) else None
            known.setdefault(int.__int__(n), {}).setdefault(expression, n)
        single = {n: next(iter(found.values())) for n, found in known.items() if len(found) == 1}
        return _replaced(value, iter([single.get(int.__int__(n), n) for n in own]))

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """For as long as the network runs."""
        with _replacing(self._replacements()), self:
            self.found.running = True
            try:
                yield
            finally:
                self.found.finish()
                for module in self._model.modules():
                    make_plain(vars(module), _OF_EVERY_MODULE)

    def _replacements(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """What stands elsewhere while the network runs: where, under which name, and what."""
        for path, module in self._model.named_modules():
            for name, value in vars(module).items():
                if type(value) is int:
                    yield vars(module), name, self.found.leaf(value, Attribute(path, name))
                elif type(value) in (tuple, list, torch.Size) and value and all(type(v) is int for v in value):
                    traced = [self.found.leaf(v, Attribute(path, name, index)) for index, v in enumerate(value)]
                    yield vars(module), name, type(value)(traced)
        for module in PYTHON_FUNCTIONS:  # are followed inside, and not seen as one call
            for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
                if hasattr(module, name):
                    yield vars(module), name, lambda *_: False
        packages = {type(module).__module__.partition(".")[0] for module in self._model.modules()}
        for place, module in list(sys.modules.items()):
            package = place.partition(".")[0]
            if package in _NOT_A_NETWORKS or module is None:
                continue
            if self._into_int and package in packages and "int" not in vars(module):
                yield vars(module), "int", _Int
            for name, value in list(vars(module).items()):
                if isinstance(
                    value, functools._lru_cache_wrapper
                ):  # as einops has them: equal sizes come from anywhere
                    yield vars(module), name, value.__wrapped__


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that hold no integers of a network's own."""
_COUNTS = (Tensor.numel, Tensor.nelement, torch.numel)
_SIZES = (Tensor.size, Tensor.shape.__get__)  # type: ignore[attr-defined]
_VALUES = (torch.tensor, torch.as_tensor, torch.scalar_tensor)
_NOT_A_NETWORKS = sys.stdlib_module_names | {"torch", "numpy", "ray", "optuna", "sklearn", "scipy", "espalier"}
"""Packages whose code is no part of a network."""


@contextlib.contextmanager
def _replacing(replacements: Iterator[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    missing = object()
    before = [(place, name, place.get(name, missing), new) for place, name, new in replacements]
    for place, name, _, new in before:
        place[name] = new
    try:
        yield
    finally:
        for place, name, old, _ in before:
            if old is missing:
                place.pop(name, None)
            else:
                place[name] = old


def _replaced(value: Any, numbers: Iterator[int]) -> Any:
    if isinstance(value, int):
        return value if isinstance(value, bool) else next(numbers)
    if isinstance(value, list | tuple):
        return [_replaced(item, numbers) for item in value]
    if isinstance(value, dict):
        return {name: _replaced(item, numbers) for name, item in value.items()}
    return value


# -- ``int`` in a network's code


class _IntType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)

    def __eq__(cls, other: object) -> bool:
        return other is int or other is cls

    def __hash__(cls) -> int:
        return hash(int)


class _Int(int, metaclass=_IntType):
    """Stands for ``int``: Python makes a plain integer of what any class returns to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], TracedFloat):
            return args[0].made("int")
        return args[0] if len(args) == 1 and isinstance(args[0], TracedInt) else int(*args, **kwargs)


# -- which sizes the code goes on to use


def _asking() -> FrameType:
    """The code that called a torch function, through all modes that look on."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_name == "__torch_function__"):
        frame = frame.f_back
    return frame


def _items_read(frame: FrameType, count: int) -> Sequence[int]:
    """Which items of the tuple that it is about to get some code uses, as of ``x.shape[1]`` or ``_, c, *_ = ...``.

    Those put into variables that are never read are not used. Of any other code, all are.
    """
    place, instructions, loaded = _instructions(frame.f_code)
    number = place.get(frame.f_lasti, len(instructions)) + 1
    following = instructions[number : number + 4 + count]
    constants = list(itertools.takewhile(lambda name: name[0] in ("LOAD_CONST", "LOAD_SMALL_INT"), following))
    name, argument = following[len(constants)] if len(constants) < len(following) else ("", None)
    index = [value for _, value in constants]
    if name == "UNPACK_SEQUENCE" and argument == count and not constants:
        stored = [names for name, names in following[1 : 1 + count] if name.startswith("STORE_FAST")]
        names = [each for one in stored for each in (one if isinstance(one, tuple) else (one,))]
        if len(names) == count:
            return [number for number, name in enumerate(names) if name in loaded]
    elif len(index) == 2 and name in ("BUILD_SLICE", "BINARY_SLICE"):
        return range(count)[slice(*index)]
    elif len(index) == 1 and name in ("BINARY_SUBSCR", "BINARY_OP") and isinstance(index[0], int | slice):
        if name == "BINARY_SUBSCR" or argument == _SUBSCRIPT:
            read = range(count)[index[0]]
            return read if isinstance(read, range) else [read]
    return range(count)


_SUBSCRIPT = 26
"""Number of ``[]`` among the binary operations of Python 3.14 and later."""


@functools.cache
def _instructions(code: CodeType) -> tuple[dict[int, int], list[tuple[str, Any]], Container[str]]:
    """Offset -> place among the instructions, these, and the local variables that are ever read."""
    found = list(dis.get_instructions(code))
    loaded: Container[str] = {
        name
        for instruction in found
        if "LOAD_FAST" in instruction.opname
        for name in (instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,))
    }
    if {"locals", "vars", "eval", "exec"} & set(code.co_names):
        loaded = code.co_varnames
    return {i.offset: number for number, i in enumerate(found)}, [(i.opname, i.argval) for i in found], loaded


# -- what layers say twice


def repeated(module: nn.Module) -> dict[str, tuple[str, int, int]]:
    """Attributes of torch's layers that repeat the shape of a tensor: name -> tensor, dimension, times."""
    if isinstance(module, nn.Linear):
        return {"out_features": ("weight", 0, 1), "in_features": ("weight", 1, 1)}
    if isinstance(module, CONVOLUTIONS):
        first, second = ("in", "out") if module.transposed else ("out", "in")
        times = int(module.groups)
        return {f"{first}_channels": ("weight", 0, 1), f"{second}_channels": ("weight", 1, times)}
    if isinstance(module, NORMS):
        return {"num_features": ("weight" if module.affine else "running_mean", 0, 1)}
    if isinstance(module, nn.RNNBase):
        projected = {"proj_size": ("weight_hr_l0", 0, 1)} if module.proj_size else {}
        hidden = "weight_hr_l0" if module.proj_size else "weight_hh_l0"
        return {"input_size": ("weight_ih_l0", 1, 1), "hidden_size": (hidden, 1, 1)} | projected
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": ("weight", 0, 1), "embedding_dim": ("weight", 1, 1)}
    if isinstance(module, nn.GroupNorm | nn.PReLU):
        return {"num_channels" if isinstance(module, nn.GroupNorm) else "num_parameters": ("weight", 0, 1)}
    return {}
