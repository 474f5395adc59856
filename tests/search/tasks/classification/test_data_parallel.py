"""One training by two processes on the CPU: the weights of one process, and every fault in one line."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espalier import trace
from espalier.errors import ConfigError, EspalierError, MissingPackage
from espalier.pruning.importance.regularizers import OICSRGroupLasso
from espalier.search.config.loading import parse_config
from espalier.search.tasks.classification.data import InMemoryImages, Splits
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.training_loop import Recipe, train

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, accumulate=2, clip_norm=1.0, ema=0.5)
MEAN, STD = (0.5,), (0.25,)


@pytest.fixture(autouse=True)
def accelerate() -> None:
    pytest.importorskip("accelerate")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()


def images(count: int = 64) -> InMemoryImages:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return InMemoryImages(pixels, torch.arange(count) % 4)


def trained(recipe: Recipe, **options: Any) -> nn.Module:
    made = network()
    train(made, images(), MEAN, STD, recipe, seed=3, **options)
    return made


def greatest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((first - second).detach().abs().max()) for first, second in pairs)


def penalised() -> dict[str, Any]:
    made = network()
    return {"regularizer": OICSRGroupLasso(trace(made, torch.zeros(1, 1, 8, 8))), "strength": 0.01}


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {1: [], 2: []}
    made = {
        count: trained(
            replace(RECIPE, processes=count),
            **penalised(),
            on_step=lambda step, loss, count=count: losses[count].append(loss),
        )
        for count in (1, 2)
    }
    assert greatest_difference(made[1], made[2]) < 1e-5
    assert greatest_difference(made[1], network()) > 1e-2
    assert len(losses[2]) == len(losses[1]) == 8
    assert not torch.distributed.is_initialized()


def test_a_training_of_two_processes_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise Stop

    recipe, file = replace(RECIPE, processes=2), tmp_path / "partial.safetensors"
    with pytest.raises(Stop):
        trained(recipe, checkpoint=file, seconds=0.0, on_step=stop)
    steps: list[int] = []
    resumed = trained(recipe, checkpoint=file, on_step=lambda step, loss: steps.append(step))
    assert steps == [5, 6, 7, 8] or steps == [6, 7, 8]
    assert greatest_difference(resumed, trained(recipe)) < 1e-6


class Failing(nn.Module):
    """Fails in this process, or where it was sent to another one."""

    def __init__(self, here: bool) -> None:
        super().__init__()
        self.here, self.process = here, os.getpid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (os.getpid() == self.process) == self.here:
            raise RuntimeError("no such pixels")
        return x


@pytest.mark.parametrize("here", [False, True])
def test_a_process_that_fails_is_told_in_a_line(here: bool) -> None:
    made = nn.Sequential(network(), Failing(here))
    said = r"^no such pixels" if here else r"^a process that shared the training has ended: .*no such pixels$"
    with pytest.raises(RuntimeError if here else EspalierError, match=said):
        train(made, images(), MEAN, STD, replace(RECIPE, processes=2), seed=0)
    assert not torch.distributed.is_initialized()


class Vanishing(nn.Module):
    """Cannot be made again where it was sent to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def __reduce__(self) -> Any:
        return exec, ("raise RuntimeError('not here')",)


def test_a_process_that_cannot_begin_is_told_at_once() -> None:
    made = nn.Sequential(network(), Vanishing())
    made.__dict__["__deepcopy__"] = lambda _: made
    with pytest.raises(EspalierError, match=r"has ended: RuntimeError: not here"):
        train(made, images(), MEAN, STD, replace(RECIPE, processes=2), seed=0)


def test_parameters_that_the_loss_does_not_use() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = network(), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x)

    made = {}
    for count in (1, 2):
        torch.manual_seed(1)
        made[count] = Partly()
        train(made[count], images(), MEAN, STD, replace(RECIPE, processes=count, accumulate=1), seed=3)
    assert greatest_difference(made[1], made[2]) < 1e-5


def test_a_process_that_uses_accelerate_has_its_state_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    own = Accelerator(cpu=True)
    assert own.num_processes == 1
    made = {count: trained(replace(RECIPE, epochs=0.5, processes=count)) for count in (1, 2)}
    assert greatest_difference(made[1], made[2]) < 1e-5
    assert own.num_processes == Accelerator(cpu=True).num_processes == 1 and own.device.type == "cpu"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="this process trains with others already"):
        trained(replace(RECIPE, processes=2))


def test_candidates_take_their_steps_in_one_process(splits: Splits) -> None:
    recipe = replace(RECIPE, processes=2)
    scoring = ImageScoring.of(splits, network(), torch.arange(8), calibration=16, steps=2, recipe=recipe)
    assert scoring.recipe.processes == 1 and replace(scoring.recipe, processes=2) == recipe


def test_batches_that_cannot_be_shared(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for count, batch_size in ((64, 15), (8, 16)):
        with pytest.raises(ConfigError, match=f"cannot share batches of {batch_size} of {count} images evenly"):
            train(network(), images(count), MEAN, STD, replace(RECIPE, processes=2, batch_size=batch_size), seed=0)
    with pytest.raises(ConfigError, match=r"finetune: .*16 cannot be shared evenly by 3 processes"):
        parse_config(tiny | {"finetune": {"batch_size": 16, "processes": 3}}, "tiny")
    with pytest.raises(ConfigError, match="fewer images in a process than parts, accumulate 16"):
        parse_config(tiny | {"finetune": {"batch_size": 16, "processes": 2, "accumulate": 16}}, "tiny")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackage, match=r"pip install 'espalier\[huggingface\]'"):
        replace(RECIPE, processes=2)
    assert copy.copy(RECIPE).processes == 1
