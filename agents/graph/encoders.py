"""GNN encoders of the network graph, for one graph or a PyG batch of them.

GINE     Hu et al., ICLR 2020, arXiv 1905.12265 (default)
GATv2    Brody et al., ICLR 2022, arXiv 2105.14491
GCN      Kipf and Welling, ICLR 2017, arXiv 1609.02907; knows no roles of edges
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    GraphNorm,
    JumpingKnowledge,
    global_max_pool,
    global_mean_pool,
)

from espalier.agents.graph.network_graph import EDGE_FEATURES, MOTIF_FEATURES, NODE_FEATURES
from espalier.errors import ConfigError


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


CONVOLUTIONS: dict[str, Callable[[int], nn.Module]] = {
    "gine": lambda width: GINEConv(_mlp(width), edge_dim=len(EDGE_FEATURES)),
    "gatv2": lambda width: GATv2Conv(width, width // 4, heads=4, edge_dim=len(EDGE_FEATURES)),
    "gcn": lambda width: GCNConv(width, width),
}
"""Name -> layer of a width, a multiple of four."""


class Encoding(NamedTuple):
    """Embeddings.

    Attributes:
        nodes: (n_nodes, GraphEncoder.node_width).
        graphs: (n_graphs, GraphEncoder.graph_width) mean and maximum over the nodes of each graph.
    """

    nodes: Tensor
    graphs: Tensor


class GraphEncoder(nn.Module):
    """Rounds of message passing with GraphNorm (Cai et al., ICML 2021, arXiv 2009.03294) and residuals.

    The outputs of all rounds are joined (jumping knowledge, Xu et al., ICML 2018, arXiv 1806.03536). Nothing
    depends on the order of nodes or edges, nor on which other graphs are in the batch.

    Args:
        width: of each layer.
        layers: rounds of message passing.
        convolution: a name in `CONVOLUTIONS`.

    Raises:
        ConfigError: there is no such convolution.
    """

    def __init__(self, width: int = 32, layers: int = 3, convolution: str = "gine") -> None:
        super().__init__()
        if convolution not in CONVOLUTIONS:
            raise ConfigError(f"unknown convolution {convolution!r}, valid names are {', '.join(CONVOLUTIONS)}")
        self._takes_edges = convolution != "gcn"
        self.start = nn.Linear(len(NODE_FEATURES), width)
        self.motifs = MotifEncoder(width)
        self.convolutions = nn.ModuleList(CONVOLUTIONS[convolution](width) for _ in range(layers))
        self.norms = nn.ModuleList(GraphNorm(width) for _ in range(layers))
        self.jump = JumpingKnowledge("cat")
        self.node_width = width * (layers + 1)
        self.graph_width = 2 * self.node_width

    def forward(self, data: Data) -> Encoding:
        """Embeddings of every node and every graph."""
        assert data.x is not None
        graphs: int = getattr(data, "num_graphs", None) or 1
        batch = data.batch if data.batch is not None else data.x.new_zeros(len(data.x), dtype=torch.int64)
        hidden = self.start(data.x) + self.motifs(data)
        outputs = [hidden]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            edges = (data.edge_attr,) if self._takes_edges else ()
            messages = convolution(hidden, data.edge_index, *edges)
            hidden = hidden + norm(messages, batch, batch_size=graphs).relu()
            outputs.append(hidden)
        nodes = self.jump(outputs)
        readout = [pool(nodes, batch, size=graphs) for pool in (global_mean_pool, global_max_pool)]
        return Encoding(nodes, torch.cat(readout, dim=1))


class MotifEncoder(nn.Module):
    """One round of message passing inside each motif, pooled into the node of its contraction; 0 at groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start = nn.Linear(len(MOTIF_FEATURES), width)
        self.convolution = GINConv(_mlp(width))
        self.end = nn.Linear(2 * width, width, bias=False)

    def forward(self, data: Data) -> Tensor:
        """What to add to the network's nodes: (n_nodes, width)."""
        hidden = self.start(data.motif_x)
        hidden = hidden + self.convolution(hidden, data.motif_edge_index).relu()
        pooled = [pool(hidden, data.motif_of, size=data.num_nodes) for pool in (global_mean_pool, global_max_pool)]
        summed: Tensor = self.end(torch.cat(pooled, dim=1))
        return summed
