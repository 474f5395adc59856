"""Proxies: what a candidate is worth after fine-tuning, said without fine-tuning it.

A proxy heals the cut network, more or less dearly, and runs it on the scoring examples; or it looks at the
architecture alone. They are rungs of a ladder: a search screens by a cheap one and promotes a share to dearer ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.paper import Paper
from espalier.pruning.slimming.quantised_layers import QuantisedLinear
from espalier.pruning.slimming.removed import Removed
from espalier.pruning.torch_private import BATCH_NORMS, tree_leaves, tree_map
from espalier.search.evaluation.candidate_networks import CandidateNetworks
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.least_squares import ridge
from espalier.search.tasks.task import Need

Repair = Callable[[CandidateNetworks, nn.Module, Candidate], None]
"""Makes a cut network better, in place."""
PATCHES = 8
"""Positions per image at which a convolution is reconstructed."""


class Proxy(ABC):
    """One way to judge a candidate.

    Attributes:
        needs: what it takes of a task beside a score.
        paper: where it is from.
    """

    needs: tuple[Need, ...]
    paper: Paper | None

    @abstractmethod
    def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> nn.Module | float:
        """The network to run on the scoring examples, or the signal itself."""


@dataclass(frozen=True)
class Healed(Proxy):
    """The cut network after some repairs.

    Attributes:
        repairs: in order.
        needs: of all of them.
        paper: where it is from.
    """

    repairs: tuple[Repair, ...] = ()
    needs: tuple[Need, ...] = ()
    paper: Paper | None = None

    def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> nn.Module:
        """Cuts and repairs."""
        network = networks.cut(candidate)
        for repair in self.repairs:
            repair(networks, network, candidate)
        return network


@dataclass(frozen=True)
class Signal(Proxy):
    """A number that the network gives without scoring examples; higher is better.

    Attributes:
        measure: networks and candidate -> the number.
        needs: to do so.
        paper: where it is from.
    """

    measure: Callable[[CandidateNetworks, Candidate], float]
    needs: tuple[Need, ...] = ()
    paper: Paper | None = None

    def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> float:
        """Measures."""
        return self.measure(networks, candidate)


# -- repairs


def recalibrate(networks: CandidateNetworks, network: nn.Module, candidate: Candidate) -> None:
    """BN statistics of the calibration examples, where there are any."""
    if batches := networks.calibration:
        networks.runner.recalibrate(network, batches)


def use_batch_statistics(networks: CandidateNetworks, network: nn.Module, candidate: Candidate) -> None:
    """Every scoring batch is normalised by its own statistics: no calibration pass."""
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.train()
        elif isinstance(module, Removed):
            module.recalibrate()


def solve_head(networks: CandidateNetworks, network: nn.Module, candidate: Candidate) -> None:
    """The last layer solved for the labels of the calibration examples."""
    networks.spec.scoring.solve_head(networks.runner, network)


def reconstruct(networks: CandidateNetworks, network: nn.Module, candidate: Candidate) -> None:
    """Solves every convolution and linear layer, as it is reached, for the dense network's outputs.

    Least squares over sampled positions of the calibration images, each layer on what the layers solved before it
    give. Grouped convolutions, layers that run more than once or share their weights, and those whose outputs are
    not sampled as the dense network's are left as they are.
    """
    dense = networks.runner.once(("outputs", candidate.rung), lambda: _dense_outputs(networks, candidate.rung))
    assign_again = networks.cut(candidate)  # the dense pass of a first call used the same modules
    assert assign_again is network
    keep = networks.spec.keep(candidate)
    rows = {
        slot.tensor: networks.spec.graph.kept(slot.channels, keep)
        for slot in networks.spec.graph.slots
        if not slot.dim
    }
    hooks = []
    for path, module in _solvable(network, networks.spec.graph).items():
        if path in dense:
            wanted = dense[path]
            if f"{path}.weight" in rows:
                wanted = wanted[:, rows[f"{path}.weight"].to(wanted.device)]

            def solve(layer: nn.Module, inputs: tuple[Tensor, ...], wanted: Tensor = wanted) -> None:
                _solve(layer, inputs[0], wanted)

            hooks.append(module.register_forward_pre_hook(solve))
    try:
        with torch.no_grad():
            network.eval()
            _in_one_batch(networks, network)
    finally:
        for hook in hooks:
            hook.remove()


def steps(count: int) -> Repair:
    """So many steps of SGD, by the recipe of fine-tuning, or of the task's own training."""

    def take(networks: CandidateNetworks, network: nn.Module, candidate: Candidate) -> None:
        networks.spec.scoring.step(networks.runner, network, count)

    return take


# -- signals of the architecture


def parameters(networks: CandidateNetworks, candidate: Candidate) -> float:
    """Number of parameters: at equal MACs more of them are often better."""
    return float(networks.spec.graph.params(candidate.widths))


def synflow(networks: CandidateNetworks, candidate: Candidate) -> float:
    """Log of sum |w dR/dw|, all weights made positive, all inputs one."""
    network = networks.cut(candidate)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.abs_()
        for module in network.modules():
            if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                module.running_mean = torch.zeros_like(module.running_mean)
                assert module.running_var is not None
                module.running_var = torch.ones_like(module.running_var)
    weights = [tensor.detach().double() for tensor in network.parameters()]
    network.double()
    loss = _sum(run_on(network, _ones(networks)))
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    total = sum(
        float((weight * gradient).abs().sum())
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    )
    network.float()
    return float(torch.tensor(max(total, 1e-300)).double().log())


def gradient_norm(networks: CandidateNetworks, candidate: Candidate) -> float:
    """-log of the norm of the gradient of the task's loss on one calibration batch: less is left to learn."""
    network = networks.recalibrated(candidate)
    loss = networks.spec.scoring.loss(networks.runner, network)
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    squares = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
    return -0.5 * float(torch.tensor(max(squares, 1e-300)).log())


_EAGLE_EYE = Paper("Li et al.", "ECCV 2020", "arXiv 2007.02491")
_CHANNEL_PRUNING = Paper("He et al.", "ICCV 2017", "arXiv 1707.06168")

PROXIES: dict[str, Proxy] = {
    "as_cut": Healed(),
    "batch_statistics": Healed((use_batch_statistics,)),
    "recalibrated": Healed((recalibrate,), ("batches",), _EAGLE_EYE),
    "ridge": Healed((recalibrate, solve_head), ("batches", "labels")),
    "reconstructed": Healed((reconstruct, recalibrate), ("batches",), _CHANNEL_PRUNING),
    "reconstructed_ridge": Healed((reconstruct, recalibrate, solve_head), ("batches", "labels"), _CHANNEL_PRUNING),
    "sgd5": Healed((steps(5), recalibrate), ("steps",)),
    "sgd10": Healed((steps(10), recalibrate), ("steps",)),
    "sgd20": Healed((steps(20), recalibrate), ("steps",)),
    "sgd50": Healed((steps(50), recalibrate), ("steps",)),
    "parameters": Signal(parameters),
    "synflow": Signal(synflow, (), Paper("Tanaka et al.", "NeurIPS 2020", "arXiv 2006.05467")),
    "gradient_norm": Signal(
        gradient_norm, ("batches", "loss"), Paper("Abdelfattah et al.", "ICLR 2021", "arXiv 2101.08134")
    ),
}
"""Name in a config -> proxy."""

STEPS = {"sgd5": 5, "sgd10": 10, "sgd20": 20, "sgd50": 50}
"""Steps of SGD of the proxies that take any."""


# -- least squares


def _in_one_batch(networks: CandidateNetworks, network: nn.Module) -> None:
    """A pass over the calibration examples at once: layers are solved on all of them.

    Raises:
        ConfigError: the batches cannot be put together.
    """
    batches = [tree_leaves(batch) for batch in networks.calibration]
    try:
        columns = zip(*batches, strict=True)
        joined = iter([torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in columns])
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"layers are reconstructed on all batches at once, and these differ: {error}") from error
    run_on(network, tree_map(lambda _: next(joined), networks.calibration[0]))


def _ones(networks: CandidateNetworks) -> Inputs:
    """One example, every number of which is one, in double precision."""

    def ones(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return networks.runner.laid_out(torch.ones_like(value[:1])).to(networks.runner.device).double()

    found: Inputs = tree_map(ones, networks.spec.graph.example)
    return found


def _sum(outputs: Any) -> Tensor:
    """Of all numbers that a network gives."""
    tensors = [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.is_floating_point()]
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def _dense_outputs(networks: CandidateNetworks, rung: int) -> dict[str, Tensor]:
    """Path -> outputs, (n, k), of the unpruned network's layers at the sampled positions."""
    network = networks.whole(rung)
    found: dict[str, Tensor] = {}
    runs = Counter[str]()

    def keep(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[path] += 1
            found[path] = _at_positions(output.float(), output.shape).clone()  # what follows may write into it

        return hook

    hooks = [
        module.register_forward_hook(keep(path)) for path, module in _solvable(network, networks.spec.graph).items()
    ]
    try:
        with torch.no_grad():
            _in_one_batch(networks, network)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: outputs for path, outputs in found.items() if runs[path] == 1}


def _solvable(network: nn.Module, graph: ChannelGraph) -> dict[str, nn.Module]:
    """Path -> layer, of those that can be solved alone: their weights are no other's, by whatever name."""
    readers = Counter(name for operation in graph.operations for name in operation.tensors)
    names = dict(network.named_parameters(remove_duplicate=False))
    holders = Counter(map(id, names.values()))
    own = {id(parameter) for name, parameter in names.items() if holders[id(parameter)] == 1 and readers[name] < 2}
    return {
        path: module
        for path, module in network.named_modules()
        if _has_solution(module) and all(id(parameter) in own for parameter in module.parameters())
    }


def _has_solution(module: nn.Module) -> bool:
    convolution = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    return (convolution and not isinstance(module.padding, str)) or type(module) in (nn.Linear, QuantisedLinear)


def _positions(shape: torch.Size) -> Tensor:
    """The sampled positions of an output (b, k, h, w), the same whatever its channels: (b, p)."""
    area = shape[2] * shape[3]
    generator = torch.Generator().manual_seed(area)
    return torch.randint(area, (shape[0], min(PATCHES, area)), generator=generator)


def _at_positions(output: Tensor, shape: torch.Size) -> Tensor:
    if output.dim() != 4:
        return output.flatten(0, -2)
    picked = _positions(shape)[:, None].expand(-1, output.shape[1], -1).to(output.device)
    return output.flatten(2).gather(2, picked).transpose(1, 2).flatten(0, 1)


def _solve(layer: nn.Module, inputs: Tensor, wanted: Tensor) -> None:
    """Puts the least-squares weights into a layer, for what it reads now."""
    columns = _patches(inputs.float(), layer) if isinstance(layer, nn.Conv2d) else inputs.float().flatten(0, -2)
    if len(columns) != len(wanted) or len(columns) < columns.shape[1]:
        return
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    old = weight.detach().flatten(1).T
    now = columns @ old + (bias.detach() if isinstance(bias, Tensor) else 0.0)
    new = old + ridge(columns, wanted - now)  # where data is scarce, the cut weights hardly move
    weight.copy_(new.T.reshape(weight.shape))


def _patches(inputs: Tensor, layer: nn.Conv2d) -> Tensor:
    """What the convolution reads at the sampled positions: (b p, c kh kw)."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = (int(padding) for padding in layer.padding)
    padded = F.pad(inputs, (pw, pw, ph, ph))
    height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    picked = _positions(torch.Size([len(inputs), 0, height, width])).to(inputs.device)  # (b, p)
    rows = (picked // width * sh)[..., None] + dh * torch.arange(kh, device=inputs.device)  # (b, p, kh)
    columns = (picked % width * sw)[..., None] + dw * torch.arange(kw, device=inputs.device)  # (b, p, kw)
    image = torch.arange(len(inputs), device=inputs.device)[:, None, None, None]
    found = padded.permute(0, 2, 3, 1)[image, rows[..., None], columns[:, :, None, :]]  # (b, p, kh, kw, c)
    return found.flatten(0, 1).permute(0, 3, 1, 2).flatten(1)
