"""Configs: YAML on the outside, checked by pydantic; the rest of espalier never sees one.

Every class is one section of the file, every field one key. A file with faults is refused whole, with all of
them listed, each with its path and the nearest valid name.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from espalier.errors import ConfigError
from espalier.search.candidate import Measure

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]


_PAIRS = (("keep", "max_macs"), ("keep_params", "max_params"), ("keep_memory", "max_memory"))
_REPLACES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}


class Section(BaseModel):
    """A section: unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The dense network."""

    name: str
    weights: Path | None = None
    kwargs: dict[str, Any] = {}


class AugmentConfig(Section):
    """Augmentation of training batches."""

    pad: Annotated[int, Field(ge=0)] = 0
    flip: bool = False


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
    """One training run: SGD with momentum, linear warm-up, cosine decay to zero."""

    epochs: NotNegative = 10
    batch_size: Positive = 128
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class FinetuneConfig(RecipeConfig):
    """Fine-tuning of finalists and of the greedy baseline."""

    epochs: NotNegative = 5
    lr: Annotated[float, Field(gt=0)] = 0.02
    seeds: Positive = 3
    halvings: Annotated[int, Field(ge=0)] = 0


class RegularizerConfig(Section):
    """The ladder: one network per strength."""

    name: str = "oicsr_gl"
    strengths: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0.0,)
    start: Literal["below", "dense"] = "below"
    weighting: Literal["none", "sqrt_size"] = "none"
    with_norms: bool = False
    step: Literal["subgradient", "proximal"] = "subgradient"
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.0
    epochs: NotNegative = 5
    lr: Annotated[float, Field(gt=0)] = 0.05

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.strengths) != sorted(set(self.strengths)):
            raise ValueError("strengths must rise: a rung is stronger than the one below it")
        return self


_OneOrSeveral = Annotated[
    Annotated[Fraction, Tag("one")] | Annotated[tuple[Fraction, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class BudgetConfig(Section):
    """What the pruned network may cost, and which groups are left alone."""

    keep: _OneOrSeveral | None = None
    front: bool = False
    max_macs: Positive | None = None
    keep_params: Fraction | None = None
    max_params: Positive | None = None
    keep_memory: Fraction | None = None
    max_memory: Positive | None = None
    min_width: Positive = 1
    min_widths: dict[str, Positive] = {}
    frozen: tuple[str, ...] = ()
    round_to: Positive = 1

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        for keys in _PAIRS:
            if all(getattr(self, key) is not None for key in keys):
                raise ValueError(f"give one of {keys[0]} and {keys[1]}, which limit the same thing")
        if all(getattr(self, key) is None for key in _REPLACES):
            raise ValueError("give a limit, such as keep (fraction of the dense MACs) or max_macs")
        if list(self.keeps) != sorted(set(self.keeps), reverse=True):
            raise ValueError("several fractions to keep must fall, such as [0.7, 0.5, 0.3]: the last is searched")
        if self.front and len(self.keeps) < 2:
            raise ValueError("a front lies between several fractions to keep, such as keep: [0.7, 0.5, 0.3]")
        return self

    @property
    def keeps(self) -> tuple[float, ...]:
        """Fractions of the MACs to keep, falling; none where MACs are limited otherwise, or not at all."""
        return self.keep if isinstance(self.keep, tuple) else () if self.keep is None else (self.keep,)

    def words(self) -> str:
        """The limits, for people."""
        kept = {"keep": "MACs", "keep_params": "parameters", "keep_memory": "activation memory"}
        most = {"max_macs": "MACs", "max_params": "parameters", "max_memory": "bytes of activations"}
        given = [f"{_fractions(keep)} of the {what}" for key, what in kept.items() if (keep := getattr(self, key))]
        given += [f"{getattr(self, key):,} {what}" for key, what in most.items() if getattr(self, key)]
        return " and ".join(given)


def _fractions(kept: float | tuple[float, ...]) -> str:
    return ", ".join(f"{each:g}" for each in (kept if isinstance(kept, tuple) else (kept,)))


class PruneConfig(Section):
    """The paper's loop, or soft pruning: `espalier prune`."""

    schedule: Literal["rounds", "soft"] = "rounds"
    rounds: Positive = 3
    strength: NotNegative | None = None
    criterion: str = "energy"
    normalization: Literal["raw", "mean", "max", "per_mac"] = "raw"
    most: Annotated[float, Field(gt=0, lt=1)] = 0.5
    retrain: Literal["finetune", "rewind", "scratch"] = "finetune"


class AgentConfig(Section):
    """Where the samplers that are agents begin."""

    pretrained: Path | None = None


class SearchConfig(Section):
    """The search over widths and strength."""

    sampler: str = "auto"
    space: str = "multipliers"
    range: Annotated[float, Field(gt=0)] = 1.5
    criterion: str = "energy"
    normalization: Literal["searched", "raw", "mean", "max", "per_mac"] = "searched"
    trials: Positive = 200
    proxy: str = "recalibrated"
    measure: Measure = "cross_entropy"
    ladder: tuple[str, ...] = ()
    promote: Fraction = 0.25
    race: bool = False
    scoring_images: Positive = 1024
    calibration_images: Positive = 512
    batch_size: Literal["auto"] | Positive = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    finalists: Positive = 3
    agent: AgentConfig = AgentConfig()


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(value: Any) -> Any:
    """Seconds of a duration: a number, or a number with s, m, h or d behind it; anything else as it is.

    >>> seconds_of("90"), seconds_of("30m"), seconds_of("1.5h"), seconds_of("soon")
    (90.0, 1800.0, 5400.0, 'soon')
    """
    if not isinstance(value, str):
        return value
    number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        return value


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


class CompareConfig(Section):
    """The methods that are compared, under every budget of budget.keep: `espalier compare`."""

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("greedy", "uniform", "random", "auto")
    baseline: str = "greedy"
    seeds: Positive = 5
    trials: Positive | None = None
    scratch_epochs: NotNegative | None = None
    latency_batch: Positive = 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods must be named once each")
        if self.baseline not in self.methods:
            raise ValueError(f"baseline must be one of methods, {', '.join(self.methods)}, got {self.baseline!r}")
        return self


class Config(Section):
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    training: RecipeConfig = RecipeConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    budget: BudgetConfig
    search: SearchConfig = SearchConfig()
    prune: PruneConfig = PruneConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    compare: CompareConfig = CompareConfig()
    workers: Annotated[int, Field(ge=0)] = 2
    cluster: ClusterConfig = ClusterConfig()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        from espalier.pruning.criteria import CRITERIA
        from espalier.pruning.regularizers import REGULARIZERS
        from espalier.search.compare.methods import CONTROLS, METHODS, SCRATCH
        from espalier.search.proxies import PROXIES
        from espalier.search.samplers import FRONT_SAMPLERS, SAMPLERS
        from espalier.search.samplers.agents import PRETRAINED
        from espalier.search.spaces import SPACES

        methods = [*METHODS, *CONTROLS]
        tables: list[tuple[str, str, Sequence[str]]] = [
            ("regularizer.name", self.regularizer.name, list(REGULARIZERS)),
            ("search.sampler", self.search.sampler, list(SAMPLERS)),
            ("search.space", self.search.space, list(SPACES)),
            ("search.proxy", self.search.proxy, list(PROXIES)),
            *((f"search.ladder.{n}", name, list(PROXIES)) for n, name in enumerate(self.search.ladder)),
            ("search.criterion", self.search.criterion, list(CRITERIA)),
            ("prune.criterion", self.prune.criterion, list(CRITERIA)),
            *((f"compare.methods.{n}", name, methods) for n, name in enumerate(self.compare.methods)),
        ]
        faults = [f"{path}: {_unknown(value, names)}" for path, value, names in tables if value not in names]
        if self.budget.front and self.search.sampler not in FRONT_SAMPLERS:
            able = ", ".join(FRONT_SAMPLERS)
            faults.append(f"search.sampler: {self.search.sampler} searches under one budget; a front takes {able}")
        if self.search.agent.pretrained is not None and self.search.sampler not in PRETRAINED:
            able = ", ".join(PRETRAINED)
            faults.append(f"search.agent.pretrained: {self.search.sampler} begins with no agent; {able} can")
        if faults:
            raise ValueError("\n".join(faults))
        searches = [name for name in self.compare.methods if name in METHODS and METHODS[name].searches]
        if SCRATCH in self.compare.methods and not searches:
            raise ValueError(f"compare.methods: {SCRATCH} takes the widths of a search, and none is named")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Path -> value of every key on which the trials of a study depend.

        Left out: how many trials are asked for, what is done with the best of them, the loop of `espalier prune`,
        where and how long candidates are evaluated, and where files lie. The recipe of fine-tuning counts where
        candidates take some of its steps.
        """
        from espalier.search.proxies import STEPS

        kept = self.model_dump(mode="json", exclude={"workers", "cluster", "prune", "compare"})
        if self.budget.keeps and not self.budget.front:
            kept["budget"]["keep"] = self.budget.keeps[-1]  # the others only share what was found under it
        for key in ("epochs", "seeds", "halvings"):
            del kept["finetune"][key]
        if self.search.proxy not in STEPS:
            del kept["finetune"]
        for key in ("trials", "finalists", "ladder", "promote"):
            del kept["search"][key]
        del kept["data"]["root"], kept["model"]["weights"]
        if self.search.agent.pretrained is not None:
            kept["search"]["agent"]["pretrained"] = _digest(self.search.agent.pretrained)
        return dict(_flatten(kept))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"search.agent.pretrained: cannot read {path}: {error.strerror}") from error


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a config.

    Args:
        source: path of a YAML file, or the name of one that espalier ships ("digits").
        overrides: ``key.path=value`` settings that win over the file; values are YAML.

    Returns:
        The checked config.

    Raises:
        ConfigError: the file is missing or not YAML, or breaks rules: all of them in one message.
    """
    path = find_config(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections such as model: and data:, got {type(content).__name__}")
    return parse_config(content, str(source), overrides)


def parse_config(content: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> Config:
    """Checks the content of a config.

    Args:
        content: sections by name; left as it is.
        origin: what messages call it.
        overrides: as in `load_config`.

    Raises:
        ConfigError: it breaks rules: all of them in one message, headed by `origin`.
    """
    changed = copy.deepcopy(dict(content))
    for override in overrides:
        _override(changed, override)
    try:
        return Config.model_validate(changed)
    except ValidationError as error:
        faults = [line for detail in error.errors() for line in _fault(detail)]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{origin}: {count}: " + "; ".join(faults)) from None


def with_section(config: Config, section: str, values: Mapping[str, Any]) -> Config:
    """A config with other values in one of its sections.

    Raises:
        ConfigError: they break rules.
    """
    content = config.model_dump(mode="json")
    return parse_config(content | {section: content[section] | dict(values)}, "the command line")


def find_config(source: str | Path) -> Path:
    """Path of a config: a file as named, or one that espalier ships.

    Raises:
        ConfigError: neither exists.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = {Path(item.name).stem: item for item in resources.files("espalier.configs").iterdir()}
    shipped = {name: item for name, item in shipped.items() if item.name.endswith(".yaml")}
    if path.stem in shipped and path.parent in (Path("."), Path("configs")):
        return Path(str(shipped[path.stem]))
    raise ConfigError(f"no config at {source}: {_unknown(path.stem, sorted(shipped), 'shipped ones are')}")


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"an override must read key.path=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {override!r} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, str):  # YAML 1.1 takes 1e-3 for a string
        try:
            value = float(value)
        except ValueError:
            pass
    *parents, last = key.strip().split(".")
    section = content
    for parent in parents:
        below = section.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{override!r} needs a section {parent}, which holds {below!r}")
        section = below
    section[last] = value
    if parents == ["budget"]:  # a fraction and a number of the same thing replace each other
        section.pop(_REPLACES.get(last, ""), None)


def _fault(detail: ErrorDetails) -> Iterator[str]:
    where = ".".join(str(part) for part in detail["loc"] if part not in ("one", "several"))
    if detail["type"] == "extra_forbidden":
        yield f"{where}: {_unknown(str(detail['loc'][-1]), _keys_at(detail['loc'][:-1]), 'keys here are')}"
    elif detail["type"] == "missing":
        yield f"{where}: is required"
    elif detail["type"] == "value_error":
        prefix = f"{where}: " if where else ""
        for line in detail["msg"].removeprefix("Value error, ").splitlines():
            yield prefix + line
    else:
        hint = ""
        if where.startswith("budget.keep"):
            hint = ": it is the fraction of MACs kept, so write 0.5 to halve them"
        yield f"{where}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}{hint}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _unknown(value: str, names: Sequence[str], otherwise: str = "valid names are") -> str:
    near = difflib.get_close_matches(value, names, n=1)
    return f"unknown name {value!r}, " + (
        f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(names)}"
    )


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
