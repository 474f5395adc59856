"""Where the integers in a network's code come from.

``x.view(b, 2, c // 2, h, w)`` and ``x.view(b, c // 2, 2, h, w)`` call ATen with the same numbers, but once
channels are gone only the size written as ``c // 2`` follows. So integers are followed while the network runs:
sizes of tensors and integer attributes of modules are handed to its code as `TracedInt`, which remembers how it was
computed. Then every size in a call is a constant, or known to follow what it was computed from.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from espalier.pruning.torch_private import CONVOLUTIONS, NORMS, PYTHON_FUNCTIONS, tree_map


@dataclass(frozen=True)
class Size:
    """A size of a tensor: of the one that the node of that number made, or of the parameter of that name."""

    tensor: int | str
    dim: int


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of the module at `path`, or item `index` of a tuple or list of them."""

    path: str
    name: str
    index: int | None = None


@dataclass(frozen=True)
class Operation:
    """An integer operation, by its name in `operator`."""

    name: str
    operands: tuple[Expression, ...]


Leaf = Size | Attribute
Expression = int | Leaf | Operation


def leaves(expression: Expression) -> set[Leaf]:
    """The sizes and attributes that an expression is computed from."""
    if isinstance(expression, Operation):
        return {leaf for operand in expression.operands for leaf in leaves(operand)}
    return set() if isinstance(expression, int) else {expression}


FUNCTIONS: dict[str, Callable[..., Any]] = {"floor": math.floor, "ceil": math.ceil, "round": round, "int": int}
"""What operations are called that `operator` lacks."""


def evaluate(expression: Expression, value_of: Callable[[Leaf], int]) -> Any:
    """What an expression comes to for other values of its leaves, a number; a division by zero comes to -1."""
    if isinstance(expression, Operation):
        try:
            operands = [evaluate(operand, value_of) for operand in expression.operands]
            function = FUNCTIONS.get(expression.name) or getattr(operator, expression.name)
            return function(*operands)
        except ZeroDivisionError:
            return -1
    return expression if isinstance(expression, int) else value_of(expression)


class TracedInt(int):
    """An integer that knows the expression it was computed by."""

    expression: Expression
    integers: Integers

    @classmethod
    def of(cls, value: int, expression: Expression, integers: Integers) -> TracedInt:
        """`value`, computed by `expression`; what happens to it is noted in `integers`."""
        traced = cls(value)
        if not isinstance(expression, int | Operation):
            integers.values[expression] = value
        traced.expression, traced.integers = expression, integers
        return traced

    def _escape(self) -> None:
        if self.integers.running:
            self.integers.escaped |= leaves(self.expression)

    def __float__(self) -> float:
        self._escape()
        return float(int.__int__(self))

    def __truediv__(self, other: Any) -> Any:
        quotient = int.__truediv__(self, other)
        if isinstance(other, int) and self.integers.running:
            return TracedFloat.of(
                quotient, Operation("truediv", (self.expression, expression_of(other))), self.integers
            )
        self._escape()
        return quotient

    def __rtruediv__(self, other: Any) -> Any:
        self._escape()
        return int.__rtruediv__(self, other)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and not isinstance(other, bool):
            self.integers.compared(self.expression, expression_of(other))
        return equal

    def __ne__(self, other: object) -> bool:
        unequal = int.__ne__(self, other)
        if unequal is False:
            self.integers.compared(self.expression, expression_of(other))
        return unequal

    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        value = int.__bool__(self)
        self.integers.compared(Operation("truth", (self.expression,)), int(value))
        return value

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **kwargs: Any) -> Any:
        """NumPy's functions, as ``np.sqrt``: what they return is not followed."""
        plain = [number._plainly() if isinstance(number, TracedInt) else number for number in given]
        return getattr(function, method)(*plain, **kwargs)

    def _plainly(self) -> int:
        self._escape()
        return int.__int__(self)

    def __reduce__(self) -> Any:
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int.__int__(self)


class TracedFloat(float):
    """A quotient of integers; made an integer again, it is followed, else its operands have escaped."""

    expression: Operation
    integers: Integers

    @classmethod
    def of(cls, value: float, expression: Operation, integers: Integers) -> TracedFloat:
        """`value`, computed by `expression`."""
        traced = cls(value)
        traced.expression, traced.integers = expression, integers
        integers.quotients[id(traced)] = traced
        return traced

    def _made(self, name: str, value: int) -> TracedInt:
        self.integers.quotients.pop(id(self), None)
        return TracedInt.of(value, Operation(name, (self.expression,)), self.integers)

    def __floor__(self) -> int:
        return self._made("floor", float.__floor__(self))

    def __ceil__(self) -> int:
        return self._made("ceil", float.__ceil__(self))

    def __round__(self, digits: Any = None) -> Any:
        return float.__round__(self, digits) if digits is not None else self._made("round", float.__round__(self))

    def truncated(self) -> int:
        """What ``int()`` makes of it."""
        return self._made("int", float.__trunc__(self))


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
    """Stands for ``int`` in a network's code: Python makes a plain integer of what any class returns to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], TracedFloat):
            return args[0].truncated()
        return args[0] if len(args) == 1 and isinstance(args[0], TracedInt) else int(*args, **kwargs)


@contextlib.contextmanager
def following_int(model: nn.Module) -> Iterator[None]:
    """``int(c / 2)`` is followed in the code of the packages that a network's classes are from."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()} - _OWN_CACHES
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in packages and m is not None]
    modules = [module for module in modules if "int" not in vars(module)]
    for module in modules:
        vars(module)["int"] = _Int
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("int", None)


def _arithmetic(name: str, reflected: bool) -> Callable[[TracedInt, Any], Any]:
    method = getattr(int, f"__{'r' if reflected else ''}{name}__")
    function = {"and": "and_", "or": "or_"}.get(name, name)

    def operation(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            if isinstance(other, float):
                self._escape()
            return NotImplemented
        value = method(self, other)
        if not isinstance(value, int):  # 64 ** -0.5
            self._escape()
            return value
        operands = (self.expression, expression_of(other))
        return TracedInt.of(value, Operation(function, operands[::-1] if reflected else operands), self.integers)

    return operation


def _unary(name: str) -> Callable[[TracedInt], TracedInt]:
    method = getattr(int, f"__{name}__")

    def operation(self: TracedInt) -> TracedInt:
        return TracedInt.of(method(self), Operation(name, (self.expression,)), self.integers)

    return operation


def _comparison(name: str) -> Callable[[TracedInt, Any], Any]:
    method = getattr(int, f"__{name}__")

    def comparison(self: TracedInt, other: Any) -> Any:
        holds = method(self, other)
        if isinstance(holds, bool):
            operands = (self.expression, expression_of(other))
            self.integers.compared(Operation(name, operands), int(holds))
        elif isinstance(other, float):
            self._escape()
        return holds

    return comparison


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow", "lshift", "rshift"):
    setattr(TracedInt, f"__{_name}__", _arithmetic(_name, reflected=False))
    setattr(TracedInt, f"__r{_name}__", _arithmetic(_name, reflected=True))
for _name in ("neg", "abs"):
    setattr(TracedInt, f"__{_name}__", _unary(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(TracedInt, f"__{_name}__", _comparison(_name))


def expression_of(value: Any) -> Expression:
    """The expression of an integer; of a plain one, its value."""
    return value.expression if isinstance(value, TracedInt) else int(value)


class Integers:
    """What following a network's integers has found.

    Attributes:
        equal: pairs of expressions that the code compared and found equal; of other comparisons, the comparison
            and its outcome, 0 or 1.
        escaped: leaves that went into floating-point arithmetic, as a scale or a mean does.
        values: every leaf met, with its value in the dense network.
        seen: sizes that the network's own code has read, and not a function of torch that it called.
        shown: leaves of the integers that calls were given.
        running: whether the network's own code runs.
    """

    def __init__(self) -> None:
        self.equal: set[tuple[Expression, Expression]] = set()
        self.escaped: set[Leaf] = set()
        self.values: dict[Leaf, int] = {}
        self.seen: set[Size] = set()
        self.shown: set[Leaf] = set()
        self.running = False
        self.quotients: dict[int, TracedFloat] = {}  # that nothing has made integers of
        self._given: list[int] = []  # of the call of a torch function that runs

    def compared(self, one: Expression, other: Expression) -> None:
        """Notes that the network's code found two expressions equal."""
        if self.running:
            self.equal.add((one, other))

    @contextlib.contextmanager
    def of_call(self, args: Any, kwargs: Any) -> Iterator[None]:
        """Notes the integers that a torch function is called with."""
        outer, self._given = self._given, integers_in((args, kwargs))
        for number in self._given:
            if isinstance(number, TracedInt):
                self.shown |= leaves(number.expression)
        try:
            yield
        finally:
            self._given = outer

    def followed(self, value: Any) -> Any:
        """An ATen call's arguments, with every integer that is known to be computed replaced by a `TracedInt`.

        The ATen call has plain integers. Where it has those of the torch function around it, one by one, they are
        the same ones; else an integer that occurs once is that one, and of two alike it cannot be told which.
        """
        if not any(isinstance(n, TracedInt) for n in self._given):
            return value
        own = integers_in(value)
        if len(own) == len(self._given) and all(map(int.__eq__, own, self._given)):
            return _replaced(value, iter(self._given))
        known: dict[int, list[Any]] = {}
        for n in self._given:
            expression = n.expression if isinstance(n, TracedInt) else None
            alternatives = known.setdefault(int.__int__(n), [])
            if expression not in [other for other, _ in alternatives]:
                alternatives.append((expression, n))
        single = {n: found[0][1] for n, found in known.items() if len(found) == 1}
        return _replaced(value, iter([single.get(int.__int__(n), n) for n in own]))

    @contextlib.contextmanager
    def following(self, model: nn.Module, origin: Origin) -> Iterator[None]:
        """Hands sizes and attributes to a network's code as `TracedInt`.

        Args:
            model: whose attributes.
            origin: what a tensor is known by: a name if it is stored, the number of what made it, or None.
        """
        with (
            _traced_attributes(model, self),
            _transparent_functions(),
            _uncached_functions(),
            _Follow(self, origin),
        ):
            self.running = True
            try:
                yield
            finally:
                self.running = False
        for quotient in self.quotients.values():
            self.escaped |= leaves(quotient.expression)
        self.quotients.clear()


Origin = Callable[[Tensor], str | int | None]


def _replaced(value: Any, numbers: Iterator[int]) -> Any:
    if isinstance(value, int):
        return value if isinstance(value, bool) else next(numbers)
    if isinstance(value, list | tuple):
        return [_replaced(item, numbers) for item in value]
    if isinstance(value, dict):
        return {name: _replaced(item, numbers) for name, item in value.items()}
    return value


class _Follow(TorchFunctionMode):
    """Notes the integers of calls of torch functions, and hands out sizes as `TracedInt`."""

    def __init__(self, integers: Integers, origin: Origin) -> None:
        super().__init__()
        self._integers, self._origin = integers, origin

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.numel, Tensor.nelement, torch.numel):
            size = 1
            for side in self._size(args[0], args[0].shape, (), {}):
                size = size * side
            return size
        if func is Tensor.__len__:  # which must be a plain integer: that it was looked at is all that can be noted
            self._size(args[0], args[0].shape, (), {})
        if func is Tensor.size or getattr(func, "__self__", None) is Tensor.shape:
            return self._size(args[0], func(*args, **kwargs), args, kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor):  # what is recorded is its value alone
            args = tree_map(lambda n: n._plainly() if isinstance(n, TracedInt) else n, args)
        with self._integers.of_call(args, kwargs):
            return func(*args, **kwargs)

    def _size(self, tensor: Tensor, size: Any, args: Any, kwargs: Any) -> Any:
        origin = self._origin(tensor)
        if origin is None:
            return size
        if isinstance(size, tuple):
            return torch.Size([self._traced(value, Size(origin, dim)) for dim, value in enumerate(size)])
        dim = kwargs["dim"] if "dim" in kwargs else args[1]
        return self._traced(size, Size(origin, int(dim) % tensor.dim()))

    def _traced(self, value: int, leaf: Size) -> TracedInt:
        if "torch/nn/functional" not in _asking():
            self._integers.seen.add(leaf)
        return TracedInt.of(value, leaf, self._integers)


def _asking() -> str:
    """The file of the code that called a torch function, through all modes that look on."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_name == "__torch_function__"):
        frame = frame.f_back
    return frame.f_code.co_filename


def make_plain(value: Any, depth: int = 3) -> None:
    """Puts integers of Python's own in place of those followed, in containers and objects that a network holds."""
    if isinstance(value, Tensor | nn.Module | type) or not depth:
        return
    places: Any = value if isinstance(value, list | dict) else getattr(value, "__dict__", None)
    if not isinstance(places, list | dict):
        return
    for key, item in list(places.items() if isinstance(places, dict) else enumerate(places)):
        plain = _plain(item)
        if plain is not item:
            places[key] = plain
        else:
            make_plain(item, depth - 1)


def _plain(value: Any) -> Any:
    if isinstance(value, TracedInt):
        return int.__int__(value)
    if isinstance(value, TracedFloat):
        return float.__float__(value)
    if isinstance(value, tuple) and any(isinstance(item, TracedInt | TracedFloat) for item in value):
        return type(value)([_plain(item) for item in value])
    return value


def integers_in(value: Any) -> list[int]:
    """The integers in nested arguments, in order; booleans are none."""
    if isinstance(value, int):
        return [] if isinstance(value, bool) else [value]
    if isinstance(value, slice):
        return integers_in((value.start, value.stop, value.step))
    if isinstance(value, list | tuple):
        return [number for item in value for number in integers_in(item)]
    if isinstance(value, dict):
        return integers_in(list(value.values()))
    return []


@contextlib.contextmanager
def _traced_attributes(model: nn.Module, integers: Integers) -> Iterator[None]:
    """Integer attributes of modules, and tuples and lists of integers, become traced ones for a while."""
    originals: list[tuple[nn.Module, str, Any]] = []
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            several = type(value) in (tuple, list, torch.Size) and all(type(v) is int for v in value)
            if type(value) is int or several:
                originals.append((module, name, value))
                module.__dict__[name] = _traced_attribute(value, path, name, integers)
    try:
        yield
    finally:
        for module, name, value in originals:
            module.__dict__[name] = value


def _traced_attribute(value: Any, path: str, name: str, integers: Integers) -> Any:
    if isinstance(value, int):
        return TracedInt.of(value, Attribute(path, name), integers)
    return type(value)([TracedInt.of(v, Attribute(path, name, i), integers) for i, v in enumerate(value)])


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
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": ("weight", 0, 1)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": ("weight", 0, 1)}
    if isinstance(module, nn.RNNBase):
        projected = {"proj_size": ("weight_hr_l0", 0, 1)} if module.proj_size else {}
        hidden = "weight_hr_l0" if module.proj_size else "weight_hh_l0"
        return {"input_size": ("weight_ih_l0", 1, 1), "hidden_size": (hidden, 1, 1)} | projected
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": ("weight", 0, 1), "embedding_dim": ("weight", 1, 1)}
    return {}


@contextlib.contextmanager
def _transparent_functions() -> Iterator[None]:
    """Torch functions written in Python are followed inside, and not seen as one call."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    places = [(module, name) for module in PYTHON_FUNCTIONS for name in names if hasattr(module, name)]
    originals = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, lambda *_: False)
    try:
        yield
    finally:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)


@contextlib.contextmanager
def _uncached_functions() -> Iterator[None]:
    """Functions under ``functools.lru_cache``, as einops has them, compute anew: equal sizes come from anywhere."""
    found: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _OWN_CACHES or module is None:
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, functools._lru_cache_wrapper):
                found.append((module, key, value))
    for module, key, value in found:
        setattr(module, key, value.__wrapped__)
    try:
        yield
    finally:
        for module, key, value in found:
            setattr(module, key, value)


_OWN_CACHES = sys.stdlib_module_names | {"torch", "numpy", "ray", "optuna", "sklearn", "scipy", "espalier"}
"""Packages whose cached functions are no part of a network."""
