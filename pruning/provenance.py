"""Where the integers in a network's code come from.

``x.view(b, 2, c // 2, h, w)`` and ``x.view(b, c // 2, 2, h, w)`` leave the same numbers in an exported graph, but
once channels are gone only the size written as ``c // 2`` follows. So integers are followed while the network is
exported: sizes of tensors and integer attributes of modules are handed to its code as `TracedInt`, which remembers
how it was computed. Then every size in the graph is a constant, or known to follow what it was computed from.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode

from espalier.pruning.torch_private import CONVOLUTIONS, NORMS, PYTHON_FUNCTIONS, tree_map


@dataclass(frozen=True)
class Size:
    """A size of a tensor: of output `output` of the call numbered `call`, or of the parameter of that name."""

    call: int | str
    output: int
    dim: int


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of the module at `path`, or item `index` of an attribute that is a tuple of them."""

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


def evaluate(expression: Expression, value_of: Callable[[Leaf], int]) -> int:
    """What an expression comes to for other values of its leaves; a division by zero comes to -1."""
    if isinstance(expression, Operation):
        try:
            operands = [evaluate(operand, value_of) for operand in expression.operands]
            return int(getattr(operator, expression.name)(*operands))
        except ZeroDivisionError:
            return -1
    return expression if isinstance(expression, int) else value_of(expression)


@dataclass
class Provenance:
    """What following a network's integers has found.

    Attributes:
        calls: per torch function called, the integers among its arguments, in order.
        equal: pairs of expressions that the code compared and found equal; of other comparisons, the comparison
            and its outcome, 0 or 1.
        escaped: leaves that went into floating-point arithmetic, as a scale or a mean does.
        values: every leaf met, with its value in the dense network.
        seen: sizes that the network's own code has read, and not a function of torch that it called.
        running: whether the network's own code runs, and not that of the exporter around it.
    """

    calls: list[list[int]] = field(default_factory=list)
    equal: set[tuple[Expression, Expression]] = field(default_factory=set)
    escaped: set[Leaf] = field(default_factory=set)
    values: dict[Leaf, int] = field(default_factory=dict)
    seen: set[Size] = field(default_factory=set)
    running: bool = False

    def compared(self, one: Expression, other: Expression) -> None:
        """Notes that the network's code found two expressions equal."""
        if self.running:
            self.equal.add((one, other))


class TracedInt(int):
    """An integer that knows the expression it was computed by."""

    expression: Expression
    provenance: Provenance

    @classmethod
    def of(cls, value: int, expression: Expression, provenance: Provenance) -> TracedInt:
        """`value`, computed by `expression`; what happens to it is noted in `provenance`."""
        traced = cls(value)
        if not isinstance(expression, int | Operation):
            provenance.values[expression] = value
        traced.expression, traced.provenance = expression, provenance
        return traced

    def _escape(self) -> None:
        if self.provenance.running:
            self.provenance.escaped |= leaves(self.expression)

    def __float__(self) -> float:
        self._escape()
        return float(int.__int__(self))

    def __truediv__(self, other: Any) -> Any:
        self._escape()
        return int.__truediv__(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        self._escape()
        return int.__rtruediv__(self, other)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and not isinstance(other, bool):
            self.provenance.compared(self.expression, expression_of(other))
        return equal

    def __ne__(self, other: object) -> bool:
        unequal = int.__ne__(self, other)
        if unequal is False:
            self.provenance.compared(self.expression, expression_of(other))
        return unequal

    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        value = int.__bool__(self)
        self.provenance.compared(Operation("truth", (self.expression,)), int(value))
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
        return TracedInt.of(value, Operation(function, operands[::-1] if reflected else operands), self.provenance)

    return operation


def _unary(name: str) -> Callable[[TracedInt], TracedInt]:
    method = getattr(int, f"__{name}__")

    def operation(self: TracedInt) -> TracedInt:
        return TracedInt.of(method(self), Operation(name, (self.expression,)), self.provenance)

    return operation


def _comparison(name: str) -> Callable[[TracedInt, Any], Any]:
    method = getattr(int, f"__{name}__")

    def comparison(self: TracedInt, other: Any) -> Any:
        holds = method(self, other)
        if isinstance(holds, bool):
            operands = (self.expression, expression_of(other))
            self.provenance.compared(Operation(name, operands), int(holds))
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


ANNOTATION = "espalier"
"""Key of a graph node's custom metadata that holds the number of the call it stems from."""


@contextlib.contextmanager
def following(model: nn.Module) -> Iterator[Provenance]:
    """Follows the integers of a network's code; what is exported inside has its nodes marked by call."""
    provenance = Provenance()
    with _traced_attributes(model, provenance), _transparent_functions(), fx_traceback.preserve_node_meta():
        with _Follow(model, provenance), _noticing(model, provenance):
            yield provenance


@contextlib.contextmanager
def _noticing(model: nn.Module, provenance: Provenance) -> Iterator[None]:
    """Sets `provenance.running` while the network's forward() runs."""

    def start(*_: Any) -> None:
        provenance.running = True

    def stop(*_: Any) -> None:
        provenance.running = False

    hooks = [model.register_forward_pre_hook(start), model.register_forward_hook(stop, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Follow(TorchFunctionMode):
    """Numbers the calls of torch functions, notes their integers, and hands out sizes as `TracedInt`."""

    def __init__(self, model: nn.Module, provenance: Provenance) -> None:
        super().__init__()
        self._model = model
        self._provenance = provenance
        self._origin: dict[int, tuple[int | str, int]] = {}  # id of a tensor -> call and output
        self._alive: list[Tensor] = []  # keeps those ids taken

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._provenance.running:
            return func(*args, **kwargs)
        if func in (Tensor.numel, Tensor.nelement, torch.numel):
            size = 1
            for side in self._size(args[0], args[0].shape, (), {}):
                size = size * side
            return size
        if func is Tensor.__len__:  # which must be a plain integer: that it was looked at is all that can be noted
            self._size(args[0], args[0].shape, (), {})
        if func is Tensor.size or getattr(func, "__self__", None) is Tensor.shape:
            return self._size(args[0], func(*args, **kwargs), args, kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.scalar_tensor):  # the graph holds its value alone
            args = tree_map(lambda n: n._plainly() if isinstance(n, TracedInt) else n, args)
        number = len(self._provenance.calls)
        self._provenance.calls.append(integers((args, kwargs)))
        with fx_traceback.annotate({ANNOTATION: number}):
            result = func(*args, **kwargs)
        for output, tensor in enumerate(result if isinstance(result, list | tuple) else [result]):
            if isinstance(tensor, Tensor) and id(tensor) not in self._origin:
                self._origin[id(tensor)] = (number, output)
                self._alive.append(tensor)
        return result

    def _size(self, tensor: Tensor, size: Any, args: Any, kwargs: Any) -> Any:
        origin = self._origin.get(id(tensor)) or self._stored(tensor)
        if origin is None:
            return size
        if isinstance(size, tuple):
            return torch.Size([self._traced(value, (*origin, dim)) for dim, value in enumerate(size)])
        dim = kwargs["dim"] if "dim" in kwargs else args[1]
        return self._traced(size, (*origin, int(dim) % tensor.dim()))

    def _traced(self, value: int, place: tuple[int | str, int, int]) -> TracedInt:
        leaf = Size(*place)
        if "torch/nn/functional" not in _asking():
            self._provenance.seen.add(leaf)
        return TracedInt.of(value, leaf, self._provenance)

    def _stored(self, tensor: Tensor) -> tuple[str, int] | None:
        """The name of a parameter: exporting replaces them by others, so they are looked up when one is met."""
        for name, parameter in self._model.named_parameters():
            if parameter is tensor:
                self._origin[id(tensor)] = (name, 0)
                self._alive.append(tensor)
                return name, 0
        return None


def _asking() -> str:
    """The file of the code that called a torch function, through all modes that look on."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_name == "__torch_function__"):
        frame = frame.f_back
    return frame.f_code.co_filename


def integers(value: Any) -> list[int]:
    """The integers in nested arguments, in order; booleans are none."""
    if isinstance(value, int):
        return [] if isinstance(value, bool) else [value]
    if isinstance(value, slice):
        return integers((value.start, value.stop, value.step))
    if isinstance(value, list | tuple):
        return [number for item in value for number in integers(item)]
    if isinstance(value, dict):
        return integers(list(value.values()))
    return []


@contextlib.contextmanager
def _traced_attributes(model: nn.Module, provenance: Provenance) -> Iterator[None]:
    """Integer attributes of modules, and tuples of integers, become traced ones for a while."""
    originals: list[tuple[nn.Module, str, Any]] = []
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if type(value) is int or (type(value) in (tuple, torch.Size) and all(type(v) is int for v in value)):
                originals.append((module, name, value))
                module.__dict__[name] = _traced_attribute(value, path, name, provenance)
    try:
        yield
    finally:
        for module, name, value in originals:
            module.__dict__[name] = value


def _traced_attribute(value: Any, path: str, name: str, provenance: Provenance) -> Any:
    if isinstance(value, int):
        return TracedInt.of(value, Attribute(path, name), provenance)
    return type(value)([TracedInt.of(v, Attribute(path, name, i), provenance) for i, v in enumerate(value)])


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
