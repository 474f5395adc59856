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
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from espalier.errors import ConfigError, ExportError
from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.runtimes.examples import DYNAMIC, all_names, batch_of, has_batch, in_order, on_cpu, repeated
from espalier.pruning.runtimes.runtime import Batch
from espalier.pruning.torch_private import tree_leaves
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
    named_rest = [each.name for each in _parameters(network) if each.kind is each.VAR_KEYWORD]
    rest = {name: bound.pop(name) for name in named_rest if name in bound}
    return [name for each in (bound, *rest.values()) for name in all_names(dict(each), "")]


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


def in_words(network: nn.Module, layer: str) -> str:
    """A layer, as messages call it."""
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
    inputs = repeated(in_order(own, on_cpu(example_inputs)), count)
    positional, named = arguments(inputs)
    shapes = ShapesCollection()
    if batch == DYNAMIC:
        dimension = Dim(BATCH)
        for leaf in tree_leaves(inputs):
            if has_batch(leaf, count):
                shapes[leaf] = {0: dimension}
    running: list[str] = []
    finished: list[str] = []

    def leave(path: str, output: Any) -> None:
        if output is not None:  # it has not failed
            finished.append(running.pop())

    try:
        with silenced(), torch.no_grad(), noting_layers(own, running.append, leave):
            spec = shapes.dynamic_shapes(own, positional, named) if batch == DYNAMIC else None
            program = torch.export.export(own, positional, named, dynamic_shapes=spec)
        return cast(ExportedProgram, program)
    except Exception as error:  # of PyTorch, or of the network's own code
        layer = next((path for path in reversed(running) if path), "")
        raise ExportError(
            f"{type(network).__name__} cannot be exported: {in_words(network, layer)} does what a graph of "
            f"operations cannot hold{_line_of(error)}: {one_line(error)}"
        ) from error


def _line_of(error: Exception) -> str:
    """The line of the user's code that an error comes from."""
    torch_folder = os.path.dirname(torch.__file__)
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


def _parameters(network: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(network.forward).parameters.values())
