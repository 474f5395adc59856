"""Agents as samplers of a space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.pruning.allocation import greedy
from espalier.search.space import Ranking, Space

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.agents.actor_critic import Axis
    from espalier.agents.network_graph import NetworkData
    from espalier.agents.sampler import AgentSampler

AGENTS = {"agent": "ppo", "reinforce": "reinforce", "ddpg": "ddpg", "agmc": "agmc"}
"""Name of a sampler -> name of its agent."""


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
    from espalier.agents.log import Log
    from espalier.agents.sampler import AgentSampler

    return AgentSampler(
        graph_of(space),
        [group.name for group in space.graph.groups],
        agent=AGENTS[name],
        seed=seed,
        axes=axes_of(space),
        space=space.distributions(),  # type: ignore[arg-type]
        pretrained=pretrained,
        checkpoint=None if folder is None else folder / f"{name}.pt",
        log=None if folder is None else Log(folder / name),
    )


def graph_of(space: Space) -> NetworkData:
    """The network at greedy pruning's widths, where searches begin."""
    from espalier.agents.network_graph import network_graph

    widths = greedy(space.graph, space.ranked(Ranking(0)), space.budget, space.floor, space.round_to)
    return network_graph(space.graph, space.energies, widths=widths, budget=space.budget)


def axes_of(space: Space) -> dict[str, Axis]:
    """Of every number that is tied to groups, which groups and how."""
    from espalier.agents.actor_critic import Axis

    return {
        name: Axis(tuple(groups), "shift" if name.endswith(" shift") else "scale")
        for name, groups in space.moves().items()
    }


def factory(name: str) -> Callable[[Space, int], AgentSampler]:
    """For the table of samplers."""
    return lambda space, seed: agent_sampler(name, space, seed)
