"""Rules of recurrent layers: LSTM, GRU, and the plain ones."""

from __future__ import annotations

from math import prod

import numpy as np

from espalier.pruning.tracing.labels import Ints, Labelled
from espalier.pruning.tracing.recording import Stored
from espalier.pruning.tracing.rules.calls import Call, Rule, Tracer, Value, freeze, tensors_in

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Layer -> how many times the hidden channels stand along the first dimension of its weights."""


def recurrent(tracer: Tracer, call: Call) -> Value:
    """All layers and directions have the same hidden channels, or the same projected ones: one attribute says both.

    Sequences of unequal lengths, packed, freeze.
    """
    weights = call.args["params"]
    value = tracer.labels_of(call.args["input"]) if "input" in call.args else None
    if value is None or not all(isinstance(weight, Stored) for weight in weights):
        return _frozen(tracer, call)
    gates, directions = GATES[call.name], 2 if call.args["bidirectional"] else 1
    cells = call.args["num_layers"] * directions
    projected = len(weights) // cells in (3, 5)
    hidden = tracer.store.fresh(weights[0].shape[0] // gates)
    seen = tracer.store.fresh(weights[1].shape[1]) if projected else hidden  # by the next step and the next layer
    for rows in (rows for rows in value.dims[:-1] if rows is not None):
        tracer.store.freeze(rows, f"{call.where}: comes one after another")
    steps = prod(value.shape[:-1])
    per_cell = len(weights) // cells
    for cell in range(cells):
        reads = value.dims[-1] if cell < directions else np.tile(seen, (directions, 1))
        size = weights[cell * per_cell].shape[1]
        _cell(tracer, weights[cell * per_cell : (cell + 1) * per_cell], gates, reads, hidden, seen, projected)
        tracer.contract(steps * gates * (1 if reads is not None else size), [hidden, *_present(reads)])
        tracer.contract(steps * gates, [hidden, seen])
        if projected:
            tracer.contract(steps, [hidden, seen])
    states = call.args["hx"] if isinstance(call.args["hx"], list | tuple) else [call.args["hx"]]
    for state, rows in zip(states, (seen, hidden), strict=False):
        tracer.store.unify(tracer.labels_of(state).rows(-1), rows, f"{call.where}: starts from a given state")
    last = [np.tile(seen, (directions, 1)), seen, hidden]
    return [
        Labelled((*(None,) * (len(shape) - 1), rows), shape) for shape, rows in zip(call.shapes, last, strict=False)
    ]


def _present(rows: Ints | None) -> list[Ints]:
    return [] if rows is None else [rows]


def _cell(
    tracer: Tracer,
    weights: list[Stored],
    gates: int,
    reads: Ints | None,
    hidden: Ints,
    seen: Ints,
    projected: bool,
) -> None:
    """Binds the weights of one layer and direction."""
    written = np.tile(hidden, (gates, 1))
    projection = weights[-1] if projected else None
    for weight, rows in zip(weights, (reads, seen), strict=False):
        tracer.bind(weight, 0, written, "out")
        if rows is not None:
            tracer.bind(weight, 1, rows, "in")
    for bias in weights[2 : len(weights) - projected]:
        tracer.bind(bias, 0, written, "bias")
    if projection is not None:
        tracer.bind(projection, 0, seen, "out")
        tracer.bind(projection, 1, hidden, "in")


def _frozen(tracer: Tracer, call: Call) -> Value:
    """Every weight multiplies at every step of time."""
    values = tensors_in(call.args)
    matrices = [value for value in values if isinstance(value, Stored) and len(value.shape) == 2]
    tracer.contract(prod(values[0].shape[:-1]) * sum(prod(matrix.shape) for matrix in matrices), [])
    return freeze(tracer, call)


RULES: dict[str, Rule] = dict.fromkeys(GATES, recurrent)
"""Operation -> rule."""
