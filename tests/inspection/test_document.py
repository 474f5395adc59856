"""What inspect shows: every number adds up, and the document says what the graph says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import espalier
from espalier.errors import BudgetInfeasible, ConfigError
from espalier.inspection.document import FORMAT, Inspection, inspection, write_json
from espalier.inspection.tables import MOST_ROWS, rows_of, short, show
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import build
from espalier.pruning.slimming.surgery import slim


class Tied(nn.Module):
    """A weight that two operations share, and one that none reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.unread = nn.Parameter(torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.second(x)))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "resnet20": lambda: (build("resnet20"), (3, 32, 32)),
    "densenet40": lambda: (build("densenet40"), (3, 32, 32)),
    "shufflenet_v2": lambda: (build("shufflenet_v2"), (3, 64, 64)),
    "preact_senet18": lambda: (build("preact_senet18"), (3, 32, 32)),
    "tied": lambda: (Tied(), (6,)),
}


def traced(name: str) -> ChannelGraph:
    network, shape = NETWORKS[name]()
    return espalier.trace(network.eval(), torch.zeros(1, *shape))


@pytest.fixture(scope="module")
def resnet() -> Inspection:
    return inspection(traced("resnet20"), "resnet20", keep=0.5)


def printed(found: Inspection, width: int, every: bool = False, depth: int | None = None) -> list[str]:
    written = io.StringIO()
    show(Console(width=width, color_system=None, file=written), found, every, depth)
    return written.getvalue().splitlines()


@pytest.mark.parametrize("name", NETWORKS)
def test_operations_add_up_to_the_network(name: str) -> None:
    graph = traced(name)
    unread = 7 if name == "tied" else 0
    found = inspection(graph, name, keep=0.6)
    for total, costs in (
        (found.dense, [o.dense for o in found.operations]),
        (found.kept, [o.kept for o in found.operations if o.kept is not None]),
    ):
        assert total is not None and len(costs) == len(graph.operations)
        assert sum(cost.macs for cost in costs) == total.macs
        assert sum(cost.parameters for cost in costs) == total.parameters - unread
        assert max(cost.activation_bytes for cost in costs) <= total.activation_bytes
    assert found.dense.macs == graph.macs(graph.sizes) and found.dense.parameters == graph.params(graph.sizes)


def test_numbers_of_one_operation_by_hand(resnet: Inspection) -> None:
    (conv,) = (o for o in resnet.operations if o.layer == "layer2.0.conv1")
    assert (conv.kind, conv.shape, conv.tensors) == ("conv2d", (1, 32, 16, 16), ("layer2.0.conv1.weight",))
    assert conv.dense.macs == 32 * 16 * 9 * 16 * 16
    assert conv.dense.parameters == 32 * 16 * 9
    assert conv.dense.activation_bytes == 4 * 32 * 16 * 16
    assert [resnet.groups[group].name for group in conv.reads] == ["conv1"]
    assert [resnet.groups[group].name for group in conv.writes] == ["layer2.0.conv1"]
    reads, writes = resnet.kept_width(conv.reads[0]), resnet.kept_width(conv.writes[0])
    assert reads is not None and writes is not None and conv.kept is not None
    assert conv.kept.macs == reads * writes * 9 * 16 * 16


def test_a_frozen_group_is_named_where_a_parameter_tells(resnet: Inspection) -> None:
    (linear,) = (o for o in resnet.operations if o.layer == "linear")
    assert [(resnet.groups[g].name, resnet.groups[g].frozen) for g in linear.writes] == [
        ("linear", "network output")
    ]
    assert linear.kept is not None and resnet.kept_width(linear.writes[0]) == 10


def test_the_kept_numbers_are_those_of_the_slimmed_network() -> None:
    network = build("resnet20").eval()
    graph = espalier.trace(network, torch.zeros(1, 3, 32, 32))
    found = inspection(graph, "resnet20", keep=0.4)
    assert found.widths is not None and found.kept is not None and found.kept.macs <= 0.4 * found.dense.macs
    keep = graph.keep_best(np.zeros(graph.n_channels), found.widths)
    small = slim(network, graph, keep)
    assert found.kept.parameters == sum(parameter.numel() for parameter in small.parameters())
    sizes = {name: parameter.numel() for name, parameter in small.named_parameters()}
    for operation in found.operations:
        assert operation.kept is not None
        assert operation.kept.parameters == sum(sizes.get(name, 0) for name in operation.tensors)


def test_keep_must_be_a_fraction_that_can_be_reached(resnet: Inspection) -> None:
    for keep in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"--keep must lie in \(0, 1\]"):
            inspection(resnet.graph, "resnet20", keep=keep)
    with pytest.raises(BudgetInfeasible, match="cannot be reached"):
        inspection(resnet.graph, "resnet20", keep=1e-5)
    whole = inspection(resnet.graph, "resnet20", keep=1.0)
    assert whole.kept == whole.dense


def test_the_document_survives_json(resnet: Inspection, tmp_path: Path) -> None:
    write_json(resnet, tmp_path / "all.json")
    document = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(resnet.document()))
    assert document["format"] == FORMAT
    assert set(document) == {
        "format", "network", "units", "dense", "kept", "keep", "operations", "outputs", "groups", "integers"
    }  # fmt: skip
    graph, groups = resnet.graph, document["groups"]
    assert [group["number"] for group in groups] == list(range(len(groups)))
    assert [(g["name"], g["width"]) for g in groups if g["frozen"] is None] == [
        (g.name, g.size) for g in graph.groups
    ]
    assert [g["frozen"] for g in groups[len(graph.groups) :]] == ["network output"]
    for group, own in zip(groups, graph.groups, strict=False):
        assert [(m["tensor"], m["dim"], m["role"]) for m in group["members"]] == [
            (m.tensor, m.dim, m.role) for m in own.members
        ]
    for number, operation in enumerate(document["operations"]):
        assert operation["number"] == number and all(source < number for source in operation["inputs"])
        assert all(group < len(groups) for group in operation["reads"] + operation["writes"])
    assert [document["operations"][number]["layer"] for number in document["outputs"]] == ["linear"]


def test_integers_are_those_of_the_slimmed_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)).eval()
    graph = espalier.trace(network, torch.zeros(1, 3, 6, 6))
    found = inspection(graph, "depthwise", keep=0.5)
    assert found.widths is not None
    small = slim(network, graph, graph.keep_best(np.zeros(graph.n_channels), found.widths))
    kept = small[1].groups  # type: ignore[index]
    assert found.document()["integers"] == [
        {"module": "1", "attribute": "groups", "item": None, "value": 8, "kept": kept}
    ]
    assert kept < 8


def test_the_tables_fit_the_terminal(resnet: Inspection) -> None:
    for found in (resnet, inspection(traced("densenet40"), "densenet40")):
        for width in (80, 120, 200):
            for depth in (None, 0, 1):
                lines = printed(found, width, depth=depth)
                assert max(map(len, lines)) <= width
                assert any("FLOPs = 2 x MACs" in line for line in lines)
                assert any(line.startswith("frozen: ") for line in lines)


def test_a_row_names_what_it_reads_and_writes(resnet: Inspection) -> None:
    dense = inspection(resnet.graph, "resnet20")
    for width in (80, 160):
        text = "\n".join(printed(dense, width))
        assert "16 layer1.0.conv1 → 16 conv1" in text
        assert "3 groups, 64 channels → 10 linear (frozen)" in text
    assert "11 of 16 conv1" in "\n".join(printed(resnet, 160))


def test_long_tables_are_summed_by_module() -> None:
    found = inspection(traced("densenet40"), "densenet40")
    long = Inspection("long", found.graph, found.operations * 3, found.dense)
    for every, depth in ((False, None), (False, 2), (False, 0), (True, 1)):
        rows, _ = rows_of(long, every, depth)
        assert len(rows) <= MOST_ROWS
        assert sum(row.dense.macs for row in rows) == 3 * found.dense.macs
        assert sum(row.dense.parameters for row in rows) == 3 * found.dense.parameters
    assert len(rows_of(long, every=True)[0]) == 3 * len(found.operations)
    (network,), _ = rows_of(found, depth=0)
    assert network.dense.macs == found.dense.macs


def test_frozen_groups_are_gathered_by_reason_where_there_are_many() -> None:
    graph = traced("resnet20")
    graph.frozen = tuple(graph.frozen[0].__class__(f"layer{n}", 4, (), f"reason {n % 2}") for n in range(40))
    lines = [line for line in printed(inspection(graph, "many"), 200) if line.startswith("frozen")]
    assert len(lines) == 2
    assert lines[0].startswith("frozen: 20 groups with 80 channels: reason 0: layer0, layer2, ")


def test_what_keeps_the_most_macs_comes_first() -> None:
    graph = traced("resnet20")
    graph.frozen = (*graph.frozen, graph.frozen[0].__class__("layer", 4, (), "a reason"))
    graph.mac_reasons = (("a reason",), *graph.mac_reasons[1:])  # of the first convolution
    lines = [line for line in printed(inspection(graph, "net"), 200) if line.startswith("frozen")]
    share = 9 * 3 * 32 * 32 / int(graph.macs(graph.sizes))
    assert lines == [
        f"frozen: layer (4 channels): a reason; keeps {share:.1%} of the MACs",
        "frozen: linear (10 channels): network output",
    ]


@pytest.mark.parametrize("number", [1, 9, 10, 99, 994, 995, 999, 1000, 9994, 9996, 99_951, 999_499, 999_500, 10**9])
def test_short_numbers_keep_three_digits(number: int) -> None:
    text = short(number)
    value = float(text.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
    assert value == pytest.approx(number, rel=5.1e-3) and len(text) <= 5
