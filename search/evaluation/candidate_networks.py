"""Candidates' networks in a worker: built from the ladder, one at a time.

Nothing is built, traced or moved per candidate: a worker makes one `CandidateNetworks` and keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.slimming.folding import foldable
from espalier.pruning.slimming.quantised_layers import empty_ranges, quantise
from espalier.pruning.slimming.removed import take_out
from espalier.pruning.slimming.surgery import assign, clone_structure, slice_tensors
from espalier.pruning.supernet.shared_weights import GENERATOR, generator_in
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.device import device_here
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.module_path import DriversPath
from espalier.search.tasks.runner import Runner, tensor_of
from espalier.search.tasks.task import Array, Scoring


@dataclass(frozen=True)
class EvaluationSpec:
    """All that a worker needs to score candidates; arrays, so that Ray shares them between the workers of a node.

    Attributes:
        skeleton: the network's structure, its tensors emptied.
        graph: its channel graph.
        states: tensors by name, per rung.
        ranks: place of every channel in its group, (n_channels,), per rung.
        scoring: what candidates are scored, and healed, by.
        execution: how their networks are run.
        proxy: by which a candidate is judged where nothing else is asked for.
        race: key of the measure by which candidates race, None for no race; see `Evaluator`.
        home: device of the driver's networks; see `device_here`.
        starts: tensors that fine-tuning begins with, per rung, where they are others than `states`.
        shared: names the shared weights that fine-tuning begins with; empty where it begins with the rungs' own.
    """

    skeleton: nn.Module
    graph: ChannelGraph
    states: tuple[Mapping[str, Array], ...]
    ranks: tuple[Ints, ...]
    scoring: Scoring
    execution: Execution
    proxy: str = "recalibrated"
    race: str | None = None
    home: str | None = None
    starts: tuple[Mapping[str, Array], ...] | None = None
    shared: str = ""

    def __getstate__(self) -> dict[str, Any]:
        """The path comes first: the skeleton may be of a module that lies on it."""
        return {"path": DriversPath(), **vars(self)}

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        rungs: Sequence[nn.Module],
        energies: Sequence[Floats],
        scoring: Scoring,
        execution: Execution,
        *,
        proxy: str,
        race: str | None = None,
        home: str | None = None,
    ) -> Self:
        """The spec of a ladder.

        Args:
            graph: of the network.
            rungs: the networks of the ladder.
            energies: (n_channels,) per rung.
            scoring: what candidates are scored by.
            execution: how they are run.
            proxy: by which they are judged.
            race: key of the measure by which they race.
            home: device of the driver's networks.
        """
        states, ranks = tuple(map(numpy_state, rungs)), tuple(map(graph.ranks, energies))
        return cls(empty_skeleton(rungs[0]), graph, states, ranks, scoring, execution, proxy, race, home)

    @property
    def finetuned_from(self) -> Self:
        """The spec of the networks that fine-tuning begins with."""
        return self if self.starts is None else replace(self, states=self.starts, starts=None)

    @property
    def scored_only(self) -> Self:
        """The spec without what fine-tuning begins with, which workers that score have no use for."""
        return replace(self, starts=None)

    def of_networks(self, states: Sequence[Mapping[str, Array]], ranks: Sequence[Ints]) -> Self:
        """The spec of other networks in place of the rungs, without shared weights."""
        return replace(self, states=tuple(states), ranks=tuple(ranks), starts=None, shared="")

    def keep(self, candidate: Candidate) -> Tensor:
        """Which channels a candidate keeps: bool (n_channels,)."""
        return torch.from_numpy(self.ranks[candidate.rung] < np.array(candidate.widths)[self.graph.group_of])


def empty_skeleton(model: nn.Module) -> nn.Module:
    """The structure of a network without its numbers, for `EvaluationSpec.skeleton`."""
    skeleton = clone_structure(model)
    empty: dict[int, Any] = {}  # by identity: what two modules share stays shared
    for module in skeleton.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = empty.setdefault(
                    id(parameter), nn.Parameter(parameter.new_empty(0, device="cpu"))
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = empty.setdefault(id(buffer), buffer.new_empty(0, device="cpu"))
    return skeleton


def numpy_state(model: nn.Module) -> dict[str, Array]:
    """Every parameter and buffer of a network, by name."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


_Change = tuple[tuple[int, ...], dict[str, int]]
"""Numbers of the branches that are out, and layers in fewer bits."""


class CandidateNetworks:
    """Networks of candidates, one at a time.

    Args:
        spec: networks, and what they are scored by.
        device: where to run; by default, where this process computes.
    """

    def __init__(self, spec: EvaluationSpec, device: str | None = None) -> None:
        self.spec, device = spec, device or device_here(spec.home)
        states = [{n: tensor_of(a).to(device) for n, a in state.items()} for state in spec.states]
        self._skeleton = clone_structure(spec.skeleton)
        self._generators = [generator_in(state, spec.graph, self._skeleton) for state in states]
        self._states = [{n: held for n, held in own.items() if not n.startswith(GENERATOR)} for own in states]
        self._changed: tuple[nn.Module, _Change] = self._skeleton, ((), {})
        self.runner = Runner(spec.execution, device, foldable(self._skeleton, spec.graph))

    @property
    def calibration(self) -> Sequence[Inputs]:
        """Batches of training examples, without labels."""
        return self.spec.scoring.calibration(self.runner)

    def cut(self, candidate: Candidate) -> nn.Module:
        """The slimmed network, in eval mode, BN as it was; valid until the next call."""
        graph, keep = self.spec.graph, self.spec.keep(candidate)
        state, generator = self._states[candidate.rung], self._generators[candidate.rung]
        if generator is not None:
            with torch.no_grad():
                state = generator(state, keep)
        sliced = slice_tensors(state, graph, keep)
        tensors = {name: self.runner.laid_out(tensor) for name, tensor in sliced.items()}
        bits = graph.bits_of(candidate.widths)
        skeleton = self._structure((graph.removed(candidate.widths), bits))
        assign(skeleton, tensors | empty_ranges(bits, self.runner.device), graph.integers_of(keep))
        return skeleton.eval()

    def _structure(self, change: _Change) -> nn.Module:
        """The network's, without some branches, some layers in fewer bits; kept until others are asked for."""
        if not any(change):
            return self._skeleton
        if self._changed[1] != change:
            (removed, bits), skeleton = change, clone_structure(self.spec.skeleton)
            take_out(skeleton, [self.spec.graph.branches[number] for number in removed])
            quantise(skeleton, bits)
            self._changed = skeleton, change
        return self._changed[0]

    def whole(self, rung: int) -> nn.Module:
        """The unpruned network of a rung, in eval mode; valid until the next call."""
        return self.cut(Candidate(rung, tuple(self.spec.graph.sizes.tolist())))

    def recalibrated(self, candidate: Candidate) -> nn.Module:
        """The slimmed network, its BN recalibrated where there are batches; valid until the next call."""
        network = self.cut(candidate)
        if batches := self.calibration:
            self.runner.recalibrate(network, batches)
        return network
