"""A penalty of the user's own, named in a config as networks are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import espalier
from espalier.errors import ConfigError
from espalier.pruning.importance.regularizers import L2, OICSRGroupLasso
from espalier.pruning.importance.selective import AutoBalanced
from espalier.search.config.loading import parse_config
from espalier.search.run.search_run import config_of
from espalier.search.training.ladder import Penalty


class Own(OICSRGroupLasso):
    """OICSR-GL, twice."""

    def __init__(self, graph: Any, weighting: Any = "none", with_norms: bool = False, factor: float = 2.0) -> None:
        super().__init__(graph, weighting, with_norms)
        self.factor = factor

    def combine(self, norms: torch.Tensor) -> torch.Tensor:
        return self.factor * super().combine(norms)


class Subgradients(AutoBalanced):
    """Has no proximal step."""


OWN = f"{__name__}:Own"


def settings(**regularizer: Any) -> dict[str, Any]:
    return {
        "model": {"name": "resnet20", "kwargs": {"width": 2, "in_channels": 1, "num_classes": 10}},
        "data": {"name": "digits", "search_images": 0.3, "train_images": 64},
        "training": {"epochs": 1, "batch_size": 32},
        "regularizer": {"strengths": [0.05], "epochs": 1} | regularizer,
        "budget": {"keep": 0.5},
        "search": {
            "sampler": "random",
            "trials": 2,
            "scoring_images": 32,
            "calibration_images": 32,
            "finalists": 1,
        },
        "finetune": {"epochs": 0, "seeds": 1, "selection_seeds": 1},
        "workers": 0,
    }


@pytest.fixture
def graph() -> Any:
    return espalier.trace(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.zeros(1, 3))


def test_it_is_made_with_its_arguments(graph: Any) -> None:
    penalty = Penalty(OWN, kwargs={"factor": 3.0}).on(graph, 0.1)
    weights = {"0.weight": torch.ones(4, 3), "1.weight": torch.ones(2, 4)}
    wanted = OICSRGroupLasso(graph)
    assert penalty.strength == 0.1 and float(penalty.regularizer(weights)) == pytest.approx(
        3 * float(wanted(weights))
    )
    assert type(Penalty("l2").on(graph, 0.0).regularizer) is L2


def test_what_it_may_not_be(graph: Any) -> None:
    with pytest.raises(ConfigError, match=r"regularizer.name must be package.module:name, got 'no.such:One' \("):
        Penalty("no.such:One").on(graph, 0.1)
    with pytest.raises(
        ConfigError, match=r"regularizer.name must be a subclass of Regularizer, and math:tau is none"
    ):
        Penalty("math:tau").on(graph, 0.1)
    with pytest.raises(ConfigError, match=f"regularizer.kwargs do not fit {OWN}: .*'share'"):
        Penalty(OWN, kwargs={"share": 0.5}).on(graph, 0.1)
    with pytest.raises(ConfigError, match="Subgradients takes subgradients only"):
        Penalty(f"{__name__}:Subgradients", proximal=True).on(graph, 0.1)
    with pytest.raises(ConfigError, match="unknown name 'given'"):
        parse_config(settings(name="given"), "here")


PENALTY = """
from espalier.pruning.importance.regularizers import OICSRGroupLasso

class Own(OICSRGroupLasso):
    def combine(self, norms):
        return {} * super().combine(norms)
"""


def test_what_an_edited_one_trained_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for factor in (1, 100, 1):
        (tmp_path / "edited_penalty.py").write_text(PENALTY.format(factor))
        sys.modules.pop("edited_penalty", None)
        importlib.invalidate_caches()
        found.append(Penalty("edited_penalty:Own").to_json())
    assert found[0] == found[2] != found[1]
    assert Penalty("l2").to_json().keys() == found[0].keys() - {"code"}


def test_a_search_trains_with_it_and_a_storage_alone_does_not_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = espalier.search_widths(settings(name=OWN))
    assert found.result.trials == 2 and len(list(Path("runs/search/ladder").glob("rung0-*.safetensors"))) == 1
    url = "sqlite:///runs/search/study.db"
    with pytest.raises(ConfigError, match=f"names regularizer.name '{OWN}', called with no arguments"):
        config_of(url, "search")
    assert config_of(url, "search", trust=__name__)[0].regularizer.name == OWN
    assert config_of(url, "search", ["regularizer.name=l2"])[0].regularizer.name == "l2"
