"""Runtimes: what runs a network, how long it takes there, and files that it is exported to."""

from espalier.pruning.runtimes.exporting import Exported, export
from espalier.pruning.runtimes.formats import FORMATS, read_metadata
from espalier.pruning.runtimes.onnx_int8 import Agreement
from espalier.pruning.runtimes.runtime import Runtime, Session
from espalier.pruning.runtimes.runtime_table import RUNTIMES
from espalier.pruning.runtimes.timing import Latency, measure, pinned

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "Agreement",
    "Exported",
    "Latency",
    "Runtime",
    "Session",
    "export",
    "measure",
    "pinned",
    "read_metadata",
]
