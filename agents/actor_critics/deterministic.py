"""Networks of DDPG, a noiseless actor and its critic: AMC's perceptrons, and AGMC's GNN with an LSTM."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from espalier.agents.actor_critics.actor_critic import NODE_OUTPUTS, Problem, perceptron
from espalier.agents.common.buffers import Moments
from espalier.agents.graph.encoders import GraphEncoder

MOST_START = 0.9
"""Actions begin no nearer to the ends, where the actor would learn slowly."""


class DeterministicActorCritic(nn.Module, ABC):
    """Works on whole episodes at once, E of them with T steps each.

    What is best to do differs from step to step, and some hundred episodes teach a perceptron little of that: each
    step has offsets of its own in the actor, and the critic has inputs for the actions of each step.

    Args:
        n_features: F.
        n_state: S, numbers of a state.
        n_actions: A.
        width: of the hidden layers of actor and critic.
        starts: (T,) where actions begin.
    """

    places: Tensor

    def __init__(self, n_features: int, n_state: int, n_actions: int, *, width: int, starts: Tensor) -> None:
        super().__init__()
        self.moments = Moments(n_features)
        self.actor = perceptron(n_state, width, n_actions, last=0.01)
        self.critic = perceptron(n_state + len(starts) * n_actions, width, 1)
        begin = torch.atanh(starts.clamp(-MOST_START, MOST_START))
        self.own = nn.Parameter(begin[:, None].repeat(1, n_actions))  # (T, A)
        self.register_buffer("places", torch.eye(len(starts))[:, :, None], persistent=False)

    @abstractmethod
    def states(self, observations: Tensor) -> Tensor:
        """Observations (E, T, F) -> states (E, T, S): of step t from the observations up to it."""

    @abstractmethod
    def last_state(self, observations: Tensor) -> Tensor:
        """The state (S,) after observations (t, F) of one episode."""

    def actions(self, states: Tensor, first: int = 0) -> Tensor:
        """What the actor does in states (E, T, S), the first of them of step `first`: (E, T, A) in [-1, 1]."""
        return torch.tanh(self.actor(states) + self.own[first : first + states.shape[1]])

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """What is still to be earned in states (E, T, S) after actions (E, T, A): (E, T)."""
        placed = (self.places * actions[:, :, None]).flatten(2)  # (E, T, T A), 0 but in the step's own place
        found: Tensor = self.critic(torch.cat([states, placed], dim=-1))[..., 0]
        return found

    def normalized(self, observations: Tensor) -> Tensor:
        """Observations (E, T, F) by the moments of all that was seen."""
        flat = self.moments.normalize(observations.flatten(0, 1)).clamp(-10, 10)
        return flat.view_as(observations)

    def forget(self) -> None:
        """Drops what was kept of earlier passes, after an update."""


class MlpDeterministic(DeterministicActorCritic):
    """AMC's: the state is the observation, normalised.

    Args:
        n_features: F.
        n_actions: A.
        starts: (T,) where actions begin.
        width: of the hidden layers.
    """

    def __init__(self, n_features: int, n_actions: int, starts: Tensor, *, width: int = 64) -> None:
        super().__init__(n_features, n_features, n_actions, width=width, starts=starts)

    def states(self, observations: Tensor) -> Tensor:
        """The observations, normalised."""
        return self.normalized(observations)

    def last_state(self, observations: Tensor) -> Tensor:
        """Of the last observation alone."""
        return self.states(observations[None, -1:])[0, 0]


class GraphLstm(DeterministicActorCritic):
    """AGMC's: a GNN embeds the network, an LSTM steps through its groups (Yu et al., ICCV 2021, arXiv 2102.02981).

    At step t the LSTM reads the embedding of axis t, the readout where it belongs to the whole network, and the
    observation, which holds the action before. The critic trains both, the actor looks at the state.

    Args:
        problem: the network, and what the steps are: one axis each.
        n_features: F.
        encoder: of the network graph.
        width: of the LSTM and the hidden layers.
    """

    reads: Tensor
    whole: Tensor

    def __init__(self, problem: Problem, n_features: int, encoder: GraphEncoder, *, width: int = 48) -> None:
        starts = torch.tensor([axis.start for axis in problem.axes])
        super().__init__(n_features, width, 1, width=width, starts=starts)
        self._data = problem.data
        reads = torch.zeros(len(problem.axes), problem.data.num_nodes)
        for row, axis in zip(reads, problem.axes, strict=True):
            if axis.output in NODE_OUTPUTS and axis.nodes:
                row[list(axis.nodes)] = 1 / len(axis.nodes)
        self.register_buffer("reads", reads, persistent=False)  # (T, nodes) whose mean an axis reads
        self.register_buffer("whole", (reads.sum(1, keepdim=True) == 0).float(), persistent=False)
        self.encoder = encoder
        self.of_nodes = nn.Linear(encoder.node_width, width)
        self.of_graph = nn.Linear(encoder.graph_width, width)
        self.of_observations = nn.Linear(n_features, width)
        self.decoder = nn.LSTM(width, width, batch_first=True)
        self._embedded: Tensor | None = None
        self._walked: tuple[Tensor, tuple[Tensor, Tensor]] | None = None  # observations, and the LSTM after them

    def states(self, observations: Tensor) -> Tensor:
        """The LSTM's outputs."""
        found: Tensor = self.decoder(self._inputs(observations, 0))[0]
        return found

    def last_state(self, observations: Tensor) -> Tensor:
        """One step on from where the last call was, if that was the step before."""
        first, memory = 0, (torch.zeros(1, self.decoder.hidden_size),) * 2
        if self._walked is not None and torch.equal(self._walked[0], observations[:-1]):
            first, memory = len(observations) - 1, self._walked[1]
        for inputs in self._inputs(observations[None, first:], first)[0]:
            memory = torch.lstm_cell(inputs[None], memory, *self.decoder.all_weights[0])
        self._walked = observations, memory
        return memory[0][0]

    def _inputs(self, observations: Tensor, first: int) -> Tensor:
        """What the LSTM reads at steps `first` and after, (E, T, width)."""
        axes = self._axes()[first : first + observations.shape[1]]
        read: Tensor = (self.of_observations(self.normalized(observations)) + axes).tanh()
        return read

    def forget(self) -> None:
        """The embeddings are out of date."""
        self._embedded = self._walked = None

    def _axes(self) -> Tensor:
        """Embedding of every axis, (T, width); kept until an update where no gradient is asked for."""
        if self._embedded is not None and not torch.is_grad_enabled():
            return self._embedded
        encoding = self.encoder(self._data)
        embedded: Tensor = self.reads @ self.of_nodes(encoding.nodes)
        embedded = embedded + self.whole * self.of_graph(encoding.graphs[0])
        if not torch.is_grad_enabled():
            self._embedded = embedded
        return embedded
