"""How candidates are run: as the config says, by a fixed rule for the rest, once in the life of a study."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from espalier.search.analysis.rescoring import rescore
from espalier.search.cluster.jobs import InProcess
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Lines, Silent
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import default_storage, run
from espalier.search.study.keys import EXECUTION
from espalier.search.study.storage import find_study, once, open_storage
from espalier.search.tasks.execution import Execution
from tests.search.watched import Stopped, Stops

AUTO = {"batch_size": "auto", "memory_format": "auto", "precision": "auto"}
CPU = torch.device("cpu")


@pytest.mark.parametrize(("built_for", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_the_rule(bf16: Callable[[bool], None], built_for: bool, chosen: str) -> None:
    bf16(built_for)
    assert Execution.asked(AUTO, CPU) == Execution(128, "channels_last", chosen)


@pytest.mark.parametrize(
    "given", [{"batch_size": 7}, {"memory_format": "contiguous"}, {"precision": "bf16"}, {"precision": "fp32"}]
)
def test_what_is_settled_stays(bf16: Callable[[bool], None], given: dict[str, Any]) -> None:
    for built_for in (True, False):
        bf16(built_for)
        rule = Execution.asked(AUTO, CPU)
        assert Execution.asked(AUTO | given, CPU).to_json() == rule.to_json() | given


@pytest.mark.parametrize(
    ("there", "device", "ran"), [(True, "cpu", "int8"), (False, "cpu", "fp32"), (True, "cuda", "fp32")]
)
def test_a_study_does_not_claim_integers_that_are_not_there(
    int8: Callable[[bool], None], there: bool, device: str, ran: str
) -> None:
    int8(there)
    assert Execution.asked(AUTO | {"precision": "int8"}, torch.device(device)).precision == ran


def test_an_execution_of_an_older_study() -> None:
    """0.1 timed passes, and once knew no low precision but bf16."""
    old = {"batch_size": 128, "memory_format": "channels_last", "precision": "bf16", "agreement": 0.98}
    assert Execution.from_json(old) == Execution(128, precision="bf16")
    timed = Execution(16, "contiguous", "int8").to_json() | {"milliseconds": 0.5, "agreement": {"int8": 1.0}}
    assert Execution.from_json(timed) == Execution(16, "contiguous", "int8")
    assert Execution.from_json({"batch_size": 16}) == Execution(16)


def test_it_is_kept_and_said() -> None:
    execution = Execution(16, "contiguous", "bf16")
    assert Execution.from_json(json.loads(json.dumps(execution.to_json()))) == execution
    assert execution.words(of_images=True) == "candidates run in batches of 16, contiguous, bf16"
    assert execution.words(of_images=False) == "candidates run in batches of 16, bf16"


# ------------------------------------------------------------------------------------------------ in a study


def test_what_follows_from_the_rule_is_printed(
    tiny: dict[str, Any],
    tmp_path: Path,
    bf16: Callable[[bool], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bf16(False)
    result = run(
        parse_config(tiny | {"search": tiny["search"] | AUTO}, "tiny"), study="s", out=tmp_path, reporter=Lines()
    )
    assert f"\n{Execution().words(of_images=True)}\n" in capsys.readouterr().out
    assert result.execution == Execution().to_json()
    assert json.loads((tmp_path / "result.json").read_text())["execution"] == Execution().to_json()


def test_a_study_goes_on_as_it_began(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Also one of 0.1, which chose by time what the rule does not choose."""
    url = default_storage(tmp_path)
    asked = tiny | {"search": tiny["search"] | AUTO}
    began = Execution(16, "contiguous", "bf16")
    timed = began.to_json() | {"milliseconds": 0.5, "agreement": {"bf16": 0.99}}
    with pytest.raises(Stopped):
        run(parse_config(asked, "tiny"), study="s", out=tmp_path, reporter=Stops(line="s: "))
    begun = find_study(open_storage(url, create=False), "s", url)
    assert begun is not None and "espalier:execution" not in begun.user_attrs
    assert once(begun, EXECUTION, lambda: timed) == timed
    run(parse_config(asked, "tiny"), study="s", out=tmp_path)

    more = asked | {"search": asked["search"] | {"trials": 8}}
    again = run(parse_config(more, "tiny"), study="s", out=tmp_path)
    study = find_study(open_storage(url, create=False), "s", url)
    assert study is not None
    assert study.user_attrs["espalier:execution"] == timed
    assert again.execution == began.to_json() and again.trials == 8
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 8
    for number in (0, 7):
        assert rescore(url, "s", number).same


def test_the_device_is_that_of_a_worker(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: Callable[[bool], None]
) -> None:
    class Elsewhere(InProcess):
        def map(self, function: Any, shared: Any, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            yield from super().map(function, shared, jobs)

    bf16(False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    config = parse_config(tiny | {"search": tiny["search"] | AUTO}, "tiny")
    prepared = prepare(config)
    assert Experiment(config, prepared, tmp_path, Silent(), InProcess()).asked_execution().precision == "fp32"
    assert Experiment(config, prepared, tmp_path, Silent(), Elsewhere()).asked_execution().precision == "bf16"
