"""Networks of DDPG, a noiseless actor and its critic: AMC's perceptrons, and AGMC's GNN with an LSTM."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from espalier.agents.actor_critic import NODE_OUTPUTS, Problem, perceptron
from espalier.agents.buffers import Moments
from espalier.agents.encoders import GraphEncoder

MOST_START = 0.9
"""Actions begin no nearer to the ends, where the actor would learn slowly."""


class DeterministicActorCritic(nn.Module, ABC):
    """Works on whole episodes at once, E of them with T steps each.

    Args:
        n_state: S, numbers of a state.
        n_actions: A.
        width: of the hidden layers of actor and critic.
        starts: (T,) where actions begin; 0 without.
    """

    starts: Tensor

    def __init__(self, n_state: int, n_actions: int, *, width: int, starts: Tensor | None = None) -> None:
        super().__init__()
        self.actor = perceptron(n_state, width, n_actions, last=0.01)
        self.critic = perceptron(n_state + n_actions, width, 1)
        begin = torch.zeros(1) if starts is None else torch.atanh(starts.clamp(-MOST_START, MOST_START))
        self.register_buffer("starts", begin, persistent=False)

    @abstractmethod
    def states(self, observations: Tensor) -> Tensor:
        """Observations (E, T, F) -> states (E, T, S): of step t from the observations up to it."""

    def last_state(self, observations: Tensor) -> Tensor:
        """The state (S,) after observations (t, F) of one episode."""
        return self.states(observations[None])[0, -1]

    def actions(self, states: Tensor, first: int = 0) -> Tensor:
        """What the actor does in states (E, T, S), the first of them of step `first`: (E, T, A) in [-1, 1]."""
        starts = self.starts if len(self.starts) == 1 else self.starts[first : first + states.shape[1]]
        return torch.tanh(self.actor(states) + starts[:, None])

    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """What is still to be earned in states (E, T, S) after actions (E, T, A): (E, T)."""
        found: Tensor = self.critic(torch.cat([states, actions], dim=-1))[..., 0]
        return found

    def see(self, observations: Tensor) -> None:
        """Takes in what was observed, (T, F), before updates."""

    def forget(self) -> None:
        """Drops what was kept of earlier passes, after an update."""


class MlpDeterministic(DeterministicActorCritic):
    """AMC's: the state is the observation, normalised.

    Args:
        n_features: F.
        n_actions: A.
        width: of the hidden layers.
        starts: (T,) where actions begin.
    """

    def __init__(self, n_features: int, n_actions: int, *, width: int = 64, starts: Tensor | None = None) -> None:
        super().__init__(n_features, n_actions, width=width, starts=starts)
        self.moments = Moments(n_features)

    def states(self, observations: Tensor) -> Tensor:
        """The observations, normalised."""
        flat = self.moments.normalize(observations.flatten(0, 1)).clamp(-10, 10)
        return flat.view_as(observations)

    def last_state(self, observations: Tensor) -> Tensor:
        """Of the last observation alone."""
        return self.states(observations[None, -1:])[0, 0]

    def see(self, observations: Tensor) -> None:
        """Updates the moments."""
        self.moments.update(observations)


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

    def __init__(self, problem: Problem, n_features: int, encoder: GraphEncoder, *, width: int = 48) -> None:
        super().__init__(width, 1, width=width, starts=torch.tensor([axis.start for axis in problem.axes]))
        self._problem = problem
        self.encoder = encoder
        self.of_nodes = nn.Linear(encoder.node_width, width)
        self.of_graph = nn.Linear(encoder.graph_width, width)
        self.of_observations = nn.Linear(n_features, width)
        self.moments = Moments(n_features)
        self.decoder = nn.LSTM(width, width, batch_first=True)
        self._embedded: Tensor | None = None
        self._walked: tuple[Tensor, tuple[Tensor, Tensor]] | None = None  # observations, and the LSTM after them

    def states(self, observations: Tensor) -> Tensor:
        """The LSTM's outputs."""
        found: Tensor = self.decoder(self._inputs(observations, 0))[0]
        return found

    def last_state(self, observations: Tensor) -> Tensor:
        """One step on from where the last call was, if that was the step before."""
        before, memory = len(observations) - 1, None
        if self._walked is not None and torch.equal(self._walked[0], observations[:before]):
            memory = self._walked[1]
        first = before if memory is not None else 0
        outputs, memory = self.decoder(self._inputs(observations[None, first:], first), memory)
        self._walked = observations, memory
        last: Tensor = outputs[0, -1]
        return last

    def _inputs(self, observations: Tensor, first: int) -> Tensor:
        """What the LSTM reads at steps `first` and after, (E, T, width)."""
        flat = self.moments.normalize(observations.flatten(0, 1)).clamp(-10, 10)
        inputs = self.of_observations(flat).view(*observations.shape[:2], -1)
        read: Tensor = (inputs + self._axes()[first : first + observations.shape[1]]).tanh()
        return read

    def see(self, observations: Tensor) -> None:
        """Updates the moments."""
        self.moments.update(observations)

    def forget(self) -> None:
        """The embeddings are out of date."""
        self._embedded = self._walked = None

    def _axes(self) -> Tensor:
        """Embedding of every axis, (T, width); kept until an update where no gradient is asked for."""
        if self._embedded is None or torch.is_grad_enabled():
            encoding = self.encoder(self._problem.data)
            nodes, graph = self.of_nodes(encoding.nodes), self.of_graph(encoding.graphs[0])
            rows = [
                nodes[list(axis.nodes)].mean(0) if axis.output in NODE_OUTPUTS and axis.nodes else graph
                for axis in self._problem.axes
            ]
            embedded = torch.stack(rows)
            if torch.is_grad_enabled():
                return embedded
            self._embedded = embedded
        return self._embedded
