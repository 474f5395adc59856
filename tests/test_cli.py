"""The command line: one line and exit code 2 for bad input, and nothing written before it is known to be good."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import yaml
from safetensors.torch import save_file

from espalier.errors import BudgetInfeasible
from tests.command_line import Answer, Command, command_of, set_columns

TINY = """
model:
  name: espalier.pruning.networks:CifarResNet
  kwargs: {depth: 8, width: 4, in_channels: 1, num_classes: 10}
data: {name: digits, search_images: 300, train_images: 256}
training: {epochs: 1, batch_size: 32}
regularizer: {strengths: [0.01], epochs: 1}
budget: {keep: 0.4}
search:
  {sampler: random, trials: 4, scoring_images: 64, calibration_images: 64, finalists: 1,
   batch_size: 64, memory_format: channels_last, precision: fp32}
finetune: {epochs: 0.5, batch_size: 32, seeds: 1}
workers: 0
"""

MINE = """
import numpy as np
from torch import nn

def network(width=6):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )

def images(root=None, count=90):
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 60, (count, 1, 8, 8)) + 90 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels, pixels[:30].astype(np.uint8), labels[:30]

class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.linear(x[:, :3])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``tiny.yaml`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return tmp_path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs ``espalier ARGUMENTS`` in this process, in a terminal of 200 columns."""
    yield command_of(monkeypatch, capfd)
    for name in ("mine", "theirs"):
        sys.modules.pop(name, None)


def listing(folder: Path) -> dict[str, bytes]:
    """Path -> content. An engine in a reference cycle holds its SQLite connection until it is collected."""
    gc.collect()
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() for path in files} | {str(p): b"" for p in folder.iterdir() if p.is_dir()}


def refused(command: Command, folder: Path, *arguments: str) -> str:
    """The one line that a command ends with, once it is sure that it left no trace."""
    before = listing(folder)
    answer = command(*arguments)
    lines = answer.err.splitlines()
    assert answer.code == 2, answer
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.err
    after = listing(folder)
    assert {path for path in after if "__pycache__" not in path} == {p for p in before if "__pycache__" not in p}
    assert all(after[path] == content for path, content in before.items())
    return lines[0]


# --------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("subcommand", ["search", "validate", "inspect"])
def test_every_command_that_reads_a_config_refuses_a_faulty_one(
    command: Command, folder: Path, subcommand: str
) -> None:
    line = refused(command, folder, subcommand, "tiny.yaml", "search.trails=9", "budget.keep=1.5")
    assert "tiny.yaml: 2 faults: " in line
    assert "search.trails: unknown name 'trails', did you mean 'trials'?" in line
    assert "budget.keep: input should be less than or equal to 1, got 1.5" in line and "write 0.5 to halve" in line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["budget.keep=0.001"], ["cannot be reached", "costs 2,", "MACs (keep 0.0"]),
        (["search.sampler=cma"], ["search.sampler: unknown name 'cma', did you mean 'cmaes'?"]),
        (["data.name=cifar10", "data.root=nowhere"], ["data.root must name", "nowhere is no folder"]),
        (["data.name=mnist"], ["data.root must name the folder", "is not set"]),
        (["data.name=digit"], ["data.name must be one of", "got 'digit': did you mean digits?"]),
        (["data.name=mine:none"], ["mine", "none"]),
        (["data.search_images=5000"], ["data.search_images must leave some"]),
        (["model.name=resnet21"], ["model.name: unknown name 'resnet21', did you mean 'resnet", "1 fault"]),
        (["model.kwargs.dpeth=20"], ["dpeth is not an argument (did you mean depth?)"]),
        (["model.kwargs.num_classes=7"], ["(1, 10) for these data, got (1, 7)", "model.kwargs.num_classes"]),
        (["model.weights=none.pt"], ["none.pt, which does not exist"]),
        (["model.name=nowhere:network", "model.kwargs={}"], ["importing nowhere failed"]),
        (["budget"], ["an override must read key.path=value, got 'budget'"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_bad_input_is_one_line(command: Command, folder: Path, overrides: list[str], expected: list[str]) -> None:
    line = refused(command, folder, "search", "tiny.yaml", *overrides)
    assert all(part in line for part in expected), line


def test_a_config_that_does_not_exist(command: Command, folder: Path) -> None:
    assert "no config at none.yaml" in refused(command, folder, "search", "none.yaml")
    assert "no config at digit: did you mean the shipped digits?" in refused(command, folder, "validate", "digit")


def test_a_config_that_is_not_yaml(command: Command, folder: Path) -> None:
    (folder / "broken.yaml").write_text("model: [1, 2\nbudget: {", encoding="utf-8")
    assert "broken.yaml is not YAML: " in refused(command, folder, "search", "broken.yaml")


def test_a_truncated_batch_of_cifar(command: Command, folder: Path) -> None:
    (folder / "cifar").mkdir()
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        (folder / "cifar" / name).write_bytes(
            np.zeros(3073 * 10, dtype=np.uint8).tobytes()[: -5 if "3" in name else None]
        )
    overrides = ["data.name=cifar10", "data.root=cifar", "model.name=resnet20", "model.kwargs={}"]
    line = refused(command, folder, "search", "tiny.yaml", *overrides)
    assert "data_batch_3.bin must be a multiple of 3073 bytes" in line and "got 30725 bytes" in line


def test_weights_that_do_not_fit(command: Command, folder: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3, 1, 3, 3)}, folder / "other.safetensors")
    line = refused(command, folder, "search", "tiny.yaml", "model.weights=other.safetensors")
    assert "other.safetensors must fit CifarResNet exactly" in line and "missing from the file" in line
    assert "conv1.weight has shape (3, 1, 3, 3) in the file, (4, 1, 3, 3) in the network" in line
    (folder / "garbage.pt").write_bytes(b"no weights")
    assert "garbage.pt, which cannot be read" in refused(
        command, folder, "search", "tiny.yaml", "model.weights=garbage.pt"
    )


def test_a_network_that_cannot_be_traced(command: Command, folder: Path) -> None:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    line = refused(command, folder, "search", "tiny.yaml", "model.name=mine:Failing", "model.kwargs={}")
    assert "cannot trace Failing: mat1 and mat2 shapes cannot be multiplied" in line and "mine.py:" in line


@pytest.mark.parametrize("subcommand", ["search", "resume", "studies"])
def test_a_storage_that_cannot_be_read(command: Command, folder: Path, subcommand: str) -> None:
    (folder / "garbage.db").write_bytes(b"no database at all" * 50)
    arguments = {"search": ["tiny.yaml"], "resume": ["--study", "tiny"], "studies": []}[subcommand]
    line = refused(command, folder, subcommand, *arguments, "--storage", "sqlite:///garbage.db")
    assert "cannot open the storage sqlite:///garbage.db: " in line
    password = ["--storage", "postgresql+none://me:sesame@127.0.0.1:1/db"]
    assert "sesame" not in refused(command, folder, subcommand, *arguments, *password)


@pytest.mark.parametrize("subcommand", ["resume", "studies"])
def test_a_storage_that_is_not_there(command: Command, folder: Path, subcommand: str) -> None:
    arguments = ["--study", "tiny"] if subcommand == "resume" else []
    line = refused(command, folder, subcommand, *arguments, "--storage", "sqlite:///none.db")
    assert "there is no storage at sqlite:///none.db" in line


def test_a_storage_is_needed(command: Command, folder: Path) -> None:
    for asked in (("resume", "--study", "tiny"), ("study", "show", "tiny"), ("studies",)):
        assert "--storage" in refused(command, folder, *asked)


# ---------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize(("bits", "printed"), [("[8,32]", True), ("[4,32]", False)])
def test_what_comes_next_after_a_search_of_bits(command: Command, folder: Path, bits: str, printed: bool) -> None:
    """The command that is printed runs as it is; where no runtime has such bits, there is none."""
    pytest.importorskip("onnxruntime")
    settings = [f"budget.bits={bits}", "budget.keep=null", "budget.keep_weight_bytes=0.3"]
    answer = command("search", "tiny.yaml", *settings, "--trials", "3")
    assert answer.code == 0
    following = [line for line in answer.out.splitlines() if line.startswith("next ")]
    assert len(following) == printed
    for line in following:
        assert line.endswith(" --int8 --config tiny.yaml")
        exported = command(*line.split()[2:])
        assert exported.code == 0, exported.err
        assert (folder / "runs" / "tiny" / "pruned.onnx").is_file()


def test_a_search_from_end_to_end(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = command("search", "tiny.yaml", "search.trials=9", "--trials", "4")
    assert answer.code == 0 and answer.err == ""
    assert {path.name for path in (folder / "runs" / "tiny").iterdir()} >= {
        "study.db",
        "result.json",
        "pruned.espalier",
        "ladder",
        "finetuned",
    }
    for part in (
        "search: 4/4 candidates",
        "dense ",
        "greedy ",
        "searched ",
        "4 trials",
        "runs/tiny/pruned.espalier",
    ):
        assert part in answer.out
    assert "study    tiny in sqlite:///runs/tiny/study.db" in answer.out
    assert "next     espalier export runs/tiny/pruned.espalier runs/tiny/pruned.onnx" in answer.out

    storage = "sqlite:///runs/tiny/study.db"
    line = refused(command, folder, "search", "tiny.yaml", "seed=1", "--out", "runs/tiny")
    assert "the study 'tiny' was made with other settings" in line and "seed was 0, now 1" in line
    line = refused(command, folder, "resume", "--storage", storage, "--study", "other")
    assert "there is no study 'other' in sqlite:///runs/tiny/study.db; it holds tiny" in line
    for wrong in ("0", "-3", "many", "+x"):
        line = refused(command, folder, "resume", "--storage", storage, "--study", "tiny", "--trials", wrong)
        assert f"--trials must be a whole number from 1, or +N, got '{wrong}'" in line

    for trials, wanted in (("+1", 5), ("6", 6), ("6", 6)):
        answer = command("resume", "--storage", storage, "--study", "tiny", "--trials", trials)
        assert answer.code == 0 and f"{wanted} trials" in answer.out
    listed = command("studies", "--storage", storage)
    assert listed.code == 0
    assert listed == command("studies")
    header, row = listed.out.splitlines()
    shown = command("study", "show", "tiny", "--storage", storage).out
    assert shown == command("study", "show", "tiny").out  # that in its run folder
    assert "\n" not in (line := refused(command, folder, "study", "show", "../x")) and "'../x'" in line
    assert re.search(r"best trial +\d\.\d{4} \(by \w+, less is better; trial \d\)", shown)
    assert re.search(r"network +.*runs/tiny/pruned\.espalier, which the result is about", shown)
    assert header.split() == "study state trials best value sampler budget digest at work".split()
    assert row.split()[:5] == ["tiny", "finished", "6", "of", "6"] and row.split()[-1] == "-"
    assert row.split()[-7:-2] == ["random", "0.4", "of", "the", "MACs"]
    set_columns(monkeypatch, 80)
    header, row = command("studies", "--storage", storage).out.splitlines()
    assert header.split() == "study state trials best value sampler budget".split()
    assert row.split()[:5] == ["tiny", "finished", "6", "of", "6"] and row.rstrip().endswith("0.4 of the MACs")


def test_no_number_of_the_table_is_cut_and_the_file_is_named(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_columns(monkeypatch, 40)
    answer = command("search", "tiny.yaml", "search.trials=2", "finetune.seeds=2")
    assert re.search(r"^searched .* \d+\.\d\d ± \d+\.\d\d$", answer.out, re.MULTILINE) and "…" not in answer.out
    assert "pruned.espalier (of 2 fine-tuned ones the best on held-out data)" in answer.out.replace("\n", " ")


def test_a_study_is_shown_watched_exported_copied_renamed_and_deleted(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("search", "tiny.yaml", "search.trials=2", "--storage", "one.log").code == 0
    for looked in (("study", "show", "tiny"), ("watch", "tiny", "--once"), ("watch", "tiny")):
        answer = command(*looked, "--storage", "one.log")
        assert answer.code == 0 and answer.err == "" and "finished" in answer.out and "random" in answer.out
        assert "0 failed" in answer.out and "0.4 of the MACs" in answer.out
    rows = command("study", "export", "tiny", "--storage", "one.log").out.splitlines()
    assert rows[0].startswith("number,state,value,start,complete,") and len(rows) == 3
    assert command("study", "export", "tiny", "tiny.json", "--storage", "one.log").code == 0
    assert len(json.loads((folder / "tiny.json").read_text())["trials"]) == 2
    assert "must end in .csv or .json" in refused(
        command, folder, "study", "export", "tiny", "x.y", "--storage", "one.log"
    )

    line = refused(command, folder, "storage", "copy", "one.log", "two.db", "--study", "nope")
    assert "there is no study 'nope' in one.log; it holds tiny" in line and not (folder / "two.db").exists()
    copied = command("storage", "copy", "one.log", "two.db")
    assert copied.code == 0 and copied.err == "" and "tiny: 2 trials copied to sqlite:///two.db" in copied.out
    line = refused(command, folder, "storage", "copy", "one.log", "two.db")
    assert "sqlite:///two.db holds a study 'tiny' already, and nothing is overwritten" in line
    assert "tiny is other now" in command("study", "rename", "tiny", "other", "--storage", "two.db").out
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    asked = command("study", "delete", "other", "--storage", "two.db")
    assert asked.code == 1 and "Delete other with its 2 trials from sqlite:///two.db?" in asked.out
    assert "other" in command("studies", "--storage", "two.db").out
    assert command("study", "delete", "other", "--yes", "--storage", "two.db").code == 0
    assert "no studies" in command("studies", "--storage", "two.db").out
    line = refused(command, folder, "study", "show", "other", "--storage", "one.log")
    assert "there is no study 'other' in one.log; it holds tiny" in line


def test_overrides_and_options_win_over_the_file(command: Command, folder: Path) -> None:
    answer = command(
        "search", "tiny.yaml", "search.trials=2", "workers=3", "--workers", "0", "--study", "mine", "--out", "here"
    )
    assert (
        answer.code == 0 and "2 trials" in answer.out and "study    mine in sqlite:///here/study.db" in answer.out
    )
    assert (folder / "here" / "result.json").is_file() and not (folder / "runs").exists()


def test_the_storage_may_come_from_the_environment(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{folder / 'all.db'}")
    assert command("search", "tiny.yaml", "search.trials=2").code == 0
    assert "tiny" in command("studies").out
    assert command("resume", "--study", "tiny", "--trials", "+1").code == 0
    studies = optuna.get_all_study_summaries(f"sqlite:///{folder / 'all.db'}")
    assert [(study.study_name, study.n_trials) for study in studies] == [("tiny", 3)]
    assert not (folder / "runs" / "tiny" / "study.db").exists()


def test_a_network_and_data_of_ones_own_from_the_working_folder(command: Command, folder: Path) -> None:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    own = [
        "model.name=mine:network",
        "model.kwargs={width: 5}",
        "data.name=mine:images",
        "data.kwargs={count: 120}",
    ]
    small = ["data.search_images=0.3", "data.train_images=60", "search.trials=2"]
    answer = command("search", "tiny.yaml", *own, *small)
    assert answer.code == 0, answer.err
    assert "60 training, 36 held-out, 30 test images" in answer.out


def test_validate_loads_no_data_and_no_network(command: Command, folder: Path) -> None:
    answer = command(
        "validate", "tiny.yaml", "data.root=nowhere", "model.name=nowhere:none", "budget.max_macs=12345"
    )
    assert answer.code == 0
    assert answer.out == "valid: nowhere:none on digits, 12,345 MACs, 4 trials of random, strengths 0.01\n"
    assert command("validate", "digits").out.startswith("valid: resnet20 on digits, ")


def test_inspect_shows_groups_costs_and_what_is_frozen(command: Command, folder: Path) -> None:
    before = listing(folder)
    answer = command("inspect", "tiny.yaml")
    assert answer.code == 0 and listing(folder) == before
    lines = answer.out.splitlines()
    assert any(line.split() == ["group", "channels", "MACs", "of", "one", "members"] for line in lines)
    assert any(line.split()[:2] == ["layer1.0.conv1", "4"] and "layer1.0.bn1" in line for line in lines)
    assert any(line.split()[:4] == ["layer1.0.conv1", "conv2d", "4x8x8", "9.22k"] for line in lines)
    assert any(line.startswith("frozen: linear (10 channels): ") for line in lines)
    assert "48,544 MACs (multiply-adds of one example; FLOPs = 2 x MACs)" in answer.out
    assert "44 prunable channels in 6 groups; budget 19,417 MACs" in answer.out


def test_inspect_names_the_branches_that_can_be_taken_out(command: Command, folder: Path) -> None:
    answer = command("inspect", "tiny.yaml", "budget.depth=true")
    blocks = "layer1.0.conv1, layer2.0.conv1, layer3.0.conv1"
    assert f"3 residual branches can be taken out, those of {blocks}" in answer.out
    assert "branches" not in command("inspect", "tiny.yaml").out


def test_inspect_writes_json_and_a_picture(command: Command, folder: Path) -> None:
    answer = command("inspect", "tiny.yaml", "--keep", "0.5", "--json", "all.json", "--picture", "net.svg")
    assert answer.code == 0, answer.err
    document = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    assert document["dense"]["macs"] == 48_544 and document["kept"]["macs"] <= 24_272
    assert "budget 19,417 MACs, the config's: a search keeps to it, and --keep 0.5 is only shown" in answer.out
    assert "kept at --keep 0.5" in answer.out and f"{document['kept']['macs']:,} MACs" in answer.out
    assert "layer1.0.conv1" in (folder / "net.svg").read_text(encoding="utf-8")
    printed = command("inspect", "tiny.yaml", "--keep", "0.5", "--json", "-")
    assert printed.code == 0 and json.loads(printed.out) == document


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--keep", "1.5"], "--keep must lie in (0, 1], got 1.5"),
        (["--keep", "0.0001"], "--keep 0.0001: a budget of 4 MACs cannot be reached"),
        (["--picture", "net.jpg"], "a picture must end in .png or .svg, got 'net.jpg'"),
        (
            ["--picture", "tiny.yaml/a/net.svg"],
            "the folder of a picture cannot be made: tiny.yaml/a: Not a directory",
        ),
        (["--json", "tiny.yaml/all.json"], "--json must name a file that can be written, got tiny.yaml/all.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_inspect_refuses_bad_options(command: Command, folder: Path, options: list[str], expected: str) -> None:
    assert expected in refused(command, folder, "inspect", "tiny.yaml", *options)


def test_a_picture_needs_the_extra(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "igraph", None)
    line = refused(command, folder, "inspect", "tiny.yaml", "--picture", "net.svg")
    assert "drawing needs the package igraph, which is not installed: pip install 'espalier[plot]'" in line


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("igraph", ("compare", "tiny.yaml")), ("matplotlib", ("plot", "energies", "tiny.yaml"))],
)
def test_what_takes_long_asks_for_packages_first(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(command, folder, *arguments)
    assert f"drawing needs the package {package}, which is not installed" in line
    assert not (folder / "runs").exists()


def test_debug_shows_the_traceback(command: Command, folder: Path) -> None:
    with pytest.raises(BudgetInfeasible, match="cannot be reached"):
        command("--debug", "search", "tiny.yaml", "budget.keep=0.001")


def test_what_a_program_prints_of_a_debugged_error(folder: Path) -> None:
    arguments = ["--debug", "validate", "tiny.yaml", "budget.keep=1.5"]
    ended = subprocess.run(
        [sys.executable, "-m", "espalier", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback") and "ConfigError: tiny.yaml: 1 fault: budget.keep" in ended.stderr


def test_the_command_is_a_module_too(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "espalier", "--version"], cwd=folder, capture_output=True, text=True
    )
    assert ended.returncode == 0 and ended.stdout.startswith("espalier ")


def test_the_version(command: Command) -> None:
    from espalier import __version__

    assert command("--version") == Answer(0, f"espalier {__version__}\n", "")


def test_help_is_quick_and_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys, time; sys.argv = ['espalier', '--help']\n"
        "from espalier.cli import main\n"
        "heavy = {'torch', 'ray', 'optuna', 'numpy', 'pydantic'}\n"
        "try: main()\n"
        "finally: print(time.process_time(), 'loaded', *sorted(heavy & set(sys.modules)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    for name in ("search", "resume", "studies", "inspect", "validate"):
        assert f" {name} " in shown.stdout
    seconds, *loaded = shown.stdout.splitlines()[-1].split()
    assert float(seconds) < 1.5  # of the processor: the machine may be busy
    assert loaded == ["loaded"]


def test_an_interrupt_before_the_search_is_told_how_to_go_on(folder: Path) -> None:
    """In dense training: what resume needs is in the storage by then."""
    content = yaml.safe_load(TINY) | {"training": {"epochs": 400, "batch_size": 32}}
    (folder / "long.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "espalier", "search", "long.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any("dense training: 0/3200" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "stopping: what is finished is kept, and the same call goes on with it" in out
    storage = "sqlite:///runs/long/study.db"
    assert said.strip() == f"interrupted; go on with: espalier resume --storage {storage} --study long"
    with sqlite3.connect(folder / "runs" / "long" / "study.db") as connection:
        assert connection.execute("SELECT COUNT(*) FROM trials").fetchone() == (0,)
    assert not os.path.exists(folder / "runs" / "long" / "result.json")
