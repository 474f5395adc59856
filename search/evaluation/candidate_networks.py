"""The bench of a worker: builds candidates' networks, heals and runs them.

Nothing is built, traced or moved per candidate: a worker makes one `CandidateNetworks` and keeps it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.slimming.folding import foldable, without_norms
from espalier.pruning.slimming.int8 import has_int8, in_int8
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.slimming.surgery import assign, clone_structure, slice_tensors
from espalier.search.spaces.candidate import Candidate, Measure
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.data.images import InMemoryImages
from espalier.search.tasks.classification.data.transforms import normalize
from espalier.search.tasks.classification.training_loop import Recipe, logits, train
from espalier.search.tasks.module_path import DriversPath

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
        calibration_labels: (n,) theirs.
        scoring: uint8 images of the search split.
        labels: (n,) of the scoring images.
        teacher: (n, classes) float32 logits of the dense network on the scoring images.
        mean: per channel.
        std: per channel.
        batch_size: images per forward pass, at most.
        precision: ``fp32``, ``bf16`` or ``int8``, which convolutions alone are run in.
        recipe: of steps that a candidate takes before it is scored; its epochs do not count.
        practice: uint8 images of the training split for these steps.
        practice_labels: theirs.
        head: path of the linear layer that gives the logits, None where the network does not end in one.
        proxy: by which a candidate is judged where nothing else is asked for.
        race: measure by which candidates race, None for no race; see `Evaluator`.
        memory_format: ``channels_last`` or ``contiguous``.
    """

    skeleton: nn.Module
    graph: ChannelGraph
    states: tuple[Mapping[str, Array], ...]
    ranks: tuple[Ints, ...]
    calibration: Array
    calibration_labels: Array
    scoring: Array
    labels: Array
    teacher: Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    precision: str
    recipe: Recipe
    practice: Array
    practice_labels: Array
    head: str | None = None
    proxy: str = "recalibrated"
    race: Measure | None = None
    memory_format: str = "channels_last"

    def __getstate__(self) -> dict[str, Any]:
        """The path comes first: the skeleton may be of a module that lies on it."""
        return {"path": DriversPath(), **vars(self)}

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        splits: Splits,
        dense: nn.Module,
        rungs: Sequence[nn.Module],
        energies: Sequence[Floats],
        *,
        calibration_images: int,
        scoring: Tensor,
        steps: int,
        recipe: Recipe,
        batch_size: int,
        precision: str,
        proxy: str,
        race: Measure | None = None,
        memory_format: str = "channels_last",
    ) -> Self:
        """The spec of a ladder and a data set.

        Args:
            graph: of the network.
            splits: images.
            dense: the network before regularisation, whose predictions are the teacher's.
            rungs: the networks of the ladder.
            energies: (n_channels,) per rung.
            calibration_images: of the training split, for BN statistics and least squares.
            scoring: indices of held-out images.
            steps: most steps of SGD that a proxy will take.
            recipe: of these steps.
            batch_size: images per forward pass.
            precision: ``fp32``, ``bf16`` or ``int8``.
            proxy: by which candidates are judged.
            race: measure by which they race.
            memory_format: ``channels_last`` or ``contiguous``.
        """
        calibration = torch.arange(min(calibration_images, len(splits.train)))
        practice = torch.arange(min(steps * recipe.batch_size, len(splits.train)))
        images = splits.search.fetch(scoring)
        teacher = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            skeleton=empty_skeleton(rungs[0]),
            graph=graph,
            states=tuple(numpy_state(rung) for rung in rungs),
            ranks=tuple(graph.ranks(each) for each in energies),
            calibration=splits.train.fetch(calibration).numpy(),
            calibration_labels=splits.train.labels[calibration].numpy(),
            scoring=images.numpy(),
            labels=splits.search.labels[scoring].numpy(),
            teacher=torch.cat(list(logits(teacher, splits.search.take(scoring), splits.mean, splits.std))).numpy(),
            mean=splits.mean,
            std=splits.std,
            batch_size=batch_size,
            precision=precision,
            recipe=recipe,
            practice=splits.train.fetch(practice).numpy(),
            practice_labels=splits.train.labels[practice].numpy(),
            head=head_of(dense, normalize(images[:2], splits.mean, splits.std)),
            proxy=proxy,
            race=race,
            memory_format=memory_format,
        )

    def first(self, scoring: int, calibration: int) -> Self:
        """The spec with so many of its images, the first ones."""
        return replace(
            self,
            calibration=self.calibration[:calibration],
            calibration_labels=self.calibration_labels[:calibration],
            scoring=self.scoring[:scoring],
            labels=self.labels[:scoring],
            teacher=self.teacher[:scoring],
        )

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


def head_of(model: nn.Module, example: Tensor) -> str | None:
    """Path of the linear layer whose result is the network's, or None."""
    results: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, result, path=path: results.append((path, result)))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return next((path for path, result in reversed(results) if result is logits), None)


class CandidateNetworks:
    """Networks of candidates, one at a time, and the images that they are healed and scored on.

    Args:
        spec: networks and images.
        device: where to run.
    """

    def __init__(self, spec: EvaluationSpec, device: str = "cpu") -> None:
        self.spec, self._device = spec, torch.device(device)
        self._dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        self._states = [{n: _tensor(a).to(device) for n, a in state.items()} for state in spec.states]
        self._skeleton = clone_structure(spec.skeleton)
        self._foldable = foldable(self._skeleton, spec.graph)
        self.calibration = self._batches(spec.calibration)
        self.calibration_labels = _tensor(spec.calibration_labels).to(device)
        self.scoring = self._batches(spec.scoring)
        self.labels = _tensor(spec.labels).to(device)
        self.teacher = _tensor(spec.teacher).to(device)
        self._memory: dict[Any, Any] = {}

    def cut(self, candidate: Candidate) -> nn.Module:
        """The slimmed network, in eval mode, BN as it was; valid until the next call."""
        graph, keep = self.spec.graph, self.spec.keep(candidate)
        sliced = slice_tensors(self._states[candidate.rung], graph, keep)
        tensors = {name: self._laid_out(tensor) for name, tensor in sliced.items()}
        assign(self._skeleton, tensors, graph.integers_of(keep))
        return self._skeleton.eval()

    def whole(self, rung: int) -> nn.Module:
        """The unpruned network of a rung, in eval mode; valid until the next call."""
        return self.cut(Candidate(rung, tuple(self.spec.graph.sizes.tolist())))

    def recalibrate(self, network: nn.Module) -> None:
        """Takes BN statistics on the calibration images."""
        with self.autocast(), self.quantised(network):
            recalibrate_bn(network, self.calibration)

    def recalibrated(self, candidate: Candidate) -> nn.Module:
        """The slimmed network, BN recalibrated; valid until the next call."""
        network = self.cut(candidate)
        self.recalibrate(network)
        return network

    def step(self, network: nn.Module, steps: int) -> None:
        """Takes steps of SGD on the practice images, the same for every candidate."""
        count = steps * self.spec.recipe.batch_size
        images = _tensor(self.spec.practice)
        if not len(images):
            raise ConfigError("there are no images to take steps of SGD on")
        chosen = torch.arange(count) % len(images)
        practice = InMemoryImages(images[chosen], _tensor(self.spec.practice_labels)[chosen])
        train(network, practice, self.spec.mean, self.spec.std, replace(self.spec.recipe, epochs=1), seed=0)

    def logits(self, network: nn.Module, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """Float32 logits, (batch, classes), of one batch after another; its norms are folded away until the end."""
        with without_norms(network, self._foldable, self._dtype), self.quantised(network):
            for batch in batches:
                with self.autocast(), torch.inference_mode():
                    given = network(batch).float()
                yield given

    def inputs_of(self, network: nn.Module, path: str, batches: Sequence[Tensor]) -> Tensor:
        """What a layer reads, float32, over all batches; each must be one tensor (batch, ...)."""
        seen: list[Tensor] = []
        layer = network.get_submodule(path)
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
        try:
            with self.autocast(), self.quantised(network), torch.no_grad():
                for batch in batches:
                    network(batch)
        finally:
            hook.remove()
        return torch.cat(seen)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call with this key: for what candidates of a worker share."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def autocast(self) -> torch.autocast:
        """The context of a forward pass, where bf16 is asked for."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    def quantised(self, network: nn.Module) -> AbstractContextManager[None]:
        """The context of a network's forward passes, where int8 is asked for and there is such a thing."""
        asked = self.spec.precision == "int8" and self._device.type == "cpu" and has_int8()
        return in_int8(network) if asked else nullcontext()

    def _batches(self, images: Array) -> Sequence[Tensor]:
        """Batches as even as can be: each weighs the same in BN statistics, and sizes are few."""
        tensor = normalize(_tensor(images), self.spec.mean, self.spec.std)
        count = max(1, math.ceil(len(images) / self.spec.batch_size))
        return [self._laid_out(part).to(self._device) for part in tensor.tensor_split(count)]

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """The tensor in the memory format asked for.

        `Tensor.to` lays out a weight (n, 1, height, width), too, which may be taken for either and which
        `Tensor.contiguous` leaves: behind a map of one channel, PyTorch would then go on in NCHW.
        """
        last = tensor.dim() == 4 and self.spec.memory_format == "channels_last"
        return tensor.to(memory_format=torch.channels_last) if last else tensor.contiguous()


def _tensor(array: Array) -> Tensor:
    """A view of an array that is only ever read: Ray hands out read-only memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
