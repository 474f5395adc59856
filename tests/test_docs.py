"""What docs/ shows holds: its Python runs, and its tables are what the code says."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import typer
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import espalier
from espalier import cli
from espalier.pruning.importance.criteria import CRITERIA
from espalier.pruning.networks import NETWORKS, build
from espalier.pruning.runtimes import FORMATS, RUNTIMES
from espalier.pruning.slimming.quantised_layers import quantised_layers
from espalier.search.config.loading import load_config
from espalier.search.methods import METHODS, SCRATCH
from espalier.search.samplers import SAMPLERS
from espalier.search.statistics.differences import FEWEST, RANKED
from espalier.search.tasks.classification.data import DATASETS
from tests.notebooks import NOTEBOOKS, TOLD, check_run, shown

DOCS = Path(__file__).resolve().parents[1] / "docs"
NETWORKS_PAGE = (DOCS / "networks.md").read_text()
AGENTS_PAGE = DOCS / "agents.md"
DEPLOY_PAGE = (DOCS / "deploy.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", NETWORKS_PAGE, re.DOTALL)
NETWORKS_TABLE = (DOCS / "reference" / "networks.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", NETWORKS_TABLE, re.MULTILINE)


def test_ten_lines_prune_a_network_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    network, small = names["network"], names["small"]
    assert isinstance(network, nn.Sequential) and isinstance(small, nn.Sequential)
    images = torch.randn(2, 3, 32, 32)
    assert small(images).shape == network(images).shape
    with FlopCounterMode(display=False) as dense:
        network(images)
    with FlopCounterMode(display=False) as pruned:
        small(images)
    assert 0.45 < pruned.get_total_flops() / dense.get_total_flops() <= 0.5
    assert "Conv2d" in capsys.readouterr().out


def test_the_page_of_latency_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """On widths of its own: how long a pass takes here is not its matter."""
    block, deep, low = re.findall(r"```python\n(.*?)```", (DOCS / "latency.md").read_text(), re.DOTALL)
    network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4)).eval()
    names: dict[str, Any] = {"espalier": espalier, "network": network, "inputs": torch.randn(8, 64)}
    exec(block, names)
    timed, widths = names["timed"], names["widths"]
    assert timed.latency(widths) <= 0.95 * names["model"].dense
    assert " ns of " in capsys.readouterr().out
    names |= {"network": build("resnet20", width=4).eval(), "inputs": torch.randn(2, 3, 16, 16)}
    exec(deep, names)
    assert "'layer1.0.conv1', 'layer1.1.conv1'" in capsys.readouterr().out
    assert int(names["deep"].macs(names["widths"])) <= 0.3 * int(names["deep"].macs(names["deep"].sizes))
    exec(low, names)
    bits = {path: each.bits for path, each in quantised_layers(names["small"]).items()}
    assert bits and str(bits) in capsys.readouterr().out


def test_a_network_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    names: dict[str, object] = {}
    exec("import torch, espalier\n" + BLOCKS[1], names)
    graph = names["graph"]
    sizes = {group.size for group in graph.groups}  # type: ignore[attr-defined]
    assert sizes == {48, 96, 4, 12}  # stream, MLPs, heads, channels of a head


def test_the_table_has_every_network() -> None:
    assert [name for name, *_ in ROWS] == list(NETWORKS)


@pytest.mark.parametrize(("name", "side", "parameters", "macs"), ROWS, ids=[row[0] for row in ROWS])
def test_the_table_says_what_the_networks_cost(name: str, side: str, parameters: str, macs: str) -> None:
    with torch.device("meta"):
        network, images = build(name).eval(), torch.empty(1, 3, int(side), int(side))
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert f"{sum(p.numel() for p in network.parameters()):,}" == parameters
    assert f"{counter.get_total_flops() // 2:,}" == macs


def test_the_page_on_comparisons_names_every_kind_of_method() -> None:
    page = (DOCS / "compare.md").read_text()
    bases = {name for name, method in METHODS.items() if not method.searches}
    for name in bases | {SCRATCH}:
        criterion = next((c for c in CRITERIA if name.startswith(f"{c}_")), None)
        assert f"`{name}`" in page or f"`{criterion}`" in page, name
    named = re.search(r"^\| (`auto`.*), \.\.\. \|", page, re.MULTILINE)
    assert named is not None and set(named[1].replace("`", "").split(", ")) <= set(SAMPLERS)
    for number in (FEWEST, RANKED):
        assert {3: "three", 6: "six"}[number] in page


def test_the_training_loop_of_your_own() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "oicsr.md").read_text(), re.DOTALL)
    network, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(4, 3)

    class Trainer:
        def train(self) -> None:
            optimizer = torch.optim.SGD(network.parameters(), 0.1)
            for _ in range(50):
                optimizer.zero_grad()
                (0 * network(x).sum()).backward()
                optimizer.step()

    before = espalier.channel_energies(network, espalier.trace(network, x))
    names: dict[str, Any] = {
        "espalier": espalier,
        "network": network,
        "example_inputs": x,
        "trainer": Trainer(),
    }
    exec(block, names)
    assert bool((names["energies"] < before).all())


AGENT_BLOCKS = re.findall(r"```python\n(.*?)```", AGENTS_PAGE.read_text(), re.DOTALL)


def test_an_agent_in_a_plain_study() -> None:
    names: dict[str, Any] = {}
    exec(AGENT_BLOCKS[0], names)
    study = names["study"]
    assert len(study.trials) == 40
    assert study.best_value < study.trials[0].value


def test_somebody_elses_agent_prunes() -> None:
    pytest.importorskip("stable_baselines3")
    names: dict[str, Any] = {}
    exec(AGENT_BLOCKS[1], names)
    observation, _ = names["env"].reset()
    ended = False
    while not ended:
        action, _ = names["theirs"].predict(observation, deterministic=True)
        observation, _, ended, _, info = names["env"].step(action)
    graph, widths = names["graph"], info["widths"]
    dearest = int(graph.channel_costs().max())
    assert names["budget"] - dearest < graph.macs(widths) <= names["budget"]


STORAGES_PAGE = (DOCS / "storages.md").read_text()
STORAGES_BLOCKS = re.findall(r"```\n(.*?)```", STORAGES_PAGE, re.DOTALL)


@pytest.mark.parametrize("line", re.findall(r"^espalier (.*)$", "".join(STORAGES_BLOCKS), re.MULTILINE))
def test_the_commands_on_storages_are_there(line: str) -> None:
    words = line.partition("#")[0].split()
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_extras_on_storages_are_there() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"espalier\[(\w+)\]", STORAGES_PAGE))
    assert named == {"postgresql", "mysql", "dashboard", "tensorboard"} <= set(project["optional-dependencies"])


ROOT = DOCS.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_paths_that_contributors_are_sent_to_exist() -> None:
    quoted = re.findall(r"`(\w[\w.-]*/[\w./-]*)[ `]", CONTRIBUTING)
    quoted += re.findall(r"\]\((\w[^):]*)\)", CONTRIBUTING)
    assert len(quoted) > 25
    assert [path for path in quoted if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("table", "path"), re.findall(r"`([A-Z]+)` of `([\w./]+)`", CONTRIBUTING))
def test_tables_that_contributors_are_sent_to_are_there(table: str, path: str) -> None:
    assert re.search(rf"^{table}\b.*=|\b{table},", (ROOT / path).read_text(), re.MULTILINE)


def test_the_page_of_methods_is_what_the_tables_say() -> None:
    made = runpy.run_path(str(DOCS / "methods.py"))
    assert made["FILE"].read_text(encoding="utf-8") == made["page"](), "make methods writes it again"
    for rows in made["SECTIONS"].values():
        for name, words, paper, _, _ in rows():
            assert words.endswith("."), name
            assert paper is None or paper.url or not paper.link, name


def test_the_map_is_what_the_imports_say() -> None:
    drawing = runpy.run_path(str(DOCS / "map.py"))
    assert drawing["FILE"].read_text() == drawing["picture"](drawing["packages"]()), "make map draws it again"


def test_a_network_of_ones_own_is_pruned_this_afternoon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page, with fewer trials and epochs, on numbers that are drawn."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "afternoon.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    draw = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {"x_train": torch.randn(256, 8, generator=draw)}
    names["y_train"] = names["x_train"][:, :3].argmax(1)
    inputs = torch.randn(200, 8, generator=draw)

    def accuracy(network: nn.Module, rows: slice = slice(0, 100)) -> float:
        return float((network(inputs[rows]).argmax(1) == inputs[rows, :3].argmax(1)).float().mean())

    names |= {
        "inputs": inputs,
        "accuracy": accuracy,
        "accuracy_on_test": lambda net: accuracy(net, slice(100, 200)),
    }
    names["network"] = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    shorter = {"trials=100": "trials=4", "workers=2": "workers=0", "epochs=5": "epochs=1", "trials=300": "trials=5"}
    for number, block in enumerate(blocks):
        for long, short in shorter.items():
            block = block.replace(long, short)
        block = block.replace('"mine"', f'"mine{number > 0:d}"').replace("/mine/", "/mine1/")
        exec(block, names)
        options = {"train": names.get("train"), "test": names["accuracy_on_test"]}
        names["task"] = espalier.FunctionTask(accuracy, names["x_train"].split(64), **options)
    assert names["found"].result.tested and (tmp_path / "mine.espalier").is_file()


def test_a_network_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page on deployment, with a small network."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)

    class Small(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, width, 3), nn.Linear(width, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.linear(self.conv(x).relu().mean((2, 3)))
            return y

    names: dict[str, Any] = {
        "images": torch.randn(64, 3, 8, 8),
        "network": Small(4).eval(),
        "dense": Small(8).eval(),
    }
    blocks = re.findall(r"```python\n(.*?)```", DEPLOY_PAGE, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 5 and names["scores"].shape == (64, 5)
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "network.pt2", "int8.onnx"}
    shown = capsys.readouterr().out
    assert "network.onnx: " in shown and "{'conv': 4, 'linear': 5}" in shown and "top-1 agrees on" in shown


def test_the_page_on_deployment_names_what_there_is() -> None:
    rows = re.findall(r"^\| ((?:`[.\w]+`,? ?)+) \|", DEPLOY_PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([.\w]+)`", row)}
    assert named == set(FORMATS) | set(RUNTIMES)


@pytest.mark.parametrize("line", re.findall(r"^espalier (export .*)$", DEPLOY_PAGE, re.MULTILINE))
def test_the_commands_on_deployment_are_there(line: str) -> None:
    words = line.split()
    command: Any = typer.main.get_command(cli.app).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_comparison_on_deployment_is_a_valid_one() -> None:
    (override,) = re.findall(r'^espalier compare digits "(.*)"$', DEPLOY_PAGE, re.MULTILINE)
    assert load_config("digits", [override]).compare.batches == (1, 32)


def test_it_runs_in_a_notebook(tmp_path: Path) -> None:
    """Functions that are written in its cells reach the workers, and progress is shown."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = [
        "import torch, espalier\nfrom torch import nn\ntorch.manual_seed(0)",
        "network = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))\n"
        "inputs = torch.randn(64, 6)\nwanted = network(inputs).detach()",
        "def closeness(net):\n    return -float((net(inputs) - wanted).square().mean())",
        "found = espalier.search_widths(network, inputs[:1], espalier.FunctionTask(closeness, inputs.split(16)),\n"
        "                               budget=espalier.Budget(macs=0.5), trials=8, workers=1)",
        "print(found.result.trials, found.result.searched.macs <= 0.5 * found.result.dense.macs)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=110, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells[3:] for output in cell.outputs)
    assert "search: 8/8 candidates" in shown and "8 True" in shown


SITE: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=yaml.BaseLoader)
NAVIGATION = {part: pages for entry in SITE["nav"] for part, pages in entry.items()}
REFERENCE = runpy.run_path(str(DOCS / "reference.py"))


def pages_of(part: str) -> dict[str, str]:
    """File -> text, of a part of the site; of a notebook, its page."""

    def text(path: Path) -> str:
        notebook = path.with_suffix(".ipynb")
        return str(NOTEBOOKS["page_of"](notebook)[0]) if notebook.exists() else path.read_text(encoding="utf-8")

    return {file: text(DOCS / file) for entry in NAVIGATION[part] for file in entry.values()}


def tables_of_measurements(page: str) -> int:
    """Tables whose cells, but for those of the first column, are numbers for the most part."""
    count = 0
    for table in re.findall(r"^\|[- |:]+\|\n((?:\|.*\|\n)+)", page, re.MULTILINE):
        cells = [cell.strip("* ") for row in table.splitlines() for cell in row.strip("|").split("|")[1:]]
        told = [cell for cell in cells if cell]
        count += 2 * sum(bool(re.match(r"[-+]?\.?\d", cell)) for cell in told) > len(told)
    return count


def test_the_site_has_every_page() -> None:
    named = [file for part in NAVIGATION for file in pages_of(part)]
    assert list(NAVIGATION) == ["Start", "Tutorials", "Guides", "Reference", "How it works", "Measurements"]
    files = [*DOCS.rglob("*.md"), *(file.with_suffix(".md") for file in DOCS.rglob("*.ipynb"))]
    assert sorted(named) == sorted(str(file.relative_to(DOCS)) for file in files)


def test_guides_are_short_and_hold_no_laboratory_notes() -> None:
    assert tables_of_measurements(pages_of("Measurements")["measurements/samplers.md"]) == 6
    for file, page in (
        pages_of("Start") | pages_of("Tutorials") | pages_of("Guides") | pages_of("How it works")
    ).items():
        assert len(page.splitlines()) <= 200 or not (DOCS / file).exists(), file  # a notebook shows what it prints
        assert tables_of_measurements(page) <= 1, file


def test_a_link_that_leaves_the_docs_leads_to_something() -> None:
    """MkDocs checks all others; on the site these are paths."""
    for part in NAVIGATION:
        for file, page in pages_of(part).items():
            for link in re.findall(r"\]\((\.\./[^)#]+)", page):
                assert ((DOCS / file).parent / link).exists(), (file, link)


@pytest.mark.parametrize("file", REFERENCE["PAGES"], ids=lambda file: str(file.name))
def test_the_reference_is_what_the_code_says(file: Path) -> None:
    page = REFERENCE["PAGES"][file]()
    assert file.read_text(encoding="utf-8") == page, "make reference writes it again"


def test_the_reference_has_every_key_with_a_sentence() -> None:
    page = (DOCS / "reference" / "config.md").read_text()
    assert len(REFERENCE["keys"]()) > 100
    assert all(f" {name}, " in page or f" {name} or" in page or f" {name};" in page for name in DATASETS)
    for key, field in REFERENCE["keys"]().items():
        assert f"\n| `{key}` | " in page, key
        assert re.fullmatch(r"\S.{8,}[^.]\.", field.description or ""), f"{key} has no Field(description=...)"
    for path, section in REFERENCE["sections"]():
        assert not path or f"\n## `{path}`\n" in page
        assert all(field.description for field in section.model_fields.values())


def test_the_reference_has_every_command_and_option() -> None:
    parts = re.split(r"^## `(espalier.*)`$", (DOCS / "reference" / "cli.md").read_text(), flags=re.MULTILINE)[1:]
    page = dict(zip(parts[::2], parts[1::2], strict=True))

    def leaves(command: Any, path: str) -> dict[str, Any]:
        inner = getattr(command, "commands", None)
        found = [leaves(one, f"{path} {name}") for name, one in (inner or {}).items()]
        alone = {path: command} if inner is None or command.invoke_without_command else {}
        return alone | {key: one for leaf in found for key, one in leaf.items()}

    known = leaves(typer.main.get_command(cli.app), "espalier")
    assert set(page) == {"espalier", *known} and len(known) > 20
    for path, command in known.items():
        assert command.help and command.help.split()[0] in page[path]
        for parameter in command.params:
            assert parameter.help, (path, parameter.name)
            assert all(f"`{option}`" in page[path] for option in parameter.opts if option.startswith("-"))


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: espalier\.(\w+)$", (DOCS / "reference" / "python.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(set(espalier.__all__) - {"__version__"})


def test_links_that_leave_the_docs_are_paths_on_the_site() -> None:
    without = runpy.run_path(str(DOCS / "links.py"))["without"]
    assert without("[a.py](../b/a.py)", "") == "`b/a.py`"
    assert (
        without("[the results](../../benchmarks/results)", "measurements") == "the results (`benchmarks/results`)"
    )
    assert without("[Tasks](../tasks.md#functiontask)", "reference") == "[Tasks](../tasks.md#functiontask)"


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    pages = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*.html")}
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    loaded = (
        r"<(?:script|img|iframe)[^>]*\ssrc=\"(?:https?:)?//|<link(?![^>]*canonical)[^>]*\shref=\"(?:https?:)?//"
    )
    assert [name for name, page in pages.items() if re.search(loaded, page)] == []
    for file in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\"?(?:https?:)?//|@import", file.read_text()), file
    assert 'id="espalier.search_widths"' in pages["reference/python.html"]


def test_every_notebook_is_run_by_a_test_and_kept_as_it_ran() -> None:
    nbformat = pytest.importorskip("nbformat")
    files = sorted((DOCS / "tutorials").glob("*.ipynb"))
    assert {file.stem for file in files} == {"tour", *TOLD}
    for file in files:
        notebook = nbformat.read(file, 4)
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1)), file  # from top to bottom, in one go
        page, _ = NOTEBOOKS["page_of"](file)
        assert not re.search(r"/tmp/|/home/|/root/|site-packages|Traceback", page), file
        for told in TOLD.get(file.stem, ()):
            assert re.search(told, "\n".join(shown(notebook)), re.MULTILINE), (file, told)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(TOLD.keys() - {"postgresql", "yolo"}))  # which need more, elsewhere
def test_a_tutorial_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("matplotlib", *(["transformers"] if name == "huggingface" else [])):
        pytest.importorskip(package)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_run(name, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_runs(tmp_path: Path) -> None:
    """What it shows of structure is what it holds; what it trains may differ a little from machine to machine."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    file = DOCS / "tutorials" / "tour.ipynb"

    kept, now = (shown(notebook) for notebook in (nbformat.read(file, 4), NOTEBOOKS["run"](file, tmp_path)))
    assert [bool(text) for text in kept] == [bool(text) for text in now]
    (graph,) = (text for text in kept if "multiply-adds, 63,562 parameters" in text)
    assert graph in now
    for told in (kept, now):
        right = [float(number) for number in re.findall(r"([\d.]+) % of the", "".join(told))]
        assert len(right) == 2 and min(right) > 95
        assert re.search(r"^Searched .* greedy|^The search", "".join(told), re.MULTILINE)
        assert "digits.onnx" in told[-1]
    page, pictures = NOTEBOOKS["page_of"](file)
    assert str(ROOT) not in page and "site-packages" not in page and len(pictures) == 1


TALKS = """
import time
from rich.console import Console
console = Console(highlight=False)
for number in range(3):
    console.print(f"[red]step[/] {number} < & 3")
    time.sleep(0.3)
print("\\x1b[2J\\x1b[Hthe end")
"""


def test_a_terminal_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In colours, wherever it is run."""
    pytest.importorskip("pyte")
    monkeypatch.setenv("NO_COLOR", "1")
    command = [sys.executable, str(DOCS / "terminal.py"), "--columns", "40", "--rows", "6", str(tmp_path / "t.svg")]
    subprocess.run([*command, sys.executable, "-c", TALKS], check=True, timeout=60)
    text = (tmp_path / "t.svg").read_text(encoding="utf-8")
    drawing = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    rows = {each.get("id"): "".join(each.itertext()) for each in drawing.iterfind(f"{svg}defs/{svg}g")}
    assert {"the end"} < set(rows.values()) and any(re.fullmatch(r"step[012] < & 3", row) for row in rows.values())
    assert 'fill="#ff7b72">step<' in text
    frames = drawing.findall(f".//{svg}g[@class='s']/{svg}g")
    (last,) = [rows[use.get("href", "")[1:]] for use in frames[-1]]
    assert last == "the end"  # the screen was cleared
    assert len(frames) == text.count("{transform:translateX(") - 2 and len(frames) >= 3
    failed = subprocess.run([*command, sys.executable, "-c", "1 / 0"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr


def test_a_recording_is_shown_faster_with_short_pauses() -> None:
    pytest.importorskip("pyte")
    terminal = runpy.run_path(str(DOCS / "terminal.py"))
    rows = [((0, str(number)),) for number in range(6)]
    seconds = [0, 1, 1.1, 10, 500, 1000]
    frames = [terminal["Frame"](second, row) for second, row in zip(seconds, rows, strict=True)]
    shown = [(round(second, 3), frame.rows[0][1]) for second, frame in terminal["thinned"](frames, 10)]
    # A hundred times as fast: 0.011 and 0.1 s are too short to be seen, 4.9 s are longer than a pause.
    assert shown == [(0.0, "0"), (1.6, "4"), (3.1, "5")]
    shown = [(round(second, 3), frame.rows[0][1]) for second, frame in terminal["thinned"](frames[:4], 10)]
    assert shown == [(0.0, "0"), (1.0, "1"), (2.6, "3")]


def test_the_recorded_search_is_the_one_that_the_readme_names() -> None:
    file = DOCS / "images" / "search.svg"
    text = file.read_text(encoding="utf-8")
    assert (
        file.stat().st_size < 300_000
        and "<script" not in text
        and "http" not in text.replace("www.w3.org", "")[90:]
    )
    words = "".join(ElementTree.fromstring(text).itertext())
    for told in (
        "$ espalier search digits",
        "searched",
        "greedy",
        "of test top-1 after fine-tuning",
        "5 paired seeds",
    ):
        assert told in words
    assert "docs/images/search.svg" in (DOCS.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_into_the_docs_lead_to_something(file: str) -> None:
    links = re.findall(r"\]\((docs/[^)#]+)(?:#([\w-]+))?\)", (ROOT / file).read_text())
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        heads = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
        assert not anchor or anchor in slugs, (path, anchor)
