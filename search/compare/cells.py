"""What is finished of a comparison, in files: a cell is a budget, a method and a seed, and is never run again."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from espalier.errors import StudyMismatch
from espalier.persistence import record_from
from espalier.pruning.runtimes.timing import Latency
from espalier.search.files.json_files import json_once, read_json, write_json
from espalier.search.methods import DENSE, Choice
from espalier.search.study.storage import differences

Kept = TypeVar("Kept")

PLAN, PLAN_PARTS = "plan.json", "plan"
ASKED = "asked.json"
"""What is compared: for whoever looks at a comparison that is under way."""


@dataclass(frozen=True)
class Cell:
    """One place of the table.

    Attributes:
        budget: its name, `Budget.key`; empty for the dense network.
        method: name in `METHODS` or `CONTROLS`.
        seed: of search and fine-tuning; 0 for the dense network.
    """

    budget: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Folder and file."""
        return DENSE if self.method == DENSE else f"{self.budget}/{self.method}-seed{self.seed}"


@dataclass(frozen=True)
class Timed:
    """A network beside the dense one, timed in turn in one runtime with one batch size.

    Attributes:
        own: of the network.
        dense: of the dense network.
    """

    own: Latency
    dense: Latency

    @property
    def key(self) -> str:
        """Runtime and batch size."""
        return f"{self.own.runtime}-{self.own.batch}"


@dataclass(frozen=True)
class Measured:
    """A finished cell.

    Attributes:
        budget: name of it.
        method: name of it.
        seed: of search and fine-tuning.
        macs: per image.
        params: number of parameters.
        kept: share of the dense network's MACs.
        strength: regularisation strength of the rung that the network was cut from; 0 of new weights.
        rung: number of that rung.
        widths: group name -> channels kept.
        criterion: that ranks channels inside their groups.
        value: by the search's proxy and measure; the greater the better; NaN of new weights.
        held_out_before: by the task's metric, as all of these, on the scoring examples by the search's proxy; NaN
            of new weights.
        held_out_after: on the judging examples after fine-tuning.
        before: on the test split, BN recalibrated, before fine-tuning; None where weights were new.
        after: likewise after it.
        latency: milliseconds of one pass, median of repeats on one thread, in the memory format that is faster.
        dense_latency: likewise of the dense network, timed in turn with it.
        layout: that memory format; empty in results of 0.1, which timed no other than that of the images.
        dense_layout: likewise of the dense network.
        timings: key -> how long it takes in each runtime, with each batch size, the first of which `latency` is;
            empty in results that are older.
        evaluations: candidates that were scored to choose this one.
        search_seconds: of the processor, that choosing took.
        finetune_seconds: of the processor.
        history: value of each trial of a search, in order.
        importance: parameter of a search -> its share.
        right: which test examples are right after fine-tuning, or a number for each, as `packed` writes it.
    """

    budget: str
    method: str
    seed: int
    macs: int
    params: int
    kept: float
    strength: float
    rung: int
    widths: Mapping[str, int]
    criterion: str
    value: float
    held_out_before: float
    held_out_after: float
    before: float | None
    after: float
    latency: float
    dense_latency: float
    evaluations: int
    search_seconds: float
    finetune_seconds: float
    history: tuple[float, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    right: str = ""
    layout: str = ""
    dense_layout: str = ""
    timings: Mapping[str, Timed] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` gives."""
        timings = {
            key: Timed(*(record_from(Latency, each[whose]) for whose in ("own", "dense")))
            for key, each in content.get("timings", {}).items()
        }
        known = {key: math.nan for key in _WRITTEN_AS_NULL if content.get(key, 0.0) is None}
        history = tuple(-math.inf if value is None else value for value in content["history"])
        return record_from(cls, {**content, **known, "history": history, "timings": timings})


_WRITTEN_AS_NULL = ("value", "held_out_before", "held_out_after")
"""What is null in JSON where it is not finite."""

NUMBERS = "float32:"
"""What `packed` text begins with that holds numbers, not bits."""


def packed(examples: npt.NDArray[Any] | None) -> str:
    """Numbers of examples as text: bits of those that are right or wrong; none where there are none."""
    if examples is None:
        return ""
    if examples.dtype != np.bool_:
        return NUMBERS + base64.b64encode(examples.astype(np.float32).tobytes()).decode("ascii")
    return f"{len(examples)}:{base64.b64encode(np.packbits(examples).tobytes()).decode('ascii')}"


def unpacked(text: str, count: int) -> npt.NDArray[Any]:
    """From `packed`; of bits so many where the text, which is older, does not say."""
    if text.startswith(NUMBERS):
        return np.frombuffer(base64.b64decode(text.removeprefix(NUMBERS)), dtype=np.float32)
    known, _, coded = text.rpartition(":")
    bits = np.unpackbits(np.frombuffer(base64.b64decode(coded), dtype=np.uint8), count=int(known or count))
    return bits.astype(np.bool_)


class Store:
    """The folder of a comparison.

    Args:
        folder: of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan: dict[str, Any] = read_json(folder / PLAN) or {"seconds": {}}
        self._agreed: dict[str, Any] = {}

    def agree(self, name: str, fingerprint: Mapping[str, Any]) -> None:
        """Holds the settings that cells depend on, under a name in the plan; `settle` keeps them.

        Raises:
            StudyMismatch: the folder's cells were made with others.
        """
        self._agreed[name] = dict(fingerprint)
        if differing := differences(self.plan.get(name, fingerprint), fingerprint):
            raise StudyMismatch(
                f"the comparison in {self.folder} was made with other settings: {differing}; choose another --out"
            )

    def settle(self) -> None:
        """Keeps what was agreed, for as long as the folder is there.

        Raises:
            StudyMismatch: another process has begun the comparison meanwhile, with other settings.
        """
        for name, fingerprint in self._agreed.items():
            self.once(name, partial(dict[str, Any], fingerprint))
            self.agree(name, fingerprint)

    def once(self, name: str, make: Callable[[], Kept]) -> Kept:
        """What the plan holds by a name; made, and kept, where it holds nothing.

        Of several processes that make it at a time one decides: there is one file for each name.
        """
        if name not in self.plan:
            part = self.folder / PLAN_PARTS / f"{name.replace(':', '-')}.json"
            self.plan[name] = json_once(part, lambda: {name: make()})[name]
            self.write_plan()
        found: Kept = self.plan[name]
        return found

    @property
    def begun(self) -> bool:
        """Whether a cell is finished."""
        return any((self.folder / "cells").rglob("*-seed*.json"))

    def write_plan(self) -> None:
        """Keeps the plan."""
        write_json(self.folder / PLAN, self.plan)

    def choice(self, cell: Cell) -> Choice | None:
        """What was chosen for a cell, if it was."""
        content = read_json(self.folder / "choices" / f"{cell.key}.json")
        return None if content is None else Choice.from_json(content)

    def choose(self, cell: Cell, choice: Choice) -> None:
        """Keeps what was chosen."""
        write_json(self.folder / "choices" / f"{cell.key}.json", choice.to_json())

    def measured(self, cell: Cell) -> Measured | None:
        """A cell that is finished, or None."""
        content = read_json(self.folder / "cells" / f"{cell.key}.json")
        return None if content is None else Measured.from_json(content)

    def finish(self, cell: Cell, measured: Measured) -> None:
        """Keeps a finished cell."""
        write_json(self.folder / "cells" / f"{cell.key}.json", asdict(measured))
