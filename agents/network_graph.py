"""The network as a graph for a GNN: groups and operations are nodes, data flow is edges.

Every feature follows from the ChannelGraph and the energies alone, so that equal networks give equal graphs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

from espalier.pruning.costs import BilinearCost, Floats
from espalier.pruning.graph import ChannelGraph

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)

NODE_FEATURES = (
    "is_group",
    "is_operation",
    "log2_width",
    "mac_share",
    "parameter_share",
    "depth",
    "log_energy_mean",
    "log_energy_spread",
    *(f"log_energy_q{round(100 * q)}" for q in QUANTILES),
)
"""Columns of `Data.x`. Energies are logarithms relative to the network's mean; 0 at operations."""

EDGE_FEATURES = ("reads", "writes", "read_by", "written_by")
"""Columns of `Data.edge_attr`, one of them 1: the first two from operation to group, the others back."""


def network_graph(graph: ChannelGraph, energies: npt.ArrayLike) -> Data:
    """The PyG graph of a network.

    Args:
        graph: groups and costs.
        energies: (n_channels,) channel energies, not negative.

    Returns:
        ``x`` (n_groups + n_operations, len(NODE_FEATURES)) float32, groups first in the graph's order;
        ``edge_index`` (2, n_edges); ``edge_attr`` (n_edges, len(EDGE_FEATURES)).
    """
    terms = graph.mac_terms
    features = np.concatenate([_group_features(graph, np.asarray(energies, dtype=np.float64)), _op_features(graph)])
    sources, targets, roles = _edges(terms, len(graph.groups))
    return Data(
        x=torch.from_numpy(features).float(),
        edge_index=torch.tensor([sources, targets], dtype=torch.int64),
        edge_attr=torch.eye(len(EDGE_FEATURES))[torch.tensor(roles, dtype=torch.int64)],
    )


def _group_features(graph: ChannelGraph, energies: Floats) -> Floats:
    logs = np.log(np.maximum(energies, 1e-12)) - np.log(max(energies.mean(), 1e-12))
    columns: list[Floats] = []
    share = graph.channel_costs() * graph.sizes / float(graph.macs(graph.sizes))
    one_less = graph.sizes - np.eye(len(graph.groups), dtype=np.int64)
    parameters = int(graph.params(graph.sizes))
    parameter_share = (parameters - graph.params(one_less)) * graph.sizes / parameters
    reads, writes = graph.mac_terms.incidence(len(graph.groups))
    touched = reads | writes  # (n_operations, G)
    depth = np.argmax(touched, axis=0) / max(1, len(touched) - 1)  # of the first operation that touches it
    for group, (start, end) in enumerate(zip(graph.offsets[:-1], graph.offsets[1:], strict=True)):
        own = logs[start:end]
        row = [1.0, 0.0, np.log2(end - start), share[group], parameter_share[group], depth[group]]
        columns.append(np.array([*row, own.mean(), own.std(), *np.quantile(own, QUANTILES)]))
    return np.stack(columns)


def _op_features(graph: ChannelGraph) -> Floats:
    terms = graph.mac_terms
    dense = terms.terms(graph.sizes[None].astype(np.float64))[0]  # (n_operations,)
    written = terms.sides(graph.sizes[None].astype(np.float64))[1][0]
    features = np.zeros((len(dense), len(NODE_FEATURES)))
    features[:, 1] = 1.0
    features[:, 2] = np.log2(np.maximum(written, 1.0))
    features[:, 3] = dense / dense.sum()
    features[:, 5] = np.arange(len(dense)) / max(1, len(dense) - 1)
    return features


def _edges(terms: BilinearCost, n_groups: int) -> tuple[list[int], list[int], list[int]]:
    sources: list[int] = []
    targets: list[int] = []
    roles: list[int] = []
    for role, incidence in enumerate(terms.incidence(n_groups)):
        for operation, group in np.argwhere(incidence).tolist():
            node = n_groups + operation
            sources += [node, group]
            targets += [group, node]
            roles += [role, role + 2]
    return sources, targets, roles
