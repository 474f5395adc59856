"""From a network to its channel graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from espalier.errors import TraceError, VerificationError
from espalier.pruning.graph.branches import Branch
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import Group
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.slimming.quantised_layers import KINDS, quantised_layers
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.torch_private import tree_leaves
from espalier.pruning.tracing.branches import BranchFinder
from espalier.pruning.tracing.grouping import REFUSED, channel_graph, parameter_shapes
from espalier.pruning.tracing.label_run import LabelRun
from espalier.pruning.tracing.recording import record
from espalier.pruning.tracing.running import uncollected


def _can_round(model: nn.Module, path: str) -> bool:
    """Whether what a layer computes is its class's own, and no fused kernel passes over it in eval mode."""
    layer, parent = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    fused = isinstance(parent, nn.TransformerEncoderLayer)
    return type(layer) in KINDS and "forward" not in layer.__dict__ and not fused


@uncollected()
def trace(
    model: nn.Module, example_inputs: Inputs, *, depth: bool = False, bits: Sequence[int] = ()
) -> ChannelGraph:
    """Finds which channels of a network live and die together, and what they cost.

    Args:
        model: any module; it runs once, in eval mode, and is left as it was.
        example_inputs: one input tensor, the tuple of arguments, or a dict of named ones; dimension 0 of the
            first tensor is the batch, and all costs are per example.
        depth: whether to find the residual branches that can be taken out as a whole: `ChannelGraph.removable` says
            which groups may have no channel then. Each is tried once.
        bits: that convolutions and linear layers may compute in, such as ``(8, 32)``: each such layer has a group
            more, whose width says in how many; see `ChannelGraph.precisions`.

    Returns:
        The groups, prunable and frozen, and the costs in closed form. It keeps the example, on which `slim`
        verifies what it makes.

    Raises:
        TraceError: the network cannot run, or nothing in it can be pruned; names the operation.
    """
    if layers := quantised_layers(model):
        raise TraceError(
            f"{type(model).__name__} has layers that compute in fewer bits, such as {next(iter(layers))}: "
            "trace and prune the network before they do"
        )
    if any(isinstance(leaf, np.ndarray) for leaf in tree_leaves(example_inputs)):
        raise TraceError("example_inputs must be made of tensors, got a numpy.ndarray: torch.from_numpy makes one")
    run = LabelRun(record(model, example_inputs))
    parameters = parameter_shapes(model)
    graph = channel_graph(run, parameters, example_inputs)
    while run.code_sees_widths() and (groups := _misunderstood(model, graph)):
        for group in groups:
            run.freeze_group(group, REFUSED)
        graph = channel_graph(run, parameters, example_inputs)
    if not graph.groups:
        reasons = "; ".join(f"{group.name}: {group.frozen}" for group in graph.frozen) or "it has no channels"
        raise TraceError(f"nothing in {type(model).__name__} can be pruned: {reasons}")
    if depth:
        graph = _with_branches(model, run, graph)
    return graph.with_precisions(_layers_for_bits(model, graph), bits) if bits else graph


def _layers_for_bits(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Paths of the layers that can compute in fewer bits, in the order in which they run.

    Those of which nothing else reads the weight, not even another layer that shares it, and that
    `nn.TransformerEncoderLayer` does not fuse.

    Raises:
        TraceError: there is none.
    """
    readers: dict[str, set[str]] = {}  # of each tensor, the layers that read it
    for operation in graph.operations:
        for name in operation.tensors:
            readers.setdefault(name, set()).add(operation.layer)
    paths = dict.fromkeys(graph.operations[number].layer for number in graph.mac_operations)
    found = [path for path in paths if readers.get(f"{path}.weight") == {path} and _can_round(model, path)]
    if not found:
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise TraceError(f"no layer of {type(model).__name__} can compute in fewer bits: it has none of {kinds}")
    return found


def _with_branches(model: nn.Module, run: LabelRun, graph: ChannelGraph) -> ChannelGraph:
    """The graph, with the branches without which the network computes what the masked one does: found by trying."""
    finder = BranchFinder(model, run, graph)
    branches = finder.branches()

    def fails(some: Sequence[Branch]) -> bool:
        found = finder.graph_with(some)
        widths = np.where(found.gone(range(len(some))), 0, graph.sizes)
        try:
            slim(model, found, found.keep_best(np.zeros(graph.n_channels), widths))
        except VerificationError:
            return True
        return False

    if branches and fails(branches):
        branches = [branch for branch in branches if not fails([branch])]
        branches = [] if fails(branches) else branches
    return finder.graph_with(branches)


def _misunderstood(model: nn.Module, graph: ChannelGraph) -> list[Group]:
    """Groups that cannot be halved without the network computing something else: found by trying.

    Integers are followed as far as Python lets them; ``1.0 / x.shape[1]`` or ``range(x.shape[1])`` is out of reach.
    """
    halves = graph.ranks(np.random.default_rng(0).random(graph.n_channels)) < (graph.sizes[graph.group_of] + 1) // 2

    def fail(groups: list[int]) -> bool:
        keep = halves | ~np.isin(graph.group_of, groups)
        try:
            slim(model, graph, torch.from_numpy(keep))
        except VerificationError:
            return True
        return False

    def among(groups: list[int]) -> list[int]:
        if not fail(groups):
            return []
        if len(groups) == 1:
            return groups
        middle = len(groups) // 2
        return among(groups[:middle]) + among(groups[middle:]) or groups

    everything = list(range(len(graph.groups)))
    if not everything or not fail(everything) or fail([]):  # what differs from itself tells nothing
        return []
    return [graph.groups[number] for number in among(everything)]
