"""The files that ``espalier init`` writes: a commented config, and for a task of one's own a module that runs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from espalier.errors import ConfigError
from espalier.pruning.networks import NETWORKS
from espalier.search.config.fields import unknown
from espalier.search.tasks.classification.data import DATASETS

Limit = Literal["macs", "params", "latency"]
Kind = Literal["classification", "regression"]
OWN = "own"
"""In the place of a data set's name: a task of the user's own."""
IMAGES = {"cifar10": (3, 10), "cifar100": (3, 100), "digits": (1, 10), "fashion-mnist": (1, 10), "mnist": (1, 10)}
"""Data set -> channels of its images, and classes; an image folder says its own."""
_WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


@dataclass(frozen=True)
class Answers:
    """What a user has said.

    Attributes:
        network: a name in the table, or ``package.module:callable``.
        data: a data set, or `OWN`.
        root: folder of the data; None where they need none.
        limit: what the budget limits.
        keep: share of it that is kept.
        workers: candidates at a time.
        shape: of one input, for a task of one's own.
        classes: of an image folder, or a task of one's own; of a regression, numbers that it gives for an input.
        kind: of a task of one's own.
    """

    network: str
    data: str
    root: Path | None
    limit: Limit
    keep: float
    workers: int
    shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    kind: Kind = "classification"


def files_of(answers: Answers, config: Path) -> dict[Path, str]:
    """Path -> text of what is to be written: the config first.

    Raises:
        ConfigError: the config's name makes no name of a module, where one is needed.
    """
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("espalier", "starter"),
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    channels, classes = IMAGES.get(answers.data, (answers.shape[0], answers.classes))
    own, module = answers.data == OWN, f"{config.stem.replace('-', '_')}_task"
    if own and not re.fullmatch(r"[A-Za-z_]\w*", module):
        raise ConfigError(f"{config} gives its task's module the name {module}, which is none: name another file")
    said = vars(answers) | {
        "config": config,
        "own": own,
        "task": module,
        "built_in": answers.network in NETWORKS,
        "shape": answers.shape if own else (channels, *answers.shape[1:]),
        "classes": classes,
        "root": json.dumps(None if answers.root is None else str(answers.root)),
        "words": _WORDS[answers.limit],
    }
    found = {config: templates.get_template("config.yaml.j2").render(said)}
    if own:
        found[config.with_name(f"{module}.py")] = templates.get_template("task.py.j2").render(said)
    return found


# -- what answers must be


def network_of(text: str) -> str:
    """A network as a config names it.

    Raises:
        ConfigError: it is neither in the table nor ``package.module:callable``.
    """
    if text in NETWORKS or re.fullmatch(r"[\w.]+:[\w.]+", text):
        return text
    raise ConfigError(f"a network is a known name or package.module:callable: {unknown(text, list(NETWORKS))}")


def data_of(text: str) -> str:
    """A data set, or `OWN`.

    Raises:
        ConfigError: there is none of that name.
    """
    if text in (known := [*DATASETS, OWN]):
        return text
    raise ConfigError(f"data are a known set, or {OWN} for a task of your own: {unknown(text, known)}")


def kind_of(text: str) -> Kind:
    """What a task of one's own is.

    Raises:
        ConfigError: there is no template for it.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    if text in kinds:
        return kinds[kinds.index(text)]
    raise ConfigError(f"a task of yours begins as {' or '.join(get_args(Kind))}, got {text!r}")


def budget_of(text: str) -> tuple[Limit, float]:
    """What is limited, and the share of it that is kept.

    Raises:
        ConfigError: it does not read so.

    >>> budget_of("latency=0.5")
    ('latency', 0.5)
    """
    limit, _, keep = text.partition("=")
    for known in get_args(Limit):
        if limit == known and re.fullmatch(r"0?\.\d+|1(\.0*)?", keep) and float(keep) > 0:
            return known, float(keep)
    raise ConfigError(
        f"a budget reads macs=0.5, params=0.5 or latency=0.5, with the share that is kept, above 0 and at most 1; "
        f"got {text!r}"
    )


def shape_of(text: str) -> tuple[int, ...]:
    """Shape of an input.

    Raises:
        ConfigError: it does not read so.

    >>> shape_of("3,32,32")
    (3, 32, 32)
    """
    try:
        shape = tuple(int(each) for each in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(f"a shape reads 3,32,32, without the batch, got {text!r}")
    return shape
