"""TensorRT, on a GPU of NVIDIA. Untested where there is no such GPU: the tests run it only where there is one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espalier.errors import ExportError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.runtimes.examples import batch_of, in_order, repeated, tensors_in
from espalier.pruning.runtimes.onnx_file import EXTRA, PACKAGES
from espalier.pruning.runtimes.onnx_int8 import onnx_model
from espalier.pruning.runtimes.runtime import Batch, Runtime, Session


class TensorRtSession(Session):
    """An engine for one shape of inputs, on the current CUDA device.

    Args:
        engine: a `tensorrt.ICudaEngine`.
        network: whose arguments name its inputs.
    """

    def __init__(self, engine: Any, network: nn.Module) -> None:
        import tensorrt

        self._network, self._context = network, engine.create_execution_context()
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        self._outputs: dict[str, Tensor] = {}
        for name in names:
            if name not in self._inputs:
                dtype = getattr(torch, tensorrt.nptype(engine.get_tensor_dtype(name)).__name__)
                made = torch.empty(tuple(engine.get_tensor_shape(name)), dtype=dtype, device="cuda")
                self._outputs[name] = made
                self._context.set_tensor_address(name, made.data_ptr())
        self._stream = torch.cuda.Stream()

    def place(self, inputs: Inputs) -> Any:
        """Tensors on the GPU."""
        return [each.detach().cuda().contiguous() for each in tensors_in(in_order(self._network, inputs))]

    def run(self, placed: Any) -> Any:
        """One pass, waited for."""
        for name, tensor in zip(self._inputs, placed, strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        return self._outputs

    def outputs(self, found: Any) -> list[Tensor]:
        """Copies on the CPU."""
        return [tensor.cpu() for tensor in found.values()]


class TensorRt(Runtime):
    """TensorRT, in float32, an engine for each batch size. Reads the network as ONNX.

    Untested where there is no GPU. Threads are of the CPU and change nothing.
    """

    name: ClassVar[str] = "tensorrt"
    packages: ClassVar[tuple[str, ...]] = ("tensorrt", *PACKAGES)
    extra: ClassVar[str] = f"tensorrt,{EXTRA}"

    def prepare(
        self,
        network: nn.Module,
        example_inputs: Inputs,
        threads: int = 1,
        *,
        batch: Batch | None = None,
        layout: str = "",
    ) -> Session:
        """Builds an engine, which takes from seconds to minutes."""
        self.check()
        import tensorrt

        if not torch.cuda.is_available():
            raise ExportError("the runtime tensorrt needs a GPU of NVIDIA, and there is none here")
        count = batch if isinstance(batch, int) else batch_of(example_inputs)
        model = onnx_model(network, repeated(example_inputs, count), count)
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        definition = builder.create_network(0)
        parser = tensorrt.OnnxParser(definition, logger)
        if not parser.parse(model.SerializeToString()):
            raise ExportError(f"TensorRT refuses the model: {parser.get_error(0).desc()}")
        plan = builder.build_serialized_network(definition, builder.create_builder_config())
        if plan is None:
            raise ExportError("TensorRT could not build an engine of the model")
        return TensorRtSession(tensorrt.Runtime(logger).deserialize_cuda_engine(plan), network)
