"""What a residual branch adds once nothing goes through it: a few of the recorded calls, run without the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from espalier.pruning.tracing.integers import Integers, TracedFloat, TracedInt
from espalier.pruning.tracing.recording import Made, Node, Recording, mapped, operation_name, parameters_of
from espalier.pruning.tracing.reference import Dims, Reference

WITH_BIAS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
"""Of inputs without channels they give their bias."""


@dataclass(frozen=True)
class RecordedConstants:
    """See `graph.branches.Constants`; small enough to be pickled with the graph.

    Attributes:
        reference: runs the calls.
        recalibrated: runs them with statistics of batch norms taken of the constants themselves, as recalibration
            does; None where there is no batch norm.
        dims: per output the one dimension that it may vary along.
        order: which output each constant is, and whether after recalibration.
    """

    reference: Reference
    recalibrated: Reference | None
    dims: tuple[int, ...] = ()
    order: tuple[tuple[int, bool], ...] = ()

    def __call__(self, state: Mapping[str, Tensor], keep: Tensor) -> list[Tensor]:
        """The constants, sizes one but along the dimension of each, with the channels that are kept."""
        outputs = {False: _run(self.reference, state, keep)}
        if self.recalibrated is not None:
            outputs[True] = _run(self.recalibrated, state, keep)
        return [_along(outputs[again][number], self.dims[number]).clone() for number, again in self.order]

    def settled(self, state: Mapping[str, Tensor], keep: Tensor) -> RecordedConstants | None:
        """The same, with `dims`; None where an output is no constant per channel.

        Args:
            state: tensors of the network by name, random ones, so that nothing is equal by chance.
            keep: what is kept where the branch is out, bool (n_channels,).
        """
        dims = []
        try:
            outputs = _run(self.reference, state, keep, cut=False)
        except RuntimeError:  # a call that does not run on its own
            return None
        for node, value in zip(self.reference.recording.nodes[-1].args, outputs, strict=True):
            if not isinstance(value, Tensor) or not value.isfinite().all():
                return None
            varying = [d for d in range(value.dim()) if not torch.allclose(value, value.narrow(d, 0, 1))]
            if len(varying) > 1:
                return None
            known = self.reference.channels.get(node)
            held = [dim for dim, channels in enumerate(known[0]) if channels is not None] if known else []
            dims.append((varying or held or [1 if value.dim() > 3 else value.dim() - 1])[0])
        return replace(self, dims=tuple(dims))


def _run(reference: Reference, state: Mapping[str, Tensor], keep: Tensor, cut: bool = True) -> list[Any]:
    with torch.no_grad():
        *_, (_, outputs) = reference.run_on(dict(state), keep, (), cut)
    found: list[Any] = outputs
    return found


def constants_of(
    outputs: Sequence[Node], nothing: Collection[Node], floats: Collection[str], whole: Reference
) -> RecordedConstants:
    """Picks the calls that some constants are made by.

    Args:
        outputs: that make them.
        nothing: calls whose results have no elements once the branch is out.
        floats: names of the tensors of the network that hold real numbers.
        whole: the masked network.
    """
    normed = False
    references = []
    for again in (False, True):
        chosen = _Copied(nothing, floats, whole, again)
        chosen.add(Node("output", args=tuple(map(chosen.of, outputs))))
        references.append(chosen.reference())
        normed |= chosen.normed
    return RecordedConstants(references[0], references[1] if normed else None)


class _Copied:
    """Copies of calls, in the order of execution, with zeros in place of what has no elements.

    Args:
        nothing: what has none.
        floats: names of the tensors of the network that hold real numbers.
        whole: the masked network.
        again: whether batch norms take statistics of what they read.

    Attributes:
        normed: whether a batch norm is among them.
    """

    def __init__(self, nothing: Collection[Node], floats: Collection[str], whole: Reference, again: bool) -> None:
        self._nothing, self._whole, self._stored = nothing, whole, whole.recording.stored
        self._again, self.normed = again, False
        self._example = next(node for node, stored in self._stored.items() if stored.name in floats)
        self._copies: dict[Node, Node] = {}
        self._nodes: list[Node] = []
        self._channels: dict[Node, Sequence[Dims]] = {}

    def of(self, node: Node) -> Node:
        """The copy of a call, after copies of all that it is made of."""
        if node not in self._copies:
            known = self._whole.channels.get(node)
            given = _arguments(node)
            if node in self._nothing:
                copy = self.add(self._zeros(node), known)
            elif operation_name_of(node) in WITH_BIAS and given["input"] in self._nothing:
                copy = self.add(self._zeros(node), known)
                if given["bias"] is not None:
                    sum_of = torch.ops.aten.add.Tensor, (copy, self._beside(node, given["bias"]))
                    copy = self.add(Node("call", *sum_of, made=node.made), known)
            else:
                args, kwargs = mapped((node.args, node.kwargs), self.of)
                if operation_name_of(node) == "batch_norm":
                    self.normed = True
                    if self._again:
                        weight, bias = mapped((given["weight"], given["bias"]), self.of)
                        args, kwargs = (args[0], weight, bias, None, None, True, 0.0, given["eps"], False), {}
                copy = Node(node.kind, node.target, _plain(args), _plain(kwargs), node.made, (), node.autocast)
                copy.value = node.value
                self.add(copy, known)
            self._copies[node] = copy
        return self._copies[node]

    def add(self, node: Node, channels: Sequence[Dims] | None = None) -> Node:
        """Puts a call at the end."""
        node.number = len(self._nodes)
        self._nodes.append(node)
        if channels is not None:
            self._channels[node] = channels
        return node

    def reference(self) -> Reference:
        """Runs the copies."""
        nodes = tuple(self._nodes)
        stored = {self._copies[node]: kept for node, kept in self._stored.items() if node in self._copies}
        recording = Recording(nodes, len(nodes), stored, Integers(), self._whole.recording.batch, {}, False)
        return Reference(recording, self._channels)

    def _zeros(self, node: Node) -> Node:
        like = self.of(self._example)
        return Node("call", torch.ops.aten.new_zeros.default, (like, list(node.made.shape)), made=node.made)

    def _beside(self, node: Node, bias: Node) -> Node:
        """A layer's bias, along the dimension of its result that it belongs to."""
        after = 0 if operation_name_of(node) == "linear" else len(node.made.shape) - 2
        shape = (*bias.made.shape, *[1] * after)
        known = self._whole.channels.get(bias)
        made = Made(shape, bias.made.itemsize, bias.made.storage)
        reshaped = Node("call", torch.ops.aten.reshape.default, (self.of(bias), list(shape)), made=made)
        return self.add(reshaped, None if known is None else [(known[0][0], *[None] * after)])


def operation_name_of(node: Node) -> str:
    """Of a call; empty of any other node."""
    return operation_name(node.target) if node.kind == "call" else ""


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults filled in."""
    if node.kind != "call":
        return {}
    declared = parameters_of(node.target)
    given = {name: value for (name, _, _), value in zip(declared, node.args, strict=False)}
    return {name: default for name, _, default in declared} | given | node.kwargs


def _plain(value: Any) -> Any:
    """Arguments with plain integers, which can be pickled."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    if isinstance(value, TracedFloat):
        return float.__float__(value)
    if isinstance(value, list | tuple):
        return type(value)([_plain(item) for item in value])
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _along(value: Tensor, dim: int) -> Tensor:
    """One place of every dimension but that."""
    for other in range(value.dim()):
        if other != dim:
            value = value.narrow(other, 0, 1)
    return value
