"""Normalisations: what makes scores of channels of different groups comparable, before they are ranked together.

Notation:
    s_c        score of channel c, not negative
    g          the group that c belongs to

    raw           s_c
    mean          s_c / mean of g
    max           s_c / greatest of g
    per_mac       s_c / MACs that one channel of g costs in the dense network
    per_member    s_c / number of weights that write or read the channels of g: a residual stream has many, an inner
                  group few, and a criterion sums over them
    isomorphic    share of the channels in groups of like structure that score no higher than c
    lamp          s_c / sum of the scores of g that are not smaller
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.graph.groups import WEIGHT_ROLES
from espalier.pruning.paper import Paper


@dataclass(frozen=True)
class Normalization:
    """Makes scores comparable across groups; the order inside each stays.

    Attributes:
        function: (n_channels,) scores that are not negative, and the groups -> (n_channels,) scores likewise.
        paper: where it is from.
    """

    function: Callable[[Floats, ChannelGraph], Floats]
    paper: Paper | None = None


def normalize(scores: Floats, graph: ChannelGraph, how: str) -> Floats:
    """Scores that are comparable across groups.

    Args:
        scores: (n_channels,) not negative; left as they are.
        graph: the groups.
        how: a name in `NORMALIZATIONS`.

    Raises:
        ConfigError: an unknown name.
    """
    if how not in NORMALIZATIONS:
        raise ConfigError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {how!r}")
    channels = graph.without_precisions
    found = NORMALIZATIONS[how].function(scores[: channels.n_channels], channels)
    if not graph.precisions:
        return found
    bits = mean(scores, graph)[channels.n_channels :]  # a share of their layer, in whatever units
    return np.concatenate([found, bits * found.mean()])


def raw(scores: Floats, graph: ChannelGraph) -> Floats:
    """The scores as they are."""
    return scores.astype(np.float64)


def mean(scores: Floats, graph: ChannelGraph) -> Floats:
    """Over the group's mean."""
    return _over(scores, graph, group_means(scores, graph))


def greatest(scores: Floats, graph: ChannelGraph) -> Floats:
    """Over the group's greatest score."""
    return _over(scores, graph, np.maximum.reduceat(scores, graph.offsets[:-1]))


def per_mac(scores: Floats, graph: ChannelGraph) -> Floats:
    """Over the MACs that one channel of the group costs in the dense network."""
    return _over(scores, graph, graph.channel_costs().astype(np.float64))


def per_member(scores: Floats, graph: ChannelGraph) -> Floats:
    """Over the number of weights that write or read the group's channels."""
    members = [sum(member.role in WEIGHT_ROLES for member in group.members) for group in graph.groups]
    return _over(scores, graph, np.maximum(members, 1).astype(np.float64))


def isomorphic(scores: Floats, graph: ChannelGraph) -> Floats:
    """Ranks among groups of like structure, whose members have the same roles in the same operations.

    A global cut takes the same share of every such set.
    """
    kinds = _structures(graph)[graph.group_of]
    found = np.empty(len(scores))
    for kind in np.unique(kinds):
        own = kinds == kind
        found[own] = np.searchsorted(np.sort(scores[own]), scores[own], side="right") / own.sum()
    return found


def lamp(scores: Floats, graph: ChannelGraph) -> Floats:
    """Over the sum of the group's scores that are not smaller: the greatest of every group is worth 1."""
    sums = np.empty(len(scores))
    for start, end in zip(graph.offsets[:-1], graph.offsets[1:], strict=True):
        rising = np.sort(scores[start:end])
        sums[start:end] = np.cumsum(rising[::-1])[::-1][np.searchsorted(rising, scores[start:end])]
    found: Floats = scores / np.maximum(sums, np.finfo(np.float64).tiny)
    return found


NORMALIZATIONS: dict[str, Normalization] = {
    "raw": Normalization(raw),
    "mean": Normalization(mean),
    "max": Normalization(greatest),
    "per_mac": Normalization(per_mac),
    "per_member": Normalization(per_member),
    "isomorphic": Normalization(isomorphic, Paper("Fang et al.", "ECCV 2024", "arXiv 2407.04616")),
    "lamp": Normalization(lamp, Paper("Lee et al.", "ICLR 2021", "arXiv 2010.07611")),
}
"""Name in a config -> normalisation."""


def group_means(scores: Floats, graph: ChannelGraph) -> Floats:
    """Mean score of every group, positive: (G,)."""
    means: Floats = np.add.reduceat(scores, graph.offsets[:-1]) / graph.sizes
    return np.maximum(means, np.finfo(np.float64).tiny)


def _over(scores: Floats, graph: ChannelGraph, scale: Floats) -> Floats:
    found: Floats = scores / np.maximum(scale, np.finfo(np.float64).tiny)[graph.group_of]
    return found


def _structures(graph: ChannelGraph) -> Ints:
    """A number per group, the same for groups of like structure: (G,)."""
    kinds: dict[str, set[str]] = {}
    for operation in graph.operations:
        for tensor in operation.tensors:
            kinds.setdefault(tensor, set()).add(operation.kind)
    found = [
        tuple(sorted((member.role, member.dim, *sorted(kinds.get(member.tensor, ()))) for member in group.members))
        for group in graph.groups
    ]
    return np.array([found.index(structure) for structure in found], dtype=np.int64)
