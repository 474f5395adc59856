"""Whole runs in this process: what they leave behind, what they read, and what survives a kill."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from torch import Tensor, nn

import espalier
from espalier import search_widths
from espalier.errors import ArtefactError, BudgetInfeasible, ClusterError, ConfigError, EspalierError, StudyMismatch
from espalier.pruning.graph.allocation import greedy
from espalier.pruning.importance.normalizations import normalize
from espalier.search.config.loading import Config, parse_config, with_section
from espalier.search.files.tensor_files import load_tensors, save_tensors
from espalier.search.progress.reporter import Lines, Silent
from espalier.search.run import search_run as pipeline
from espalier.search.run.experiment import Experiment
from espalier.search.run.prepare import prepare
from espalier.search.run.result import Result
from espalier.search.run.search_run import config_of, default_storage, run
from espalier.search.spaces.candidate import Candidate
from espalier.search.statistics.differences import paired
from espalier.search.study.copying import rename_study
from espalier.search.study.storage import open_storage
from espalier.search.tasks.classification.data import DATASETS, ImageSet, RawData
from espalier.search.tasks.classification.task import ClassificationTask
from espalier.search.tasks.task import Part, Reading, Stage
from tests.search.watched import Stops, greedy_candidates, prefer, watched

STAGES = ("ladder", "search", "finetune", "test")


def settings(content: dict[str, Any], **search: Any) -> Config:
    return parse_config(content | {"search": content["search"] | search}, "tiny")


def go(config: Config, out: Path, **options: Any) -> Result:
    return run(config, study="tiny", out=out, **options)


def study_in(out: Path) -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=default_storage(out))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> tuple[Config, Path, Result]:
    """One run to look at."""
    out = tmp_path_factory.mktemp("run")
    config = settings(yaml.safe_load(tiny_text), sampler="tpe", trials=8)
    return config, out, go(config, out)


@pytest.fixture
def copied(finished: tuple[Config, Path, Result], tmp_path: Path) -> tuple[Config, Path]:
    """A copy of it to go on with or to break."""
    config, out, _ = finished
    return config, shutil.copytree(out, tmp_path / "copy")


# ---------------------------------------------------------------------------------------------- the result


def test_scores_that_are_all_the_same_are_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    network, inputs = nn.Sequential(*layers), torch.randn(2, 4)

    def told(score: Callable[[nn.Module], float], out: str) -> bool:
        task, budget = espalier.FunctionTask(score, [inputs]), espalier.Budget(macs=0.5)
        folder = tmp_path / out
        search_widths(network, inputs, task, budget=budget, trials=4, workers=0, out=folder, progress=True)
        said = " ".join("".join(capfd.readouterr()).split())
        return re.search(r"all [234] candidates have the same score", said) is not None

    assert told(lambda pruned: 0.5, "alike")
    assert not told(lambda pruned: float(pruned(inputs).square().mean()), "apart")


def test_the_result_tells_of_all_three_networks(finished: tuple[Config, Path, Result]) -> None:
    _, out, result = finished
    content = json.loads((out / "result.json").read_text(encoding="utf-8"))
    for name in ("dense", "greedy", "searched"):
        outcome = content[name]
        assert outcome["macs"] > 0 and outcome["params"] > 0
        for key in ("held_out", "before", "after"):
            assert 0 <= outcome[key] <= 100
            assert name != "dense" or outcome[key] > 20  # of ten classes, after training
        assert set(outcome["widths"]) == set(content["dense"]["widths"])
        assert outcome["strength"] in (0.0, 0.001, 0.01)
    assert content["dense"]["strength"] == 0 and content["dense"]["after_seeds"] == []
    for name in ("greedy", "searched"):
        seeds = content[name]["after_seeds"]
        assert len(seeds) == 2
        assert content[name]["after"] == pytest.approx(sum(seeds) / 2)
    assert content["seeds"] == {"study": 0, "selection": [1000, 1001], "finetune": [0, 1]}
    assert content["trials"] == 8 and set(content["seconds"]) >= {*STAGES, "prepare"}
    assert content["versions"]["torch"] == torch.__version__
    same = (content["greedy"]["widths"], content["greedy"]["strength"]) == (
        content["searched"]["widths"],
        content["searched"]["strength"],
    )
    mean = paired(*(content[name]["after_seeds"] for name in ("searched", "greedy"))).mean
    assert (f"{mean:+.2f} points" in content["verdict"]) is not same
    assert content == json.loads(json.dumps(result.__dict__, default=lambda outcome: outcome.__dict__))


def test_both_pruned_networks_fill_the_budget(finished: tuple[Config, Path, Result]) -> None:
    config, _, result = finished
    prepared = prepare(config)
    graph = prepared.graph
    assert result.budget == prepared.budget.limits == {"macs": int(0.4 * result.dense.macs)}
    assert result.dense.widths == {group.name: group.size for group in graph.groups}
    for outcome in (result.greedy, result.searched):
        widths = [outcome.widths[group.name] for group in graph.groups]
        assert outcome.macs == graph.macs(widths)
        assert prepared.budget.fits(graph, widths)
        assert outcome.params == graph.params(widths) < result.dense.params
        for number, group in enumerate(graph.groups):
            one_more = [width + (place == number) for place, width in enumerate(widths)]
            assert widths[number] == group.size or not prepared.budget.fits(graph, one_more)


def test_the_study_begins_with_greedy(finished: tuple[Config, Path, Result]) -> None:
    config, out, result = finished
    trials = study_in(out).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8
    names = set(result.dense.widths)
    first = {key: value for key, value in trials[0].params.items() if key in names}
    assert set(first.values()) == {0.0} and len(first) == len(names)
    widths = ",".join(str(width) for width in result.greedy.widths.values())
    keys = [trial.user_attrs["espalier:candidate"].partition(":")[2] for trial in trials]
    assert widths in keys[:4]
    assert result.searched.held_out > 0
    assert study_in(out).user_attrs["espalier:config"] == config.model_dump(mode="json")


def test_the_artefact_is_the_searched_network(finished: tuple[Config, Path, Result]) -> None:
    config, out, result = finished
    assert result.artefact == str(out / "pruned.espalier")
    network = espalier.load(result.artefact)
    assert sum(parameter.numel() for parameter in network.parameters()) == result.searched.params
    assert prepare(config).task.evaluate(network, "test").value in result.searched.after_seeds
    _, header = load_tensors(out / "pruned.espalier")
    assert header["notes"]["macs"] == result.searched.macs
    assert {name: len(kept) for name, kept in header["kept"].items()} == result.searched.widths


@pytest.mark.usefixtures("no_training")
def test_a_finished_run_trains_and_evaluates_nothing(finished: tuple[Config, Path, Result]) -> None:
    config, out, result = finished
    trials = study_in(out).trials
    modified = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = go(config, out, must_exist=True)
    assert {**again.__dict__, "seconds": 0} == {**result.__dict__, "seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == modified
    assert study_in(out).trials == trials


def test_another_run_gives_the_same_numbers(finished: tuple[Config, Path, Result], tmp_path: Path) -> None:
    config, out, result = finished
    other = go(config, tmp_path / "other")
    for name in ("dense", "greedy", "searched", "budget", "binding", "verdict", "trials"):
        assert getattr(other, name) == getattr(result, name)
    assert [trial.params for trial in study_in(tmp_path / "other").trials] == [
        t.params for t in study_in(out).trials
    ]


def test_more_trials_go_on_from_the_ones_there_are(copied: tuple[Config, Path]) -> None:
    config, out = copied
    before = study_in(out).trials
    result = go(with_section(config, "search", {"trials": 10}), out, must_exist=True)
    assert len(before) == 8
    assert result.trials == 10 and study_in(out).trials[:8] == before


# ----------------------------------------------------------------------------------------- the test split


class Counting(ImageSet):
    """Counts how often each image is fetched, and by when."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.labels = images, images.labels
        self.counts = torch.zeros(len(images), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.image_shape

    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        self.counts[indices] += 1
        return self.images.fetch(indices, crops)

    def take(self, indices: Tensor) -> ImageSet:
        raise AssertionError("nobody takes parts of the test split")


counting: list[Counting] = []
"""The test splits that were loaded."""


def counted_digits(root: str | None) -> RawData:
    """A data set, as a config names one."""
    raw = DATASETS["digits"](root=root)
    counting.append(Counting(raw.test))
    return replace(raw, test=counting[-1])


def test_the_test_split_is_read_once_by_each_network_at_the_very_end(tiny: dict[str, Any], tmp_path: Path) -> None:
    counting.clear()
    readings: list[Tensor] = []

    def reading(judge: Callable[[nn.Module, Part], Reading], network: nn.Module, part: Part) -> Reading:
        before = counting[0].counts.clone()
        result = judge(network, part)
        if part == "test":
            readings.append(counting[0].counts - before)
            assert list((tmp_path / "finetuned").glob("*")), "fine-tuning comes first"
        return result

    tiny["data"]["name"] = f"{__name__}:counted_digits"
    result = go(settings(watched(tiny, evaluate=reading)), tmp_path)
    same = result.greedy == result.searched
    networks = 1 + (1 if same else 2) * (1 + tiny["finetune"]["seeds"])
    assert len(counting) == 1 and len(readings) == networks
    assert all((counts == 1).all() for counts in readings)
    assert (counting[0].counts == networks).all()


# ------------------------------------------------------------------------------------ what is refused


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": {"keep": 0.001}}, BudgetInfeasible, r"cannot be reached: .* costs [\d,]+ MACs \(keep 0\.\d+"),
        ({"budget": {"max_macs": 10}}, BudgetInfeasible, r"a budget of 10 MACs cannot be reached"),
        (
            {
                "model": {
                    "name": "espalier.pruning.networks:CifarResNet",
                    "kwargs": {"depth": 8, "in_channels": 1, "num_classes": 7},
                }
            },
            ConfigError,
            r"one number per class, \(1, 10\) for these data, got \(1, 7\): set model.kwargs.num_classes",
        ),
        ({"model": {"name": "resnet21"}}, ConfigError, "model.name: unknown name 'resnet21', did you mean 'resnet"),
        ({"data": {"name": "digit"}}, EspalierError, r"data.name must be one of .* got 'digit'"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(
    tiny: dict[str, Any], tmp_path: Path, change: dict[str, Any], error: type[EspalierError], message: str
) -> None:
    with pytest.raises(error, match=message):
        go(settings(tiny | change), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_other_settings_is_refused_and_left_alone(finished: tuple[Config, Path, Result]) -> None:
    config, out, _ = finished
    before = listing(out)
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(StudyMismatch, match=r"'tiny' was made with other settings: .*seed was 0, now 5"):
        go(other, out)
    assert [entry for entry in listing(out) if ".db" not in entry[0]] == [e for e in before if ".db" not in e[0]]
    assert config_of(default_storage(out), "tiny") == (config, out)


def test_other_weights_are_another_study(tiny: dict[str, Any], tmp_path: Path) -> None:
    for number in range(2):
        network = prepare(settings(tiny | {"seed": number})).model
        torch.save(network.state_dict(), tmp_path / f"{number}.pt")

    def config(number: int) -> Config:
        model = tiny["model"] | {"weights": str(tmp_path / f"{number}.pt")}
        return settings(tiny | {"model": model}, trials=2)

    go(config(0), tmp_path / "run")
    (tmp_path / "0.pt").rename(tmp_path / "moved.pt")
    (tmp_path / "1.pt").rename(tmp_path / "0.pt")
    with pytest.raises(StudyMismatch, match=r"weights is not the same any more"):
        go(config(0), tmp_path / "run")
    (tmp_path / "moved.pt").rename(tmp_path / "1.pt")
    assert go(config(1), tmp_path / "run").trials == 2


def test_another_ladder_than_the_studys_is_refused(copied: tuple[Config, Path]) -> None:
    config, out = copied
    (path,) = (out / "ladder").glob("rung1-*.safetensors")
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"digest": "0" * 16})
    message = rf"searched over other networks than those in .*ladder \(0{{16}}\): .* the run's own {path.name}$"
    with pytest.raises(StudyMismatch, match=message):
        go(config, out)


def test_a_broken_checkpoint_is_named(copied: tuple[Config, Path]) -> None:
    config, out = copied
    path = next((out / "ladder").glob("dense-*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtefactError, match=rf"cannot read {path}.*: remove it, and it is trained again"):
        go(config, out)


def test_another_study_in_the_folder_overwrites_no_result(copied: tuple[Config, Path]) -> None:
    """It has files of its own, which the same call finds again."""
    config, out = copied
    kept = {name: (out / name).read_bytes() for name in ("result.json", "pruned.espalier")}
    other, said = settings(config.model_dump(mode="json"), trials=4), io.StringIO()
    for _ in range(2):
        result = run(other, study="other/1", out=out, reporter=Lines(said))
        assert result.artefact == str(out / "pruned-other_1.espalier") and Path(result.artefact).is_file()
        assert json.loads((out / "result-other_1.json").read_text())["study"] == "other/1"
    line = f"{out} holds the result of another study, which stays: this one's is result-other_1.json"
    assert said.getvalue().count(line) == 2
    assert {name: (out / name).read_bytes() for name in kept} == kept
    go(config, out)
    assert json.loads((out / "result.json").read_text())["study"] == "tiny" and not list(out.glob("*-tiny*"))


def test_a_study_that_was_renamed_goes_on_with_its_files(copied: tuple[Config, Path]) -> None:
    config, out = copied
    url = default_storage(out)
    rename_study(open_storage(url, create=False), "tiny", url, "renamed", Silent())
    result = run(config, study="renamed", out=out)
    assert result.artefact == str(out / "pruned.espalier")
    assert json.loads((out / "result.json").read_text())["study"] == "renamed"


# ---------------------------------------------------------------------------------- Python's own way in


def test_a_search_is_a_call(tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = search_widths(tiny | {"workers": 3}, out=tmp_path / "run", study="mine", workers=0).result
    assert result.trials == 6 and result.study == "mine"
    assert (tmp_path / "run" / "pruned.espalier").is_file()
    said = capfd.readouterr()
    assert said.out == "" and said.err.splitlines().count("search: 0/6 candidates") == 1


def test_the_function_takes_overrides(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"budget.keep: .*got 1.5"):
        search_widths(tmp_path / "mine.yaml", overrides=["budget.keep=1.5"], out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"the config: 1 fault: budget.keep: .*got 1.5"):
        search_widths(tiny | {"budget": {"keep": 1.5}}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overrides_of_settings_in_a_mapping_count_too(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = search_widths(tiny, overrides=["search.trials=3"], out=tmp_path / "run").result
    assert result.trials == 3
    assert tiny["search"]["trials"] == 6


def test_progress_is_told_of_every_stage(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(settings(tiny, trials=3), tmp_path, reporter=Lines())
    said = capsys.readouterr().out
    for stage in (
        "dense training",
        "oicsr_gl, strength 0.001",
        "oicsr_gl, strength 0.01",
        "search: 3/3",
        "fine-tuning",
        "test split",
    ):
        assert stage in said


# ----------------------------------------------------------------------------------------------- killing


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "espalier", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complete(database: Path) -> list[tuple[int, float]]:
    """Number and value of every COMPLETE trial; none while the study is being made."""
    query = (
        "SELECT trials.number, trial_values.value FROM trials JOIN trial_values USING (trial_id) "
        "WHERE trials.state = 'COMPLETE' ORDER BY trials.number"
    )
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
        try:
            return list(connection.execute(query))
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return []


def wait_for(process: subprocess.Popen[str], database: Path, trials: int, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while len(complete(database)) < trials:
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, f"only {len(complete(database))} trials in {seconds} s"
        time.sleep(0.02)


# That every sampler proposes the same in a study that is resumed is shown in test_samplers.py.
@pytest.mark.parametrize(
    ("sampler", "signals"),
    [
        pytest.param("cmaes", [signal.SIGKILL, signal.SIGINT], marks=pytest.mark.faults),
        pytest.param("tpe", [signal.SIGKILL], marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_goes_on_as_if_nothing_had_happened(
    tiny: dict[str, Any], tmp_path: Path, sampler: str, signals: list[signal.Signals]
) -> None:
    trials = 80  # long enough that the signal comes in mid-search, however fast the machine
    config = settings(tiny, sampler=sampler, trials=trials)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    database = tmp_path / "study.db"
    storage = f"sqlite:///{database}"
    arguments = ["search", "tiny.yaml", "--storage", storage, "--out", "run", "--workers", "0"]
    resume = ["resume", "--storage", storage, "--study", "tiny", "--workers", "0"]
    for number, sent in enumerate(signals):
        process = start(arguments, tmp_path)
        try:
            wait_for(process, database, 8 * (number + 1))
            process.send_signal(sent)
            _, said = process.communicate(timeout=90)
        finally:
            process.kill()
            process.wait()
        if sent is signal.SIGINT:
            assert process.returncode == 130, said
            assert said.strip() == f"interrupted; go on with: espalier resume --storage {storage} --study tiny"
        else:
            assert process.returncode == -signal.SIGKILL
        before = complete(database)
        assert 8 * (number + 1) <= len(before) < trials
        arguments = resume
    process = start(resume, tmp_path)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    resumed = optuna.load_study(study_name="tiny", storage=storage).trials
    assert [trial.state.name for trial in resumed] == ["COMPLETE"] * trials
    assert complete(database)[: len(before)] == before
    go(config, tmp_path / "whole")
    whole = study_in(tmp_path / "whole").trials
    assert [(t.number, t.params, t.value) for t in resumed] == [(t.number, t.params, t.value) for t in whole]
    evaluated = [trial.user_attrs["espalier:candidate"] for trial in resumed]
    seconds = [trial.user_attrs["espalier:score"]["seconds"] for trial in resumed]
    for key in set(evaluated):  # one that came again was told the score it had, to the last digit of its time
        assert len({second for other, second in zip(evaluated, seconds, strict=True) if other == key}) == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["trials"] == trials
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------- Ray

NETWORK = """
from torch import nn

def tiny(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), Deep(width), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )

class Deep(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width), nn.ReLU())
"""


def processes() -> dict[int, tuple[int, str]]:
    """Parent and time of start of every process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(folder.name)] = (int(fields[1]), fields[19])
    return found


def below(root: int) -> dict[int, str]:
    """The processes that a process started, and theirs, each with its time of start."""
    running = processes()
    family = {root}
    while more := {pid for pid, (parent, _) in running.items() if parent in family} - family:
        family |= more
    return {pid: running[pid][1] for pid in family & running.keys() if pid != root}


def end(family: dict[int, str], patience: float = 3) -> None:
    """Waits for processes to end by themselves, and then kills those that did not."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        running = processes()
        if not any(running.get(pid, (0, ""))[1] == started for pid, started in family.items()):
            return
        time.sleep(0.2)
    for pid, started in family.items():
        if processes().get(pid, (0, ""))[1] == started:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=lambda sent: str(sent.name))
def test_a_search_on_ray_loses_nothing_when_its_driver_ends(
    tiny: dict[str, Any], tmp_path: Path, sent: signal.Signals
) -> None:
    trials = 60
    tiny["model"] = {"name": "mine:tiny", "kwargs": {"width": 8}}
    (tmp_path / "mine.py").write_text(NETWORK, encoding="utf-8")
    content = tiny | {"search": tiny["search"] | {"sampler": "tpe", "trials": trials}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    database = tmp_path / "study.db"
    storage = f"sqlite:///{database}"
    search = ["search", "tiny.yaml", "--storage", storage, "--out", "run", "--workers", "2"]
    process = start(search, tmp_path)
    family: dict[int, str] = {}
    try:
        wait_for(process, database, 12)
        family = below(process.pid)
        process.send_signal(sent)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
        end(family)
    if sent is signal.SIGINT:
        assert process.returncode == 130, said
        go_on = f"espalier resume --storage {storage} --study tiny --trust mine:tiny"
        assert said.strip() == f"interrupted; go on with: {go_on}"
    else:
        assert process.returncode == -signal.SIGKILL
    before = complete(database)
    assert 12 <= len(before) < trials
    process = start(["resume", "--storage", storage, "--study", "tiny", "--trust", "mine:tiny"], tmp_path)
    try:
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, said
    after = optuna.load_study(study_name="tiny", storage=storage).trials
    assert [trial.state.name for trial in after] == ["COMPLETE"] * trials
    assert set(before) <= set(complete(database))
    values: dict[str, set[float]] = {}
    for trial in after:
        values.setdefault(trial.user_attrs["espalier:candidate"], set()).add(trial.value or 0.0)
    assert all(len(of_one) == 1 for of_one in values.values())
    assert json.loads((tmp_path / "run" / "result.json").read_text())["trials"] == trials


@pytest.mark.parametrize("space", ["ratios", "widths"])
def test_greedy_is_greedy_under_every_budget_in_every_space(
    space: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Vectors of these spaces are no rankings: under another budget greedy's mean something else."""
    tiny["budget"]["keep"] = [0.8, 0.4]
    tiny["search"]["space"], tiny["finetune"]["epochs"] = space, 0.1
    config = parse_config(tiny, space)
    result = run(config, study="s", out=tmp_path)
    parts = Experiment(config, prepare(config), tmp_path, Silent())
    parts.train_ladder()
    graph, energies = parts.prepared.graph, parts.energies
    strengths = [rung.strength for rung in parts.rungs]
    for found, budget in zip((*result.others, result), parts.prepared.budgets, strict=True):
        own = energies[strengths.index(found.greedy.strength)]
        allowed = [greedy(graph, normalize(own, graph, how), budget).tolist() for how in ("mean", "raw")]
        assert list(found.greedy.widths.values()) in allowed


def test_the_greedy_baseline_is_the_best_once_finetuned(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["search"]["strength"] = "searched"
    config = parse_config(tiny, "tiny")
    run(config, study="s", out=tmp_path)
    baselines = greedy_candidates(config, tmp_path)
    assert len(baselines) > 1
    for baseline in baselines:
        prefer(tmp_path / "finetuned", baseline)
        found = run(config, study="s", out=tmp_path).greedy
        assert tuple(found.widths.values()) == baseline.widths


def test_what_is_compared_is_fine_tuned_with_seeds_that_chose_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    """By the choosing seeds one finalist is far ahead; on the test split it is compared over others."""
    told, seen, ahead = Stops(), dict[str, set[int]](), list[torch.Size]()

    def train(go: Callable[..., None], network: nn.Module, stage: Stage, *, seed: int, **how: Any) -> None:
        if stage.name == "finetune":
            seen.setdefault(told.titles[-1], set()).add(seed)
        go(network, stage, seed=seed, **how)

    def evaluate(judge: Callable[[nn.Module, Part], Reading], network: nn.Module, part: Part) -> Reading:
        found, shapes = judge(network, part), [tensor.shape for tensor in network.parameters()]
        if part != "judging" or told.titles[-1] != "fine-tuning finalists":
            return found
        ahead[:] = ahead or shapes
        return replace(found, value=101.0) if shapes == ahead else found

    config = parse_config(watched(tiny, train, evaluate), "tiny")
    result = run(config, study="s", out=tmp_path, reporter=told)
    assert len(result.searched.after_seeds) == tiny["finetune"]["seeds"] == 2
    assert seen.pop("final fine-tuning") == {0, 1} == set(result.seeds["finetune"])
    assert set[int]().union(*seen.values()) == {1000, 1001} == set(result.seeds["selection"])
    assert len(ahead) > 0 and seen.keys() >= {"fine-tuning finalists", "fine-tuning to choose the strength"}


def test_seeds_are_not_added_once_a_verdict_was_seen(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Two are too few for a verdict, which says so, and more may follow; three give one."""
    tiny["finetune"]["epochs"] = 0.1
    for seeds in (2, 3):
        tiny["finetune"]["seeds"] = seeds
        result = run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
        assert len(result.searched.after_seeds) == seeds
    tiny["finetune"]["seeds"] = 8
    before = listing(tmp_path)
    with pytest.raises(StudyMismatch, match=r"over 3 seeds, got finetune.seeds = 8: seeds that are added"):
        run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    assert [name for name, _ in listing(tmp_path)] == [name for name, _ in before]
    with pytest.raises(StudyMismatch, match="over 3 seeds"):
        pipeline.resume(default_storage(tmp_path), "s", overrides=["finetune.seeds=2"], out=tmp_path)


@pytest.mark.parametrize(
    ("built_for", "asked", "gpus", "said"),
    [
        (False, "bf16", 0.0, True),
        (False, "auto", 0.0, False),
        (True, "bf16", 0.0, False),
        (False, "bf16", 1.0, False),
    ],
)
def test_a_precision_that_the_processor_emulates_is_named(
    tiny: dict[str, Any],
    tmp_path: Path,
    bf16: Callable[[bool], None],
    capsys: pytest.CaptureFixture[str],
    built_for: bool,
    asked: str,
    gpus: float,
    said: bool,
) -> None:
    bf16(built_for)
    tiny["training"]["precision"] = tiny["search"]["precision"] = asked
    config = parse_config(tiny | {"cluster": {"gpus_per_worker": gpus}}, "tiny")
    Experiment(config, prepare(config), tmp_path, Lines())
    told = capsys.readouterr().out
    assert told.startswith("training.precision and search.precision: this processor is not b") is said
    assert said or not told


@pytest.mark.parametrize(("there", "gpus", "said"), [(True, 0.0, False), (False, 0.0, True), (True, 1.0, True)])
def test_int8_where_there_is_none_is_said(
    tiny: dict[str, Any],
    tmp_path: Path,
    int8: Callable[[bool], None],
    capsys: pytest.CaptureFixture[str],
    there: bool,
    gpus: float,
    said: bool,
) -> None:
    int8(there)
    tiny["search"]["precision"] = "int8"
    config = parse_config(tiny | {"cluster": {"gpus_per_worker": gpus}}, "tiny")
    Experiment(config, prepare(config), tmp_path, Lines())
    told = capsys.readouterr().out
    assert told == "search.precision: int8 is for x86 processors; candidates run in fp32\n" * said


def test_some_held_out_images_stay_unseen_whatever_is_asked_for(tiny: dict[str, Any], tmp_path: Path) -> None:
    cases = [(300, 64, (64, 236, 236)), (300, 1024, (200, 100, 100)), (60, 1024, (30, 30, 30))]
    for held_out, asked, expected in cases:
        tiny["data"]["search_images"], tiny["search"]["scoring_images"] = held_out, asked
        config = parse_config(tiny, "tiny")
        task = prepare(config).task
        assert isinstance(task, ClassificationTask)
        scored, promoted, judged = (
            set(task._indices[part].tolist()) for part in ("scoring", "promotion", "judging")
        )
        assert not scored & (promoted | judged) and scored | promoted | judged == set(range(held_out))
        assert (len(scored), len(promoted), len(judged)) == expected


def test_a_search_without_its_greedy_says_why_and_what_to_do(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before_scoring: Callable[[str, Callable[[Candidate], object]], None],
) -> None:
    tiny["cluster"] = {"time_budget": 1e-6}
    with pytest.raises(
        EspalierError, match=r"not among the 0 finished trials, as the time was over before: `espalier"
    ):
        run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    del tiny["cluster"]
    baselines = [candidate.key for candidate in greedy_candidates(parse_config(tiny, "tiny"), tmp_path)]

    def failing(candidate: Candidate) -> None:
        if candidate.key in baselines:
            raise RuntimeError("out of memory")

    before_scoring(parse_config(tiny, "tiny").search.proxy, failing)
    with pytest.raises(
        EspalierError, match=r"as its evaluations failed \(RuntimeError: out of memory\): `espalier resume` tries"
    ):
        run(parse_config(tiny, "tiny"), study="s", out=tmp_path)
    monkeypatch.undo()
    assert run(parse_config(tiny, "tiny"), study="s", out=tmp_path).greedy.macs > 0


def test_several_budgets_share_one_search(tiny: dict[str, Any], tmp_path: Path) -> None:
    alone = run(parse_config(tiny, "one"), study="s", out=tmp_path)
    tiny["budget"]["keep"] = [0.8, 0.6, 0.4]
    several = run(parse_config(tiny, "several"), study="s", out=tmp_path)
    assert several.trials == alone.trials
    assert [result.budget["macs"] for result in (*several.others, several)] == [
        int(keep * several.dense.macs) for keep in (0.8, 0.6, 0.4)
    ]
    assert (several.searched, several.greedy) == (alone.searched, alone.greedy)
    for result in several.others:
        assert result.greedy.macs <= result.budget["macs"] and result.searched.macs <= result.budget["macs"]
        network = espalier.load(result.artefact)
        assert sum(p.numel() for p in network.parameters()) == result.searched.params
        assert sum(result.greedy.widths.values()) > sum(several.greedy.widths.values())
    written = json.loads((tmp_path / "result.json").read_text())
    assert [other["budget"] for other in written["others"]] == [other.budget for other in several.others]


def test_a_cluster_that_cannot_be_joined_is_told_of_before_anything_is_trained(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = parse_config(tiny | {"workers": 2, "cluster": {"address": f"127.0.0.1:{port}"}}, "tiny")
    with pytest.raises(ClusterError, match="nothing answers at "):
        go(config, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
