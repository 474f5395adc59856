"""How networks are run on a device: precision, memory format, and what is kept there between candidates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import numpy.typing as npt
import torch
from torch import Tensor, nn

from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.slimming.folding import without_norms
from espalier.pruning.slimming.int8_convolutions import has_int8, in_int8
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.search.tasks.execution import Execution

KEPT_BYTES = 1 << 28
"""Of float32 batches that a worker keeps; of more it keeps the uint8 examples that they are made from."""


class _Batches(Sequence[Tensor]):
    """Batches that are made when they are asked for."""

    def __init__(self, parts: Sequence[Tensor], make: Callable[[Tensor], Tensor]) -> None:
        self._parts, self._make = parts, make

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, number: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(number, slice):
            return _Batches(self._parts[number], self._make)
        return self._make(self._parts[number])


class Runner:
    """Runs networks of one structure, whatever their widths.

    Args:
        execution: batch size, memory format and precision.
        device: where to run.
        foldable: paths of convolutions and of the norms that can be folded into them.
    """

    def __init__(self, execution: Execution, device: str = "cpu", foldable: Sequence[tuple[str, str]] = ()) -> None:
        self.execution, self.device, self._foldable = execution, torch.device(device), foldable
        self._dtype = torch.bfloat16 if execution.precision == "bf16" else torch.float32
        self._memory: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call with this key: for what candidates of a worker share."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def recalibrate(self, network: nn.Module, batches: Iterable[Inputs]) -> None:
        """Takes BN statistics on batches."""
        with self.autocast(), self.quantised(network):
            recalibrate_bn(network, batches)

    def outputs(self, network: nn.Module, batches: Iterable[Inputs]) -> Generator[Any, None, None]:
        """What a network gives for one batch after another; its norms are folded away until the end."""
        with without_norms(network, self._foldable, self._dtype), self.quantised(network):
            for batch in batches:
                with self.autocast(), torch.inference_mode():
                    given = run_on(network, batch)
                yield given

    def inputs_of(self, network: nn.Module, path: str, batches: Iterable[Inputs]) -> Tensor:
        """What a layer reads, float32, over all batches; each must be one tensor (batch, ...)."""
        seen: list[Tensor] = []
        layer = network.get_submodule(path)
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
        try:
            with self.autocast(), self.quantised(network), torch.no_grad():
                for batch in batches:
                    run_on(network, batch)
        finally:
            hook.remove()
        return torch.cat(seen)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass, where bf16 is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    def quantised(self, network: nn.Module) -> AbstractContextManager[None]:
        """The context of a network's forward passes, where int8 is asked for and there is such a thing."""
        asked = self.execution.precision == "int8" and self.device.type == "cpu" and has_int8()
        return in_int8(network) if asked else nullcontext()

    def batches(self, examples: Tensor, prepare: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        """Batches as even as can be: each weighs the same in BN statistics, and sizes are few.

        Args:
            examples: uint8, which may be shared memory; of many, float32 batches are made anew each time that they
                are asked for.
            prepare: makes a network's inputs of some of them.
        """
        parts = examples.tensor_split(max(1, math.ceil(len(examples) / self.execution.batch_size)))
        made = _Batches(parts, lambda part: self.laid_out(prepare(part)).to(self.device))
        return list(made) if 4 * examples.numel() <= KEPT_BYTES else made

    def laid_out(self, tensor: Tensor) -> Tensor:
        """The tensor in the memory format asked for.

        `Tensor.to` lays out a weight (n, 1, height, width), too, which may be taken for either and which
        `Tensor.contiguous` leaves: behind a map of one channel, PyTorch would then go on in NCHW.
        """
        last = tensor.dim() == 4 and self.execution.memory_format == "channels_last"
        return tensor.to(memory_format=torch.channels_last) if last else tensor.contiguous()


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """A view of an array that is only ever read: Ray hands out read-only memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
