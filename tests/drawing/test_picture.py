"""Pictures of networks: what is drawn, where, and in which colours."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.drawing.dataflow import SMALLEST
from espalier.drawing.files import NETWORK, check_picture
from espalier.drawing.network import draw
from espalier.drawing.picture import FROZEN, MOST_COLOURS, PALETTE, Picture, neighbours, picture
from espalier.errors import ConfigError, MissingPackage
from espalier.inspection.document import Inspection, inspection
from espalier.pruning.networks import build

NAMES = ("resnet20", "resnet56", "densenet40", "mobilenet_v2", "preact_senet18", "vgg11_bn")


def looked_at(name: str, keep: float | None = None) -> Inspection:
    return inspection(espalier.trace(build(name).eval(), torch.zeros(1, 3, 32, 32)), name, keep)


@pytest.fixture(scope="module", params=NAMES)
def drawn(request: pytest.FixtureRequest) -> tuple[Inspection, Picture]:
    found = looked_at(request.param)
    return found, picture(found)


def test_areas_are_proportional_to_macs(drawn: tuple[Inspection, Picture]) -> None:
    found, made = drawn
    boxes = [box for box in made.boxes if box.kind == "operation"]
    assert [box.operation for box in boxes] == [o.number for o in found.operations if o.dense.macs]
    assert sum(box.share for box in boxes) == pytest.approx(1)
    for box in boxes:
        macs = found.operations[box.operation].dense.macs
        assert box.area == pytest.approx(max(SMALLEST, made.per_share * macs / found.dense.macs))


def test_groups_that_meet_have_different_colours(drawn: tuple[Inspection, Picture]) -> None:
    found, made = drawn
    ends = [(line.groups, line.target) for line in made.lines if line.target is not None]
    meets = neighbours(made.boxes, ends)
    assert meets
    for group, others in meets.items():
        assert made.colours[group] == FROZEN or made.colours[group] in PALETTE
        assert all(made.colours[group] != made.colours[other] for other in others)
    assert {number for number, colour in made.colours.items() if colour == FROZEN} == {
        number for number, group in enumerate(found.groups) if group.frozen
    }


def test_boxes_do_not_overlap_and_stay_on_the_page(drawn: tuple[Inspection, Picture]) -> None:
    _, made = drawn
    for number, box in enumerate(made.boxes):
        assert box.x - box.width / 2 >= -1e-6 and box.x + box.right <= made.width + 1e-6
        assert box.y - box.height / 2 >= -1e-6 and box.y + box.height / 2 <= made.height + 1e-6
        for other in made.boxes[:number]:
            across = min(box.x + box.right, other.x + other.right) - max(
                box.x - box.width / 2, other.x - other.width / 2
            )
            down = (box.height + other.height) / 2 - abs(box.y - other.y)
            assert across <= 1e-6 or down <= 1e-6, (box, other)
    for line in made.lines:
        assert all(-1e-6 <= x <= made.width + 1e-6 and -1e-6 <= y <= made.height + 1e-6 for x, y in line.points)


def test_lines_go_from_their_source_to_their_targets(drawn: tuple[Inspection, Picture]) -> None:
    found, made = drawn
    starts = {line.points[0] for line in made.lines}
    for line in made.lines:
        source = made.boxes[line.source]
        if line.target is not None:
            target = made.boxes[line.target]
            assert line.points[-1] == pytest.approx((target.x, target.y - target.height / 2))
            assert source.operation <= target.operation
        else:
            assert any(math.dist(line.points[-1], start) < 1e-6 for start in starts)
    fed = {line.target for line in made.lines}
    assert all(number in fed for number, box in enumerate(made.boxes) if box.kind != "input")
    assert sum(box.kind == "output" for box in made.boxes) == len(found.graph.outputs) == 1


def test_a_line_is_labelled_once_with_its_channels() -> None:
    made = picture(looked_at("resnet20"))
    labels = [(made.boxes[line.source].name, line.label) for line in made.lines if line.label]
    assert ("conv1", "16") in labels and ("layer3.0.conv1", "64") in labels and ("linear", "10") in labels
    assert ("input", "3") in labels
    assert len(labels) < len(made.lines)
    slim = picture(looked_at("resnet20", keep=0.5))
    assert ("conv1", "11/16") in [(slim.boxes[line.source].name, line.label) for line in slim.lines]
    assert all(0.3 < box.kept < 0.8 for box in slim.boxes if box.kind == "operation")


def test_only_joins_of_branches_remain_of_what_costs_nothing() -> None:
    found = looked_at("resnet20")
    made = picture(found)
    joins = [found.operations[box.operation] for box in made.boxes if box.kind == "join"]
    assert [join.kind for join in joins] == ["add"] * 9
    assert [join.layer for join in joins] == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]


def test_a_box_that_writes_two_groups_shows_both_by_channels() -> None:
    made = picture(looked_at("resnet20"))
    (box,) = (box for box in made.boxes if box.name == "layer3.0.conv2")
    assert [share for _, share in box.groups] == [0.25, 0.25, 0.5]
    assert len(made.shades([group for group, _ in box.groups])) == MOST_COLOURS
    assert len(made.shades([0, 1, 2, 3])) == 1


class TwoInputs(nn.Module):
    """Two inputs, two outputs, and a branch that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(5, 8)
        self.head, self.other = nn.Linear(8, 2), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.left(x), self.right(y)
        return self.head(torch.relu(left + right) + self.bias.exp()), self.other(left)


def test_inputs_and_outputs() -> None:
    graph = espalier.trace(TwoInputs().eval(), (torch.zeros(1, 4), torch.zeros(1, 5)))
    made = picture(inspection(graph, "two"))
    kinds = [box.kind for box in made.boxes]
    assert [kinds.count(kind) for kind in ("input", "output", "join", "operation")] == [2, 2, 1, 4]


def test_long_networks_fill_a_page() -> None:
    for name in ("resnet20", "resnet56", "vgg11_bn"):
        made = picture(looked_at(name))
        assert 0.7 < made.width / made.height < 3


def test_svg_is_xml_with_text_and_equal_each_time(tmp_path: Path) -> None:
    found = looked_at("resnet20", keep=0.5)
    draw(found, tmp_path / "one.svg")
    draw(found, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    root = ElementTree.parse(tmp_path / "one.svg").getroot()
    words = {(text.text or "").strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"conv1", "layer1.0.conv1", "layer3.2.conv2", "linear", "input", "output", "11/16"} <= words
    assert any(word.startswith("resnet20: 40.6M MACs, 270k parameters") for word in words)
    assert any("share of the MACs" in word for word in words)


def test_png(tmp_path: Path) -> None:
    draw(looked_at("vgg11_bn"), tmp_path / "net.png")
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_and_missing_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg, got 'net\.pdf'"):
        draw(looked_at("vgg11_bn"), tmp_path / "net.pdf")
    found = looked_at("vgg11_bn")
    monkeypatch.setitem(__import__("sys").modules, "igraph", None)
    for attempt in (lambda: check_picture(tmp_path / "net.svg", NETWORK), lambda: picture(found)):
        with pytest.raises(MissingPackage, match=r"igraph, which is not installed: pip install 'espalier\[plot\]'"):
            attempt()


def test_palette_colours_are_apart() -> None:
    assert len(set(PALETTE)) == len(PALETTE)
    numbers = [tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5)) for colour in PALETTE]
    for number, one in enumerate(numbers):
        assert all(math.dist(one, other) > 40 for other in numbers[:number])
    assert all(a != b for a, b in pairwise(PALETTE))
