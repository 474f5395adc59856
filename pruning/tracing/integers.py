"""Integers that know where they come from.

``x.view(b, 2, c // 2, h, w)`` and ``x.view(b, c // 2, 2, h, w)`` call ATen with the same numbers, but once
channels are gone only the size written as ``c // 2`` follows. So sizes of tensors and integer attributes of modules
are handed to a network's code (`following`) as `TracedInt`, which remembers how it was computed. Then every size in
a call is a constant, or known to follow what it was computed from.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import Tensor, nn


class Size(NamedTuple):
    """A size of a tensor: of the one that the node of that number made, or of the parameter of that name."""

    tensor: int | str
    dim: int


class Attribute(NamedTuple):
    """An integer attribute of the module at `path`, or an item of a tuple or list of them."""

    path: str
    name: str
    item: int | None = None


class Operation(NamedTuple):
    """An integer operation, by its name in `operator` or `FUNCTIONS`."""

    name: str
    operands: tuple[Expression, ...]


Leaf = Size | Attribute
Expression = int | Leaf | Operation
FUNCTIONS: dict[str, Callable[..., Any]] = {"floor": math.floor, "ceil": math.ceil, "round": round, "int": int}
"""What operations are called that `operator` lacks."""


def leaves(expression: Expression) -> set[Leaf]:
    """The sizes and attributes that an expression is computed from."""
    if isinstance(expression, Operation):
        return {leaf for operand in expression.operands for leaf in leaves(operand)}
    return set() if isinstance(expression, int) else {expression}


def evaluate(expression: Expression, value_of: Callable[[Leaf], int]) -> Any:
    """What an expression comes to for other values of its leaves, a number; a division by zero comes to -1."""
    if isinstance(expression, Operation):
        function = FUNCTIONS.get(expression.name) or getattr(operator, expression.name)
        try:
            return function(*(evaluate(operand, value_of) for operand in expression.operands))
        except ZeroDivisionError:
            return -1
    return expression if isinstance(expression, int) else value_of(expression)


class Integers:
    """What following a network's integers has found.

    Attributes:
        equal: pairs of expressions that the code compared and found equal; of other comparisons, the comparison
            and its outcome, 0 or 1.
        escaped: leaves that went into floating-point arithmetic, as a scale or a mean does.
        values: every leaf met, with its value in the dense network.
        seen: sizes that the network's own code has read, and not a function of torch that it called.
        shown: leaves of the integers that calls were given.
        unequal: leaves that the code compared and found unequal to something: others may come to be equal.
        running: whether the network's own code runs.
        quotients: those that nothing has made integers of, by their ids.
    """

    def __init__(self) -> None:
        self.equal: set[tuple[Expression, Expression]] = set()
        self.escaped: set[Leaf] = set()
        self.values: dict[Leaf, int] = {}
        self.seen: set[Size] = set()
        self.shown: set[Leaf] = set()
        self.unequal: set[Leaf] = set()
        self.running = False
        self.quotients: dict[int, TracedFloat] = {}

    def leaf(self, value: int, leaf: Leaf) -> TracedInt:
        """An integer that comes from there."""
        self.values[leaf] = value
        return TracedInt.of(value, leaf, self)

    def compared(self, one: Expression, other: Expression, equal: bool = True) -> None:
        """Notes that the network's code found two expressions equal, or unequal."""
        if self.running and equal:
            self.equal.add((one, other))
        elif self.running:
            self.unequal |= leaves(one) | leaves(other)

    def finish(self) -> None:
        """The network has run: quotients that are still such have entered the arithmetic."""
        self.running = False
        for quotient in self.quotients.values():
            self.escaped |= leaves(quotient.expression)
        self.quotients.clear()


class TracedInt(int):
    """An integer that knows the expression it was computed by."""

    expression: Expression
    integers: Integers

    @classmethod
    def of(cls, value: int, expression: Expression, integers: Integers) -> TracedInt:
        """`value`, computed by `expression`; what happens to it is noted in `integers`."""
        traced = cls(value)
        traced.expression, traced.integers = expression, integers
        return traced

    def escape(self) -> int:
        """Its value, for what cannot be followed."""
        if self.integers.running:
            self.integers.escaped |= leaves(self.expression)
        return int.__int__(self)

    def __float__(self) -> float:
        return float(self.escape())

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, int) and self.integers.running:
            operands = self.expression, expression_of(other)
            return TracedFloat.of(int.__truediv__(self, other), Operation("truediv", operands), self.integers)
        return int.__truediv__(self.escape(), other)

    def __rtruediv__(self, other: Any) -> Any:
        return int.__rtruediv__(self.escape(), other)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if isinstance(equal, bool) and not isinstance(other, bool):
            self.integers.compared(self.expression, expression_of(other), equal)
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self == other
        return equal if equal is NotImplemented else not equal

    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        value = int.__bool__(self)
        self.integers.compared(Operation("truth", (self.expression,)), int(value))
        return value

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **kwargs: Any) -> Any:
        """NumPy's functions, as ``np.sqrt``: what they return is not followed."""
        plain = [number.escape() if isinstance(number, TracedInt) else number for number in given]
        return getattr(function, method)(*plain, **kwargs)

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

    def made(self, name: str) -> TracedInt:
        """The integer that one of `FUNCTIONS` makes of it."""
        self.integers.quotients.pop(id(self), None)
        value = FUNCTIONS[name](float.__float__(self))
        return TracedInt.of(value, Operation(name, (self.expression,)), self.integers)

    def __floor__(self) -> int:
        return self.made("floor")

    def __ceil__(self) -> int:
        return self.made("ceil")

    def __round__(self, digits: Any = None) -> Any:
        return float.__round__(self, digits) if digits is not None else self.made("round")


def expression_of(value: Any) -> Expression:
    """The expression of an integer; of a plain one, its value."""
    return value.expression if isinstance(value, TracedInt) else int(value)


def _arithmetic(name: str, reflected: bool) -> Callable[[TracedInt, Any], Any]:
    method = getattr(int, f"__{'r' if reflected else ''}{name}__")

    def operation(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            if isinstance(other, float):
                self.escape()
            return NotImplemented
        value = method(self, other)
        if not isinstance(value, int):  # 64 ** -0.5
            self.escape()
            return value
        operands = (self.expression, expression_of(other))
        return TracedInt.of(value, Operation(name, operands[::-1] if reflected else operands), self.integers)

    return operation


def _unary(name: str) -> Callable[[TracedInt], TracedInt]:
    method = getattr(int, f"__{name}__")
    return lambda self: TracedInt.of(method(self), Operation(name, (self.expression,)), self.integers)


def _comparison(name: str) -> Callable[[TracedInt, Any], Any]:
    method = getattr(int, f"__{name}__")

    def comparison(self: TracedInt, other: Any) -> Any:
        holds = method(self, other)
        if isinstance(holds, bool):
            self.integers.compared(Operation(name, (self.expression, expression_of(other))), int(holds))
        elif isinstance(other, float):
            self.escape()
        return holds

    return comparison


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow", "lshift", "rshift"):
    setattr(TracedInt, f"__{_name}__", _arithmetic(_name, reflected=False))
    setattr(TracedInt, f"__r{_name}__", _arithmetic(_name, reflected=True))
for _name in ("neg", "abs"):
    setattr(TracedInt, f"__{_name}__", _unary(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(TracedInt, f"__{_name}__", _comparison(_name))


# -- integers in containers


def integers_in(value: Any) -> list[int]:
    """The integers in nested arguments, in order; booleans are none."""
    if isinstance(value, int):
        return [] if isinstance(value, bool) else [value]
    if isinstance(value, slice):
        value = value.start, value.stop, value.step
    elif isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [number for item in value for number in integers_in(item)]


def make_plain(places: list[Any] | dict[Any, Any], left: Collection[str] = (), depth: int = 4) -> None:
    """Puts integers of Python's own in place of those followed, in containers and objects that a network holds.

    Args:
        places: to look in.
        left: keys that are left as they are.
        depth: of containers inside each other.
    """
    for key, item in list(places.items() if isinstance(places, dict) else enumerate(places)):
        kind = type(item)
        if kind in _PLAIN or key in left or isinstance(item, Tensor | nn.Module | type):
            continue
        if (plain := _plain(item)) is not item:
            places[key] = plain
            continue
        inside = item if isinstance(item, list | dict) else getattr(item, "__dict__", None)
        if inside and depth > 1 and isinstance(inside, list | dict):
            make_plain(inside, depth=depth - 1)


_PLAIN = (bool, int, float, str, type(None))


def _plain(value: Any) -> Any:
    if isinstance(value, TracedInt):
        return int.__int__(value)
    if isinstance(value, TracedFloat):
        return float.__float__(value)
    if isinstance(value, tuple) and any(isinstance(item, TracedInt | TracedFloat) for item in value):
        return type(value)([_plain(item) for item in value])
    return value
