"""From a network to the ATen graph of its forward pass, with the integers in it followed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from espalier.errors import TraceError
from espalier.pruning.calls import Stored
from espalier.pruning.provenance import ANNOTATION, Attribute, Provenance, TracedInt, following, integers, repeated
from espalier.pruning.torch_private import tree_leaves, tree_map

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a network is called with: one tensor, the tuple of its arguments, or arguments by name."""


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Runs a network and returns the tensors of its output, in order."""
    args, kwargs = arguments(inputs)
    return tensors_of(model(*args, **kwargs))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


@dataclass(frozen=True)
class Program:
    """The exported forward pass of a network in eval mode.

    Attributes:
        nodes: in the order of execution.
        stored: placeholder -> the parameter or buffer it stands for, under the first of its names.
        constants: node -> a tensor that the network's code made or holds outside its parameters and buffers, or
            the graph of a part that runs under another regime, as under `torch.autocast`.
        provenance: where the integers in the nodes' arguments come from.
        batch: size of dimension 0 of the first input.
        implied: attribute of a layer -> the tensor and dimension whose size it repeats, and how many times.
    """

    nodes: tuple[fx.Node, ...]
    stored: dict[fx.Node, Stored]
    constants: dict[fx.Node, Any]
    provenance: Provenance
    batch: int
    implied: dict[Attribute, tuple[str, int, int]]

    def call_of(self, node: fx.Node) -> int | None:
        """The number of the torch call that a node stems from."""
        number: int | None = (node.meta.get("custom") or {}).get(ANNOTATION)
        return number

    def followed(self, node: fx.Node, value: Any) -> Any:
        """A node's arguments, with every integer that is known to be computed replaced by a `TracedInt`."""
        number = self.call_of(node)
        given = self.provenance.calls[number] if number is not None else []
        traced = [n for n in given if isinstance(n, TracedInt)]
        if not traced:
            return value
        own = integers(value)
        if len(own) == len(given) and all(int.__eq__(a, b) for a, b in zip(own, given, strict=True)):
            return _replaced(value, iter(given))
        known: dict[int, list[Any]] = {}
        for n in given:  # an integer that occurs once is that one; of two alike it cannot be told which
            expression = n.expression if isinstance(n, TracedInt) else None
            alternatives = known.setdefault(int.__int__(n), [])
            if expression not in [other for other, _ in alternatives]:
                alternatives.append((expression, n))
        single = {n: found[0][1] for n, found in known.items() if len(found) == 1}
        return _replaced(value, iter([single.get(n, n) for n in own]))


def _replaced(value: Any, numbers: Iterator[int]) -> Any:
    if isinstance(value, int):
        return value if isinstance(value, bool) else next(numbers)
    if isinstance(value, list | tuple):
        return [_replaced(item, numbers) for item in value]
    if isinstance(value, dict):
        return {name: _replaced(item, numbers) for name, item in value.items()}
    return value


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; modes and buffers are left as they were, counters and running means too."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)


def cloned(inputs: Inputs) -> Inputs:
    """Inputs that a network may change in place."""
    clones: Inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    return clones


def _taken_apart(output: Any) -> list[Tensor]:
    """The tensors of a network's output: whatever it holds besides is told, for it may hold tensors too."""
    foreign = _foreign(output)
    if foreign:
        raise TypeError(
            f"its output holds a {foreign}: what may be returned are tensors, and lists, tuples, dicts and "
            f"dataclasses of them"
        )
    return tensors_of(output)


def _foreign(value: Any) -> str:
    """The name of a type in an output that is neither a container, nor a tensor, nor plain."""
    if value is None or isinstance(
        value, Tensor | Number | str | bytes | torch.SymInt | torch.dtype | torch.device
    ):
        return ""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return next((name for item in value if (name := _foreign(item))), "")
    return type(value).__name__


def export(model: nn.Module, inputs: Inputs) -> Program:
    """Exports a network in eval mode, and leaves it as it was.

    Raises:
        TraceError: it cannot run or cannot be exported; in one line, with the place in its forward().
    """
    args, kwargs = arguments(inputs)
    # Exporting knows tuples and dicts; other outputs, such as dataclasses, are taken apart first.
    flatten = model.register_forward_hook(lambda module, args, output: _taken_apart(output))
    try:
        with torch.no_grad(), undisturbed(model):
            call(model, cloned(inputs))  # a network that cannot run is told so in its own words
            with _quietly(), following(model) as provenance:
                program = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        raise TraceError(f"cannot trace {type(model).__name__}: {_what_failed(error)}") from error
    finally:
        flatten.remove()
    first = next((v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.dim()), None)
    return _read(program, model, provenance, 1 if first is None else first.shape[0])


def _read(program: torch.export.ExportedProgram, model: nn.Module, provenance: Provenance, batch: int) -> Program:
    names = _first_names(model)
    signature = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    stored: dict[fx.Node, Stored] = {}
    constants: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = signature[node.name]
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                name = str(spec.target)
                stored[node] = Stored(names.get(name, name), tuple(node.meta["val"].shape))
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                constants[node] = program.constants[str(spec.target)]
        elif node.op == "get_attr":
            constants[node] = getattr(program.graph_module, str(node.target))
    implied = {
        Attribute(path, name): (names.get(f"{path}.{tensor}".lstrip("."), ""), dim, times)
        for path, module in model.named_modules()
        for name, (tensor, dim, times) in repeated(module).items()
    }
    return Program(tuple(program.graph.nodes), stored, constants, provenance, batch, implied)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A failing export prints the graph that it had and logs what it could not find: the error says it all."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is exported is not kept
            yield
    finally:
        logging.disable(before)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor: layers may share one."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _what_failed(error: Exception) -> str:
    """One line of an export's failure, with the operation or the place in forward() that it names."""
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
