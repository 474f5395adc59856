"""Configs: YAML on the outside, checked by pydantic; the rest of espalier never sees one.

A file with faults is refused whole, with all of them listed, each with its path and the nearest valid name.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from espalier.errors import ConfigError
from espalier.search.config.budget_sections import REPLACES, BudgetConfig
from espalier.search.config.fields import CLASSIFICATION, GIVEN, Section, unknown
from espalier.search.config.search_sections import ClusterConfig, CompareConfig, PruneConfig, SearchConfig
from espalier.search.config.training_sections import (
    AugmentConfig,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    RecipeConfig,
    RegularizerConfig,
    SupernetConfig,
    TaskConfig,
)
from espalier.search.study.keys import OLDER

OF_THE_TASK = "the task's own"
"""In the place of a data set's name: the task brings its data."""

OF_ONE_RUN: dict[str, Any] = {"address": None, "time_budget": None}
"""Keys of the section ``cluster`` that a study does not keep."""


class Config(Section):
    """A whole run."""

    model: ModelConfig = Field(description="The dense network.")
    task: TaskConfig = Field(default=TaskConfig(), description="What the network is for.")
    data: DataConfig = Field(description="The data set and its splits.")
    training: RecipeConfig = Field(default=RecipeConfig(), description="How the dense network is trained.")
    regularizer: RegularizerConfig = Field(
        default=RegularizerConfig(), description="The penalty, and the networks trained with it."
    )
    budget: BudgetConfig = Field(description="What the pruned network may cost.")
    search: SearchConfig = Field(default=SearchConfig(), description="The search over widths.")
    supernet: SupernetConfig = Field(
        default=SupernetConfig(), description="Weights that candidates, or their fine-tunings, begin with."
    )
    prune: PruneConfig = Field(default=PruneConfig(), description="The loop of espalier prune.")
    finetune: FinetuneConfig = Field(default=FinetuneConfig(), description="How pruned networks are fine-tuned.")
    compare: CompareConfig = Field(default=CompareConfig(), description="What espalier compare compares.")
    workers: Annotated[int, Field(ge=0)] = Field(
        default=2,
        description=(
            "Ray workers, each of which evaluates one candidate at a time; 0 runs everything in this "
            "process, without Ray."
        ),
    )
    cluster: ClusterConfig = Field(
        default=ClusterConfig(), description="Where candidates are evaluated, and for how long."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of everything that is drawn.")

    @model_validator(mode="before")
    @classmethod
    def _of_the_task(cls, content: Any) -> Any:
        """A task that is not built in brings its own data, and one measure."""
        task = content.get("task") if isinstance(content, Mapping) else None
        if not isinstance(task, Mapping) or task.get("name", CLASSIFICATION) == CLASSIFICATION:
            return content
        search = content.get("search", {})
        if isinstance(search, Mapping):
            search = {"measure": "score"} | dict(search)
        return {"data": {"name": OF_THE_TASK}} | dict(content) | {"search": search}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        from espalier.search.methods import SCRATCH, methods_named
        from espalier.search.samplers import FRONT_SAMPLERS
        from espalier.search.samplers.agents import PRETRAINED
        from espalier.search.tasks.classification.measures import MEASURES

        faults = []
        if self.task.name == CLASSIFICATION and self.search.measure not in MEASURES:
            faults.append(f"search.measure: {unknown(self.search.measure, list(MEASURES))}")
        if self.task.name != CLASSIFICATION and ":" not in self.task.name and self.task.name != GIVEN:
            known = f"{CLASSIFICATION}, or package.module:callable"
            faults.append(f"task.name: unknown name {self.task.name!r}: valid names are {known}")
        if self.budget.front and self.search.sampler not in FRONT_SAMPLERS:
            able = ", ".join(FRONT_SAMPLERS)
            faults.append(f"search.sampler: {self.search.sampler} searches under one budget; a front takes {able}")
        if self.search.agent.pretrained is not None and self.search.sampler not in PRETRAINED:
            able = ", ".join(PRETRAINED)
            faults.append(f"search.agent.pretrained: {self.search.sampler} begins with no agent; {able} can")
        searches = [name for name, method in methods_named(self.compare.methods).items() if method.searches]
        if SCRATCH in self.compare.methods and not searches:
            faults.append(f"compare.methods: {SCRATCH} takes the widths of a search, and none is named")
        faults += self._faults_of_shared_weights() if self.supernet.epochs else []
        if self.supernet.generator and not self.supernet.epochs:
            faults.append("supernet.generator: nothing is generated in 0 epochs, set supernet.epochs")
        if self.budget.depth and self.finetune.attention:
            faults.append("finetune.attention: it compares maps of layers that budget.depth may take out")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults_of_shared_weights(self) -> list[str]:
        """What cannot be had with a supernet."""
        faults = []
        why = "layers are solved for what the whole network gives, and shared weights are not trained to be whole"
        if self.finetune.reconstruct and self.supernet.used_for != "scores":
            faults.append(f"finetune.reconstruct: {why}")
        for proxy in (self.search.proxy, *self.search.ladder):
            if proxy.startswith("reconstructed") and self.supernet.scores:
                faults.append(f"supernet.used_for: the proxy {proxy} needs other weights: {why}")
        if self.search.proxy == "parameters" and self.supernet.used_for == "scores":
            faults.append("supernet.used_for: the proxy parameters reads no weights")
        if self.finetune.processes > 1:
            faults.append("finetune.processes: shared weights are trained by one process")
        return faults

    def fingerprint(self) -> dict[str, Any]:
        """Path -> value of every key on which the trials of a study depend.

        Left out: how many trials are asked for, what is done with the best of them, the loop of `espalier prune`,
        where and how long candidates are evaluated, and where files lie. The recipe of fine-tuning counts where
        candidates take some of its steps, and all of it but the seeds where it chooses the strength.
        """
        from espalier.search.evaluation.proxies import STEPS

        kept = self.model_dump(mode="json", exclude={"workers", "cluster", "prune", "compare"})
        if self.budget.limits_latency:
            del kept["budget"]["device"]["networks"], kept["budget"]["device"]["model"]  # the study keeps the model
        else:
            for key in ("latency", "max_latency_ms", "device"):
                del kept["budget"][key]
        if self.budget.keeps and not self.budget.front and not self.supernet.epochs:
            kept["budget"]["keep"] = self.budget.keeps[-1]  # the others only share what was found under it
        chooses = self.search.strength == "finetuned" and self.regularizer.most_rungs > 1
        for key in ("seeds", "selection_seeds") if chooses else ("epochs", "seeds", "selection_seeds", "halvings"):
            del kept["finetune"][key]
        if not self.finetune.reconstruct or not chooses:
            del kept["finetune"]["reconstruct"]
        if not self.supernet.epochs:
            kept["supernet"] = SupernetConfig().model_dump(mode="json")
        if not chooses and self.search.proxy not in STEPS and not self.supernet.epochs:
            del kept["finetune"]
        if self.regularizer.strengths != "auto":
            del kept["regularizer"]["costs"]
        for key in ("trials", "finalists", "ladder", "promote"):
            del kept["search"][key]
        del kept["data"]["root"], kept["model"]["weights"]
        if self.task.name == CLASSIFICATION:
            del kept["task"]  # 0.1 knew no other
        if self.search.agent.pretrained is not None:
            kept["search"]["agent"]["pretrained"] = _digest(self.search.agent.pretrained)
        return dict(_flatten(kept))


def comparable(wanted: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that an older one can be held against.

    A key that is newer than the study does not count where it says what the study did.

    0.1 left out keys of fine-tuning that chose the strength. Whether they count follows from other keys, so that
    none is overlooked where both fingerprints are of today.

    Args:
        wanted: the fingerprint of now.
        made: the one on record.
    """
    sections: dict[str, Section] = {
        "data.augment": AugmentConfig(),
        "training": RecipeConfig(),
        "regularizer": RegularizerConfig(),
        "search": SearchConfig(),
        "supernet": SupernetConfig(),
    }
    defaults = dict(_flatten({name: section.model_dump(mode="json") for name, section in sections.items()})) | OLDER

    def counts(key: str, value: Any) -> bool:
        if key in made or key == "finetune.reconstruct":  # which is there where it is asked for
            return True
        return not (key.startswith("finetune.") or (key in defaults and defaults[key] == value))

    return {key: value for key, value in wanted.items() if counts(key, value)}


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
        content, twice = _read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections such as model: and data:, got {type(content).__name__}")
    faults = [f"{key}: is written twice, in line {one} and line {other}" for key, one, other in twice]
    return _parse(content, str(source), overrides, faults)


def settings_of(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    otherwise: str = "config",
    workers: int | None = None,
    address: str | None = None,
) -> tuple[Config, str]:
    """A config, and what it is called.

    Args:
        config: path of a YAML file, the name of a shipped one, or the settings themselves.
        overrides: as in `load_config`.
        otherwise: what settings without a file are called.
        workers: in the place of the config's; None leaves it.
        address: of a Ray cluster, likewise.

    Raises:
        ConfigError: as `load_config`.
    """
    if isinstance(config, Mapping):
        settings, name = parse_config(config, "the config", overrides), otherwise
    else:
        settings, name = load_config(config, overrides), Path(config).stem
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    if address is not None:
        settings = with_section(settings, "cluster", {"address": address})
    return settings, name


def parse_config(content: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> Config:
    """Checks the content of a config.

    Args:
        content: sections by name; left as it is.
        origin: what messages call it.
        overrides: as in `load_config`.

    Raises:
        ConfigError: it breaks rules: all of them in one message, headed by `origin`.
    """
    return _parse(content, origin, overrides, [])


def _parse(content: Mapping[str, Any], origin: str, overrides: Sequence[str], faults: list[str]) -> Config:
    """As `parse_config`; `faults` are those that were found before."""
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(f"overrides is a list of texts, as ['search.trials=100'], got {overrides!r}")
    changed, faults = copy.deepcopy(dict(content)), list(faults)
    for override in overrides:
        faults += _override(changed, override)
    try:
        config = Config.model_validate(changed)
    except ValidationError as error:
        faults += [line for detail in error.errors() for line in _fault(detail)]
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{origin}: {count}: " + "; ".join(faults))
    return config


def _read_yaml(text: str) -> tuple[Any, list[tuple[str, int, int]]]:
    """What YAML says; and of every key that a mapping has twice, path and both lines: YAML would take the last."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, []
        twice = list(_twice(loader, root, "", set()))
        return loader.construct_document(root), twice
    finally:
        loader.dispose()


def _twice(loader: yaml.SafeLoader, node: yaml.Node, path: str, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    if id(node) in seen:  # an alias, which may hold itself
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # what it brings gives way to the mapping's own keys
                continue
            name, line = str(loader.construct_object(key, deep=True)), key.start_mark.line + 1
            below = f"{path}.{name}" if path else name
            if name in lines:
                yield below, lines[name], line
            lines.setdefault(name, line)
            yield from _twice(loader, value, below, seen)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _twice(loader, value, f"{path}.{number}", seen)


def recorded(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a study keeps it, with what it did where it is older than a key.

    What is of one run alone is left out, whatever the storage says: nobody joins a cluster by its address there.
    """
    found = copy.deepcopy(dict(content))
    for path, value in OLDER.items():
        section, _, key = path.partition(".")
        if isinstance(found.get(section), dict):
            found[section].setdefault(key, value)
    if isinstance(found.get("cluster"), dict):
        found["cluster"] |= OF_ONE_RUN
    return found


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
    shipped = shipped_configs()
    for name, file in shipped.items():
        if str(source) in (name, f"configs/{name}.yaml"):
            return file
    if path.stem in shipped:
        raise ConfigError(f"no config at {source}: the shipped one is named {path.stem}, without folder or suffix")
    if path.is_dir():
        raise ConfigError(f"no config at {source}: it is a folder")
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    names = ", ".join(sorted(shipped))
    known = f"did you mean the shipped {near[0]}?" if near else f"there is no such file; shipped ones are {names}"
    raise ConfigError(f"no config at {source}: {known}")


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every config that espalier ships, in the order of the alphabet."""
    files = (Path(str(item)) for item in resources.files("espalier.configs").iterdir())
    return {file.stem: file for file in sorted(files) if file.suffix == ".yaml"}


def _override(content: dict[str, Any], override: str) -> list[str]:
    """Sets a key; returns the faults of a value that is a mapping."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"an override must read key.path=value, got {override!r}")
    try:
        value, twice = _read_yaml(text)
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
        section.pop(REPLACES.get(last, ""), None)
    return [f"{key.strip()}.{below}: is written twice in {override!r}" for below, _, _ in twice]


def _fault(detail: ErrorDetails) -> Iterator[str]:
    parts = [str(part) for part in detail["loc"] if part not in ("one", "several", "auto", "numbers")]
    where = ".".join(part if part.isprintable() else repr(part) for part in parts)
    limits = {
        most.removeprefix("max_"): (share, most) for share, most in REPLACES.items() if most.startswith("max_")
    }
    share, most = limits.get(parts[-1].removeprefix("max_"), ("", "")) if parts[:-1] == ["budget"] else ("", "")
    if detail["type"] == "extra_forbidden" and share:
        yield f"{where}: write budget.{share} for a share of the dense network's, or budget.{most} for a number"
    elif detail["type"] == "extra_forbidden":
        yield f"{where}: {unknown(str(detail['loc'][-1]), _keys_at(detail['loc'][:-1]), 'keys here are')}"
    elif detail["type"] == "missing":
        yield f"{where}: is required"
    elif detail["type"] == "value_error":
        prefix = f"{where}: " if where else ""
        for line in detail["msg"].removeprefix("Value error, ").splitlines():
            yield prefix + line
    else:
        hint = ""
        if detail["type"] in ("tuple_type", "list_type"):
            yield f'{where}: must be a list, such as "[1, 2]" or "[one, two]", got {detail["input"]!r}'
            return
        if where.startswith("budget.keep"):
            hint = ": it is the fraction of MACs kept, so write 0.5 to halve them"
        elif share:
            hint = f": a share is written budget.{share}"
        yield f"{where}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}{hint}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    else:
        yield path, value
