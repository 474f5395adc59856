"""Whole comparisons in this process: what is held equal, what is kept, and what is never done again."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import espalier
from espalier.errors import ArtefactError, ConfigError, ExportError, MissingPackage, StudyMismatch
from espalier.pruning.gates.gates import GATES
from espalier.pruning.networks import CifarResNet
from espalier.pruning.runtimes import RUNTIMES, Runtime, Session
from espalier.pruning.runtimes.eager import Eager
from espalier.pruning.runtimes.onnx_runtime import OnnxRuntime
from espalier.pruning.seeding import seeded
from espalier.search.compare.cells import Cell, Measured, Store, packed, unpacked
from espalier.search.compare.comparison import Comparison
from espalier.search.compare.protocol import Compared
from espalier.search.compare.rows import timed_rows
from espalier.search.config.loading import Config, parse_config
from espalier.search.files.json_files import write_json
from espalier.search.files.tensor_files import load_header
from espalier.search.methods import METHODS as METHODS_BY_NAME
from espalier.search.methods import Choice, Material
from espalier.search.methods.rankings import Uniform
from espalier.search.run.search_run import run
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.study.storage import absolute
from espalier.search.tasks.classification.data import DATASETS, ImageSet, RawData
from espalier.search.tasks.task import Stage
from espalier.search.training.schedules import SCHEDULES
from tests.search.watched import Stopped, Stops, greedy_candidates, prefer, watched

METHODS = ["greedy", "l1_mean", "uniform", "random", "scratch", "dense"]

Settings = Callable[..., Config]
Go = Callable[..., Compared]


def test_the_table_is_whole_and_every_method_keeps_the_budget(finished: tuple[Path, Compared]) -> None:
    _, found = finished
    comparison, graph = found.comparison, found.prepared.graph
    assert comparison.asked.expected == len(comparison.cells) == 2 * 2 * (len(METHODS) - 1)
    assert list(comparison.asked.budgets.values()) == ["60 % of the MACs", "40 % of the MACs"]
    for budget, limit in zip(comparison.asked.budgets, found.prepared.budgets, strict=True):
        for method in METHODS[:-1]:
            for cell in comparison.of(budget, method):
                widths = [cell.widths[group.name] for group in graph.groups]
                assert limit.fits(graph, widths) and cell.macs == graph.macs(widths)
                assert cell.params == graph.params(widths)
                assert cell.kept == cell.macs / comparison.dense.macs
                assert 0 <= cell.after <= 100 and cell.latency > 0 and cell.dense_latency > 0
                assert (cell.before is None) == (method == "scratch")
                right = unpacked(cell.right, comparison.asked.images["test"])
                assert cell.after == pytest.approx(100 * right.mean())


def test_all_methods_have_the_strength_that_fine_tuning_chose_for_a_budget(finished: tuple[Path, Compared]) -> None:
    folder, found = finished
    plan = Store(folder / "compare").plan
    for budget, words in found.comparison.asked.budgets.items():
        tops = plan[f"strength:{budget}"]
        rung = Candidate.from_key(max(tops, key=lambda key: tops[key])).rung
        assert len(tops) == 6
        assert {cell.rung for cell in found.comparison.cells if cell.budget == budget} == {rung}
        assert found.comparison.strengths[words] == [(0.001, 0.01)[rung]]


def test_searches_have_equal_evaluations_and_others_one_per_ranking(finished: tuple[Path, Compared]) -> None:
    rows = finished[1].comparison.rows
    evaluations = {row.method: row.evaluations for row in rows}
    assert evaluations == {"greedy": 1, "l1_mean": 1, "uniform": 1, "random": 5, "scratch": 5}
    assert {row.seeds for row in rows} == {2}
    assert all(len(cell.history) == 5 for cell in finished[1].comparison.cells if cell.method == "random")


def test_every_gate_and_schedule_is_compared(settings: Settings, go: Go, tmp_path: Path) -> None:
    methods = ["greedy", *GATES, *SCHEDULES]
    found = go(settings(methods=methods, seeds=1), tmp_path).comparison
    assert found.failures == {}
    assert {cell.method for cell in found.cells} == set(methods)


def test_scratch_has_the_widths_of_the_search(finished: tuple[Path, Compared]) -> None:
    comparison = finished[1].comparison
    for budget in comparison.asked.budgets:
        searched, scratch = comparison.of(budget, "random"), comparison.of(budget, "scratch")
        assert [cell.widths for cell in searched] == [cell.widths for cell in scratch]
        assert [cell.after for cell in searched] != [cell.after for cell in scratch]
        for cell in scratch:  # these are the search's, of trained networks
            assert math.isnan(cell.value) and math.isnan(cell.held_out_before) and cell.strength == 0.0
        rungs = {cell.strength for cell in comparison.cells if cell.budget == budget and cell.method != "scratch"}
        assert comparison.strengths[comparison.asked.budgets[budget]] == sorted(rungs)
    assert comparison.asked.scratch_epochs == 2 + 2 * 1 + 0.5


def test_what_scratch_is_holds_from_the_start(settings: Settings, go: Go, tmp_path: Path) -> None:
    methods = ["greedy", "random"]
    go(settings(methods=methods), tmp_path)
    with pytest.raises(Stopped):
        go(settings(methods=[*methods, "scratch"]), tmp_path, Stops(stage="fine-tuning scratch", opening=1))
    with pytest.raises(StudyMismatch, match=r"scratch_epochs was .*, now 9"):
        go(settings(methods=[*methods, "scratch"], scratch_epochs=9), tmp_path)


def test_scratch_begins_with_new_weights_as_they_are(tiny: dict[str, Any], go: Go, tmp_path: Path) -> None:
    """None of its layers is solved for what a random network gives."""
    with seeded(0):
        new = CifarResNet(**tiny["model"]["kwargs"])
    drawn = torch.cat([each.detach().flatten() for each in new.parameters()])
    seen: list[bool] = []

    def train(go: Callable[..., None], network: nn.Module, stage: Stage, **how: Any) -> None:
        parameters = list(network.parameters())
        if stage.name == "dense" and sum(each.numel() for each in parameters) < len(drawn):
            seen.append(all(bool(torch.isin(each.detach().cpu(), drawn).all()) for each in parameters))
        go(network, stage, **how)

    sections = {"compare": {"methods": ["random", "greedy", "scratch"], "seeds": 1, "trials": 3}}
    content = tiny | sections | {"finetune": tiny["finetune"] | {"reconstruct": True}}
    go(parse_config(watched(content, train), "tiny"), tmp_path)
    assert seen == [True]


class Never(Uniform):
    """Must not be asked."""

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Fails."""
        raise AssertionError("it has chosen before")


def test_seeds_that_are_added_choose_again_only_where_a_seed_matters(
    settings: Settings, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["greedy", "uniform", "random"]
    go(settings(methods=methods, seeds=1), tmp_path)
    monkeypatch.setitem(METHODS_BY_NAME, "uniform", Never())
    found = go(settings(methods=methods, seeds=2), tmp_path).comparison
    assert not found.failures and len(found.cells) == 2 * 3 * 2
    for budget in found.asked.budgets:
        first, second = found.of(budget, "uniform")
        assert first.widths == second.widths and first.search_seconds == second.search_seconds


def test_scores_that_overflow_are_kept(tmp_path: Path) -> None:
    """Such as a perplexity: infinity is no number of JSON."""
    inf = math.inf
    score = Score({"perplexity": inf, "other": math.nan}, 1.0, signal=-inf)
    text = json.dumps(score.to_json(), allow_nan=False)
    assert Score.from_json(json.loads(text)) == Score({"perplexity": inf}, 1.0, signal=-inf)
    choice = Choice(Candidate(0, (1,)), "energy", score, 2, 1.0, history=(-inf, -2.0))
    write_json(tmp_path / "choice.json", choice.to_json())
    back = Choice.from_json(json.loads((tmp_path / "choice.json").read_text()))
    assert back.history == choice.history and back.score.measures == {"perplexity": inf}
    cell: dict[str, Any] = {each.name: 1.0 for each in fields(Measured)} | {
        "history": [None, -2.0],
        "timings": {},
        "value": None,
    }
    measured = Measured.from_json(cell)
    assert measured.history == (-inf, -2.0) and math.isnan(measured.value)


def test_without_a_search_the_verdict_is_about_the_other_methods(finished: tuple[Path, Compared]) -> None:
    comparison = finished[1].comparison
    methods = tuple(name for name in comparison.asked.methods if name not in comparison.asked.searches)
    alone = replace(comparison, asked=replace(comparison.asked, methods=methods))
    assert alone.asked.judged == [name for name in methods if name not in ("greedy", "scratch", "dense")] != []
    assert alone.verdict.startswith("Too few seeds to tell at 60 % of the MACs and 40 % of the MACs")
    assert "search" not in alone.verdict
    nothing = replace(comparison, asked=replace(comparison.asked, methods=("greedy", "scratch")))
    assert nothing.verdict.startswith("Nothing was compared with greedy. Name methods in compare.methods")
    assert len(alone.rows) == 2 * 3 + 2  # scratch included


def test_numbers_are_written(finished: tuple[Path, Compared]) -> None:
    out, found = finished
    content = json.loads((out / "compare" / "compare.json").read_text())
    assert content["verdict"] == found.comparison.verdict
    assert content["asked"]["command"] == "espalier compare tiny.yaml"
    assert len(content["cells"]) == len(found.comparison.cells) and "right" not in content["cells"][0]
    assert [row["method"] for row in content["table"]] == METHODS[:-1] * 2
    assert [sweep["method"] for sweep in content["hypervolumes"]] == METHODS[:-1]
    assert {"ladder", "choosing widths", "fine-tuning", "test split", "latency"} <= content["seconds"].keys()
    with (out / "compare" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + len(found.comparison.cells) and float(rows[0]["after"]) == found.comparison.dense.after
    with (out / "compare" / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == METHODS[:-1] * 2


def test_what_is_finished_is_not_done_again_and_a_method_runs_alone(
    finished: tuple[Path, Compared], settings: Settings, go: Go, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    told = Stops()
    again = go(settings(), out, told)
    assert told.titles == [] and again.comparison.cells == finished[1].comparison.cells
    more = go(settings(methods=[*METHODS, "energy_raw"]), out, told)
    chosen = [note for title, note in told.updates if title == "choosing widths"]
    assert chosen == ["energy_raw, seed 0"] * 2
    kept = tuple(cell for cell in more.comparison.cells if cell.method != "energy_raw")
    assert kept == finished[1].comparison.cells


def test_seeds_and_budgets_can_be_added_and_nothing_else_changed(
    finished: tuple[Path, Compared], tiny_text: str, settings: Settings, go: Go, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    content = yaml.safe_load(tiny_text)
    content["compare"] = {"methods": ["greedy"], "seeds": 3, "trials": 5}
    content["budget"]["keep"] = [0.6, 0.5]
    more = go(parse_config(content, "tiny"), out)
    assert len(more.comparison.cells) == 2 * 3
    old = {(cell.budget, cell.seed): cell for cell in finished[1].comparison.cells if cell.method == "greedy"}
    same = [cell for cell in more.comparison.cells if (cell.budget, cell.seed) in old]
    assert len(same) == 2 and all(cell == old[cell.budget, cell.seed] for cell in same)
    for key, value in (("finetune.epochs", 2), ("search.measure", "top1"), ("compare.trials", 6)):
        changed = settings().model_dump(mode="json")
        section, name = key.split(".")
        changed[section][name] = value
        with pytest.raises(StudyMismatch, match=r"was made with other settings: \S*" + name.replace("trials", "")):
            go(parse_config(changed, "tiny"), out)


def test_seeds_are_not_added_once_a_verdict_was_seen(tiny_text: str, go: Go, tmp_path: Path) -> None:
    """Two are too few for a verdict, so that more may follow; three give one."""
    content = yaml.safe_load(tiny_text)
    content["finetune"]["epochs"] = 0.1

    def of(seeds: int) -> Compared:
        methods = {"methods": ["greedy", "uniform"], "seeds": seeds, "trials": 5}
        return go(parse_config(content | {"compare": methods}, "tiny"), tmp_path)

    of(2)
    assert len(of(3).comparison.cells) == 6
    for seeds in (2, 4):
        with pytest.raises(StudyMismatch, match=rf"has 3 seeds, got compare.seeds = {seeds}: seeds that are added"):
            of(seeds)
    assert len(of(3).comparison.cells) == 6


def test_greedy_is_the_baseline_that_a_search_has(tiny_text: str, go: Go, tmp_path: Path) -> None:
    """Of all greedy prunings the one that fine-tuning prefers, whatever the proxy says of it."""
    content = yaml.safe_load(tiny_text)
    content["finetune"] |= {"epochs": 0.1}
    content["search"] |= {"strength": "searched"}
    config = parse_config(content | {"compare": {"methods": ["greedy"], "seeds": 1, "trials": 5}}, "tiny")
    run(config, study="s", out=tmp_path / "searched")
    baselines = greedy_candidates(config, tmp_path / "searched")
    prefer(tmp_path / "searched" / "finetuned", baselines[-1])
    searched = run(config, study="s", out=tmp_path / "searched")
    for folder in ("ladder", "finetuned"):
        shutil.copytree(tmp_path / "searched" / folder, tmp_path / "compared" / folder)
    (cell,) = go(config, tmp_path / "compared").comparison.cells
    assert len(baselines) == 4 and cell.rung == baselines[-1].rung
    assert tuple(cell.widths.values()) == tuple(searched.greedy.widths.values()) == baselines[-1].widths


def test_fine_tuning_chooses_among_finalists_as_a_search_does(tiny: dict[str, Any], go: Go, tmp_path: Path) -> None:
    """Whatever the proxy says of them."""
    content = tiny | {"compare": {"methods": ["greedy", "random"], "seeds": 1}}
    config = parse_config(content, "tiny")
    run(config, study="s", out=tmp_path / "searched")
    tuned = (tmp_path / "searched" / "finetuned").glob(
        "*-seed1001.safetensors"
    )  # the second seed of the last round
    entered = [Candidate.from_key(load_header(path)["candidate"]) for path in tuned]
    assert len(entered) > 1
    for number, wanted in enumerate(entered):
        prefer(tmp_path / "searched" / "finetuned", wanted)
        searched = run(config, study="s", out=tmp_path / "searched")
        out = tmp_path / f"compared{number}"
        for folder in ("ladder", "finetuned"):
            shutil.copytree(tmp_path / "searched" / folder, out / folder)
        greedy, found = go(config, out).comparison.cells
        assert tuple(found.widths.values()) == tuple(searched.searched.widths.values()) == wanted.widths
        assert tuple(greedy.widths.values()) == tuple(searched.greedy.widths.values())
        assert found.search_seconds > sum(
            load_header(p)["seconds"] for p in (out / "finetuned").glob("*-seed100?.s*")
        )
        choice = Store(out / "compare").choice(Cell(found.budget, "random", 0))
        assert choice is not None and choice.candidate == wanted and choice.finalists == ()


def test_where_no_finalist_can_be_fine_tuned_nothing_is_decided(
    tiny: dict[str, Any], go: Go, tmp_path: Path
) -> None:
    """The cell fails, and the next run tries again."""
    content = tiny | {"compare": {"methods": ["greedy", "random"], "seeds": 2}}
    wanted = go(parse_config(watched(content), "tiny"), tmp_path / "whole").comparison

    def train(go: Any, network: nn.Module, stage: Stage, *, seed: int, **how: Any) -> None:
        if seed in (1002, 1003) and stage.name == "finetune":  # that choose in the cells of seed 1
            raise RuntimeError("CUDA out of memory")
        go(network, stage, seed=seed, **how)

    found = go(parse_config(watched(content, train), "tiny"), tmp_path / "out").comparison
    (failed,) = found.failures
    assert failed.endswith("random-seed1") and len(found.cells) == 3
    assert found.failures[failed].startswith("fine-tuning failed for all of its finalists: RuntimeError: CUDA out")
    again = go(parse_config(watched(content), "tiny"), tmp_path / "out").comparison
    assert [cell.widths for cell in again.cells] == [cell.widths for cell in wanted.cells]


def test_a_comparison_that_an_older_espalier_began_goes_on_by_the_proxy(
    settings: Settings, go: Go, tmp_path: Path
) -> None:
    config = settings(methods=["greedy", "random"], seeds=1)
    with pytest.raises(Stopped):
        go(config, tmp_path, Stops(stage="choosing widths", opening=1))
    plan = Store(tmp_path / "compare").plan
    del plan["fingerprint"]["search.finalists"], plan["fingerprint"]["finetune.selection_seeds"]
    write_json(tmp_path / "compare" / "plan.json", plan)
    told = Stops()
    assert len(go(config, tmp_path, told).comparison.cells) == 4
    assert any(line.startswith("this comparison was begun when the proxy alone chose") for line in told.lines)
    assert any(line.endswith("5 evaluations a search") for line in told.lines)
    assert "fine-tuning finalists" not in told.titles


def test_a_network_and_a_task_of_ones_own_are_compared_in_python(tmp_path: Path) -> None:
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = nn.Sequential(*layers), torch.randn(64, 6)
    wanted = network(inputs).detach()

    def error(pruned: nn.Module) -> float:
        return float((pruned(inputs) - wanted).square().mean())

    def train(pruned: nn.Module, *, epochs: float, seed: int) -> None:
        optimizer = torch.optim.Adam(pruned.parameters(), lr=1e-2)
        for rows in torch.randperm(64).split(16) * int(epochs):
            optimizer.zero_grad()
            (pruned(inputs[rows]) - wanted[rows]).square().mean().backward()
            optimizer.step()

    def errors(pruned: nn.Module) -> Tensor:
        found: Tensor = (pruned(inputs) - wanted).square().mean(1)
        return found

    def go(network: nn.Module = network, score: Any = error, methods: Any = ("greedy", "random")) -> Comparison:
        task = espalier.FunctionTask(score, inputs.split(16), train, metric="mean squared error", test=errors)
        return espalier.compare(
            network,
            inputs[:1],
            task,
            budget=espalier.Budget(macs=0.5),
            methods=methods,
            seeds=2,
            trials=4,
            epochs=2,
            strengths=[0.0],
            workers=0,
            out=tmp_path / "out",
            progress=False,
        )

    found = go()
    assert found.failures == {} and len(found.cells) == 4 and found.asked.network.endswith("Sequential")
    assert found.asked.data == "FunctionTask" and found.asked.metric.title == "mean squared error"
    assert all(cell.macs <= 0.5 * found.dense.macs for cell in found.cells)
    assert go().cells == found.cells  # from its files
    assert found.test_examples == 64  # they count, too
    assert "against greedy (95 %)" in repr(found) and "too few seeds" in repr(found).lower()
    greedy = next(cell for cell in found.cells if cell.method == "greedy")
    assert greedy.search_seconds > 0.001  # its normalisation was fine-tuned, too
    with pytest.raises(ConfigError, match=r"a config says methods, seeds and trials: in their place"):
        espalier.compare("digits", seeds=3)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"by name: overrides=\['compare.seeds=3'\]"):
        espalier.compare("digits", ["compare.seeds=3"])  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="scratch trains new weights: it needs a network that a config names"):
        go(methods=["greedy", "random", "scratch"])
    with pytest.raises(StudyMismatch, match="made with other settings"):
        go(nn.Sequential(*(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))))
    wanted = wanted + 1
    with pytest.raises(StudyMismatch, match=r"the dense network was 0 when the comparison in .* began"):
        go()


def test_a_fine_tuning_that_fails_is_its_cell_s_failure(tiny_text: str, go: Go, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_text)
    content["finetune"] |= {"epochs": 0.1}
    content["compare"] = {"methods": ["greedy", "uniform"], "seeds": 2, "trials": 5}

    def train(go: Any, network: nn.Module, stage: Stage, *, seed: int, **how: Any) -> None:
        if seed == 1 and stage.name == "finetune":
            raise RuntimeError("CUDA out of memory")
        go(network, stage, seed=seed, **how)

    found = go(parse_config(watched(content, train), "tiny"), tmp_path).comparison
    assert {cell.seed for cell in found.cells} == {0} and len(found.cells) == len(found.failures)
    assert all("CUDA out of memory" in why for why in found.failures.values())
    again = go(parse_config(watched(content), "tiny"), tmp_path).comparison
    assert not again.failures and len(again.cells) == 2 * len(found.cells)


def test_an_interrupted_comparison_goes_on(
    finished: tuple[Path, Compared], settings: Settings, go: Go, tmp_path: Path
) -> None:
    """Stopped in each of its stages, it ends with the cells of one that was not."""
    methods = ["greedy", "random", "scratch"]
    shutil.copytree(finished[0] / "ladder", tmp_path / "ladder")
    for stops in (
        Stops(stage="choosing widths", update=3),
        Stops(stage="fine-tuning scratch", opening=1),
        Stops(stage="latency and cells", update=4),
    ):
        with pytest.raises(Stopped):
            go(settings(methods=methods), tmp_path, stops)
    resumed = go(settings(methods=methods), tmp_path).comparison

    def untimed(cell: Measured) -> Measured:
        cell = replace(cell, layout="", dense_layout="")
        return replace(cell, latency=0.0, dense_latency=0.0, timings={}, search_seconds=0.0, finetune_seconds=0.0)

    whole = [cell for cell in finished[1].comparison.cells if cell.method in methods]
    assert [untimed(cell) for cell in resumed.cells] == [untimed(cell) for cell in whole]


class Counting(ImageSet):
    """Test images that count how often each is fetched."""

    def __init__(self, images: ImageSet) -> None:
        self._images, self.labels = images, images.labels
        self.counts = torch.zeros(len(images), dtype=torch.int64)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._images.image_shape

    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        self.counts[indices] += 1
        return self._images.fetch(indices, crops)

    def take(self, indices: Tensor) -> ImageSet:
        raise AssertionError("the test split is read whole")


counting: list[Counting] = []
"""The test splits that were loaded."""


def counted_digits(root: str | None) -> RawData:
    """A data set, as a config names one."""
    raw = DATASETS["digits"](root=root)
    counting.append(Counting(raw.test))
    return replace(raw, test=counting[-1])


def test_each_network_is_read_once_on_the_test_split(settings: Settings, go: Go, tmp_path: Path) -> None:
    counting.clear()
    methods = ["greedy", "energy_raw", "uniform"]
    content = settings(methods=methods).model_dump(mode="json")
    content["data"]["name"] = f"{__name__}:counted_digits"
    content["budget"]["keep"] = 0.4
    found = go(parse_config(content, "tiny"), tmp_path).comparison
    networks = {
        (cell.criterion, cell.method == "energy_raw", *cell.widths.values(), cell.rung) for cell in found.cells
    }
    assert (counting[0].counts == 1 + 3 * len(networks)).all()  # dense; before, and after with two seeds
    go(parse_config(content, "tiny"), tmp_path)
    assert (counting[1].counts == 0).all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"methods": ["greedy", "autto"]}, "compare.methods.1: unknown name 'autto', did you mean 'auto'?"),
        ({"methods": ["auto"]}, "compare: baseline must be one of methods, auto, got 'greedy'"),
        ({"methods": ["greedy", "greedy"]}, "compare: methods must be named once each"),
        ({"methods": ["greedy", "scratch"]}, "compare.methods: scratch takes the widths of a search, and none is"),
        ({"seeds": 0}, "compare.seeds: input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_config_is_checked(settings: Settings, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**section)
    assert message in str(caught.value)


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "cells" / "b").mkdir(parents=True)
    (tmp_path / "cells" / "b" / "auto-seed1.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"auto-seed1.json: .*; remove it, and it is made again"):
        Store(tmp_path).measured(Cell("b", "auto", 1))


def test_bits_come_back() -> None:
    bits = torch.rand(37, generator=torch.Generator().manual_seed(0)).numpy() > 0.5
    assert (unpacked(packed(bits), 37) == bits).all()


def test_a_relative_storage_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///a/b.db") == f"sqlite:///{tmp_path.resolve() / 'a' / 'b.db'}"
    assert absolute("b.log") == f"journal:///{tmp_path.resolve() / 'b.log'}"
    assert absolute("postgresql://me:secret@host/db") == "postgresql://me:secret@host/db"


LATENCY = {"runtimes": ["onnxruntime", "eager"], "batches": [4, 1]}


def test_networks_are_timed_in_every_runtime_with_every_batch(settings: Settings, go: Go, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = go(settings(methods=["greedy", "uniform"], seeds=1, latency=LATENCY), tmp_path).comparison
    assert (found.asked.runtimes, found.asked.batches, found.asked.threads) == (("onnxruntime", "eager"), (4, 1), 1)
    for cell in (found.dense, *found.cells):
        assert list(cell.timings) == ["onnxruntime-4", "onnxruntime-1", "eager-4", "eager-1"]
        first = cell.timings["onnxruntime-4"]
        assert (cell.latency, cell.dense_latency) == (first.own.milliseconds, first.dense.milliseconds)
        assert all(timed.own.low <= timed.own.milliseconds <= timed.own.high for timed in cell.timings.values())
    for row in found.rows:
        for key, timed in row.timings.items():
            (own,) = (cell.timings[key].own for cell in found.of(row.budget, row.method))
            assert timed.throughput == pytest.approx(1000 * timed.batch / own.milliseconds)
            assert (timed.low, timed.high) == (own.low, own.high)
    again = Store(tmp_path / "compare").measured(Cell(found.cells[0].budget, "greedy", 0))
    assert again == found.cells[0]
    with (tmp_path / "compare" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["timings.eager-1.throughput"]) == found.rows[0].timings["eager-1"].throughput
    with pytest.raises(StudyMismatch, match=r"latency.runtimes was \['onnxruntime', 'eager'\], now None"):
        go(settings(methods=["greedy", "uniform"], seeds=1), tmp_path)


def test_a_network_that_a_runtime_refuses_is_timed_in_the_others(
    settings: Settings, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")

    def refuse(kind: type[Runtime], taken: int) -> None:
        """The runtime takes so many networks, and no more."""
        left = itertools.repeat(None, taken)

        class Refusing(kind):  # type: ignore[misc, valid-type]
            def prepare(self, *network: Any, **how: Any) -> Session:
                if next(left, ...) is None:
                    return super().prepare(*network, **how)  # type: ignore[no-any-return]
                raise ExportError("layer x runs y")

        monkeypatch.setitem(RUNTIMES, kind.name, Refusing)

    refuse(OnnxRuntime, 1)  # the dense one, before anything is trained
    found = go(settings(methods=["greedy"], baseline="greedy", seeds=1, latency=LATENCY), tmp_path).comparison
    assert all(list(cell.timings) == ["eager-4", "eager-1"] for cell in found.cells)
    refuse(OnnxRuntime, 1)
    refuse(Eager, 0)
    with pytest.raises(ExportError, match="layer x runs y"):
        go(settings(methods=["greedy"], baseline="greedy", seeds=1, latency=LATENCY), tmp_path / "other")


def test_runtimes_that_are_not_there_are_refused_before_anything_is_trained(
    settings: Settings, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="threads must be a whole number from 1 to the"):
        go(settings(latency={"threads": 10**6}), tmp_path)
    for package in ("openvino",):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(MissingPackage, match=r"the runtime openvino needs .*espalier\[openvino,onnx\]"):
        go(settings(latency={"runtimes": ["openvino"]}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"latency": {"runtimes": ["onnx_runtime"]}}, "unknown name 'onnx_runtime', did you mean 'onnxruntime'"),
        ({"latency": {"runtimes": []}}, "compare.latency.runtimes: "),
        ({"latency": {"runtimes": ["eager", "eager"]}}, "compare.latency: runtimes must be named once each"),
        ({"latency": {"batches": [1, 1]}}, "compare.latency: batches must be named once each, got 1, 1"),
        ({"latency": {"batches": [0]}}, "compare.latency.batches.*: input should be greater than or equal to 1"),
        ({"latency": {"threads": 0}}, "compare.latency.threads: input should be greater than or equal to 1"),
        ({"latency": {"repeats": 9}}, "compare.latency.repeats: unknown name 'repeats', keys here are runtimes"),
        ({"latency": {"batches": [1, 8]}, "latency_batch": 4}, "latency_batch is what latency.batches says"),
    ],
)
def test_how_latency_is_asked_for(section: dict[str, Any], message: str, settings: Settings) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**section)


def test_configs_and_results_of_before_are_read(finished: tuple[Path, Compared], settings: Settings) -> None:
    assert settings(latency_batch=4).compare.batches == (4,) and settings().compare.batches == (1,)
    assert settings(latency={"batches": [4, 1]}, latency_batch=4).compare.batches == (4, 1)
    fingerprint = Store(finished[0] / "compare").plan["fingerprint"]
    assert fingerprint["latency_batch"] == 1 and not [key for key in fingerprint if key.startswith("latency.")]
    content = json.loads(json.dumps(asdict(finished[1].comparison.cells[0])))
    assert Measured.from_json(content) == finished[1].comparison.cells[0]
    del content["timings"]
    old = Measured.from_json(content)
    assert old.timings == {} and timed_rows([old]) == {} and old.latency == content["latency"]
    both = timed_rows([old, finished[1].comparison.cells[0]])
    assert list(both) == ["eager-1"] and both["eager-1"].milliseconds == content["latency"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_comparison_goes_on(finished: tuple[Path, Compared], settings: Settings, tmp_path: Path) -> None:
    """SIGKILL, twice; then the same command."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings().model_dump(mode="json")))
    command = [sys.executable, "-m", "espalier", "compare", "tiny.yaml", "--out", "run"]
    for stage in ("choices", "cells"):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list((tmp_path / "run").glob(f"compare/{stage}/*/*.json")):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    content = json.loads((tmp_path / "run" / "compare" / "compare.json").read_text())
    cells = [(c["budget"], c["method"], c["seed"], c["widths"], c["after"]) for c in content["cells"]]
    assert cells == [(c.budget, c.method, c.seed, dict(c.widths), c.after) for c in finished[1].comparison.cells]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_workers_on_ray_find_the_same(
    finished: tuple[Path, Compared], settings: Settings, go: Go, tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "ladder", tmp_path / "ladder")
    config = settings(methods=["greedy", "random", "scratch"]).model_copy(update={"workers": 2})
    found = go(config, tmp_path).comparison
    kept = [cell for cell in finished[1].comparison.cells if cell.method in found.asked.methods]
    assert [(c.budget, c.method, c.seed, c.widths, c.after) for c in found.cells] == [
        (c.budget, c.method, c.seed, c.widths, c.after) for c in kept
    ]
