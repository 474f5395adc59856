"""The sections of a config, checked by pydantic: every class is one, every field one key."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from espalier.errors import ConfigError
from espalier.search.study.overview import budget_in_words
from espalier.search.tasks.classification.optimizers import OptimizerName, ScheduleName
from espalier.search.tasks.precision import ScoringPrecision, TrainingPrecision
from espalier.search.training.seeds import SELECTION
from espalier.search.training.strengths import MOST

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]

CLASSIFICATION = "classification"
"""The built-in task, which a config has if it names no other."""
LISTED = 20
"""Names that a message lists."""
GIVEN = "given"
"""In the place of a name: the network, the task, or the criterion, is given in Python."""

_PAIRS = (
    ("keep", "max_macs"),
    ("keep_params", "max_params"),
    ("keep_memory", "max_memory"),
    ("latency", "max_latency_ms"),
)
REPLACES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
"""Key of a budget -> the one that says the same in another unit."""


def _named_in(names: Callable[[], Iterable[str]], own: bool = False, given: bool = False) -> AfterValidator:
    """Of a field that holds a name: one of those in a table, which is imported when a config is checked.

    Args:
        names: of the table.
        own: whether it may be one of the user's own as well, ``package.module:name``.
        given: whether one may be given in Python.
    """
    return AfterValidator(partial(_name, names=names, own=own, given=given))


def _name(value: str, names: Callable[[], Iterable[str]], own: bool, given: bool) -> str:
    known = list(names())
    if value not in known and not (own and ":" in value) and not (given and value == GIVEN):
        raise ValueError(unknown(value, known))
    return value


def unknown(value: str, names: Sequence[str], otherwise: str = "valid names are") -> str:
    """What is said of a name that there is not: the nearest one, or all, or the first of many."""
    near = difflib.get_close_matches(value, names, n=1)
    if near:
        return f"unknown name {value!r}, did you mean {near[0]!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED + 1 else ""
    return f"unknown name {value!r}, {otherwise} {', '.join(names[:LISTED] if more else names)}{more}"


def _regularizers() -> Iterable[str]:
    from espalier.pruning.importance.regularizers import REGULARIZERS

    return REGULARIZERS


def _criteria() -> Iterable[str]:
    from espalier.pruning.importance.criteria import CRITERIA

    return CRITERIA


def _normalizations() -> Iterable[str]:
    from espalier.pruning.importance.normalizations import NORMALIZATIONS

    return NORMALIZATIONS


def _schedules() -> Iterable[str]:
    from espalier.search.training.schedules import SCHEDULES

    return ["rounds", *SCHEDULES]


def _samplers() -> Iterable[str]:
    from espalier.search.samplers import SAMPLERS

    return SAMPLERS


def _spaces() -> Iterable[str]:
    from espalier.search.spaces.table import SPACES

    return SPACES


def _proxies() -> Iterable[str]:
    from espalier.search.evaluation.proxies import PROXIES

    return PROXIES


def _runtimes() -> Iterable[str]:
    from espalier.pruning.runtimes import RUNTIMES

    return RUNTIMES


def _methods() -> Iterable[str]:
    from espalier.search.methods import CONTROLS, METHODS

    return [*METHODS, *CONTROLS]


Criterion = Annotated[str, _named_in(_criteria, own=True, given=True)]
ProxyName = Annotated[str, _named_in(_proxies)]
MethodName = Annotated[str, _named_in(_methods, own=True)]
RuntimeName = Annotated[str, _named_in(_runtimes)]


class Section(BaseModel):
    """A section: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The dense network."""

    name: str = Field(
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

    name: Annotated[str, _named_in(_regularizers, own=True)] = Field(
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


_OneOrSeveral = Annotated[
    Annotated[Fraction, Tag("one")] | Annotated[tuple[Fraction, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class DeviceConfig(Section):
    """What a budget of latency is measured on."""

    runtime: RuntimeName = Field(default="eager", description="What runs the network.")
    batch: Positive = Field(default=1, description="Examples of a pass.")
    threads: Positive = Field(default=1, description="Threads that a pass may use.")
    networks: Annotated[int, Field(ge=8)] = Field(
        default=40, description="Pruned networks that are timed before the search."
    )
    model: Path | None = Field(
        default=None,
        description=(
            "File of a latency model that was measured before, here or on another device; nothing is timed then."
        ),
    )


class BudgetConfig(Section):
    """What the pruned network may cost, and which groups are left alone."""

    keep: _OneOrSeveral | None = Field(
        default=None,
        description=(
            "Share of the dense network's MACs that may be kept; several, falling, ask for several budgets."
        ),
    )
    front: bool = Field(
        default=False,
        description="Whether every candidate has a budget of its own between the first and the last of keep.",
    )
    max_macs: Positive | None = Field(default=None, description="Most MACs of one example, in place of keep.")
    keep_params: Fraction | None = Field(
        default=None, description="Share of the dense network's parameters that may be kept."
    )
    max_params: Positive | None = Field(default=None, description="Most parameters, in place of keep_params.")
    keep_memory: Fraction | None = Field(
        default=None, description="Share of the dense network's peak memory of activations that may be kept."
    )
    max_memory: Positive | None = Field(
        default=None, description="Most bytes of activations that are alive at once, in place of keep_memory."
    )
    latency: Fraction | None = Field(
        default=None, description="Share of the dense network's latency on the device."
    )
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Most milliseconds of a pass on the device, in place of latency."
    )
    device: DeviceConfig = Field(default=DeviceConfig(), description="The device that latency is of.")
    min_width: Positive = Field(default=1, description="Channels that every group keeps at least.")
    min_widths: dict[str, Positive] = Field(
        default={},
        description="Name or pattern of groups, such as layer1.*, and the channels that these keep at least.",
    )
    frozen: tuple[str, ...] = Field(
        default=(), description="Names or patterns of groups that keep all of their channels."
    )
    depth: bool = Field(
        default=False,
        description="Whether residual branches may be taken out as a whole; how many is one more number to search.",
    )
    round_to: Literal["auto"] | Positive = Field(
        default=1,
        description=(
            "Widths of layers are multiples of this; auto takes 1, 8 or 16, whichever leaves the most "
            "MACs in the latency."
        ),
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        for keys in _PAIRS:
            if all(getattr(self, key) is not None for key in keys):
                raise ValueError(f"give one of {keys[0]} and {keys[1]}, which limit the same thing")
        if all(getattr(self, key) is None for key in REPLACES):
            raise ValueError("give a limit, such as keep (fraction of the dense MACs) or max_macs")
        if list(self.keeps) != sorted(set(self.keeps), reverse=True):
            raise ValueError("several fractions to keep must fall, such as [0.7, 0.5, 0.3]: the last is searched")
        if self.round_to == "auto" and not self.limits_latency:
            raise ValueError("round_to: auto follows from latency, and there is no limit on it")
        if self.front and self.limits_latency:
            raise ValueError("a front lies between MACs: give no limit on latency")
        if self.front and len(self.keeps) < 2:
            raise ValueError("a front lies between several fractions to keep, such as keep: [0.7, 0.5, 0.3]")
        return self

    @property
    def keeps(self) -> tuple[float, ...]:
        """Fractions of the MACs to keep, falling; none where MACs are limited otherwise, or not at all."""
        return self.keep if isinstance(self.keep, tuple) else () if self.keep is None else (self.keep,)

    @property
    def limits_latency(self) -> bool:
        """Whether it does."""
        return self.latency is not None or self.max_latency_ms is not None

    def words(self) -> str:
        """The limits, for people."""
        return budget_in_words(self.model_dump())


class PruneConfig(Section):
    """The paper's loop, or another schedule: `espalier prune`."""

    schedule: Annotated[str, _named_in(_schedules, own=True)] = Field(
        default="rounds",
        description=(
            "When channels go: rounds are cut and retrained; the others cut once, at the end of what they do; one "
            "of your own is package.module:Class."
        ),
    )
    rounds: Positive = Field(default=3, description="Rounds of training, ranking and cutting.")
    strength: NotNegative | None = Field(
        default=None, description="Strength of the penalty; without one, the last of regularizer.strengths."
    )
    criterion: Criterion = Field(default="energy", description="What ranks channels.")
    normalization: Annotated[str, _named_in(_normalizations)] = Field(
        default="raw", description="What makes the scores of different groups comparable."
    )
    most: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Greatest share of a group that one round removes."
    )
    reconstruct: bool = Field(
        default=False,
        description=(
            "Whether the layers of a cut network are first solved for what the uncut one gives, on training inputs "
            "without labels."
        ),
    )
    retrain: Literal["finetune", "rewind", "scratch"] = Field(
        default="finetune",
        description=(
            "How what is left is trained: fine-tuned, by the whole dense schedule, or by that from new weights."
        ),
    )


class AgentConfig(Section):
    """Where the samplers that are agents begin."""

    pretrained: Path | None = Field(
        default=None,
        description="File of an agent that espalier agents train has written, or the agent.pt of another study.",
    )


class SearchConfig(Section):
    """The search over widths, and how the strength is chosen."""

    sampler: Annotated[str, _named_in(_samplers)] = Field(default="auto", description="What proposes candidates.")
    space: Annotated[str, _named_in(_spaces)] = Field(
        default="multipliers", description="What the numbers of a proposal mean."
    )
    range: Annotated[float, Field(gt=0)] = Field(
        default=1.5, description="Multipliers of energies lie between e to the minus range and e to the range."
    )
    criterion: Criterion = Field(
        default="energy",
        description="What ranks the channels of a group; one of your own is package.module:callable.",
    )
    normalization: Annotated[str, _named_in(lambda: ("searched", *_normalizations()))] = Field(
        default="searched",
        description="What makes the energies of different groups comparable; searched lets the search decide.",
    )
    strength: Literal["finetuned", "searched"] = Field(
        default="finetuned",
        description=(
            "Whether fine-tuning chooses the strength for the budget before the search, or the search "
            "does by its proxy."
        ),
    )
    trials: Positive = Field(default=200, description="Candidates to score.")
    proxy: ProxyName = Field(default="recalibrated", description="How a cut network is healed before it is scored.")
    measure: str = Field(
        default="calibrated",
        description=(
            "What is compared on held-out images: calibrated or plain cross_entropy, top1 or "
            "distillation; score for other tasks."
        ),
    )
    ladder: tuple[ProxyName, ...] = Field(
        default=(), description="Proxies by which the best candidates are judged again, from the cheapest."
    )
    promote: Fraction = Field(
        default=0.25,
        description="Greatest share of the candidates of each proxy that the next one of the ladder judges.",
    )
    race: bool = Field(
        default=False,
        description="Whether a candidate is given up that is far behind the best after some of the images.",
    )
    scoring_images: Positive = Field(
        default=1024,
        description="Held-out images that candidates are scored on; the others judge the best of them.",
    )
    calibration_images: Positive = Field(
        default=512, description="Training images that batch norms are recalibrated on."
    )
    batch_size: Literal["auto"] | Positive = Field(default="auto", description="Images per pass; auto is 128.")
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        default="auto", description="Layout of images in memory; auto is channels_last."
    )
    precision: ScoringPrecision = Field(
        default="auto",
        description="Numbers of the passes; auto is bf16 where the processor or GPU computes in it, else fp32.",
    )
    finalists: Positive = Field(default=3, description="Best candidates that are fine-tuned.")
    agent: AgentConfig = Field(default=AgentConfig(), description="Where an agent begins.")

    @model_validator(mode="after")
    def _can_race(self) -> Self:
        if self.race and self.measure == "calibrated":
            raise ValueError(
                "candidates cannot race by measure: calibrated, which is no mean over images; give another one, "
                "such as top1"
            )
        return self


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(value: Any) -> Any:
    """Seconds of a duration: a number, or a number with s, m, h or d behind it.

    >>> seconds_of("90"), seconds_of("30m"), seconds_of("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    if not isinstance(value, str):
        return value
    number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        rule = f"a duration is a number, of seconds or with s, m, h or d behind it, got {value!r}"
        raise ValueError(rule) from None


Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0)]
"""Seconds."""


class ClusterConfig(Section):
    """Where candidates are evaluated, and for how long: nothing here changes what a candidate scores."""

    address: str | None = Field(
        default=None,
        description="Ray cluster: local, auto or HOST:PORT; without one, Ray is started on this machine.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Cores, and threads, of each worker."
    )
    gpus_per_worker: NotNegative = Field(
        default=0.0, description="GPUs of each worker; 0.25 shares one between four."
    )
    time_budget: Duration | None = Field(
        default=None,
        description="Seconds, or 30m, 2h or 1d, after which the search asks for no more candidates and concludes.",
    )
    candidate_timeout: Duration | None = Field(
        default=None, description="Seconds, or 30m or 2h, after which a candidate fails and its worker is replaced."
    )
    max_failures: Positive = Field(default=20, description="Candidates that may fail before the search gives up.")

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        for key in ("cpus_per_worker", "gpus_per_worker"):
            value = getattr(self, key)
            if value > 1 and value != int(value):
                raise ValueError(f"{key} must be a whole number, or a fraction below 1, got {value:g}")
        return self


class LatencyConfig(Section):
    """What networks are timed in: every runtime, with every batch size; the first of both is the table's."""

    runtimes: Annotated[tuple[RuntimeName, ...], Field(min_length=1)] = Field(
        default=("eager",), description="Runtimes that every network is timed in; the table shows the first."
    )
    batches: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = Field(
        default=None, description="Images of timed passes; the table shows the first."
    )
    threads: Positive = Field(default=1, description="Threads that a pass may use.")

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for key in ("runtimes", "batches"):
            values = getattr(self, key) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{key} must be named once each, got {', '.join(map(str, values))}")
        return self


class CompareConfig(Section):
    """The methods that are compared, under every budget of budget.keep: `espalier compare`."""

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = Field(
        default=("greedy", "uniform", "random", "auto"), description="Methods that are compared."
    )
    baseline: str = Field(default="greedy", description="The method that the others are measured by.")
    seeds: Annotated[int, Field(ge=1, le=SELECTION)] = Field(
        default=5, description="Seeds of search and fine-tuning; verdicts need three."
    )
    trials: Positive | None = Field(
        default=None, description="Evaluations of each search; without a number, search.trials."
    )
    scratch_epochs: NotNegative | None = Field(
        default=None,
        description=(
            "Epochs of training from new weights; without a number, as many as a searched network has seen."
        ),
    )
    latency_batch: Positive = Field(
        default=1, description="Images of a timed pass; latency.batches is the same for several."
    )
    latency: LatencyConfig = Field(default=LatencyConfig(), description="What networks are timed in.")

    @property
    def batches(self) -> tuple[int, ...]:
        """Examples of timed passes."""
        return self.latency.batches or (self.latency_batch,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.latency_batch not in (1, *self.batches):
            raise ValueError("latency_batch is what latency.batches says for several: give one of the two")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods must be named once each")
        if self.baseline not in self.methods:
            raise ValueError(f"baseline must be one of methods, {', '.join(self.methods)}, got {self.baseline!r}")
        return self
