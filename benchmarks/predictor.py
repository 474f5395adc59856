"""Would a predictor that learns from fine-tuned networks choose finalists better than the proxy does?

    espalier proxy-study digits workers=0 --policies 48 --seeds 2 --out d5
    python benchmarks/predictor.py d5 [MORE FOLDERS ...] --json benchmarks/results/predictor.json

Of the policies of a proxy study some are taken as known, and Gaussian processes (the surrogate of `auto`) predict
the others, from log-widths, from ranks of cheap proxies, or from both. Means over 200 draws say

- how well 8, 16 or 24 known policies tell how the others rank, beside the proxy alone: Spearman's correlation with
  fine-tuned accuracy;
- of 24 policies, what the best of eight finalists is worth, where the proxy chooses all eight, and where a
  predictor chooses the last four, having learned from the first. One seed chooses, another one judges.

It takes studies of 32 policies and two seeds or more, scored with `sgd20`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, spearmanr

from espalier.search.files.json_files import write_json
from espalier.search.samplers.auto import OPTIMISM
from espalier.search.samplers.surrogate import Surrogate
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.metric import greater_is_better

DRAWS, FIRST, FINALISTS, POOL = 200, 4, 8, 24
CHEAP = ("recalibrated", "reconstructed", "ridge", "sgd5", "sgd20")
ALONE = "sgd20"

Floats = npt.NDArray[np.float64]


def read(folder: Path) -> tuple[dict[str, Floats], Floats, Floats]:
    """Features by name, (n, D) each; scores of the proxy alone, (n,); fine-tuned values, (n, seeds)."""
    study, scores = (json.loads((folder / f"proxy_{name}.json").read_text()) for name in ("study", "scores"))
    keys, values = study["widths"], np.array(study["top1"])
    if values.shape[0] < 32 or values.shape[1] < 2:
        raise SystemExit(f"{folder}: {values.shape[0]} policies and {values.shape[1]} seeds, 32 and 2 are needed")
    widths = np.log([Candidate.from_key(key).widths for key in keys])

    def of(proxy: str) -> Floats:
        found = [scores["scores"][f"{proxy} {key}"]["measures"] for key in keys]
        if "calibrated" in found[0]:  # a cross-entropy
            return -np.array([each["calibrated"] for each in found])
        (measure,) = found[0]
        return (1 if greater_is_better(measure) else -1) * np.array([each[measure] for each in found])

    cheap = [proxy for proxy in CHEAP if f"{proxy} {keys[0]}" in scores["scores"]]
    ranked = np.stack([rankdata(of(proxy)) / len(keys) for proxy in cheap], 1)
    features = {"widths": widths, "proxies": ranked, "both": np.concatenate([widths, ranked], 1)}
    return features, of(ALONE), values


def ranks(features: dict[str, Floats], alone: Floats, values: Floats, known: int) -> dict[str, list[float]]:
    """Rank correlation with what is not known, per draw."""
    found: dict[str, list[float]] = {name: [] for name in (ALONE, *features)}
    truth = values.mean(1)
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(alone))
        fitted, left = order[:known], order[known:]
        found[ALONE].append(float(spearmanr(alone[left], truth[left])[0]))
        for name, x in features.items():
            predicted, _ = Surrogate(x[fitted], truth[fitted])(x[left])
            told = np.ptp(predicted) > 0  # what is the same for all ranks nothing
            found[name].append(float(spearmanr(predicted, truth[left])[0]) if told else 0.0)
    return found


def finalists(features: dict[str, Floats], alone: Floats, values: Floats) -> dict[str, list[float]]:
    """What the best of the finalists is worth by the other seed, per draw of a pool."""
    found: dict[str, list[float]] = {name: [] for name in (ALONE, *features)}
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        pool = random.choice(len(alone), min(POOL, len(alone)), replace=False)
        chooses, judges = random.permutation(values.shape[1])[:2]
        by_proxy = pool[np.argsort(-alone[pool])]
        first, left = by_proxy[:FIRST], by_proxy[FIRST:]
        chosen = {ALONE: by_proxy[:FINALISTS]}
        for name, x in features.items():
            mean, spread = Surrogate(x[first], values[first, chooses])(x[left])
            more = left[np.argsort(-(mean + OPTIMISM * spread))[: FINALISTS - FIRST]]
            chosen[name] = np.concatenate([first, more])
        for name, those in chosen.items():
            found[name].append(float(values[those[values[those, chooses].argmax()], judges]))
    return found


def words(found: dict[str, list[float]]) -> str:
    """Means, and mean differences to the proxy alone with the spread of draws."""
    base = np.array(found[ALONE])
    return "; ".join(
        f"{name} {np.mean(own):.2f} ({np.mean(own - base):+.2f} ± {np.std(own - base):.2f})"
        for name, own in ((name, np.array(own)) for name, own in found.items())
    )


def main() -> None:
    """Prints both for every folder, and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of proxy studies")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    for folder in options.folders:
        features, alone, values = read(folder)
        print(f"{folder.name}: {len(alone)} policies of {values.min():.1f} to {values.max():.1f}")
        own: dict[str, Any] = {"policies": len(alone), "seeds": values.shape[1]}
        for known in (8, 16, 24):
            correlations = ranks(features, alone, values, known)
            print(f"  {known} known, rank correlation: {words(correlations)}")
            own[f"known {known}"] = {name: float(np.mean(each)) for name, each in correlations.items()}
        best = finalists(features, alone, values)
        print(f"  best of {FINALISTS} finalists: {words(best)}")
        report[folder.name] = own | {"finalists": {name: float(np.mean(each)) for name, each in best.items()}}
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
