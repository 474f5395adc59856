"""The agents by name, as searches use them: one vector is one episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from espalier.agents.actor_critics.actor_critic import GraphActorCritic, Problem
from espalier.agents.actor_critics.deterministic import GraphLstm, MlpDeterministic
from espalier.agents.algorithms.agent import Agent, OnPolicyAgent
from espalier.agents.algorithms.ddpg import Ddpg
from espalier.agents.algorithms.ppo import Ppo
from espalier.agents.algorithms.reinforce import Reinforce
from espalier.agents.common.schedules import Schedule, exponential
from espalier.agents.graph.encoders import GraphEncoder
from espalier.agents.graph.network_graph import NODE_FEATURES
from espalier.errors import ConfigError
from espalier.pruning.seeding import seeded


class OneShot:
    """The whole vector at one step; all that is observed is which network it is.

    Args:
        problem: its number.
    """

    steps = 1

    def __init__(self, problem: int = 0) -> None:
        self._observation = torch.tensor([[float(problem)]])

    def observations(self, actions: Sequence[Tensor]) -> Tensor:
        """Of the steps so far and the next one, after these actions (A,) each: (t, F)."""
        return self._observation

    def episode(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (T, F) and actions (T, A) that a vector (d,) came from."""
        return self._observation, vector[None]


class Stepwise:
    """A number per step. Observed are the features of its node, all numbers before, and how far the episode is.

    AMC observes the last number alone; with the others left out the process is not Markov, and a critic takes what
    they did for noise.

    Args:
        problem: the network and its axes.
    """

    def __init__(self, problem: Problem) -> None:
        self.steps = len(problem.axes)
        assert problem.data.x is not None
        zero = torch.zeros(len(NODE_FEATURES))
        rows = [problem.data.x[list(axis.nodes)].mean(0) if axis.nodes else zero for axis in problem.axes]
        place = torch.arange(self.steps)[:, None] / self.steps
        whole = torch.tensor([[float(not axis.nodes)] for axis in problem.axes])
        self._fixed = torch.cat([torch.stack(rows), whole, place], dim=1)
        self.n_features = self._fixed.shape[1] + 1 + self.steps

    def observations(self, actions: Sequence[Tensor]) -> Tensor:
        """Of the steps so far and the next one, after these actions (1,) each: (t, F)."""
        return self._after(torch.cat([torch.zeros(0), *actions]))

    def episode(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (T, F) and actions (T, 1) that a vector (d,) came from."""
        return self._after(vector[:-1]), vector[:, None]

    def _after(self, earlier: Tensor) -> Tensor:
        count = len(earlier) + 1
        padded = torch.nn.functional.pad(earlier, (0, self.steps - len(earlier)))
        before = padded.expand(count, -1).tril(-1)  # (t, T)
        last = torch.cat([torch.zeros(1), earlier])[:, None]
        return torch.cat([self._fixed[:count], last, before], dim=1)


Walk = OneShot | Stepwise
"""How a vector comes about in an episode."""


class Kind(NamedTuple):
    """An agent for one network.

    Attributes:
        agent: acts and learns.
        walk: how its episodes run.
    """

    agent: Agent
    walk: Walk


def make_agent(
    name: str,
    problem: Problem,
    seed: int,
    pretrained: Mapping[str, Tensor] | None = None,
    vector: Tensor | None = None,
) -> Kind:
    """An agent that knows nothing yet, or what a trained one's network knew of networks in general.

    Args:
        name: in `AGENTS`.
        problem: the network and the numbers of a vector.
        seed: of its weights.
        pretrained: of `espalier.agents.training.transfer.load_knowledge`; for one-shot agents.
        vector: (d,) in [-1, 1] where a trained one begins; at what it takes for best by default.

    Raises:
        ConfigError: there is no such agent, or it cannot begin with a trained one.
    """
    if name not in AGENTS:
        raise ConfigError(f"unknown agent {name!r}, valid names are {', '.join(AGENTS)}")
    with seeded(seed):
        kind = AGENTS[name](problem)
    if pretrained is not None:
        network = kind.agent.network if isinstance(kind.agent, OnPolicyAgent) else None
        if not isinstance(network, GraphActorCritic):
            raise ConfigError(f"{name} acts step by step; only one-shot agents begin with a trained one")
        network.load_state_dict(dict(pretrained), strict=False)
        if vector is not None:
            network.begin_at(0, vector)
    return kind


def _ppo(problem: Problem) -> Kind:
    network = GraphActorCritic([problem], GraphEncoder())
    return Kind(Ppo(network, batch=8, learning_rate=1e-3, epochs=3, ranks=True), OneShot())


def _reinforce(problem: Problem) -> Kind:
    return Kind(Reinforce(GraphActorCritic([problem], GraphEncoder()), batch=8, learning_rate=1e-3), OneShot())


def _ddpg(problem: Problem) -> Kind:
    walk = Stepwise(problem)
    network = MlpDeterministic(walk.n_features, 1, torch.tensor([axis.start for axis in problem.axes]))
    return Kind(Ddpg(network, warmup=0, sigma=_sigma(0.995)), walk)


def _agmc(problem: Problem) -> Kind:
    """Its updates are dear: half as many, with longer steps."""
    walk = Stepwise(problem)
    network = GraphLstm(problem, walk.n_features, GraphEncoder(width=16, layers=2, convolution="gcn"))
    agent = Ddpg(network, own=100, critic_rate=2e-2, updates=0.5, warmup=0, sigma=_sigma(0.996))
    return Kind(agent, walk)


def _sigma(rate: float) -> Schedule:
    """For searches of some hundred evaluations, which AMC's 100 uniform episodes would be a third of."""
    return exponential(1 / 3, rate, after=50, least=0.05)


AGENTS: dict[str, Callable[[Problem], Kind]] = {"ppo": _ppo, "reinforce": _reinforce, "ddpg": _ddpg, "agmc": _agmc}
"""Name -> how to make one."""
