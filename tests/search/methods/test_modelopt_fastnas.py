"""FastNAS of Model Optimizer as a method: what it kept is what is fine-tuned, within the budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier import Budget, trace
from espalier.errors import MissingPackage
from espalier.pruning.networks.cifar_resnet import CifarResNet
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.methods import Choice, choose
from espalier.search.tasks.classification.data import Splits
from tests.search.methods.test_torch_pruning import material_of

NAME = "modelopt_fastnas"


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    made = CifarResNet(depth=8, width=8, in_channels=1, num_classes=4).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return made


def test_it_must_be_installed(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    monkeypatch.delitem(sys.modules, "modelopt.torch.prune", raising=False)
    content = tiny | {"compare": {"methods": ["greedy", NAME]}}
    with pytest.raises(MissingPackage, match=r"pip install 'espalier\[peers\]'"):
        compare(parse_config(content, "tiny"), name="c", out=tmp_path / "out", command="")
    assert not (tmp_path / "out" / "ladder").exists()


@pytest.mark.extras
def test_what_it_kept_is_cut_from_the_dense_network(
    resnet: nn.Module, spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt.torch.prune")
    graph = trace(resnet, torch.zeros(1, 1, 8, 8))
    material = material_of(resnet, graph, spec, splits, tmp_path)
    found = choose(material, (NAME, "half", 0))
    assert isinstance(found, Choice), found
    widths = np.array(found.candidate.widths)
    assert material.spaces["half"].budget.fits(graph, widths) and found.evaluations > 5
    own = material.spec_of(found)
    small = dict(CandidateNetworks(own).cut(found.candidate).named_parameters())
    kept = own.keep(found.candidate).numpy()
    whole = dict(resnet.named_parameters())
    for group, start in zip(graph.groups, graph.offsets.tolist(), strict=False):
        inside = torch.from_numpy(kept[start : start + group.size])
        for member in group.members:
            if member.role == "norm" and member.length == group.size:
                assert torch.equal(small[member.tensor], whole[member.tensor][inside])


@pytest.mark.extras
def test_budgets_that_it_does_not_have_are_one_methods_failure(
    resnet: nn.Module, spec: EvaluationSpec, splits: Splits, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt.torch.prune")
    graph = trace(resnet, torch.zeros(1, 1, 8, 8))
    material = material_of(resnet, graph, spec, splits, tmp_path)
    material.spaces["half"].budget = Budget(params=0.5).of(Budget(params=20_000), graph)
    assert choose(material, (NAME, "half", 0)) == "FastNAS takes a budget of MACs alone"


@pytest.mark.extras
def test_a_comparison_sets_it_beside_greedy(tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("modelopt.torch.prune")
    content = tiny | {"compare": {"methods": ["greedy", NAME], "seeds": 1}}
    found = compare(parse_config(content, "tiny"), name="c", out=tmp_path / "out", command="").comparison
    assert not found.failures and {cell.method for cell in found.cells} == {"greedy", NAME}
