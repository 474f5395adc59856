"""Masks of ``torch.nn.utils.prune``, read as channels to keep, and written from them.

A mask is of one parameter, and a channel is a slice of many. A channel goes where every layer that writes it, or
every layer that reads it, is masked there. What else it had, such as the shift of a norm behind it, goes with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import Role
from espalier.pruning.slimming.surgery import Keep, as_mask
from espalier.pruning.torch_private import computed_weights


def keep_from_masks(network: nn.Module, graph: ChannelGraph, *, strict: bool = True) -> Tensor:
    """What masks of ``torch.nn.utils.prune`` leave, for `slim`: bool (n_channels,).

    Args:
        network: with masks, before ``prune.remove``.
        graph: its channel graph, traced with or without the masks.
        strict: refuse masks that zero anything but whole channels; otherwise such zeros are passed over.

    Raises:
        ConfigError: there are no masks, they leave a group no channel, or they are not of whole channels.

    A network slimmed with its masks keeps them; ``prune.remove`` takes them off it.

    Example:
        >>> import espalier
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> _ = prune.ln_structured(network[0], "weight", amount=0.5, n=2, dim=0)
        >>> graph = espalier.trace(network, torch.zeros(1, 3, 8, 8))
        >>> small = espalier.slim(network, graph, keep_from_masks(network, graph))
        >>> prune.remove(small[0], "weight").weight.shape
        torch.Size([4, 3, 3, 3])
    """
    zeros = {name: mask == 0 for name, mask in _masks(network)}
    if not zeros:
        raise ConfigError(
            "the network must have masks of torch.nn.utils.prune, got none: read them before prune.remove"
        )
    keep = as_mask(graph, ~(_masked(graph, zeros, "out") | _masked(graph, zeros, "in")))
    if strict:
        left = {name: int(zero.sum()) for name, zero in _unexplained(graph, zeros, keep).items() if zero.any()}
        for name, count in left.items():
            raise ConfigError(
                f"masks must zero channels in all layers that write them, got {count} zeros of {name} in channels "
                "that stay: unstructured and N:M masks are out of scope, so mask whole channels, or pass over such "
                "zeros with strict=False"
            )
    return keep


def set_masks(network: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """Masks a network in place, so that it computes in eval mode what `slim` would leave of it.

    That is so unless an operation works along channels, as a layer norm does: it sees zeros where `slim` leaves
    nothing.

    Every parameter that a removed channel runs through gets a mask of ``torch.nn.utils.prune``, on top of any that
    is there; ``prune.remove`` makes it last.

    Args:
        network: the dense network.
        graph: its channel graph, traced with or without masks.
        keep: what stays.

    Returns:
        The network.

    Raises:
        ConfigError: a `keep` that does not fit the graph, or weights that are computed from other tensors.
    """
    chosen = as_mask(graph, keep)
    if computed := computed_weights(network):
        raise ConfigError(
            f"masks are of weights, and those of {computed[0]} are computed from other tensors, as by weight norm: "
            "take that off first, with torch.nn.utils.parametrize.remove_parametrizations or remove_spectral_norm"
        )
    shapes = {_plain(name): parameter for name, parameter in network.named_parameters()}
    zeros = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in shapes.items()}
    for name, kept in _unexplained(graph, {name: ~zero for name, zero in zeros.items()}, chosen).items():
        if not kept.all():
            path, _, own = name.rpartition(".")
            prune.custom_from_mask(network.get_submodule(path), own, kept.to(shapes[name]))
    return network


def _masks(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name of a parameter, as it is without masks, and its mask."""
    for path, module in network.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                name = hook._tensor_name
                yield f"{path}.{name}".lstrip("."), module.get_buffer(f"{name}_mask").cpu()


def _plain(name: str) -> str:
    """A parameter's name as it is without a mask."""
    return name.removesuffix("_orig")


def _masked(graph: ChannelGraph, zeros: dict[str, Tensor], role: Role) -> Tensor:
    """Channels of which all slices of a role are masked, bool (n_channels,)."""
    there = torch.zeros(graph.n_channels + 1, dtype=torch.bool)  # the last for -1, no channel
    alive = there.clone()
    for slot in graph.slots:
        if slot.role == role:
            zero = zeros.get(_plain(slot.tensor))
            rows = torch.ones(len(slot.channels), dtype=torch.bool)  # not wholly masked, (n,)
            if zero is not None:
                rows = ~zero.movedim(slot.dim, 0).reshape(len(rows), -1).all(1)
            there[slot.channels] = True
            alive[slot.channels[rows]] = True
    return (there & ~alive)[:-1]


def _unexplained(graph: ChannelGraph, zeros: dict[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    """The entries of `zeros` that lie in no channel that goes."""
    left = {name: zero.clone() for name, zero in zeros.items()}
    for slot in graph.slots:
        if _plain(slot.tensor) in left:
            gone = ~graph.kept(slot.channels, keep)
            zero = left[_plain(slot.tensor)]
            zero.index_fill_(slot.dim, gone.nonzero()[:, 0].to(zero.device), False)
    return left
