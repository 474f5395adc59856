"""Layers of a cut network solved for what the dense one gives: healed without labels, before it is trained."""

from __future__ import annotations

from torch import Tensor, nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.slimming.surgery import assign
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.importance import EXAMPLES
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.files.tensor_files import tensors_of
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.execution import Execution
from espalier.search.tasks.task import Task

RECONSTRUCTED = "reconstructed"
"""The proxy that does it."""


def reconstruct_cut(small: nn.Module, network: nn.Module, graph: ChannelGraph, keep: Tensor, task: Task) -> None:
    """Solves the layers of a cut network, in place, on training inputs of the task; then takes BN statistics.

    Args:
        small: the network that was cut.
        network: that it was cut from.
        graph: the channel graph of that.
        keep: bool (n_channels,), what was kept.
        task: offers batches.
    """
    worth = keep.double().numpy()  # of a group, what is kept ranks first
    spec = EvaluationSpec.of(
        graph,
        [network],
        [worth],
        task.scoring("scoring", network, calibration=EXAMPLES, steps=0),
        Execution(memory_format="contiguous"),
        proxy=RECONSTRUCTED,
        home=task.home,
    )
    candidate = Candidate(0, tuple(graph.widths(keep).tolist()))
    healed = PROXIES[RECONSTRUCTED].prepare(CandidateNetworks(spec), candidate)
    assert isinstance(healed, nn.Module)
    assign(small, {name: tensor.cpu().clone() for name, tensor in tensors_of(healed).items()}, {})
