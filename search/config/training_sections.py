"""Sections of a config about the dense network, its data, and how it is trained."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from espalier.errors import ConfigError
from espalier.search.config.fields import (
    CLASSIFICATION,
    Fraction,
    NetworkName,
    NotNegative,
    Positive,
    RegularizerName,
    Section,
    unknown,
)
from espalier.search.statistics.seeds import SELECTION
from espalier.search.tasks.classification.optimizers import OptimizerName, ScheduleName
from espalier.search.tasks.precision import TrainingPrecision
from espalier.search.training.strengths import MOST


class ModelConfig(Section):
    """The dense network."""

    name: NetworkName = Field(
        description="A built-in network, such as resnet20, or package.module:callable that is called with kwargs."
    )
    weights: Path | None = Field(
        default=None,
        description=(
            "File of the dense network's weights, .th, .pt, .pth or .safetensors; without one they are "
            "drawn from the seed."
        ),
    )
    kwargs: dict[str, Any] = Field(default={}, description="Arguments of the network.")


class TaskConfig(Section):
    """What the network is for."""

    name: str = Field(
        default=CLASSIFICATION,
        description=(
            "classification for images with one label each, or package.module:callable that makes an espalier.Task."
        ),
    )
    kwargs: dict[str, Any] = Field(default={}, description="Arguments of that callable.")


class AugmentConfig(Section):
    """Augmentation of training batches."""

    pad: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Pixels that are padded on each side before a random crop of the image's own size."
    )
    flip: bool = Field(default=False, description="Whether images are mirrored at random.")
    crop: tuple[Fraction, Fraction] | None = Field(
        default=None,
        description="Least and greatest share of the area of a random part, which is scaled to the image's size.",
    )
    rand_augment: tuple[Positive, Annotated[int, Field(ge=0, le=30)]] | None = Field(
        default=None, description="Operations and magnitude of RandAugment; needs torchvision."
    )
    mixup: NotNegative = Field(default=0.0, description="Alpha of mixup; 0 for none.")

    @field_validator("crop")
    @classmethod
    def _rising(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and crop[0] > crop[1]:
            raise ValueError(f"crop is the least and the greatest share of the area, got {list(crop)}")
        return crop


class DataConfig(Section):
    """The data set and its splits."""

    name: str = Field(
        description=(
            "cifar10, cifar100, digits, fashion-mnist, imagefolder or mnist; or package.module:callable that gives "
            "training images, training labels, test images and test labels."
        )
    )
    root: Path | None = Field(
        default=None,
        description="Folder of the data; digits needs none, and fashion-mnist is found where Debian installs it.",
    )
    search_images: Annotated[float, Field(gt=0)] = Field(
        default=0.2,
        description=(
            "Images that are held out of the training split, on which candidates are scored: a share "
            "below 1, or a number."
        ),
    )
    train_images: Positive | None = Field(
        default=None,
        description="Images of the training split to use; without a number, all that are not held out.",
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        description="Mean per channel of pixels in [0, 1], which is subtracted; without one, the data set's own.",
    )
    std: tuple[float, ...] | None = Field(
        default=None,
        description=(
            "Standard deviation per channel of pixels in [0, 1], by which they are divided; without one, "
            "the data set's own."
        ),
    )
    augment: AugmentConfig = Field(default=AugmentConfig(), description="Augmentation of training images.")
    kwargs: dict[str, Any] = Field(default={}, description="Arguments of the data set.")

    @model_validator(mode="after")
    def _whole_number(self) -> Self:
        if self.search_images >= 1 and self.search_images != int(self.search_images):
            raise ValueError("search_images must be a fraction below 1 or a whole number of images")
        return self

    @property
    def held_out(self) -> int | float:
        """Fraction, or number of images."""
        return self.search_images if self.search_images < 1 else int(self.search_images)


class RecipeConfig(Section):
    """One training run: by default SGD with momentum, linear warm-up, cosine decay to zero."""

    epochs: NotNegative = Field(
        default=10, description="Passes over the training images; a fraction is allowed, and 0 trains nothing."
    )
    batch_size: Positive = Field(default=128, description="Images per step.")
    lr: Annotated[float, Field(gt=0)] = Field(default=0.1, description="Greatest learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Nesterov momentum of sgd, and the first beta of the other optimisers."
    )
    weight_decay: NotNegative = Field(
        default=5e-4, description="Weight decay of weights; norms and biases have none."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the target that is spread over all classes."
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the steps in which the learning rate rises linearly from 0."
    )
    precision: TrainingPrecision = Field(
        default="fp32",
        description="Numbers of the passes; auto is bf16 where the processor or GPU computes in it, else fp32.",
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Length to which longer gradients are scaled, over all parameters; without a number, none are.",
    )
    optimizer: OptimizerName = Field(default="sgd", description="What takes the steps.")
    schedule: ScheduleName = Field(
        default="cosine",
        description=(
            "Learning rate after the warm-up: cosine to 0, in steps of a tenth at a half and at three "
            "quarters, or constant."
        ),
    )
    accumulate: Positive = Field(
        default=1,
        description="Parts in which the images of a step are run, one after another, where memory is short.",
    )
    processes: Positive = Field(
        default=1,
        description="Processes that each run a share of every batch, one a GPU; more than 1 needs accelerate.",
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description=(
            "Decay, per step, of a running average of weights and statistics that the training ends "
            "with; 0 for none."
        ),
    )

    @model_validator(mode="after")
    def _shared_evenly(self) -> Self:
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared evenly by {self.processes} processes")
        if self.accumulate > self.batch_size // self.processes:
            raise ValueError(f"a step has fewer images in a process than parts, accumulate {self.accumulate}")
        return self


class SupernetConfig(Section):
    """Weights that all widths of a network share."""

    epochs: NotNegative = Field(
        default=0,
        description=(
            "Passes over the training images, by the recipe of fine-tuning, every step with other widths near "
            "greedy and uniform pruning; 0 for no shared weights."
        ),
    )
    generator: bool = Field(
        default=False,
        description="Whether a second network makes the weights of every width, as in MetaPruning.",
    )
    used_for: Literal["scores", "finetuning", "both"] = Field(
        default="finetuning",
        description=(
            "What takes these weights in the place of those of the ladder: candidates that are scored, "
            "fine-tuning, which begins with them, or both."
        ),
    )

    @property
    def words(self) -> str:
        """What it is used for; empty where there are no shared weights."""
        if not self.epochs:
            return ""
        made = "made for the widths by a second network" if self.generator else "that all widths share"
        shared = f"weights {made}, trained for {self.epochs:g} epoch{'s' if self.epochs != 1 else ''}"
        return {
            "scores": f"Candidates are scored with {shared}; fine-tuning begins with the ladder's.",
            "finetuning": f"Fine-tuning begins with {shared}; candidates are scored with the ladder's.",
            "both": f"Candidates are scored, and fine-tuning begins, with {shared}.",
        }[self.used_for]

    @property
    def scores(self) -> bool:
        """Whether candidates are scored with them."""
        return self.epochs > 0 and self.used_for != "finetuning"


class FinetuneConfig(RecipeConfig):
    """Fine-tuning of finalists and of the greedy baseline."""

    distillation: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of the loss that is the divergence from the dense network's prediction."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(default=4.0, description="Temperature of that divergence.")
    attention: NotNegative = Field(
        default=0.0,
        description=(
            "Factor of the distance between the attention maps of the pruned and the dense network; 1000 is usual."
        ),
    )

    reconstruct: bool = Field(
        default=False,
        description=(
            "Whether the layers of a pruned network are first solved for what the whole one gives, on training "
            "inputs without labels."
        ),
    )
    epochs: NotNegative = Field(
        default=5, description="Passes over the training images; a fraction is allowed, and 0 trains nothing."
    )
    lr: Annotated[float, Field(gt=0)] = Field(default=0.02, description="Greatest learning rate.")
    seeds: Annotated[int, Field(ge=1, le=SELECTION)] = Field(
        default=3,
        description=(
            "Fine-tunings, each with another seed, of the winner and of greedy; differences are paired by seed."
        ),
    )
    selection_seeds: Positive = Field(
        default=2,
        description="Fine-tunings of each finalist by which the winner is chosen, with seeds of their own.",
    )
    halvings: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description=(
            "Rounds in which finalists are fine-tuned for a part of the epochs, and the better half goes on."
        ),
    )


_AutoOrNumbers = Annotated[
    Annotated[Literal["auto"], Tag("auto")]
    | Annotated[tuple[NotNegative, ...], Field(min_length=1), Tag("numbers")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "numbers"),
]


class RegularizerConfig(Section):
    """The ladder: one network per strength."""

    name: RegularizerName = Field(
        default="oicsr_gl", description="The penalty on channels; one of your own is package.module:Class."
    )
    strengths: _AutoOrNumbers = Field(
        default=(0.0,),
        description=(
            "Strengths of the penalty, rising; one network is trained with each. auto finds them from 0 up, by "
            "what they cost the whole network."
        ),
    )
    costs: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = Field(
        default=(0.005, 0.01, 0.02),
        description=(
            "For strengths: auto, shares of what the dense network is worth on held-out data, rising; of each, the "
            "strongest network is kept that loses no more."
        ),
    )
    start: Literal["below", "dense"] = Field(
        default="below",
        description="Whether the network of a strength is trained on from the one below it, or from the dense one.",
    )
    weighting: Literal["none", "sqrt_size"] = Field(
        default="none", description="Whether each norm is multiplied by the square root of its number of weights."
    )
    with_norms: bool = Field(default=False, description="Whether scale and shift of norms count to the channel.")
    step: Literal["subgradient", "proximal"] = Field(
        default="subgradient",
        description=(
            "Whether the penalty's subgradient is added to the gradients, or its own problem is solved "
            "after each step."
        ),
    )
    ramp: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of the steps in which the strength rises linearly from 0."
    )
    kwargs: dict[str, Any] = Field(
        default={},
        description="Arguments of the penalty, such as the share of every group that selective_decay drives out.",
    )
    epochs: NotNegative = Field(
        default=5, description="Passes over the training images with each strength; a fraction is allowed."
    )
    lr: Annotated[float, Field(gt=0)] = Field(
        default=0.05,
        description="Greatest learning rate with each strength; the rest of the recipe is that of training.",
    )

    @field_validator("strengths", "costs")
    @classmethod
    def _rising(cls, values: Literal["auto"] | tuple[float, ...], info: ValidationInfo) -> Any:
        if values != "auto" and list(values) != sorted(set(values)):
            raise ValueError(f"{info.field_name} must rise: a rung is stronger than the one below it")
        return values

    @property
    def most_rungs(self) -> int:
        """As many as the ladder has, at most."""
        return 1 + len(self.costs) if self.strengths == "auto" else len(self.strengths)

    @property
    def trainings(self) -> int:
        """Networks that are trained for the ladder beside the dense one, at most."""
        return 1 + MOST if self.strengths == "auto" else sum(strength > 0 for strength in self.strengths)

    def fixed_strengths(self) -> tuple[float, ...]:
        """Those of the config.

        Raises:
            ConfigError: a search is to find them.
        """
        if self.strengths == "auto":
            raise ConfigError("regularizer.strengths: auto is for searches and comparisons; give numbers here")
        return self.strengths

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from espalier.pruning.importance.regularizers import REGULARIZERS

        if ":" in self.name:  # of the user's own: nothing is imported to check a config
            return self
        kind = REGULARIZERS[self.name]
        if self.step == "proximal" and kind.subgradients_only:
            raise ValueError(f"{self.name} takes step: subgradient only: {kind.subgradients_only}")
        beside = ("graph", "weighting", "with_norms")
        own = [name for name in inspect.signature(kind).parameters if name not in beside]
        for name in self.kwargs:
            if not own:
                raise ValueError(f"{self.name} takes no kwargs, got {name}")
            if name not in own:
                raise ValueError(f"kwargs: {unknown(name, own)}")
        return self
