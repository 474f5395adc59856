"""From a network to a program of `torch.export`, or one line that says which layer is in the way."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from espalier.errors import ConfigError, ExportError
from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.runtimes.examples import DYNAMIC, all_names, batch_of, has_batch, in_order, on_cpu, repeated
from espalier.pruning.runtimes.runtime import Batch
from espalier.pruning.torch_private import tree_map
from espalier.pruning.tracing.running import noting_layers

SEVERAL = 3
"""Examples that a program for any number of them is made with: 0 and 1 are special to PyTorch."""
BATCH = "batch"
"""Name of the dimension."""


def program_of(network: nn.Module, example_inputs: Inputs, batch: Batch = DYNAMIC) -> ExportedProgram:
    """The network as a graph of operations, in eval mode, on the CPU.

    Args:
        network: left as it is.
        example_inputs: what it takes; what is no tensor is fixed in the program.
        batch: examples of a pass, or "dynamic" for any number.

    Raises:
        ExportError: its code does what a graph cannot hold; names layer and line.
    """
    check_batch(batch)
    try:
        return _program(network, example_inputs, batch)
    except ExportError:
        if batch == DYNAMIC:
            own = batch_of(example_inputs)
            with contextlib.suppress(ExportError):
                _program(network, example_inputs, own)
                raise ConfigError(
                    f"{type(network).__name__} runs with a fixed number of examples alone, and batch is "
                    f"{DYNAMIC!r}: write batch={own}, as its example inputs have"
                ) from None
        raise


def check_batch(batch: Any) -> None:
    """Refuses what is no batch size.

    Raises:
        ConfigError: it is neither a number from 1 nor "dynamic".
    """
    if batch != DYNAMIC and (type(batch) is not int or batch < 1):
        raise ConfigError(f"batch must be a whole number from 1, or {DYNAMIC!r}, got {batch!r}")


def input_names(network: nn.Module, example_inputs: Inputs) -> list[str]:
    """Names of the tensors that a network takes, in the order of `tensors_in` of `in_order`."""
    positional, named = arguments(example_inputs)
    bound = inspect.signature(network.forward).bind(*positional, **named).arguments
    parameters = inspect.signature(network.forward).parameters.values()
    rest = [bound.pop(each.name, {}) for each in parameters if each.kind is each.VAR_KEYWORD]
    return [name for each in (bound, *rest) for name in all_names(dict(each), "")]


def layer_of(program: ExportedProgram, node: str, operation: str) -> str:
    """Path of the layer that a node comes from, by its name or, failing that, by what it computes; may be empty."""
    for made in (program, _decomposed(program)):
        nodes = [each for each in made.graph.nodes if each.op == "call_function"]
        own = [each for each in nodes if each.name == node]
        for each in own or [each for each in nodes if operation and str(each.target).startswith(operation)]:
            stack = each.meta.get("nn_module_stack") or {}
            if stack:
                return str(list(stack.values())[-1][0])
    return ""


def in_words(network: nn.Module, layers: str | Sequence[str]) -> str:
    """A layer, the innermost of several, as messages call it."""
    paths = [layers] if isinstance(layers, str) else layers
    layer = next((path for path in reversed(paths) if path), "")
    if not layer:
        return type(network).__name__
    with contextlib.suppress(AttributeError):
        return f"layer {layer} ({type(network.get_submodule(layer)).__name__})"
    return f"layer {layer}"


def one_line(error: BaseException) -> str:
    """The first sentence of an error, without colours and trailing advice."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", str(error)).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Without what exporters print, log and warn of: what matters is raised."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.fx", "torch.export", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _program(network: nn.Module, example_inputs: Inputs, batch: Batch) -> ExportedProgram:
    own = copy.deepcopy(network).cpu().eval()
    count = SEVERAL if batch == DYNAMIC else int(batch)
    ordered = in_order(own, on_cpu(example_inputs))
    inputs = repeated(ordered, count)
    positional, named = arguments(inputs)
    _name_arguments(own, named)
    running: list[str] = []
    try:
        with silenced(), torch.no_grad(), noting_running(own, running):
            spec = _any_number(own, ordered) if batch == DYNAMIC else None
            program = torch.export.export(own, positional, named, dynamic_shapes=spec)
        return program
    except Exception as error:  # of PyTorch, or of the network's own code
        raise ExportError(
            f"{type(network).__name__} cannot be exported: {in_words(network, running)} does what a graph of "
            f"operations cannot hold{line_of(error)}: {one_line(error)}"
        ) from error


def noting_running(network: nn.Module, running: list[str]) -> AbstractContextManager[None]:
    """Keeps the paths of the modules that run; of those that failed it is left."""

    def leave(path: str, output: Any) -> None:
        if output is not None:  # it has not failed
            running.pop()

    return noting_layers(network, running.append, leave)


def _name_arguments(network: nn.Module, named: Mapping[str, Any]) -> None:
    """Gives arguments that ``forward`` takes as ``**kwargs`` names of their own.

    PyTorch cannot tell which dimensions of the others are dynamic where there are such.
    """
    forward, signature = network.forward, inspect.signature(network.forward)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    if more := [name for name in named if name not in {each.name for each in own}]:

        def renamed(*positional: Any, **others: Any) -> Any:
            return forward(*positional, **others)

        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
        vars(renamed)["__signature__"] = signature.replace(parameters=[*own, *added])
        vars(network)["forward"] = renamed


def _any_number(network: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Of every argument, that dimension 0 is any number where it counts examples."""
    dimension, batch = Dim(BATCH), batch_of(inputs)
    positional, named = arguments(inputs)
    bound = inspect.signature(network.forward).bind(*positional, **named).arguments
    spec: dict[str, Any] = tree_map(lambda each: {0: dimension} if has_batch(each, batch) else None, dict(bound))
    return spec


def line_of(error: Exception) -> str:
    """The line of the user's code that an error comes from."""
    torch_folder = os.path.dirname(inspect.getfile(torch))
    here = os.path.dirname(os.path.dirname(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torch_folder, here)) and "<" not in frame.filename
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    with silenced(), contextlib.suppress(Exception):
        program = program.run_decompositions()
    return program
