"""A forward pass of a network, recorded: every ATen call, what it was given, and where each integer comes from.

The network runs once, in eval mode, on its own example. Two modes look on. One sees the calls of torch functions
and hands out sizes as integers that remember what they were computed from (`following`). The other sees the ATen
calls before composite ones fall apart into others: ``linear`` stays ``linear``, attention stays attention.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from numbers import Number
from operator import attrgetter
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from espalier.errors import TraceError
from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.seeding import seeded
from espalier.pruning.torch_private import (
    CallMode,
    OpOverload,
    Vmapped,
    counted,
    eagerly,
    is_transforming,
    kept_key,
    schema_of,
    storage_key,
    untransformed,
    vmapped_by,
)
from espalier.pruning.tracing.following import Following, repeated
from espalier.pruning.tracing.integers import Attribute, Integers
from espalier.pruning.tracing.running import (
    cloned,
    leaves_of,
    noting_layers,
    tensors_of,
    undisturbed,
)

# -- what a recording consists of


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """A tensor that a call made.

    Attributes:
        shape: its sizes.
        itemsize: bytes of one number.
        storage: the same number for tensors that share their storage.
    """

    shape: tuple[int, ...]
    itemsize: int
    storage: int


@dataclass(eq=False)
class Node:
    """One call, or a tensor that is there before any.

    Attributes:
        kind: "input", "stored" (a parameter or buffer), "constant", "call", "item" (one output of a call that has
            several) or "output" (what the network returns).
        target: the ATen overload of a call.
        args: its arguments, nodes in place of tensors, a `TracedInt` where it is known where an integer is from.
        kwargs: those given by name.
        made: the tensor it made, a list of them, or None.
        layers: the modules that run it, outermost first, each with the number of its call.
        autocast: the state of autocast: device and type; None where it is off.
        vmapped: how ``torch.func.vmap`` maps a call; None outside of it.
        value: of a constant, or what a call returned that is no tensor.
        macs: multiply-adds of a call, as PyTorch counts them.
        number: its place in the recording.
        users: the nodes that read it.
    """

    kind: str
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    made: Any = None
    layers: tuple[tuple[str, int], ...] = ()
    autocast: tuple[str, torch.dtype] | None = None
    vmapped: Vmapped | None = None
    value: Any = None
    macs: int = 0
    number: int = 0
    users: list[Node] = field(default_factory=list)

    @property
    def layer(self) -> str:
        """Path of the innermost module that runs it."""
        return self.layers[-1][0] if self.layers else ""

    @cached_property
    def sources(self) -> tuple[Node, ...]:
        """The nodes among its arguments, each once."""
        found: dict[Node, None] = {}
        mapped((self.args, self.kwargs), lambda node: found.setdefault(node))
        return tuple(found)

    @property
    def tensors(self) -> list[Made]:
        """What it made."""
        made = self.made if isinstance(self.made, list) else [self.made]
        return [tensor for tensor in made if tensor is not None]

    @property
    def is_view(self) -> bool:
        """Whether what it made shares the storage of its input, or is that input, changed in place."""
        return self.kind == "call" and is_view(self.target)

    def __getstate__(self) -> dict[str, Any]:
        """Without its users, and with the name of the operation, which cannot be pickled itself."""
        state = {name: value for name, value in vars(self).items() if name != "sources"}
        return state | {"users": [], "target": None if self.target is None else overload_name(self.target)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.target = None if self.target is None else overload_named(self.target)


@cache
def operation_name(target: OpOverload) -> str:
    """``conv2d`` of ``aten.conv2d.default``, ``relu`` of ``aten.relu_.default``."""
    return str(schema_of(target).name).partition("::")[2].rstrip("_")


def overload_name(target: OpOverload) -> str:
    """``aten.conv2d.default`` of that overload."""
    return str(target)


def overload_named(name: str) -> OpOverload:
    """The overload of a name from `overload_name`."""
    found: OpOverload = attrgetter(name)(torch.ops)
    return found


@cache
def is_view(target: OpOverload) -> bool:
    """Whether an operation's result shares the storage of its input, or is that input, changed in place."""
    schema = schema_of(target)
    return any(argument.alias_info for argument in schema.arguments) or schema.name in (
        "aten::dropout",
        "aten::feature_dropout",
    )


@cache
def is_in_place(target: OpOverload) -> bool:
    """Whether an operation writes into its input."""
    return any(argument.alias_info and argument.alias_info.is_write for argument in schema_of(target).arguments)


@cache
def parameters_of(target: OpOverload) -> tuple[tuple[str, bool, Any], ...]:
    """Every parameter of an operation: its name, whether it has a default value, and that."""
    declared = schema_of(target).arguments
    return tuple((a.name, a.has_default_value(), a.default_value) for a in declared)


def mapped(value: Any, function: Callable[[Node], Any]) -> Any:
    """Nested arguments with every node replaced."""
    if isinstance(value, Node):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([mapped(item, function) for item in value])
    if isinstance(value, dict):
        return {name: mapped(item, function) for name, item in value.items()}
    return value


@dataclass(frozen=True)
class Recording:
    """The forward pass of a network.

    Attributes:
        nodes: in the order of execution.
        evaluation: how many of them are of the pass in eval mode; the last one of these is its output. The others
            are of a pass in training mode, where some parameters are read in that one alone.
        stored: node -> the parameter or buffer that it stands for, under the first of its names.
        integers: what became of the integers in the network's code.
        batch: size of dimension 0 of the first input.
        implied: attribute of a layer -> the tensor and dimension whose size it repeats, and how many times.
        reads_values: whether the code read numbers out of tensors, on which its way may depend.
        returned: what each call of a module returned, nodes in place of tensors, where it is made of lists, tuples
            and dicts alone.
    """

    nodes: tuple[Node, ...]
    evaluation: int
    stored: dict[Node, Stored]
    integers: Integers
    batch: int
    implied: dict[Attribute, tuple[str, int, int]]
    reads_values: bool
    returned: dict[tuple[str, int], Any] = field(default_factory=dict)

    @cached_property
    def forward(self) -> tuple[Node, ...]:
        """The nodes of the pass in eval mode."""
        return self.nodes[: self.evaluation]

    @cached_property
    def finished(self) -> dict[Node, str]:
        """What every call of a module in that pass returned, where its last node made it -> its path."""
        made = [node for node in self.forward if node.kind != "constant"]
        return {
            node: node.layer
            for node, following in pairwise(made)
            if node.layers
            and node.layers[-1] not in following.layers
            and self.returned.get(node.layers[-1], node) is node
            and node.vmapped is None
        }

    @cached_property
    def last_reader(self) -> dict[Node, Node]:
        """Node -> the last one in that pass that reads it."""
        return {source: node for node in self.forward for source in node.sources}


# -- making one


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def record(model: nn.Module, inputs: Inputs) -> Recording:
    """Runs a network in eval mode and records what it does; it is left as it was.

    Raises:
        TraceError: it cannot run; in one line, with the place in its forward().
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"a network must be an nn.Module, got {type(model).__name__}")
    try:
        with torch.no_grad(), undisturbed(model), eagerly(), sdpa_kernel(SDPBackend.MATH):
            try:
                recorder = _Recorder(model, into_int=True)
                recorder.run(inputs)
            except Exception:  # code that takes only Python's own for int
                recorder = _Recorder(model, into_int=False)
                recorder.run(inputs)
            evaluation = len(recorder.nodes)
            if recorder.has_unread_parameters():
                model.train()
                recorder.try_to_run(inputs)
    except Exception as error:
        raise TraceError(f"cannot trace {type(model).__name__}: {_what_failed(error)}") from error
    first = next((value for value in tensors_of(inputs) if value.dim()), None)
    implied = {
        Attribute(path, name): (recorder.names.get(f"{path}.{tensor}".lstrip("."), ""), dim, times)
        for path, module in model.named_modules()
        for name, (tensor, dim, times) in repeated(module).items()
    }
    batch = 1 if first is None else first.shape[0]
    if first is not None and batch == 0:
        raise TraceError(f"the example inputs hold no example: the first is of shape {tuple(first.shape)}")
    if any(
        value.dtype in _FLOATS and not value.is_meta and bool(value.isnan().any()) for value in tensors_of(inputs)
    ):
        raise TraceError("the example inputs hold NaN: networks are compared by what they give for them")
    nodes, found = tuple(recorder.nodes), recorder.integers
    return Recording(
        nodes, evaluation, recorder.stored, found, batch, implied, recorder.reads_values, recorder.returned
    )


class _Recorder(CallMode):
    """Writes down the calls of a network's forward pass."""

    def __init__(self, model: nn.Module, into_int: bool) -> None:
        super().__init__()
        self._model = model
        self._following = Following(model, self._origin, into_int)
        self.nodes: list[Node] = []
        self.stored: dict[Node, Stored] = {}
        self.reads_values = False
        self.returned: dict[tuple[str, int], Any] = {}
        self._node_of: dict[int, tuple[ref[Tensor], Node]] = {}  # by id of the tensor
        self._at: dict[tuple[Any, ...], Node] = {}  # by where in memory a tensor lies
        self._keys: dict[int, Any] = {}  # of storages, which stay taken
        self._layers: tuple[tuple[str, int], ...] = ()
        self._calls = 0
        first: dict[int, str] = {}
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
        for name, tensor in tensors:
            if self.names[name] == name:
                node = self._add(Node("stored", made=_made(tensor)), tensor)
                self.stored[node] = Stored(name, tuple(tensor.shape))

    @property
    def integers(self) -> Integers:
        """What became of the integers in the network's code."""
        return self._following.found

    def run(self, inputs: Inputs) -> None:
        """Runs the network once, in the mode that it is in."""
        inputs = cloned(inputs)
        for tensor in tensors_of(inputs):
            self._add(Node("input", made=_made(tensor)), tensor)
        args, kwargs = arguments(inputs)
        layers = noting_layers(self._model, self._enter, self._leave)
        with seeded(0), layers, self._following.here(), self:
            output = self._model(*args, **kwargs)
        self._returned(output)

    def try_to_run(self, inputs: Inputs) -> None:
        """The same where the network may want other inputs, as a target: then nothing is noted."""
        before, integers, reads_values = len(self.nodes), copy.deepcopy(self.integers), self.reads_values
        try:
            self.run(inputs)
        except Exception:
            del self.nodes[before:]
            for node in self.nodes:
                node.users = [user for user in node.users if user.number < before]
            self._following.found, self.reads_values = integers, reads_values

    def has_unread_parameters(self) -> bool:
        """Whether the network has parameters that no call has read."""
        parameters = dict(self._model.named_parameters())
        return any(not node.users for node, stored in self.stored.items() if stored.name in parameters)

    def _enter(self, path: str) -> None:
        self._calls += 1
        self._layers = (*self._layers, (path, self._calls))

    def _leave(self, _: str, output: Any) -> None:
        with contextlib.suppress(TypeError):
            self.returned[self._layers[-1]] = self._structure(output)
        self._layers = self._layers[:-1]

    def _structure(self, value: Any) -> Any:
        """What a module returned, nodes in place of tensors.

        Raises:
            TypeError: it is of a type of its own, or holds a tensor that no call made.
        """
        if isinstance(value, Tensor) and (node := self._known(value)) is not None:
            return node
        if type(value) in (list, tuple):
            return type(value)([self._structure(item) for item in value])
        if type(value) is dict:
            return {name: self._structure(item) for name, item in value.items()}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise TypeError(f"a module returned a {type(value).__name__}")

    def _add(self, node: Node, tensor: Tensor | None = None) -> Node:
        node.number = len(self.nodes)
        self.nodes.append(node)
        for source in node.sources:
            source.users.append(node)
        if tensor is not None:
            tensor = untransformed(tensor)
            self._node_of[id(tensor)] = ref(tensor), node
            self._at[_place(tensor)] = node
            if node.made.storage not in self._keys:
                self._keys[node.made.storage] = kept_key(tensor)
        return node

    def _origin(self, tensor: Tensor) -> str | int | None:
        """The name of a stored tensor, the number of the node of any other; None of a constant."""
        node = None if is_transforming() else self._known(tensor)
        if node is None or node.kind == "constant":
            return None
        return self.stored[node].name if node.kind == "stored" else node.number

    def _known(self, tensor: Tensor) -> Node | None:
        """The node that made a tensor; ``x.data`` is another tensor than ``x``, in the same place."""
        tensor = untransformed(tensor)
        found = self._node_of.get(id(tensor))
        return found[1] if found and found[0]() is tensor else self._at.get(_place(tensor))

    def _node(self, tensor: Tensor) -> Node:
        if (known := self._known(tensor)) is not None:
            return known
        tensor = untransformed(tensor)
        return self._add(Node("constant", made=_made(tensor), value=tensor), tensor)

    def called(self, target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `CallMode`."""
        given, named = _mapped_tensors(self._following.traced([args, kwargs]), self._node)
        result, macs = counted(target, args, kwargs)
        node = Node(
            "call",
            target,
            tuple(given),
            named,
            layers=self._layers,
            autocast=_autocast_here(),
            vmapped=vmapped_by([args, kwargs], result) if is_transforming() else None,
            macs=macs,
        )
        if isinstance(result, Tensor):
            node.made = _made(result)
            self._add(node, result)
        elif isinstance(result, list | tuple):
            node.made = [_made(each) if isinstance(each, Tensor) else each for each in result]
            self._add(node)
            for number, tensor in enumerate(result):
                if isinstance(tensor, Tensor):
                    self._add(Node("item", None, (node, number), made=_made(tensor), layers=self._layers), tensor)
        else:
            node.value = result
            self.reads_values |= result is not None
            self._add(node)
        return result

    def _returned(self, output: Any) -> None:
        """Notes what the network returned."""
        plain = Tensor | Number | str | bytes | torch.SymInt | torch.dtype | torch.device | None
        foreign = next((type(leaf).__name__ for leaf in leaves_of(output) if not isinstance(leaf, plain)), "")
        if foreign:
            advice = "; use_cache=False leaves it out" if foreign.endswith("Cache") else ""
            raise TypeError(
                f"its output holds a {foreign}: what may be returned are tensors, and lists, tuples, dicts and "
                f"dataclasses of them{advice}"
            )
        self._add(Node("output", args=tuple(self._node(tensor) for tensor in tensors_of(output))))
        for node in self.nodes:  # a constant may be written into by the network's next pass
            if node.kind == "constant":
                node.value = node.value.detach().clone()


def _made(tensor: Tensor) -> Made:
    tensor = untransformed(tensor)
    return Made(tuple(tensor.shape), tensor.element_size(), storage_key(tensor))


def _place(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return ("elsewhere", id(tensor))
    return storage_key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _mapped_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([_mapped_tensors(item, function) for item in value])
    if type(value) is dict:
        return {name: _mapped_tensors(item, function) for name, item in value.items()}
    return value


def _autocast_here() -> tuple[str, torch.dtype] | None:
    """The state of autocast where it is on."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


def _what_failed(error: Exception) -> str:
    """One line of a failure, with the place in forward() where it happened."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    head = lines[0] if lines else type(error).__name__
    for number, line in enumerate(lines):
        if line.startswith("File ") and "in forward" in line and number + 1 < len(lines):
            return f"{head} at `{lines[number + 1]}` ({line.removeprefix('File ')})"
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name == "forward" and "/torch/" not in code.co_filename:
            head = f"{head} ({code.co_filename}:{traceback.tb_lineno} in forward)"
            break
        traceback = traceback.tb_next
    return head
