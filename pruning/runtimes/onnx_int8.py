"""8-bit integers for an ONNX model: weights per channel, activations by what calibration inputs show.

Notation, for a tensor x with scale s and zero point z:
    q = clip(round(x / s) + z, -128, 127)       x ~ s (q - z)
Weights have a scale for each output channel and z = 0; an activation has one s and z, from the least and the
greatest number that it took (Jacob et al., CVPR 2018, arXiv 1712.05877). The file holds pairs of QuantizeLinear and
DequantizeLinear (QDQ), which runtimes turn into integer kernels.
"""

from __future__ import annotations

import copy
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, ExportError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.runtimes.examples import DYNAMIC, batch_of, has_batch, in_order, repeated, tensors_in
from espalier.pruning.runtimes.onnx_file import to_onnx
from espalier.pruning.runtimes.program import one_line, silenced
from espalier.pruning.runtimes.runtime import Batch
from espalier.pruning.slimming.quantised_layers import in_float, quantised_layers
from espalier.pruning.torch_private import tree_map

if TYPE_CHECKING:
    import onnx

PIECE = 32
"""Examples of a calibration pass, at most, where the model takes any number."""
PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operations of layers that compute in integers."""
NORMS = ("LayerNormalization", "RMSNormalization")
"""Ends of the names of operations that normalise a residual stream."""
BITS = 8
"""Of layers in integers."""
CHECKED = 4
"""Every so manieth piece of the calibration inputs is kept for the check."""


@dataclass(frozen=True)
class Agreement:
    """How close a network in 8 bits is to the network.

    Attributes:
        top1: share of examples with the same greatest output, of the first output; None where that is no
            score of several classes.
        error: ||y_8 - y|| / ||y|| over all outputs.
        examples: on so many, which were not calibrated on where there were enough.
    """

    top1: float | None
    error: float
    examples: int

    def words(self) -> str:
        """For people."""
        first = "" if self.top1 is None else f"top-1 agrees on {self.top1:.1%} of {self.examples} examples, "
        return f"{first}relative error {self.error:.1%}"


def pieces(batches: Iterable[Inputs] | Any, batch: Batch) -> tuple[list[Inputs], list[Inputs]]:
    """Calibration inputs in pieces that a model takes: those to calibrate on, and those to check on.

    Args:
        batches: inputs as the network takes them.
        batch: examples of a pass, or "dynamic".

    Raises:
        ConfigError: there are none.
    """
    if isinstance(batches, Tensor | dict | str | bytes) or not isinstance(batches, Iterable):
        kind = type(batches).__name__
        raise ConfigError(f"int8 takes batches of calibration inputs, such as [x for x, _ in loader], got a {kind}")
    found: list[Inputs] = []
    for each in batches:
        count = batch_of(each)
        size = min(PIECE, -(-count // CHECKED)) if batch == DYNAMIC else int(batch)
        for start in range(0, count, size):
            rows = _rows(each, start, min(start + size, count))
            found.append(rows if batch == DYNAMIC else repeated(rows, int(batch)))
    if not found:
        raise ConfigError("int8 takes batches of calibration inputs, got none")
    checked = found[CHECKED - 1 :: CHECKED]
    if not checked:
        return found, found
    return [each for number, each in enumerate(found) if number % CHECKED != CHECKED - 1], checked


def check_bits(network: nn.Module) -> None:
    """Refuses layers in bits that no runtime computes in.

    Raises:
        ExportError: names the first of them.
    """
    for path, layer in quantised_layers(network).items():
        if layer.bits != BITS:
            name = type(network).__name__
            raise ExportError(
                f"runtimes compute in 8 bits or in float32, and {name} has {path} in {layer.bits} bits"
            )


def onnx_model(
    network: nn.Module,
    example_inputs: Inputs,
    batch: Batch,
    opset: int | None = None,
    calibration: Sequence[Inputs] = (),
    *,
    openvino: bool = False,
) -> onnx.ModelProto:
    """The network as an ONNX model, of which those layers compute in 8 bits that do so in the network.

    Args:
        network: left as it is.
        example_inputs: what it takes.
        batch: examples of a pass, or "dynamic" for any number.
        opset: version of ONNX's operations.
        calibration: inputs that the model takes, by which what these layers give is rounded; by default the
            example.
        openvino: as of `quantised`.

    Raises:
        MissingPackage: onnx is not installed.
        ConfigError: the opset is not one that the exporter writes.
        ExportError: an operation has no counterpart in ONNX, or layers have other bits than 8.
    """
    check_bits(network)
    own = copy.deepcopy(network)
    layers = in_float(own)
    model = to_onnx(own, example_inputs, batch, opset)
    if not layers:
        return model
    ranges = {path: edges.tolist() for path, (_, edges) in layers.items()}
    return quantised(model, own, calibration or [example_inputs], ranges, openvino=openvino)


def quantised(
    model: onnx.ModelProto,
    network: nn.Module,
    calibration: Sequence[Inputs],
    ranges: Mapping[str, Sequence[float]] | None = None,
    *,
    openvino: bool = False,
) -> onnx.ModelProto:
    """The model in 8 bits.

    Args:
        model: in float32.
        network: that it was made of.
        calibration: inputs that the model takes.
        ranges: the layers that are quantised, by path, and the least and the greatest number that each reads, NaN
            for what calibration shows; by default all that ONNX Runtime can.
        openvino: whether OpenVINO will run it. Weights have seven bits then, as it adds products in 16 bits where
            the processor has no VNNI, and lets them overflow; and activations lie in [0, 255], as OpenVINO 2026.4
            gives wrong numbers where it concatenates signed ones.

    Raises:
        ExportError: ONNX Runtime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [each.name for each in model.graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Inputs] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            inputs = next(self._left, None)
            if inputs is None:
                return None
            tensors = tensors_in(in_order(network, inputs))
            return {name: each.detach().cpu().numpy() for name, each in zip(names, tensors, strict=True)}

    with tempfile.TemporaryDirectory() as folder, silenced():
        source, plain, done = (Path(folder) / f"{each}.onnx" for each in ("float", "folded", "int8"))
        try:
            onnx.save(model, source)
            chosen = None if ranges is None else _nodes(model, ranges)
            quant_pre_process(source, plain, skip_symbolic_shape=True, skip_optimization=chosen is not None)
            quantize_static(
                plain,
                done,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8 if openvino else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                reduce_range=openvino,
                nodes_to_quantize=_products(plain) if chosen is None else [node.name for node, _ in chosen],
                nodes_to_exclude=_in_float(plain),
                extra_options={} if chosen is None else {"TensorQuantOverrides": _overrides(chosen)},
            )
        except Exception as error:  # ONNX Runtime's own, or of the inputs
            raise ExportError(f"{type(network).__name__} cannot be quantised: {one_line(error)}") from error
        found: onnx.ModelProto = onnx.load(done)
    return found


def _products(path: Path) -> list[str] | None:
    """Of a model with layer norms or attention, the nodes to quantise; None for all.

    The residual stream that these read has a few numbers that are far greater than the others (Dettmers et al.,
    NeurIPS 2022, arXiv 2208.07339). Rounded to 8 bits, it has next to nothing left of these others.
    """
    import onnx

    nodes = onnx.load(path).graph.node
    shares = {node.output[0] for node in nodes if node.op_type == "Softmax"}
    attention = any(node.op_type == "MatMul" and node.input[0] in shares for node in nodes)
    if not attention and not any(node.op_type.endswith(NORMS) for node in nodes):
        return None
    return [node.name for node in nodes if node.op_type in PRODUCTS]


def _in_float(path: Path) -> list[str]:
    """Nodes that ONNX Runtime cannot quantise per channel: transposed convolutions in groups."""
    import onnx

    transposed = [node for node in onnx.load(path).graph.node if node.op_type == "ConvTranspose"]
    return [node.name for node in transposed if any(each.name == "group" and each.i > 1 for each in node.attribute)]


def _nodes(
    model: onnx.ModelProto, ranges: Mapping[str, Sequence[float]]
) -> list[tuple[onnx.NodeProto, Sequence[float]]]:
    """The nodes of layers, and the ranges of what they read.

    Raises:
        ExportError: a layer has no node.
    """
    found, missing = [], set(ranges)
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        scopes = {each.key: each.value for each in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        paths = re.findall(r"'([^']*)'", scopes)[:-1]
        layer = next((each for each in ranges if f"{each}.weight" in node.input or each in paths[-1:]), None)
        if layer is not None:
            found.append((node, ranges[layer]))
            missing.discard(layer)
    if missing:
        raise ExportError(f"the ONNX model has no layer {min(missing)} that could compute in 8 bits")
    return found


def _overrides(nodes: Sequence[tuple[onnx.NodeProto, Sequence[float]]]) -> dict[str, list[dict[str, Any]]]:
    """Ranges of tensors, as ONNX Runtime takes them: of what several layers read, the widest."""
    edges: dict[str, tuple[float, float]] = {}
    for node, (low, high) in nodes:
        if math.isfinite(low) and math.isfinite(high):
            least, greatest = edges.get(node.input[0], (low, high))
            edges[node.input[0]] = min(low, least), max(high, greatest)
    return {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in edges.items()
        if high > low
    }


def agreement(got: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> Agreement:
    """Compares outputs, piece by piece.

    Args:
        got: of the network in 8 bits, for every piece its output tensors.
        expected: of the network.
    """
    same, examples, scores = 0.0, 0, True
    squares, whole = 0.0, 0.0
    for some, others in zip(got, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            squares += float((one.double() - other.double()).square().sum())
            whole += float(other.double().square().sum())
        first, wanted = some[0], others[0]
        scores &= first.dim() == 2 and first.shape[1] > 1
        if scores:
            same += float((first.argmax(1) == wanted.argmax(1)).float().mean()) * len(first)
        examples += len(first) if first.dim() else 1
    return Agreement(same / examples if scores else None, (squares / max(whole, 1e-30)) ** 0.5, examples)


def _rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    batch = batch_of(inputs)
    found: Inputs = tree_map(lambda each: each[start:stop] if has_batch(each, batch) else each, inputs)
    return found


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are."""
    return all(bool(torch.isfinite(each).all()) for each in tensors)
