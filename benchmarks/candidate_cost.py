"""What scoring one candidate costs: against bare forward passes of its network, and against the plain way.

    pip install torch-pruning
    python benchmarks/candidate_cost.py --json candidate_cost.json
    python benchmarks/candidate_cost.py --print candidate_cost.json

For ResNet-20 and ResNet-56 at 32 x 32, per candidate: (ours) `Evaluator` as a search sets it up; (bare) the passes
of the network that is cut already, at the same setting, on the same images: calibration (norms in training mode),
then scoring; (plain) a deep copy, Torch-Pruning, and the same passes in fp32, NCHW and batches of 250, from images
that are normalised already. Seconds are those of the processor, on one thread; the three take turns, and each ratio
is of neighbours, so that what else the machine does meets all alike. What the convolutions alone take of ours is
told by PyTorch's profiler, and set against the whole of the plain way: with the same convolutions, no candidate can
cost less. Shortcuts are projections (shortcut B), as Torch-Pruning does not follow zero-padded ones. Images and
weights are random: passes cost the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from espalier.pruning.graph.allocation import greedy
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.trace import trace
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.files.json_files import write_json
from espalier.search.spaces.candidate import Candidate
from espalier.search.tasks.classification.data import InMemoryImages, Splits, normalize
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.execution import Execution

NETWORKS = ("resnet20", "resnet56")
KEEP = (0.5, 0.3)
PLAIN_BATCH = 250
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def spec_of(model: nn.Module, graph: ChannelGraph, scoring: int, calibration: int) -> EvaluationSpec:
    """A worker's spec on random images, energies random."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> InMemoryImages:
        pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return InMemoryImages(pixels, torch.randint(0, 10, (count,), generator=generator))

    splits = Splits(images(calibration), images(scoring), images(1), tuple("0123456789"), MEAN, STD)
    return EvaluationSpec.of(
        graph,
        [model],
        [np.random.default_rng(0).random(graph.n_channels)],
        ImageScoring.of(
            splits,
            model,
            torch.arange(scoring),
            calibration=calibration,
            steps=0,
            recipe=Recipe(epochs=0, batch_size=64, lr=0.1),
        ),
        Execution(batch_size=64, precision="fp32"),
        proxy="recalibrated",
    )


def draw(graph: ChannelGraph, keep: float, count: int, generator: np.random.Generator) -> list[Candidate]:
    """Random widths that use a fraction of the MACs."""
    budget = int(keep * graph.macs(graph.sizes))
    found = []
    for _ in range(count):
        scores = (
            generator.random(graph.n_channels) * np.exp(generator.normal(size=len(graph.sizes)))[graph.group_of]
        )
        widths = greedy(graph, scores, budget, np.ones_like(graph.sizes))
        found.append(Candidate(0, tuple(int(width) for width in widths)))
    return found


def images_of(spec: EvaluationSpec) -> ImageScoring:
    """What candidates are scored on."""
    assert isinstance(spec.scoring, ImageScoring)
    return spec.scoring


class Plain:
    """A deep copy, Torch-Pruning, fp32, NCHW, batches of 250."""

    def __init__(self, model: nn.Module, spec: EvaluationSpec) -> None:
        self._model, self._spec = model, spec
        own = images_of(spec)
        self._calibration, self._scoring = (
            normalize(torch.from_numpy(each), own.mean, own.std).split(PLAIN_BATCH)
            for each in (own.calibration_images, own.images)
        )
        self._labels = torch.from_numpy(own.labels)

    def __call__(self, candidate: Candidate) -> float:
        """Cross-entropy of the candidate."""
        network = copy.deepcopy(self._model)
        graph: Any = torch_pruning.DependencyGraph().build_dependency(network, self._scoring[0][:1], verbose=False)
        for name, outputs in self._removed(candidate):
            layer = network.get_submodule(name)
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, outputs).prune()
        statistics_pass(network, self._calibration)
        with torch.no_grad():
            logits = torch.cat([network(batch) for batch in self._scoring])
        return float(F.cross_entropy(logits, self._labels))

    def _removed(self, candidate: Candidate) -> list[tuple[str, list[int]]]:
        """For every group, a layer that writes it and the outputs of that layer that go."""
        graph, found = self._spec.graph, []
        keep = torch.split(self._spec.keep(candidate), graph.sizes.tolist())
        for group, kept in zip(graph.groups, keep, strict=True):
            member = next(m for m in group.members if m.role == "out")
            gone = ~kept.numpy()[member.channels]
            found.append((member.tensor.rpartition(".")[0], member.positions[gone].tolist()))
        return found


def statistics_pass(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """BN statistics by passes in training mode, plainly; the network is in eval mode afterwards."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    network.eval()


def bare(networks: CandidateNetworks, network: nn.Module) -> None:
    """The passes alone, of a network that is cut already."""
    with networks.runner.autocast():
        statistics_pass(network, images_of(networks.spec).calibration(networks.runner))
        with torch.inference_mode():
            for batch in images_of(networks.spec).inputs(networks.runner):
                network(batch)


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def convolutions(run: Callable[[], object]) -> float:
    """Seconds of one run that are spent in convolutions alone."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    microseconds: float = sum(each.self_cpu_time_total for each in seen.key_averages() if "conv" in each.key)
    return microseconds / 1e6


def memory_of(spec: EvaluationSpec, candidate: Candidate) -> float:
    """MiB that an evaluator takes in a process of its own, from the spec until a candidate is scored."""
    torch.set_num_threads(1)
    before = resident()
    evaluator = Evaluator(spec)
    evaluator(candidate)
    return resident() - before


def resident() -> float:
    """Resident memory of this process, in MiB; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network."""
    torch.manual_seed(0)
    model = build(name, shortcut="B").eval()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    spec = spec_of(model, graph, args.scoring, args.calibration)
    generator = np.random.default_rng(0)
    execution = Execution.asked({"precision": args.precision}, torch.device("cpu"))
    print(name, execution.words(of_images=True), flush=True)
    run = replace(spec, execution=execution)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        memory = worker.submit(memory_of, run, draw(graph, 0.5, 1, generator)[0]).result()
    evaluator, passes, plain = Evaluator(run), CandidateNetworks(run), Plain(model, spec)
    exact = Evaluator(spec)
    rows = []
    for keep in KEEP:
        taken: list[tuple[float, float, float]] = []
        convolved: list[float] = []
        for number, candidate in enumerate(draw(graph, keep, args.candidates, generator)):
            network = passes.cut(candidate)
            if number == 0:  # the plain way judges the same network
                losses = plain(candidate), exact(candidate).measures["cross_entropy"]
                if abs(losses[0] - losses[1]) > 0.02 * losses[0]:
                    raise SystemExit(f"the plain way cuts another network: cross-entropies {losses}")
            ways: list[Callable[[], object]] = [
                partial(evaluator, candidate),
                partial(bare, passes, network),
                partial(plain, candidate),
            ]
            convolved.append(convolutions(ways[0]) / seconds(ways[2]))
            with passes.runner.quantised(network):
                for turn in range(args.repeats):
                    times = {way: seconds(ways[way]) for way in ((turn + n) % 3 for n in range(3))}
                    taken.append((times[0], times[1], times[2]))
        rows.append(
            {
                "keep": keep,
                "candidates": args.candidates,
                "ours_s": spread([ours for ours, _, _ in taken]),
                "bare_s": spread([passes for _, passes, _ in taken]),
                "plain_s": spread([plain for _, _, plain in taken]),
                "ours_over_bare": spread([ours / passes for ours, passes, _ in taken]),
                "ours_over_plain": spread([ours / plain for ours, _, plain in taken]),
                "convolutions_over_plain": spread(convolved),
            }
        )
    return {"network": name, "execution": execution.to_json(), "evaluator_mib": round(memory, 1), "rows": rows}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    chosen = {"low": low, "median": middle, "high": high}
    return {key: float(f"{value:.4g}") for key, value in chosen.items()}


def processor() -> str:
    """Cores and model of the processor, and the vector instructions that PyTorch uses."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{os.cpu_count()} cores, {model}, {torch.backends.cpu.get_cpu_capability()}"


def show(report: dict[str, Any]) -> None:
    """Prints the table of a results file."""
    title = (
        f"seconds per candidate, {report['calibration']} calibration and {report['scoring']} scoring images, one "
        f"thread, {report['machine']}, torch {report['torch']}: medians (quartiles)"
    )
    table = Table(title=title, box=None)
    headings = ("ours", "bare passes", "plain way", "ours / bare", "ours / plain", "convolutions / plain")
    for heading in ("network", "MACs", *headings):
        table.add_column(heading, justify="right")
    for result in report["results"]:
        for row in result["rows"]:
            keys = ("ours_s", "bare_s", "plain_s", "ours_over_bare", "ours_over_plain", "convolutions_over_plain")
            cells = [f"{row[k]['median']:.3g} ({row[k]['low']:.3g} to {row[k]['high']:.3g})" for k in keys]
            table.add_row(result["network"], f"{row['keep']:.0%}", *cells)
    console = Console(width=max(Console().width, 180))
    console.print(table)
    for result in report["results"]:
        done, memory = result["execution"], result["evaluator_mib"]
        setting = f"batches of {done['batch_size']}, {done['memory_format']}, {done['precision']}"
        console.print(
            f"{result['network']}: {setting}; an evaluator takes {memory:.0f} MiB, beyond the interpreter and the "
            "spec, which the workers of a node share",
            highlight=False,
            soft_wrap=True,
        )


def main() -> None:
    """Measures, prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=5, help="per network and budget")
    parser.add_argument("--repeats", type=int, default=3, help="of each candidate")
    parser.add_argument("--scoring", type=int, default=1000, help="images")
    parser.add_argument("--calibration", type=int, default=500, help="images")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "int8"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go, too")
    parser.add_argument("--print", dest="shown", type=Path, metavar="FILE", help="only print a results file")
    args = parser.parse_args()
    if args.shown is not None:
        show(json.loads(args.shown.read_text()))
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch_pruning")
    report = {
        "benchmark": "candidate_cost",
        "scoring": args.scoring,
        "calibration": args.calibration,
        "candidates": args.candidates,
        "repeats": args.repeats,
        "machine": processor(),
        **{name: version(name) for name in ("torch", "torch-pruning")},
        "results": [measure(name, args) for name in NETWORKS],
    }
    show(report)
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
