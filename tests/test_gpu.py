"""On a GPU what runs on a CPU: training, the ladder, search, fine-tuning, distillation, proxies, latency, pruning.

`make test-gpu` runs it, in some minutes. Numbers are held against the CPU's.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import espalier
from espalier.pruning.networks import CifarResNet
from espalier.pruning.runtimes import RUNTIMES, measure
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.proxies import PROXIES, STEPS
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.prepare import prepare
from espalier.search.run.search_run import run
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks import device
from espalier.search.tasks.task import Regularization, Stage
from espalier.search.training.schedules import SCHEDULES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

CONFIG: dict[str, Any] = {
    "model": {"name": "espalier.pruning.networks:CifarResNet", "kwargs": {"depth": 8, "in_channels": 1}},
    "data": {"name": "digits", "search_images": 300},
    "training": {"epochs": 4, "batch_size": 64, "lr": 0.1},
    "regularizer": {"name": "oicsr_gl", "strengths": [0.0, 0.01], "epochs": 2, "lr": 0.05},
    "budget": {"keep": 0.4},
    "search": {
        "trials": 12,
        "scoring_images": 128,
        "calibration_images": 128,
        "precision": "fp32",
        "proxy": "sgd5",
    },
    "finetune": {"epochs": 2, "batch_size": 64, "seeds": 3, "distillation": 0.5},
    "workers": 0,
}


def config(**sections: dict[str, Any]) -> Any:
    changed = copy.deepcopy(CONFIG)
    for section, values in sections.items():
        changed.setdefault(section, {}).update(values)
    return parse_config(changed, "gpu")


def on_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(device, "_assigned", ["cpu"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_training_takes_the_steps_that_it_takes_on_a_cpu(optimizer: str) -> None:
    prepared = prepare(config(training={"optimizer": optimizer, "lr": 0.01, "epochs": 0.5, "accumulate": 2}))
    regularizer = espalier.REGULARIZERS["oicsr_gl"](prepared.graph)
    losses: dict[str, list[float]] = {}
    for where in ("cpu", "cuda"):
        network, told = copy.deepcopy(prepared.model).to(where), losses.setdefault(where, [])
        prepared.task.train(
            network,
            Stage("dense", 0.5),
            seed=0,
            regularization=Regularization(regularizer, 0.01),
            on_step=lambda _, loss, told=told: told.append(loss),  # type: ignore[misc]
        )
        assert next(network.parameters()).device.type == where
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


def test_every_proxy_scores_as_on_a_cpu(tmp_path: Path) -> None:
    names = list(PROXIES)
    settings = config()
    experiment = Experiment(settings, prepare(settings), tmp_path, Silent(), proxies=names)
    experiment.train_ladder()
    assert next(experiment.dense.model.parameters()).device.type == "cuda"
    experiment.settle_execution(unrecorded)
    spec = experiment.spec
    candidates = [Candidate(1, tuple((spec.graph.sizes // part).tolist())) for part in (2, 3)]
    here, there = Evaluator(spec, "cuda"), Evaluator(spec, "cpu")
    for name in names:
        for candidate in candidates:
            one, other = here(candidate, name), there(candidate, name)
            rough = 0.15 if name in STEPS else 0.02
            measures = {"signal": one.signal} if one.signal is not None else dict(one.measures)
            expected = {"signal": other.signal} if other.signal is not None else dict(other.measures)
            assert measures == pytest.approx(expected, rel=rough, abs=2.0 if name in STEPS else 0.8), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_search_runs_on_it_from_end_to_end(workers: int, tmp_path: Path) -> None:
    """With two workers, each has a quarter of the GPU."""
    settings = config(cluster={"gpus_per_worker": 0.25})
    settings = settings.model_copy(update={"workers": workers})
    torch.cuda.reset_peak_memory_stats()
    result = run(settings, study="s", out=tmp_path)
    assert torch.cuda.max_memory_allocated() > 1 << 20
    assert result.trials == 12 and result.searched.macs <= 0.4 * result.dense.macs
    assert result.dense.before > 80 and result.searched.after > 60
    network = espalier.load(result.artefact)
    with torch.no_grad():
        images = torch.rand(2, 1, 8, 8)
        torch.testing.assert_close(network.cuda()(images.cuda()).cpu(), network.cpu()(images), rtol=1e-2, atol=1e-2)


def test_a_search_that_began_on_a_cpu_goes_on_with_it(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        on_cpu(patch)
        run(config(search={"trials": 6}), study="s", out=tmp_path)
    assert run(config(search={"trials": 12}), study="s", out=tmp_path).trials == 12


@pytest.mark.parametrize("schedule", ["rounds", *SCHEDULES])
def test_it_prunes(schedule: str, tmp_path: Path) -> None:
    found = prune(config(prune={"schedule": schedule, "rounds": 2, "most": 0.7}), tmp_path, Silent())
    assert found.rounds[-1].macs <= 0.4 * found.dense_macs and found.spread[0] > 50


def test_a_network_of_ones_own_stays_where_it_lies() -> None:
    """A score may count on the device of the network that was given."""
    for where in ("cuda", "cpu"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)).to(where)
        inputs = torch.randn(64, 6, device=where)
        wanted = network.eval()(inputs).detach()

        def closeness(net: nn.Module, inputs: torch.Tensor = inputs, wanted: torch.Tensor = wanted) -> torch.Tensor:
            far: torch.Tensor = (net(inputs) - wanted).square().mean()
            return -far

        def train(net: nn.Module, *, epochs: float, seed: int, inputs: torch.Tensor = inputs) -> None:
            optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-3, fused=True)
            for _ in range(int(epochs)):
                optimizer.zero_grad()
                net(inputs).square().mean().backward()
                optimizer.step()

        found = espalier.search_widths(
            network,
            inputs[:2],
            espalier.FunctionTask(closeness, inputs.split(16), train),
            budget=espalier.Budget(macs=0.5),
            trials=5,
            epochs=1,
            strengths=[0.0, 0.01],
            workers=0,
            study=f"own-{where}",
            overrides=["finetune.seeds=1", "finetune.selection_seeds=1"],
        )
        assert found.result.trials == 5


def test_latency_is_timed_on_the_cpu_whatever_there_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    assert measure({"one": network}, torch.rand(1, 3, 16, 16), repeats=3)["one"].milliseconds > 0


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_tensorrt_gives_what_the_network_gives_and_is_timed() -> None:
    pytest.importorskip("tensorrt")
    pytest.importorskip("onnxruntime")
    network, images = CifarResNet(depth=8, width=8).eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        wanted = network(images)
    (got,) = RUNTIMES["tensorrt"]().prepare(network, images)(images)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)  # TF32
    assert measure({"one": network}, images, "tensorrt", batch=2, repeats=3)["one"].milliseconds > 0
