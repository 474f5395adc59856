"""OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ExportError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.runtimes.examples import batch_of, in_order, tensors_in
from espalier.pruning.runtimes.onnx_file import EXTRA, PACKAGES
from espalier.pruning.runtimes.onnx_int8 import onnx_model
from espalier.pruning.runtimes.program import one_line
from espalier.pruning.runtimes.runtime import Batch, Runtime, Session


class OpenVinoSession(Session):
    """A model, compiled for the shapes of inputs that it meets.

    Args:
        model: an `openvino.Model`.
        network: whose arguments name its inputs.
        threads: that one pass may use.
    """

    def __init__(self, model: Any, network: nn.Module, threads: int = 1) -> None:
        self._model, self._network, self._threads = model, network, threads
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}

    def place(self, inputs: Inputs) -> Any:
        """A request for these shapes, and NumPy arrays."""
        arrays = [each.detach().cpu().numpy() for each in tensors_in(in_order(self._network, inputs))]
        return self._request([each.shape for each in arrays]), arrays

    def run(self, placed: Any) -> Any:
        """One pass."""
        request, arrays = placed
        return request.infer(arrays, share_inputs=True, share_outputs=True)

    def outputs(self, found: Any) -> list[Tensor]:
        """The arrays, as tensors."""
        return [torch.from_numpy(np.array(each)) for each in found.values()]

    def _request(self, shapes: Sequence[tuple[int, ...]]) -> Any:
        import openvino

        key = tuple(shapes)
        if key not in self._requests:
            model = self._model.clone()
            if model.is_dynamic():
                model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self._threads,
                "INFERENCE_PRECISION_HINT": "f32",
                "ENABLE_CPU_PINNING": False,  # whoever times has pinned the process
            }
            compiled = openvino.Core().compile_model(model, "CPU", settings)
            self._requests[key] = compiled.create_infer_request()
        return self._requests[key]


class OpenVino(Runtime):
    """OpenVINO's CPU plugin, set for latency, layers in 8 bits as such, compiled for each batch size.

    It reads the network as ONNX.
    """

    name: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", *PACKAGES)
    extra: ClassVar[str] = f"openvino,{EXTRA}"

    def prepare(
        self,
        network: nn.Module,
        example_inputs: Inputs,
        threads: int = 1,
        *,
        batch: Batch | None = None,
        layout: str = "",
    ) -> Session:
        """Exports the network to ONNX, in memory."""
        self.check()
        model = onnx_model(network, example_inputs, batch or batch_of(example_inputs), openvino=True)
        session = OpenVinoSession(model_of(model.SerializeToString()), network, threads)
        session.place(example_inputs)  # compiles it, so that what is in the way is said here
        return session


def model_of(source: bytes, weights: bytes = b"") -> Any:
    """An `openvino.Model` of the bytes of an ONNX model, or of an .xml file and its .bin.

    Raises:
        ExportError: OpenVINO cannot read it.
    """
    import openvino

    try:
        core = openvino.Core()
        if not weights:
            return core.read_model(source)
        return core.read_model(source, openvino.Tensor(np.frombuffer(weights, dtype=np.uint8)))
    except Exception as error:  # a RuntimeError with many lines
        raise ExportError(f"OpenVINO refuses the model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The line that says why, without the places in OpenVINO's own sources."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return one_line(RuntimeError("\n".join(lines) or str(error)))
