"""Writes docs/methods.md, what a config can name and where it was published, from the tables: ``make methods``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from espalier.pruning.gates.gates import GATES
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.importance.normalizations import NORMALIZATIONS
from espalier.pruning.importance.regularizers import REGULARIZERS
from espalier.pruning.paper import Paper
from espalier.pruning.supernet import shared_weights as shared
from espalier.pruning.supernet import weight_generator
from espalier.search.evaluation.proxies import PROXIES, Healed, Signal
from espalier.search.samplers import SAMPLERS
from espalier.search.samplers.sampler_table import Entry
from espalier.search.tasks.task import NEEDS
from espalier.search.training.schedules import SCHEDULES

FILE = Path(__file__).parent / "methods.md"
SUPPLIES = {"loss": "a loss", "batches": "batches of inputs", "generator": "a seed"}
HEAD = """# Methods

What a config can name, where it was published, what it needs, and where its code is. `make methods` writes
this page from the tables. [OICSR](oicsr.md) says how criteria, normalisations and penalties are used.
[The search](search.md) says the same of samplers and proxies.
"""
ROW = "| name | what it is | paper | needs | code |\n|---|---|---|---|---|\n"

Row = tuple[str, str, Paper | None, str, Any]
"""Name, what it is, paper, what it needs, and the object that its code defines."""


def first_line(thing: Any) -> str:
    """Of a docstring, shapes left out."""
    text = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r":? ?\(n_channels,\)", "", text).replace(" ,", ",")


def criteria() -> Iterable[Row]:
    """Of `CRITERIA`."""
    for name, entry in CRITERIA.items():
        needs = [SUPPLIES[need] for need in entry.needs]
        needs += [f"{entry.iterations} passes"] if entry.iterations > 1 else []
        yield name, first_line(entry.function), entry.paper, ", ".join(needs), entry.function


def normalizations() -> Iterable[Row]:
    """Of `NORMALIZATIONS`."""
    for name, entry in NORMALIZATIONS.items():
        yield name, first_line(entry.function), entry.paper, "", entry.function


def penalties() -> Iterable[Row]:
    """Of `REGULARIZERS`."""
    for name, kind in REGULARIZERS.items():
        beside = [
            f"`{key}`"
            for key in inspect.signature(kind).parameters
            if key not in ("graph", "weighting", "with_norms")
        ]
        needs = beside + (["subgradients"] if kind.subgradients_only else [])
        yield name, first_line(kind), kind.paper, ", ".join(needs), kind


def gates() -> Iterable[Row]:
    """Of `GATES`."""
    for name, kind in GATES.items():
        needs = ["a way to train"] + [f"at most {kind.steps} steps"] * (kind.steps is not None)
        yield name, first_line(kind), kind.paper, ", ".join(needs + ["frozen weights"] * kind.freezes), kind


def samplers() -> Iterable[Row]:
    """Of `SAMPLERS`."""
    for name, entry in SAMPLERS.items():
        code = entry.make if inspect.isclass(entry.make) else Entry
        yield name, entry.words or first_line(entry.make), entry.paper, "", code


def schedules() -> Iterable[Row]:
    """Of `SCHEDULES`."""
    for name, schedule in SCHEDULES.items():
        needs = ", ".join(NEEDS[need] for need in schedule.needs)
        yield name, first_line(type(schedule)), schedule.paper, needs, type(schedule)


def proxies() -> Iterable[Row]:
    """Of `PROXIES`."""
    for name, entry in PROXIES.items():
        needs = ", ".join(NEEDS[need] for need in entry.needs)
        if isinstance(entry, Signal):
            yield name, first_line(entry.measure), entry.paper, needs, entry.measure
        else:
            assert isinstance(entry, Healed)
            steps = re.fullmatch(r"sgd(\d+)", name)
            words = (
                f"{steps[1]} steps of SGD, then recalibrated."
                if steps
                else " ".join(first_line(repair) for repair in entry.repairs) or "Nothing is done."
            )
            yield name, words, entry.paper, needs, Healed


def shared_weights() -> Iterable[Row]:
    """With which the `supernet` of a config is trained."""
    needs = NEEDS["training"]
    yield "shared", "Weights that all widths share.", shared.PAPER, needs, shared.SharedPasses
    words = "Weights that a second network makes for all widths (`supernet.generator`)."
    yield "generated", words, weight_generator.PAPER, needs, weight_generator.WeightGenerator


SECTIONS = {
    "Criteria (`search.criterion`, `prune.criterion`)": criteria,
    "Normalisations (`search.normalization`, `prune.normalization`)": normalizations,
    "Penalties (`regularizer.name`)": penalties,
    "Gates (`compare.methods`)": gates,
    "Schedules (`prune.schedule`, `compare.methods`)": schedules,
    "Samplers (`search.sampler`)": samplers,
    "Proxies (`search.proxy`, `search.ladder`)": proxies,
    "Shared weights (`supernet`)": shared_weights,
}
"""Title -> rows."""


def page() -> str:
    """The page, the same for the same tables."""
    parts = [HEAD]
    for title, rows in SECTIONS.items():
        parts.append(f"\n## {title}\n\n{ROW}" + "".join(map(line, rows())))
    return "".join(parts)


def line(row: Row) -> str:
    """A row of a table."""
    name, words, paper, needs, code = row
    module = code.__module__.removeprefix("espalier.").replace(".", "/")
    cited = "" if paper is None else f"[{paper}]({paper.url})" if paper.url else str(paper)
    cells = [f"`{name}`", words, cited, needs, f"[{module}.py](../{module}.py)"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
