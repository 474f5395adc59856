"""Training of an agent on a gymnasium environment, episode by episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from espalier.agents.algorithms.agent import Agent
from espalier.agents.common.buffers import Episode
from espalier.agents.common.log import Log
from espalier.persistence import whole_file

Environment = gymnasium.Env[Any, Any]


def train(
    environment: Environment,
    agent: Agent,
    episodes: int,
    *,
    seed: int,
    log: Log | None = None,
    checkpoint: Path | None = None,
    every: int = 50,
) -> list[float]:
    """Runs episodes and lets the agent learn from what it did.

    The draws of an episode depend on the seed and on its number alone, so that a run which goes on from a
    checkpoint is the run that it would have been.

    Args:
        environment: observations and actions are vectors; an action that was carried out otherwise than asked for
            is read from ``info["executed"]``.
        agent: learns.
        episodes: in all, those of a checkpoint counted.
        seed: of all draws.
        log: told of every update.
        checkpoint: file to go on from, and to write every so often.
        every: episodes between checkpoints.

    Returns:
        Sum of rewards of every episode.
    """
    earned: list[float] = []
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        agent.load_state_dict(state["agent"])
        earned = state["earned"]
    while len(earned) < episodes:
        rng = np.random.default_rng([seed, len(earned)])
        episode = run_episode(environment, agent, rng)
        logged = agent.learn(episode, rng)
        earned.append(float(episode.rewards.sum()))
        if logged and log is not None:
            log.write(len(earned), {"reward": earned[-1]} | logged)
        if checkpoint is not None and len(earned) % every == 0:
            save(checkpoint, {"agent": agent.state_dict(), "earned": earned})
    return earned


def run_episode(environment: Environment, agent: Agent, rng: np.random.Generator | None) -> Episode:
    """One episode; without a generator the agent does what it thinks best.

    Args:
        environment: reset first.
        agent: acts.
        rng: of its exploration.
    """
    seen, asked, done, rewards = [], [], [], []
    observation, _ = environment.reset(seed=None if rng is None else int(rng.integers(2**31)))
    ended = False
    while not ended:
        seen.append(torch.as_tensor(observation, dtype=torch.float32))
        asked.append(agent.act(torch.stack(seen), rng))
        observation, reward, terminated, truncated, info = environment.step(asked[-1].numpy())
        done.append(torch.as_tensor(info.get("executed", asked[-1]), dtype=torch.float32))
        rewards.append(float(reward))
        ended = terminated or truncated
    observations, wanted = torch.stack(seen), torch.stack(asked)
    log_probs: Tensor | None = None if rng is None else agent.log_probs(observations, wanted)
    return Episode(observations, torch.stack(done), torch.tensor(rewards), log_probs, wanted)


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint; a process that is killed meanwhile leaves the one before."""
    with whole_file(path) as partial:
        torch.save(state, partial)
