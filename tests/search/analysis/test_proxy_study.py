"""The study of proxies: what it says of made-up scores, and that a whole one runs and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier.errors import ConfigError
from espalier.pruning.graph.costs import Floats
from espalier.search.analysis import proxy_study
from espalier.search.analysis.proxy_study import AFFORDABLE, analyse, study_proxies
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.spaces.candidate import Candidate, Score
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.spaces.sampling import draw_policies
from espalier.search.tasks.classification.measures import MEASURES


def scores(losses: Floats, seconds: float) -> list[Score]:
    """A proxy whose cross-entropy is given; its other measures say nothing."""
    return [Score({"top1": 50.0, "cross_entropy": float(loss), "distillation": 1.0}, seconds) for loss in losses]


def made_up(noise: dict[str, tuple[float, float]], seed: int = 0) -> Any:
    """The study of proxies of this noise and cost, a fine-tuning taking 10 s and its seeds differing by 0.1."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=40)
    top1s = 80 + truth[:, None] + 0.1 * draw.normal(size=(40, 3))
    given = {
        name: scores(-truth + level * draw.normal(size=40), seconds) for name, (level, seconds) in noise.items()
    }
    return analyse(given, top1s, MEASURES["top1"], list(MEASURES.values()), 10.0, 0)


def test_the_better_proxy_ranks_first_with_an_interval_that_holds_it() -> None:
    found = made_up({"recalibrated": (1.0, 0.1), "sgd20": (0.2, 0.9), "ridge": (0.5, 0.2)})
    by_loss = [rated for rated in found.rated if rated.measure == "cross_entropy"]
    assert [rated.proxy for rated in by_loss] == ["sgd20", "ridge", "recalibrated"]
    assert all(rated.low < rated.rho < rated.high for rated in by_loss)
    assert by_loss[0].rho > 0.9
    assert (found.policies, found.seeds, found.finetune_seconds) == (40, 3, 10.0)
    assert 0.97 < found.ceiling < 1


def test_a_dear_proxy_is_recommended_where_it_can_be_afforded() -> None:
    found = made_up({"recalibrated": (1.0, 0.1), "sgd20": (0.1, 0.9)})
    assert found.recommended.proxies == ("sgd20",)
    assert found.recommended.settings() == {"proxy": "sgd20", "measure": "cross_entropy"}
    assert found.recommended.rho > 0.9 and found.recommended.rho_elsewhere > 0.9


def test_else_a_cheap_one_screens_for_it() -> None:
    found = made_up({"recalibrated": (0.5, 0.1), "sgd20": (0.05, 3.0), "ridge": (5.0, 0.1)})
    best = found.recommended
    assert best.proxies == ("recalibrated", "sgd20")
    assert best.seconds == pytest.approx(0.1 + best.share * 3.0) and best.seconds <= AFFORDABLE * 10
    alone = next(rated for rated in found.rated if rated.proxy == "recalibrated")
    assert best.rho > alone.rho
    assert best.settings()["ladder"] == ["sgd20"] and best.settings()["promote"] == best.share


def test_where_nothing_is_affordable_the_cheapest_is_named() -> None:
    found = made_up({"recalibrated": (0.5, 2.0), "sgd20": (0.05, 3.0)})
    assert found.recommended.proxies == ("recalibrated",)


def test_a_measure_that_scores_all_alike_is_left_out() -> None:
    found = made_up({"recalibrated": (0.5, 0.1), "ridge": (0.5, 0.1)})
    assert [rated.measure for rated in found.rated] == ["cross_entropy"] * 2


def test_of_proxies_that_score_alike_the_first_is_kept() -> None:
    """As where there are no batch norms to recalibrate."""
    truth = np.random.default_rng(0).normal(size=40)
    signals = [Score({}, 0.1, signal=float(value)) for value in truth]
    given = {"as_cut": scores(-truth, 0.1), "recalibrated": scores(-truth, 0.2), "ridge": scores(truth, 0.1)}
    found = analyse(
        given
        | {
            "synflow": signals,
            "gradient_norm": [replace(each, signal=-float(each.signal or 0)) for each in signals],
        },
        80 + np.stack([truth, truth + 0.01], 1),
        MEASURES["top1"],
        list(MEASURES.values()),
        10.0,
        0,
    )
    assert {rated.proxy for rated in found.rated} == {"as_cut", "ridge", "synflow", "gradient_norm"}
    assert found.alike == {"as_cut": ["recalibrated"]}


def test_policies_differ_and_hold_greedy_and_uniform(space: Multipliers) -> None:
    found = draw_policies(space, 30, seed=0)
    assert len(set(found)) == 30
    assert {space.decode(params) for params in space.greedy_params() + space.uniform_params()} <= set(found)
    assert all(space.budget.fits(space.graph, candidate.widths) for candidate in found)
    assert draw_policies(space, 12, seed=0) == found[:12]
    assert draw_policies(space, 30, seed=1) != found


def test_a_study_runs_and_goes_on_from_what_it_has(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["finetune"]["epochs"] = 0.25
    config = parse_config(tiny, "tiny")
    first = study_proxies(config, tmp_path, policies=8, seeds=2)
    assert {rated.proxy for rated in first.rated} == PROXIES.keys()
    written = json.loads((tmp_path / "proxy_study.json").read_text())
    assert len(written["top1"]) == 8 and len(written["widths"]) == 8
    assert all(Candidate.from_key(key).key == key for key in written["widths"])

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("it was done before")

    monkeypatch.setattr(proxy_study, "score_all", forbidden)
    monkeypatch.setattr(torch.optim.SGD, "step", forbidden)
    assert study_proxies(config, tmp_path, policies=8, seeds=2) == first


def test_a_recommendation_is_a_config(tiny: dict[str, Any]) -> None:
    found = made_up({"recalibrated": (0.5, 0.1), "sgd20": (0.05, 3.0)})
    tiny["search"] |= found.recommended.settings()
    assert parse_config(tiny, "tiny").search.ladder == ("sgd20",)
    tiny["search"]["ladder"] = ["sgd21"]
    with pytest.raises(ConfigError, match="did you mean"):
        parse_config(tiny, "tiny")


def test_strengths_that_are_ranked_backwards_are_told_from_widths_that_are_not() -> None:
    """Two rungs of 20 policies: the proxy is right inside each, and prefers the rung that fine-tunes worse."""
    draw = np.random.default_rng(0)
    inside, rungs = draw.normal(size=40), np.repeat([0, 1], 20)
    top1s = 70 + inside[:, None] - 10 * rungs[:, None] + 0.01 * draw.normal(size=(40, 2))
    given = {"recalibrated": scores(-inside - 10 * rungs, 0.1), "sgd20": scores(-inside + 10 * rungs, 0.2)}
    found = analyse(given, top1s, MEASURES["top1"], list(MEASURES.values()), 10.0, 0, rungs.tolist())
    rated = {each.proxy: each for each in found.rated}
    assert rated["recalibrated"].rho < 0 < 0.99 < (rated["recalibrated"].within or 0)
    assert (rated["recalibrated"].across, rated["sgd20"].across) == (0.0, 1.0)
    alone = analyse(
        {name: own[:20] for name, own in given.items()},
        top1s[:20],
        MEASURES["top1"],
        list(MEASURES.values()),
        10.0,
        0,
    )
    assert all(each.within is None and each.across is None for each in alone.rated)


@pytest.mark.parametrize(("strength", "rungs"), [("finetuned", 1), ("searched", 2)])
def test_policies_are_drawn_from_the_rungs_that_a_search_has(
    strength: str, rungs: int, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["finetune"]["epochs"] = 0.1
    tiny["search"]["strength"] = strength
    found = study_proxies(parse_config(tiny, "tiny"), tmp_path, policies=8, seeds=1)
    widths = json.loads((tmp_path / "proxy_study.json").read_text())["widths"]
    assert len({Candidate.from_key(key).rung for key in widths}) == rungs
    assert all((rated.across is None) == (rungs == 1) for rated in found.rated)
