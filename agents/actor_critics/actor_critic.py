"""Networks of the on-policy agents: from observations to a distribution of actions and the value of the state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from espalier.agents.common.buffers import Moments
from espalier.agents.common.distributions import TruncatedNormal
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.graph.network_graph import NetworkData

REACH = 1.25
"""Means lie within it: beyond the ends of the actions' range, so that an end can be the likeliest action."""
LEAST_STD, MOST_STD = 0.02, 1.0

NODE_OUTPUTS = ("scale", "shift")
GRAPH_OUTPUTS = ("rung", "normalization", "evenness")
"""Numbers that a trained encoder knows: of groups, and of the whole network. Others have offsets of their own."""


class ActorCritic(nn.Module, ABC):
    """What an on-policy agent trains."""

    @abstractmethod
    def forward(self, observations: Tensor) -> tuple[TruncatedNormal, Tensor]:
        """Distribution of the actions, (n, A), and values (n,), of observations (n, F)."""

    def see(self, observations: Tensor) -> None:
        """Takes in what was observed, (n, F), before an update."""

    def rates(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Parameters that are trained, by the factor that their learning rate has."""
        return [(1.0, [parameter for parameter in self.parameters() if parameter.requires_grad])]


class MlpActorCritic(ActorCritic):
    """Two perceptrons over normalised observations, and standard deviations that no observation changes.

    Args:
        n_features: F.
        n_actions: A.
        width: of the two hidden layers.
        std: at the start.
    """

    def __init__(self, n_features: int, n_actions: int, *, width: int = 64, std: float = 0.5) -> None:
        super().__init__()
        self.moments = Moments(n_features)
        self.actor = perceptron(n_features, width, n_actions, last=0.01)
        self.critic = perceptron(n_features, width, 1)
        self.log_std = nn.Parameter(torch.full((n_actions,), math.log(std)))

    def forward(self, observations: Tensor) -> tuple[TruncatedNormal, Tensor]:
        """Of observations (n, F)."""
        inputs = self.moments.normalize(observations).clamp(-10, 10)
        mean = bounded(self.actor(inputs))
        return TruncatedNormal(mean, _std(self.log_std)), self.critic(inputs)[:, 0]

    def see(self, observations: Tensor) -> None:
        """Updates the moments."""
        self.moments.update(observations)


@dataclass(frozen=True)
class Axis:
    """One number of a vector.

    Attributes:
        nodes: of the graph, whose groups it moves; none where it belongs to the whole network.
        output: what it does to them, a name in `NODE_OUTPUTS` or `GRAPH_OUTPUTS`, or any other.
        cell: half the length of its cells where it is rounded, in units of its range [-1, 1]; 0 where it is real.
        start: where its mean begins.
    """

    nodes: tuple[int, ...]
    output: str
    cell: float = 0.0
    start: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A network to prune, and the numbers that are searched.

    Attributes:
        data: the network graph.
        axes: d of them.
    """

    data: NetworkData
    axes: tuple[Axis, ...]


class GraphActorCritic(ActorCritic):
    """Emits whole vectors: one evaluation is one episode of one step.

    The mean of a group's number comes from its node, so that it moves with what the network looks like there; those
    of the whole network come from the readout. Each axis of each problem has an offset of its own besides, which
    transfers to no other problem. At the start every mean is the axis' start.

    Args:
        problems: an observation is the number of one of them, (n, 1).
        encoder: of network graphs.
        std: at the start.
        own: factor of the learning rate of offsets, each of which moves one number alone; 0 for no offsets.
    """

    cells: Tensor
    starts: Tensor
    present: Tensor

    def __init__(
        self, problems: Sequence[Problem], encoder: GraphEncoder, *, std: float = 1 / 3, own: float = 20.0
    ) -> None:
        super().__init__()
        self._problems = list(problems)
        self.encoder = encoder
        self.node_head = nn.Linear(encoder.node_width, len(NODE_OUTPUTS))
        self.graph_head = nn.Linear(encoder.graph_width, len(GRAPH_OUTPUTS))
        self.value_head = nn.Linear(encoder.graph_width, 1)
        for head in (self.node_head, self.graph_head, self.value_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.dim = max(len(problem.axes) for problem in problems)
        shape = (len(problems), self.dim)
        self._own_rate = own
        self.own = nn.Parameter(torch.zeros(shape), requires_grad=own > 0)
        self.log_std = nn.Parameter(torch.tensor(math.log(std)))
        self.own_log_std = nn.Parameter(torch.zeros(shape), requires_grad=own > 0)
        self.register_buffer("cells", self._padded([[a.cell for a in p.axes] for p in problems]), persistent=False)
        starts = self._padded([[a.start for a in p.axes] for p in problems])
        self.register_buffer("starts", REACH * torch.atanh(starts / REACH), persistent=False)
        present = self._padded([[1.0] * len(p.axes) for p in problems])
        self.register_buffer("present", present, persistent=False)

    def forward(self, observations: Tensor) -> tuple[TruncatedNormal, Tensor]:
        """Of problems (n, 1): distributions (n, dim), those of axes that a problem lacks at random, and values."""
        numbers = observations[:, 0].long()
        asked, place = numbers.unique(return_inverse=True)
        means, values = self._unbounded(asked)
        std = _std(self.log_std + self.own_log_std[asked])
        distribution = TruncatedNormal(bounded(means)[place], std[place], self.cells[asked][place])
        return distribution, values[place]

    def begin_at(self, number: int, vector: Tensor) -> None:
        """Sets the offsets of a problem so that its means are a vector (d,) in [-1, 1]."""
        with torch.no_grad():
            means, _ = self._unbounded(torch.tensor([number]))
            wanted = REACH * torch.atanh(vector / REACH)
            self.own[number, : len(vector)] += wanted - means[0, : len(vector)]

    def rates(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Offsets and standard deviations learn faster than what many numbers depend on."""
        single = {id(self.own), id(self.own_log_std), id(self.log_std)}
        found = [parameter for parameter in self.parameters() if parameter.requires_grad]
        shared = [parameter for parameter in found if id(parameter) not in single]
        return [(1.0, shared), (max(1.0, self._own_rate), [p for p in found if id(p) in single])]

    def _unbounded(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Means (n, dim) before they are bounded, and values (n,), of problems by their numbers (n,)."""
        chosen = [self._problems[number] for number in asked.tolist()]
        graphs = [problem.data for problem in chosen]
        encoding = self.encoder(graphs[0] if len(graphs) == 1 else Batch.from_data_list(graphs))
        of_nodes, of_graphs = self.node_head(encoding.nodes), self.graph_head(encoding.graphs)
        offset, rows = 0, []
        for row, problem in enumerate(chosen):
            rows.append(self._means(problem, of_nodes[offset:], of_graphs[row]))
            offset += problem.data.num_nodes
        return torch.stack(rows) + self.own[asked] + self.starts[asked], self.value_head(encoding.graphs)[:, 0]

    def _means(self, problem: Problem, of_nodes: Tensor, of_graph: Tensor) -> Tensor:
        found = []
        for axis in problem.axes:
            if axis.output in NODE_OUTPUTS and axis.nodes:
                found.append(of_nodes[list(axis.nodes), NODE_OUTPUTS.index(axis.output)].mean())
            elif axis.output in GRAPH_OUTPUTS:
                found.append(of_graph[GRAPH_OUTPUTS.index(axis.output)])
            else:
                found.append(of_graph.new_zeros(()))
        return nn.functional.pad(torch.stack(found), (0, self.dim - len(found)))

    def _padded(self, rows: list[list[float]]) -> Tensor:
        return torch.tensor([row + [0.0] * (self.dim - len(row)) for row in rows])


def bounded(numbers: Tensor) -> Tensor:
    """Squashed into [-REACH, REACH], as they are near 0."""
    return REACH * torch.tanh(numbers / REACH)


def perceptron(inputs: int, width: int, outputs: int, *, last: float = 1.0) -> nn.Sequential:
    """Two hidden layers of tanh, orthogonal weights; those of the last layer scaled by `last`."""
    layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), last), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def _std(log_std: Tensor) -> Tensor:
    return log_std.exp().clamp(LEAST_STD, MOST_STD)
