"""A search of a network and a task that are given in Python."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.errors import ArtefactError, ConfigError, EspalierError, StorageError, StudyMismatch, TraceError
from espalier.search.files.example_inputs import from_json, to_json
from espalier.search.run.search_widths import Found
from espalier.search.study.storage import open_storage
from espalier.search.tasks.code_digests import UNKNOWN, digest_of
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Stage
from espalier.search.tasks.user_functions import first_steps

RUNNER = Runner(Execution())
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(256, 6, generator=GENERATOR)
TARGETS = torch.stack([INPUTS[:, :3].prod(1), INPUTS[:, 3:].sum(1).tanh()], 1)


class Regressor(nn.Module):
    """Two inputs by name, two numbers out: nothing of a classifier of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 24), nn.BatchNorm1d(24)
        self.second, self.last = nn.Linear(24 + 3, 16), nn.Linear(16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(left)))
        given: Tensor = self.last(torch.relu(self.second(torch.cat([hidden, right], 1))))
        return given


def batch(rows: slice) -> dict[str, Tensor]:
    return {"left": INPUTS[rows, :3], "right": INPUTS[rows, 3:]}


EXAMPLE = batch(slice(2))
BATCHES = [batch(slice(start, start + 32)) for start in range(0, 128, 32)]


@torch.no_grad()
def error(network: nn.Module) -> float:
    return float((network(**batch(slice(128, 192))) - TARGETS[128:192]).square().mean())


@torch.no_grad()
def error_on_test(network: nn.Module) -> Tensor:
    """Of every example."""
    squares: Tensor = (network(**batch(slice(192, 256))) - TARGETS[192:256]).square()
    return squares.mean(1)


def train(network: nn.Module, *, epochs: float, seed: int) -> None:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(int(epochs * 4)):
        for rows in torch.randperm(128).split(32):
            optimizer.zero_grad()
            loss = (network(INPUTS[rows, :3], INPUTS[rows, 3:]) - TARGETS[rows]).square().mean()
            loss.backward()
            optimizer.step()


def task(**options: Any) -> espalier.FunctionTask:
    return espalier.FunctionTask(error, BATCHES, metric="error", unit="m", greater_is_better=False, **options)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Regressor()
        train(made, epochs=4, seed=0)
    return made.eval()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


HALF = espalier.Budget(macs=0.5)


def search(network: nn.Module, own: espalier.Task, **options: Any) -> Found:
    given: dict[str, Any] = {"budget": HALF, "trials": 6, "workers": 0} | options
    return espalier.search_widths(network, EXAMPLE, own, **given)


def study_of(name: str = "search") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(f"sqlite:///runs/{name}/study.db", create=False))


def values_of(name: str = "search") -> list[float]:
    return [trial.value for trial in study_of(name).trials if trial.value is not None]


# ------------------------------------------------------------------------------------------------ from end to end


def test_a_score_alone_is_enough(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    found = search(network, espalier.FunctionTask(error, greater_is_better=False))
    graph = espalier.trace(network, EXAMPLE)
    assert found.result.searched.macs <= 0.5 * graph.macs(graph.sizes)
    assert found.result.trials == 6 and found.result.promotion == []
    assert error(found.network) == pytest.approx(found.result.searched.after) == found.result.searched.held_out
    assert max(values_of()) == pytest.approx(-found.result.searched.after)
    assert not found.result.finetuned and not found.result.tested
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("generator", ["true", "false"])
def test_a_training_of_ones_own_trains_shared_weights(network: nn.Module, generator: str) -> None:
    asked = ["supernet.epochs=2", "supernet.used_for=both", f"supernet.generator={generator}"]
    found = search(network, task(train=train), strengths=(0.0, 0.01), epochs=1, overrides=asked)
    assert "Candidates are scored, and fine-tuning begins, with weights" in repr(found)
    assert error(found.network) < 2 * error(network)
    assert not any("espalier" in name for name in found.network.state_dict())


def train_around(network: nn.Module, *, epochs: float, seed: int) -> None:
    """Calls the forward function, which no hook sees."""
    network.forward(**batch(slice(9))).sum().backward()
    torch.optim.SGD(network.parameters(), lr=1e-3).step()


def test_a_training_that_goes_around_the_network_shares_no_weights(network: nn.Module) -> None:
    with pytest.raises(EspalierError, match="must put the network into training mode, and call it as network"):
        search(network, task(train=train_around), strengths=(0.0,), epochs=1, overrides=["supernet.epochs=1"])


def test_a_score_that_no_pruned_network_has_ends_in_a_line(network: nn.Module) -> None:
    whole = sum(parameter.numel() for parameter in network.parameters())

    def of_the_whole(net: nn.Module) -> float:
        return error(net) if sum(parameter.numel() for parameter in net.parameters()) == whole else math.nan

    own = espalier.FunctionTask(of_the_whole, BATCHES, train=train, metric="error")
    with pytest.raises(EspalierError, match=r"^the error of all of 4 networks .* is no finite number"):
        search(network, own, strengths=(0.0, 0.1), epochs=1)


def test_a_metric_says_by_its_name_whether_less_of_it_is_better() -> None:
    for metric, better in (("MAE", False), ("val loss", False), ("R2", True), ("score", True)):
        assert espalier.FunctionTask(error, metric=metric).metric.greater_is_better == better
    assert espalier.FunctionTask(error, metric="loss", greater_is_better=True).metric.greater_is_better


def test_batches_recalibrate_norms(network: nn.Module) -> None:
    plain = search(network, espalier.FunctionTask(error, greater_is_better=False), study="plain")
    healed = search(network, task(), study="healed")
    statistics = [dict(each.network.named_buffers())["norm.running_var"] for each in (plain, healed)]
    dense = network.get_buffer("norm.running_var")
    assert all(value in dense for value in statistics[0]) and not all(value in dense for value in statistics[1])


def test_training_gives_a_ladder_and_fine_tuned_finalists(network: nn.Module, tmp_path: Path) -> None:
    own = task(train=train, test=error_on_test)
    found = search(network, own, epochs=2, strengths=[0.0, 0.02], overrides=["finetune.seeds=3"])
    assert found.result.tested and found.result.finetuned and len(found.result.searched.after_seeds) == 3
    assert found.result.searched.after < found.result.searched.before
    assert (
        "m of test error after fine-tuning" in found.result.verdict
        or "keeps the widths of greedy" in found.result.verdict
    )
    assert float(error_on_test(found.network).mean()) in [
        pytest.approx(value) for value in found.result.searched.after_seeds
    ]
    found.save(tmp_path / "small.espalier")
    again = espalier.load(tmp_path / "small.espalier", network)
    assert torch.equal(again(**EXAMPLE), found.network(**EXAMPLE))
    files = sorted(path.name for path in Path("runs/search/ladder").iterdir())
    assert len(files) == 2 and files[0].startswith("dense-") and files[1].startswith("rung1-")
    content = Path("runs/search/result.json").read_text()
    assert '"title": "error"' in content and '"unit": "m"' in content


@pytest.mark.timeout(300)
def test_workers_get_functions_that_are_no_ones_module(network: nn.Module) -> None:
    """Closures, lambdas and partials are sent by value."""
    shift = torch.tensor(0.0)
    own = espalier.FunctionTask(lambda net: error(net) + shift, BATCHES, greater_is_better=False)
    here, there = search(network, own, study="here"), search(network, own, study="there", workers=1)
    assert sorted(values_of("here")[:4]) == pytest.approx(sorted(values_of("there")[:4]), rel=1e-5)
    assert here.result.trials == there.result.trials == 6


SCRIPT = """
import os, sys, time
import torch, espalier
from torch import nn

torch.manual_seed(0)
sizes = [8, 40, 50, 60, 50, 40]
layers = [layer for i, o in zip(sizes, sizes[1:]) for layer in (nn.Linear(i, o), nn.ReLU())]
network = nn.Sequential(*layers, nn.Linear(40, 1))
inputs = torch.randn(64, 8)
SCORED = os.path.abspath("scored")  # a worker may run elsewhere

def score(net):
    with open(SCORED, "a") as file:
        file.write("scored\\n")
    time.sleep(0.1)
    return -float((net(inputs) - network(inputs)).square().mean())

if __name__ == "__main__":
    task = espalier.FunctionTask(score, inputs.split(16))
    if sys.argv[1] == "search":
        espalier.search_widths(network, inputs[:1], task, budget=espalier.Budget(macs=0.5, params=0.6), trials=60,
                               sampler="random", workers=2, storage="sqlite:///study.db", study="mine")
    else:
        found = espalier.resume("sqlite:///study.db", "mine", network, task)
        print(found.result.trials, found.result.searched.macs)
"""


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, "mine.py", "search"], start_new_session=True)
    scored, deadline = tmp_path / "scored", time.monotonic() + 120
    while not scored.exists() or len(scored.read_text().splitlines()) < 15:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    study = optuna.load_study(study_name="mine", storage=open_storage("sqlite:///study.db", create=False))
    before = {t.number: t.value for t in study.trials if t.value is not None}
    assert 0 < len(before) < 60
    done = subprocess.run([sys.executable, "mine.py", "resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials, macs = map(int, done.stdout.split())
    study = optuna.load_study(study_name="mine", storage=open_storage("sqlite:///study.db", create=False))
    after = {t.number: t.value for t in study.trials if t.value is not None}
    assert trials == len(after) == 60 and macs <= 0.5 * (8 * 40 + 40 * 50 + 50 * 60 + 60 * 50 + 50 * 40 + 40)
    assert {number: after[number] for number in before} == before


# ------------------------------------------------------------------------------------------------ resuming


def test_a_study_goes_on_with_the_same_network_and_task_only(network: nn.Module) -> None:
    search(network, task())
    where = "sqlite:///runs/search/study.db", "search"
    assert espalier.resume(*where, network, task(), overrides=["search.trials=8"]).result.trials == 8
    with pytest.raises(ConfigError, match=r"given in Python, and only there can it go on: espalier.resume\("):
        espalier.resume(*where)
    with pytest.raises(ConfigError, match="goes on with both of them"):
        espalier.resume(*where, network)
    other = copy.deepcopy(network)
    nn.init.zeros_(other.get_parameter("last.bias"))
    with pytest.raises(StudyMismatch, match="weights"):
        espalier.resume(*where, other, task())
    with pytest.raises(StudyMismatch, match=r"task\.score"):
        espalier.resume(*where, network, espalier.FunctionTask(error_on_test, BATCHES))
    with pytest.raises(StudyMismatch, match=r"task\.batches"):
        espalier.resume(*where, network, espalier.FunctionTask(error, BATCHES[1:]))


def test_a_function_is_told_from_another_by_its_source() -> None:
    def one(net: nn.Module) -> float:
        return 1.0

    def other(net: nn.Module) -> float:
        return 2.0

    assert digest_of(one) == digest_of(one) == digest_of(functools.partial(one)) != digest_of(other)
    assert digest_of(lambda net: 1.0) != digest_of(lambda net: 2.0)
    assert digest_of(len) == UNKNOWN


@pytest.mark.parametrize(
    "inputs",
    [
        torch.randn(2, 3),
        torch.arange(6).view(2, 3).bool(),
        torch.zeros(0, 3, dtype=torch.bfloat16),
        (torch.randn(2), None, 3, "x"),
        {"a": torch.tensor(1.5), "b": [torch.ones(2, dtype=torch.int64), True]},
    ],
    ids=["floats", "bools", "none of them", "tuple", "named"],
)
def test_example_inputs_survive_json(inputs: Any) -> None:
    again = from_json(to_json(inputs))
    torch.testing.assert_close(again, inputs, rtol=0, atol=0) if isinstance(inputs, Tensor) else None
    assert str(again) == str(inputs) and type(again) is type(inputs)


def test_large_example_inputs_are_zeros_again() -> None:
    assert torch.equal(from_json(to_json(torch.ones(3, 200, 200))), torch.zeros(3, 200, 200))


@pytest.mark.parametrize(
    "content", [{"shape": [2], "dtype": "load", "data": None}, {"shape": [2]}, 3, {"tuple": 3}]
)
def test_damaged_example_inputs_are_refused(content: Any) -> None:
    with pytest.raises(StorageError, match="example inputs are damaged"):
        from_json(content)


# ------------------------------------------------------------------------------------------------ bad input


def changes_the_network(net: nn.Module) -> float:
    with torch.no_grad():
        next(net.parameters()).zero_()
    return 0.0


def trains_norms(net: nn.Module) -> float:
    return error(net.train())


def gone(net: nn.Module) -> float:
    raise RuntimeError("no data\nhere")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda net: float("nan"), "the score of the dense network must be a finite number, got nan"),
        (lambda net: "good", "a score must be a number, or one number per example, got a str"),
        (lambda net: None, "a score must be a number, or one number per example, got a NoneType"),
        (lambda net: torch.tensor([1j]), "a score must be a number, or one number per example, got"),
        (lambda net: np.array(["a", "b"]), "a score must be a number, or one number per example, got"),
        (lambda net: torch.zeros(2, 2), r"or one number per example, got numbers of shape \(2, 2\)"),
        (changes_the_network, "the score changed the network that it was given, first.weight first"),
        (trains_norms, "the score changed the network that it was given, norm."),
        (gone, "the score raised RuntimeError: no data here"),
    ],
)
def test_a_score_that_is_none_ends_in_a_line(
    network: nn.Module, score: Callable[[nn.Module], Any], message: str
) -> None:
    with pytest.raises(EspalierError, match=message) as raised:
        search(network, espalier.FunctionTask(score))
    assert "\n" not in str(raised.value)
    assert not Path("runs").exists()


def test_a_score_that_raises_later_ends_in_a_line(network: nn.Module) -> None:
    calls = iter(range(100))

    def score(net: nn.Module) -> float:
        if next(calls):
            raise RuntimeError("no data any more")
        return 1.0

    with pytest.raises(EspalierError, match=r"^dense network failed: RuntimeError: no data any more at "):
        search(network, espalier.FunctionTask(score))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((INPUTS[:0, :3], INPUTS[:0, 3:]), r"the example inputs hold no example: the first is of shape \(0, "),
        ((INPUTS[:1, :3] * float("nan"), INPUTS[:1, 3:]), "the example inputs hold NaN"),
        (tuple(each.double() for each in (INPUTS[:1, :3], INPUTS[:1, 3:])), "cannot trace Regressor: .*dtype"),
    ],
)
def test_example_inputs_that_are_none_end_in_a_line(network: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message) as raised:
        espalier.search_widths(network, inputs, task(), budget=HALF, trials=2, workers=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches gave none"),
        (
            [(INPUTS[:4, :3], INPUTS[:4, 3:], TARGETS[:4])],
            r"batches must give what the network takes.*\[x for x, _",
        ),
        (iter([]), "batches gave none"),
        ([INPUTS], "batches must give what the network takes, and it raised TypeError"),
        ([*BATCHES, {"left": INPUTS}], "batches must give what the network takes, and it raised .* on batch 5"),
    ],
)
def test_batches_that_are_none(network: nn.Module, batches: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(network, espalier.FunctionTask(error, batches))
    assert not Path("runs").exists()


def test_batches_may_run_out_once_they_were_read(network: nn.Module) -> None:
    assert search(network, espalier.FunctionTask(error, iter(BATCHES))).result.trials == 6


def replaces(net: nn.Module, *, epochs: float, seed: int) -> nn.Module:
    return nn.Linear(3, 3)


def changes_shapes(net: nn.Module, *, epochs: float, seed: int) -> None:
    net.register_parameter("more", nn.Parameter(torch.zeros(3)))


def leaves_nan(net: nn.Module, *, epochs: float, seed: int) -> None:
    train(net, epochs=1, seed=0)
    with torch.no_grad():
        net.get_parameter("first.weight")[0] = float("nan")


def casts(net: nn.Module, *, epochs: float, seed: int) -> None:
    train(net, epochs=1, seed=0)
    net.double()


def idles(net: nn.Module, *, epochs: float, seed: int) -> None:
    net.train()
    for _ in range(int(epochs / 2)):
        raise AssertionError("half of an epoch is none")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (replaces, "train must train the network that it is given, in place; it returned another"),
        (changes_shapes, "train must leave names, shapes and types of tensors as they are, and it changed more"),
        (
            leaves_nan,
            "strength 0.1 failed: ArithmeticError: training left numbers in first.weight that are not finite",
        ),
        (casts, "types of tensors as they are, and it changed first.bias"),
        (idles, "train changed nothing of the network, called with epochs=1"),
        (gone, r"train is called as train\(network, epochs=.*, seed=.*\), and does not take that"),
    ],
)
def test_a_train_that_does_something_else(network: nn.Module, training: Any, message: str) -> None:
    with pytest.raises(EspalierError, match=message):
        search(network, task(train=training), strengths=[0.0, 0.1], epochs=1)


def test_a_rising_strength_needs_the_number_of_steps(network: nn.Module) -> None:
    with pytest.raises(
        ConfigError, match=r"regularizer\.ramp is a share of the steps, and this task does not tell"
    ):
        search(network, task(train=train), strengths=[0.0, 0.1], epochs=1, overrides=["regularizer.ramp=0.5"])


def test_what_cannot_be_sent_to_workers_is_named_before_anything_is_scored(network: nn.Module) -> None:
    lock = __import__("threading").Lock()

    def score(net: nn.Module) -> float:
        with lock:
            return error(net)

    with pytest.raises(ConfigError, match=r"^the task's score cannot be sent to workers: .*lock.*workers=0"):
        search(network, espalier.FunctionTask(score), workers=1)
    assert not Path("runs").exists()
    assert search(network, espalier.FunctionTask(score)).result.trials == 6


def test_candidates_take_the_first_steps_of_the_users_training(network: nn.Module) -> None:
    """Of an epoch; whatever the loop does with exceptions, and however many optimisers it has."""
    steps: list[int] = []

    def counted(net: Any, *, epochs: float, seed: int) -> None:
        assert epochs == 1.0
        other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        for group in (net.first, net.last):
            optimizer = torch.optim.SGD(group.parameters(), lr=0.1)
            for step in range(30):
                try:
                    other.step()
                    (net(INPUTS[:32, :3], INPUTS[:32, 3:]) - TARGETS[:32]).square().mean().backward()
                    steps.append(step)
                    optimizer.step()
                except Exception:
                    pytest.fail("the loop caught what ends it")

    own = task(train=counted)
    for count in (5, 20):
        steps.clear()
        tried = copy.deepcopy(network)
        own.scoring("scoring", network, calibration=64, steps=count).step(RUNNER, tried, count)
        assert steps == list(range(count)) and not tried.training
        assert not torch.equal(tried.get_parameter("first.weight"), network.get_parameter("first.weight"))
    with pytest.raises(ConfigError, match="no way to train"):
        own.scoring("scoring", network, calibration=64, steps=0).step(RUNNER, network, 5)


def freezes(net: Any) -> None:
    """Toggles what is trained around each step, as Lightning does with several optimisers."""
    for group in [net.first, net.last] * 10:
        net.requires_grad_(False)
        group.requires_grad_(True)
        optimizer = torch.optim.SGD(group.parameters(), lr=0.1)
        loss_of(net).backward()
        optimizer.step()
        net.requires_grad_(True)


def hooked(net: Any) -> None:
    """Takes its hook off at its end."""
    handle = net.first.register_forward_hook(lambda *given: given[-1] * 1.1)
    step_often(net, torch.optim.Adam(net.parameters()))
    handle.remove()


def shuffled(net: Any) -> None:
    """By Python's and NumPy's generators."""
    for parameter in net.parameters():
        parameter.grad = random.random() * torch.ones_like(parameter) * float(np.random.rand())
    torch.optim.SGD(net.parameters(), lr=1.0).step()


def angry(net: Any) -> None:
    """Makes another exception of whatever ends it."""
    try:
        step_often(net, torch.optim.Adam(net.parameters()))
    except BaseException as error:
        raise RuntimeError("training was ended") from error


class Twice(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def twice(net: Any) -> None:
    step_often(net, Twice(net.parameters(), lr=0.1))


def renewed(net: Any) -> None:
    for _ in range(40):
        step_often(net, torch.optim.SGD(net.parameters(), lr=0.1), 1)


def loss_of(net: Any) -> Tensor:
    squares: Tensor = (net(INPUTS[:32, :3], INPUTS[:32, 3:]) - TARGETS[:32]).square()
    return squares.mean()


def step_often(net: Any, optimizer: torch.optim.Optimizer, count: int = 40) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        net.batches = getattr(net, "batches", 0) + 1


@pytest.mark.parametrize("kind", [freezes, hooked, shuffled, angry, twice, renewed])
def test_a_candidate_is_scored_alike_whatever_came_before(kind: Callable[[Any], None], network: nn.Module) -> None:
    """What a loop leaves behind when it is ended stays with the copy that it trained."""

    def trained(net: nn.Module, *, epochs: float, seed: int) -> None:
        kind(net)

    scoring = task(train=trained).scoring("scoring", network, calibration=64, steps=20)
    state, scores = copy.deepcopy(network.state_dict()), list[float]()
    tried = copy.deepcopy(network)
    for _ in range(3):
        tried.load_state_dict(state)
        scoring.step(RUNNER, tried, 20)
        assert all(parameter.requires_grad for parameter in tried.parameters())
        scores.append(error(tried))
    assert scores[0] == scores[1] == scores[2] != error(network)


@pytest.mark.parametrize("kind", [Twice, torch.optim.SGD])
def test_steps_are_counted_once(kind: type[torch.optim.Optimizer], network: nn.Module) -> None:
    tried, count = copy.deepcopy(network), 0
    optimizer = kind(tried.parameters(), lr=0.1)  # type: ignore[call-arg]
    with first_steps(tried, 7):
        for count in range(40):  # noqa: B007 - the last one
            step_often(tried, optimizer, 1)
    assert count == 6
    with first_steps(tried, 7):
        for count in range(40):  # noqa: B007
            step_often(tried, kind(tried.parameters(), lr=0.1), 1)  # type: ignore[call-arg]
    assert count == 6


def test_a_training_that_counts_steps_itself_is_not_ended(network: nn.Module) -> None:
    """Its schedule fits, and so does what it does at its end."""
    asked: list[int | None] = []

    def counting(net: nn.Module, *, epochs: float, seed: int, steps: int | None = None) -> None:
        asked.append(steps)
        train(net, epochs=0.25, seed=seed)
        asked.append(None)

    own = task(train=counting)
    own.scoring("scoring", network, calibration=64, steps=20).step(RUNNER, copy.deepcopy(network), 20)
    own.train(copy.deepcopy(network), Stage("finetune", 1.0), seed=0)
    assert asked == [20, None, None, None]


def doubles(net: Any) -> None:
    net.double()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.step()
    net.float()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (doubles, "recalibrated takes no steps"),
        (lambda net: None, "train changed nothing of the network, called with epochs=1, ended after 20 steps"),
    ],
)
def test_steps_that_train_nothing_or_end_midway_are_told(kind: Any, message: str, network: nn.Module) -> None:
    def trained(net: nn.Module, *, epochs: float, seed: int) -> None:
        kind(net)

    scoring = task(train=trained).scoring("scoring", network, calibration=64, steps=20)
    with pytest.raises(EspalierError, match=message):
        scoring.step(RUNNER, copy.deepcopy(network), 20)


def test_by_default_candidates_are_healed_by_what_the_task_offers(network: nn.Module) -> None:
    offers = {
        "sgd20": task(train=train),
        "recalibrated": task(),
        "as_cut": espalier.FunctionTask(error, greater_is_better=False),
    }
    for proxy, own in offers.items():
        search(network, own, study=proxy, **({"epochs": 1} if proxy == "sgd20" else {}))
        assert f'"proxy": "{proxy}"' in json.dumps(study_of(proxy).user_attrs["espalier:config"])


def test_a_trainer_in_place_of_a_task_is_told_its_task(network: nn.Module) -> None:
    class Trainer:
        pass

    class Mine(Trainer):
        pass

    for given, line in (
        (Mine(), r"by espalier.HuggingFaceTask, got Mine"),
        (3, r"of a score by .*got int"),
    ):
        with pytest.raises(ConfigError, match=line):
            search(network, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.proxy=sgd10"], "the proxy sgd10 needs training by single steps, which this task does not offer"),
        (["search.ladder=[ridge]"], "the proxy ridge needs one label per example"),
        (["search.criterion=taylor"], "taylor differentiates a loss, which this task does not offer"),
        (["search.measure=top1"], "search.measure: unknown name 'top1'"),
        (["finetune.epochs=2"], "finetune.epochs is 2, and this task has no way to train: give it one, or write 0"),
    ],
)
def test_what_a_task_does_not_offer_is_refused(network: nn.Module, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(network, task(), overrides=overrides)


def test_arguments_that_do_not_belong_together(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match="searched with example_inputs, a task and a budget"):
        espalier.search_widths(network)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="a config names its network"):
        espalier.search_widths("digits", EXAMPLE)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="score must be a function of a network, got int"):
        espalier.FunctionTask(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a budget's macs must be a whole number, or a fraction"):
        espalier.Budget(macs=1.5)
    for macs in ("0.5", True, -1, torch.tensor(0.5)):
        with pytest.raises(ConfigError, match="a budget's macs must be a whole number, or a fraction"):
            espalier.Budget(macs=macs)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="score must be a function of a network, got NoneType"):
        espalier.FunctionTask(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"network must be an nn\.Module, .* got function"):
        espalier.search_widths(error, EXAMPLE, task(), budget=HALF)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------------ named in a config


def test_a_config_names_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(
        textwrap.dedent(
            """
            import torch, espalier
            from torch import nn

            def network(width):
                torch.manual_seed(0)
                return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))

            def score(net):
                return -float(net(torch.ones(1, 4)).abs())

            def task(rows):
                inputs = torch.randn(rows, 4)
                return espalier.FunctionTask(score, inputs.split(4), example_inputs=inputs[:1], metric="closeness")

            def none():
                return 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {
        "model": {"name": "own:network", "kwargs": {"width": 12}},
        "task": {"name": "own:task", "kwargs": {"rows": 16}},
        "training": {"epochs": 0},
        "finetune": {"epochs": 0, "seeds": 1, "selection_seeds": 1},
        "budget": {"keep": 0.5},
        "search": {"trials": 4},
        "workers": 0,
    }
    found = espalier.search_widths(config)
    assert found.result.trials == 4 and found.result.metric.title == "closeness"
    with pytest.raises(ConfigError, match="--trust own"):
        espalier.resume("sqlite:///runs/search/study.db", "search")
    assert espalier.resume("sqlite:///runs/search/study.db", "search", trust="own").result.trials == 4
    for name, message in [
        ("own:none", "must make an espalier.Task, got int"),
        ("own:absent", "package.module:callable"),
        ("classificaton", "task.name: unknown name 'classificaton'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            espalier.search_widths(config | {"task": {"name": name}})


def test_a_task_of_ones_own_class_needs_little(network: nn.Module) -> None:
    """Everything but a score and a fingerprint has a default."""
    from espalier.search.spaces.metric import Metric
    from espalier.search.tasks.functions import FunctionScoring
    from espalier.search.tasks.task import Part, Reading, Scoring

    class Own(espalier.Task):
        def __init__(self) -> None:
            self.metric = Metric("score", "closeness")
            self.measures, self.offers = {"score": self.metric}, frozenset()

        def fingerprint(self) -> dict[str, str]:
            return {"task": "own"}

        def evaluate(self, network: nn.Module, part: Part) -> Reading:
            return Reading(-error(network))

        def scoring(self, part: Part, dense: nn.Module, *, calibration: int, steps: int) -> Scoring:
            return FunctionScoring(lambda net: -error(net), [])

    found = search(network, Own())
    assert found.result.trials == 6 and found.result.metric.title == "closeness"


def test_progress_is_told_where_it_is_asked_for(network: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    search(network, task(), progress=False, study="silent")
    assert capsys.readouterr() == ("", "")
    search(network, task(), study="few")
    shown = capsys.readouterr()
    assert shown.out == "" and "search: 6/6 candidates" in shown.err
    search(network, task(), progress=True)
    said = capsys.readouterr().out
    assert "Regressor" in said and "search: 6/6 candidates" in said
    assert "best 0." in said and "best -" not in said  # an error, of which less is better


def test_what_was_found_prints_as_a_table_and_a_verdict(network: nn.Module) -> None:
    found = search(network, task(train=train), strengths=[0.0], epochs=1)
    text = str(found)
    assert text == repr(found) and found.result.verdict in " ".join(text.split())
    rows = [line.split()[0] for line in text.splitlines() if re.match(r"\w+ +\d+ +[\d.]+% ", line)]
    assert rows == ["dense", "greedy", "searched"], text
    assert "error in m, less is better" in text.lower()


def test_what_cannot_be_written_is_one_line(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=r"cannot make the run folder .*file: File exists; choose another out"):
        search(network, task(), out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ArtefactError, match=r"cannot copy .*pruned.espalier to .*: Is a directory"):
        search(network, task()).save(tmp_path)


def test_what_a_score_holds_must_be_what_it_was(network: nn.Module) -> None:
    """Its source is the same; what the dense network scores by it is not."""

    def made(factor: float) -> espalier.FunctionTask:
        return espalier.FunctionTask(lambda net: factor * error(net))

    search(network, made(1.0))
    assert search(network, made(1.0), trials=7).result.trials == 7
    with pytest.raises(StudyMismatch, match="the score of the dense network was"):
        search(network, made(2.0), trials=8)
    with pytest.raises(StudyMismatch, match=r"task\.metric"):
        search(network, espalier.FunctionTask(lambda net: 1.0 * error(net), greater_is_better=False))


def test_a_last_reading_that_is_no_number_says_whose(network: nn.Module) -> None:
    def test(net: nn.Module) -> float:
        return float("nan") if net.get_parameter("first.weight").shape[0] < 24 else 1.0

    with pytest.raises(EspalierError, match=r"score of candidate 0:.* is nan in the last reading"):
        search(network, espalier.FunctionTask(error, test=test))

    def broken(net: nn.Module) -> float:
        raise OSError("no test data")

    with pytest.raises(EspalierError, match="the task's test raised OSError: no test data"):
        search(network, espalier.FunctionTask(error, test=broken), study="other")


def test_arguments_of_another_type_are_named(network: nn.Module) -> None:
    given: list[tuple[dict[str, Any], str]] = [
        ({"budget": 0.5}, r"a budget is, for example, espalier.Budget\(macs=0.5\), got 0.5"),
        ({"workers": -1}, "workers must be a whole number from 0, got -1"),
        ({"overrides": "search.trials=5"}, r"overrides is a list of texts, .*, got 'search.trials=5'"),
        ({"overrides": [5]}, r"overrides is a list of texts, as \['search.trials=100'\], got \[5\]"),
    ]
    for options, message in given:
        with pytest.raises(ConfigError, match=message):
            search(network, task(), **options)
    with pytest.raises(ConfigError, match=r"made of a score by espalier.FunctionTask\(score\), got function"):
        search(network, error)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="metric must be a name"):
        espalier.FunctionTask(error, metric="")
    with pytest.raises(ConfigError, match="is in bfloat16"):
        search(copy.deepcopy(network).bfloat16(), task())
    for strengths in (0.1, None, "many"):
        with pytest.raises(ConfigError, match=r"strengths must be a list of numbers or 'auto', got"):
            search(network, task(train=train), strengths=strengths)
    with pytest.raises(StorageError, match=r"a storage is named by a text, as 'sqlite:///study.db', got .*Path"):
        search(network, task(), storage=Path("study.db"))
    with pytest.raises(ConfigError, match="ReLU has no parameters: there is nothing to prune"):
        espalier.search_widths(nn.ReLU(), INPUTS[:1], task(), budget=HALF)
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ConfigError, match=r"0\.weight has no shape yet"):
        espalier.search_widths(lazy, INPUTS[:1], task(), budget=HALF)


@pytest.mark.parametrize(
    ("functions", "line"),
    [
        (
            {"train": lambda network, epochs: None},
            r"train is called as train\(network, epochs=\.\.\., seed=\.\.\.\)",
        ),
        (
            {"score": lambda: 0.0},
            r"score is called as score\(network\), and does not take that: too many positional",
        ),
        ({"test": lambda network, split: 0.0}, r"test is called as test\(network\), .* 'split'"),
    ],
)
def test_a_function_that_cannot_be_called_is_told_before_anything_is_run(functions: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        espalier.FunctionTask(**{"score": lambda network: 0.0} | functions)
