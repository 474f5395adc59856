"""How well modelled latency predicts measured latency: pruned networks that the model was not fitted to.

    python benchmarks/latency_model.py [NETWORK:RUNTIME ...]

For each network and runtime, 40 networks are timed and fitted, as a search does, and 50 others of random widths are
timed and predicted. Measurements are kept in a file of lines each, and gone on with; the summary holds the rank
correlation (Spearman) and the median of the relative errors on the 50.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy.stats import spearmanr
from torch import nn

import espalier
from espalier.pruning.latency.measuring import draw_widths
from espalier.pruning.networks import build
from espalier.search.files.json_files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
FITTED, PREDICTED = 40, 50


def vit() -> nn.Module:
    """A vision transformer for 64 pixels in patches of 8."""
    config = transformers.ViTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=384,
        num_labels=10,  # type: ignore[call-arg]
    )
    made: nn.Module = transformers.ViTForImageClassification(config)
    return made


NETWORKS: dict[str, tuple[Any, int]] = {
    "resnet20": (lambda: build("resnet20"), 32),
    "mobilenet_v2": (lambda: build("mobilenet_v2"), 32),
    "vit": (vit, 64),
    "resnet50": (lambda: build("resnet50"), 224),
}
RUNTIMES = ("eager", "onnxruntime")


def measured(name: str, runtime: str) -> dict[str, Any]:
    """Of one network in one runtime."""
    make, side = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    graph = espalier.trace(network, torch.zeros(1, 3, side, side))
    file, count = RESULTS / "latency" / f"{name}_{runtime}.jsonl", FITTED + PREDICTED

    def tell(done: int) -> None:
        print(f"{name} in {runtime}: {done} of {count}", flush=True)

    model = espalier.measure_latency(
        network, graph, device=espalier.Device(runtime), networks=count, file=file, on_measured=tell
    )
    lines = map(json.loads, file.read_text().splitlines()[1:])
    ratios = np.array([own / beside for _, own, beside in sorted(lines)])
    taken, drawn = model.dense * ratios, draw_widths(graph, count, 0)
    fitted = espalier.LatencyModel.fitted(graph, drawn[:FITTED], taken[:FITTED].tolist(), model.device)
    predicted, real = fitted.on(graph).latency(drawn[FITTED:]), taken[FITTED:]
    return {
        "device": model.device,
        "dense_ms": model.dense / 1e6,
        "fastest": float(ratios.min()),
        "rank_correlation": float(spearmanr(predicted, real)[0]),
        "median_error": float(np.median(np.abs(predicted / real - 1))),
        "worst_tenth": float(np.quantile(np.abs(predicted / real - 1), 0.9)),
        "rank_correlation_of_macs": float(spearmanr(graph.macs(drawn[FITTED:]), real)[0]),
        "fitted": FITTED,
        "predicted": PREDICTED,
    }


def main() -> None:
    """All that are asked for, into one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{name}:{runtime}" for name in NETWORKS for runtime in RUNTIMES]
    parser.add_argument("pairs", nargs="*", default=every)
    torch.set_num_threads(1)
    for pair in parser.parse_args().pairs:
        name, runtime = pair.split(":")
        found = measured(name, runtime)
        write_json(
            RESULTS / "latency_model.json", (read_json(RESULTS / "latency_model.json") or {}) | {pair: found}
        )
        print(
            f"{pair}: rank correlation {found['rank_correlation']:.3f} ({found['rank_correlation_of_macs']:.3f} of "
            f"MACs), median error {100 * found['median_error']:.1f} %, fastest {found['fastest']:.2f} of dense"
        )


if __name__ == "__main__":
    main()
