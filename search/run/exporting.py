"""What `espalier export` needs beside a pruned network's file: the network, an example, inputs to calibrate by."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ArtefactError, ConfigError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.networks import build
from espalier.pruning.runtimes.examples import batch_of
from espalier.pruning.torch_private import tree_leaves
from espalier.search.files.example_inputs import from_json, to_json
from espalier.search.files.network_file import load
from espalier.search.files.tensor_files import load_header
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Task

EXAMPLE = "example_inputs"
"""Of the notes in a network's file."""
CALIBRATION = 512
"""Examples of a task that 8 bits are calibrated by, at most."""
METADATA = ("study", "budget", "macs", "params")
"""Of the notes, what exported files hold too."""


def example_note(inputs: Inputs) -> dict[str, Any]:
    """The note that holds an example of a network's inputs; none where JSON cannot."""
    try:
        return {EXAMPLE: to_json(inputs)}
    except ConfigError:
        return {}


def network_of(path: Path, named: str | None = None) -> nn.Module:
    """The network of a file.

    Args:
        path: of the ``.espalier`` file.
        named: what builds the dense network, where it is not built in: ``package.module:callable``.

    Raises:
        ArtefactError: the file cannot be read, or does not fit.
        ConfigError: what is named builds no network.
    """
    if named is None:
        try:
            return load(path)
        except ArtefactError as error:
            if "network=mine" not in str(error):
                raise
            name = load_header(path).get("name")
            raise ArtefactError(
                f"{path} names the network {name}, which is not built in, and nothing is imported on a file's "
                "word: give --network package.module:callable, which makes the dense network"
            ) from error
    header = load_header(path)
    kwargs = header.get("kwargs") if header.get("name") == named else None
    return load(path, lambda: build(named, **(kwargs or {})))


def example_of(path: Path) -> Inputs | None:
    """An example of what the network of a file takes; None where the file holds none."""
    notes = _notes(path)
    if EXAMPLE in notes:
        found: Inputs = from_json(notes[EXAMPLE])
        return found
    shape = notes.get("image_shape")
    return None if shape is None else torch.zeros(1, *map(int, shape))


def shaped_example(text: str) -> Tensor:
    """One example of a shape such as "3,32,32", zeros.

    Raises:
        ConfigError: it is none.
    """
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--input-shape is that of one example, such as 3,32,32, got {text!r}")
    return torch.zeros(1, *sizes)


def metadata_of(path: Path) -> dict[str, Any]:
    """What an exported file says of the search that it comes from."""
    notes = _notes(path)
    return {name: notes[name] for name in METADATA if name in notes}


def calibration_file(path: Path) -> list[Inputs]:
    """Calibration inputs of a file: ``.pt`` with a tensor, a tuple or a dict of them, or ``.npz``.

    Several arrays of an ``.npz`` are the network's arguments by name; one alone is its only argument.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found: Any = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            found = next(iter(found.values())) if len(found) == 1 else found
        elif path.suffix == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ConfigError(f"--calibrate takes a .pt or .npz file of inputs, got {path.name}")
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--calibrate cannot read {path}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # of unpickling
        raise ConfigError(f"--calibrate cannot read {path}: it holds more than tensors") from error
    leaves = tree_leaves(found)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise ConfigError(f"--calibrate takes tensors, a tuple or a dict of them, and {path} holds something else")
    if isinstance(found, list):
        found = tuple(found)
    batch_of(found)
    return [found]


def calibration_of(task: Task, network: nn.Module) -> Sequence[Inputs]:
    """Inputs of a task: held-out examples where it has some to time networks on, else its batches of inputs.

    Raises:
        ConfigError: it has neither.
    """
    scoring = task.scoring("held_out", network, calibration=CALIBRATION, steps=0)
    held_out = task.timed_inputs(scoring)
    if batch_of(held_out) > batch_of(task.example_inputs):
        return [held_out if not isinstance(held_out, Tensor) else held_out[:CALIBRATION]]
    found = list(scoring.calibration(Runner(Execution())))
    if not found:
        raise ConfigError("the task has no inputs to calibrate 8 bits by: give --calibrate FILE")
    return found


def _notes(path: Path) -> Mapping[str, Any]:
    notes = load_header(path).get("notes")
    return notes if isinstance(notes, Mapping) else {}
