"""The masked network: the calls of the dense one, with every removed channel set to zero wherever it is carried.

What works along channels, as layer norm or a mean over them, sees those that are left: in the slimmed network the
others are not there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.pruning.graph.groups import Rescaling
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.tracing.recording import Node, Recording, is_in_place, mapped, operation_name
from espalier.pruning.tracing.running import tensors_of

Dims = tuple[Tensor | None, ...]
"""Per dimension the global channels (n, k), None where all are fixed."""


@dataclass(frozen=True)
class Reference:
    """The masked network.

    Attributes:
        recording: the forward pass of the dense one.
        channels: node -> per output its channels.
        rescalings: weights that are multiplied as channels go.
    """

    recording: Recording
    channels: Mapping[Node, Sequence[Dims]]
    rescalings: Sequence[Rescaling] = ()

    def run(self, model: nn.Module, keep: Tensor, inputs: Inputs) -> Iterator[tuple[Node, Any]]:
        """Runs the masked network, node after node.

        Args:
            model: the dense network.
            keep: bool (n_channels,).
            inputs: an example of the traced shape.

        Yields:
            The last node of every layer, and the output, with its value: what is kept of it, in the shape that the
            slimmed network has; up to a size that depends on values and comes out differently.
        """
        state = dict(model.named_parameters()) | {name: each.clone() for name, each in model.named_buffers()}
        yield from self.run_on(state, keep, inputs)

    def run_on(
        self, state: dict[str, Tensor], keep: Tensor, inputs: Inputs, cut: bool = True
    ) -> Iterator[tuple[Node, Any]]:
        """The same on tensors by name, which operations may write into.

        Args:
            state: the dense network's, as many as it reads.
            keep: bool (n_channels,).
            inputs: an example of the traced shape.
            cut: whether removed channels are cut out of what is yielded; zeros otherwise.
        """
        for rescaling in self.rescalings:
            state[rescaling.tensor] = rescaling.scaled(state[rescaling.tensor], keep)
        device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        given = iter(tensors_of(inputs))
        values: dict[Node, Any] = {}
        choice = _Choice(keep)
        for node in self.recording.forward:
            match node.kind:
                case "stored":
                    stored = state[self.recording.stored[node].name].detach()
                    values[node] = _each(stored, self.channels.get(node), lambda v, dims: _masked(v, dims, choice))
                case "input":
                    values[node] = next(given)
                case "constant":
                    values[node] = node.value.to(device)
                case "item":
                    values[node] = values[node.args[0]][node.args[1]]
                case "call":
                    values[node] = self._computed(node, values, choice)
                    if [tuple(tensor.shape) for tensor in tensors_of(values[node])] != [
                        m.shape for m in node.tensors
                    ]:
                        return  # as many as it found in other values: what follows cannot be compared
                    if node in self.recording.finished:
                        yield node, self._cut(node, values[node], choice)
                case "output":
                    outputs = [values[source] for source in node.args]
                    if cut:
                        outputs = [self._cut(*pair, choice) for pair in zip(node.args, outputs, strict=True)]
                    yield node, outputs
            for source in node.sources:
                if self.recording.last_reader[source] is node:
                    del values[source]

    def _computed(self, node: Node, values: dict[Node, Any], choice: _Choice) -> Any:
        target: Any = node.target
        if target is torch.ops.aten.view.default:  # attention may lay out its output otherwise than when recorded
            target = torch.ops.aten.reshape.default
        args, kwargs = mapped((node.args, node.kwargs), lambda source: values[source])
        name = operation_name(target)
        if name in OVER_CHANNELS and node.vmapped is None:
            cut = {source: self._cut(source, values[source], choice) for source in node.sources}
            read = {source: values[source] for source in node.sources}
            if _empty(cut) > _empty(read):  # of a branch that is out: zeros stay zeros
                return self._run(node, target, args, kwargs, choice)
            args, kwargs = mapped((node.args, node.kwargs), lambda source: cut[source])
            with _autocast(node):
                result = target(*OVER_CHANNELS[name](node.args, args), **kwargs)
            return _each(result, self.channels.get(node), lambda value, dims: _spread(value, dims, choice))
        return self._run(node, target, args, kwargs, choice)

    def _run(self, node: Node, target: Any, args: Any, kwargs: Any, choice: _Choice) -> Any:
        with _autocast(node):
            mapped_by = node.vmapped
            result = target(*args, **kwargs) if mapped_by is None else mapped_by.call(target, (args, kwargs))
        if node.is_view and not is_in_place(target):  # of what is masked already
            return result
        return _each(result, self.channels.get(node), lambda value, dims: _mask(value, dims, choice))

    def _cut(self, node: Node, value: Any, choice: _Choice) -> Any:
        return _each(value, self.channels.get(node), lambda v, dims: _cut(v, dims, choice))


def _empty(value: Any) -> int:
    """Tensors that hold nothing."""
    return sum(not tensor.numel() for tensor in tensors_of(value))


def _autocast(node: Node) -> contextlib.AbstractContextManager[Any]:
    """The state of autocast under which a node was recorded."""
    if node.autocast is None:
        return contextlib.nullcontext()
    device, dtype = node.autocast
    return torch.autocast(device, dtype)


def _each(value: Any, channels: Sequence[Dims] | None, function: Callable[[Tensor, Dims], Tensor]) -> Any:
    """Applies a function to every tensor that carries channels."""
    if not channels:
        return value
    if isinstance(value, Tensor):
        return function(value, channels[0])
    return [function(v, dims) if isinstance(v, Tensor) else v for v, dims in zip(value, channels, strict=False)]


class _Choice:
    """What is kept of any channels: layers and their norms share them, and each is looked at once."""

    def __init__(self, keep: Tensor) -> None:
        self._keep = keep
        self._found: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def of(self, channels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices that are kept and indices that are removed, of global channels (n, k)."""
        key = id(channels), device
        if key not in self._found:
            kept = (self._keep[channels.clamp(min=0)] | (channels < 0)).all(1)
            self._found[key] = kept.nonzero()[:, 0].to(device), (~kept).nonzero()[:, 0].to(device)
        return self._found[key]


def _masked(value: Tensor, dims: Dims, choice: _Choice) -> Tensor:
    """Zeros in place of what is removed."""
    return _mask(value.clone(), dims, choice) if any(channels is not None for channels in dims) else value


def _mask(value: Tensor, dims: Dims, choice: _Choice) -> Tensor:
    """Sets what is removed to zero, in place."""
    for dim, channels in enumerate(dims):
        if channels is not None and len(removed := choice.of(channels, value.device)[1]):
            value.index_fill_(dim, removed, 0)
    return value


def _cut(value: Tensor, dims: Dims, choice: _Choice) -> Tensor:
    """Without what is removed."""
    for dim, channels in enumerate(dims):
        if channels is not None:
            value = value.index_select(dim, choice.of(channels, value.device)[0])
    return value


def _spread(value: Tensor, dims: Dims, choice: _Choice) -> Tensor:
    """The inverse of `_cut`, with zeros in between."""
    for dim, channels in enumerate(dims):
        if channels is not None:
            index = choice.of(channels, value.device)[0]
            shape = list(value.shape)
            shape[dim] = len(channels)
            value = value.new_zeros(shape).index_copy(dim, index, value)
    return value


Arguments = tuple[Any, ...]


def _as_given(dense: Arguments, kept: Arguments) -> Arguments:
    return kept


def _normalized_shape(dense: Arguments, kept: Arguments) -> Arguments:
    value, shape, *rest = kept
    return value, list(value.shape[len(value.shape) - len(shape) :]), *rest


def _groups(dense: Arguments, kept: Arguments) -> Arguments:
    value, groups, *rest = kept
    depthwise = groups == dense[0].made.shape[1]
    return value, value.shape[1] if depthwise else groups, *rest


OVER_CHANNELS: dict[str, Callable[[Arguments, Arguments], Arguments]] = {
    **dict.fromkeys(
        (
            *("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "norm"),
            *("linalg_vector_norm", "softmax", "log_softmax", "_weight_norm", "max", "min", "nansum", "nanmean"),
            *("all", "any", "batch_norm", "instance_norm", "scaled_dot_product_attention"),
        ),
        _as_given,
    ),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized_shape),
    "group_norm": _groups,
}
"""What works along channels, and what its arguments are once only some are left."""
