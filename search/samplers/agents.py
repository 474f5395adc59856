"""Agents as samplers of a space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.search.spaces.space import Ranking, Space

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.agents.actor_critics.actor_critic import Axis, Problem
    from espalier.agents.graph.network_graph import NetworkData
    from espalier.agents.sampling.sampler import AgentSampler
    from espalier.agents.sampling.vectors import Ranges

AGENTS = {"agent": "ppo", "reinforce": "reinforce", "ddpg": "ddpg", "agmc": "agmc"}
"""Name of a sampler -> name of its agent."""

PRETRAINED = ("agent", "reinforce")
"""Samplers that a trained agent can begin."""


def agent_sampler(
    name: str,
    space: Space,
    seed: int,
    *,
    pretrained: Mapping[str, Tensor] | None = None,
    folder: Path | None = None,
) -> AgentSampler:
    """A sampler of `AGENTS` for a space.

    Args:
        name: of the sampler.
        space: what is searched.
        seed: of the study.
        pretrained: what a trained agent knows.
        folder: where its state and its log are kept; nowhere by default.
    """
    from espalier.agents.common.log import Log
    from espalier.agents.sampling.sampler import AgentSampler

    return AgentSampler(
        graph_of(space),
        [group.name for group in space.graph.groups],
        agent=AGENTS[name],
        seed=seed,
        axes=axes_of(space),
        space=_numbers(space),
        pretrained=pretrained,
        start=None if pretrained is None else space.greedy_params()[0],
        checkpoint=None if folder is None else folder / f"{name}.pt",
        log=None if folder is None else Log(folder / name),
    )


def knowledge_at(file: Path | None) -> dict[str, Tensor] | None:
    """What the trained agent in a file knows; None for no file.

    Raises:
        ConfigError: there is no agent in it.
    """
    if file is None:
        return None
    from espalier.agents.training.transfer import load_knowledge

    return load_knowledge(file)


def zero_shot(space: Space, pretrained: Mapping[str, Tensor]) -> dict[str, Any]:
    """The vector that a trained agent thinks best, before anything is tried."""
    from espalier.agents.sampling.vectors import values_of
    from espalier.agents.training.transfer import proposal

    vector = proposal(agent_problem(space), pretrained)
    return space.greedy_params()[0] | values_of(_numbers(space), vector)


def agent_problem(space: Space) -> Problem:
    """What a trained agent is asked, about greedy pruning by normalised energies on the first rung."""
    from espalier.agents.sampling.vectors import problem_of

    return problem_of(graph_of(space), axes_of(space), _numbers(space), space.greedy_params()[0])


def graph_of(space: Space) -> NetworkData:
    """The network at greedy pruning's widths, where searches begin."""
    from espalier.agents.graph.network_graph import network_graph

    widths = space.filled(space.ranked(Ranking(space.rungs[0])))
    return network_graph(
        space.graph, [space.energies[rung] for rung in space.rungs], widths=widths, budget=space.budget
    )


def axes_of(space: Space) -> dict[str, Axis]:
    """Of every number that is tied to groups, which groups and how."""
    from espalier.agents.actor_critics.actor_critic import Axis

    return {
        name: Axis(tuple(groups), "shift" if name.endswith(" shift") else "scale")
        for name, groups in space.moves().items()
    }


def _numbers(space: Space) -> Ranges:
    from espalier.agents.sampling.vectors import searched

    return searched(space.distributions())


def factory(name: str) -> Callable[[Space, int], AgentSampler]:
    """For the table of samplers."""
    return lambda space, seed: agent_sampler(name, space, seed)
