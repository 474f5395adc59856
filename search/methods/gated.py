"""Gates that are learned in a training of the dense network, as a method beside the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from espalier.errors import ConfigError, EspalierError
from espalier.pruning.gates.gated import gated
from espalier.pruning.gates.gates import GATES, Gate
from espalier.pruning.slimming.surgery import assign
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.methods.method import CHANNEL_SCORES, Choice, Material, Method
from espalier.search.tasks.code_digests import code_of
from espalier.search.tasks.device import device_here
from espalier.search.tasks.module_path import instance


class Gated(Method):
    """The dense network trained with a gate on every channel; the gates choose widths and channels.

    Args:
        name: of the gate, in `GATES`, or ``package.module:Class`` of the user's own.
    """

    own_network = trains = True

    def __init__(self, name: str) -> None:
        self.criterion = name
        what = name if name in GATES else f"{name}, of your own"
        self.words = f"gates on channels, learned while the dense network trains, driven to the budget: {what}"

    def check(self) -> None:
        """Whether there is such a gate."""
        gate_named(self.criterion)

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Trains, folds, and keeps what the gates rank first."""
        assert material.training is not None
        gate, (task, stage) = gate_named(self.criterion), material.training
        space, network = material.spaces[budget], material.dense_network()
        recipe = task.recipe(stage)
        if recipe.get("processes", 1) > 1:
            raise EspalierError(f"{self.criterion} takes one process: set training.processes to 1")
        if gate.steps is not None and task.steps(stage) > gate.steps:
            stage = replace(stage, epochs=stage.epochs * gate.steps / task.steps(stage))
        steps = task.steps(stage)

        def train(checkpoint: Path) -> dict[str, Tensor]:
            here = network.to(device_here(task.home))
            with gated(
                here,
                space.graph,
                gate,
                space.budget,
                steps=steps if steps > 1 else None,  # tasks that cannot tell say 1
                floor=space.floor,
                round_to=space.round_to,
            ) as gates:
                task.train(here, stage, seed=0, checkpoint=checkpoint)
            return tensors_of(here.cpu()) | {CHANNEL_SCORES: gates.keep.double()}

        space_of = [space.graph.digest, space.budget.key, space.floor.tolist(), space.round_to]
        made = [self.criterion, digest(tensors_of(network)), task.recipe(stage), task.digest(), *space_of]
        if ":" in self.criterion:
            made.append(code_of(self.criterion, "a method"))
        tensors = dict(material.trained_once("gated", made, f"the training with {self.criterion}", train))
        keep = tensors.pop(CHANNEL_SCORES) > 0
        assign(network, tensors, {})
        return material.choice_of_own(self.criterion, network.eval(), keep.numpy(), evaluations=1)


def gate_named(name: str) -> Gate:
    """The gate of `GATES`, or of the user's own.

    Raises:
        ConfigError: there is none, it cannot be made, or it is no gate.
    """
    if ":" not in name:
        return GATES[name]()
    made = instance(name, "a method")
    if not isinstance(made, Gate):
        raise ConfigError(f"a method of your own must be an espalier.Gate, and {name} is a {type(made).__name__}")
    return made
