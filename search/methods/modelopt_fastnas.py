"""FastNAS of NVIDIA's Model Optimizer itself, as a method beside the others.

It judges and chooses by its own code, on the network, images and score that all methods have. It sorts channels:
which ones it kept is read from the parameters of their norms, and from biases, which it leaves as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from espalier.errors import EspalierError, MissingPackage, raised
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.torch_private import tree_map
from espalier.search.methods.method import Choice, Material, Method
from espalier.search.tasks.device import device_here
from espalier.search.tasks.runner import Runner

NAME = "modelopt_fastnas"
"""Of what ranks channels inside their groups."""
FLOPS = 2
"""That ModelOpt counts for a multiply-add."""


_CHANNELS = "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "GroupNorm"
_FEATURES = "Linear", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm"
RULES = {
    **{f"nn.{layer}": {"*": {"channel_divisor": 1}} for layer in _CHANNELS},
    **{f"nn.{layer}": {"*": {"feature_divisor": 1}} for layer in _FEATURES},
}
"""Widths in steps of one channel, where ModelOpt's own are of 32."""


class ModelOptFastNas(Method):
    """FastNAS on the dense network, with widths as fine as it has them: twentieths, in steps of one channel."""

    words = "FastNAS of NVIDIA's Model Optimizer itself, on the dense network"
    criterion, own_network = NAME, True

    def check(self) -> None:
        """Whether it is installed.

        Raises:
            MissingPackage: it is not.
        """
        try:
            importlib.import_module("modelopt.torch.prune")
        except ImportError as error:
            raise MissingPackage(
                f"modelopt_fastnas needs NVIDIA's Model Optimizer ({error}): pip install 'espalier[peers]'"
            ) from error

    def choose(self, material: Material, budget: str, seed: int) -> Choice:
        """Searches by FastNAS, and finds out what was kept.

        Raises:
            EspalierError: the budget is not one of MACs, or FastNAS fails, or does not meet it.
        """
        import modelopt.torch.prune as mtp

        space, spec = material.spaces[budget], material.spec
        limits = space.budget.limits
        if set(limits) != {"macs"}:
            raise EspalierError("FastNAS takes a budget of MACs alone")
        runner = Runner(spec.execution, device_here(spec.home))
        example = tree_map(lambda leaf: leaf.to(runner.device), space.graph.example)
        network, evaluations = material.dense_network().to(runner.device), 0
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # it takes no other

        def score(candidate: nn.Module) -> float:
            nonlocal evaluations
            evaluations += 1
            found = spec.scoring.score(runner, candidate.eval(), lambda _: False)
            means = spec.scoring.means(found.losses.mean(0)) if len(found.losses) else {}
            return material.measure.value({**means, **found.measures}[material.measure.key])

        settings: dict[str, Any] = {
            "data_loader": list(spec.scoring.calibration(runner)),
            "collect_func": lambda batch: batch,
            "score_func": score,
            "verbose": False,
        }
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            settings["checkpoint"] = str(Path(folder) / "fastnas.pth")
            try:
                small, _ = mtp.prune(
                    network,
                    mode=[("fastnas", RULES)],
                    constraints={"flops": FLOPS * limits["macs"]},
                    dummy_input=example,
                    config=settings,
                )
            except Exception as error:  # of many kinds, plain ones too
                raise EspalierError(f"FastNAS cannot prune this network: {raised(error)}") from error
        whole = material.dense_network()
        keep = _kept(space.graph, whole, small.cpu())
        if not space.budget.fits(space.graph, space.graph.widths(torch.from_numpy(keep))):
            raise EspalierError("FastNAS counts other MACs than espalier, and exceeds the budget")
        return material.choice_of_own(NAME, whole, keep, evaluations)


def _kept(graph: ChannelGraph, whole: nn.Module, small: nn.Module) -> npt.NDArray[np.bool_]:
    """Which channels of a network a narrower one has, in whatever order: (n_channels,).

    Raises:
        EspalierError: it cannot be told.
    """
    before, after = dict(whole.named_parameters()), dict(small.named_parameters())
    kept = np.zeros(graph.n_channels, dtype=bool)
    for group, start in zip(graph.groups, graph.offsets.tolist(), strict=False):
        members = [member for member in group.members if member.tensor in before]
        if all(after[member.tensor].shape[member.dim] == member.length for member in members):
            kept[start : start + group.size] = True
            continue
        marks = [m.tensor for m in members if before[m.tensor].dim() == 1 and m.length == group.size]
        if not marks:
            raise EspalierError(f"which channels of {group.name} FastNAS kept cannot be told: nothing marks them")
        dense, own = (torch.stack([each[name].detach() for name in marks], 1) for each in (before, after))
        equal = (dense[:, None] == own[None]).all(2)
        if not (equal.sum(0) == 1).all():
            raise EspalierError(f"which channels of {group.name} FastNAS kept cannot be told: some are alike")
        kept[start : start + group.size] = equal.any(1).numpy()
    return kept
