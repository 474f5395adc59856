"""What the training loop minimises: cross-entropy, of mixtures too, and the distance to the dense network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Targets:
    """What images show.

    Attributes:
        labels: class of each, (b,).
        others: class of what each is mixed with, (b,).
        share: of the first in the mixture; 1 where nothing is mixed.
    """

    labels: Tensor
    others: Tensor
    share: float = 1.0

    def split(self, parts: int) -> Iterator[Targets]:
        """As `Tensor.tensor_split` parts the images."""
        for labels, others in zip(self.labels.tensor_split(parts), self.others.tensor_split(parts), strict=True):
            yield Targets(labels, others, self.share)

    def cross_entropy(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Mean over the images."""
        loss = F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing)
        if self.share == 1:
            return loss
        other = F.cross_entropy(logits, self.others, label_smoothing=label_smoothing)
        return self.share * loss + (1 - self.share) * other


class Distillation:
    """The distance of a pruned network to the dense one, on the images that it is trained on.

    Args:
        teacher: the dense network, in eval mode, on the device of training; None for no distance.
        share: of the divergence from the teacher's prediction in the loss (Hinton et al. 2015, arXiv 1503.02531).
        temperature: at which predictions are compared.
        attention: what the distance of attention maps is multiplied by (Zagoruyko and Komodakis, ICLR 2017,
            arXiv 1612.03928): the sum of squares over a layer's channels, which needs no equal widths, after the
            last layer at each resolution.
    """

    def __init__(self, teacher: nn.Module | None, share: float, temperature: float, attention: float) -> None:
        self._teacher = teacher if share or attention else None
        self._share, self._temperature, self._attention = share, temperature, attention
        self._layers: tuple[str, ...] = ()
        self._maps: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, student: nn.Module, example: Tensor) -> Iterator[None]:
        """Reads the student's layers while this is entered.

        Args:
            student: the network that is trained.
            example: images (b, channels, height, width), one at least.
        """
        if self._teacher is not None and self._attention:
            with torch.no_grad():
                self._layers = last_of_each_resolution(self._teacher, example)
        with ExitStack() as stack:
            _hooked(stack, student, self._layers, self._maps)
            yield
        self._maps.clear()

    def add_to(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """The loss with the distance in it; called after the student's pass on these inputs."""
        if self._teacher is None:
            return loss
        taught: dict[str, Tensor] = {}
        with torch.no_grad(), ExitStack() as stack:
            _hooked(stack, self._teacher, self._layers, taught)
            expected = (self._teacher(inputs).float() / self._temperature).log_softmax(1)
        if self._share:
            own = (logits / self._temperature).log_softmax(1)
            divergence = F.kl_div(own, expected, reduction="batchmean", log_target=True) * self._temperature**2
            loss = (1 - self._share) * loss + self._share * divergence
        for layer in self._layers:
            loss = loss + self._attention * (self._maps[layer] - taught[layer]).square().mean()
        return loss


def last_of_each_resolution(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the leaf modules that are the last to give maps of a height and width of more than one pixel."""
    last: dict[tuple[int, ...], str] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
                last[tuple(output.shape[2:])] = name

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if not any(True for _ in module.children()):
                stack.callback(module.register_forward_hook(note(name)).remove)
        network(example)
    return tuple(last.values())


def _hooked(stack: ExitStack, network: nn.Module, layers: tuple[str, ...], maps: dict[str, Tensor]) -> None:
    """Puts the normalised attention map of each layer's last output, (b, height * width), into `maps`."""

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            maps[name] = F.normalize(output.float().square().mean(1).flatten(1))

        return hook

    for name in layers:
        stack.callback(network.get_submodule(name).register_forward_hook(note(name)).remove)
