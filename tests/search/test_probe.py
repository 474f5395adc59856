"""How networks are run: chosen by time, low precision only where it ranks alike, once in the life of a study."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.search import assembly, probe
from espalier.search.assembly import Assembly
from espalier.search.bench import EvaluationSpec
from espalier.search.candidate import Candidate, Score
from espalier.search.config import parse_config
from espalier.search.pipeline import default_storage, run
from espalier.search.prepare import prepare
from espalier.search.probe import Execution, Wish
from espalier.search.progress import Lines, Silent
from espalier.search.rescoring import rescore
from espalier.search.storage import find_study, open_storage
from espalier.search.workers import InProcess

CANDIDATES = [
    Candidate(rung, widths) for rung in (0, 1) for widths in ((6, 8, 10), (3, 4, 5), (1, 1, 1), (6, 1, 9))
]


@pytest.fixture
def many(spec: EvaluationSpec) -> EvaluationSpec:
    """As many images to calibrate on as batches of every size divide."""
    return replace(
        spec, calibration=spec.calibration[:1].repeat(512, 0), calibration_labels=spec.labels[:1].repeat(512)
    )


def timed(
    monkeypatch: pytest.MonkeyPatch, cost: Callable[[Execution], float], low: Sequence[str] = ("bf16",)
) -> list[Execution]:
    """Replaces the clock: a setting takes so many seconds an image. The settings that are timed.

    `low`: the precisions that the processor is built for.
    """
    seen: list[Execution] = []
    monkeypatch.setattr(probe, "low_precisions", lambda device: list(low))

    def took(self: object, setting: Execution) -> float:
        seen.append(setting)
        return cost(setting)

    monkeypatch.setattr(probe._Trial, "_run", took)
    return seen


def agrees(monkeypatch: pytest.MonkeyPatch, rho: float, same: bool) -> None:
    monkeypatch.setattr(probe._Trial, "agrees", lambda *_: (rho, same))


def cost(setting: Execution) -> float:
    """Batches of 128 in channels last and bf16 are best."""
    seconds = {64: 1.1e-3, 128: 1e-3, 256: 1.05e-3}.get(setting.batch_size, 1.2e-3)
    seconds *= 1.5 if setting.memory_format == "contiguous" else 1
    return seconds * {"fp32": 1.0, "bf16": 0.7, "int8": 0.5}[setting.precision]


@pytest.mark.parametrize(
    ("rho", "same", "precision"),
    [(1.0, True, "bf16"), (0.95, True, "bf16"), (0.94, True, "fp32"), (1.0, False, "fp32")],
)
def test_the_fastest_is_taken_and_low_precision_where_it_ranks_alike(
    many: EvaluationSpec, monkeypatch: pytest.MonkeyPatch, rho: float, same: bool, precision: str
) -> None:
    timed(monkeypatch, cost)
    agrees(monkeypatch, rho, same)
    found = probe.probe(many, CANDIDATES, Wish(), "cross_entropy")
    assert found == Execution(
        128,
        "channels_last",
        precision,
        milliseconds=0.7 if precision == "bf16" else 1.0,
        agreement=(("bf16", rho),),
    )
    words = found.words()
    assert f"batches of 128, channels last, {precision}: " in words and f"to {rho:.2f} (Spearman)" in words


def test_another_format_or_precision_must_save_something(
    many: EvaluationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, lambda setting: 1e-3 if setting.memory_format == "channels_last" else 0.97e-3)
    assert probe.probe(many, CANDIDATES, Wish(precision="fp32"), "top1").memory_format == "channels_last"
    timed(monkeypatch, lambda setting: 1e-3 if setting.memory_format == "channels_last" else 0.9e-3)
    assert probe.probe(many, CANDIDATES, Wish(precision="fp32"), "top1").memory_format == "contiguous"
    timed(monkeypatch, lambda setting: 1e-3 if setting.precision == "fp32" else 0.97e-3)
    assert probe.probe(many, CANDIDATES, Wish(), "top1").precision == "fp32"


def test_low_precision_is_not_tried_where_it_is_emulated(
    many: EvaluationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = timed(monkeypatch, cost, low=())
    found = probe.probe(many, CANDIDATES, Wish(), "top1")
    assert (found.precision, found.milliseconds, found.agreement) == ("fp32", 1.0, ())
    assert seen and {setting.precision for setting in seen} == {"fp32"}


@pytest.mark.parametrize(
    ("ranking", "precision", "asked"),
    [({"int8": 1.0}, "int8", ["int8"]), ({"int8": 0.9, "bf16": 1.0}, "bf16", ["int8", "bf16"])],
)
def test_the_fastest_precision_that_ranks_alike_is_taken(
    many: EvaluationSpec,
    monkeypatch: pytest.MonkeyPatch,
    ranking: dict[str, float],
    precision: str,
    asked: list[str],
) -> None:
    timed(monkeypatch, cost, low=("bf16", "int8"))
    monkeypatch.setattr(probe._Trial, "agrees", lambda _, full, low: (ranking[low.precision], True))
    found = probe.probe(many, CANDIDATES, Wish(), "cross_entropy")
    assert (found.precision, [name for name, _ in found.agreement]) == (precision, asked)
    assert all(f"{name} ranks 8 candidates" in found.words() for name in asked)


def test_each_precision_has_a_format_of_its_own(many: EvaluationSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    suited = {"fp32": "contiguous", "int8": "channels_last"}

    def cost(setting: Execution) -> float:
        return (1 if setting.precision == "int8" else 2) * (
            1 if setting.memory_format == suited[setting.precision] else 3
        )

    timed(monkeypatch, cost, low=("int8",))
    agrees(monkeypatch, 1.0, True)
    found = probe.probe(many, CANDIDATES, Wish(), "cross_entropy")
    assert (found.precision, found.memory_format) == ("int8", "channels_last")
    agrees(monkeypatch, 0.0, True)
    found = probe.probe(many, CANDIDATES, Wish(), "cross_entropy")
    assert (found.precision, found.memory_format) == ("fp32", "contiguous")


@pytest.mark.parametrize(
    "wish",
    [Wish(batch_size=7), Wish(memory_format="contiguous"), Wish(precision="bf16"), Wish(64, precision="fp32")],
)
def test_what_is_settled_stays(many: EvaluationSpec, monkeypatch: pytest.MonkeyPatch, wish: Wish) -> None:
    seen = timed(monkeypatch, cost)
    agrees(monkeypatch, 1.0, True)
    found = probe.probe(many, CANDIDATES, wish, "cross_entropy")
    for name in ("batch_size", "memory_format", "precision"):
        given = getattr(wish, name)
        if given != "auto":
            assert getattr(found, name) == given
            assert all(getattr(setting, name) == given for setting in seen[2:])  # two runs warm up


def test_where_nothing_is_open_or_no_pass_is_made_nothing_is_timed(
    spec: EvaluationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = timed(monkeypatch, cost)
    assert probe.probe(spec, [], Wish(16, "contiguous", "bf16"), "top1") == Execution(16, "contiguous", "bf16")
    assert probe.probe(replace(spec, proxy="synflow"), [], Wish(), "top1") == Execution()
    assert not seen


def test_a_proxy_by_the_statistics_of_batches_keeps_their_size(
    many: EvaluationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, cost)
    agrees(monkeypatch, 1.0, True)
    found = probe.probe(replace(many, proxy="batch_statistics"), CANDIDATES, Wish(), "top1")
    assert (found.batch_size, found.precision) == (64, "bf16")


def test_the_agreement_is_that_of_the_scores(spec: EvaluationSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = dict(zip(CANDIDATES, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), strict=True))

    def judged(rough: tuple[float, ...]) -> tuple[float, bool]:
        low = dict(zip(CANDIDATES, rough, strict=True))

        class Recorded:
            def __init__(self, spec: EvaluationSpec, device: str) -> None:
                self._values = low if spec.precision == "bf16" else exact

            def __call__(self, candidate: Candidate, proxy: str) -> Score:
                return Score(0.0, self._values[candidate], 0.0)

        monkeypatch.setattr(probe, "Evaluator", Recorded)
        trial = probe._Trial(spec, CANDIDATES, "cross_entropy", "cpu")
        return trial.agrees(Execution(), Execution(precision="bf16"))

    for rough, rho, same in (
        ((1, 2, 3, 4, 5, 6, 7, 8), 1.0, True),
        ((2, 1, 3, 4, 5, 6, 7, 8), 0.976, False),
        ((1, 2, 4, 3, 5, 6, 8, 7), 0.952, True),
        ((8, 2, 3, 4, 5, 6, 7, 1), 0.0, False),
        ((3, 3, 3, 3, 3, 3, 3, 3), 0.0, False),
    ):
        found, best = judged(rough)
        assert best is same and (found == pytest.approx(rho, abs=1e-3) or not same)


def test_an_execution_from_when_bf16_was_the_only_low_precision() -> None:
    old = {"batch_size": 128, "memory_format": "channels_last", "precision": "bf16", "agreement": 0.98}
    assert Execution.from_json(old) == Execution(128, precision="bf16", agreement=(("bf16", 0.98),))
    assert Execution.from_json({"batch_size": 16}) == Execution(16)


def test_a_probe_of_a_small_network_runs(spec: EvaluationSpec) -> None:
    found = probe.probe(spec, CANDIDATES, Wish(), "cross_entropy")
    assert found.milliseconds is not None and found.milliseconds > 0
    assert Execution.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.of(spec).precision == found.precision


# ------------------------------------------------------------------------------------------------ in a study


def test_a_study_is_probed_once(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    auto = {"batch_size": "auto", "memory_format": "auto", "precision": "auto"}
    chosen = Execution(16, "contiguous", "bf16", milliseconds=0.5, agreement=(("int8", 0.9), ("bf16", 0.99)))
    monkeypatch.setattr(assembly, "probe", lambda *_: chosen)
    first = run(
        parse_config(tiny | {"search": tiny["search"] | auto}, "tiny"), study="s", out=tmp_path, reporter=Lines()
    )
    assert f"{chosen.words()}\n" in capsys.readouterr().out
    url = default_storage(tmp_path)
    study = find_study(open_storage(url, create=False), "s", url)
    assert study is not None
    assert study.user_attrs["espalier:execution"] == chosen.to_json() == first.execution
    assert json.loads((tmp_path / "result.json").read_text())["execution"] == chosen.to_json()

    def never(*_: object) -> Execution:
        raise AssertionError("probed again")

    monkeypatch.setattr(assembly, "probe", never)
    more = {"trials": 8}
    again = run(parse_config(tiny | {"search": tiny["search"] | auto | more}, "tiny"), study="s", out=tmp_path)
    assert again.execution == chosen.to_json() and again.trials == 8
    for number in (0, 7):
        assert rescore(url, "s", number).same


def test_the_probe_runs_where_candidates_do(
    tiny: dict[str, Any], tmp_path: Path, spec: EvaluationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    class Elsewhere(InProcess):
        def map(self, function: Any, shared: Any, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
            monkeypatch.setattr(assembly, "device_here", lambda: "cuda")
            yield from super().map(function, shared, jobs)

    def probed(*question: Any) -> Execution:
        asked.append(question)
        return Execution(32)

    monkeypatch.setattr(assembly, "probe", probed)
    config = parse_config(tiny | {"search": tiny["search"] | {"batch_size": "auto"}}, "tiny")
    parts = Assembly(config, prepare(config), tmp_path, Silent())
    space = parts.space([np.ones(parts.prepared.graph.n_channels)])
    assert parts.probe(spec, space, Elsewhere()) == Execution(32)
    ((found, candidates, wish, measure, device),) = asked
    assert found is spec and len(candidates) == 8
    assert (wish, measure, device) == (parts.wish, config.search.measure, "cuda")
