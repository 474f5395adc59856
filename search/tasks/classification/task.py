"""Image classification, by the built-in training loop."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.search.tasks.classification.data import Splits
from espalier.search.tasks.classification.data.images import ImageSet
from espalier.search.tasks.classification.data.transforms import normalize
from espalier.search.tasks.classification.measures import MEASURES
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.training_loop import Recipe, right, train
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.task import Part, Reading, Regularization, Scoring, Stage, Task

ENOUGH = 100
"""Images that a judgement needs at least, if there are so many; as many as classes, where these are more."""
GRADIENT_IMAGES = 256
"""Training images on which criteria take gradients."""


class ClassificationTask(Task):
    """Images, one label each, cross-entropy, and top-1 accuracy.

    Args:
        splits: the images.
        recipes: name of a stage -> how it is trained; the epochs are the stage's.
        scoring_images: held-out images that candidates are scored on, if that leaves enough unseen.
    """

    offers = frozenset({"batches", "loss", "labels", "training", "steps"})
    has_unseen = True
    runs_batches = True
    has_test = True

    def __init__(self, splits: Splits, recipes: Mapping[str, Recipe], scoring_images: int) -> None:
        self.splits, self.recipes = splits, dict(recipes)
        self.metric = replace(MEASURES["top1"], floor=100 / max(1, splits.num_classes))
        self.measures = MEASURES | {"top1": self.metric}
        self.example_inputs = torch.zeros(1, *splits.image_shape)
        self._indices = _indices(len(splits.search), scoring_images, max(ENOUGH, splits.num_classes))

    def fingerprint(self) -> Mapping[str, str]:
        """Of the images."""
        return {"data": self.splits.digest()}

    def notes(self) -> dict[str, Any]:
        """How images are normalised."""
        splits = self.splits
        return {"mean": splits.mean, "std": splits.std, "image_shape": splits.image_shape}

    def sizes(self) -> Mapping[str, int]:
        """Images."""
        splits = self.splits
        return {"training": len(splits.train), "held-out": len(splits.search), "test": len(splits.test)}

    def size(self, part: Part) -> int:
        """Images of a part."""
        return len(self.splits.test) if part == "test" else len(self._indices[part])

    def check(self, network: nn.Module) -> Sequence[str]:
        """Refuses a network that does not give one number per class."""
        classes = self.splits.num_classes
        with torch.no_grad():
            outputs = network(self.example_inputs)
        if isinstance(outputs, Tensor) and outputs.shape == (1, classes):
            return ()
        if isinstance(outputs, Tensor):
            got, then = str(tuple(outputs.shape)), "set model.kwargs.num_classes"
        else:
            got, then = f"a {type(outputs).__name__}", "return the logits alone"
        raise ConfigError(
            f"the network must give one number per class, (1, {classes}) for these data, got {got}: {then}"
        )

    def execution(self, settings: Mapping[str, Any], device: torch.device) -> Execution:
        """As the config says, and by the rule for the rest."""
        return Execution.asked(settings, device)

    def timed_inputs(self, scoring: Scoring) -> Tensor:
        """Images that candidates are scored on."""
        assert isinstance(scoring, ImageScoring)
        return normalize(torch.tensor(scoring.images), scoring.mean, scoring.std)

    def evaluate(self, network: nn.Module, part: Part) -> Reading:
        """Percent of images classified right, in fp32."""
        found = right(network, self.images(part), self.splits.mean, self.splits.std).numpy()
        return Reading(100 * int(found.sum()) / len(found), found)

    def images(self, part: Part) -> ImageSet:
        """The images of a part."""
        return self.splits.test if part == "test" else self.splits.search.take(self._indices[part])

    def steps(self, stage: Stage) -> int:
        """Of SGD."""
        return self._recipe(stage).steps(len(self.splits.train))

    def wants_teacher(self, stage: Stage) -> bool:
        """In fine-tuning with distillation."""
        recipe = self.recipes[stage.name]
        return stage.name == "finetune" and (recipe.distillation > 0 or recipe.attention > 0)

    def recipe(self, stage: Stage) -> dict[str, Any]:
        """Of the training loop."""
        return self._recipe(stage).to_json()

    def _recipe(self, stage: Stage) -> Recipe:
        return replace(self.recipes[stage.name], epochs=stage.epochs)

    def train(
        self,
        network: nn.Module,
        stage: Stage,
        *,
        seed: int,
        regularization: Regularization | None = None,
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """By the training loop."""
        train(
            network,
            self.splits.train,
            self.splits.mean,
            self.splits.std,
            self._recipe(stage),
            seed=seed,
            **({} if regularization is None else vars(regularization)),
            teacher=teacher,
            on_step=on_step,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )

    def finetuning_key(self, stage: Stage, scoring: Scoring, execution: Execution) -> Iterator[bytes]:
        """Names recipe and images."""
        assert isinstance(scoring, ImageScoring)
        settings = [self.recipe(stage), self.splits.mean, self.splits.std]
        yield json.dumps([*settings, execution.batch_size, execution.precision]).encode()
        labels = self.splits.train.labels, self.images("judging").labels
        for array in (scoring.calibration_images, *(each.numpy() for each in labels)):
            yield array.tobytes()

    def only(self, *parts: Part, training: bool = False) -> Self:
        """No other images."""
        made, splits, none = copy.copy(self), self.splits, self.splits.train.take(torch.arange(0))
        held = torch.unique(torch.cat([torch.arange(0), *(self._indices[p] for p in parts if p != "test")]))
        made.splits = replace(
            splits,
            train=splits.train if training else none,
            search=splits.search.take(held),
            test=splits.test if "test" in parts else none,
        )
        made._indices = {p: torch.searchsorted(held, self._indices[p]) for p in parts if p != "test"}
        return made

    def scoring(self, part: Part, dense: nn.Module, *, calibration: int, steps: int) -> ImageScoring:
        """On the images of a part."""
        recipe, indices = self.recipes["finetune"], self._indices[part]
        return ImageScoring.of(self.splits, dense, indices, calibration=calibration, steps=steps, recipe=recipe)

    def loss(self, network: nn.Module) -> Tensor:
        """Cross-entropy of the first training images."""
        chosen = torch.arange(min(GRADIENT_IMAGES, len(self.splits.train)))
        device = next(network.parameters()).device
        batch = normalize(self.splits.train.fetch(chosen), self.splits.mean, self.splits.std).to(device)
        return F.cross_entropy(network(batch), self.splits.train.labels[chosen].to(device))


def _indices(held_out: int, scoring_images: int, enough: int) -> dict[Part, Tensor]:
    """Held-out images of each part.

    The search scores on as many as asked for, if that leaves enough unseen. What it did not score on is parted in
    two, for promotion and judging; both take all of it where there is too little to part.
    """
    scoring = min(scoring_images, held_out - min(enough, held_out // 2))
    unseen = torch.arange(scoring, held_out)
    promoting = min(scoring_images, len(unseen) // 2)
    promotion, judging = (unseen, unseen) if promoting < enough else (unseen[:promoting], unseen[promoting:])
    return {
        "held_out": torch.arange(held_out),
        "scoring": torch.arange(scoring),
        "promotion": promotion,
        "judging": judging,
    }
