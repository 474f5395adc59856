"""Schedules of pruning as methods: each trains a network of its own, and tells what to keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.slimming.surgery import assign
from espalier.search.evaluation.importance import channel_scores
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.files.training_checkpoint import PARTIAL
from espalier.search.methods.method import CHANNEL_SCORES, Choice, Material, Method
from espalier.search.tasks.device import device_here
from espalier.search.tasks.task import Task
from espalier.search.training.schedule import Ranking, Site, check_schedule, run_schedule
from espalier.search.training.schedules import SCHEDULES


class Scheduled(Method):
    """A schedule on the dense network, by energy, each of its trainings as long as one of the ladder.

    Args:
        name: in `SCHEDULES`.
    """

    own_network = trains = True

    def __init__(self, name: str) -> None:
        self._name = self.criterion = name
        words = (SCHEDULES[name].__doc__ or "").partition("\n")[0].rstrip(".")
        self.words = f"{words[0].lower()}{words[1:]}; by energy, each training as long as one of the ladder"

    def check_on(self, task: Task, graph: ChannelGraph) -> None:
        """Whether the task and the network can have it."""
        check_schedule(self._name, SCHEDULES[self._name], task, graph)

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Trains, and finds out what to keep.

        Raises:
            EspalierError: the task lacks what the schedule needs, or its training fails.
        """
        assert material.training is not None
        task, stage = material.training
        schedule, space = SCHEDULES[self._name], material.spaces[budget]
        check_schedule(self._name, schedule, task, space.graph)
        network = material.dense_network()
        made = [
            self._name,
            digest(tensors_of(network)),
            task.recipe(stage),
            task.digest(),
            space.graph.digest,
            space.budget.limits,
            space.floor.tolist(),
            space.round_to,
        ]

        def scores(model: nn.Module) -> Floats:
            return channel_scores(CRITERIA["energy"], model, space.graph, task, seed=0)

        def train(checkpoint: Path) -> dict[str, Tensor]:
            here = network.to(device_here(task.home))

            def file(ending: str) -> Path:
                return checkpoint.with_name(f"{checkpoint.stem}-{ending}")

            def training(
                name: str,
                *,
                on_epoch: Callable[[int], None] | None = None,
                on_step: Callable[[int], None] | None = None,
            ) -> None:
                def told(step: int, _: float) -> None:
                    if on_step is not None:
                        on_step(step)

                task.train(
                    here, stage, seed=0, on_epoch=on_epoch, on_step=told, checkpoint=file(f"{name}{PARTIAL}")
                )

            ranking = Ranking(space.graph, space.budget, space.floor, space.round_to, scores)
            site = Site(here, space.graph, ranking, task, 0, stage, training, file)
            pruned = run_schedule(self._name, schedule, site)
            return tensors_of(here.cpu()) | {CHANNEL_SCORES: pruned.keep.double()}

        tensors = dict(material.trained_once(self._name, made, self._name, train))
        keep = tensors.pop(CHANNEL_SCORES) > 0
        assign(network, tensors, {})
        return material.choice_of_own(self._name, network.eval(), keep.numpy(), evaluations=1)
