"""PyTorch as a runtime: as it is, and by its compiler."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espalier.errors import ExportError
from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.runtimes.examples import DYNAMIC, repeated
from espalier.pruning.runtimes.runtime import Batch, Runtime, Session
from espalier.pruning.torch_private import tree_map
from espalier.pruning.tracing.running import tensors_of

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""Memory formats by name."""


class TorchSession(Session):
    """A copy of a network, called.

    Args:
        network: in eval mode, on the CPU.
        call: what is called in its place.
        threads: of torch, while it runs.
        layout: a name in `LAYOUTS`.
    """

    def __init__(self, network: nn.Module, call: Any, threads: int, layout: str) -> None:
        self.network, self.layout = network, layout
        self._call, self._threads = call, threads

    def place(self, inputs: Inputs) -> Any:
        """On the CPU, images in the memory format."""
        return arguments(tree_map(partial(_placed, LAYOUTS[self.layout]), inputs))

    def run(self, placed: Any) -> Any:
        """Calls it."""
        positional, named = placed
        return self._call(*positional, **named)

    def outputs(self, found: Any) -> list[Tensor]:
        """The tensors."""
        return [tensor.clone() for tensor in tensors_of(found)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Without gradients, on so many threads."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)


class Eager(Runtime):
    """PyTorch, operation by operation, in float32, on the CPU.

    Weights are laid out like the images, whatever format they come in: the same weights laid out otherwise take up
    to 1.2 times as long.
    """

    name: ClassVar[str] = "eager"
    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)

    def prepare(
        self,
        network: nn.Module,
        example_inputs: Inputs,
        threads: int = 1,
        *,
        batch: Batch | None = None,
        layout: str = "",
    ) -> Session:
        """Copies the network."""
        layout = layout or self.layouts[0]
        moved = copy.deepcopy(network).cpu().eval()
        for tensor in (*moved.parameters(), *moved.buffers()):
            if tensor.dim() == 4:  # the memory formats are of images
                tensor.data = tensor.data.contiguous(memory_format=LAYOUTS[layout])
        return TorchSession(moved, self.callable(moved), threads, layout)

    def callable(self, network: nn.Module) -> Any:
        """What is called in the place of a network."""
        return network


class Compiled(Eager):
    """PyTorch's compiler, `torch.compile`, for one batch size at a time.

    The first pass at a batch size compiles, which takes seconds and a C++ compiler.
    """

    name: ClassVar[str] = "compiled"
    _numbers = itertools.count()

    def callable(self, network: nn.Module) -> Any:
        """Compiles it.

        The compiler keeps a few results for each function, and runs a function uncompiled beyond. So that any
        number of networks can be compiled, each one has a function of its own.
        """

        def forward(*positional: Any, **named: Any) -> Any:
            return network(*positional, **named)

        forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(self._numbers)}")
        return torch.compile(forward, dynamic=False)

    def prepare(
        self,
        network: nn.Module,
        example_inputs: Inputs,
        threads: int = 1,
        *,
        batch: Batch | None = None,
        layout: str = "",
    ) -> Session:
        """Copies the network and compiles it, for the batch that is given or that of the example inputs."""
        session = super().prepare(network, example_inputs, threads, layout=layout)
        try:
            session(example_inputs if batch in (None, DYNAMIC) else repeated(example_inputs, int(batch)))
        except Exception as error:  # the compiler, the C++ compiler behind it, or the network itself
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"torch.compile cannot compile {type(network).__name__}: {reason}") from error
        return session


def _placed(layout: torch.memory_format, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.cpu().contiguous(memory_format=layout) if value.dim() == 4 else value.cpu()
