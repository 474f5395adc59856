"""Latency as a cost: what a network takes on a device, measured on some pruned ones and modelled for all widths."""

from espalier.pruning.latency.measuring import Device, measure_latency
from espalier.pruning.latency.model import LatencyModel

__all__ = ["Device", "LatencyModel", "measure_latency"]
