"""What every encoder must do: nothing depends on the order of nodes, of channels, or on the batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch_geometric.data import Batch

from espalier.agents.graph.encoders import CONVOLUTIONS, GraphEncoder
from espalier.agents.graph.network_graph import NetworkData, network_graph
from espalier.errors import ConfigError
from tests.agents.conftest import Traced

every_convolution = pytest.mark.parametrize("convolution", list(CONVOLUTIONS))


def encoder(convolution: str) -> GraphEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GraphEncoder(16, 2, convolution)


def permuted(data: NetworkData, order: torch.Tensor) -> NetworkData:
    assert data.x is not None and data.edge_index is not None
    place = order.argsort()
    edges = torch.randperm(data.edge_index.shape[1])
    motifs = torch.randperm(len(data.motif_x))
    return NetworkData(
        x=data.x[order],
        edge_index=place[data.edge_index[:, edges]],
        edge_attr=data.edge_attr[edges],
        motif_x=data.motif_x[motifs],
        motif_edge_index=motifs.argsort()[data.motif_edge_index],
        motif_of=place[data.motif_of[motifs]],
    )


@every_convolution
def test_embeddings_follow_the_order_of_nodes(convolution: str, data: NetworkData) -> None:
    encode = encoder(convolution)
    assert data.x is not None
    order = torch.randperm(len(data.x))
    here, there = encode(data), encode(permuted(data, order))
    torch.testing.assert_close(there.nodes, here.nodes[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.graphs, here.graphs, rtol=1e-4, atol=1e-5)


@every_convolution
def test_embeddings_of_a_batch_are_those_of_its_graphs(
    convolution: str, data: NetworkData, mobilenet: Traced, resnet: Traced
) -> None:
    """A published agent gives every graph of a batch the embedding of the first one."""
    graph, energies = resnet
    others = [network_graph(*mobilenet), network_graph(graph, energies, widths=graph.sizes // 2)]
    encode = encoder(convolution)
    alone = [encode(each) for each in (data, *others)]
    together = encode(Batch.from_data_list([data, *others]))
    torch.testing.assert_close(together.nodes, torch.cat([each.nodes for each in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.graphs, torch.cat([each.graphs for each in alone]), rtol=1e-4, atol=1e-5)
    assert all((one.graphs - other.graphs).abs().max() > 1e-3 for one, other in itertools.pairwise(alone))


def test_motifs_and_roles_of_edges_count(data: NetworkData) -> None:
    encode = encoder("gine")
    here = encode(data).graphs
    for key in ("motif_x", "edge_attr"):
        changed = data.clone()
        changed[key] = data[key].flip(1)
        assert (encode(changed).graphs - here).abs().max() > 1e-3


def test_shapes_and_an_unknown_name(data: NetworkData) -> None:
    encode = GraphEncoder(16, 2)
    found = encode(data)
    assert data.x is not None
    assert found.nodes.shape == (len(data.x), encode.node_width)
    assert found.graphs.shape == (1, encode.graph_width)
    with pytest.raises(ConfigError, match="unknown convolution 'cheb', valid names are gine, gatv2, gcn"):
        GraphEncoder(16, 2, "cheb")
