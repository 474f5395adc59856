"""The network graph: what its nodes, edges and motifs are, and that nothing but the network decides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from espalier.agents.graph.network_graph import (
    EDGE_FEATURES,
    MOTIF_FEATURES,
    NODE_FEATURES,
    STATE_FEATURES,
    NetworkData,
    network_graph,
)
from espalier.errors import ConfigError
from tests.agents.conftest import Traced, traced_network


def column(data: NetworkData, name: str) -> np.ndarray:
    assert data.x is not None
    found: np.ndarray = data.x[:, NODE_FEATURES.index(name)].numpy()
    return found


def test_it_has_a_node_per_group_and_contraction(resnet: Traced, data: NetworkData) -> None:
    graph, _ = resnet
    assert data.x is not None
    assert data.x.shape == (len(graph.groups) + len(graph.mac_terms.names), len(NODE_FEATURES))
    assert column(data, "is_group").sum() == len(graph.groups)
    assert column(data, "operation_mac_share").sum() == pytest.approx(1)
    assert torch.isfinite(data.x).all() and data.x.abs().max() < 4


def test_edges_go_both_ways_by_role(resnet: Traced, data: NetworkData) -> None:
    graph, _ = resnet
    assert data.edge_index is not None
    counts = dict(zip(EDGE_FEATURES, data.edge_attr.sum(0).tolist(), strict=True))
    assert counts["reads"] == counts["read_by"] == (graph.mac_terms.reads > 0).sum()
    assert counts["writes"] == counts["written_by"] == (graph.mac_terms.writes > 0).sum()
    feeds = data.edge_index[:, data.edge_attr[:, EDGE_FEATURES.index("feeds")] == 1].T.tolist()
    back = data.edge_index[:, data.edge_attr[:, EDGE_FEATURES.index("fed_by")] == 1].T.tolist()
    assert sorted(feeds) == sorted([b, a] for a, b in back)
    first = len(graph.groups)  # the stem feeds the first convolution and, through the stream, every later one
    assert [first, first + 1] in feeds and [first, first + 3] in feeds
    assert [first + 1, first + 3] not in feeds  # what the second convolution of a block writes lies between


def test_operations_are_described(mobilenet: Traced) -> None:
    graph, energies = mobilenet
    found = network_graph(graph, energies)
    rows = {graph.operations[number].layer: len(graph.groups) + i for i, number in enumerate(graph.mac_operations)}
    stem, depthwise, pointwise = (rows[f"features.{name}"] for name in ("0.0", "2.conv.1.0", "2.conv.0.0"))
    for name, values in {
        "convolution": (1, 0, 1),
        "depthwise": (0, 1, 0),
        "log2_window": (np.log2(9) / 8, np.log2(9) / 8, 0),
        "log2_groups": (0, np.log2(96) / 8, 0),
        "log2_read": (np.log2(3) / 8, np.log2(96) / 8, 0.5),
        "log2_positions": (10 / 8, 10 / 8, 10 / 8),
    }.items():
        assert column(found, name)[[stem, depthwise, pointwise]] == pytest.approx(values, abs=1e-6), name
    assert column(found, "linear").sum() == 1


def test_strides_of_a_resnet(data: NetworkData) -> None:
    assert (column(data, "log2_stride") * 8).round(3).tolist().count(1.0) == 2


def test_every_operation_behind_a_contraction_is_in_one_motif(resnet: Traced, data: NetworkData) -> None:
    graph, _ = resnet
    reached = sum(bool(operation.inputs) for operation in graph.operations)  # all but the input and constants
    assert data.motif_x.shape == (reached, len(MOTIF_FEATURES))
    heads = data.motif_of[data.motif_x[:, MOTIF_FEATURES.index("contraction")] == 1]
    assert heads.tolist() == list(range(len(graph.groups), len(graph.groups) + len(graph.mac_operations)))
    source, target = data.motif_edge_index
    assert (data.motif_of[source] == data.motif_of[target]).all()


def test_it_depends_on_nothing_but_the_network(resnet: Traced, data: NetworkData) -> None:
    """The features of a published agent are random numbers, new at every build."""
    graph, energies = resnet
    assert data.x is not None
    again = network_graph(*traced_network("resnet20")).x
    assert again is not None and torch.equal(again, data.x)
    rng = np.random.default_rng(0)
    shuffled = np.concatenate([rng.permutation(part) for part in np.split(energies, graph.offsets[1:-1])])
    for other in (shuffled, 7 * energies):
        found = network_graph(graph, other).x
        assert found is not None
        torch.testing.assert_close(found, data.x, rtol=1e-5, atol=1e-5)


def test_widths_and_budget_change_state_features_alone(resnet: Traced, data: NetworkData) -> None:
    graph, energies = resnet
    budget = int(graph.macs(graph.sizes)) // 2
    half = graph.sizes // 2
    found = network_graph(graph, energies, widths=half, budget=budget)
    assert found.x is not None and data.x is not None
    assert torch.equal(found.x[:, : -len(STATE_FEATURES)], data.x[:, : -len(STATE_FEATURES)])
    assert column(found, "log_keep")[: len(graph.groups)] == pytest.approx(np.log(0.5))
    assert column(found, "log_budget") == pytest.approx(np.log(0.5))
    assert column(found, "log_budget_left") == pytest.approx(np.log(budget / int(graph.macs(half))))
    assert column(data, "log_keep").any() == column(data, "log_budget").any() == np.False_


def test_batches_keep_motifs_with_their_operations(data: NetworkData, mobilenet: Traced) -> None:
    other = network_graph(*mobilenet)
    batch = Batch.from_data_list([data, other])
    assert data.x is not None
    assert batch.motif_of[len(data.motif_of) :].tolist() == (other.motif_of + len(data.x)).tolist()
    edges = data.motif_edge_index.shape[1]
    assert torch.equal(batch.motif_edge_index[:, edges:], other.motif_edge_index + len(data.motif_x))


def test_energies_of_another_network(resnet: Traced) -> None:
    with pytest.raises(ConfigError, match="one number for each of 400 channels, got"):
        network_graph(resnet[0], np.ones(7))
