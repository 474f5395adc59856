"""Weights that all widths share, trained in anybody's loop: every pass runs the network of other widths.

In a pass, tensors of the network are the slices that other widths have, its integers count them, and gradients
come to the slices alone. So what is trained is what `slim` cuts, to the last channel of a layer norm, and a pass
costs what the narrow network costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.paper import Paper
from espalier.pruning.slimming.surgery import slices_of
from espalier.pruning.supernet.weight_generator import WeightGenerator
from espalier.pruning.torch_private import OnceAPass, computed_weights, tell_recurrent
from espalier.pruning.tracing.following import repeated

PAPER = Paper("Yu and Huang", "ICCV 2019", "arXiv 1903.05134")
GENERATOR = "espalier_generator"
"""How the names of its parameters begin: in the network while it is trained, and where they are kept."""
STEPS = "espalier_supernet_steps"
"""Name of the buffer that counts steps."""

Draw = Callable[[np.random.Generator], Tensor]
"""What a pass keeps, bool (n_channels,)."""


@contextmanager
def weights_shared(
    network: nn.Module, graph: ChannelGraph, draw: Draw, *, generator: bool = False, seed: int = 0
) -> Iterator[SharedPasses]:
    """Trains weights that all widths share, in any training loop.

    While the block is open, every pass in training mode is one of other widths. In eval mode the whole network
    runs. The paper runs the widest, the narrowest and some widths between in each step; here a loop of anybody's
    runs one, and `draw` says which.

    - What is drawn depends on `seed`, the number of the step and of the passes since it alone.
    - A generator's weights are parameters of the network within the block, so that an optimiser that is made there
      trains them; a buffer counts steps. A checkpoint of network and optimiser resumes both.
    - Copies of the network run whole, and so does all that is not ``network(x)`` in training mode.

    Args:
        network: the network that the graph was traced from, or one of the same structure, called as it is,
            ``network(x)``.
        graph: its channel graph.
        draw: what the next pass keeps; no group may be left without channels.
        generator: whether a second network makes the weights of every width; see `WeightGenerator`.
        seed: of what is drawn.

    Raises:
        ConfigError: the graph is not that of the network, weights are computed from other tensors, layers are
            computed again in the backward pass, or the block lies within another one.
    """
    shared = SharedPasses(network, graph, draw, generator, seed)
    handles = shared.attach()
    try:
        yield shared
    finally:
        for handle in handles:
            handle.remove()
        shared.detach()


class SharedPasses:
    """Passes of one network with other widths each.

    Attributes:
        steps: that optimisers took behind such passes, once the block has ended; also before an interruption.
        tensors: of the network, and of its generator under ``espalier_generator.``, once the block has ended.
    """

    def __init__(self, network: nn.Module, graph: ChannelGraph, draw: Draw, generator: bool, seed: int) -> None:
        if any(name == STEPS for name, _ in network.named_buffers(recurse=False)):
            raise ConfigError("the weights of this network are shared already: blocks cannot lie within each other")
        self._network, self._graph, self._draw, self._seed = network, graph, draw, seed
        computed = tuple(f"{path}." for path in computed_weights(network))
        if found := next((slot.tensor for slot in graph.slots if slot.tensor.startswith(computed)), None):
            raise ConfigError(
                f"shared weights are slices, and {found} is computed from other tensors, as by weight norm: take "
                "that off with torch.nn.utils.parametrize.remove_parametrizations"
            )
        cut, names = {slot.tensor for slot in graph.slots}, {id(held): name for name, held in _held(network)}
        self._places = [
            (module, own, names[id(held)])
            for module in network.modules()
            for own, held in (*module._parameters.items(), *module._buffers.items())
            if held is not None and names[id(held)] in cut
        ]
        self._generator: WeightGenerator | None = None
        if generator:
            shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
            self._generator = WeightGenerator(graph, shapes, seed)
        self._passes = 0  # since the last step
        self._undo: list[Callable[[], None]] = []  # what the pass under way has changed
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}

    # -- in and out of the network

    def attach(self) -> list[Any]:
        """Gives the network its buffer and hooks: handles to take the hooks off."""
        device = next(self._network.parameters()).device
        self._network.register_buffer(STEPS, torch.zeros((), dtype=torch.int64, device=device))
        if self._generator is not None:  # not as a module: nn.Sequential would run it
            for name, parameter in self._generator.to(device).named_parameters():
                self._network.register_parameter(_flat(name), parameter)
        return [
            self._network.register_forward_pre_hook(self._before_pass),
            self._network.register_forward_hook(self._after_pass, always_call=True),
            register_optimizer_step_post_hook(self._after_step),
            *OnceAPass(self._network, "shared weights").attach(),
        ]

    def detach(self) -> None:
        """Takes buffer and generator off the network, whose own weights are the shared ones."""
        self._after_pass(self._network)  # of one that was interrupted
        self.steps = int(self._network.get_buffer(STEPS))
        delattr(self._network, STEPS)
        if self._generator is not None:
            for name, _ in self._generator.named_parameters():
                delattr(self._network, _flat(name))
        self.tensors = dict(_held(self._network)) | generator_tensors(self._generator)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedPasses:
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigError("a network cannot be pickled while its weights are shared: save its state_dict")

    # -- passes

    def _before_pass(self, network: nn.Module, _: Any) -> None:
        if network is not self._network or not (network.training and torch.is_grad_enabled()):
            return
        steps = int(network.get_buffer(STEPS))
        keep = self._draw(np.random.default_rng([self._seed, steps, self._passes]))
        if not self._graph.widths(keep).all():
            raise ConfigError("shared weights are of widths of one channel and more, and one of 0 was drawn")
        held = {name: tensor for name, tensor in _held(network) if not name.startswith((GENERATOR, STEPS))}
        slices = slices_of(held if self._generator is None else self._generator(held, keep), self._graph, keep)
        self._passes += 1
        for module, own, name in self._places:
            if own in module._buffers:
                self._put_buffer(module, own, name, keep, slices[name])
            else:
                module.__dict__[own] = slices[name]  # found before the parameter, which stays where it is
                self._undo.append(partial(module.__dict__.pop, own, None))
        for (path, integer, item), value in self._graph.integers_of(keep).items():
            module = network.get_submodule(path)
            old = getattr(module, integer)
            changed = value if item is None else type(old)([*old[:item], value, *old[item + 1 :]])
            self._set(module, integer, changed)
        for module, own, name in self._places:
            for attribute, (tensor, dim, times) in repeated(module).items():
                if tensor == own:
                    self._set(module, attribute, slices[name].shape[dim] * times)
            tell_recurrent(module)

    def _set(self, module: nn.Module, attribute: str, value: Any) -> None:
        self._undo.append(partial(setattr, module, attribute, getattr(module, attribute)))
        setattr(module, attribute, value)

    def _put_buffer(self, module: nn.Module, own: str, name: str, keep: Tensor, narrow: Tensor) -> None:
        """Has a module write to a slice; what is in its place after the pass goes where that was cut from."""
        whole = module._buffers[own]
        assert whole is not None
        module._buffers[own] = narrow

        def back() -> None:
            left, module._buffers[own] = module._buffers[own], whole
            place = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
            for slot in self._graph.slots:
                if slot.tensor == name:
                    kept = self._graph.kept(slot.channels, keep).nonzero()[:, 0].to(whole.device)
                    place = place.index_select(slot.dim, kept)
            if left is not None and left.shape == place.shape:
                flat = whole.clone(memory_format=torch.contiguous_format).flatten()
                flat[place.flatten()] = left.detach().to(flat).flatten()
                whole.copy_(flat.view(whole.shape))

        self._undo.append(back)

    @torch.no_grad()
    def _after_pass(self, network: nn.Module, *given: Any) -> None:
        if network is not self._network:
            return
        while self._undo:
            self._undo.pop()()
        for module, _, _ in self._places:
            tell_recurrent(module)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = {id(parameter) for parameter in self._network.parameters()}
        stepped = any(id(held) in own for group in optimizer.param_groups for held in group["params"])
        if stepped and self._passes:
            self._network.get_buffer(STEPS).add_(1)
            self._passes = 0


def _held(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, each once."""
    return [*network.named_parameters(), *network.named_buffers()]


def _flat(name: str) -> str:
    return f"{GENERATOR}_{name.replace('.', '_')}"


def generator_tensors(generator: WeightGenerator | None) -> dict[str, Tensor]:
    """Those of a generator, by the names under which they are kept beside the network's."""
    if generator is None:
        return {}
    return {f"{GENERATOR}.{name}": parameter for name, parameter in generator.named_parameters()}


def generator_in(tensors: Mapping[str, Tensor], graph: ChannelGraph, network: nn.Module) -> WeightGenerator | None:
    """The generator whose tensors are kept beside those of a network; None where there are none."""
    prefix = f"{GENERATOR}."
    own = {  # aligned in memory, as what is multiplied may depend on it in the last bit
        name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)
    }
    if not own:
        return None
    made = WeightGenerator(graph, {name: tensors[name].shape for name, _ in network.named_parameters()})
    made.load_state_dict(own, assign=True)
    return made.to(next(iter(own.values())).device).requires_grad_(False)
