"""Schedules of pruning beside one cut, and refilled tickets beside random ones, on the digits.

    python benchmarks/schedules.py --json benchmarks/results/schedules.json

For each seed a ResNet-20 is trained, then trained on by every schedule to the same share of its MACs, cut once and
fine-tuned, for as many epochs each. `one_cut` trains as long and ranks at the end. Tickets begin with new weights
and are rewound; `random_ticket` has the widths of the refilled one, and in every group channels that are drawn. The
test images are read by each before and after fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier.search.config.loading import load_config
from espalier.search.progress.reporter import Silent
from espalier.search.pruning_loop.pruning_loop import prune
from espalier.search.training.lottery import Refill
from espalier.search.training.schedule import Pruned, Schedule, Site

TRAINED = [
    "schedules:OneCut",
    "soft",
    "gradual",
    "set",
    "rigl",
    "sparse_momentum",
    "hesso",
    "oto",
    "learning_compression",
]
TICKETS = ["lottery", "refill", "schedules:RandomTicket"]
NAMES = {"schedules:OneCut": "one_cut", "schedules:RandomTicket": "random_ticket"}
PAIRS = [
    *((NAMES.get(name, name), "one_cut") for name in TRAINED[1:]),
    ("refill", "random_ticket"),
    ("lottery", "refill"),
]


class OneCut(Schedule):
    """Trained as long as the others, and ranked at the end."""

    def run(self, site: Site) -> Pruned:
        """One training."""
        site.train("trained")
        return Pruned(site.ranking.best(site.scores()))


class RandomTicket(Refill):
    """The widths of a refilled ticket, and channels drawn in every group."""

    def run(self, site: Site) -> Pruned:
        """As many trainings as there are rounds."""
        widths = site.graph.widths(super().run(site).keep)
        drawn = np.random.default_rng(site.seed).random(site.graph.n_channels)
        return Pruned(site.graph.keep_best(drawn, widths))


def run(schedule: str, seed: int, keep: float, out: Path) -> dict[str, Any]:
    """One network pruned."""
    ticket = schedule in TICKETS
    epochs = {"training": 0 if ticket else 10, "regularizer": 8 if ticket else 12, "finetune": 12 if ticket else 8}
    changes = [f"{section}.epochs={count}" for section, count in epochs.items()]
    changes += ["finetune.lr=0.05", "regularizer.lr=0.05", "finetune.seeds=1", "prune.strength=0", f"seed={seed}"]
    config = load_config("digits", [*changes, f"budget.keep={keep}", f"prune.schedule={schedule}"])
    start = time.process_time()
    found = prune(config, out / f"seed{seed}-{ticket}", Silent())
    return {
        "schedule": NAMES.get(schedule, schedule),
        "seed": seed,
        "macs": found.rounds[-1].macs / found.dense_macs,
        "cut": found.before,
        "finetuned": found.after[0],
        "seconds": time.process_time() - start,
    }


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main() -> None:
    """Measures, prints a table and the paired differences, and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=float, default=0.05, help="share of the MACs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for schedule in (*TRAINED, *TICKETS):
                rows.append(run(schedule, seed, options.keep, Path(folder)))
                print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    values = {
        name: {key: [row[key] for row in rows if row["schedule"] == name] for key in rows[0]} for name in names
    }
    print("| schedule | MACs | cut | fine-tuned | seconds |\n|---|---|---|---|---|")
    for name, own in values.items():
        share, seconds = 100 * statistics.mean(own["macs"]), statistics.mean(own["seconds"])
        print(f"| `{name}` | {share:.2f} % | {spread(own['cut'])} | {spread(own['finetuned'])} | {seconds:.0f} |")
    differences = {}
    for one, other in PAIRS:
        pairs = zip(values[one]["finetuned"], values[other]["finetuned"], strict=True)
        differences[f"{one} - {other}"] = [first - second for first, second in pairs]
        print(f"{one} - {other}: {spread(differences[f'{one} - {other}'])}")
    if options.json:
        content = {"keep": options.keep, "torch": torch.__version__, "rows": rows, "differences": differences}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
