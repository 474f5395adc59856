"""The loop of training an agent in an environment, and of one agent on several networks."""

from espalier.agents.training.training import train

__all__ = ["train"]
