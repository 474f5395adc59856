"""The network as a graph for a GNN: channel groups and contractions are nodes, data flow is edges.

Two levels, as in GNN-RL (Yu et al., ICML 2022): each contraction (convolution, linear layer, matrix product) heads
a *motif*, the operations between it and the next ones, which is a small graph of its own; the network level has a
node per contraction and one per group of coupled channels.

Every feature follows from the ChannelGraph and the energies alone, so that equal networks give equal graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from espalier.errors import ConfigError
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats
from espalier.pruning.graph.groups import Operation

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)

GROUP_FEATURES = (
    "is_group",
    "log2_width",
    "mac_share",
    "parameter_share",
    "depth",
    "log_energy_per_mac",
    *(f"log_energy_{what}" for what in ("mean", "spread", *(f"q{round(100 * q)}" for q in QUANTILES))),
    *(f"log_last_energy_{what}" for what in ("mean", "spread", *(f"q{round(100 * q)}" for q in QUANTILES))),
)
"""Energies are logarithms relative to the network's mean, of the first rung and of the last."""

OPERATION_KINDS = ("convolution", "depthwise", "linear", "product")

OPERATION_FEATURES = (
    *OPERATION_KINDS,
    "log2_read",
    "log2_written",
    "log2_window",
    "log2_stride",
    "log2_groups",
    "log2_positions",
    "operation_mac_share",
    "operation_parameter_share",
    "operation_depth",
)
"""Window: positions of the kernel; groups: of a grouped convolution; positions: pixels or tokens of the result."""

STATE_FEATURES = ("log_keep", "log_cost_kept", "log_budget", "log_budget_left")
"""Of the widths at hand: what share of a group's width and of an operation's MACs they keep; and, the same at every
node, what share of the costs the budget allows, and how far widths are from it. Zero without widths or budget."""

NODE_FEATURES = (*GROUP_FEATURES, *OPERATION_FEATURES, *STATE_FEATURES)
"""Columns of `Data.x`: a group's are zero at operations and the other way round. Binary logarithms are in bytes
(divided by eight)."""

EDGE_FEATURES = ("reads", "writes", "read_by", "written_by", "feeds", "fed_by")
"""Columns of `Data.edge_attr`, one of them 1: operation to group, group to operation, operation to operation."""

MOTIF_KINDS: dict[str, tuple[str, ...]] = {
    "contraction": (),
    "batch_norm": ("batch_norm",),
    "other_norm": ("layer_norm", "group_norm", "instance_norm", "rms_norm"),
    "activation": ("relu", "hardtanh", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid"),
    "add": ("add", "sub"),
    "multiply": ("mul", "div", "softmax"),
    "join": ("cat", "stack", "split", "chunk", "slice", "split_with_sizes"),
    "pool": ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "adaptive_max_pool2d"),
    "move": ("view", "reshape", "permute", "transpose", "flatten", "unsqueeze", "squeeze", "expand"),
    "other": (),
}
"""Kind of an operation in a motif -> ATen operations, with or without a trailing underscore."""

MOTIF_FEATURES = (*MOTIF_KINDS, "log2_motif_positions", "joins")
"""Columns of `Data.motif_x`: kind, positions of the result against the contraction's, inputs beyond the first."""


class NetworkData(Data):  # type: ignore[misc]
    """A network's graph; PyG's batches of it keep motifs with their operations."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key == "motif_edge_index":
            return len(self.motif_x)
        if key == "motif_of":
            return self.num_nodes
        return super().__inc__(key, value, *args, **kwargs)


def network_graph(
    graph: ChannelGraph,
    energies: npt.ArrayLike | Sequence[Floats],
    *,
    widths: npt.ArrayLike | None = None,
    budget: Budget | int | None = None,
) -> NetworkData:
    """The PyG graph of a network.

    Args:
        graph: groups and costs.
        energies: (n_channels,) channel energies or another criterion's scores, not negative; of several rungs
            (n_rungs, n_channels).
        widths: (G,) channels kept at hand, such as those of greedy pruning.
        budget: what the pruned network may cost; a whole number means MACs per example.

    Returns:
        ``x`` (n_groups + n_contractions, len(NODE_FEATURES)) float32, groups first in the graph's order;
        ``edge_index`` (2, n_edges); ``edge_attr`` (n_edges, len(EDGE_FEATURES)); ``motif_x``
        (n, len(MOTIF_FEATURES)), ``motif_edge_index`` (2, m), and ``motif_of`` (n,) the node
        of the contraction that each belongs to.

    Raises:
        ConfigError: energies or widths do not fit the graph.
    """
    rungs = np.atleast_2d(np.asarray(energies, dtype=np.float64))
    if rungs.ndim != 2 or rungs.shape[1] != graph.n_channels:
        raise ConfigError(f"energies must be one number for each of {graph.n_channels} channels, got {rungs.shape}")
    heads = sorted(set(graph.mac_operations))
    owners = _owners(graph.operations, heads)
    x = np.zeros((len(graph.groups) + len(heads), len(NODE_FEATURES)))
    x[: len(graph.groups), : len(GROUP_FEATURES)] = _group_features(graph, rungs)
    state = len(GROUP_FEATURES) + len(OPERATION_FEATURES)
    x[len(graph.groups) :, len(GROUP_FEATURES) : state] = _operation_features(graph, heads)
    x[:, state:] = _state_features(graph, heads, widths, budget)
    sources, targets, roles = _edges(graph, heads, owners)
    motif_x, motif_edges, motif_of = _motifs(graph, heads, owners)
    return NetworkData(
        x=torch.from_numpy(x).float(),
        edge_index=torch.tensor([sources, targets], dtype=torch.int64).reshape(2, -1),
        edge_attr=torch.eye(len(EDGE_FEATURES))[torch.tensor(roles, dtype=torch.int64)],
        motif_x=motif_x,
        motif_edge_index=motif_edges,
        motif_of=motif_of,
    )


# ---------------------------------------------------------------------------------------------- nodes


def _group_features(graph: ChannelGraph, rungs: Floats) -> Floats:
    dense = float(graph.macs(graph.sizes))
    one_less = graph.sizes - np.eye(len(graph.groups), dtype=np.int64)
    prices = graph.channel_costs().astype(np.float64)  # (G,) MACs of a channel
    reads, _ = graph.incidence()
    for precision in graph.precisions:  # a precision takes its share of what its layer costs
        own = graph.mac_terms.terms(graph.sizes[None].astype(np.float64))[0, reads[:, precision.group]]
        prices[precision.group] = own.sum() / len(precision.bits)
    prices = np.maximum(prices, 1.0)
    parameters = float(graph.params(graph.sizes))
    depth = _depths(graph)
    rows = []
    logs = [np.log(np.maximum(rung, 1e-12 * max(rung.max(), 1e-300))) for rung in (rungs[0], rungs[-1])]
    logs = [log - np.log(max(rung.mean(), 1e-300)) for log, rung in zip(logs, (rungs[0], rungs[-1]), strict=True)]
    mean_price = dense / graph.without_precisions.n_channels
    parameter_shares = (parameters - graph.params(one_less)) * graph.sizes / parameters
    for group, (start, end) in enumerate(zip(graph.offsets[:-1], graph.offsets[1:], strict=True)):
        of_rungs = [log[start:end] for log in logs]
        row = [1.0, np.log2(end - start) / 8, prices[group] * (end - start) / dense, parameter_shares[group]]
        row += [depth[group], of_rungs[0].mean() - np.log(prices[group] / mean_price)]
        for own in of_rungs:
            row += [own.mean(), own.std(), *np.quantile(own, QUANTILES)]
        rows.append(row)
    return np.array(rows)


def _depths(graph: ChannelGraph) -> Floats:
    """Where along the network each group is first touched, 0 to 1: (G,)."""
    reads, writes = graph.incidence()
    depths: Floats = np.argmax(reads | writes, axis=0) / max(1, len(reads) - 1)
    return depths


def _operation_features(graph: ChannelGraph, heads: Sequence[int]) -> Floats:
    widths = graph.sizes[None].astype(np.float64)
    macs, params = graph.macs_per_operation(graph.sizes), graph.params_per_operation(graph.sizes)
    reads, writes = (side[0] for side in graph.mac_terms.sides(widths))
    rows = []
    for place, number in enumerate(heads):
        operation = graph.operations[number]
        term = graph.mac_operations.index(number)
        positions = _positions(operation)
        before = graph.operations[operation.inputs[0]] if operation.inputs else operation
        convolves = operation.kind.startswith("conv")
        read, written = max(reads[term], 1.0), max(writes[term], 1.0)
        groups = 1.0
        if convolves:  # its MACs are c_in x c_out / groups per position of the kernel
            groups = before.shape[1] * operation.shape[1] / (read * written)
            read, written = float(before.shape[1]), float(operation.shape[1])
        window = max(1.0, graph.mac_terms.coefficient[term] / positions) if convolves else 1.0
        stride = np.sqrt(_positions(before) / positions) if convolves else 1.0
        kind = "product"
        if convolves:
            kind = "depthwise" if groups > 1 and groups == read else "convolution"
        elif operation.kind in ("linear", "addmm"):
            kind = "linear"
        row = [float(kind == each) for each in OPERATION_KINDS]
        row += [np.log2(each) / 8 for each in (read, written, window, stride, groups, positions)]
        row += [macs[number] / macs.sum(), params[number] / max(1, params.sum()), place / max(1, len(heads) - 1)]
        rows.append(row)
    return np.array(rows)


def _state_features(
    graph: ChannelGraph, heads: Sequence[int], widths: npt.ArrayLike | None, budget: Budget | int | None
) -> Floats:
    at_hand = graph.sizes if widths is None else np.asarray(widths, dtype=np.int64)
    dense, cost = graph.macs_per_operation(graph.sizes)[heads], graph.macs_per_operation(at_hand)[heads]
    nodes = np.zeros((len(graph.groups) + len(heads), len(STATE_FEATURES)))
    nodes[: len(graph.groups), 0] = np.log(np.maximum(at_hand, 0.5) / graph.sizes)
    nodes[len(graph.groups) :, 1] = np.log(np.maximum(cost, 1) / np.maximum(dense, 1))
    if budget is not None:
        limits = Budget.of(budget, graph)
        whole, left = limits.costs(graph, graph.sizes), limits.costs(graph, at_hand)
        nodes[:, 2] = min(np.log(limit / float(whole[metric])) for metric, limit in limits.limits.items())
        nodes[:, 3] = min(np.log(limit / float(left[metric])) for metric, limit in limits.limits.items())
    return nodes


def _positions(operation: Operation) -> float:
    """Pixels or tokens of a result: the product of the dimensions that no width decides."""
    fixed = [length for length, size in zip(operation.shape, operation.sizes, strict=True) if set(size) <= {()}]
    spatial = operation.shape[2:] if len(operation.shape) > 2 and operation.kind.startswith("conv") else fixed
    return float(max(1, np.prod(spatial, dtype=np.float64)))


# ---------------------------------------------------------------------------------------------- edges and motifs


def _owners(operations: Sequence[Operation], heads: Sequence[int]) -> list[frozenset[int]]:
    """Per operation the contractions whose results reach it through no other one; of a contraction, itself."""
    owners: list[frozenset[int]] = []
    for number, operation in enumerate(operations):
        before = frozenset().union(*(owners[source] for source in operation.inputs))
        owners.append(frozenset([number]) if number in heads else before)
    return owners


def _edges(
    graph: ChannelGraph, heads: Sequence[int], owners: Sequence[frozenset[int]]
) -> tuple[list[int], list[int], list[int]]:
    n_groups = len(graph.groups)
    node = {number: n_groups + place for place, number in enumerate(heads)}
    pairs: dict[tuple[int, int, int], None] = {}  # (source, target, role), once each
    for role, incidence in enumerate(graph.incidence()):
        for term, group in np.argwhere(incidence).tolist():
            operation = node[graph.mac_operations[term]]
            pairs[operation, group, role] = pairs[group, operation, role + 2] = None
    for number in heads:
        for source in graph.operations[number].inputs:
            for owner in sorted(owners[source]):
                pairs[node[owner], node[number], 4] = pairs[node[number], node[owner], 5] = None
    sources, targets, roles = (list(column) for column in zip(*pairs, strict=True))
    return sources, targets, roles


def _motifs(
    graph: ChannelGraph, heads: Sequence[int], owners: Sequence[frozenset[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """An operation that several contractions reach belongs to the latest of them."""
    place = {number: at for at, number in enumerate(heads)}
    members = [number for number, found in enumerate(owners) if found]
    row = {number: at for at, number in enumerate(members)}
    x = np.zeros((len(members), len(MOTIF_FEATURES)))
    of, edges = [], []
    for at, number in enumerate(members):
        operation, head = graph.operations[number], max(owners[number])
        of.append(len(graph.groups) + place[head])
        x[at, list(MOTIF_KINDS).index("contraction" if number == head else _motif_kind(operation.kind))] = 1
        x[at, -2] = np.log2(_positions(operation) / _positions(graph.operations[head])) / 8
        x[at, -1] = max(0, len(operation.inputs) - 1)
        for source in operation.inputs:
            if owners[source] and max(owners[source]) == head and number != head:
                edges += [(row[source], at), (at, row[source])]
    return (
        torch.from_numpy(x).float(),
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        torch.tensor(of, dtype=torch.int64),
    )


def _motif_kind(kind: str) -> str:
    bare = kind.rstrip("_")
    return next((name for name, kinds in MOTIF_KINDS.items() if bare in kinds), "other")
