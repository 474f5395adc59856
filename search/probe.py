"""The probe: how networks are run fastest where candidates are scored, found in seconds before the first one.

Timed are calibration and scoring passes of one cut network over a small grid: batch sizes first, then the memory
format at the best of them; in full precision, and likewise in each low one that the device is built for. The
fastest is taken that ranks diverse candidates as full precision does. What was chosen belongs to the study: its
trials must be comparable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

import torch

from espalier.persistence import record_from
from espalier.search.bench import EvaluationSpec
from espalier.search.candidate import Candidate, Measure
from espalier.search.evaluation import Evaluator
from espalier.search.precision import low_precisions
from espalier.search.promotion import agreement
from espalier.search.proxies import PROXIES, Healed, use_batch_statistics

AUTO = "auto"
BATCH_SIZES = (32, 64, 128, 256)
"""Images per pass that are tried; with fewer, statistics of maps of one pixel are little more than noise."""
SECONDS = 60.0
"""That the probe may take, about."""
IMAGES, FEWEST_IMAGES = (256, 128, 64), 32
"""To calibrate and to score on, each: as many of these as there is time for."""
GAIN = 0.05
"""Share of the time that another format or precision must save to be taken."""
CANDIDATES = 8
"""That low precision must rank as full precision does."""
SLACK = 0.2
"""A setting that takes longer than the fastest by more than this share is not timed again."""
RUNS = 22 + 2 * CANDIDATES
"""Of one candidate each: to time settings, then to rank, in full precision and in a low one."""
AGREEMENT = 0.95
"""Spearman's correlation that this takes, besides the same best candidate: of eight, two pairs may swap places."""


@dataclass(frozen=True)
class Execution:
    """How networks are run.

    Attributes:
        batch_size: images per pass, at most: batches are as even as can be.
        memory_format: ``channels_last`` or ``contiguous``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        milliseconds: per image of a calibration and a scoring pass; None where nothing was timed.
        agreement: Spearman's correlation with fp32 over some candidates, of each low precision that was asked.
    """

    batch_size: int = 64
    memory_format: str = "channels_last"
    precision: str = "fp32"
    milliseconds: float | None = None
    agreement: tuple[tuple[str, float], ...] = ()

    def of(self, spec: EvaluationSpec) -> EvaluationSpec:
        """The spec, run like this."""
        return replace(spec, batch_size=self.batch_size, memory_format=self.memory_format, precision=self.precision)

    def words(self) -> str:
        """In a line."""
        said = f"batches of {self.batch_size}, {self.memory_format.replace('_', ' ')}, {self.precision}"
        if self.milliseconds is not None:
            said += f": {self.milliseconds:.3g} ms an image to calibrate and to score"
        for low, rho in self.agreement:
            said += f"; {low} ranks {CANDIDATES} candidates as fp32 does to {rho:.2f} (Spearman)"
        return said

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        content = asdict(self) | {"agreement": dict(self.agreement) or None}
        return {key: value for key, value in content.items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`; bf16 was once the only low precision, and its agreement a number."""
        found = content.get("agreement", {})
        agreement = found if isinstance(found, Mapping) else {"bf16": found}
        return record_from(cls, {**content, "agreement": tuple(agreement.items())})


@dataclass(frozen=True)
class Wish:
    """What a user asks for: values, or ``auto``.

    Attributes:
        batch_size: images per pass.
        memory_format: ``channels_last`` or ``contiguous``.
        precision: ``fp32``, ``bf16`` or ``int8``.
    """

    batch_size: int | Literal["auto"] = "auto"
    memory_format: str = AUTO
    precision: str = AUTO

    @property
    def open(self) -> bool:
        """Whether anything is left to the probe."""
        return AUTO in (self.batch_size, self.memory_format, self.precision)

    def unprobed(self) -> Execution:
        """As wished for, and the defaults for the rest."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return Execution(**{name: value for name, value in given.items() if value != AUTO})


def probe(
    spec: EvaluationSpec, candidates: Sequence[Candidate], wish: Wish, measure: Measure, device: str = "cpu"
) -> Execution:
    """Chooses what the wish leaves open.

    Args:
        spec: networks and images; its own settings do not matter.
        candidates: diverse ones, `CANDIDATES` of them; passes of the first are timed.
        wish: what is settled already.
        measure: by which candidates are ranked.
        device: where they are run.
    """
    chosen = wish.unprobed()
    proxy = PROXIES[spec.proxy]
    if not wish.open or not isinstance(proxy, Healed):  # a signal runs no passes
        return chosen
    trial = _Trial(spec, candidates, measure, device)
    sizes = [chosen.batch_size]
    if wish.batch_size == AUTO and use_batch_statistics not in proxy.repairs:  # there it is a part of the proxy
        sizes = [size for size in BATCH_SIZES if size <= trial.images] or sizes
    chosen = full = _fastest(trial, chosen, sizes, wish)
    asked: list[tuple[str, float]] = []
    if wish.precision == AUTO:
        larger = [size for size in sizes if size >= full.batch_size]
        lower = [_fastest(trial, replace(full, precision=low), larger, wish) for low in trial.low_precisions]
        gaining = [low for low in lower if trial.fastest([full, low], gain=GAIN) == low]
        for low in sorted(gaining, key=trial.seconds):
            rho, same = trial.agrees(full, low)
            asked.append((low.precision, round(rho, 4)))
            if same and rho >= AGREEMENT:
                chosen = low
                break
    return replace(chosen, milliseconds=round(1000 * trial.seconds(chosen), 4), agreement=tuple(asked))


def _fastest(trial: _Trial, start: Execution, sizes: Iterable[int], wish: Wish) -> Execution:
    """The fastest setting in the precision of `start`."""
    formats = [Execution.memory_format, "contiguous"] if wish.memory_format == AUTO else [start.memory_format]
    sized = trial.fastest(replace(start, batch_size=size, memory_format=formats[0]) for size in sizes)
    return trial.fastest([replace(sized, memory_format=each) for each in formats], gain=GAIN)


class _Trial:
    """Times passes of the first candidate, and ranks them all; what a setting once took stays known."""

    def __init__(
        self, spec: EvaluationSpec, candidates: Sequence[Candidate], measure: Measure, device: str
    ) -> None:
        self._candidates, self._measure, self._device = candidates, measure, device
        self._found = dict[Execution, list[float]]()
        self.low_precisions = low_precisions(torch.device(device))
        spec = replace(spec, race=None)
        self._spec = spec.first(FEWEST_IMAGES, FEWEST_IMAGES)
        first = min(self._run(Execution()) for _ in range(2))  # the first one warms up
        images = next((n for n in IMAGES if n <= SECONDS / RUNS / first), FEWEST_IMAGES)
        self._spec = spec.first(images, images)
        self.images = min(images, max(len(spec.calibration), len(spec.scoring)))

    def fastest(self, settings: Iterable[Execution], gain: float = 0.0) -> Execution:
        """The setting of least time; another than the first only if it saves that share of the first's."""
        asked = list(settings)
        self._time(asked)
        least = min(map(self.seconds, asked))
        self._time([setting for setting in asked if self.seconds(setting) <= (1 + SLACK) * least])
        best = min(asked, key=self.seconds)
        return best if self.seconds(best) < (1 - gain) * self.seconds(asked[0]) else asked[0]

    def seconds(self, setting: Execution) -> float:
        """Per image, the least so far: what else the machine does only adds."""
        return min(self._found.get(setting, [math.inf]))

    def _time(self, settings: Iterable[Execution]) -> None:
        for setting in settings:
            self._found.setdefault(setting, []).append(self._run(setting))

    def _run(self, setting: Execution) -> float:
        alone = self._device == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter  # the one hardly sees what else the machine does
        evaluator = Evaluator(setting.of(self._spec), self._device)
        start = clock()
        evaluator(self._candidates[0], "recalibrated")
        return (clock() - start) / max(1, len(self._spec.scoring))

    def agrees(self, full: Execution, low: Execution) -> tuple[float, bool]:
        """Rank correlation of two ways to run the candidates, and whether the best is the same."""
        values = []
        for setting in (full, low):
            evaluator = Evaluator(setting.of(self._spec), self._device)
            scores = [evaluator(candidate, "recalibrated") for candidate in self._candidates]
            values.append([score.value(self._measure) for score in scores])
        exact, rough = values
        same = rough[exact.index(max(exact))] == max(rough)
        rho = agreement(exact, rough)
        return (rho, same) if rho == rho else (0.0, False)
