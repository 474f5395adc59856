"""Contractions: linear layers, matrix products, einsum, attention. Each is described by its index letters."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from string import ascii_letters

from espalier.pruning.tracing.labels import Ints, Labelled
from espalier.pruning.tracing.recording import Stored
from espalier.pruning.tracing.rules.calls import Call, Rule, Tracer, Value, freeze, shared

Operand = tuple[Value, str]
"""A tensor and a letter for each of its dimensions."""


def contract(tracer: Tracer, call: Call, operands: Sequence[Operand], output: str) -> Labelled:
    """Sums products over the letters that `output` lacks, and counts the MACs.

    Operands that share a letter hold the same channels along it. A letter that only a weight has, and the output,
    is one that the weight writes.

    Args:
        tracer: where labels are unified and weights are bound.
        call: the operation.
        operands: two tensors with their letters.
        output: the letters of the result.
    """
    sizes = {letter: size for value, letters in operands for letter, size in zip(letters, value.shape, strict=True)}
    rows: dict[str, Ints | None] = {letter: None for letter in sizes}
    for letter in sizes:
        holders = [(value, letters.index(letter)) for value, letters in operands if letter in letters]
        weights = [(value, dim) for value, dim in holders if tracer.is_weight(value)]
        activations = [(value, dim) for value, dim in holders if not tracer.is_weight(value)]
        if len(weights) > 1:  # a product of weights, as of a learned query: the first is like an activation
            activations = [(tracer.labels_of(value), dim) for value, dim in weights[:1]]
            weights = weights[1:]
        if activations:
            rows[letter] = shared(tracer, call, [value.dims[dim] for value, dim in activations])
        elif letter in output:
            rows[letter] = tracer.store.fresh(sizes[letter])
        for value, dim in weights:
            known = rows[letter]
            if known is not None:
                tracer.bind(value, dim, known, "in" if activations else "out")
    sides = [known for known in rows.values() if known is not None]
    if len(operands) > 1:  # of one, dimensions are only moved and summed
        tracer.contract(prod(size for letter, size in sizes.items() if rows[letter] is None), sides)
    return Labelled(tuple(rows[letter] for letter in output), tuple(sizes[letter] for letter in output))


def linear(tracer: Tracer, call: Call) -> Labelled:
    """Y = x W^T + b over the last dimension; W is (out, in)."""
    x, weight = tracer.labels_of(call.args["input"]), call.args["weight"]
    lead = ascii_letters[: len(x.shape) - 1]
    result = contract(tracer, call, [(x, lead + "Y"), (weight, "ZY")], lead + "Z")
    tracer.bind(call.args["bias"], 0, result.rows(-1), "bias")
    return result


def matmul(tracer: Tracer, call: Call) -> Labelled:
    """Matrix product with broadcast batch dimensions; also of and with vectors."""
    first, second = (value for value in call.args.values() if isinstance(value, Labelled | Stored))
    return product(tracer, call, first, second)


def product(tracer: Tracer, call: Call, first: Value, second: Value) -> Labelled:
    """First @ second."""
    batch = max(len(first.shape), len(second.shape), 2) - 2
    lead = ascii_letters[:batch]
    left = lead[batch + 2 - len(first.shape) :] + "YK" if len(first.shape) > 1 else "K"
    right = lead[batch + 2 - len(second.shape) :] + "KZ" if len(second.shape) > 1 else "K"
    output = lead + ("Y" if len(first.shape) > 1 else "") + ("Z" if len(second.shape) > 1 else "")
    sizes = [dict(zip(letters, value.shape, strict=True)) for value, letters in ((first, left), (second, right))]
    broadcast = {letter for letter in lead if sizes[0].get(letter, 1) != sizes[1].get(letter, 1)}
    operands = [
        _without(tracer, call, value, letters, {letter for letter in broadcast if own.get(letter) == 1})
        for (value, letters), own in zip(((first, left), (second, right)), sizes, strict=True)
    ]
    return contract(tracer, call, operands, output)


def _without(tracer: Tracer, call: Call, value: Value, letters: str, gone: set[str]) -> Operand:
    """An operand without dimensions of size one that are repeated over the other's."""
    if not gone:
        return value, letters
    labelled = tracer.labels_of(value)
    dims = []
    for letter, rows in zip(letters, labelled.dims, strict=True):
        if letter not in gone:
            dims.append(rows)
        elif rows is not None:
            tracer.store.freeze(rows, f"{call.where}: is broadcast over channels")
    shape = tuple(size for letter, size in zip(letters, labelled.shape, strict=True) if letter not in gone)
    return Labelled(tuple(dims), shape), "".join(letter for letter in letters if letter not in gone)


def grouped_matmul(tracer: Tracer, call: Call) -> Value:
    """Rows (t, in), each times the matrix of its group of (groups, in, out): a layer per expert."""
    x, weight = tracer.labels_of(call.args["self"]), call.args["mat2"]
    if len(x.shape) != 2 or len(weight.shape) != 3 or not tracer.is_weight(weight) or call.args["bias"] is not None:
        return freeze(tracer, call)
    written = tracer.store.fresh(weight.shape[2])
    tracer.bind(weight, 1, x.rows(1), "in")
    tracer.bind(weight, 2, written, "out")
    tracer.contract(x.shape[0], [x.rows(1), written])
    return Labelled((x.dims[0], written), call.shape)


def sum_with_product(tracer: Tracer, call: Call) -> Labelled:
    """Input + first @ second."""
    names = [name for name, value in call.args.items() if isinstance(value, Labelled | Stored)]
    bias, first, second = (call.args[name] for name in names)
    result = product(tracer, call, first, second)
    if isinstance(bias, Stored) and len(bias.shape) == 1:
        tracer.bind(bias, 0, result.rows(-1), "bias")
        return result
    added = tracer.labels_of(bias)
    for back in range(-len(added.shape), 0):
        tracer.store.unify(added.rows(back), result.rows(back), call.where)
    return result


def einsum(tracer: Tracer, call: Call) -> Value:
    """Einstein summation of one or two tensors, without repeated letters in one of them."""
    values = call.args["tensors"]
    inputs, arrow, output = call.args["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    used = set(inputs) | set(output)
    spare = "".join(letter for letter in ascii_letters if letter not in used)
    dots = max((len(v.shape) - len(t.replace("...", "")) for v, t in zip(values, terms, strict=True)), default=0)
    expanded = []
    for value, term in zip(values, terms, strict=True):
        own = len(value.shape) - len(term.replace("...", ""))
        expanded.append(term.replace("...", spare[dots - own : dots]))
    if not arrow:
        output = "..." + "".join(sorted(x for x in used if x.isalpha() and inputs.count(x) == 1))
    output = output.replace("...", spare[:dots])
    repeated = any(len(set(term)) < len(term) for term in expanded)
    sizes: dict[str, set[int]] = {}
    for value, term in zip(values, expanded, strict=True):
        for letter, size in zip(term, value.shape, strict=True):
            sizes.setdefault(letter, set()).add(size)
    if repeated or len(values) > 2 or any(len(found) > 1 for found in sizes.values()):
        return freeze(tracer, call)
    return contract(tracer, call, list(zip(values, expanded, strict=True)), output)


def attention(tracer: Tracer, call: Call) -> Value:
    """softmax(scale Q K^T + mask) V; heads, query-key channels and value channels come and go apart."""
    query, key, value = (tracer.labels_of(call.args[name]) for name in ("query", "key", "value"))
    lead = ascii_letters[: len(query.shape) - 2]
    if not len(query.shape) == len(key.shape) == len(value.shape) or not (
        query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    ):
        return freeze(tracer, call)
    if call.args.get("scale") is None and query.dims[-1] is not None and not tracer.rescale_query(query.dims[-1]):
        tracer.store.freeze(query.rows(-1), f"{call.where}: its scale follows from the size of a head")
        tracer.store.freeze(key.rows(-1), f"{call.where}: its scale follows from the size of a head")
    if call.args.get("is_causal"):
        for tokens in (query, key):
            tracer.store.freeze(tokens.rows(-2), f"{call.where}: what comes before what")
    scores = contract(tracer, call, [(query, lead + "LE"), (key, lead + "SE")], lead + "LS")
    mask = call.args.get("attn_mask")
    if mask is not None:
        mask = tracer.labels_of(mask)
        for back in range(-len(mask.shape), 0):
            if mask.shape[back] > 1:
                tracer.store.unify(mask.rows(back), scores.rows(back), call.where)
    return contract(tracer, call, [(scores, lead + "LS"), (value, lead + "SV")], lead + "LV")


RULES: dict[str, Rule] = {
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), sum_with_product),
    "einsum": einsum,
    "_grouped_mm": grouped_matmul,
    "scaled_dot_product_attention": attention,
}
"""Operation -> rule."""
