"""Evaluation of candidates: slice, recalibrate BN, perhaps a few steps of SGD, score on held-out training images.

A few steps cost several times the scoring, but rank candidates much more as fine-tuning will than the accuracy of
a network that was cut and not yet healed.
Nothing is built, traced or moved per candidate: a worker makes one `Evaluator` and calls it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.pruning.costs import Ints
from espalier.pruning.graph import ChannelGraph
from espalier.pruning.recalibration import recalibrate_bn
from espalier.pruning.surgery import assign, clone_structure, slice_tensors
from espalier.search.candidate import Candidate, Score
from espalier.search.data.images import InMemoryImages
from espalier.search.data.transforms import normalize
from espalier.search.training import Recipe, train

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EvaluationSpec:
    """All that a worker needs; arrays, so that Ray shares them between the workers of a node.

    Attributes:
        skeleton: the network's structure, its tensors emptied.
        graph: its channel graph.
        states: tensors by name, per rung.
        ranks: place of every channel in its group, (n_channels,), per rung.
        calibration: uint8 images (n, channels, height, width) of the training split.
        scoring: uint8 images of the search split.
        labels: (n,) of the scoring images.
        mean: per channel.
        std: per channel.
        batch_size: images per forward pass.
        precision: ``fp32`` or ``bf16``.
        steps: steps of SGD that a candidate takes before it is scored; 0 scores it as it was cut.
        recipe: of these steps; its epochs do not count.
        practice: uint8 images of the training split for the steps, steps x recipe.batch_size of them.
        practice_labels: theirs.
    """

    skeleton: nn.Module
    graph: ChannelGraph
    states: tuple[Mapping[str, Array], ...]
    ranks: tuple[Ints, ...]
    calibration: Array
    scoring: Array
    labels: Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    precision: str
    steps: int
    recipe: Recipe
    practice: Array
    practice_labels: Array

    def keep(self, candidate: Candidate) -> Tensor:
        """Which channels a candidate keeps: bool (n_channels,)."""
        return torch.from_numpy(self.ranks[candidate.rung] < np.array(candidate.widths)[self.graph.group_of])


def empty_skeleton(model: nn.Module) -> nn.Module:
    """The structure of a network without its numbers, for `EvaluationSpec.skeleton`."""
    skeleton = clone_structure(model)
    empty: dict[int, Any] = {}  # by identity: what two modules share stays shared
    for module in skeleton.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = empty.setdefault(id(parameter), nn.Parameter(parameter.new_empty(0)))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = empty.setdefault(id(buffer), buffer.new_empty(0))
    return skeleton


def numpy_state(model: nn.Module) -> dict[str, Array]:
    """Every parameter and buffer of a network, by name."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


class Evaluator:
    """Scores candidates, one after another, on one device.

    Args:
        spec: networks and images.
        device: where to run.
    """

    def __init__(self, spec: EvaluationSpec, device: str = "cpu") -> None:
        self._spec, self._device = spec, torch.device(device)
        self._states = [{n: _tensor(a).to(device) for n, a in state.items()} for state in spec.states]
        self._skeleton = clone_structure(spec.skeleton)
        self._calibration = self._batches(spec.calibration)
        self._scoring = self._batches(spec.scoring)
        self._labels = _tensor(spec.labels).to(device)
        self._practice = InMemoryImages(_tensor(spec.practice), _tensor(spec.practice_labels))

    def __call__(self, candidate: Candidate) -> Score:
        """The score of one candidate."""
        start = time.perf_counter()
        network = self.recalibrated(candidate)
        if self._spec.steps:
            train(network, self._practice, self._spec.mean, self._spec.std, self._spec.recipe, seed=0)
            self._recalibrate(network)
        with self._autocast(), torch.inference_mode():
            logits = torch.cat([network(batch).float() for batch in self._scoring])
        top1 = 100 * (logits.argmax(1) == self._labels).float().mean()
        cross_entropy = F.cross_entropy(logits, self._labels)
        return Score(float(top1), float(cross_entropy), time.perf_counter() - start)

    def recalibrated(self, candidate: Candidate) -> nn.Module:
        """The slimmed network, BN recalibrated, no step taken; valid until the next call."""
        network = self._build(candidate)
        self._recalibrate(network)
        return network

    def _recalibrate(self, network: nn.Module) -> None:
        with self._autocast():
            recalibrate_bn(network, self._calibration)

    def _build(self, candidate: Candidate) -> nn.Module:
        graph, keep = self._spec.graph, self._spec.keep(candidate)
        sliced = slice_tensors(self._states[candidate.rung], graph, keep)
        tensors = {name: _channels_last(tensor) for name, tensor in sliced.items()}
        assign(self._skeleton, tensors, graph.integers_of(keep))
        return self._skeleton.eval()

    def _batches(self, images: Array) -> Sequence[Tensor]:
        tensor = normalize(_tensor(images), self._spec.mean, self._spec.std)
        return [_channels_last(part).to(self._device) for part in tensor.split(self._spec.batch_size)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._spec.precision == "bf16")


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _tensor(array: Array) -> Tensor:
    """A view of an array that is only ever read: Ray hands out read-only memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
