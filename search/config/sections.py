"""The sections of a config, checked by pydantic: every class is one, every field one key."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
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
    field_validator,
    model_validator,
)

from espalier.search.study.overview import budget_in_words
from espalier.search.tasks.classification.optimizers import OptimizerName, ScheduleName
from espalier.search.tasks.precision import ScoringPrecision, TrainingPrecision
from espalier.search.training.seeds import SELECTION

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]

CLASSIFICATION = "classification"
"""The task in the box that a config has if it names no other."""
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


def _named_in(names: Callable[[], Iterable[str]], own: bool = False) -> AfterValidator:
    """Of a field that holds a name: one of those in a table, which is imported when a config is checked.

    Args:
        names: of the table.
        own: whether it may be one of the user's own as well, ``package.module:name``, or is given in Python.
    """

    def check(value: str) -> str:
        known = list(names())
        if value not in known and not (own and (":" in value or value == GIVEN)):
            raise ValueError(unknown(value, known))
        return value

    return AfterValidator(check)


def unknown(value: str, names: Sequence[str], otherwise: str = "valid names are") -> str:
    """What is said of a name that there is not: the nearest one, or all."""
    near = difflib.get_close_matches(value, names, n=1)
    return f"unknown name {value!r}, " + (
        f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(names)}"
    )


def _regularizers() -> Iterable[str]:
    from espalier.pruning.importance.regularizers import REGULARIZERS

    return REGULARIZERS


def _criteria() -> Iterable[str]:
    from espalier.pruning.importance.criteria import CRITERIA

    return CRITERIA


def _normalizations() -> Iterable[str]:
    from espalier.pruning.importance.normalizations import NORMALIZATIONS

    return NORMALIZATIONS


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


Criterion = Annotated[str, _named_in(_criteria, own=True)]
ProxyName = Annotated[str, _named_in(_proxies)]
MethodName = Annotated[str, _named_in(_methods)]
RuntimeName = Annotated[str, _named_in(_runtimes)]


class Section(BaseModel):
    """A section: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The dense network."""

    name: str
    weights: Path | None = None
    kwargs: dict[str, Any] = {}


class TaskConfig(Section):
    """What the network is for."""

    name: str = CLASSIFICATION
    kwargs: dict[str, Any] = {}


class AugmentConfig(Section):
    """Augmentation of training batches."""

    pad: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    crop: tuple[Fraction, Fraction] | None = None
    rand_augment: tuple[Positive, Annotated[int, Field(ge=0, le=30)]] | None = None
    mixup: NotNegative = 0.0

    @field_validator("crop")
    @classmethod
    def _rising(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and crop[0] > crop[1]:
            raise ValueError(f"crop is the least and the greatest share of the area, got {list(crop)}")
        return crop


class DataConfig(Section):
    """The data set and its splits."""

    name: str
    root: Path | None = None
    search_images: Annotated[float, Field(gt=0)] = 0.2
    train_images: Positive | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: AugmentConfig = AugmentConfig()
    kwargs: dict[str, Any] = {}

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

    epochs: NotNegative = 10
    batch_size: Positive = 128
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    precision: TrainingPrecision = "fp32"
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    optimizer: OptimizerName = "sgd"
    schedule: ScheduleName = "cosine"
    accumulate: Positive = 1
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class FinetuneConfig(RecipeConfig):
    """Fine-tuning of finalists and of the greedy baseline."""

    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    attention: NotNegative = 0.0

    epochs: NotNegative = 5
    lr: Annotated[float, Field(gt=0)] = 0.02
    seeds: Annotated[int, Field(ge=1, le=SELECTION)] = 3
    selection_seeds: Positive = 2
    halvings: Annotated[int, Field(ge=0)] = 0


class RegularizerConfig(Section):
    """The ladder: one network per strength."""

    name: Annotated[str, _named_in(_regularizers)] = "oicsr_gl"
    strengths: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0.0,)
    start: Literal["below", "dense"] = "below"
    weighting: Literal["none", "sqrt_size"] = "none"
    with_norms: bool = False
    step: Literal["subgradient", "proximal"] = "subgradient"
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.0
    kwargs: dict[str, Any] = {}
    epochs: NotNegative = 5
    lr: Annotated[float, Field(gt=0)] = 0.05

    @field_validator("strengths")
    @classmethod
    def _rising(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if list(strengths) != sorted(set(strengths)):
            raise ValueError("strengths must rise: a rung is stronger than the one below it")
        return strengths

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from espalier.pruning.importance.regularizers import REGULARIZERS

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

    runtime: RuntimeName = "eager"
    batch: Positive = 1
    threads: Positive = 1
    networks: Annotated[int, Field(ge=8)] = 40
    model: Path | None = None


class BudgetConfig(Section):
    """What the pruned network may cost, and which groups are left alone."""

    keep: _OneOrSeveral | None = None
    front: bool = False
    max_macs: Positive | None = None
    keep_params: Fraction | None = None
    max_params: Positive | None = None
    keep_memory: Fraction | None = None
    max_memory: Positive | None = None
    latency: Fraction | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    device: DeviceConfig = DeviceConfig()
    min_width: Positive = 1
    min_widths: dict[str, Positive] = {}
    frozen: tuple[str, ...] = ()
    round_to: Literal["auto"] | Positive = 1

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
    """The paper's loop, or soft pruning: `espalier prune`."""

    schedule: Literal["rounds", "soft"] = "rounds"
    rounds: Positive = 3
    strength: NotNegative | None = None
    criterion: Criterion = "energy"
    normalization: Annotated[str, _named_in(_normalizations)] = "raw"
    most: Annotated[float, Field(gt=0, lt=1)] = 0.5
    retrain: Literal["finetune", "rewind", "scratch"] = "finetune"


class AgentConfig(Section):
    """Where the samplers that are agents begin."""

    pretrained: Path | None = None


class SearchConfig(Section):
    """The search over widths, and how the strength is chosen."""

    sampler: Annotated[str, _named_in(_samplers)] = "auto"
    space: Annotated[str, _named_in(_spaces)] = "multipliers"
    range: Annotated[float, Field(gt=0)] = 1.5
    criterion: Criterion = "energy"
    normalization: Annotated[str, _named_in(lambda: ("searched", *_normalizations()))] = "searched"
    strength: Literal["finetuned", "searched"] = "finetuned"
    trials: Positive = 200
    proxy: ProxyName = "recalibrated"
    measure: str = "calibrated"
    ladder: tuple[ProxyName, ...] = ()
    promote: Fraction = 0.25
    race: bool = False
    scoring_images: Positive = 1024
    calibration_images: Positive = 512
    batch_size: Literal["auto"] | Positive = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    precision: ScoringPrecision = "auto"
    finalists: Positive = 3
    agent: AgentConfig = AgentConfig()

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

    address: str | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: NotNegative = 0.0
    time_budget: Duration | None = None
    candidate_timeout: Duration | None = None
    max_failures: Positive = 20

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        for key in ("cpus_per_worker", "gpus_per_worker"):
            value = getattr(self, key)
            if value > 1 and value != int(value):
                raise ValueError(f"{key} must be a whole number, or a fraction below 1, got {value:g}")
        return self


class LatencyConfig(Section):
    """What networks are timed in: every runtime, with every batch size; the first of both is the table's."""

    runtimes: Annotated[tuple[RuntimeName, ...], Field(min_length=1)] = ("eager",)
    batches: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    threads: Positive = 1

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for key in ("runtimes", "batches"):
            values = getattr(self, key) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{key} must be named once each, got {', '.join(map(str, values))}")
        return self


class CompareConfig(Section):
    """The methods that are compared, under every budget of budget.keep: `espalier compare`."""

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = ("greedy", "uniform", "random", "auto")
    baseline: str = "greedy"
    seeds: Annotated[int, Field(ge=1, le=SELECTION)] = 5
    trials: Positive | None = None
    scratch_epochs: NotNegative | None = None
    latency_batch: Positive = 1
    latency: LatencyConfig = LatencyConfig()

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
