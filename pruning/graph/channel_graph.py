"""The channel graph: which channels live and die together, and what every choice of widths costs.

Notation:
    group      a set of channels that have the same members; its *width* is how many of them are kept
    member     one tensor (parameter or buffer), one dimension of it, and which channel each position holds
    G          number of prunable groups; widths are integer vectors (G,), a batch of policies (n, G)
    channels   all channels of all prunable groups, numbered 0 .. n_channels - 1, group after group

A position may belong to channels of several groups, as where attention heads and the channels inside a head lie
along one dimension: it stays if all of them stay.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from espalier.errors import ConfigError
from espalier.pruning.graph.branches import Branch
from espalier.pruning.graph.costs import BilinearCost, Floats, Ints, PeakMemory
from espalier.pruning.graph.groups import Group, ModuleInteger, Operation, Rescaling, Role, Slot
from espalier.pruning.graph.groups import Member as Member  # where graphs that are pickled already look for it
from espalier.pruning.graph.precision import ACTIVATION, ENDING, FLOAT, Precision, check_bits

_LATER = {"latency_model": None, "branches": (), "precisions": (), "_channels": None, "mac_reasons": ()}
"""Attributes that graphs lack which older versions have pickled."""


class LatencyOf(Protocol):
    """What a graph knows of a device: widths (n, G) -> nanoseconds (n,).

    Attributes:
        dense: nanoseconds of the unpruned network, as measured.
    """

    dense: float

    def __call__(self, widths: Floats) -> Ints: ...  # noqa: D102


class ChannelGraph:
    """Groups of coupled channels of one network, with its costs in closed form.

    Made by `espalier.trace`; holds no weights, pickles small, and serves every network of the same structure.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        frozen: Sequence[Group],
        macs: BilinearCost,
        params: BilinearCost,
        memory: PeakMemory,
        operations: Sequence[Operation] = (),
        mac_operations: Sequence[int] = (),
        integers: Sequence[ModuleInteger] = (),
        example: Any = None,
        reference: Any = None,
        outputs: Sequence[int] = (),
        rescalings: Sequence[Rescaling] = (),
        mac_reasons: Sequence[Sequence[str]] = (),
    ) -> None:
        """Made by `trace`.

        Args:
            groups: those that can be pruned.
            frozen: those that cannot, with the reasons.
            macs: a term per contraction, named by its layer.
            params: a term per parameter.
            memory: peak memory of activations.
            operations: the steps of the forward pass.
            mac_operations: the number of the operation that each term of `macs` belongs to.
            integers: attributes of modules that count channels.
            example: the inputs that the network was traced with.
            reference: runs the masked network; left behind when the graph is pickled.
            outputs: the operations whose results the network returns.
            rescalings: weights that are multiplied as channels go.
            mac_reasons: the reasons for which channels that each term of `macs` reads or writes are frozen.
        """
        self.groups = tuple(groups)
        self.frozen = tuple(frozen)
        self.mac_terms = macs
        self.param_terms = params
        self.memory = memory
        self.operations = tuple(operations)
        self.mac_operations = tuple(mac_operations)
        self.integers = tuple(integers)
        self.example = example
        self.reference = reference
        self.outputs = tuple(outputs)
        self.rescalings = tuple(rescalings)
        self.mac_reasons = tuple(map(tuple, mac_reasons))
        self.latency_model: LatencyOf | None = None
        """Of the graphs that `LatencyModel.on` gives."""
        self.branches: tuple[Branch, ...] = ()
        """That can be taken out; of graphs that `trace` makes with `depth`."""
        self.precisions: tuple[Precision, ...] = ()
        """Groups whose widths are bits of layers, the last ones; of graphs that `trace` makes with `bits`."""
        self._channels: ChannelGraph | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"reference": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= _LATER | state

    @cached_property
    def sizes(self) -> Ints:
        """Width of every group of the dense network: (G,)."""
        return np.array([group.size for group in self.groups], dtype=np.int64)

    @cached_property
    def offsets(self) -> Ints:
        """First global channel of every group, and the number of channels at the end: (G + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def n_channels(self) -> int:
        """Number of prunable channels."""
        return int(self.offsets[-1])

    @cached_property
    def group_of(self) -> Ints:
        """Group of every channel: (n_channels,)."""
        return np.repeat(np.arange(len(self.groups)), self.sizes)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every (tensor, dimension) with prunable channels along it, members of all groups merged."""
        columns: dict[tuple[str, int], list[Tensor]] = {}
        roles: dict[tuple[str, int], Role] = {}
        for group, offset in zip(self.groups, self.offsets.tolist(), strict=False):
            for member in group.members:
                column = torch.full((member.length,), -1)
                column[member.positions] = torch.from_numpy(member.channels + offset)
                columns.setdefault((member.tensor, member.dim), []).append(column)
                roles.setdefault((member.tensor, member.dim), member.role)
        alike: dict[bytes, Tensor] = {}  # a layer and its norm hold the same channels: one tensor for all
        merged = {key: _narrowest(found) for key, found in columns.items()}
        shared = {key: alike.setdefault(channels.numpy().tobytes(), channels) for key, channels in merged.items()}
        return tuple(Slot(*key, roles[key], channels) for key, channels in shared.items())

    @cached_property
    def removable(self) -> npt.NDArray[np.bool_]:
        """Which groups may have no channel, so that their branch is taken out: (G,)."""
        triggers = [group for branch in self.branches for group in branch.triggers]
        return np.isin(np.arange(len(self.groups)), triggers)

    def removed(self, widths: npt.ArrayLike) -> tuple[int, ...]:
        """The branches, by number, that widths (G,) take out."""
        gone = np.asarray(widths) == 0
        return tuple(n for n, branch in enumerate(self.branches) if gone[list(branch.triggers)].any())

    def gone(self, removed: Iterable[int]) -> npt.NDArray[np.bool_]:
        """The groups, (G,), that have no channels once these branches are out."""
        groups = [group for number in removed for group in self.branches[number].groups]
        return np.isin(np.arange(len(self.groups)), groups)

    def kept(self, channels: Tensor, keep: Tensor) -> Tensor:
        """Which rows of channels stay: (n, k) global channels, -1 for none, and keep (n_channels,) -> bool (n,)."""
        return (keep[channels.clamp(min=0)] | (channels < 0)).all(1)

    def integers_of(self, keep: Tensor) -> dict[tuple[str, str, int | None], int]:
        """(module, attribute, item) -> what it must be once only `keep` (n_channels,) is left.

        Those of modules that go with a branch are left out; what is left around them counts one channel, not none.
        """
        found = {(i.path, i.name, i.index): int(self.kept(i.channels, keep).sum()) for i in self.integers}
        out = self.branches_without(keep)
        if not out:
            return found
        return {
            key: max(1, count) for key, count in found.items() if not any(branch.holds(key[0]) for branch in out)
        }

    def branches_without(self, keep: Tensor) -> list[Branch]:
        """The branches that are out where only `keep`, bool (n_channels,), is left."""
        return [self.branches[number] for number in self.removed(self.widths(keep))] if self.branches else []

    def macs(self, widths: npt.ArrayLike) -> Ints:
        """Multiply-adds of one forward pass on one example (FLOPs = 2 x MACs).

        Args:
            widths: (n, G) channels kept per group, or one policy (G,).

        Returns:
            (n,) whole numbers: convolutions, linear layers, matrix products and attention. A scalar array for (G,).
        """
        return self._cost(self.mac_terms.total, widths)

    def params(self, widths: npt.ArrayLike) -> Ints:
        """Number of parameters, buffers not counted: widths (n, G) -> (n,), or (G,) -> scalar array."""
        return self._cost(self.param_terms.total, widths)

    def peak_memory(self, widths: npt.ArrayLike) -> Ints:
        """Most bytes of activations alive at once in one forward pass on one example, in eval mode.

        Operations run one after another, as in PyTorch without compilation; a tensor lives until its last reader is
        done; views, and what works in place, share their storage. Parameters, buffers and the scratch space of
        operations are not counted.

        Args:
            widths: (n, G), or one policy (G,).

        Returns:
            (n,) bytes, in the types of the traced network. A scalar array for (G,).
        """
        return self._cost(self.memory.peak, widths)

    def bit_operations(self, widths: npt.ArrayLike) -> Ints:
        """MACs, each times the bits of the weight and of what it is multiplied by: 1024 in float32.

        That is the BOPs of Galen (Krieger et al., 2022, arXiv 2212.07818); others count additions too.

        Args:
            widths: (n, G), or one policy (G,).

        Returns:
            (n,) whole numbers. A scalar array for (G,).
        """

        def total(policies: Floats) -> Ints:
            weights = self._bits(policies, self._term_precisions)
            read = np.where(weights < FLOAT, np.maximum(weights, ACTIVATION), FLOAT)
            found: Ints = np.rint((self.mac_terms.terms(policies) * weights * read).sum(1)).astype(np.int64)
            return found

        return self._cost(total, widths)

    def weight_bytes(self, widths: npt.ArrayLike) -> Ints:
        """Bytes of the parameters as a runtime keeps them: 4 each, but for weights of layers in fewer bits.

        Scales of quantisers are not counted.

        Args:
            widths: (n, G), or one policy (G,).

        Returns:
            (n,) whole numbers. A scalar array for (G,).
        """

        def total(policies: Floats) -> Ints:
            sizes = self.param_terms.terms(policies) * self._bits(policies, self._param_precisions) / 8
            found: Ints = np.ceil(sizes.sum(1)).astype(np.int64)
            return found

        return self._cost(total, widths)

    def in_bits(self, widths: Floats) -> npt.NDArray[np.bool_]:
        """Which contractions, (n, K), are of layers in fewer bits than float32 for widths (n, G)."""
        return self._bits(widths, self._term_precisions) < FLOAT

    def _bits(self, widths: Floats, precisions: Ints) -> Floats:
        """Bits for widths (n, G), by the number of a precision, -1 for none: (n, len(precisions))."""
        groups = [each.group for each in self.precisions]
        table = np.array([each.bits for each in self.precisions], dtype=np.float64)
        own = np.full((len(widths), len(groups) + 1), float(FLOAT))
        for number, group in enumerate(groups):
            own[:, number] = table[number, widths[:, group].astype(np.int64) - 1]
        return own[:, precisions]

    @cached_property
    def _term_precisions(self) -> Ints:
        """Number of the precision of each contraction's layer, -1 where it has none: (K,)."""
        of = {each.tensor: number for number, each in enumerate(self.precisions)}
        operations = [self.operations[number] for number in self.mac_operations]
        found = [max((of.get(name, -1) for name in each.tensors), default=-1) for each in operations]
        return np.array(found, dtype=np.int64)

    @cached_property
    def _param_precisions(self) -> Ints:
        """The same of each parameter: (P,)."""
        of = {each.tensor: number for number, each in enumerate(self.precisions)}
        return np.array([of.get(name, -1) for name in self.param_terms.names], dtype=np.int64)

    def bits_of(self, widths: npt.ArrayLike) -> dict[str, int]:
        """Path of each layer in fewer bits than float32 -> how many, of widths (G,).

        Layers in branches that are out are not there.
        """
        kept = np.asarray(widths)
        found = {each.layer: each.bits[int(kept[each.group]) - 1] for each in self.precisions}
        out = [self.branches[number] for number in self.removed(kept)] if found else []
        return {
            layer: bits
            for layer, bits in found.items()
            if bits < FLOAT and not any(branch.holds(layer) for branch in out)
        }

    def incidence(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which contraction reads, and which writes, channels of which group: twice (K, G).

        The group of a layer's bits is read by it.
        """
        reads, writes = self.mac_terms.incidence(len(self.groups))
        for number, precision in enumerate(self.precisions):
            reads[:, precision.group] = self._term_precisions == number
        return reads, writes

    def dense_cost(self, metric: str) -> float:
        """What the unpruned network costs, of what a `Budget` limits; latency is as measured."""
        if metric == "latency" and self.latency_model is not None:
            return self.latency_model.dense
        return int(getattr(self, metric)(self.sizes))

    def latency(self, widths: npt.ArrayLike) -> Ints:
        """Nanoseconds of one pass as modelled for a device: widths (n, G) -> (n,), or (G,) -> scalar array.

        Raises:
            ConfigError: no device was measured: `LatencyModel.on(graph)` gives a graph that knows of one.
        """
        if self.latency_model is None:
            raise ConfigError("latency has to be measured first: graph = espalier.measure_latency(...).on(graph)")
        return self._cost(self.latency_model, widths)

    def macs_per_operation(self, widths: npt.ArrayLike) -> Ints:
        """MACs of every operation: widths (n, G) -> (n, len(operations)), or (G,) -> (len(operations),)."""
        policies = np.asarray(widths, dtype=np.float64)
        terms = self.mac_terms.terms(np.atleast_2d(policies))  # (n, K)
        totals = np.zeros((len(terms), len(self.operations)))
        for number, operation in enumerate(self.mac_operations):
            totals[:, operation] += terms[:, number]
        whole = np.rint(totals).astype(np.int64)
        return whole if policies.ndim == 2 else whole[0]

    def params_per_operation(self, widths: npt.ArrayLike) -> Ints:
        """Parameters that every operation is the first to read: (G,) -> (len(operations),).

        What several operations share counts once; the sum falls short of `params` by what none reads.
        """
        counts = self.param_terms.terms(np.atleast_2d(np.asarray(widths, dtype=np.float64)))[0]
        left = dict(zip(self.param_terms.names, counts.tolist(), strict=True))
        totals = [sum(left.pop(name, 0.0) for name in operation.tensors) for operation in self.operations]
        return np.array([round(total) for total in totals], dtype=np.int64)

    def bytes_per_operation(self, widths: npt.ArrayLike) -> Ints:
        """Bytes of the activations that every operation makes, none for a view: (G,) -> (len(operations),)."""
        made = self.memory.sizes.terms(np.atleast_2d(np.asarray(widths, dtype=np.float64)))[0]
        makers = self.memory.born.copy()
        inputs = [number for number, operation in enumerate(self.operations) if operation.kind == "input"]
        makers[: len(inputs)] = inputs  # they come first, and are there from the start
        totals = np.zeros(len(self.operations))
        np.add.at(totals, makers, made)
        return np.rint(totals).astype(np.int64)

    def macs_kept_by_reason(self) -> dict[str, int]:
        """Reason for which channels are frozen -> MACs that are left of what reads or writes them, most first.

        That is with one channel in every group that can be pruned. What channels of several reasons meet in counts
        for each of these.
        """
        left = self.mac_terms.terms(np.ones((1, len(self.groups))))[0]
        kept = {group.frozen: 0.0 for group in self.frozen if group.frozen is not None}
        for reasons, macs in zip(self.mac_reasons, left.tolist(), strict=False):
            for reason in reasons:
                kept[reason] = kept.get(reason, 0.0) + macs
        return {reason: round(macs) for reason, macs in sorted(kept.items(), key=lambda item: -item[1])}

    def channel_costs(self) -> Ints:
        """MACs that one channel of each group costs in the dense network: (G,)."""
        one_less = self.sizes - np.eye(len(self.groups), dtype=np.int64)
        return self.macs(self.sizes) - self.macs(one_less)

    def steps(self, round_to: int) -> Ints:
        """By how many channels each group's width moves so that the layers it writes keep rounded widths: (G,).

        A layer that holds each channel of a group p times, as a grouped convolution does, has a width that is a
        multiple of p as it is. Of heads and the channels of a head, the latter are rounded. The dense width is
        always allowed.

        Args:
            round_to: what widths are to be multiples of: 8 or 16 for most hardware, 1 for any.

        Raises:
            ConfigError: `round_to` is below one.
        """
        if round_to < 1:
            raise ConfigError(f"round_to must be at least 1, got {round_to}: widths are multiples of it")
        if round_to == 1:
            return np.ones_like(self.sizes)  # whatever the layers are; every decoding asks
        copies = np.zeros(len(self.groups), dtype=np.int64)  # gcd over the layers that write the group
        group_of = torch.from_numpy(self.group_of)
        for slot in self.slots:
            if slot.role not in ("out", "depthwise"):
                continue
            held = slot.channels[slot.channels >= 0]
            groups, counts = group_of[held].unique(return_counts=True)
            for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
                shared = slot.channels.shape[1] > 1 and self.sizes[group] == self.sizes[groups.numpy()].max()
                copies[group] = np.gcd(copies[group], 1 if shared else max(1, count // int(self.sizes[group])))
        steps: Ints = round_to // np.gcd(round_to, np.maximum(copies, 1))
        steps[[each.group for each in self.precisions]] = 1
        return steps

    def _cost(self, total: Callable[[Floats], Ints], widths: npt.ArrayLike) -> Ints:
        policies = np.asarray(widths, dtype=np.float64)
        if policies.shape[-1:] != (len(self.groups),) or policies.ndim > 2:
            raise ConfigError(
                f"widths must have shape (n, {len(self.groups)}) or ({len(self.groups)},), one number per group, "
                f"got {policies.shape}"
            )
        totals = total(np.atleast_2d(policies))
        return totals if policies.ndim == 2 else totals[0]

    def ranks(self, scores: npt.NDArray[np.floating]) -> Ints:
        """Place of every channel inside its group, 0 for the highest score: (n_channels,) -> (n_channels,).

        Equal scores keep the order of the channels.
        """
        order = np.lexsort((np.arange(self.n_channels), -scores, self.group_of))
        ranks = np.empty(self.n_channels, dtype=np.int64)
        ranks[order] = np.arange(self.n_channels) - self.offsets[self.group_of]
        return ranks

    def keep_best(self, scores: npt.NDArray[np.floating], widths: npt.ArrayLike) -> Tensor:
        """Which channels stay when each group keeps its best-scored ones: bool (n_channels,).

        Args:
            scores: (n_channels,) higher is kept.
            widths: (G,).
        """
        return torch.from_numpy(self.ranks(scores) < np.asarray(widths)[self.group_of])

    def widths(self, keep: Tensor) -> Ints:
        """Kept channels per group, (G,), of a keep mask (n_channels,)."""
        return np.bincount(self.group_of[keep.numpy()], minlength=len(self.groups)).astype(np.int64)

    def kept_indices(self, keep: Tensor) -> dict[str, list[int]]:
        """Group name -> its kept channels in rising order, of a keep mask (n_channels,)."""
        parts = torch.split(keep, self.sizes.tolist())
        return {group.name: part.nonzero()[:, 0].tolist() for group, part in zip(self.groups, parts, strict=True)}

    def with_branches(self, branches: Sequence[Branch], needs: Sequence[npt.NDArray[np.bool_]]) -> ChannelGraph:
        """The same graph, of which branches can be taken out.

        Args:
            branches: those.
            needs: of MACs, parameters and sizes of activations, the groups that each term needs, (K, G).
        """
        found = self._copy()
        macs, params, sizes = needs
        found.branches = tuple(branches)
        found.mac_terms = replace(self.mac_terms, needs=macs)
        found.param_terms = replace(self.param_terms, needs=params)
        found.memory = replace(self.memory, sizes=replace(self.memory.sizes, needs=sizes))
        return found

    def with_precisions(self, layers: Sequence[str], bits: Sequence[int]) -> ChannelGraph:
        """The same graph, of which layers can compute in fewer bits.

        Args:
            layers: paths of those.
            bits: that they may have, rising, 32 at the end.

        Raises:
            ConfigError: `bits` are others.
        """
        check_bits(tuple(bits))
        found, first = self._copy(), len(self.groups)
        found.groups = (*self.groups, *(Group(f"{layer}{ENDING}", len(bits), ()) for layer in layers))
        found.precisions = tuple(
            Precision(number, layer, tuple(bits)) for number, layer in enumerate(layers, start=first)
        )
        found.mac_terms, found.param_terms = (
            each.with_groups(first, len(layers)) for each in (self.mac_terms, self.param_terms)
        )
        found.memory = replace(self.memory, sizes=self.memory.sizes.with_groups(first, len(layers)))
        found._channels = self
        return found

    @property
    def without_precisions(self) -> ChannelGraph:
        """The graph of the channels alone: its groups are the first ones here."""
        return self if self._channels is None else self._channels

    def _copy(self) -> ChannelGraph:
        """With nothing kept of what hangs on groups and costs."""
        found = copy.copy(self)
        found.reference = self.reference  # which a copy leaves behind
        for name, held in vars(type(self)).items():
            if isinstance(held, cached_property):
                found.__dict__.pop(name, None)
        return found

    @cached_property
    def digest(self) -> str:
        """Names what a policy means on this graph: equal digests, equal groups and costs."""
        state = hashlib.sha256()
        for group in self.groups:
            state.update(f"{group.name}:{group.size};".encode())
            for member in group.members:
                state.update(f"{member.tensor}:{member.dim}:{member.role}".encode())
                state.update(member.channels.tobytes() + member.positions.tobytes())
        for array in (self.mac_terms.coefficient, self.mac_terms.reads, self.mac_terms.writes):
            state.update(array.tobytes())
        state.update(repr(self.mac_terms.products).encode())
        for branch in self.branches:
            state.update(f"out:{branch.groups}{branch.triggers}{sorted(branch.modules)}".encode())
        for precision in self.precisions:
            state.update(f"{precision.layer}:{precision.bits};".encode())
        return state.hexdigest()[:16]

    def __repr__(self) -> str:
        channels = self.without_precisions
        bits = f", {len(self.precisions)} layers in {self.precisions[0].bits} bits" if self.precisions else ""
        return (
            f"ChannelGraph({len(channels.groups)} groups, {channels.n_channels} channels, "
            f"{int(self.macs(self.sizes)):,} MACs, {len(self.frozen)} frozen{bits})"
        )


def _narrowest(columns: Sequence[Tensor]) -> Tensor:
    """Columns of channels (n,) side by side, -1 where there is none, in as few columns as hold them: (n, k)."""
    channels = torch.stack(list(columns), 1)
    return channels.sort(1, descending=True).values[:, : max(1, int((channels >= 0).sum(1).max()))]
