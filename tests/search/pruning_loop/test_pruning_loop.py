"""The paper's loop: rounds that shrink to the budget, kept, resumed, and three ways to retrain."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.errors import BudgetInfeasible, ConfigError
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.search.config.loading import Config, parse_config
from espalier.search.evaluation.reconstruction import reconstruct_cut
from espalier.search.files.network_file import load
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.pruning_loop.result import PruneResult
from espalier.search.run.prepare import prepare
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.functions import FunctionTask
from espalier.search.tasks.runner import Runner
from espalier.search.tasks.task import Regularization, Stage
from tests.search.watched import as_it_is, hasten, watched


@pytest.fixture
def config(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"budget": {"keep": 0.3}, "prune": {"rounds": 2}}


def settings(config: dict[str, Any], **changes: Any) -> Config:
    return parse_config(config | {"prune": config["prune"] | changes}, "mine")


def macs_of(network: torch.nn.Module) -> int:
    graph = trace(network, torch.zeros(1, 1, 8, 8))
    return int(graph.macs(graph.sizes))


def test_rounds_shrink_to_the_budget(config: dict[str, Any], tmp_path: Path) -> None:
    result = prune(settings(config), tmp_path, Silent())
    budget = int(0.3 * result.dense_macs)
    first, last = (done.macs for done in result.rounds)
    assert result.dense_macs > first > last and last <= budget < 1.1 * last
    assert first <= int(result.dense_macs * 0.3**0.5) < 1.1 * first  # equal shares of what is there
    network = load(tmp_path / "pruned.espalier")
    assert macs_of(network) == last
    assert type(network) is type(build(config["model"]["name"], **config["model"]["kwargs"]))
    written = json.loads((tmp_path / "prune.json").read_text())
    assert [done["macs"] for done in written["rounds"]] == [first, last]
    assert len(written["after"]) == config["finetune"]["seeds"]


def drawn_task(metric: str) -> FunctionTask:
    """A score that training moves at random."""

    def score(network: torch.nn.Module) -> float:
        return float(next(network.parameters()).sum())

    def train(network: torch.nn.Module, *, epochs: float, seed: int) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    return FunctionTask(score, train=train, metric=metric, example_inputs=torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(("metric", "best"), [("gain", max), ("loss", min)])
def test_the_network_of_the_best_seed_is_kept(
    config: dict[str, Any], metric: str, best: Callable[..., float], tmp_path: Path
) -> None:
    task = {"name": f"{__name__}:drawn_task", "kwargs": {"metric": metric}}
    result = prune(settings(config | {"task": task}), tmp_path, Silent())
    (kept,) = {drawn_task(metric).evaluate(load(tmp_path / "pruned.espalier"), "test").value}
    assert len(set(result.after)) > 1 and kept == pytest.approx(best(result.after))
    assert result.metric.title == metric


def test_no_group_loses_more_than_its_share_in_a_round(config: dict[str, Any], tmp_path: Path) -> None:
    result = prune(settings(config), tmp_path, Silent())
    dense = trace(build(config["model"]["name"], **config["model"]["kwargs"]), torch.zeros(1, 1, 8, 8))
    widths = {group.name: group.size for group in dense.groups}
    for done in result.rounds:
        for name, width in done.widths.items():
            assert width >= widths[name] / 2
        widths = done.widths


@pytest.fixture
def trained_by(config: dict[str, Any]) -> Callable[[Any], None]:
    """Has the trainings of the config's task pass through the test."""
    return lambda train: config.update(watched(config, train))


def test_finished_rounds_are_not_run_again(
    config: dict[str, Any], tmp_path: Path, trained_by: Callable[[Any], None]
) -> None:
    steps: list[float] = []

    def counting(go: Any, *network: Any, regularization: Regularization | None = None, **how: Any) -> None:
        steps.append(0.0 if regularization is None else regularization.strength)
        go(*network, regularization=regularization, **how)

    trained_by(counting)
    first = prune(settings(config), tmp_path, Silent())
    seeds = config["finetune"]["seeds"]
    assert len(steps) == 1 + 2 * 2 + seeds and steps.count(0.01) == 2  # the dense network first
    steps.clear()
    again = prune(settings(config), tmp_path, Silent())
    assert len(steps) == seeds and again == first
    steps.clear()
    prune(settings(config, criterion="fpgm"), tmp_path, Silent())
    assert len(steps) == 4 + seeds


def test_an_interrupted_loop_goes_on_where_it_was(
    config: dict[str, Any], tmp_path: Path, trained_by: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    made = 0

    def killing(at: int) -> None:
        def train(go: Any, *network: Any, on_step: Any, **how: Any) -> None:
            def told(step: int, loss: float) -> None:
                nonlocal made
                made += 1
                if made == at:
                    raise KeyboardInterrupt
                on_step(step, loss)

            go(*network, on_step=told, **how)

        trained_by(train)

    killing(-1)
    whole = prune(settings(config), tmp_path / "whole", Silent())
    steps, made = made, 0
    for at in (5, 7, 3, 12, 4):  # in the first training, after it, and so on to the last
        killing(at)
        made = 0
        with pytest.raises(KeyboardInterrupt):
            prune(settings(config), tmp_path / "killed", Silent())
    killing(-1)
    made = 0
    result = prune(settings(config), tmp_path / "killed", Silent())
    assert replace(result, artefact=whole.artefact) == whole
    assert made == steps - (5 + 7 + 3 + 12 + 4) + 5  # a step that was interrupted is made again
    assert not list(tmp_path.rglob("*.partial.safetensors"))


@pytest.mark.parametrize("how", ["finetune", "rewind", "scratch"])
def test_three_ways_to_retrain(
    how: str, config: dict[str, Any], tmp_path: Path, trained_by: Callable[[Any], None]
) -> None:
    last: list[tuple[Recipe, torch.Tensor]] = []

    def watching(go: Any, network: torch.nn.Module, stage: Stage, **how: Any) -> None:
        recipe = Recipe(**go.__self__.recipe(stage))
        last.append((recipe, next(network.parameters()).detach().clone()))
        go(network, stage, **how)

    trained_by(watching)
    result: PruneResult = prune(settings(config, retrain=how), tmp_path, Silent())
    seeds = config["finetune"]["seeds"]
    recipe = config["finetune"] if how == "finetune" else config["training"]
    starts = [weight for _, weight in last[-seeds:]]
    assert all(used.lr == recipe["lr"] and used.epochs == recipe["epochs"] for used, _ in last[-seeds:])
    assert torch.equal(starts[0], starts[1]) == (how != "scratch")  # new weights for every seed
    assert result.retrain == how and len(result.after) == seeds


@pytest.mark.parametrize(
    ("criterion", "how"),
    [
        ("energy", "mean"),
        ("folded_energy", "mean"),
        ("bn_scale", "mean"),
        ("taylor", "mean"),
        ("random", "mean"),
        ("fisher", "isomorphic"),
        ("apoz", "lamp"),
        ("synflow", "raw"),
    ],
)
def test_any_criterion_ranks(criterion: str, how: str, config: dict[str, Any], tmp_path: Path) -> None:
    result = prune(settings(config, criterion=criterion, normalization=how), tmp_path, Silent())
    assert result.rounds[-1].macs <= int(0.3 * result.dense_macs)


def test_too_few_rounds_are_told(config: dict[str, Any], tmp_path: Path) -> None:
    for rounds, said in ((1, "1 round that removes"), (2, "2 rounds that remove")):
        with pytest.raises(BudgetInfeasible, match=rf"^{said} at most 0.1 .* raise prune.rounds or prune.most$"):
            prune(settings(config, rounds=rounds, most=0.1), tmp_path, Silent())
    assert not list(tmp_path.iterdir()), "nothing is trained for it"


# ------------------------------------------------------------------------------------------------- softly


def test_soft_pruning_meets_the_budget_in_one_cut(config: dict[str, Any], tmp_path: Path) -> None:
    config["regularizer"]["epochs"] = 3
    result = prune(settings(config, schedule="soft"), tmp_path, Silent())
    budget = int(0.3 * result.dense_macs)
    (done,) = result.rounds
    assert 0.9 * budget < done.macs <= budget
    assert macs_of(load(tmp_path / "pruned.espalier")) == done.macs
    assert done.trained == done.cut == done.retrained  # what was cut had been zeroed
    assert [epoch.epoch for epoch in result.epochs] == [1, 2, 3]
    removed = sum(result.dense_widths.values()) - sum(done.widths.values())
    assert result.epochs[-1].zeroed == removed > 0
    written = json.loads((tmp_path / "prune.json").read_text())
    assert [epoch["zeroed"] for epoch in written["epochs"]] == [epoch.zeroed for epoch in result.epochs]
    assert prune(settings(config, schedule="soft"), tmp_path, Silent()) == result
    assert not [path for path in tmp_path.rglob("*partial*")]


def test_an_interrupted_soft_pruning_tells_of_all_its_epochs(
    config: dict[str, Any], tmp_path: Path, trained_by: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    config["regularizer"]["epochs"] = 3.5
    trained_by(as_it_is)
    whole = prune(settings(config, schedule="soft"), tmp_path / "whole", Silent())
    assert [epoch.epoch for epoch in whole.epochs] == [1, 2, 3, 4]

    def killing(go: Any, *network: Any, on_step: Any, **how: Any) -> None:
        def told(step: int, loss: float) -> None:
            on_step(step, loss)
            if step == 20:
                raise KeyboardInterrupt

        go(*network, on_step=told, **how)

    trained_by(killing)
    with pytest.raises(KeyboardInterrupt):
        prune(settings(config, schedule="soft"), tmp_path / "killed", Silent())
    trained_by(as_it_is)
    result = prune(settings(config, schedule="soft"), tmp_path / "killed", Silent())
    assert replace(result, artefact=whole.artefact) == whole


# ------------------------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize("schedule", ["rounds", "gradual"])
def test_a_cut_network_is_reconstructed_first(schedule: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Its layers are solved for what the uncut one gives, so that less is lost."""
    config["training"]["epochs"], config["regularizer"]["epochs"] = 6, 2
    plain = prune(settings(config, schedule=schedule, rounds=1, most=0.9, strength=0.0), tmp_path, Silent())
    healed = prune(
        settings(config, schedule=schedule, rounds=1, most=0.9, strength=0.0, reconstruct=True), tmp_path, Silent()
    )
    (before,), (after,) = plain.rounds, healed.rounds
    assert before.widths == after.widths and before.trained == after.trained
    assert after.cut > before.cut + (10 if schedule == "rounds" else -5)  # what was zeroed costs nothing once cut
    assert len(list((tmp_path / "rounds").iterdir())) == 2


def test_a_reconstructed_network_gives_what_the_uncut_one_gives(config: dict[str, Any]) -> None:
    prepared = prepare(settings(config))
    network, graph, task = prepared.model.eval(), prepared.graph, prepared.task
    keep = graph.keep_best(channel_energies(network, graph).double().numpy(), (graph.sizes + 1) // 2)
    cut, healed = slim(network, graph, keep), slim(network, graph, keep)
    reconstruct_cut(healed, network, graph, keep, task)
    batches = list(task.scoring("scoring", network, calibration=256, steps=0).calibration(Runner(Execution())))
    with torch.no_grad():
        far = [
            sum(float((net(batch) - network(batch)).square().sum()) for batch in batches) for net in (cut, healed)
        ]
    assert far[1] < 0.5 * far[0]
    assert [p.shape for p in cut.parameters()] == [p.shape for p in healed.parameters()]


def training_alone() -> FunctionTask:
    """Of a task that offers nothing else."""

    def train(network: torch.nn.Module, *, epochs: float, seed: int) -> None:
        raise AssertionError("nothing is to be trained")

    return FunctionTask(lambda network: 0.0, train=train, example_inputs=torch.zeros(1, 1, 8, 8))


def test_what_reconstruction_lacks_is_told(config: dict[str, Any], tmp_path: Path) -> None:
    config["task"] = {"name": f"{__name__}:training_alone"}
    for section in ("training", "regularizer", "finetune"):
        config[section] = {key: value for key, value in config[section].items() if key in ("epochs", "strengths")}
    del config["search"], config["data"]
    with pytest.raises(ConfigError, match=r"^prune\.reconstruct needs batches of inputs, which this task does not"):
        prune(settings(config, reconstruct=True), tmp_path, Silent())
