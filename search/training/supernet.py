"""Shared weights of a rung: trained on from it, every step with other widths, and kept beside the ladder.

Widths are drawn around greedy and uniform pruning, under the budgets that are searched.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from espalier.errors import EspalierError, raised
from espalier.pruning.graph.costs import Floats
from espalier.pruning.supernet.shared_weights import weights_shared
from espalier.search.files.json_files import json_digest
from espalier.search.files.tensor_files import load_tensors, save_tensors
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.progress.reporter import Reporter
from espalier.search.spaces.sampling import near
from espalier.search.spaces.space import DEPTH, RUNG, Space
from espalier.search.tasks.device import device_here
from espalier.search.tasks.task import Stage, Task
from espalier.search.training.strengths import Rung

FAR = 0.2
"""Widths are drawn at so many shares of a vector's ranges from greedy and uniform pruning, at most."""


@dataclass(frozen=True)
class Widths:
    """What passes are drawn from.

    Attributes:
        spaces: in which the rung is open.
        rung: its number.
        energies: (n_channels,), by which its channels are ranked.
    """

    spaces: Sequence[Space]
    rung: int
    energies: Floats

    def draw(self, generator: np.random.Generator) -> Tensor:
        """Which channels a pass keeps, bool (n_channels,)."""
        number = int(generator.integers(len(self.spaces)))
        space, origins = self.spaces[number], self._origins[number]
        params = near(space, origins[generator.integers(len(origins))], FAR * generator.random(), generator)
        fixed = {RUNG: space.rungs.index(self.rung), DEPTH: 0.0}  # branches that a budget allows all stay
        params |= {name: value for name, value in fixed.items() if name in params}
        widths = np.array(space.decode(params).widths)
        all_stay = np.where(widths, widths, np.maximum(space.floor, 1))  # branches that there is no room for, too
        kept: Tensor = space.graph.keep_best(self.energies, all_stay)
        return kept

    @cached_property
    def _origins(self) -> list[list[dict[str, Any]]]:
        """Of every space, greedy and uniform pruning."""
        return [[*space.greedy_params(), *space.uniform_params()] for space in self.spaces]

    @property
    def key(self) -> list[Any]:
        """What is drawn from, as JSON; energies by their ranks, as sums may differ in the last bit."""
        return [
            [
                type(space).__name__,
                space.width,
                space.rungs,
                space.budget.key,
                [candidate.key for candidate in (*space.greedy_candidates(), *space.uniform_candidates())],
                sorted(space.distributions()),
                hashlib.sha256(space.graph.ranks(self.energies).tobytes()).hexdigest(),
            ]
            for space in self.spaces
        ]


def train_shared(
    rung: Rung,
    widths: Widths,
    task: Task,
    epochs: float,
    seed: int,
    folder: Path,
    reporter: Reporter,
    *,
    generator: bool = False,
    teacher: nn.Module | None = None,
) -> tuple[str, dict[str, Tensor]]:
    """Name of the file, and in it the weights that all widths share, and those of their generator.

    Args:
        rung: where the training begins.
        widths: what is drawn.
        task: trains them, by its recipe of fine-tuning.
        epochs: of the training.
        seed: of the training, and of what is drawn.
        folder: where they are kept.
        reporter: told the progress.
        generator: whether a second network makes them.
        teacher: the dense network, where the task learns from it.

    Raises:
        EspalierError: the training fails, or makes no pass of the network with other widths.
    """
    stage = Stage("finetune", epochs)
    graph = widths.spaces[0].graph
    made = [rung.digest, graph.digest, widths.key, task.digest(), task.recipe(stage), seed, generator]
    key = json_digest(made)
    path = folder / f"shared{widths.rung}-{key}.safetensors"
    if path.is_file():
        return path.stem, load_tensors(path)[0]
    folder.mkdir(parents=True, exist_ok=True)
    network = copy.deepcopy(rung.model).to(device_here(task.home))
    title, steps = f"shared weights, strength {rung.strength:g}", task.steps(stage)
    checkpoint = path.with_name(path.stem + PARTIAL)
    start = time.process_time()
    try:
        with reporter.meter(title, steps, task.counts) as meter:
            with weights_shared(network, graph, widths.draw, generator=generator, seed=seed) as shared:
                task.train(
                    network,
                    stage,
                    seed=seed,
                    teacher=teacher,
                    on_step=lambda done, loss: meter.update(done, f"loss {loss:.3f}", {"loss": loss}),
                    checkpoint=checkpoint,
                )
            meter.update(steps)
    except (EspalierError, OSError):
        raise
    except Exception as error:  # whatever a user's training raises
        raise EspalierError(f"the training of shared weights failed: {raised(error)}") from error
    if not shared.steps:
        raise EspalierError(
            "shared weights: no step of the training followed a pass of other widths; `train` must put the network "
            "into training mode, and call it as network(x)"
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in shared.tensors.items()}
    save_tensors(path, tensors, {"seconds": time.process_time() - start})
    checkpoint.unlink(missing_ok=True)
    return path.stem, tensors
