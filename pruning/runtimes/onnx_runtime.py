"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ExportError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.runtimes.examples import batch_of, in_order, tensors_in
from espalier.pruning.runtimes.onnx_file import EXTRA, PACKAGES, node_in_words
from espalier.pruning.runtimes.onnx_int8 import onnx_model
from espalier.pruning.runtimes.program import one_line
from espalier.pruning.runtimes.runtime import Batch, Runtime, Session

if TYPE_CHECKING:
    import onnx


REFUSED = "Attempt to replace the existing tensor"
"""What ONNX Runtime 1.32 says of some models in 8 bits where products are not to overflow."""


class OnnxSession(Session):
    """A model, loaded.

    Args:
        model: path or bytes of it.
        network: whose arguments name its inputs.
        threads: that one pass may use.
    """

    def __init__(self, model: Path | bytes, network: nn.Module, threads: int = 1) -> None:
        import onnxruntime

        source = model if isinstance(model, bytes) else str(model)

        def loaded(precise: str) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 4
            # Threads that wait busily after a pass would take the time of whatever is timed next.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            # Without VNNI, products of 8 bits are added in 16: this keeps them from overflowing.
            options.add_session_config_entry("session.x64quantprecision", precise)
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

        try:
            self._session = loaded("1")
        except Exception as error:  # its own classes derive from nothing else
            if REFUSED not in str(error):
                raise
            self._session = loaded("0")
        self._names = [each.name for each in self._session.get_inputs()]
        self._network = network

    def place(self, inputs: Inputs) -> Any:
        """NumPy arrays by name."""
        tensors = tensors_in(in_order(self._network, inputs))
        return {name: each.detach().cpu().numpy() for name, each in zip(self._names, tensors, strict=True)}

    def run(self, placed: Any) -> Any:
        """One pass."""
        return self._session.run(None, placed)

    def outputs(self, found: Any) -> list[Tensor]:
        """The arrays, as tensors."""
        return [torch.from_numpy(np.array(each)) for each in found]


class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider, with all of its graph optimisations; layers in 8 bits as such."""

    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", *(each for each in PACKAGES if each != "onnxruntime"))
    extra: ClassVar[str] = EXTRA

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
        model = onnx_model(network, example_inputs, batch or batch_of(example_inputs))
        return loaded(model, model.SerializeToString(), network, threads)


def loaded(model: onnx.ModelProto, source: Path | bytes, network: nn.Module, threads: int = 1) -> OnnxSession:
    """A session of a model.

    Args:
        model: for what is said of it.
        source: its file, or its bytes.
        network: that it was made of.
        threads: that one pass may use.

    Raises:
        ExportError: ONNX Runtime cannot run one of its operations; names it and the layer.
    """
    try:
        return OnnxSession(source, network, threads)
    except Exception as error:  # its own classes derive from nothing else
        where = node_in_words(model, network, str(error))
        said = f"ONNX Runtime cannot run {where}: " if where else "ONNX Runtime refuses the model: "
        raise ExportError(said + one_line(error)) from error
