"""What runs a network: PyTorch, or a runtime that takes it as a file."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from espalier.errors import MissingPackage
from espalier.pruning.graph.inputs import Inputs

Batch = int | Literal["dynamic"]
"""Examples of a pass: a fixed number, or any."""


class Session(ABC):
    """A network that is ready to run.

    What is done once for some inputs (`place`) is apart from what is timed (`run`).
    """

    layout: str = ""
    """Memory format of weights and images, where the runtime leaves it to the caller."""

    @abstractmethod
    def place(self, inputs: Inputs) -> Any:
        """Inputs as `run` takes them."""

    @abstractmethod
    def run(self, placed: Any) -> Any:
        """One pass, inside of `active`."""

    @abstractmethod
    def outputs(self, found: Any) -> list[Tensor]:
        """The tensors of what `run` gives, in order."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Holds what the runtime needs while it runs, such as its number of threads."""
        yield

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The network's output tensors, on the CPU, in order."""
        with self.active():
            return self.outputs(self.run(self.place(inputs)))


class Runtime(ABC):
    """Prepares networks to run.

    Attributes:
        name: in `RUNTIMES`.
        packages: modules that it needs, its own first.
        extra: of espalier, that installs them.
        layouts: memory formats in which a network can be prepared, for the caller to try.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str] = ""
    layouts: ClassVar[tuple[str, ...]] = ("",)

    @classmethod
    def check(cls) -> None:
        """Refuses to go on without the runtime.

        Raises:
            MissingPackage: it is not installed; names the extra.
        """
        require(f"the runtime {cls.name}", cls.packages, cls.extra)

    @property
    def version(self) -> str:
        """Of the runtime that is installed."""
        self.check()
        return importlib.metadata.version(self.packages[0])

    @abstractmethod
    def prepare(
        self,
        network: nn.Module,
        example_inputs: Inputs,
        threads: int = 1,
        *,
        batch: Batch | None = None,
        layout: str = "",
    ) -> Session:
        """Makes a network ready.

        Args:
            network: run in eval mode; left as it is.
            example_inputs: what it takes.
            threads: that one pass may use.
            batch: examples of a pass; by default as many as the example inputs have.
            layout: one of `layouts`.

        Raises:
            MissingPackage: the runtime is not installed.
            ExportError: the network cannot be given to it.
        """


def require(what: str, packages: tuple[str, ...], extra: str) -> None:
    """Refuses to go on without packages.

    Raises:
        MissingPackage: one is not installed; names the extra that installs it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingPackage(f"{what} needs {' and '.join(missing)}: pip install 'espalier[{extra}]'")
