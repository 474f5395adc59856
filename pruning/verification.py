"""Is the slimmed network the masked one? Layer by layer, on an example.

The reference runs the recorded calls of the dense network, with every removed channel set to zero in every tensor
that carries it. What works along channels, as layer norm or a mean over them, sees those that are left: in the
slimmed network the others are not there. The slimmed network runs its own Python code, so whatever that code does
with a width that tracing did not see comes out as a difference, or as a shape that does not fit.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import VerificationError
from espalier.pruning.calls import operation_name
from espalier.pruning.graph import Rescaling
from espalier.pruning.recording import (
    Inputs,
    Node,
    Recording,
    call,
    cloned,
    is_in_place,
    mapped,
    seeded,
    tensors_of,
    undisturbed,
)
from espalier.pruning.torch_private import eagerly, tree_map

TOLERANCE = 1e-4
"""Greatest difference allowed, relative to the greatest value of a tensor; float32 and float64."""
ROUNDINGS = 16
"""The same of types that are less exact, in units of their rounding."""

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
            Every node with its value: what is kept of it, in the shape that the slimmed network has; up to a size
            that depends on values and comes out differently.
        """
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        for rescaling in self.rescalings:
            state[rescaling.tensor] = rescaling.scaled(state[rescaling.tensor], keep)
        device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        given = iter(tensors_of(inputs))
        values: dict[Node, Any] = {}
        last_use = {source: node for node in self.recording.forward for source in node.sources}
        for node in self.recording.forward:
            match node.kind:
                case "stored":
                    stored = state[self.recording.stored[node].name].detach()
                    values[node] = _each(stored, self.channels.get(node), lambda v, dims: _masked(v, dims, keep))
                case "input":
                    values[node] = next(given)
                case "constant":
                    values[node] = node.value.to(device)
                case "item":
                    values[node] = values[node.args[0]][node.args[1]]
                case "call":
                    values[node] = self._computed(node, values, keep)
                    if [tuple(tensor.shape) for tensor in tensors_of(values[node])] != [
                        m.shape for m in node.tensors
                    ]:
                        return  # as many as it found in other values: what follows cannot be compared
                    yield node, self._cut(node, values[node], keep)
                case "output":
                    yield node, [self._cut(source, values[source], keep) for source in node.args]
            for source in node.sources:
                if last_use[source] is node:
                    del values[source]

    def _computed(self, node: Node, values: dict[Node, Any], keep: Tensor) -> Any:
        target: Any = node.target
        if target is torch.ops.aten.view.default:  # attention may lay out its output otherwise than when recorded
            target = torch.ops.aten.reshape.default
        args, kwargs = mapped((node.args, node.kwargs), lambda source: values[source])
        name = operation_name(target)
        if name in OVER_CHANNELS:
            cut = {source: self._cut(source, values[source], keep) for source in node.sources}
            args, kwargs = mapped((node.args, node.kwargs), lambda source: cut[source])
            with _autocast(node):
                result = target(*OVER_CHANNELS[name](node.args, args), **kwargs)
            return _each(result, self.channels.get(node), lambda value, dims: _spread(value, dims, keep))
        with _autocast(node):
            result = target(*args, **kwargs)
        if node.is_view:  # of what is masked already; what works in place writes through it
            if is_in_place(target):
                _each(result, self.channels.get(node), lambda value, dims: _mask(value, dims, keep))
            return result
        return _each(result, self.channels.get(node), lambda value, dims: _masked(value, dims, keep))

    def _cut(self, node: Node, value: Any, keep: Tensor) -> Any:
        return _each(value, self.channels.get(node), lambda v, dims: _cut(v, dims, keep))


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


def _kept(channels: Tensor, keep: Tensor) -> Tensor:
    return (keep[channels.clamp(min=0)] | (channels < 0)).all(1)


def _masked(value: Tensor, dims: Dims, keep: Tensor) -> Tensor:
    """Zeros in place of what is removed."""
    return _mask(value.clone(), dims, keep) if any(channels is not None for channels in dims) else value


def _mask(value: Tensor, dims: Dims, keep: Tensor) -> Tensor:
    """Sets what is removed to zero, in place."""
    for dim, channels in enumerate(dims):
        if channels is not None:
            value.index_fill_(dim, (~_kept(channels, keep)).nonzero()[:, 0].to(value.device), 0)
    return value


def _cut(value: Tensor, dims: Dims, keep: Tensor) -> Tensor:
    """Without what is removed."""
    for dim, channels in enumerate(dims):
        if channels is not None:
            value = value.index_select(dim, _kept(channels, keep).nonzero()[:, 0].to(value.device))
    return value


def _spread(value: Tensor, dims: Dims, keep: Tensor) -> Tensor:
    """The inverse of `_cut`, with zeros in between."""
    for dim, channels in enumerate(dims):
        if channels is not None:
            index = _kept(channels, keep).nonzero()[:, 0].to(value.device)
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


def verify(
    model: nn.Module,
    reference: Reference,
    keep: Tensor,
    slimmed: nn.Module,
    inputs: Inputs,
    tolerance: float = TOLERANCE,
) -> float:
    """Compares a slimmed network with the masked one in eval mode, layer by layer.

    Args:
        model: the dense network that `slimmed` was cut from.
        reference: its masked form.
        keep: what stayed, bool (n_channels,).
        slimmed: the network to check.
        inputs: an example of the traced shape.
        tolerance: greatest difference allowed in any layer, relative to its greatest value.

    Returns:
        The greatest relative difference of the outputs.

    Raises:
        VerificationError: a layer, or an output, differs by more; names the first one.
    """
    inputs = _telling(inputs)
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    try:
        return _compare(model, reference, keep, slimmed, inputs, tolerance)
    except _Difference as difference:
        # Where large numbers cancel, float32 differs from itself: only what differs in float64 too is refused.
        if types <= {torch.float64}:
            raise
        try:
            doubled: Inputs = tree_map(_double, inputs)
            return _compare(
                copy.deepcopy(model).double(), reference, keep, copy.deepcopy(slimmed).double(), doubled, tolerance
            )
        except _Difference:
            raise
        except Exception:  # a network that insists on its type
            allowed = max(ROUNDINGS * torch.finfo(dtype).eps for dtype in types)
            if allowed <= tolerance:
                raise difference from None
            return _compare(model, reference, keep, slimmed, inputs, allowed)


class _Difference(VerificationError):
    """Values differ, in shapes that fit."""


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compare(
    model: nn.Module, reference: Reference, keep: Tensor, slimmed: nn.Module, inputs: Inputs, tolerance: float
) -> float:
    name = type(model).__name__
    with torch.no_grad(), eagerly(), undisturbed(model), undisturbed(slimmed):
        with seeded():
            got = _layer_outputs(slimmed, cloned(inputs), name)
        with seeded():
            return _compare_layers(got, reference, reference.run(model, keep, cloned(inputs)), name, tolerance)


def _compare_layers(
    got: dict[str, list[Tensor]],
    reference: Reference,
    masked: Iterator[tuple[Node, Any]],
    name: str,
    tolerance: float,
) -> float:
    for node, expected in masked:
        if node.kind == "output":
            outputs = list(zip(got[""], expected, strict=True))
            return max((_difference(a, b, name, "its output", tolerance) for a, b in outputs), default=0.0)
        layer = _finished_layer(reference.recording, node)
        if isinstance(expected, Tensor) and layer and len(got.get(layer, ())) == 1:
            _difference(got[layer][0], expected, name, layer, tolerance)
    return 0.0


def _difference(got: Tensor, expected: Tensor, name: str, place: str, tolerance: float) -> float:
    because = "its forward() depends on a width that slimming cannot see"
    if got.shape != expected.shape:
        raise VerificationError(
            f"the slimmed {name} differs from the masked one, first at {place}: its shape is {tuple(got.shape)} "
            f"instead of {tuple(expected.shape)}; {because}"
        )
    if not got.numel():
        return 0.0
    got, expected = got.double(), expected.double()
    alike = got == expected  # infinities, as of masked logits, are compared as they are
    greatest = expected.masked_fill(expected.isinf(), 0).abs().max().clamp(min=1e-6)
    difference = float((got - expected).masked_fill(alike, 0).abs().max() / greatest)
    if not difference <= tolerance:
        raise _Difference(
            f"the slimmed {name} differs from the masked one, first at {place}: by {difference:.2e} of the "
            f"greatest value there, more than {tolerance:.0e}; {because}"
        )
    return difference


def _telling(inputs: Inputs) -> Inputs:
    """Inputs on which faults show: constant images, as zeros, are replaced by noise; ones stay positive."""
    generator = torch.Generator().manual_seed(0)

    def noisy(value: Any) -> Any:
        if (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.numel() > 1
            and value.min() == value.max()
        ):
            if value.any():
                return value * (0.5 + torch.rand(value.shape, generator=generator).to(value))
            return torch.randn(value.shape, generator=generator).to(value)
        return value

    noise: Inputs = tree_map(noisy, inputs)
    return noise


def _layer_outputs(model: nn.Module, inputs: Inputs, name: str) -> dict[str, list[Tensor]]:
    """Outputs of every layer that runs once, and of the network under the name ""."""
    outputs: dict[str, list[Tensor]] = {}
    running: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            running.append(path)

        return hook

    def leave(path: str, leaf: bool) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            running.pop()
            if leaf:
                outputs.setdefault(path, []).extend(t.clone() for t in tensors_of(output))

        return hook

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(path)))
        hooks.append(module.register_forward_hook(leave(path, not any(module.children()))))
    try:
        found = call(model, inputs)
    except Exception as error:
        place = next((path for path in reversed(running) if path), "its forward()")
        raise VerificationError(
            f"the slimmed {name} cannot run, it fails in {place}: {' '.join(str(error).split())}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return outputs | {"": found}


def _finished_layer(recording: Recording, node: Node) -> str:
    """The layer whose output a node is, if it is the last one of it."""
    following = (other for other in recording.nodes[node.number + 1 :] if other.kind != "constant")
    return node.layer if node.layers and node.layers[-1] not in next(following).layers else ""
