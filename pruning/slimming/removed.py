"""What stands in a network for a module of a residual branch that was taken out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.branches import Branch, replaced
from espalier.pruning.tracing.running import tensors_of


class Removed(nn.Module):
    """Gives what a module gave, at no cost: one zero for each tensor that leads nowhere, and constants.

    Args:
        result: what it gives, as JSON: ``{"value": v}``, ``{"list": [...]}``, ``{"tuple": [...]}``,
            ``{"dict": {...}}``, or of a tensor ``{"sizes": [...], "constant": name}``. A size is a number; a pair
            (n, m) for n / m times the input's; or 0 for the constant's own. The constant is in a buffer of that
            name, and given as it is where all sizes are one, to be broadcast; without a name, there are zeros. If
            it hung on statistics of a batch norm, "recalibrated" is the buffer of what it is after recalibration.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__()
        self.result = result
        for leaf in _constants(result):
            for kind in ("constant", "recalibrated"):
                if kind in leaf:
                    self.register_buffer(leaf[kind], torch.empty(0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What stands in for the module's result, whatever it is given."""
        given = next((each for each in tensors_of((args, kwargs)) if each.is_floating_point()), None)
        return self._made(self.result, given)

    def recalibrate(self) -> None:
        """Gives from now on what the module would give once its batch norms had taken statistics anew."""
        for leaf in _constants(self.result):
            if "recalibrated" in leaf:
                self._buffers[leaf["constant"]] = getattr(self, leaf["recalibrated"]).clone()

    def _made(self, result: Mapping[str, Any], given: Tensor | None) -> Any:
        if "sizes" in result:
            return self._tensor(result, given)
        if "dict" in result:
            return {name: self._made(item, given) for name, item in result["dict"].items()}
        if "list" in result:
            return [self._made(item, given) for item in result["list"]]
        if "tuple" in result:
            return tuple(self._made(item, given) for item in result["tuple"])
        return result["value"]

    def _tensor(self, result: Mapping[str, Any], given: Tensor | None) -> Tensor:
        constant: Tensor | None = getattr(self, result["constant"]) if "constant" in result else None
        if constant is not None and all(size == 1 for size in result["sizes"]):
            return constant
        given = torch.zeros(()) if given is None else given
        sizes = []
        for dim, size in enumerate(result["sizes"]):
            if isinstance(size, int):
                sizes.append(size if size or constant is None else constant.shape[dim])
            else:
                ours, theirs = size
                sizes.append(given.shape[dim] if ours == theirs else -(-given.shape[dim] * ours // theirs))
        return given.new_zeros(sizes) if constant is None else constant.expand(sizes).clone()


def take_out(network: nn.Module, branches: Iterable[Branch]) -> None:
    """Replaces the modules of branches, in place; what they give is still to be assigned to their buffers."""
    for path, branch in replaced(branches).items():
        replace_module(network, path, Removed(branch.modules[path]))


def constants_of(branches: Sequence[Branch], state: Mapping[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    """Buffer by buffer what the modules of branches give that are out.

    Args:
        branches: those.
        state: the dense network's tensors by name.
        keep: what is kept, bool (n_channels,).
    """
    of = replaced(branches)
    found: dict[str, Tensor] = {}
    for branch in branches:
        names = [name if of.get(name.rpartition(".")[0]) is branch else None for name in branch.names]
        if any(names):
            constants = branch.constants(state, keep)
            found |= {name: value for name, value in zip(names, constants, strict=True) if name is not None}
    return found


def replace_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of another one, under all of its names.

    Raises:
        ConfigError: there is no such module.
    """
    try:
        old = network.get_submodule(path)
    except AttributeError:
        raise ConfigError(f"the network has no module {path}, which was taken out of it") from None
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module.train(old.training)
    _run_own_code(network)


def _run_own_code(network: nn.Module) -> None:
    """Keeps PyTorch's encoder from its fused kernel, which reads the weights of modules that were taken out."""
    for module in network.modules():
        if not isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            continue
        if any(isinstance(inside, Removed) for inside in module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0  # none of those that the kernel knows


def _constants(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tensors among what is given that are constants."""
    if "constant" in result:
        return [result]
    inside = result["dict"].values() if "dict" in result else result.get("list", result.get("tuple", ()))
    return [leaf for item in inside for leaf in _constants(item)]
