"""Training: the dense network, the rungs of the ladder and fine-tuning all go through `train`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.importance.regularizer import Regularizer
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.files.training_checkpoint import SECONDS, TrainingCheckpoint
from espalier.search.tasks.classification.data.batches import (
    RandAugment,
    Wanted,
    batches,
    check_torchvision,
    told_if_killed,
)
from espalier.search.tasks.classification.data.images import ImageSet
from espalier.search.tasks.classification.data.transforms import augment, draw_crops, draw_mix, normalize
from espalier.search.tasks.classification.data_parallel import Share, check_accelerate, together
from espalier.search.tasks.classification.losses import Distillation, Targets
from espalier.search.tasks.classification.optimizers import OptimizerName, ScheduleName, decay
from espalier.search.tasks.classification.optimizers import optimizer as make_optimizer
from espalier.search.tasks.precision import in_bf16

_OF_0_1 = frozenset(
    "epochs batch_size lr momentum weight_decay label_smoothing warmup precision pad flip clip_norm".split()
)
"""What a recipe of 0.1 says."""


@dataclass(frozen=True)
class Recipe:
    """How to train: by default SGD with Nesterov momentum, linear warm-up, then cosine decay to zero.

    Attributes:
        epochs: passes over the training images; may be a fraction.
        batch_size: images per step.
        lr: greatest learning rate.
        momentum: of SGD; the first beta of the others.
        weight_decay: on weights of two and more dimensions; norms and biases are left alone.
        label_smoothing: share of the target spread over all classes.
        warmup: share of the steps over which the learning rate rises.
        precision: ``bf16`` runs forward and backward under autocast, ``auto`` where the device is built for it.
        pad: pixels of zero padding from which crops are drawn.
        flip: whether images are mirrored at random.
        crop: least and greatest share of an image's area that a random crop has, which is scaled to the image's
            shape; None for none.
        rand_augment: operations of RandAugment, and their magnitude; None for none.
        mixup: alpha of mixup; 0 for none.
        processes: that each run a share of every batch, one a GPU; batch norms see the images of a share.
        clip_norm: gradients whose norm, over all parameters, is greater are scaled down to it; None leaves them.
        optimizer: ``sgd``, ``adam``, ``adamw`` or ``lamb``.
        schedule: of the learning rate behind the warm-up: ``cosine``, ``step`` or ``constant``.
        accumulate: parts that a step's images are run in, one after another, where memory is short.
        ema: decay, per step, of the running average of weights that the training ends with; 0 for the last ones.
        distillation: share of the loss that is divergence from the dense network's prediction, in fine-tuning
            (Hinton et al. 2015, arXiv 1503.02531); the rest is cross-entropy.
        temperature: at which predictions are compared for it.
        attention: what the distance to the dense network's attention maps is multiplied by, in fine-tuning.
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
    clip_norm: float | None = None
    optimizer: OptimizerName = "sgd"
    schedule: ScheduleName = "cosine"
    accumulate: int = 1
    ema: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    attention: float = 0.0
    crop: tuple[float, float] | None = None
    rand_augment: RandAugment | None = None
    mixup: float = 0.0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.processes > 1:
            check_accelerate()
        if self.rand_augment is not None:
            check_torchvision()

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what 0.1 did not know is left out where it changes nothing."""
        plain = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if key in _OF_0_1 or plain[key] != value}

    def steps(self, images: int) -> int:
        """Optimiser steps on a training set of so many images."""
        return round(self.epochs * self.steps_per_epoch(images))

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in a training set of so many images; one where there is none."""
        return max(1, images // self.batch_size)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = self.warmup * steps
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        return self.lr * decay(self.schedule, (step - rising) / max(1.0, steps - rising))


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
    teacher: nn.Module | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    seconds: float = SECONDS,
) -> None:
    """Trains a network in place and leaves it in eval mode.

    What is drawn at random depends on the seed and the number of the step or epoch alone, so that a training that
    goes on from its checkpoint ends with the numbers that it would have had; to the last bit where the device's
    kernels repeat themselves to the last bit, as they do on a CPU.

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
        teacher: the dense network, in eval mode, on the same device; for a recipe with distillation.
        on_step: told the steps done and the loss of this process's images, penalty left out.
        on_epoch: told the number of an epoch, from 1, after its last step, or the last of all; what it makes of the
            weights is trained on. May depend on nothing but the weights and the epoch.
        checkpoint: file from which this training goes on, if it holds a part of it, and which is written as it goes
            and at the end; the caller removes it once the result is kept elsewhere.
        seconds: between two writings of the checkpoint.
    """
    if recipe.processes > 1 and (recipe.batch_size % recipe.processes or len(images) < recipe.batch_size):
        raise ConfigError(
            f"{recipe.processes} processes cannot share batches of {recipe.batch_size} of {len(images)} images "
            "evenly"
        )
    told: dict[str, Any] = {
        "images": images,
        "mean": mean,
        "std": std,
        "recipe": recipe,
        "seed": seed,
        "teacher": teacher,
    }
    told |= {"regularizer": regularizer, "strength": strength, "proximal": proximal, "ramp": ramp}
    told |= {"on_epoch": on_epoch, "checkpoint": checkpoint, "seconds": seconds}
    with together(recipe.processes, _train, model, told) as share:
        _train(model, **told, share=share, on_step=on_step)


def _train(
    model: nn.Module,
    images: ImageSet,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    recipe: Recipe,
    seed: int,
    teacher: nn.Module | None,
    regularizer: Regularizer | None,
    strength: float,
    proximal: bool,
    ramp: float,
    on_epoch: Callable[[int], None] | None,
    checkpoint: Path | None,
    seconds: float,
    share: Share,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """A process's share of `train`."""
    device = next(model.parameters()).device
    per_epoch, steps = recipe.steps_per_epoch(len(images)), recipe.steps(len(images))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = make_optimizer(recipe.optimizer, groups, lr=recipe.lr, momentum=recipe.momentum)
    average = _Average(model, recipe.ema)
    kept, done = None, 0
    if checkpoint is not None:
        penalized = (_name_of(regularizer), strength, proximal, ramp)
        run = [recipe.to_json(), seed, penalized, mean, std, images.image_shape, digest({"labels": images.labels})]
        kept = TrainingCheckpoint(checkpoint, json.dumps([digest(tensors_of(model)), *run]), seconds)
    weights = dict(model.named_parameters())
    if regularizer is not None:
        regularizer.begin(weights)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if kept is not None:
        done = kept.restore(model, optimizer, average.tensors)
    model.train()
    low = in_bf16(recipe.precision, device)
    wanted = _wanted(images, recipe, seed, done, steps, share)
    seed = _seed_of_share(seed, share)
    wrapped = share.wrapped(model)
    distance = Distillation(
        teacher and teacher.to(device), recipe.distillation, recipe.temperature, recipe.attention
    )
    example = torch.zeros(1, *images.image_shape, device=device)
    with (
        told_if_killed(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        distance.watching(model, example),
        closing(batches(images, wanted, device)) as made,
    ):
        for step, (pixels, labels) in enumerate(made, start=done):
            batch = normalize(pixels.to(device, non_blocking=True), mean, std)
            batch = augment(batch, _generator(seed, "augmentation", step), recipe.pad, recipe.flip)
            batch, targets = _mixed(batch, labels.to(device), recipe.mixup, _generator(seed, "mixup", step))
            torch.manual_seed(_seed_of(seed, "dropout", step))
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step, steps)
            now = strength * min(1.0, (step + 1) / (ramp * steps)) if ramp else strength
            optimizer.zero_grad(set_to_none=True)
            penalty: Callable[[], Tensor] | None = None
            if regularizer is not None and now and not proximal:
                penalty = partial(_penalty, regularizer, now, weights)
            loss = _loss_and_penalty_gradients(share, wrapped, batch, targets, recipe, low, distance, penalty)
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            if regularizer is not None and now and proximal:
                regularizer.proximal_step(weights, recipe.lr_at(step, steps) * now)
            average.update()
            if on_epoch is not None and ((step + 1) % per_epoch == 0 or step + 1 == steps):
                on_epoch(step // per_epoch + 1)
            if on_step is not None:
                on_step(step + 1, loss)
            if kept is not None and share.rank == 0:
                kept.keep(model, optimizer, step + 1, average.tensors, now=step + 1 == steps)
    average.put_into()
    model.eval()


class _Average:
    """The running average of a network's tensors; nothing where the decay is 0."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.tensors = {name: tensor.clone() for name, tensor in tensors_of(model).items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the tensors as they are; what counts is copied."""
        now = tensors_of(self._model) if self.tensors else {}
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point():
                tensor.lerp_(now[name], 1 - self._decay)
            else:
                tensor.copy_(now[name])

    @torch.no_grad()
    def put_into(self) -> None:
        """Gives the network the average."""
        for name, tensor in tensors_of(self._model).items():
            if name in self.tensors:
                tensor.copy_(self.tensors[name])


def _loss_and_penalty_gradients(
    share: Share,
    model: nn.Module,
    batch: Tensor,
    targets: Targets,
    recipe: Recipe,
    low: bool,
    distance: Distillation,
    penalty: Callable[[], Tensor] | None,
) -> float:
    """Adds the gradients of loss and penalty to the parameters; the loss."""
    total = 0.0
    parts = zip(batch.tensor_split(recipe.accumulate), targets.split(recipe.accumulate), strict=True)
    for number, (part, shown) in enumerate(parts):
        inputs = part.contiguous(memory_format=torch.channels_last)
        with share.backward(model, last=number == recipe.accumulate - 1):
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=low):
                logits = model(inputs).float()
            loss = distance.add_to(shown.cross_entropy(logits, recipe.label_smoothing), logits, inputs)
            if recipe.accumulate > 1:
                loss = loss * (len(part) / len(batch))
            total += float(loss.detach())
            (loss if penalty is None or number else loss + penalty()).backward()
    return total


def _penalty(regularizer: Regularizer, strength: float, weights: Mapping[str, Tensor]) -> Tensor:
    return strength * regularizer(weights)


def _mixed(batch: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Targets]:
    """Images mixed with others of their batch, and what they show."""
    if not alpha:
        return batch, Targets(labels, labels)
    share, others = draw_mix(len(batch), alpha, generator)
    others = others.to(batch.device)
    return share * batch + (1 - share) * batch[others], Targets(labels, labels[others], share)


def _wanted(images: ImageSet, recipe: Recipe, seed: int, done: int, steps: int, share: Share) -> Iterator[Wanted]:
    """The process's share of the batches of the steps from `done` on; each epoch is shuffled anew."""
    per_epoch, epoch, order = recipe.steps_per_epoch(len(images)), -1, torch.empty(0)
    own = _seed_of_share(seed, share)
    for step in range(done, steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(len(images), generator=_generator(seed, "order", epoch))
        chosen = order[step % per_epoch * recipe.batch_size :][: recipe.batch_size][share.rank :: share.count]
        crops = None
        if recipe.crop is not None:
            crops = draw_crops(len(chosen), recipe.crop, _generator(own, "crop", step))
        yield Wanted(chosen, crops, recipe.rand_augment, _seed_of(own, "rand_augment", step))


def _name_of(regularizer: Regularizer | None) -> str | None:
    if regularizer is None:
        return None
    kind, graph = type(regularizer).__qualname__, regularizer.graph.digest
    settings = f" {json.dumps(regularizer.settings)}" if regularizer.settings else ""
    return f"{kind} {regularizer.weighting} {regularizer.with_norms} {graph}{settings}"


Drawn = Literal["order", "augmentation", "dropout", "crop", "rand_augment", "mixup"]


def _seed_of(seed: int, what: Drawn, number: int) -> int:
    """An independent stream for every epoch's order, and for what every step draws."""
    return int(np.random.SeedSequence([seed, get_args(Drawn).index(what), number]).generate_state(1)[0])


def _seed_of_share(seed: int, share: Share) -> int:
    """Of what the process draws for its own images; the first one's is that of a training by one process."""
    return seed if share.rank == 0 else int(np.random.SeedSequence([seed, share.rank]).generate_state(1)[0])


def _generator(seed: int, what: Drawn, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed_of(seed, what, number))


def logits(
    model: nn.Module, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 256
) -> Iterator[Tensor]:
    """What a network gives, (batch, classes), for one batch of images after another, in fp32 and eval mode."""
    device = next(model.parameters()).device
    model.eval()
    chosen = (Wanted(part) for part in torch.arange(len(images)).split(batch_size) if len(part))
    with told_if_killed(), torch.inference_mode(), closing(batches(images, chosen, device)) as made:
        for pixels, _ in made:
            batch = normalize(pixels.to(device, non_blocking=True), mean, std)
            yield model(batch.contiguous(memory_format=torch.channels_last)).cpu()


def right(
    model: nn.Module, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 256
) -> Tensor:
    """Which images are classified right, in fp32 and eval mode: bool (n,)."""
    found = torch.cat([given.argmax(1) for given in logits(model, images, mean, std, batch_size)])
    return found == images.labels


def top1(
    model: nn.Module, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 256
) -> float:
    """Share of images classified right, in percent, in fp32 and eval mode."""
    return 100 * int(right(model, images, mean, std, batch_size).sum()) / len(images)
