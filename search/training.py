"""Training: the dense network, the rungs of the ladder and fine-tuning all go through `train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.pruning.regularizers import Regularizer
from espalier.search.data.images import ImageSet
from espalier.search.data.transforms import augment, normalize


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with Nesterov momentum, linear warm-up, then cosine decay to zero.

    Attributes:
        epochs: passes over the training images; may be a fraction.
        batch_size: images per step.
        lr: greatest learning rate.
        momentum: of SGD.
        weight_decay: on weights of two and more dimensions; norms and biases are left alone.
        label_smoothing: share of the target spread over all classes.
        warmup: share of the steps over which the learning rate rises.
        precision: ``bf16`` runs forward and backward under autocast.
        pad: pixels of zero padding from which crops are drawn.
        flip: whether images are mirrored at random.
    """

    epochs: float
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    warmup: float = 0.1
    precision: str = "fp32"
    pad: int = 0
    flip: bool = False

    def steps(self, images: int) -> int:
        """Optimiser steps on a training set of so many images."""
        return round(self.epochs * self._per_epoch(images))

    def _per_epoch(self, images: int) -> int:
        return max(1, images // self.batch_size)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = self.warmup * steps
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))


def train(
    model: nn.Module,
    images: ImageSet,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    recipe: Recipe,
    *,
    seed: int,
    regularizer: Regularizer | None = None,
    strength: float = 0.0,
    proximal: bool = False,
    ramp: float = 0.0,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Trains a network in place and leaves it in eval mode.

    Args:
        model: the network, on the device to train on.
        images: training images and labels.
        mean: per channel, of pixel values scaled to [0, 1].
        std: per channel, likewise.
        recipe: the schedule.
        seed: of order, augmentation and dropout; the global generators are left as they were.
        regularizer: penalty on the weights.
        strength: what it is multiplied by.
        proximal: take the penalty's proximal step after each step on the loss, in place of its subgradient.
        ramp: share of the steps over which the strength rises from zero, linearly.
        on_step: told the steps done and the loss, penalty left out.
    """
    device = next(model.parameters()).device
    steps = recipe.steps(len(images))
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
    weights = dict(model.named_parameters())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step, (batch, labels) in enumerate(_batches(images, mean, std, recipe, seed, steps)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step, steps)
            inputs = batch.to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=recipe.label_smoothing)
            now = strength * min(1.0, (step + 1) / (ramp * steps)) if ramp else strength
            objective = loss
            if regularizer is not None and now and not proximal:
                objective = loss + now * regularizer(weights)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
            if regularizer is not None and now and proximal:
                regularizer.proximal_step(weights, recipe.lr_at(step, steps) * now)
            if on_step is not None:
                on_step(step + 1, float(loss.detach()))
    model.eval()


def _batches(
    images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], recipe: Recipe, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented, normalised batches in an order that the seed fixes; each epoch is shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    made = 0
    while made < steps:
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, max(1, len(images) - recipe.batch_size + 1), recipe.batch_size):
            if made == steps:
                return
            chosen = order[start : start + recipe.batch_size]
            batch = normalize(images.fetch(chosen), mean, std)
            yield augment(batch, generator, recipe.pad, recipe.flip), images.labels[chosen]
            made += 1


def logits(
    model: nn.Module, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 256
) -> Iterator[Tensor]:
    """What a network gives, (batch, classes), for one batch of images after another, in fp32 and eval mode."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for chosen in torch.arange(len(images)).split(batch_size):
            batch = normalize(images.fetch(chosen), mean, std).to(device)
            yield model(batch.contiguous(memory_format=torch.channels_last)).cpu()


def top1(
    model: nn.Module, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 256
) -> float:
    """Share of images classified right, in percent, in fp32 and eval mode."""
    found = torch.cat([given.argmax(1) for given in logits(model, images, mean, std, batch_size)])
    return 100 * int((found == images.labels).sum()) / len(images)
