"""Where the answer is known: energies that mislead, and layers that can be exchanged for each other."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from espalier.search.compare.comparison import Comparison
from espalier.search.compare.protocol import compare
from espalier.search.config.loading import parse_config
from espalier.search.files.tensor_files import load_tensors

MODULE = '''
import torch
from torch import nn


def layer(before, width, stride=1):
    convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


class Chain(nn.Module):
    """Convolutions one behind the other."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*layer(1, 8), *layer(8, 12), *layer(12, 16, stride=2), *layer(16, 12))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.pool(self.layers(x)).flatten(1))


class Branches(nn.Module):
    """Convolutions side by side: whatever one of them computes, the others could."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*layer(1, 8)) for _ in range(3))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(96, 10)

    def forward(self, x):
        return self.head(self.pool(torch.cat([branch(x) for branch in self.branches], 1)).flatten(1))
'''

SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "search_images": 600},
    "regularizer": {"strengths": [0.0]},
    "search": {
        "trials": 40,
        "scoring_images": 300,
        "calibration_images": 128,
        "batch_size": 128,
        "memory_format": "channels_last",
        "precision": "fp32",
    },
    "workers": 0,
}


def found(out: Path, network: str, keep: float, **sections: Any) -> Comparison:
    model = {"name": f"planted_networks:{network}"} | sections.pop("model", {})
    content = SETTINGS | {"model": model, "budget": {"keep": keep}} | sections
    return compare(parse_config(content, "planted"), name="planted", out=out, command="").comparison


def scaled(model: nn.Module, factors: tuple[float, ...]) -> nn.Module:
    """The same function: convolutions times a number, and the statistics of the batch norms behind them."""
    model = copy.deepcopy(model)
    pairs = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for convolution, norm, factor in zip(pairs[0::2], pairs[1::2], factors, strict=True):
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            convolution.weight.mul_(factor)
            norm.running_mean.mul_(factor)  # type: ignore[union-attr]
            norm.running_var.mul_(factor**2)  # type: ignore[union-attr]
    return model.eval()


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "planted_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("planted_networks")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_wins_where_raw_energies_mislead(tmp_path: Path, networks: Any) -> None:
    sections = {"finetune": {"epochs": 1, "batch_size": 32, "lr": 0.02}}
    raw = {"methods": ["energy_raw"], "baseline": "energy_raw", "seeds": 1}
    training = {"epochs": 12, "batch_size": 32, "lr": 0.1}
    as_trained = found(tmp_path / "trained", "Chain", 0.3, training=training, compare=raw, **sections)
    dense, _ = load_tensors(next((tmp_path / "trained" / "ladder").glob("dense-*.safetensors")))
    network = networks.Chain()
    network.load_state_dict(dense, strict=False)
    multiplied = scaled(network, (4.0, 0.25, 4.0, 0.25))
    images = torch.rand(16, 1, 8, 8)
    torch.testing.assert_close(multiplied(images), network.eval()(images), rtol=1e-2, atol=1e-2)
    weights = tmp_path / "scaled.safetensors"
    save_file(dict(multiplied.state_dict()), weights)

    several = {"methods": ["energy_raw", "auto"], "baseline": "energy_raw", "seeds": 4}
    planted = found(
        tmp_path / "scaled",
        "Chain",
        0.3,
        model={"weights": str(weights)},
        training={"epochs": 0},
        compare=several,
        **sections,
    )
    assert planted.dense.after == pytest.approx(as_trained.dense.after, abs=0.6)
    (answer,) = planted.answers
    (trained,), (misled, _) = as_trained.rows, planted.rows
    assert misled.after < trained.after - 10
    assert (answer.finding, answer.leader) == ("better", "auto")
    assert answer.differences["auto"].low > 10
    assert planted.verdict.startswith("The search is worth it at 30 % of the MACs: against energy_raw, ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_search_wins_where_layers_are_exchangeable(tmp_path: Path) -> None:
    level = found(
        tmp_path / "exchangeable",
        "Branches",
        0.3,
        training={"epochs": 12, "batch_size": 32, "lr": 0.1},
        finetune={"epochs": 8, "batch_size": 32, "lr": 0.1},
        compare={"methods": ["greedy", "auto"], "seeds": 5},
    )
    (answer,) = level.answers
    assert answer.finding == "not distinguishable"
    assert level.verdict.startswith("At 30 % of the MACs the search and greedy are not distinguishable: ")
