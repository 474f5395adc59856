"""`espalier.export`: a network as a file that runs without espalier, checked before it takes its name."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError, ExportError
from espalier.persistence import whole_file
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.networks.weights import digest, tensors_of
from espalier.pruning.runtimes.examples import DYNAMIC, batch_of, has_batch, on_cpu
from espalier.pruning.runtimes.formats import FORMATS, Content, Format, Run
from espalier.pruning.runtimes.onnx_int8 import Agreement, agreement, check_bits, is_finite, pieces
from espalier.pruning.runtimes.program import SEVERAL, check_batch, in_words, line_of, noting_running, one_line
from espalier.pruning.runtimes.runtime import Batch
from espalier.pruning.seeding import seeded
from espalier.pruning.slimming.quantised_layers import quantised_layers
from espalier.pruning.slimming.verification import relative_difference, telling
from espalier.pruning.torch_private import CONVOLUTIONS, eagerly, tree_map
from espalier.pruning.tracing.running import call, cloned

TOLERANCE = 1e-4
"""Greatest difference of an output, as a share of its greatest value."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it was checked.

    Attributes:
        path: of the file.
        size: bytes, those of files beside it too.
        runner: what ran it, with its version.
        batch: examples of a pass, or "dynamic".
        batches: numbers of examples that it was run with.
        difference: greatest difference of an output to the network's, as a share of its greatest value; in 8 bits
            NaN.
        agreement: in 8 bits, how close it is to the network.
    """

    path: Path
    size: int
    runner: str
    batch: Batch
    batches: tuple[int, ...]
    difference: float
    agreement: Agreement | None = None

    def __str__(self) -> str:
        return self.words()

    def words(self) -> str:
        """One line for people."""
        taken = "any number of examples" if self.batch == DYNAMIC else f"{self.batch} examples a pass"
        if self.agreement is not None:
            said = f"in 8 bits: {self.agreement.words()}"
        else:
            counts = " and ".join(map(str, self.batches))
            what = f"differ by {self.difference:.0e} at most" if self.difference else "are the same"
            said = f"with {counts} examples outputs {what}"
        size = f"{self.size / 1e6:.2f} MB" if self.size >= 1e5 else f"{self.size / 1e3:.1f} kB"
        return f"{self.path}: {size}, takes {taken}; run by {self.runner}, {said}"


def export(
    network: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    batch: Batch = DYNAMIC,
    opset: int | None = None,
    int8: Iterable[Inputs] | None = None,
    tolerance: float = TOLERANCE,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes a network as a file that runs without espalier.

        espalier.export(network, images[:1], "network.onnx")

    The ending says the format: ``.onnx``, ``.pt2`` (a program of `torch.export`), ``.xml`` (OpenVINO, with a
    ``.bin`` beside it) or ``.safetensors`` (weights alone). What was written is run on the example inputs by its
    own runtime, and with another number of examples where it takes any, and compared with the network, before the
    file takes its name: a file that is there is replaced then and not before.

    Args:
        network: run in eval mode; left as it is.
        example_inputs: one input tensor, the tuple of arguments, or a dict of named ones; dimension 0 of the first
            tensor is the batch. What is no tensor is fixed in the file.
        path: of the file.
        batch: examples of a pass; "dynamic" for any number.
        opset: version of ONNX's operations; by default that of PyTorch's exporter.
        int8: batches of inputs to calibrate 8-bit integers by; ``.onnx`` and ``.xml``; see
            `espalier.pruning.runtimes.onnx_int8`. All layers compute in these then, or, of a network that has
            layers in fewer bits, those alone. The file is compared by agreement, which the result states.
        tolerance: greatest difference of an output, as a share of its greatest value; float32.
        metadata: written into the file too, as JSON, beside widths of layers, digest of the weights and espalier's
            version; see `espalier.pruning.runtimes.read_metadata`.

    Returns:
        The file, and what comparing it gave.

    Raises:
        ConfigError: an argument is out of range.
        MissingPackage: what writes or runs the format is not installed; names the extra.
        ExportError: an operation cannot be exported, or run, which names it and its layer; or the file gives other
            outputs than the network.
    """
    file = Path(path)
    kind = _format_of(file)
    check_batch(batch)
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ConfigError(f"tolerance must lie between 0 and 1, got {tolerance!r}: it is a share of an output")
    if opset is not None and not kind.has_opset:
        raise ConfigError(f"opset is of ONNX, and {file.name} is not made of it: leave it out")
    if int8 is not None and not kind.has_opset:
        raise ConfigError(f"8-bit integers are for .onnx and .xml, got {file.name}")
    _check_types(network)
    if layers := quantised_layers(network):
        said = f"{len(layers)} layers of {type(network).__name__} compute in fewer bits"
        if file.suffix == ".pt2":
            raise ConfigError(f"{said}: write .onnx or .xml, in whose runtimes they do")
        if kind.has_opset:
            check_bits(network)
            if int8 is None:
                raise ConfigError(
                    f"{said}: give batches of inputs by which results are rounded, as int8=[...], or on the "
                    "command line --int8 with --config or --calibrate"
                )
    batch_of(example_inputs)
    kind.check()
    own = copy.deepcopy(network).cpu().eval()
    examples: Inputs = on_cpu(telling(example_inputs))
    if batch != DYNAMIC:
        examples = more(examples, int(batch))
    calibration, checked = pieces(int8, batch) if int8 is not None else ([], [])
    _expected(own, examples, "the example inputs")
    for each in calibration[:1]:
        _expected(own, each, "the calibration inputs")
    content = Content(own, examples, batch, opset, calibration, _metadata_text(own, metadata or {}))
    with tempfile.TemporaryDirectory() as folder:
        written = kind.write(content, Path(folder) / f"network{kind.ending}")
        run = kind.load(written[-1], own)
        count = batch_of(examples)
        counts = (count, 1 if count > 1 else SEVERAL + 1) if batch == DYNAMIC else (count,)
        if int8 is None:
            differences = [_compare(run, own, more(examples, each), tolerance, file) for each in counts]
            found, difference = None, max(differences)
        else:
            found, difference = _agreement(run, own, checked, file), math.nan
        size = sum(each.stat().st_size for each in written)
        for part in written:
            with whole_file(file.with_suffix(part.suffix)) as partial:
                shutil.copyfile(part, partial)
    runner = f"{kind.runner} {version(kind.runner)}"
    return Exported(file, size, runner, batch, counts, difference, found)


def more(inputs: Inputs, count: int) -> Inputs:
    """So many examples: the first ones, then the same with their last dimension turned by a place, and so on."""
    batch = batch_of(inputs)

    def turned(value: Any) -> Any:
        if not has_batch(value, batch):
            return value
        rows = value[torch.arange(count) % batch]
        if not value.is_floating_point() or value.dim() < 2:
            return rows
        return torch.stack([row.roll(number // batch, -1) for number, row in enumerate(rows)])

    found: Inputs = tree_map(turned, inputs)
    return found


def widths_of(network: nn.Module) -> dict[str, int]:
    """Path of every convolution and linear layer -> channels that it gives."""
    found = {}
    for path, layer in network.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and isinstance(weight, Tensor):
            transposed = getattr(layer, "transposed", False)
            found[path] = weight.shape[1] * int(getattr(layer, "groups", 1)) if transposed else len(weight)
    return found


def _format_of(file: Path) -> Format:
    if file.suffix not in FORMATS:
        raise ConfigError(f"a network is exported to a file that ends in {', '.join(FORMATS)}, got {file.name!r}")
    return FORMATS[file.suffix]


def _check_types(network: Any) -> None:
    if not isinstance(network, nn.Module):
        raise ConfigError(f"what is exported is a torch.nn.Module, got an object of type {type(network).__name__}")
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(f"{name} is in {kind}, and networks are exported in float32: call network.float()")


def _metadata_text(network: nn.Module, given: Mapping[str, Any]) -> str:
    own: dict[str, Any] = {
        "espalier": version("espalier"),
        "weights": digest(tensors_of(network)),
        "widths": widths_of(network),
    }
    if layers := quantised_layers(network):
        own["bits"] = {path: layer.bits for path, layer in layers.items()}
    if clash := sorted(own.keys() & given.keys()):
        raise ConfigError(f"metadata must not have the names that export gives itself, got {', '.join(clash)}")
    try:
        return json.dumps({**given, **own}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata must be what JSON can hold: {error}") from error


def _expected(network: nn.Module, inputs: Inputs, what: str = "these inputs") -> list[Tensor]:
    running: list[str] = []
    try:
        with torch.no_grad(), eagerly(), seeded(0), noting_running(network, running):
            return [each.clone() for each in call(network, cloned(inputs))]
    except Exception as error:  # of the network's own code
        raise ConfigError(
            f"{type(network).__name__} does not run on {what}: {in_words(network, running)} fails"
            f"{line_of(error)}: {one_line(error)}"
        ) from error


def _compare(run: Run, network: nn.Module, inputs: Inputs, tolerance: float, file: Path) -> float:
    """The greatest difference of an output."""
    expected, count = _expected(network, inputs), batch_of(inputs)
    got = _ran(run, inputs, count, file)
    if [each.shape for each in got] != [each.shape for each in expected]:
        shapes = [", ".join(str(tuple(each.shape)) for each in some) for some in (got, expected)]
        raise ExportError(
            f"{file.name} is not written, as it gives outputs of other shapes than the network with {count} "
            f"examples: {shapes[0]} instead of {shapes[1]}"
        )
    differences = [relative_difference(*pair) for pair in zip(got, expected, strict=True)]
    for number, difference in enumerate(differences):
        if not difference <= tolerance:
            raise ExportError(
                f"{file.name} is not written, as it gives other outputs than the network with {count} examples: "
                f"output {number} differs by {difference:.1e} of its greatest value, more than {tolerance:g}"
            )
    return max(differences, default=0.0)


def _agreement(run: Run, network: nn.Module, checked: Sequence[Inputs], file: Path) -> Agreement:
    got = [_ran(run, inputs, batch_of(inputs), file) for inputs in checked]
    found = agreement(got, [_expected(network, inputs) for inputs in checked])
    if not all(map(is_finite, got)) or found.error >= 1:
        raise ExportError(f"{file.name} is not written, as 8 bits do not do for this network: {found.words()}")
    return found


def _ran(run: Run, inputs: Inputs, count: int, file: Path) -> list[Tensor]:
    try:
        return run(inputs)
    except Exception as error:  # of whatever runtime
        raise ExportError(
            f"{file.name} is not written, as it cannot be run with {count} examples: {error}"
        ) from error
