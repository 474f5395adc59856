"""How candidates are run: batch size, memory format and precision, by a fixed rule where the config says ``auto``.

None of the three is neutral to the last bit. BN statistics are means over batches, so the batch size changes them;
the memory format chooses other kernels, and the precision other numbers. So nothing here is timed: the kind of
device and the config settle it. What was settled belongs to the study, whose trials must be comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch

from espalier.persistence import record_from
from espalier.search.tasks.precision import has_bf16, has_int8_on

AUTO = "auto"


@dataclass(frozen=True)
class Execution:
    """How networks are run; the defaults are what ``auto`` means, but for the precision.

    Attributes:
        batch_size: images per pass, at most: batches are as even as can be.
        memory_format: ``channels_last`` or ``contiguous``.
        precision: ``fp32``, ``bf16`` or ``int8``.
    """

    batch_size: int = 128
    memory_format: str = "channels_last"
    precision: str = "fp32"

    @classmethod
    def asked(cls, settings: Mapping[str, Any], device: torch.device) -> Self:
        """What a config asks for; ``auto`` is the default, and as a precision bf16 where the device computes in it.

        Where there are no 8-bit convolutions, fp32 takes the place of int8.

        Args:
            settings: value of each attribute, or ``auto``.
            device: where candidates are run.
        """
        given = {name: value for name, value in settings.items() if value != AUTO}
        made = cls(**({"precision": "bf16" if has_bf16(device) else "fp32"} | given))
        return replace(made, precision="fp32") if made.precision == "int8" and not has_int8_on(device) else made

    def words(self, *, of_images: bool) -> str:
        """In a line; memory formats are of images."""
        memory_format = f", {self.memory_format.replace('_', ' ')}" if of_images else ""
        return f"candidates run in batches of {self.batch_size}{memory_format}, {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From `to_json`; older studies keep what they timed as well."""
        return record_from(cls, content)
