"""What a config says of training, in the terms of the inside: schedules, and the penalty of the ladder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from espalier.search.config.loading import Config
from espalier.search.config.training_sections import RecipeConfig
from espalier.search.tasks.classification.data.batches import RandAugment
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.training.ladder import Penalty


@dataclass(frozen=True)
class Recipes:
    """How the networks of a run are trained.

    Attributes:
        dense: the schedule of the dense network.
        regularized: of a rung of the ladder, or a round of the loop.
        penalty: of the same.
        finetune: the schedule of fine-tuning.
    """

    dense: Recipe
    regularized: Recipe
    penalty: Penalty
    finetune: Recipe

    @property
    def by_stage(self) -> dict[str, Recipe]:
        """By the names of `Stage`."""
        return {"dense": self.dense, "regularized": self.regularized, "finetune": self.finetune}

    @staticmethod
    def of(config: Config) -> Recipes:
        """From checked settings."""
        section = config.regularizer
        augment = config.data.augment.model_dump()
        if (drawn := augment["rand_augment"]) is not None:
            augment["rand_augment"] = RandAugment(*drawn)

        def made(recipe: RecipeConfig) -> Recipe:
            beside = {"seeds", "selection_seeds", "halvings", "reconstruct"}
            return Recipe(**recipe.model_dump(exclude=beside), **augment)

        dense = made(config.training)
        penalty = Penalty(
            section.name,
            section.weighting,
            section.with_norms,
            section.step == "proximal",
            section.ramp,
            section.kwargs,
        )
        return Recipes(
            dense=dense,
            regularized=replace(dense, epochs=section.epochs, lr=section.lr),
            penalty=penalty,
            finetune=made(config.finetune),
        )
