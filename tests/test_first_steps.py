"""``espalier configs``, ``init`` and ``doctor``: what a newcomer begins with."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
import torch
from torch import nn

from espalier import cli
from espalier.doctor import rehearsal
from espalier.doctor.machine import extras
from espalier.doctor.rehearsal import Rehearsal, Training, _Watch, estimates, halved, slots
from espalier.search.config.loading import load_config, shipped_configs
from espalier.search.study.storage import open_storage


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs the command in this process, in a folder of its own."""
    for variable in ("OPTUNA_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["espalier", *arguments])
        monkeypatch.setitem(cli._options, "debug", False)
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return Answer(code, *capfd.readouterr())

    yield run
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


# ------------------------------------------------------------------------------------------------ configs


def test_the_shipped_configs_are_listed_with_their_length(command: Command) -> None:
    answer = command("configs")
    assert answer.code == 0 and len(shipped_configs()) == 5
    for name in shipped_configs():
        assert re.search(rf"^ *{name} +ResNet-\d+ on .*, in .*\b(minutes|hours?) on", answer.out, re.MULTILINE), (
            name
        )


def test_a_shipped_config_is_copied_and_nothing_is_replaced(command: Command, tmp_path: Path) -> None:
    assert "next: espalier search digits.yaml" in command("configs", "copy", "digits").out
    copied = tmp_path / "digits.yaml"
    assert copied.read_bytes() == shipped_configs()["digits"].read_bytes()
    assert load_config(copied) == load_config("digits")
    copied.write_text("mine")
    answer = command("configs", "copy", "digits")
    assert answer.code == 2 and "digits.yaml is there already: name another file, or replace it" in answer.err
    assert copied.read_text() == "mine"
    assert command("configs", "copy", "digits", "--force").code == 0 and copied.read_text() != "mine"
    assert command("configs", "copy", "cifar10_resnet56", "own.yaml").code == 0
    assert load_config("own.yaml").model.name == "resnet56"
    assert "did you mean 'digits'?" in command("configs", "copy", "digit").err
    assert "the folder none is not there" in command("configs", "copy", "digits", "none/x.yaml").err


# ------------------------------------------------------------------------------------------------- doctor


TINY = """
model:
  name: espalier.pruning.networks:CifarResNet
  kwargs: {depth: 8, width: 4, in_channels: 1, num_classes: 10}
data: {name: digits, search_images: 300, train_images: 256}
training: {epochs: 2, batch_size: 32}
regularizer: {strengths: [0.0, 0.01], epochs: 1}
budget: {keep: 0.4}
search: {sampler: random, trials: 4, scoring_images: 64, calibration_images: 64, finalists: 1}
finetune: {epochs: 0.5, batch_size: 32, seeds: 1}
workers: 0
"""


def stops(answer: Answer) -> list[str]:
    """The lines that name what would stop a search."""
    return re.findall(r"stops: (.*?) *$", answer.out, re.MULTILINE)


def test_the_doctor_looks_at_the_machine_and_leaves_nothing(command: Command, tmp_path: Path) -> None:
    answer = command("doctor")
    assert answer.code == 0 and answer.err == "" and "Nothing here would stop a search." in answer.out
    for subject in ("cores", "memory", "GPU", "bf16", "runtimes +eager", "extras", "Ray", "storage", "run folder"):
        assert re.search(rf"^{subject}", answer.out, re.MULTILINE), subject
    assert "sqlite:///runs/mine/study.db can be opened and written to" in answer.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["all.db", "all.log"])
def test_a_storage_is_as_it_was(command: Command, tmp_path: Path, storage: str) -> None:
    assert command("doctor", "--storage", storage).code == 0 and list(tmp_path.iterdir()) == []
    study = optuna.create_study(study_name="mine", storage=open_storage(storage, create=True))
    assert command("doctor", "--storage", storage).code == 0
    assert optuna.get_all_study_names(study._storage) == ["mine"]


def test_what_would_stop_a_search_is_said(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "garbage.db").write_bytes(b"no database at all" * 50)
    (tmp_path / "file").touch()
    answer = command("doctor", "--storage", "garbage.db", "--out", "file/run", "--address", "127.0.0.1:1")
    ray, folder, storage = stops(answer)
    assert answer.code == 1 and "3 of these would stop it" in answer.out
    assert "nothing answers at" in ray and "RAY_ADDRESS" in ray
    assert "cannot make the run folder file/run" in folder and "cannot open the storage" in storage
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert len(stops(command("doctor"))) == 1 and command("doctor", "--workers", "0").code == 0
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 60}")
    (ray,) = stops(command("doctor"))
    assert "set RAY_TMPDIR to a folder whose path is" in ray
    shorter = int(re.findall(r"is (\d+) bytes shorter", ray)[0])
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * (60 - shorter)}")
    assert command("doctor").code == 0


def test_the_doctor_tries_a_config(command: Command, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    answer = command("doctor", "tiny.yaml")
    assert answer.code == 0 and answer.err == "", answer
    assert "parameters" in answer.out and "256 training, 300 held-out, 359 test" in answer.out
    for stage in ("dense network: 16 steps", "strengths: 1 x 8 steps", "choice of strength: 6 x 4 steps"):
        assert f"{stage} x " in answer.out, stage
    assert "search: 4 candidates and up to 1 again x " in answer.out
    assert "fine-tuning: 5 x 4 steps x " in answer.out and "an estimate from a few measured steps" in answer.out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_missing_data_and_weights_are_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    answer = command("doctor", "tiny.yaml", "data.name=cifar10", "data.root=nowhere", "model.weights=none.pt")
    data, weights = stops(answer)
    assert answer.code == 1 and "nowhere is no folder" in data and "none.pt, which does not exist" in weights
    (budget,) = stops(command("doctor", "tiny.yaml", "budget.keep=0.001"))
    assert "cannot be reached" in budget


def test_a_training_of_ones_own_is_tried_for_an_epoch(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("""
import torch, espalier
from torch import nn

inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def train(network, *, epochs, seed):
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    for batch in inputs.split(16) * int(epochs):
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()

def task(broken=False):
    def score(network):
        return -float(network(inputs).square().mean())
    def fails(network, **options):
        raise ValueError("no such file")
    return espalier.FunctionTask(score, inputs.split(32), fails if broken else train, example_inputs=inputs[:1])
""")
    (tmp_path / "own.yaml").write_text("""
model: {name: mine:network}
task: {name: mine:task}
budget: {keep: 0.5}
training: {epochs: 3}
regularizer: {strengths: [0.01], epochs: 2}
finetune: {epochs: 1}
search: {trials: 5}
workers: 0
""")
    answer = command("doctor", "own.yaml")
    assert answer.code == 0, answer
    assert "dense: an epoch of the task's own training is run" in answer.out
    for stage in ("dense network: 12 steps", "strengths: 1 x 8 steps", "fine-tuning: 14 x 4 steps"):
        assert f"{stage} x " in answer.out, (stage, answer.out)
    (broken,) = stops(command("doctor", "own.yaml", "task.kwargs.broken=true"))
    assert "ValueError: no such file" in broken


def test_what_a_step_keeps_for_its_gradients_is_counted() -> None:
    network, inputs = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(5, 8)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with _Watch(network) as watch:
        for rows in (5, 3):
            network(inputs[:rows].clone()).square().sum().backward()
            optimizer.step()
    optimizer.step()  # nobody looks any more
    assert watch.activations == 4 * 5 * (8 + 16 + 4) and len(watch.ends) == 2


def test_estimates_are_what_was_measured_times_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "usable_cores", lambda: 4)
    trainings = {
        "dense": Training(100, 0.5, 0),
        "regularized": Training(40, 0.5, 0),
        "finetune": Training(20, 0.25, 0),
    }
    found = Rehearsal(0, 0, trainings, candidate=2.0, baselines=3, greedy=2)
    config = load_config(
        "digits",
        ["workers=8", "search.trials=40", "search.finalists=3", "finetune.seeds=5", "finetune.selection_seeds=2"],
    )
    seconds = {each.stage: each.seconds for each in estimates(config, found)}
    assert slots(config) == 4  # cores, not workers
    assert seconds == {
        "dense network": 50.0,
        "strengths": 3 * 20.0,  # each from the one below
        "choice of strength": 3 * 5.0,  # 3 strengths, 3 baselines each, four at a time
        "search": 13 * 2.0,  # 40 and a quarter of them again, four at a time
        "fine-tuning": 5 * 5.0,  # 3 finalists with 2 seeds, greedy with one more, 2 networks with 5
    }
    aside = load_config("digits", ["regularizer.start=dense", "cluster.address=auto", "workers=8"])
    assert slots(aside) == 8 and next(e for e in estimates(aside, found) if e.stage == "strengths").seconds == 20
    assert halved(8, 2) == (8 / 4 + 4 / 2, 2)


def test_extras_are_those_of_the_project() -> None:
    assert not extras().keys() & {"dev", "docs"}
    assert extras()["postgresql"] == ["psycopg"]
