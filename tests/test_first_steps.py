"""``espalier configs``, ``init`` and ``doctor``: what a newcomer begins with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

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
from espalier.starter import files
from tests.command_line import Answer, Command, command_of

ROOT = Path(cli.__file__).resolve().parents[2]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs the command in this process, in a folder of its own."""
    for variable in ("OPTUNA_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    yield command_of(monkeypatch, capfd, columns=400)
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
    for stage in (
        "dense network: 12 steps",
        "strengths: 1 x 8 steps",
        "search: 5 candidates",
        "fine-tuning: 14 x 4 steps",
    ):
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
    found = Rehearsal(0, 0, trainings, candidate=2.0, baselines=3, greedy=2, again=True)
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
    for strength, count in (("finetuned", 1), ("searched", 3)):
        shared = load_config("digits", ["supernet.epochs=30", f"search.strength={strength}", "finetune.epochs=10"])
        row = next(each for each in estimates(shared, found) if each.stage == "shared weights")
        assert row.seconds == count * 60 * 0.25


def test_extras_are_those_of_the_project() -> None:
    assert not extras().keys() & {"dev", "docs"}
    assert extras()["postgresql"] == ["psycopg"]


# --------------------------------------------------------------------------------------------------- init


def test_a_config_for_a_data_set_is_written_from_flags(command: Command, tmp_path: Path) -> None:
    flags = ["--network", "mobilenet_v2", "--data", "mnist", "--root", "my: data", "--workers", "3"]
    answer = command("init", "first.yaml", *flags, "--budget", "latency=0.4")
    assert answer.code == 0 and "next: espalier doctor first.yaml" in answer.out
    assert [path.name for path in tmp_path.iterdir()] == ["first.yaml"]
    config = load_config("first.yaml")
    assert config.model.name == "mobilenet_v2" and config.model.kwargs == {"num_classes": 10, "in_channels": 1}
    assert config.data.name == "mnist" and config.data.root == Path("my: data") and config.workers == 3
    assert config.budget.latency == 0.4 and config.budget.keep is None
    assert "valid: mobilenet_v2 on mnist" in command("validate", "first.yaml").out
    assert (
        "espalier search first.yaml search.trials=300" in (tmp_path / "first.yaml").read_text()
        and command("validate", "first.yaml", "search.trials=300").code == 0
    )


def test_a_task_in_another_folder_is_run_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    said = command("init", "sub/my.yaml", "--data", "own").out
    assert "next: cd sub && espalier doctor my.yaml, then espalier search my.yaml" in said
    answer = command("init", "sub/flat.yaml", "--data", "own", "--network", "resnet20", "--shape", "7")
    assert answer.code == 2 and "resnet20 takes images, channels,height,width: got a shape of 1" in answer.err
    assert not (tmp_path / "sub" / "flat.yaml").exists()


@pytest.mark.parametrize("data", [*files.IMAGES, "imagefolder"])
@pytest.mark.parametrize("budget", ["macs=0.5", "params=.25", "latency=1"])
def test_every_answer_makes_a_valid_config(command: Command, tmp_path: Path, data: str, budget: str) -> None:
    for label in range(7):
        (tmp_path / "data" / "train" / str(label)).mkdir(parents=True)
    root = [] if data == "digits" else ["--root", "data"]
    assert command("init", "--data", data, "--budget", budget, *root).code == 0
    config = load_config("my.yaml")
    classes = {"imagefolder": 7, "cifar100": 100}.get(data, 10)
    assert config.model.kwargs["num_classes"] == classes
    kept = {"macs": config.budget.keep, "params": config.budget.keep_params, "latency": config.budget.latency}
    limit, _, share = budget.partition("=")
    assert {key: value for key, value in kept.items() if value is not None} == {limit: float(share)}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--network", "mobilnet_v2"], "unknown name 'mobilnet_v2', did you mean 'mobilenet_v2'?"),
        (["--data", "cifar"], "did you mean 'cifar10'?"),
        (["--budget", "0.5"], "a budget reads macs=0.5, params=0.5 or latency=0.5"),
        (["--budget", "macs=1.5"], "above 0 and at most 1; got 'macs=1.5'"),
        (["--budget", "macs=0.0"], "above 0 and at most 1"),
        (["--shape", "3x32x32"], "a shape reads 3,32,32, without the batch, got '3x32x32'"),
        (["--shape", "3,0"], "a shape reads 3,32,32"),
        (["--kind", "segmentation"], "begins as classification or regression, got 'segmentation'"),
        (
            ["--kind", "regression", "--data", "digits"],
            "--kind is of a task of your own, --data own: got",
        ),
        (["my.txt"], "a config is named *.yaml, got my.txt"),
        (["2.yaml"], "the name 2_task, which is none"),
        (["none/my.yaml"], "the folder none is not there"),
    ],
)
def test_bad_answers_are_refused_in_a_line(command: Command, tmp_path: Path, flags: list[str], said: str) -> None:
    answer = command("init", *flags)
    assert answer.code == 2 and said in answer.err and answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text("mine")
    answer = command("init")
    assert answer.code == 2 and "my_task.py is there already: name another file, or replace it" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["my_task.py"]  # not half of it
    assert command("init", "other.yaml").code == 0 and command("init", "--force").code == 0
    assert "espalier.FunctionTask(" in (tmp_path / "my_task.py").read_text()
    answer = command("init", "my.yaml")
    assert answer.code == 2 and "my.yaml is there already" in answer.err


FLAT = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
"""
SMALL = """
from torch import nn

def network(width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.BatchNorm2d(width),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )
"""


def test_what_is_written_for_a_task_of_ones_own_searches_as_it_is(command: Command, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    own = ["--network", "small:network", "--shape", "1,8,8", "--classes", "4", "--workers", "0"]
    answer = command("init", *own, "--budget", "params=0.5")
    assert answer.code == 0 and "Your data go into `load` of my_task.py" in answer.out
    answer = command("search", "my.yaml", "search.trials=12")
    assert answer.code == 0, answer
    assert "12 trials" in answer.out and "\nsearched " in answer.out
    result = json.loads((tmp_path / "runs" / "my" / "result.json").read_text())
    assert result["searched"]["params"] <= 0.5 * result["dense"]["params"] and result["tested"]
    assert result["metric"]["title"] == "accuracy" and result["dense"]["after"] > 50  # of chance's 25


def test_a_regression_is_written_that_learns_and_searches_as_it_is(command: Command, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    own = ["--network", "flat:network", "--kind", "regression", "--shape", "8", "--classes", "2", "--workers", "0"]
    answer = command("init", *own)
    assert answer.code == 0 and "until then it runs on random ones, as a regression" in answer.out
    answer = command("search", "my.yaml", "search.trials=8")
    assert answer.code == 0 and "Mean absolute error, less is better" in answer.out, answer
    result = json.loads((tmp_path / "runs" / "my" / "result.json").read_text())
    assert result["metric"]["title"] == "mean absolute error" and not result["metric"]["greater_is_better"]
    assert 0 < result["dense"]["after"] < 0.4  # of 0.8 for those that say the mean


@pytest.mark.slow
def test_what_is_written_for_a_task_of_ones_own_is_compared_as_it_is(command: Command, tmp_path: Path) -> None:
    """Its test gives a number for every example."""
    (tmp_path / "small.py").write_text(SMALL)
    own = ["--network", "small:network", "--shape", "1,8,8", "--classes", "4", "--workers", "0"]
    assert command("init", *own).code == 0
    answer = command("compare", "my.yaml", "compare.trials=3", "compare.seeds=3", "compare.methods=[greedy,auto]")
    assert answer.code == 0 and "against greedy" in answer.out, answer
    assert (tmp_path / "runs" / "my" / "compare" / "report.html").is_file()


def test_a_known_network_on_a_known_data_set_searches_as_it_is(command: Command) -> None:
    assert command("init", "--data", "digits", "--workers", "0").code == 0
    short = ["training.epochs=0.1", "regularizer.epochs=0.1", "finetune.epochs=0.1", "finetune.seeds=1"]
    answer = command("search", "my.yaml", "search.trials=3", "search.proxy=recalibrated", *short)
    assert answer.code == 0 and "3 trials" in answer.out, answer


def test_a_terminal_is_asked(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    environment = {"PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200", "PATH": os.environ["PATH"]}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "espalier", "init", "--workers", "0"],
        cwd=str(tmp_path),
        env=environment,
        encoding="utf-8",
        timeout=60,
    )
    for question, answer in (
        (r"Network: .*\[resnet20\]: ", "mobilnet_v2"),
        (r"did you mean 'mobilenet_v2'\?\s+Network: .*\[resnet20\]: ", "torchvision.models:resnet18"),
        (r"Data: cifar10, .* own, a task of yours \[own\]: ", ""),
        (r"Your task: .*\[classification\]: ", ""),
        (r"Shape of one input, .*\[3,32,32\]: ", "3,16,16"),
        (r"Classes \[10\]: ", "few"),
        (r"a whole number, got 'few'\s+Classes \[10\]: ", "5"),
        (r"Budget: .*\[macs=0.5\]: ", "params=0.3"),
    ):
        child.expect(question)
        child.sendline(answer)
    child.expect("written: my.yaml, my_task.py")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    config = load_config(tmp_path / "my.yaml")
    assert config.model.name == "torchvision.models:resnet18" and config.model.kwargs == {}
    assert config.task.name == "my_task:task" and config.workers == 0 and config.budget.keep_params == 0.3
    text = (tmp_path / "my_task.py").read_text()
    assert "SHAPE = (3, 16, 16)\n" in text and "CLASSES = 5\n" in text


@pytest.mark.parametrize("kind", get_args(files.Kind))
@pytest.mark.parametrize("outputs", ["1", "10"])
def test_the_module_that_is_written_is_well_formed(
    command: Command, tmp_path: Path, kind: str, outputs: str
) -> None:
    assert command("init", "--kind", kind, "--classes", outputs).code == 0
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", *tool, "--config", str(ROOT / "pyproject.toml"), "my_task.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_init_says_what_a_network_of_several_inputs_wants(command: Command, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "from torch import nn\n\n\nclass Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(4, 3)\n\n    def forward(self, image, extra):\n"
        "        return self.layer(image) + extra\n"
    )
    answer = command("init", "two.yaml", "--network", "two:Two", "--data", "own", "--shape", "4", "--classes", "3")
    assert answer.code == 0
    assert "which two:Two does not take (TypeError: Two.forward() missing 1 required positional" in answer.out
    assert "by --shape, or, of several inputs, give a tuple or a dict as example_inputs there" in answer.out
    doctor = command("doctor", "two.yaml", "workers=0")
    assert doctor.code == 1
    assert "it was given the example_inputs of two_task:task: of several inputs, a tuple or a dict" in doctor.out
