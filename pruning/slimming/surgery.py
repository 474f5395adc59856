"""Slimming: channels out, a smaller network of the same class back.

Every slimmed network is compared with the masked one, the dense network with all that is removed set to zero, layer
by layer, before it is handed out (`verification`).
"""

from __future__ import annotations

import copy
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.groups import Role
from espalier.pruning.slimming import verification
from espalier.pruning.slimming.quantised_layers import quantise
from espalier.pruning.slimming.removed import constants_of, take_out
from espalier.pruning.tracing.following import repeated
from espalier.pruning.tracing.grouping import reference_of

Keep = Tensor | Mapping[str, Sequence[int]]
"""A bool mask (n_channels,), or kept channel indices by group name (groups not named stay whole)."""


def as_mask(graph: ChannelGraph, keep: Keep) -> Tensor:
    """A keep mask, bool (n_channels,); of a branch that is out no group keeps any.

    Raises:
        ConfigError: an unknown group, an index out of range, a wrong shape, or a group left empty.
    """
    if isinstance(keep, Tensor):
        if keep.shape != (graph.n_channels,) or keep.dtype != torch.bool:
            raise ConfigError(
                f"keep must be a bool tensor of shape ({graph.n_channels},), one entry per channel, "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
        mask = keep
    else:
        mask = torch.ones(graph.n_channels, dtype=torch.bool)
        numbers = {group.name: number for number, group in enumerate(graph.groups)}
        for name, indices in keep.items():
            if name not in numbers:
                raise ConfigError(f"keep names a group {name!r} that the graph lacks; it has {', '.join(numbers)}")
            group, start = graph.groups[numbers[name]], int(graph.offsets[numbers[name]])
            given = torch.as_tensor(indices)
            if given.numel() and (given.is_floating_point() or given.dtype == torch.bool or given.dim() != 1):
                raise ConfigError(
                    f"keep[{name!r}] must list the indices of kept channels, got {given.dtype} of shape "
                    f"{tuple(given.shape)}: of a bool mask, give mask.nonzero()[:, 0].tolist()"
                )
            chosen = given.to(torch.int64)
            if len(chosen) and not (0 <= int(chosen.min()) and int(chosen.max()) < group.size):
                raise ConfigError(f"keep[{name!r}] must lie in 0 .. {group.size - 1}, got {list(indices)}")
            mask[start : start + group.size] = False
            mask[start + chosen] = True
    widths = graph.widths(mask)
    gone = graph.gone(graph.removed(widths))
    empty = [group.name for group, width in zip(graph.groups, np.where(gone, 1, widths), strict=True) if not width]
    if empty:
        but = ", but for those whose branch can be taken out" if graph.branches else ""
        raise ConfigError(f"every group must keep at least one channel{but}, got none in {', '.join(empty)}")
    return mask & torch.from_numpy(~gone[graph.group_of]) if gone.any() else mask


def slim(
    model: nn.Module, graph: ChannelGraph, keep: Keep, *, verify: bool = True, inplace: bool = False
) -> nn.Module:
    """A network of the same class without the removed channels.

    Args:
        model: the dense network; left as it is, unless `inplace`. Tensors that no group touches are copied.
        graph: its channel graph.
        keep: what stays.
        verify: compare the result with the masked network on the example that the graph was traced with.
        inplace: make the model itself smaller once that is done, for code that holds on to it or to parts of it.
            Its parameters are new ones: an optimiser must be given them.

    Returns:
        The slimmed network, in the model's mode, on its device; the model itself if `inplace`. Layers that are left
        with fewer bits than float32 compute in these; what was compared computes in float32.

    Raises:
        ConfigError: a `keep` that does not fit the graph, or a graph that does not fit the network.
        VerificationError: the slimmed network does not compute what the masked one does; names the first layer
            that differs.
    """
    chosen = as_mask(graph, keep)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    skeleton = clone_structure(model)
    take_out(skeleton, graph.branches_without(chosen))
    assign(skeleton, slice_tensors(state, graph, chosen), graph.integers_of(chosen))
    if verify:
        check(model, graph, chosen, skeleton)
    bits = graph.bits_of(graph.widths(chosen)) if graph.precisions else {}
    if not inplace:
        quantise(skeleton, bits)
        return skeleton
    tensors = dict(skeleton.named_parameters()) | dict(skeleton.named_buffers())
    take_out(model, graph.branches_without(chosen))
    assign(model, {name: tensor.detach() for name, tensor in tensors.items()}, graph.integers_of(chosen))
    quantise(model, bits)
    return model


def check(model: nn.Module, graph: ChannelGraph, keep: Keep, slimmed: nn.Module) -> float:
    """Compares a slimmed network with the masked one, on the example that the graph was traced with.

    Args:
        model: the dense network that `slimmed` was cut from.
        graph: its channel graph.
        keep: what stayed.
        slimmed: the network to check.

    Returns:
        The greatest difference of the outputs, relative to the greatest output.

    Raises:
        VerificationError: it is too great, in any layer; names the first one.
    """
    chosen = as_mask(graph, keep)
    gone = frozenset(number for branch in graph.branches_without(chosen) for number in branch.nodes)
    return verification.verify(model, reference_of(model, graph), chosen, slimmed, graph.example, gone)


def clone_structure(model: nn.Module) -> nn.Module:
    """A copy whose tensors are the model's own, to be replaced by `assign`."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return _clone(model, memo)


def _clone(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` in a tenth of its time: what most modules consist of is empty dictionaries of hooks."""
    if id(module) in memo:
        found: nn.Module = memo[id(module)]
        return found
    kind = type(module)
    plain = kind.__setstate__ is nn.Module.__setstate__ or kind.__module__.startswith("torch.nn.modules.")
    if hasattr(kind, "__deepcopy__") or not plain:  # copies itself in its own way
        return copy.deepcopy(module, memo)
    clone = kind.__new__(kind)
    memo[id(module)] = clone
    for name, value in module.__dict__.items():
        if name in ("_parameters", "_buffers"):
            clone.__dict__[name] = dict(value)
        elif name == "_modules":
            clone.__dict__[name] = {
                key: None if child is None else _clone(child, memo) for key, child in value.items()
            }
        elif isinstance(value, dict) and not value:
            clone.__dict__[name] = type(value)()
        elif name.endswith("_hooks"):
            clone.__dict__[name] = type(value)({key: _rebound(hook, memo) for key, hook in value.items()})
        elif isinstance(value, _ATOMS) or (type(value) is tuple and all(isinstance(v, _ATOMS) for v in value)):
            clone.__dict__[name] = value
        else:
            memo.update(_results(value))
            try:
                clone.__dict__[name] = copy.deepcopy(value, memo)
            except TypeError:  # a lock, a handle of a file: shared
                clone.__dict__[name] = value
    return clone


_ATOMS = (int, float, str, type(None))


def _rebound(hook: Any, memo: dict[int, Any]) -> Any:
    """A hook of a clone: what it closes over are clones, too, where there are any."""
    if not isinstance(hook, types.FunctionType) or hook.__closure__ is None:
        return copy.deepcopy(hook, memo)
    closure = []
    for cell in hook.__closure__:
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            closure.append(cell)
            continue
        closure.append(
            types.CellType(_clone(held, memo) if isinstance(held, nn.Module) else memo.get(id(held), held))
        )
    clone = types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, tuple(closure))
    clone.__kwdefaults__ = hook.__kwdefaults__
    return clone


def _results(value: Any) -> dict[int, Tensor]:
    """Tensors that a module remembers from a forward pass, which `copy.deepcopy` refuses to copy."""
    if isinstance(value, Tensor):
        return {} if value.grad_fn is None else {id(value): value.detach().clone()}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return {key: tensor for item in value for key, tensor in _results(item).items()}
    return {}


def slice_tensors(state: Mapping[str, Tensor], graph: ChannelGraph, mask: Tensor) -> dict[str, Tensor]:
    """Every tensor of `state` with the removed channels cut out; new storage throughout.

    Of branches that are out, what their modules give in place of what they held.
    """
    out = graph.branches_without(mask)
    plain = {name: tensor.detach() for name, tensor in state.items()}
    cut = slices_of(plain, graph, mask)
    return {
        name: _laid_out_as(cut[name], tensor) if name in cut else tensor.clone()
        for name, tensor in plain.items()
        if not any(branch.holds(name) for branch in out)
    } | constants_of(out, state, mask)


def slices_of(state: Mapping[str, Tensor], graph: ChannelGraph, mask: Tensor) -> dict[str, Tensor]:
    """What is left of every tensor that has channels, by name; differentiable.

    Args:
        state: tensors of the dense network.
        graph: its channel graph.
        mask: bool (n_channels,), what stays.

    Raises:
        ConfigError: the graph is that of another network.
    """
    sliced: dict[str, Tensor] = {}
    for rescaling in graph.rescalings:
        if rescaling.tensor in state:
            whole = sliced.get(rescaling.tensor, state[rescaling.tensor])
            sliced[rescaling.tensor] = rescaling.scaled(whole, mask)
    indices: dict[tuple[int, torch.device], Tensor] = {}  # slots share their channels
    for slot in graph.slots:
        if slot.tensor not in state or state[slot.tensor].shape[slot.dim : slot.dim + 1] != (len(slot.channels),):
            found = tuple(state[slot.tensor].shape) if slot.tensor in state else "no such tensor"
            raise ConfigError(
                f"the graph must be that of the network: it has {len(slot.channels)} channels along dimension "
                f"{slot.dim} of {slot.tensor}, the network {found}; trace the network that is to be slimmed"
            )
        dense = sliced.get(slot.tensor, state[slot.tensor])
        key = id(slot.channels), dense.device
        if key not in indices:
            indices[key] = graph.kept(slot.channels, mask).nonzero()[:, 0].to(dense.device)
        sliced[slot.tensor] = dense.index_select(slot.dim, indices[key])
    return sliced


def _laid_out_as(tensor: Tensor, dense: Tensor) -> Tensor:
    """A tensor in the memory format of another one."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(dense.dim(), torch.contiguous_format)
    if dense.is_contiguous() or not dense.is_contiguous(memory_format=wanted):
        return tensor
    return tensor.contiguous(memory_format=wanted)


def assign(
    skeleton: nn.Module, tensors: Mapping[str, Tensor], integers: Mapping[tuple[str, str, int | None], int]
) -> None:
    """Puts tensors in place of a network's own, in place, and makes the attributes of its layers true.

    Args:
        skeleton: a network that the tensors' names fit; its own shapes do not matter.
        tensors: every parameter and buffer by name; one that layers share, by the first of its names.
        integers: (module, attribute, item) -> value, as from `ChannelGraph.integers_of`.
    """
    placed: dict[int, Any] = {}  # id of a tensor of the skeleton -> what took its place
    replaced = []  # keeps those ids taken
    for path, module in skeleton.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None and prefix + name in tensors:
                value = nn.Parameter(tensors[prefix + name], requires_grad=parameter.requires_grad)
                placed[id(parameter)] = module._parameters[name] = value
                if isinstance(module, nn.RNNBase):  # which keeps a list of them, too
                    setattr(module, name, value)
                replaced.append(parameter)
            elif id(parameter) in placed:
                module._parameters[name] = placed[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and prefix + name in tensors:
                placed[id(buffer)] = module._buffers[name] = tensors[prefix + name]
                replaced.append(buffer)
            elif id(buffer) in placed:
                module._buffers[name] = placed[id(buffer)]
    for (path, name, item), integer in integers.items():
        module = skeleton.get_submodule(path)
        if item is None:
            setattr(module, name, integer)
        else:
            whole = getattr(module, name)
            setattr(module, name, type(whole)([*whole[:item], integer, *whole[item + 1 :]]))
    for module in skeleton.modules():
        _make_true(module)


def _make_true(module: nn.Module) -> None:
    """Attributes that repeat what the tensors' shapes say."""
    for name, (tensor, dim, times) in repeated(module).items():
        held: Tensor | None = module._parameters.get(tensor)
        held = module._buffers.get(tensor) if held is None else held
        if held is not None:
            setattr(module, name, held.shape[dim] * times)


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """The dense network with every parameter slice of a removed channel set to zero.

    Args:
        model: the dense network; left as it is.
        graph: its channel graph.
        keep: what stays.

    Returns:
        A copy of the same shapes. In eval mode it computes what the slimmed network computes, unless an operation
        works along channels (layer norm, a mean over channels): such a one sees the zeros here.
    """
    masked = copy.deepcopy(model)
    silence(masked, graph, keep)
    return masked


def silence(model: nn.Module, graph: ChannelGraph, keep: Keep, roles: Collection[Role] | None = None) -> None:
    """Sets parameter slices of the removed channels to zero, in place.

    Args:
        model: the dense network.
        graph: its channel graph.
        keep: what stays as it is.
        roles: which slices; all by default.
    """
    parameters = dict(model.named_parameters())
    chosen = as_mask(graph, keep)
    with torch.no_grad():
        for slot in graph.slots:
            if slot.tensor in parameters and (roles is None or slot.role in roles):
                gone = ~graph.kept(slot.channels, chosen)
                parameter = parameters[slot.tensor]
                parameter.index_fill_(slot.dim, gone.nonzero()[:, 0].to(parameter.device), 0.0)
