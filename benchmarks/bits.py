"""Widths, bits, or both: the three searches of Galen (Krieger et al., 2022, arXiv 2212.07818) at one budget.

    python benchmarks/bits.py --json benchmarks/results/bits.json

ResNet-20 on the digits. Each search has as many candidates and the same fine-tuning, and cuts from the same network
of OICSR-GL. ``widths`` leaves all layers in float32, ``bits`` leaves all channels, ``both`` searches the two
together. The budgets: a share of the bit operations, and of the latency of a batch in OpenVINO. Where no widths,
or no bits, meet one, the table says what they can reach.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from espalier.errors import BudgetInfeasible
from espalier.search.config.loading import load_config
from espalier.search.progress.reporter import Lines, Silent
from espalier.search.run.search_run import run

SEARCHES = {
    "widths": [],
    "bits": ["budget.bits=[4,8,32]", "budget.frozen=['*']"],
    "both": ["budget.bits=[4,8,32]"],
}
BUDGETS = {
    "bit operations": ["budget.keep_bit_operations={}"],
    "latency": ["budget.latency={}", "budget.device.runtime=openvino", "budget.device.batch=128"],
}
SETTINGS = ["budget.keep=null", "regularizer.strengths=[0.06]", "workers=0"]


def search(kind: str, share: float, how: str, args: argparse.Namespace) -> dict[str, Any]:
    """One search."""
    own = [each.replace("[4,8,32]", "[8,32]") if kind == "latency" else each for each in SEARCHES[how]]
    limits = [each.format(share) for each in BUDGETS[kind]]
    count = [f"search.trials={args.trials}", f"finetune.seeds={args.seeds}", f"search.sampler={args.sampler}"]
    config = load_config("digits", [*SETTINGS, *limits, *own, *count, *args.settings])
    out = args.folder / f"{kind} {share:g} {how}".replace(" ", "-")
    ladder = args.folder / "ladder"
    if ladder.is_dir() and not (out / "ladder").is_dir():
        shutil.copytree(ladder, out / "ladder")
    row: dict[str, Any] = {"budget": kind, "share": share, "search": how}
    try:
        result = run(config, study="digits", out=out, reporter=Lines() if args.verbose else Silent())
    except BudgetInfeasible as error:
        return row | {"infeasible": str(error).partition(";")[0]}
    if not ladder.is_dir():
        shutil.copytree(out / "ladder", ladder)
    for name in ("greedy", "searched"):
        found = getattr(result, name)
        took = {} if result.latency is None else result.latency[name]
        row[name] = {
            "macs": found.macs / result.dense.macs,
            "params": found.params / result.dense.params,
            "bits": {str(bits): list(found.bits.values()).count(bits) for bits in sorted(set(found.bits.values()))},
            "before": found.before,
            "after": list(found.after_seeds),
            "latency": took,
        }
    return row | {"dense": result.dense.after, "verdict": result.verdict, "latency": result.latency}


def words(row: dict[str, Any], name: str) -> str:
    """A row of the table."""
    found = row[name]
    spread = statistics.stdev(found["after"]) if len(found["after"]) > 1 else 0.0
    bits = ", ".join(f"{count} in {bits}" for bits, count in found["bits"].items()) or "none"
    cells = [row["budget"], f"{row['share']:.0%}", f"`{row['search']}`", name, f"{found['macs']:.1%}", bits]
    took = found["latency"].get("measured_ms")
    cells += [f"{statistics.mean(found['after']):.2f} ± {spread:.2f}", f"{took:.2f}" if took else "-"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs all of them, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bits"))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--bit-operations", type=float, nargs="*", default=[0.03])
    parser.add_argument("--latency", type=float, nargs="*", default=[0.2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the config")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = [("bit operations", share) for share in args.bit_operations]
    asked += [("latency", share) for share in args.latency]
    rows = [search(kind, share, how, args) for kind, share in asked for how in SEARCHES]
    titles = ["budget", "share", "search", "network", "MACs", "layers in fewer bits", "top-1", "ms"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for row in rows:
        if "infeasible" in row:
            print(f"| {row['budget']} | {row['share']:.0%} | `{row['search']}` | {row['infeasible']} | | | | |")
            continue
        for name in ("greedy", "searched"):
            print(words(row, name))
    if args.json:
        args.json.write_text(json.dumps(rows, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
