"""espalier finds how wide each layer of a neural network needs to be.

    graph = espalier.trace(model, example_inputs)
    with espalier.regularized(model, graph, "oicsr_gl", strength=0.01):
        ...  # any training loop
    energies = espalier.channel_energies(model, graph)
    widths = espalier.greedy(graph, energies.numpy(), espalier.Budget(macs=10**9))
    small = espalier.slim(model, graph, graph.keep_best(energies.numpy(), widths))
    task = espalier.FunctionTask(score=evaluate)
    found = espalier.search_widths(model, example_inputs, task, budget=espalier.Budget(macs=0.5))
    network = espalier.load("runs/digits/pruned.espalier")
    espalier.export(network, example_inputs, "network.onnx")

Everything is imported when it is first used, so that ``espalier --help`` answers at once.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from espalier import moved

if TYPE_CHECKING:
    from espalier.pruning.gates.gated import gated
    from espalier.pruning.gates.gates import GATES, Gate
    from espalier.pruning.graph.allocation import greedy, uniform
    from espalier.pruning.graph.budget import Budget
    from espalier.pruning.graph.channel_graph import ChannelGraph
    from espalier.pruning.importance.criteria import CRITERIA
    from espalier.pruning.importance.criterion import Criterion
    from espalier.pruning.importance.energy import channel_energies
    from espalier.pruning.importance.optimizer_hooks import regularized
    from espalier.pruning.importance.regularizers import REGULARIZERS
    from espalier.pruning.latency.measuring import Device, measure_latency
    from espalier.pruning.latency.model import LatencyModel
    from espalier.pruning.runtimes.exporting import export
    from espalier.pruning.slimming.masks import keep_from_masks, set_masks
    from espalier.pruning.slimming.surgery import slim
    from espalier.pruning.trace import trace
    from espalier.search.compare.compare import compare
    from espalier.search.files.network_file import load, save
    from espalier.search.run.search_widths import resume, search_widths
    from espalier.search.tasks.functions import FunctionTask
    from espalier.search.tasks.task import Task
    from espalier.search.tasks.trainers.huggingface import HuggingFaceTask
    from espalier.search.tasks.trainers.lightning import LightningTask
    from espalier.search.tasks.trainers.ultralytics import UltralyticsTask

__version__ = version("espalier")

__all__ = [
    "CRITERIA",
    "GATES",
    "REGULARIZERS",
    "Budget",
    "ChannelGraph",
    "Criterion",
    "Device",
    "FunctionTask",
    "Gate",
    "HuggingFaceTask",
    "LatencyModel",
    "LightningTask",
    "Task",
    "UltralyticsTask",
    "__version__",
    "channel_energies",
    "compare",
    "export",
    "gated",
    "greedy",
    "keep_from_masks",
    "load",
    "measure_latency",
    "regularized",
    "resume",
    "save",
    "search_widths",
    "set_masks",
    "slim",
    "trace",
    "uniform",
]

moved.install()

_WHERE = {
    "Budget": "espalier.pruning.graph.budget",
    "CRITERIA": "espalier.pruning.importance.criteria",
    "ChannelGraph": "espalier.pruning.graph.channel_graph",
    "Criterion": "espalier.pruning.importance.criterion",
    "Device": "espalier.pruning.latency.measuring",
    "FunctionTask": "espalier.search.tasks.functions",
    "GATES": "espalier.pruning.gates.gates",
    "Gate": "espalier.pruning.gates.gates",
    "HuggingFaceTask": "espalier.search.tasks.trainers.huggingface",
    "LatencyModel": "espalier.pruning.latency.model",
    "LightningTask": "espalier.search.tasks.trainers.lightning",
    "REGULARIZERS": "espalier.pruning.importance.regularizers",
    "Task": "espalier.search.tasks.task",
    "UltralyticsTask": "espalier.search.tasks.trainers.ultralytics",
    "channel_energies": "espalier.pruning.importance.energy",
    "compare": "espalier.search.compare.compare",
    "export": "espalier.pruning.runtimes.exporting",
    "gated": "espalier.pruning.gates.gated",
    "greedy": "espalier.pruning.graph.allocation",
    "keep_from_masks": "espalier.pruning.slimming.masks",
    "load": "espalier.search.files.network_file",
    "measure_latency": "espalier.pruning.latency.measuring",
    "regularized": "espalier.pruning.importance.optimizer_hooks",
    "resume": "espalier.search.run.search_widths",
    "save": "espalier.search.files.network_file",
    "search_widths": "espalier.search.run.search_widths",
    "set_masks": "espalier.pruning.slimming.masks",
    "slim": "espalier.pruning.slimming.surgery",
    "trace": "espalier.pruning.trace",
    "uniform": "espalier.pruning.graph.allocation",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name == "search":  # the function of 0.1, which says what it is now
        return importlib.import_module("espalier.search")
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
