"""Sections of a config about the budget, and the device that latency is of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from espalier.pruning.graph.precision import check_bits
from espalier.pruning.latency.measuring import IN_8_BITS
from espalier.search.config.fields import (
    Fraction,
    Positive,
    RuntimeName,
    Section,
)
from espalier.search.study.overview import budget_in_words

_PAIRS = (
    ("keep", "max_macs"),
    ("keep_params", "max_params"),
    ("keep_memory", "max_memory"),
    ("latency", "max_latency_ms"),
    ("keep_bit_operations", "max_bit_operations"),
    ("keep_weight_bytes", "max_weight_bytes"),
)
REPLACES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
"""Key of a budget -> the one that says the same in another unit."""


_OneOrSeveral = Annotated[
    Annotated[Fraction, Tag("one")] | Annotated[tuple[Fraction, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class DeviceConfig(Section):
    """What a budget of latency is measured on."""

    runtime: RuntimeName = Field(default="eager", description="What runs the network.")
    batch: Positive = Field(default=1, description="Examples of a pass.")
    threads: Positive = Field(default=1, description="Threads that a pass may use.")
    networks: Annotated[int, Field(ge=8)] = Field(
        default=40, description="Pruned networks that are timed before the search."
    )
    model: Path | None = Field(
        default=None,
        description=(
            "File of a latency model that was measured before, here or on another device; nothing is timed then."
        ),
    )


class BudgetConfig(Section):
    """What the pruned network may cost, and which groups are left alone."""

    keep: _OneOrSeveral | None = Field(
        default=None,
        description=(
            "Share of the dense network's MACs that may be kept; several, falling, ask for several budgets."
        ),
    )
    front: bool = Field(
        default=False,
        description="Whether every candidate has a budget of its own between the first and the last of keep.",
    )
    max_macs: Positive | None = Field(default=None, description="Most MACs of one example, in place of keep.")
    keep_params: Fraction | None = Field(
        default=None, description="Share of the dense network's parameters that may be kept."
    )
    max_params: Positive | None = Field(default=None, description="Most parameters, in place of keep_params.")
    keep_memory: Fraction | None = Field(
        default=None, description="Share of the dense network's peak memory of activations that may be kept."
    )
    max_memory: Positive | None = Field(
        default=None, description="Most bytes of activations that are alive at once, in place of keep_memory."
    )
    latency: Fraction | None = Field(
        default=None, description="Share of the dense network's latency on the device."
    )
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Most milliseconds of a pass on the device, in place of latency."
    )
    keep_bit_operations: Fraction | None = Field(
        default=None,
        description="Share of the dense network's MACs times bits of weights and of activations that may be kept.",
    )
    max_bit_operations: Positive | None = Field(
        default=None, description="Most MACs times bits of one example, in place of keep_bit_operations."
    )
    keep_weight_bytes: Fraction | None = Field(
        default=None, description="Share of the bytes of the dense network's parameters that may be kept."
    )
    max_weight_bytes: Positive | None = Field(
        default=None, description="Most bytes of parameters, in place of keep_weight_bytes."
    )
    device: DeviceConfig = Field(default=DeviceConfig(), description="The device that latency is of.")
    min_width: Positive = Field(default=1, description="Channels that every group keeps at least.")
    min_widths: dict[str, Positive] = Field(
        default={},
        description="Name or pattern of groups, such as layer1.*, and the channels that these keep at least.",
    )
    frozen: tuple[str, ...] = Field(
        default=(), description="Names or patterns of groups that keep all of their channels."
    )
    depth: bool = Field(
        default=False,
        description="Whether residual branches may be taken out as a whole; how many is one more number to search.",
    )
    bits: tuple[int, ...] = Field(
        default=(),
        description=(
            "That convolutions and linear layers may compute in, such as [8, 32]; which layer in how many is "
            "searched with the widths."
        ),
    )
    round_to: Literal["auto"] | Positive = Field(
        default=1,
        description=(
            "Widths of layers are multiples of this; auto takes 1, 8 or 16, whichever leaves the most "
            "MACs in the latency."
        ),
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        for keys in _PAIRS:
            if all(getattr(self, key) is not None for key in keys):
                raise ValueError(f"give one of {keys[0]} and {keys[1]}, which limit the same thing")
        if all(getattr(self, key) is None for key in REPLACES):
            raise ValueError("give a limit, such as keep (fraction of the dense MACs) or max_macs")
        if list(self.keeps) != sorted(set(self.keeps), reverse=True):
            raise ValueError("several fractions to keep must fall, such as [0.7, 0.5, 0.3]: the last is searched")
        if self.bits:
            check_bits(self.bits)
        if self.limits_latency and set(self.bits) - {8, 32}:
            raise ValueError("runtimes whose latency is measured compute in 8 bits or in float32: bits: [8, 32]")
        if self.limits_latency and self.bits and self.device.runtime not in IN_8_BITS:
            raise ValueError(
                f"device.runtime: {self.device.runtime} computes in float32; bits: [8, 32] are for "
                + " and ".join(IN_8_BITS)
            )
        if self.round_to == "auto" and not self.limits_latency:
            raise ValueError("round_to: auto follows from latency, and there is no limit on it")
        if self.front and self.limits_latency:
            raise ValueError("a front lies between MACs: give no limit on latency")
        if self.front and len(self.keeps) < 2:
            raise ValueError("a front lies between several fractions to keep, such as keep: [0.7, 0.5, 0.3]")
        return self

    @property
    def keeps(self) -> tuple[float, ...]:
        """Fractions of the MACs to keep, falling; none where MACs are limited otherwise, or not at all."""
        return self.keep if isinstance(self.keep, tuple) else () if self.keep is None else (self.keep,)

    @property
    def limits_latency(self) -> bool:
        """Whether it does."""
        return self.latency is not None or self.max_latency_ms is not None

    def words(self) -> str:
        """The limits, for people."""
        return budget_in_words(self.model_dump())
