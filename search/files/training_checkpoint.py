"""A training under way, in a file: what it goes on from when it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from espalier.errors import ArtefactError
from espalier.search.files.tensor_files import load_tensors, save_tensors, tensors_of

SECONDS = 60.0
"""How much of a training is lost at most when it is killed."""
PARTIAL = ".partial.safetensors"
"""How such files end; each lies beside the file that the training is for, until that one is written."""


STATE = {"momentum_buffer": "momentum", "step": "step", "exp_avg": "mean", "exp_avg_sq": "square"}
"""Part of an optimiser's state, per parameter -> its name in the file."""


class TrainingCheckpoint:
    """Weights, buffers, the state of the optimiser and the steps done of one training.

    Args:
        path: of the file.
        run: names the training; the file of another one is not taken.
        seconds: between one writing and the next.
    """

    def __init__(self, path: Path, run: str, seconds: float) -> None:
        self._path, self._run, self._seconds = path, run, seconds
        self._written = time.monotonic()

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Tensor] | None = None
    ) -> int:
        """Puts the file's numbers into network and optimiser.

        Args:
            model: as it was when the training began.
            optimizer: of its parameters.
            others: what else changes in training, by name; written to.

        Returns:
            The steps that they stand after; 0 where there is no file of this training, and nothing was changed.
        """
        try:
            tensors, header = load_tensors(self._path)
        except ArtefactError:  # none yet, or none of ours
            return 0
        if header.get("run") != self._run:
            return 0
        with torch.no_grad():
            for name, tensor in tensors_of(model).items():
                tensor.copy_(tensors[f"network/{name}"])  # in place: the layout in memory stays, and so do the sums
            for name, tensor in (others or {}).items():
                tensor.copy_(tensors[f"other/{name}"])
            for name, parameter in model.named_parameters():
                for key in STATE:
                    if (kept := tensors.get(f"{STATE[key]}/{name}")) is not None:
                        like = torch.empty_like(parameter) if kept.shape == parameter.shape else kept.clone()
                        optimizer.state[parameter][key] = like.copy_(kept)
        return int(header["steps"])

    def keep(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        others: Mapping[str, Tensor] | None = None,
        *,
        now: bool = False,
    ) -> None:
        """Writes the state after so many steps, if the time has come or `now`."""
        if not now and time.monotonic() - self._written < self._seconds:
            return
        tensors: dict[str, Tensor] = {f"network/{name}": tensor for name, tensor in tensors_of(model).items()}
        tensors |= {f"other/{name}": tensor for name, tensor in (others or {}).items()}
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state[parameter].items():
                if key in STATE and value is not None:
                    tensors[f"{STATE[key]}/{name}"] = value
        save_tensors(self._path, tensors, {"run": self._run, "steps": steps})
        self._written = time.monotonic()
