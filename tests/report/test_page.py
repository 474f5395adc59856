"""The page: what stands on it, for eyes and for screen readers, and how Chromium shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from espalier.report.page import beside, write_report
from espalier.search.compare.protocol import Compared
from espalier.search.compare.summary import text_of
from espalier.search.spaces.metric import Metric
from espalier.search.statistics.differences import paired
from espalier.search.tasks.classification.measures import MEASURES
from tests.browser import browse, chromium, found_in

TOP1 = MEASURES["top1"]
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Outline(HTMLParser):
    """Elements, and whether they are nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(make: Callable[..., Compared], tmp_path_factory: pytest.TempPathFactory) -> tuple[Compared, Path, str]:
    folder = tmp_path_factory.mktemp("report")
    compared = make(folder)
    path = write_report(compared, folder / "report.html")
    return compared, path, path.read_text(encoding="utf-8")


def test_it_opens_offline(written: tuple[Compared, Path, str]) -> None:
    """Nothing is loaded from anywhere: no scripts, no styles, no pictures, no fonts."""
    _, _, text = written
    outline = Outline(text)
    assert not outline.all("script") and not outline.all("link") and not outline.all("img")
    for tag, attributes in outline.elements:
        assert not attributes.get("src"), tag
        for key in ("href", "xlink:href"):
            assert attributes.get(key, "#").startswith("#"), tag
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_it_says_what_was_found(written: tuple[Compared, Path, str]) -> None:
    compared, _, text = written
    comparison = compared.comparison
    assert comparison.verdict.replace("'", "&#39;") in text
    assert "resnet8 &amp; &lt;more&gt;" in text
    assert "espalier compare made-up.yaml &#39;budget.keep=[0.5,0.25]&#39;" in text
    for row in comparison.rows:
        assert f"{row.after:.2f} ± {row.sd:.2f}" in text
    assert "1 min 1 s" in text and "cells are missing" not in text
    assert "hypervolume" in text
    assert "<dt>Strength</dt><dd>0.01 at 50 % of the MACs; 0.01 at 25 % of the MACs</dd>" in text


def test_tables_can_be_followed_by_ear(written: tuple[Compared, Path, str]) -> None:
    outline = Outline(written[2])
    assert len(outline.all("table")) == len(outline.all("caption")) == 4  # two budgets, all budgets, stages
    assert {attributes.get("scope") for attributes in outline.all("th")} == {"row", "col"}
    regions = [a for a in outline.all("div") if a.get("role") == "region"]
    names = {attributes.get("id") for _, attributes in outline.elements}
    assert all(a["tabindex"] == "0" and (a.get("aria-label") or a["aria-labelledby"] in names) for a in regions)
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in outline.all("svg"))
    (root,) = outline.all("html")
    assert root["lang"] == "en" and len(outline.all("h1")) == 1


def test_names_are_given_once(written: tuple[Compared, Path, str]) -> None:
    names = [attributes["id"] for _, attributes in Outline(written[2]).elements if "id" in attributes]
    assert len(names) == len(set(names)) > 100
    for name in re.findall(r'(?:url\(#|href="#)([^")]+)', written[2]):
        assert name in names


def test_every_figure_is_there_and_a_png_too(written: tuple[Compared, Path, str]) -> None:
    _, path, text = written
    names = [attributes["id"] for attributes in Outline(text).all("figure")]
    assert names == [
        "differences",
        "before-and-after",
        "fronts",
        "history",
        "widths",
        "importance",
        "energies",
        "network-greedy",
        "network-auto",
    ]
    for name in names:
        with Image.open(path.parent / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200


def test_colours_follow_the_page(written: tuple[Compared, Path, str]) -> None:
    """What is drawn in ink or in a method's colour is a variable in both schemes."""
    _, _, text = written
    light, _, rest = text.partition("@media (prefers-color-scheme: dark)")
    dark = rest[: rest.index("* {")]
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", text)) - {"--width", "--page"}
    assert {"--ink", "--faint", "--baseline", "--s0", "--s1"} <= used
    for variable in used:
        assert f"{variable}:" in light and f"{variable}:" in dark
    pictures = text[text.index("<figure") :]
    assert not re.search(r"(fill|stroke): #(1f2328|d1d5da|59636e|0a62b5)", pictures)


@pytest.mark.slow
def test_the_same_numbers_give_the_same_page(
    written: tuple[Compared, Path, str], make: Callable[..., Compared], tmp_path: Path
) -> None:
    assert write_report(make(tmp_path), tmp_path / "report.html").read_text(encoding="utf-8") == written[2]


def test_missing_cells_and_one_budget(make: Callable[..., Compared], tmp_path: Path) -> None:
    compared = make(tmp_path, shares=(0.5,))
    some = tuple(cell for cell in compared.comparison.cells if (cell.method, cell.seed) != ("auto", 1))
    short = replace(compared.comparison, cells=some, failures={"macs0.5/auto-seed1": "20 candidates <failed>"})
    text = write_report(replace(compared, comparison=short), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "1 of 20 cells are missing." in text and "20 candidates &lt;failed&gt;" in text
    assert "fronts" not in [attributes["id"] for attributes in Outline(text).all("figure")]
    assert "hypervolume" not in text


def test_it_says_where_all_seeds_of_a_search_chose_the_same(make: Callable[..., Compared], tmp_path: Path) -> None:
    compared = make(tmp_path, shares=(0.5,))
    cells = [
        replace(cell, widths={**cell.widths, "conv1": 1}) if (cell.method, cell.seed) == ("agent", 1) else cell
        for cell in compared.comparison.cells
    ]
    found = replace(compared.comparison, cells=tuple(cells))
    assert found.remarks == ["50 % of the MACs: auto chose the same widths with every seed."]
    text = write_report(replace(compared, comparison=found), tmp_path / "r.html").read_text(encoding="utf-8")
    assert found.remarks[0] in text and found.remarks[0] in " ".join(text_of(found).split())


def test_it_says_where_fine_tuning_made_a_method_worse_with_every_seed(
    make: Callable[..., Compared], tmp_path: Path
) -> None:
    found = make(tmp_path, shares=(0.5,)).comparison
    assert not any("Fine-tuning" in remark for remark in found.remarks)
    cells = tuple(replace(cell, before=cell.after + 1) if cell.method == "greedy" else cell for cell in found.cells)
    said = (
        "50 % of the MACs: Fine-tuning made what greedy chose worse than it was right after the cut: check "
        "its settings."
    )
    assert said in replace(found, cells=cells).remarks
    assert said not in replace(found, cells=cells, asked=replace(found.asked, epochs=0)).remarks
    first, *others = cells
    assert first.method == "greedy" and first.before is not None
    for before in (first.after - 1, first.after + 9):  # one seed is better; seeds differ by more than that
        mixed = replace(found, cells=(replace(first, before=before), *others))
        assert said not in mixed.remarks


def test_latencies_have_a_table_of_their_own(
    written: tuple[Compared, Path, str],
    make: Callable[..., Compared],
    timed: Callable[[Compared, float], Compared],
    tmp_path: Path,
) -> None:
    assert "Latency, 50 % of the MACs" not in written[2]  # results of before have one number alone
    compared = timed(make(tmp_path, shares=(0.5,)), 0.5)
    text = write_report(compared, tmp_path / "r.html").read_text(encoding="utf-8")
    Outline(text)
    table = text[text.index("Latency, 50 % of the MACs") :]
    rows = re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', table[: table.index("</table>")])
    assert [method for method, _ in rows] == ["dense", *compared.comparison.asked.methods]
    cells = ["onnxruntime", "32", "0.5", "0.25 to 1", "64,000", "3.00\N{MULTIPLICATION SIGN}"]
    assert re.findall("<td>(.*?)</td>", rows[1][1]) == cells
    assert "The machine was not quiet while networks were timed" in text


def test_it_says_which_methods_miss_a_limit_on_latency(
    make: Callable[..., Compared], timed: Callable[[Compared, float], Compared], tmp_path: Path
) -> None:
    """By the times that were measured: a third of the dense network's."""
    found = timed(make(tmp_path, shares=(0.5,)), 0.5).comparison

    def told(limit: float, limited: str = "onnxruntime-32") -> list[str]:
        asked = replace(found.asked, latency_limits={"macs0.5": limit}, limited=limited)
        return [remark for remark in replace(found, asked=asked).remarks if "times the limit" in remark]

    assert told(0.33) == []
    assert told(0.3)[0] == "50 % of the MACs: what greedy chose takes 1.11 times the limit, as measured."
    assert len(told(0.3)) == len(found.asked.methods)


@pytest.mark.slow
def test_a_comparison_without_a_search(make: Callable[..., Compared], tmp_path: Path) -> None:
    compared = make(tmp_path, shares=(0.5,))
    cells = tuple(cell for cell in compared.comparison.cells if cell.method in ("greedy", "uniform"))
    asked = replace(compared.comparison.asked, methods=("greedy", "uniform"))
    bare = replace(compared.comparison, asked=asked, cells=cells)
    text = write_report(replace(compared, comparison=bare), tmp_path / "r.html").read_text(encoding="utf-8")
    names = [attributes["id"] for attributes in Outline(text).all("figure")]
    assert names == ["differences", "before-and-after", "widths", "energies", "network-greedy", "network-uniform"]
    assert bare.verdict.replace("'", "&#39;") in text and "search" not in bare.verdict


def test_a_comparison_by_a_loss_says_so(make: Callable[..., Compared], tmp_path: Path) -> None:
    """And on data whose number nobody knows."""
    compared = make(tmp_path)
    loss = Metric("score", "RMSE", "m", greater_is_better=False)
    asked = replace(compared.comparison.asked, metric=loss, images={"training": 0, "test": 0}, data="mine:task")
    cells = tuple(replace(cell, right="") for cell in compared.comparison.cells)
    text = write_report(
        replace(compared, comparison=replace(compared.comparison, asked=asked, cells=cells)),
        tmp_path / "report.html",
    ).read_text()
    assert "top-1" not in text.lower()
    assert "RMSE m on test data, less is better, before and after" in text and "<dd>mine:task</dd>" in text


def test_numbers_have_a_minus() -> None:
    assert beside(paired([1.0, 2.0, 3.0], [3.0, 4.0, 5.1]), TOP1) == "{0}2.03 ({0}2.18 to {0}1.89)".format(
        "\N{MINUS SIGN}"
    )
    assert beside(paired([1.0], [0.5]), TOP1) == "+0.50" and beside(None, TOP1) == ""


# ------------------------------------------------------------------------------------------ in a browser


PROBE = """
<script>
addEventListener("load", () => {
  const root = document.documentElement, style = getComputedStyle(document.body);
  const ink = document.querySelector("#differences svg text");
  const figures = [...document.querySelectorAll("figure")].map(f => f.getBoundingClientRect());
  const regions = [...document.querySelectorAll("[role=region]")];
  parent.document.documentElement.setAttribute("data-found", JSON.stringify({
    width: root.scrollWidth, window: innerWidth, page: style.backgroundColor, ink: style.color,
    text: getComputedStyle(ink).fill, scrolls: regions.every(e => getComputedStyle(e).overflowX === "auto"),
    inside: figures.every(f => f.left >= 0 && f.right <= innerWidth + 1 && f.width > 250),
    columns: new Set(figures.slice(0, 6).map(f => Math.round(f.left))).size,
  }));
});
</script>
"""
HEIGHT = 6000


@chromium
@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_shows_it(
    written: tuple[Compared, Path, str], tmp_path: Path, width: int, columns: int, scheme: str
) -> None:
    """Fits the window in width, has the scheme's colours in text and figures, and is not blank.

    The page stands in a frame, as a window cannot be as narrow as a phone.
    """
    inside = escape(written[2].replace("</body>", f"{PROBE}</body>"))
    frame = f'<iframe srcdoc="{inside}" style="border: 0; width: {width}px; height: {HEIGHT}px"></iframe>'
    file, shot = tmp_path / "frame.html", tmp_path / "shot.png"
    file.write_text(f'<!doctype html><body style="margin: 0">{frame}</body>', encoding="utf-8")
    address, size = file.as_uri(), (max(width, 600), HEIGHT)
    browse(address, tmp_path, size, scheme, f"--screenshot={shot}")
    found = found_in(browse(address, tmp_path, size, scheme, "--dump-dom"))
    assert found["width"] <= found["window"] == width
    assert found["inside"] and found["scrolls"] and found["columns"] == columns
    page_colour, ink = "rgb(255, 255, 255)", "rgb(31, 35, 40)"
    if scheme == "dark":
        page_colour, ink = "rgb(13, 17, 23)", "rgb(230, 237, 243)"
    assert (found["page"], found["ink"], found["text"]) == (page_colour, ink, ink)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=np.float64)[:, :width]
    assert (pixels[0, 0] > 200) == (scheme == "light")
    assert len(np.unique(pixels)) > 50
