"""Is the slimmed network the masked one? Layer by layer, on an example.

The reference runs the recorded calls of the dense network, with every removed channel set to zero in every tensor
that carries it. What works along channels, as layer norm or a mean over them, sees those that are left: in the
slimmed network the others are not there. The slimmed network runs its own Python code, so whatever that code does
with a width that tracing did not see comes out as a difference, or as a shape that does not fit.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import VerificationError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.seeding import seeded
from espalier.pruning.torch_private import eagerly, tree_map
from espalier.pruning.tracing.recording import Node
from espalier.pruning.tracing.reference import Reference
from espalier.pruning.tracing.running import call, cloned, noting_layers, tensors_of, undisturbed

TOLERANCE = 1e-4
"""Greatest difference allowed, relative to the greatest value of a tensor; float32 and float64."""
ROUNDINGS = 16
"""The same of types that are less exact, in units of their rounding."""


def verify(
    model: nn.Module,
    reference: Reference,
    keep: Tensor,
    slimmed: nn.Module,
    inputs: Inputs,
    gone: Collection[int] = (),
    tolerance: float = TOLERANCE,
) -> float:
    """Compares a slimmed network with the masked one in eval mode, layer by layer.

    Args:
        model: the dense network that `slimmed` was cut from.
        reference: its masked form.
        keep: what stayed, bool (n_channels,).
        slimmed: the network to check.
        inputs: an example of the traced shape.
        gone: numbers of the recorded calls that the slimmed network does not make, of branches that are out.
        tolerance: greatest difference allowed in any layer, relative to its greatest value.

    Returns:
        The greatest relative difference of the outputs.

    Raises:
        VerificationError: a layer, or an output, differs by more; names the first one.
    """
    inputs = telling(inputs)
    found = _compare_closely(model, reference, keep, slimmed, inputs, gone, tolerance)
    _run_as_it_is(model, slimmed, inputs)
    return found


def _compare_closely(
    model: nn.Module,
    reference: Reference,
    keep: Tensor,
    slimmed: nn.Module,
    inputs: Inputs,
    gone: Collection[int],
    tolerance: float,
) -> float:
    """As `_compare`, in a type that is exact enough to tell."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    try:
        return _compare(model, reference, keep, slimmed, inputs, gone, tolerance)
    except _Difference as difference:
        # Where large numbers cancel, float32 differs from itself: only what differs in float64 too is refused.
        if types <= {torch.float64}:
            raise
        try:
            doubled: Inputs = tree_map(_double, inputs)
            exact, small = copy.deepcopy(model).double(), copy.deepcopy(slimmed).double()
            return _compare(exact, reference, keep, small, doubled, gone, tolerance)
        except _Difference:
            raise
        except Exception:  # a network that insists on its type
            allowed = max(ROUNDINGS * torch.finfo(dtype).eps for dtype in types)
            if allowed <= tolerance:
                raise difference from None
            return _compare(model, reference, keep, slimmed, inputs, gone, allowed)


def _run_as_it_is(model: nn.Module, slimmed: nn.Module, inputs: Inputs) -> None:
    """Runs a network with attention as its user will, where a fused kernel may take the place of its code.

    Raises:
        VerificationError: that fails, and the dense network does not.
    """
    fused = nn.TransformerEncoderLayer, nn.MultiheadAttention
    if not any(isinstance(module, fused) for module in slimmed.modules()):
        return
    with torch.no_grad(), seeded(0):
        try:
            with undisturbed(slimmed):
                call(slimmed, cloned(inputs))
        except Exception as error:
            try:
                with undisturbed(model):
                    call(model, cloned(inputs))
            except Exception:  # it never runs so
                return
            raise VerificationError(
                f"the slimmed {type(model).__name__} cannot run with PyTorch's fused attention: "
                f"{' '.join(str(error).split())}"
            ) from error


class _Difference(VerificationError):
    """Values differ, in shapes that fit."""


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compare(
    model: nn.Module,
    reference: Reference,
    keep: Tensor,
    slimmed: nn.Module,
    inputs: Inputs,
    gone: Collection[int],
    tolerance: float,
) -> float:
    name = type(model).__name__
    with torch.no_grad(), eagerly(), undisturbed(slimmed):
        with seeded(0):
            got = _layer_outputs(slimmed, cloned(inputs), name)
        with seeded(0):
            masked = (
                (node, value)
                for node, value in reference.run(model, keep, cloned(inputs))
                if node.number not in gone
            )
            return _compare_layers(got, reference, masked, name, tolerance)


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
        layer = reference.recording.finished.get(node, "")
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
    difference = relative_difference(got, expected)
    if not difference <= tolerance:
        raise _Difference(
            f"the slimmed {name} differs from the masked one, first at {place}: by {difference:.2e} of the "
            f"greatest value there, more than {tolerance:.0e}; {because}"
        )
    return difference


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Greatest difference of two tensors of one shape, as a share of the greatest value that is expected."""
    if not got.numel():
        return 0.0
    if expected.dtype not in (torch.float32, torch.float64):
        got, expected = got.double(), expected.double()
    difference, greatest = float((got - expected).abs().max()), float(expected.abs().max())
    if not isfinite(difference):  # infinities, as of masked logits, are compared as they are
        difference = float((got - expected).masked_fill(got == expected, 0).abs().max())
        greatest = float(expected.masked_fill(expected.isinf(), 0).abs().max())
    return difference / max(greatest, 1e-6)


def telling(inputs: Inputs) -> Inputs:
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
    leaves = {path for path, module in model.named_modules() if not any(module.children())}

    def leave(path: str, output: Any) -> None:
        if path in leaves:
            outputs.setdefault(path, []).extend(t.clone() for t in tensors_of(output))
        if output is not None:  # it has not failed
            running.pop()

    try:
        with noting_layers(model, running.append, leave):
            found = call(model, inputs)
    except Exception as error:
        place = next((path for path in reversed(running) if path), "its forward()")
        raise VerificationError(
            f"the slimmed {name} cannot run, it fails in {place}: {' '.join(str(error).split())}"
        ) from error
    return outputs | {"": found}
