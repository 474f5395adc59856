"""Is a search under a limit on latency worth more than one under a limit on MACs, at the same latency?

    python benchmarks/same_latency.py cifar10_resnet20 model.weights=resnet20-12fca82f.th \
        data.root=cifar-10-batches-bin data.train_images=15000 "regularizer.strengths=[0.003]" \
        search.trials=120 --limits 0.5 0.2 --json benchmarks/results/same_latency.json

For each limit, a share of the dense network's latency in ONNX Runtime, `greedy` and `auto` are compared twice on
one ladder: under that limit, and under the share of MACs at which greedy pruning is modelled to take as long.
Networks are timed at the end, beside the dense one; a search by MACs may end a little off the limit, and its time
is given with it. Differences are paired by seed. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

import espalier
from espalier.pruning.graph.allocation import narrowest
from espalier.pruning.graph.budget import Budget
from espalier.search.compare.comparison import Comparison
from espalier.search.config.loading import load_config
from espalier.search.files.json_files import write_json
from espalier.search.progress.reporter import Silent
from espalier.search.run.experiment import Experiment, unrecorded
from espalier.search.run.latency_budget import settle_latency, with_latency
from espalier.search.run.prepare import prepare
from espalier.search.statistics.differences import common
from espalier.search.study.run_folder import LADDER

METHODS = ("greedy", "auto")
SHARED = ["workers=0", f"compare.methods=[{','.join(METHODS)}]", "compare.latency.runtimes=[onnxruntime]"]


def asked(args: argparse.Namespace, limit: float) -> list[str]:
    """Overrides under a limit on latency."""
    own = ["budget.keep=null", f"budget.latency={limit}", "budget.device.runtime=onnxruntime"]
    return [*args.overrides, *SHARED, f"compare.seeds={args.seeds}", *own]


def same_share(args: argparse.Namespace, limit: float, folder: Path) -> float:
    """Share of MACs at which greedy pruning takes as long as the limit says, by the model."""
    config = load_config(args.config, asked(args, limit))
    prepared = prepare(config, takes_latency=True)
    prepared = with_latency(config, prepared, settle_latency(config, prepared, Silent()))
    made = Experiment(config, prepared, folder, Silent())
    made.train_ladder()
    made.settle_execution(unrecorded)
    graph, dense = prepared.graph, prepared.dense_macs
    least = graph.macs(narrowest(graph, prepared.floor, prepared.round_to))
    low, high = 1.01 * float(least) / dense, 1.0
    for _ in range(20):
        share = (low * high) ** 0.5
        candidates = made.space(Budget(macs=int(share * dense))).greedy_candidates()
        taken = np.mean([graph.latency(each.widths) for each in candidates]) / graph.dense_cost("latency")
        low, high = (share, high) if taken < limit else (low, share)
    return round(low, 4)


def run(args: argparse.Namespace, overrides: list[str], folder: Path, ladder: Path) -> Comparison:
    """One comparison, on the ladder that the first has trained."""
    if ladder.is_dir() and not (folder / LADDER).is_dir():
        shutil.copytree(ladder, folder / LADDER)
    return espalier.compare(args.config, overrides=overrides, out=folder)


def told(found: Comparison) -> dict[str, Any]:
    """What is kept of a comparison."""
    rows: dict[str, Any] = {}
    for method in METHODS:
        cells = [cell for cell in found.cells if cell.method == method]
        own = [cell.timings["onnxruntime-1"] for cell in cells]
        rows[method] = {
            "after": {cell.seed: cell.after for cell in cells},
            "macs": statistics.mean(cell.kept for cell in cells),
            "latency": [timed.own.milliseconds / timed.dense.milliseconds for timed in own],
        }
    return rows | {"dense": found.dense.after, "verdict": found.verdict, "quiet": found.quiet}


def words(own: dict[str, Any]) -> str:
    """Cells of a row: MACs, latency, accuracy."""
    after, times = list(own["after"].values()), own["latency"]
    spread = statistics.stdev(after) if len(after) > 1 else 0.0
    latency = f"{min(times):.2f} to {max(times):.2f}"
    return f"{100 * own['macs']:.1f} % | {latency} | {statistics.mean(after):.2f} ± {spread:.2f}"


def main() -> None:
    """Compares under every limit, prints a table, and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--limits", type=float, nargs="+", default=[0.5, 0.2], help="of the dense latency")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/same_latency"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"config": args.config, "overrides": args.overrides}
    ladder = args.folder / f"latency{args.limits[0]:g}" / LADDER
    titles = ("limit", "searched under", "network", "MACs", "measured latency", "top-1 after fine-tuning")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for limit in args.limits:
        first = args.folder / f"latency{limit:g}"
        by = {"latency": told(run(args, asked(args, limit), first, ladder))}
        share = same_share(args, limit, first)
        overrides = [*args.overrides, *SHARED, f"compare.seeds={args.seeds}", f"budget.keep={share}"]
        by["MACs"] = told(run(args, overrides, args.folder / f"macs{share:g}", ladder))
        for under, found in by.items():
            for method in METHODS:
                print(f"| {limit:g} | {under} | {method} | {words(found[method])} |")
        between = common(by["latency"]["auto"]["after"], by["MACs"]["auto"]["after"])
        assert between is not None
        ends = f"{between.low:+.2f} to {between.high:+.2f}, p {between.p:.2g}" if between.seeds > 1 else "one seed"
        print(f"latency search - MACs search at {limit:g}: {between.mean:+.2f} ({ends})")
        report[f"{limit:g}"] = by | {"share of MACs": share}
        if args.json:
            write_json(args.json, report)


if __name__ == "__main__":
    main()
