"""Formats that a network is written in, by the ending of the file: each writes one, and runs what was written."""

from __future__ import annotations

import copy
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from espalier.errors import ArtefactError
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.runtimes.onnx_file import EXTRA, PACKAGES, set_metadata, strip
from espalier.pruning.runtimes.onnx_int8 import onnx_model, quantised
from espalier.pruning.runtimes.onnx_runtime import loaded
from espalier.pruning.runtimes.openvino_runtime import OpenVino, OpenVinoSession, model_of
from espalier.pruning.runtimes.program import program_of, silenced
from espalier.pruning.runtimes.runtime import Batch, require
from espalier.pruning.slimming.quantised_layers import quantised_layers
from espalier.pruning.tracing.running import tensors_of

KEY = "espalier"
"""Under which the metadata lie, as JSON."""

Run = Callable[[Inputs], list[Tensor]]
"""Inputs -> the output tensors of what was written."""


@dataclass(frozen=True)
class Content:
    """What is written.

    Attributes:
        network: on the CPU, in eval mode.
        inputs: an example of what it takes.
        batch: examples of a pass, or "dynamic".
        opset: of ONNX, or None for the exporter's own.
        calibration: inputs for 8 bits; empty for float32.
        metadata: JSON object, as text.
    """

    network: nn.Module
    inputs: Inputs
    batch: Batch
    opset: int | None
    calibration: Sequence[Inputs]
    metadata: str


class Format(ABC):
    """A kind of file.

    Attributes:
        ending: of its name.
        runner: what runs it, in words.
        packages: modules that it needs.
        extra: of espalier, that installs them.
        has_opset: whether it is made of ONNX.
    """

    ending: ClassVar[str]
    runner: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    has_opset: ClassVar[bool] = False

    def check(self) -> None:
        """Refuses to go on without the packages.

        Raises:
            MissingPackage: one is not installed; names the extra.
        """
        require(f"a file that ends in {self.ending}", self.packages, self.extra)

    @abstractmethod
    def write(self, content: Content, path: Path) -> list[Path]:
        """Writes files: the last one is the path, others lie beside it."""

    @abstractmethod
    def load(self, path: Path, network: nn.Module) -> Run:
        """Makes what was written ready to run."""

    @abstractmethod
    def metadata(self, path: Path) -> str:
        """The metadata of a file."""


class Onnx(Format):
    """ONNX, run by ONNX Runtime."""

    ending = ".onnx"
    runner = "onnxruntime"
    packages = PACKAGES
    extra = EXTRA
    has_opset = True

    def write(self, content: Content, path: Path) -> list[Path]:
        """By the exporter of PyTorch."""
        path.write_bytes(onnx_bytes(content))
        return [path]

    def load(self, path: Path, network: nn.Module) -> Run:
        """On one thread."""
        import onnx

        return loaded(onnx.load(path), path, network)

    def metadata(self, path: Path) -> str:
        """Of the model."""
        import onnx

        return str({each.key: each.value for each in onnx.load(path).metadata_props}[KEY])


class Pt2(Format):
    """A program of `torch.export`: `torch.export.load(path).module()` is called like the network."""

    ending = ".pt2"
    _FILE = f"{KEY}.json"

    def write(self, content: Content, path: Path) -> list[Path]:
        """By PyTorch."""
        program = program_of(content.network, content.inputs, content.batch)
        with silenced():
            torch.export.save(program, path, extra_files={self._FILE: content.metadata})
        return [path]

    def load(self, path: Path, network: nn.Module) -> Run:
        """The program's module."""
        with silenced():
            module: nn.Module = torch.export.load(path).module()  # type: ignore[no-untyped-call, unused-ignore]

        def run(inputs: Inputs) -> list[Tensor]:
            with torch.no_grad():
                return tensors_of(run_on(module, inputs))

        return run

    def metadata(self, path: Path) -> str:
        """Of the archive."""
        with zipfile.ZipFile(path) as archive:
            name = next(each for each in archive.namelist() if each.endswith(f"/{self._FILE}"))
            return archive.read(name).decode()


class OpenVinoIr(Format):
    """OpenVINO's .xml, with the weights in a .bin beside it; made of ONNX."""

    ending = ".xml"
    runner = "openvino"
    packages = OpenVino.packages
    extra = OpenVino.extra
    has_opset = True

    def write(self, content: Content, path: Path) -> list[Path]:
        """By OpenVINO, in float32."""
        import openvino

        model = model_of(onnx_bytes(content, openvino=True))
        model.set_rt_info(content.metadata, [KEY])
        openvino.save_model(model, path, compress_to_fp16=False)
        return [path.with_suffix(".bin"), path]

    def load(self, path: Path, network: nn.Module) -> Run:
        """On one thread."""
        return OpenVinoSession(self._model(path), network)

    def metadata(self, path: Path) -> str:
        """Of the model."""
        return str(self._model(path).get_rt_info([KEY]).astype(str))

    def _model(self, path: Path) -> Any:
        return model_of(path.read_bytes(), path.with_suffix(".bin").read_bytes())


class Safetensors(Format):
    """The weights and buffers alone, by the names of the state dict; the metadata say how wide each layer is."""

    ending = ".safetensors"

    def write(self, content: Content, path: Path) -> list[Path]:
        """By safetensors."""
        from safetensors.torch import save

        state = content.network.state_dict()
        plain = {name: each.detach().contiguous().clone() for name, each in state.items()}
        path.write_bytes(save(plain, metadata={KEY: content.metadata}))
        return [path]

    def load(self, path: Path, network: nn.Module) -> Run:
        """The network with these weights in the place of its own."""
        from safetensors.torch import load_file

        own = copy.deepcopy(network)
        with torch.no_grad():
            for tensor in own.state_dict().values():
                tensor.zero_()
        own.load_state_dict(load_file(path))

        def run(inputs: Inputs) -> list[Tensor]:
            with torch.no_grad():
                return tensors_of(run_on(own, inputs))

        return run

    def metadata(self, path: Path) -> str:
        """Of the header."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return str(file.metadata()[KEY])


FORMATS: Final[Mapping[str, Format]] = {each.ending: each for each in (Onnx(), Pt2(), OpenVinoIr(), Safetensors())}


def onnx_bytes(content: Content, *, openvino: bool = False) -> bytes:
    """The network as ONNX: in 8 bits those of its layers that have them, or all if calibration inputs ask so."""
    model = onnx_model(
        content.network, content.inputs, content.batch, content.opset, content.calibration, openvino=openvino
    )
    loaded(model, model.SerializeToString(), content.network)  # whether it can be run, while layers are known
    if content.calibration and not quantised_layers(content.network):
        model = quantised(model, content.network, content.calibration, openvino=openvino)
    strip(model)
    set_metadata(model, {KEY: content.metadata})
    return bytes(model.SerializeToString())


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `export` wrote into a file.

    Raises:
        ArtefactError: the file cannot be read, or `export` did not write it.
        MissingPackage: what reads it is not installed.
    """
    file = Path(path)
    if file.suffix not in FORMATS:
        raise ArtefactError(f"{file} ends in none of {', '.join(FORMATS)}")
    FORMATS[file.suffix].check()
    try:
        found: dict[str, Any] = json.loads(FORMATS[file.suffix].metadata(file))
    except Exception as error:  # of whatever reads it
        raise ArtefactError(f"{file} has no metadata of espalier, or cannot be read: {error}") from error
    return found
