"""Residual branches that can be taken out: what goes with them, and what they leave behind.

A group is *removable* if a network without any of its channels still has a way from its input to its output, and
all that the missing branch adds to that way is a constant per channel: the bias of its last layer, or the shift of
the norm behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


class Constants(Protocol):
    """Computes what a branch adds once it is out."""

    def __call__(self, state: Mapping[str, Tensor], keep: Tensor) -> list[Tensor]:
        """From the dense network's tensors by name, and what is kept, bool (n_channels,)."""


@dataclass(frozen=True)
class Branch:
    """A residual branch that can be taken out.

    Attributes:
        groups: all groups that go with it, in rising order; where it is out, each of them has no channel.
        triggers: those of them of which any one without channels takes it out.
        modules: path of each module that goes -> what it gives from then on, as `Removed` takes it.
        names: the buffers that hold what the branch adds, and what it adds after recalibration, in full, in the
            order of `constants`.
        constants: what these hold.
        nodes: numbers of the recorded calls that go.
    """

    groups: tuple[int, ...]
    triggers: tuple[int, ...]
    modules: Mapping[str, Any]
    names: tuple[str, ...]
    constants: Constants = field(repr=False, compare=False)
    nodes: frozenset[int] = field(repr=False)

    def holds(self, name: str) -> bool:
        """Whether a module or a tensor, by its name, is in one of the modules that go."""
        return any(name == path or name.startswith(f"{path}.") for path in self.modules)


def replaced(branches: Iterable[Branch]) -> dict[str, Branch]:
    """Path of each module that is replaced once branches are out -> the branch that says by what.

    Of branches inside others the outer ones count, of modules inside others the outer ones.
    """
    of = {path: branch for branch in sorted(branches, key=lambda each: len(each.groups)) for path in branch.modules}
    return {p: branch for p, branch in of.items() if not any(p.startswith(f"{outer}.") for outer in of)}
