"""The tables of ``espalier inspect``: operations, groups, and what is frozen, as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from espalier.inspection.document import Cost, Inspection, OperationReport
from espalier.pruning.graph.groups import Group

MOST_ROWS = 120
"""Longer tables are summed by module, unless the user asks for each operation."""

MOST_NAMES = 4
"""Members of a group, or groups frozen for one reason, that are named before the others are counted."""


@dataclass(frozen=True)
class Row:
    """One line of the table of operations: one operation, or all those of one module."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    dense: Cost
    kept: Cost | None


def show(console: Console, inspection: Inspection, every: bool = False, depth: int | None = None) -> None:
    """Prints the operations, the totals, the groups, and what is frozen and why.

    Args:
        console: where to.
        inspection: what.
        every: also operations without MACs and parameters, and all names in full.
        depth: one row for each module so deep in the network, 0 for the network as a whole; by default one for
            each operation, or, where these are more than `MOST_ROWS`, one for each module as deep as they fit.
    """
    rows, title = rows_of(inspection, every, depth)
    console.print(Text(title, style="bold"))
    for line in _lines(inspection, rows, console.width):
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    console.print(_totals(inspection), highlight=False)
    console.print()
    console.print(_groups(inspection, every))
    console.print()
    for text in _frozen(inspection, every):
        console.print(text, highlight=False)


def rows_of(inspection: Inspection, every: bool = False, depth: int | None = None) -> tuple[list[Row], str]:
    """The rows of the table of operations, and its title."""
    operations = [operation for operation in inspection.operations if every or operation.matters]
    count = f"{len(operations)} of {len(inspection.operations)} operations"
    if every:
        count = f"all {len(operations)} operations"
    if depth is None and (every or len(operations) <= MOST_ROWS):
        rows = [Row(o.layer, o.kind, o.shape, o.reads, o.writes, o.dense, o.kept) for o in operations]
        return rows, f"{inspection.network}: {count}" + ("" if every else " (those with MACs or parameters)")
    if depth is None:
        deepest = max(operation.layer.count(".") + 1 for operation in operations)
        fitting = (d for d in range(deepest, 0, -1) if len(_modules(inspection, d, every)) <= MOST_ROWS)
        depth = next(fitting, 1)
    rows = [_summed(inspection, layer, found) for layer, found in _modules(inspection, depth, every).items()]
    return rows, (
        f"{inspection.network}: {len(inspection.operations)} operations, summed by module to depth {depth} "
        "(--all lists each, --depth N others)"
    )


def _modules(inspection: Inspection, depth: int, every: bool) -> dict[str, list[OperationReport]]:
    """Operations by the module that they run in; only modules that cost MACs or hold parameters, unless `every`."""
    found: dict[str, list[OperationReport]] = {}
    for operation in inspection.operations:
        found.setdefault(".".join(operation.layer.split(".")[:depth]), []).append(operation)
    return {layer: inside for layer, inside in found.items() if every or any(o.matters for o in inside)}


def _summed(inspection: Inspection, layer: str, operations: list[OperationReport]) -> Row:
    """What the operations read that they do not write, what they write, and what they cost together."""
    if len(operations) == 1:
        only = operations[0]
        return Row(layer, only.kind, only.shape, only.reads, only.writes, only.dense, only.kept)
    numbers = {operation.number for operation in operations}
    first, last = operations[0], operations[-1]
    outside = {group for o in operations if not numbers & set(o.inputs) for group in o.reads}
    kept = [o.kept for o in operations if o.kept is not None]
    return Row(
        layer,
        f"{len(operations)} ops",
        last.shape,
        first.reads or tuple(sorted(outside)),
        last.writes,
        _sum(o.dense for o in operations),
        _sum(kept) if kept else None,
    )


def _sum(costs: Iterable[Cost]) -> Cost:
    total = Cost(0, 0, 0)
    for cost in costs:
        total = Cost(
            total.macs + cost.macs,
            total.parameters + cost.parameters,
            total.activation_bytes + cost.activation_bytes,
        )
    return total


# -- the table of operations: rich has no cell that spans columns, which the second line of a row needs


def _lines(inspection: Inspection, rows: Sequence[Row], width: int) -> list[Text]:
    titles, cells = _cells(inspection, rows, width)
    columns = list(zip(titles, *cells, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    left = 3 if "kind" in titles else 2  # columns of text; the others are numbers
    rest = sum(sizes[1:]) + 2 * len(sizes[1:])
    sizes[0] = max(12, min(sizes[0], width - rest))
    flows = [_flow(inspection, row, width - 4) for row in rows]
    beside = width - sizes[0] - rest - 2
    beside = beside if beside >= 16 else 0

    def line(values: Sequence[str]) -> Text:
        parts = [shortened(values[0], sizes[0]).ljust(sizes[0])]
        for number, (value, size) in enumerate(zip(values[1:], sizes[1:], strict=True), 1):
            parts.append(value.ljust(size) if number < left else value.rjust(size))
        return Text("  ".join(parts))

    header = line(titles)
    header.append("  reads → writes" if beside else "")
    header.stylize("bold")
    lines = [header]
    for row, values, flow in zip(rows, cells, flows, strict=True):
        text = line(values)
        passes = row.reads == row.writes
        if len(flow) <= beside:
            text.append(f"  {flow}", style="cyan")
            lines.append(text)
        else:
            lines.append(text)
            if not passes:
                lines.append(Text(f"    {flow}", style="cyan"))
    return lines


def _cells(inspection: Inspection, rows: Sequence[Row], width: int) -> tuple[list[str], list[list[str]]]:
    """Titles and values; of two networks, a narrow terminal shows MACs and parameters only."""
    total = max(1, inspection.dense.macs)
    titles = ["layer", "kind", "output", "MACs", "share", "params", "memory"]
    if inspection.kept is not None:
        titles = ["layer", "kind", "output", "MACs", "kept", "share", "params", "kept", "memory", "kept"]
        if width < 100:
            titles = ["layer", "output", "MACs", "kept", "share", "params", "kept"]
    cells = []
    for row in rows:
        values = {
            "layer": row.layer or "(network)",
            "kind": _cut(row.kind, 12),
            "output": _cut(_shape(row.shape), 14),
        }
        values["share"] = f"{row.dense.macs / total:.1%}" if row.dense.macs else ""
        pairs = {
            "MACs": (row.dense.macs, row.kept and row.kept.macs, ""),
            "params": (row.dense.parameters, row.kept and row.kept.parameters, ""),
            "memory": (row.dense.activation_bytes, row.kept and row.kept.activation_bytes, "B"),
        }
        line: list[str] = []
        for number, title in enumerate(titles):
            if title == "kept":
                _, fewer, unit = pairs[next(t for t in reversed(titles[:number]) if t in pairs)]
                line.append(short(fewer or 0, unit))
            elif title in pairs:
                line.append(short(pairs[title][0], pairs[title][2]))
            else:
                line.append(values[title])
        cells.append(line)
    return titles, cells


def _flow(inspection: Inspection, row: Row, width: int) -> str:
    """What is read and written: ``16 conv1 → 32 layer2.0.conv1``, once where both are the same.

    Names are shortened as far as it takes to fit the width.
    """
    text = ""
    for longest in range(60, 7, -4):
        reads, writes = (_held(inspection, groups, longest) for groups in (row.reads, row.writes))
        text = reads if row.reads == row.writes else f"{reads or 'fixed'} → {writes or 'fixed'}"
        if len(text) <= width:
            break
    return text


def _held(inspection: Inspection, groups: Sequence[int], longest: int) -> str:
    if len(groups) > 2:
        widths = [inspection.width(group) for group in groups]
        kept = [inspection.kept_width(group) or 0 for group in groups]
        return f"{len(groups)} groups, {_of(sum(kept), sum(widths), inspection)} channels"
    return ", ".join(_with_width(inspection, group, longest) for group in groups)


def _with_width(inspection: Inspection, number: int, longest: int) -> str:
    group = inspection.groups[number]
    frozen = " (frozen)" if group.frozen else ""
    return f"{_of(inspection.kept_width(number), group.size, inspection)} {shortened(group.name, longest)}{frozen}"


def _of(kept: int | None, width: int, inspection: Inspection) -> str:
    return f"{width}" if inspection.kept is None or kept is None or kept == width else f"{kept} of {width}"


def _totals(inspection: Inspection) -> str:
    dense, kept = inspection.dense, inspection.kept
    text = (
        f"{dense.macs:,} MACs (multiply-adds of one example; FLOPs = 2 x MACs), {dense.parameters:,} parameters, "
        f"{dense.activation_bytes:,} bytes of activations at the peak"
    )
    if kept is not None:
        text += (
            f"\nkept at --keep {inspection.keep:g}, the same share of every group: {kept.macs:,} MACs "
            f"({kept.macs / dense.macs:.1%}), {kept.parameters:,} parameters "
            f"({kept.parameters / dense.parameters:.1%}), "
            f"{kept.activation_bytes:,} bytes of activations at the peak "
            f"({kept.activation_bytes / dense.activation_bytes:.1%})"
        )
    return text


# -- groups


def _groups(inspection: Inspection, every: bool) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right")
    if inspection.kept is not None:
        table.add_column("kept", justify="right")
    table.add_column("MACs of one", justify="right")
    table.add_column("members", overflow="fold")
    graph = inspection.graph
    for number, (group, cost) in enumerate(zip(graph.groups, graph.channel_costs().tolist(), strict=True)):
        layers = dict.fromkeys(member.tensor.rpartition(".")[0] or member.tensor for member in group.members)
        kept = [] if inspection.kept is None else [str(inspection.kept_width(number))]
        table.add_row(group.name, str(group.size), *kept, f"{cost:,}", _named(list(layers), every))
    return table


def _frozen(inspection: Inspection, every: bool) -> list[str]:
    """One line for each frozen group, one for each reason where there are many; what keeps the most MACs first."""
    graph = inspection.graph
    kept = graph.macs_kept_by_reason()
    reasons: dict[str, list[Group]] = {reason: [] for reason in kept}
    for group in graph.frozen:
        reasons[group.frozen or ""].append(group)
    gathered = not every and len(graph.frozen) > MOST_NAMES
    lines = []
    for reason, groups in reasons.items():
        share = kept[reason] / max(1, inspection.dense.macs)
        told = f"; keeps {share:.1%} of the MACs" if share >= 0.0005 else ""
        if not gathered:
            lines += [f"frozen: {group.name} ({group.size} channels): {reason}{told}" for group in groups]
        elif groups:
            names = list(dict.fromkeys(group.name for group in groups))
            counted = f"{len(groups)} groups with" if len(groups) > 1 else "1 group with"
            channels = sum(group.size for group in groups)
            lines.append(f"frozen: {counted} {channels} channels: {reason}: {_named(names, every)}{told}")
    return lines


def _named(names: list[str], every: bool) -> str:
    if every or len(names) <= MOST_NAMES + 1:
        return ", ".join(names)
    return ", ".join(names[:MOST_NAMES]) + f" and {len(names) - MOST_NAMES} more"


# -- how things are written


def _shape(shape: tuple[int, ...]) -> str:
    """Without the batch where it is one example."""
    return "x".join(map(str, shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape))


def shortened(text: str, width: int) -> str:
    """The end of a text that is too long, which tells layers apart.

    >>> shortened("features.denseblock1.denselayer2", 20)
    '…eblock1.denselayer2'
    """
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def short(number: int, unit: str = "") -> str:
    """Three digits and a letter; nothing for 0.

    >>> [short(n) for n in (0, 999, 2_304, 999_999, 40_551_040)]
    ['', '999', '2.30k', '1.00M', '40.6M']
    """
    if not number:
        return ""
    value, letters = float(number), ["", "k", "M", "G", "T", "P"]
    while float(f"{value:.3g}") >= 1000 and len(letters) > 1:
        value /= 1000
        letters = letters[1:]
    if letters[0] == "":
        return f"{number}{unit}"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{letters[0]}{unit}"
