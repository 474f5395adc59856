"""ONNX: from a network to a model of the format, and what its faults say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from espalier.errors import ConfigError, ExportError
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.runtimes.examples import DYNAMIC, all_names, on_cpu
from espalier.pruning.runtimes.program import BATCH, in_words, input_names, layer_of, one_line, program_of, silenced
from espalier.pruning.runtimes.runtime import Batch, require
from espalier.pruning.seeding import seeded
from espalier.pruning.torch_private import eagerly
from espalier.pruning.tracing.running import undisturbed

if TYPE_CHECKING:
    import onnx

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
EXTRA = "onnx"
OPSETS = (18, 23)
"""The oldest and the newest that the exporter writes."""
LARGEST = 2**31 - 2**20
"""Bytes of weights that one file of the format can hold."""


def to_onnx(
    network: nn.Module, example_inputs: Inputs, batch: Batch = DYNAMIC, opset: int | None = None
) -> onnx.ModelProto:
    """The network as an ONNX model, in eval mode.

    Inputs are named after the arguments of ``forward``, outputs ``output``, ``output_0`` and so on, or by the keys
    of a dict; the dimension of the examples is ``batch``.

    Args:
        network: left as it is.
        example_inputs: what it takes; what is no tensor is fixed in the model.
        batch: examples of a pass, or "dynamic" for any number.
        opset: version of ONNX's operations; by default the exporter's own.

    Raises:
        MissingPackage: onnx is not installed.
        ConfigError: the opset is not one that the exporter writes.
        ExportError: an operation has no counterpart in ONNX; names it and the layer.
    """
    require("export to ONNX", PACKAGES, EXTRA)
    if opset is not None and (type(opset) is not int or not OPSETS[0] <= opset <= OPSETS[1]):
        raise ConfigError(f"opset must be a whole number from {OPSETS[0]} to {OPSETS[1]}, got {opset!r}")
    size = sum(each.numel() * each.element_size() for each in (*network.parameters(), *network.buffers()))
    if size > LARGEST:
        raise ExportError(f"an ONNX file holds 2 GiB at most, and the weights take {size / 2**30:.1f}: write .pt2")
    program = program_of(network, example_inputs, batch)
    names = input_names(network, example_inputs)
    outputs = [name if name not in names else f"{name}_out" for name in _output_names(network, example_inputs)]
    try:
        with silenced(), torch.no_grad():
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset, input_names=names, output_names=outputs
            )
        model: onnx.ModelProto = made.model_proto
    except Exception as error:
        raise _refused(network, program, error) from error
    written = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset not in (None, written):
        raise ExportError(
            f"{type(network).__name__} has operations that opset {opset} lacks: write opset={written}"
        )
    _name_batch(model)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Takes out what the exporter notes for its own debugging: lines of code, with the paths of this machine."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]
        noted.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Writes names and texts into a model."""
    for name, text in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, text


def node_in_words(model: onnx.ModelProto, network: nn.Module, message: str) -> str:
    """Operation and layer of the node that a runtime's message names; empty where it names none."""
    for node in model.graph.node:
        if node.name and re.search(rf"(?<![\w.]){re.escape(node.name)}(?![\w.])", message):
            scopes = {each.key: each.value for each in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
            paths = re.findall(r"'([^']*)'", scopes)
            return f"{node.op_type} in {in_words(network, paths[-2] if len(paths) > 1 else '')}"
    return ""


def _output_names(network: nn.Module, example_inputs: Inputs) -> list[str]:
    with torch.no_grad(), eagerly(), undisturbed(network), seeded(0):
        own = next((each.device for each in (*network.parameters(), *network.buffers())), None)
        found = run_on(network, on_cpu(example_inputs) if own is None else _moved(example_inputs, own))
    return all_names(found, "")


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    from espalier.pruning.torch_private import tree_map

    moved: Inputs = tree_map(lambda each: each.to(device) if isinstance(each, torch.Tensor) else each, inputs)
    return moved


def _refused(network: nn.Module, program: Any, error: BaseException) -> ExportError:
    """What is said of an operation that the exporter cannot take."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        told.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    for text in told:
        if (found := re.search(r"node %?(\w+) : .*?target=(?:torch\.ops\.)?([\w.]+)", text)) is not None:
            node, operation = found[1], found[2]
            layer = in_words(network, layer_of(program, node, operation))
            return ExportError(
                f"{type(network).__name__} cannot be exported to ONNX: {layer} runs {operation}, which ONNX lacks; "
                "write it with other operations, or export to .pt2"
            )
    return ExportError(f"{type(network).__name__} cannot be exported to ONNX: {one_line(error)}")


def _name_batch(model: onnx.ModelProto) -> None:
    """Gives the dimension of the examples its name, in place of a symbol of PyTorch's."""
    symbols = [
        dimension.dim_param
        for value in model.graph.input
        for dimension in value.type.tensor_type.shape.dim[:1]
        if dimension.dim_param
    ]
    if not symbols:
        return
    pattern = re.compile(rf"\b{re.escape(symbols[0])}\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = pattern.sub(BATCH, dimension.dim_param)
