"""Torch-Pruning itself (Fang et al., CVPR 2023, arXiv 2301.12900), as a method beside the others.

It trains, ranks and cuts by its own code, on the network, images and recipe that all methods have. Which channels
it kept is read from a copy whose weights are their own row numbers, cut by its record of what it cut. espalier then
cuts the same from the same network, and both must compute the same.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from espalier.errors import EspalierError, MissingPackage, raised
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Ints
from espalier.pruning.graph.groups import WRITING_ROLES
from espalier.pruning.graph.inputs import Inputs, run_on
from espalier.pruning.seeding import seeded
from espalier.pruning.slimming.surgery import assign, slim
from espalier.pruning.torch_private import tree_leaves, tree_map
from espalier.search.files.tensor_files import digest, tensors_of
from espalier.search.methods.method import Choice, Material, Method
from espalier.search.tasks.device import device_here

Bools = npt.NDArray[np.bool_]

NAME = "torch_pruning"
"""Of what ranks channels inside their groups."""
STEPS = 400
"""In which Torch-Pruning goes from the whole network to none of it, unless it is within the budget before."""
STRENGTH = 5e-4
"""Of its group regularisation, as in its own CIFAR recipe."""
TOLERANCE = 1e-3
"""Between outputs of its network and ours, relative to the greatest."""


class TorchPruning(Method):
    """Its global ranking by group norms, of the dense network or of one trained with its regularisation.

    Args:
        sparse: whether the network is trained with `GroupNormPruner` first, as long as one of the ladder.
    """

    criterion, own_network = NAME, True

    def __init__(self, sparse: bool) -> None:
        self._sparse = self.trains = sparse
        self.words = "Torch-Pruning itself: global pruning by group norms" + (
            " of a network trained with its group regularisation, as long as one of the ladder"
            if sparse
            else " of the dense network"
        )

    def check(self) -> None:
        """Whether it is installed.

        Raises:
            MissingPackage: it is not.
        """
        try:
            importlib.import_module("torch_pruning")
        except ImportError as error:
            raise MissingPackage("torch_pruning needs Torch-Pruning: pip install 'espalier[peers]'") from error

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Trains, cuts, and finds out what was kept."""
        space = material.spaces[budget]
        graph, example = space.graph, space.graph.example
        network = material.dense_network()
        with _quiet():
            if self._sparse:
                network = self._trained(material, graph, network)
            kept = _kept(graph, network, example, lambda widths: bool(space.budget.fits(graph, widths)))
        return material.choice_of_own(NAME, network, kept, evaluations=1)

    def _trained(self, material: Material, graph: ChannelGraph, network: nn.Module) -> nn.Module:
        """The network after Torch-Pruning's sparse training, made once for all budgets.

        Raises:
            EspalierError: the training fails, or has several processes, which its code does not know.
        """
        assert material.training is not None
        task, stage = material.training
        recipe = task.recipe(stage)
        if recipe.get("processes", 1) > 1:
            raise EspalierError("Torch-Pruning's sparse training takes one process: set training.processes to 1")
        made = [
            digest(tensors_of(network)),
            recipe,
            task.digest(),
            graph.digest,
            STRENGTH,
            version("torch-pruning"),
        ]

        def train(checkpoint: Path) -> dict[str, Tensor]:
            here = network.to(device_here(task.home))
            own = set(map(id, here.parameters()))
            pruner = _pruner(here, graph, graph.example, set())

            def regularize(optimizer: torch.optim.Optimizer, *_: object) -> None:
                if own & {id(each) for group in optimizer.param_groups for each in group["params"]}:
                    pruner.regularize(here)

            hook = register_optimizer_step_pre_hook(regularize)
            try:
                task.train(here, stage, seed=0, checkpoint=checkpoint)
            finally:
                hook.remove()
            return tensors_of(here.cpu())

        tensors = material.trained_once("sparse", made, "Torch-Pruning's sparse training", train)
        assign(network, tensors, {})
        return network.eval()


def _pruner(network: nn.Module, graph: ChannelGraph, example: Inputs, whole: set[str]) -> Any:
    """Torch-Pruning's, which leaves alone what espalier does."""
    import torch_pruning

    prunable = {
        member.tensor.rpartition(".")[0]
        for group in graph.groups
        if group.frozen is None
        for member in group.members
        if member.role in WRITING_ROLES
    } - whole
    left = [
        module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() > 1 and name not in prunable
    ]
    return torch_pruning.pruner.GroupNormPruner(
        network,
        _inputs(example, next(network.parameters()).device),
        importance=torch_pruning.importance.GroupMagnitudeImportance(normalizer="max"),
        reg=STRENGTH,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=left,
    )


def _kept(graph: ChannelGraph, network: nn.Module, example: Inputs, fits: Callable[[Ints], bool]) -> Bools:
    """Which channels Torch-Pruning keeps once it has cut enough, group after group: (n_channels,).

    Where it breaks the streams of a network, as it does behind the padded shortcuts of CIFAR's ResNets, only what
    one layer writes is pruned.

    Raises:
        EspalierError: it fails, cannot reach the budget, or cuts something else than whole channels.
    """
    streams = {
        member.tensor.rpartition(".")[0]
        for group in graph.groups
        if sum(member.role == "out" for member in group.members) > 1
        for member in group.members
        if member.role in WRITING_ROLES
    }
    try:
        try:
            return _cut(graph, network, example, fits, set())
        except Exception:
            return _cut(graph, network, example, fits, streams)
    except EspalierError:
        raise
    except Exception as error:  # of many kinds, plain ones too
        raise EspalierError(f"Torch-Pruning cannot prune this network: {raised(error)}") from error


def _cut(
    graph: ChannelGraph, network: nn.Module, example: Inputs, fits: Callable[[Ints], bool], whole: set[str]
) -> Bools:
    """The same with the outputs of some layers left whole."""
    cut = copy.deepcopy(network).eval()
    pruner = _pruner(cut, graph, example, whole)
    for group in itertools.chain.from_iterable(pruner.step(interactive=True) for _ in range(STEPS)):
        group.prune()
        if not fits(_widths(graph, cut)):
            continue
        kept = _read_off(graph, network, example, pruner.DG.pruning_history())
        if fits(np.bincount(graph.group_of[kept], minlength=len(graph.groups))):
            _check_equal(cut, slim(network, graph, torch.from_numpy(kept)), example)
            return kept
    raise EspalierError("Torch-Pruning does not reach the budget")


def _check_equal(theirs: nn.Module, ours: nn.Module, example: Inputs) -> None:
    """Whether two networks compute the same.

    Raises:
        EspalierError: they do not.
    """
    with seeded(0), torch.no_grad():
        inputs = tree_map(lambda leaf: torch.randn_like(leaf) if _is_float(leaf) else leaf, example)
        first, second = (tree_leaves(run_on(network, inputs)) for network in (theirs, ours))
        for one, other in zip(first, second, strict=True):
            apart = float((one - other).abs().max() / one.abs().max().clamp_min(1e-12))
            if not apart <= TOLERANCE:
                raise EspalierError(f"Torch-Pruning cut something else than whole channels ({apart:.2g} apart)")


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _inputs(example: Inputs, device: torch.device) -> Any:
    """As Torch-Pruning takes them: a tensor, a list, or a dict."""
    there = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)
    return list(there) if isinstance(there, tuple) else there


def _widths(graph: ChannelGraph, cut: nn.Module) -> Ints:
    """Of the groups of a network that was cut, by the rows that are left of what writes them."""
    left, widths = dict(cut.named_parameters()), graph.sizes.copy()
    for number, group in enumerate(graph.groups):
        for member in group.members:
            if member.role in WRITING_ROLES and member.dim == 0 and member.tensor in left:
                widths[number] = group.size * len(left[member.tensor]) // member.length
    return widths


def _read_off(graph: ChannelGraph, network: nn.Module, example: Inputs, history: Any) -> Bools:
    """Which channels are left after what a record says was cut: bool (n_channels,)."""
    import torch_pruning

    numbered = copy.deepcopy(network).eval()
    for parameter in filter(Tensor.dim, numbered.parameters()):
        rows = torch.arange(len(parameter), dtype=parameter.dtype)
        parameter.data = rows.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter).clone()
    inputs = _inputs(example, torch.device("cpu"))
    torch_pruning.DependencyGraph().build_dependency(numbered, inputs, verbose=False).load_pruning_history(history)
    left = dict(numbered.named_parameters())
    kept = np.ones(graph.n_channels, dtype=bool)
    for group, start in zip(graph.groups, graph.offsets.tolist(), strict=False):
        for member in group.members:
            if member.role in WRITING_ROLES and member.dim == 0 and member.tensor in left:
                stay = left[member.tensor].detach().flatten(1)[:, 0].long().numpy()
                gone = member.channels[~np.isin(member.positions, stay)]
                kept[start + gone] = False
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch_pruning")
        yield
