"""Scoring candidates as classifiers: losses per image, a healed head, a few steps of training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.data.batches import fetched
from espalier.search.tasks.classification.data.images import InMemoryImages
from espalier.search.tasks.classification.data.transforms import normalize
from espalier.search.tasks.classification.temperature import best_factor, calibrated_cross_entropy
from espalier.search.tasks.classification.training_loop import Recipe, logits, train
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.least_squares import ridge
from espalier.search.tasks.runner import Runner, tensor_of
from espalier.search.tasks.task import Array, Scored, Scoring


@dataclass(frozen=True)
class ImageScoring(Scoring):
    """Images and labels; arrays, so that Ray shares them between the workers of a node.

    Attributes:
        calibration_images: uint8 images (n, channels, height, width) of the training split.
        calibration_labels: (n,) theirs.
        images: uint8 images that are scored.
        labels: (n,) theirs.
        teacher: (n, classes) float32 logits of the dense network on them.
        mean: per channel.
        std: per channel.
        recipe: of steps that a candidate takes before it is scored; its epochs do not count.
        practice: uint8 images of the training split for these steps.
        practice_labels: theirs.
        head: path of the linear layer that gives the logits, None where the network does not end in one.
    """

    calibration_images: Array
    calibration_labels: Array
    images: Array
    labels: Array
    teacher: Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    practice: Array
    practice_labels: Array
    head: str | None = None

    raced: ClassVar[tuple[str, ...]] = ("top1", "cross_entropy", "distillation")

    @classmethod
    def of(
        cls, splits: Splits, dense: nn.Module, scoring: Tensor, *, calibration: int, steps: int, recipe: Recipe
    ) -> Self:
        """Of a data set.

        Args:
            splits: images.
            dense: the network before regularisation, whose predictions are the teacher's.
            scoring: indices of held-out images.
            calibration: images of the training split, at most.
            steps: most steps of SGD that a proxy will take.
            recipe: of these steps.
        """
        calibrating = torch.arange(min(calibration, len(splits.train)))
        practice = torch.arange(min(steps * recipe.batch_size, len(splits.train)))
        images = fetched(splits.search, scoring)
        teacher = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            calibration_images=fetched(splits.train, calibrating).numpy(),
            calibration_labels=splits.train.labels[calibrating].numpy(),
            images=images.numpy(),
            labels=splits.search.labels[scoring].numpy(),
            teacher=torch.cat(list(logits(teacher, splits.search.take(scoring), splits.mean, splits.std))).numpy(),
            mean=splits.mean,
            std=splits.std,
            recipe=replace(recipe, processes=1),
            practice=fetched(splits.train, practice).numpy(),
            practice_labels=splits.train.labels[practice].numpy(),
            head=head_of(dense, normalize(images[:2], splits.mean, splits.std)),
        )

    def first(self, images: int, calibration: int) -> Self:
        """The same with so many of its images, the first ones."""
        return replace(
            self,
            calibration_images=self.calibration_images[:calibration],
            calibration_labels=self.calibration_labels[:calibration],
            images=self.images[:images],
            labels=self.labels[:images],
            teacher=self.teacher[:images],
        )

    @property
    def has_head(self) -> bool:
        """Whether the network ends in a linear layer."""
        return self.head is not None

    # -- what a worker does

    def calibration(self, runner: Runner) -> Sequence[Tensor]:
        """Normalised batches of the calibration images."""
        return self._batches(runner, "calibration_images")

    def inputs(self, runner: Runner) -> Sequence[Tensor]:
        """Normalised batches of the images that are scored."""
        return self._batches(runner, "images")

    def score(self, runner: Runner, network: nn.Module, lost: Callable[[Tensor], bool]) -> Scored:
        """Wrong or not, cross-entropy and divergence from the dense network per image; calibrated cross-entropy."""
        labels, teacher = self._on(runner, "labels"), self._on(runner, "teacher")
        losses, given = torch.zeros(0, len(self.raced), dtype=torch.float64), list[Tensor]()
        with closing(runner.outputs(network, self.inputs(runner))) as outputs:
            for output in outputs:
                logits, at = output.float(), slice(len(losses), len(losses) + len(output))
                given.append(logits)
                losses = torch.cat([losses, _losses(logits, labels[at], teacher[at])])
                if lost(losses):
                    return Scored(losses)
        return Scored(losses, {"calibrated": calibrated_cross_entropy(torch.cat(given), labels)})

    def means(self, losses: Tensor) -> dict[str, float]:
        """Of mean losses (3,)."""
        wrong, cross_entropy, distillation = losses.tolist()
        return {"top1": 100 - 100 * wrong, "cross_entropy": cross_entropy, "distillation": distillation}

    def step(self, runner: Runner, network: nn.Module, count: int) -> None:
        """Takes steps of SGD on the practice images, the same for every candidate."""
        images = tensor_of(self.practice)
        if not len(images):
            raise ConfigError("there are no images to take steps of SGD on")
        chosen = torch.arange(count * self.recipe.batch_size) % len(images)
        practice = InMemoryImages(images[chosen], tensor_of(self.practice_labels)[chosen])
        train(network, practice, self.mean, self.std, replace(self.recipe, epochs=1), seed=0)

    def loss(self, runner: Runner, network: nn.Module) -> Tensor:
        """Cross-entropy of the first calibration batch."""
        batch = self.calibration(runner)[0]
        return F.cross_entropy(network(batch), self._on(runner, "calibration_labels")[: len(batch)])

    def solve_head(self, runner: Runner, network: nn.Module) -> None:
        """Ridge regression of the labels on what the classifier reads, on the calibration images.

        The logits are then scaled by the temperature that minimises cross-entropy on the same images.

        Raises:
            ConfigError: the network does not end in a linear layer.
        """
        if self.head is None:
            raise ConfigError("the proxies with a ridge-solved head need a network that ends in a linear layer")
        features = runner.inputs_of(network, self.head, self.calibration(runner))
        head, labels = network.get_submodule(self.head), self._on(runner, "calibration_labels")
        assert isinstance(head, nn.Linear)
        targets = F.one_hot(labels, head.out_features).to(features)
        middle, centre = features.mean(0), targets.mean(0)
        weight = ridge(features - middle, targets - centre).T
        scale = best_factor((features - middle) @ weight.T + centre, labels)
        head.weight = nn.Parameter(scale * weight)
        head.bias = nn.Parameter(scale * (centre - weight @ middle))

    def key(self, execution: Execution) -> Iterator[bytes]:
        """Names recipe and images."""
        how = execution.batch_size, execution.memory_format, execution.precision
        yield json.dumps([self.recipe.to_json(), *how]).encode()
        for array in (self.images, self.calibration_images, self.practice):
            yield array.tobytes()

    def _batches(self, runner: Runner, name: str) -> Sequence[Tensor]:
        def make() -> Sequence[Tensor]:
            return runner.batches(tensor_of(getattr(self, name)), partial(normalize, mean=self.mean, std=self.std))

        made: Sequence[Tensor] = runner.once(name, make)
        return made

    def _on(self, runner: Runner, name: str) -> Tensor:
        """One of the arrays, on the device."""
        made: Tensor = runner.once(name, lambda: tensor_of(getattr(self, name)).to(runner.device))
        return made


def _losses(logits: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
    """Wrong or not, cross-entropy, divergence from the dense network, (b, 3)."""
    wrong = (logits.argmax(1) != labels).float()
    divergence = F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    return torch.stack([wrong, F.cross_entropy(logits, labels, reduction="none"), divergence], 1).double().cpu()


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
            logits = model.eval()(example.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return next((path for path, result in reversed(results) if result is logits), None)
