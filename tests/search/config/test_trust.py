"""What a storage or a file names is neither imported nor called nor written to, unless the user names it too."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import espalier
from espalier import search_widths
from espalier.errors import ArtefactError, ConfigError, EspalierError, StorageError
from espalier.pruning.networks import NETWORKS, build, is_built_in
from espalier.search.analysis.rescoring import rescore
from espalier.search.config.loading import parse_config
from espalier.search.config.trust import check_trusted, names_of
from espalier.search.files.tensor_files import save_tensors, tensors_of
from espalier.search.progress.reporter import Silent
from espalier.search.run import search_run as pipeline
from espalier.search.run.search_run import config_of, resume
from espalier.search.study.keys import PREFIX
from espalier.search.study.mirror import CheckpointMirror
from espalier.search.study.run_folder import folder_of
from espalier.search.study.storage import create_study, open_storage
from tests.command_line import command_of

# --------------------------------------------------------------------------- what this process is seen to do

_seen: list[str] | None = None
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & _WRITING or any(letter in (mode or "") for letter in "wax+"):
            _seen.append(f"writes {path}")
    elif event == "import":
        _seen.append(f"imports {arguments[0]}")
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.system", "subprocess.Popen", "socket.connect"):
        _seen.append(f"{event} {arguments[0]}")


sys.addaudithook(_hear)  # for good: such a hook cannot be taken back


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is imported, opened for writing, made, run or connected to meanwhile."""
    global _seen
    seen: list[str] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


HOSTILE = (
    "hostile:run",
    "hostile.deep:run",
    "subprocess:check_output",
    "os:system",
    "builtins:exec",
    "espalier.cli:main",
    "espalier.search.files.json_files:write_json",
    "espalier.pruning.networks:load_weights",
    "espalier.pruning.networks:importlib.import_module",
    ":run",
    ".hostile:run",
    "hostile:",
    "resnet20:run",
    "../../hostile",
    "/hostile/run",
    "file:///hostile",
    "s3://hostile/bucket",
    "simplecache::file:///hostile",
    "hostile.example.org:6379",
    "ray://hostile:10001",
)


def innocent(seen: list[str]) -> bool:
    """Whether nothing of what a hostile name says was done."""
    return not [each for each in seen if "hostile" in each or not each.startswith("imports ")]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module in it that leaves a file when it is imported, and when it is called."""
    code = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    code += "def run(*_, **__): raise SystemExit(99)\n"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    sys.modules.pop("hostile", None)


Study = Callable[..., str]


@pytest.fixture
def study(tiny: dict[str, Any], hostile: Path) -> Study:
    """Makes a storage with a study `s` in it, whose config and attributes say what they are told to."""

    def make(attributes: dict[str, Any] | None = None, **sections: Any) -> str:
        url = f"sqlite:///{hostile / 'study.db'}"
        config = parse_config(tiny, "tiny").model_dump(mode="json")
        for name, values in sections.items():
            config[name] |= values
        made = {"config": config, "fingerprint": {}} | (attributes or {})
        create_study(open_storage(url, create=True), "s", made)
        return url

    return make


# ------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("trust", "name", "trusted"),
    [
        ("my.package", "my.package:net", True),
        ("my.package", "my.package.sub:net", True),
        ("my.package", "my.packagex:net", False),
        ("my.package", "my:package.net", False),
        ("my.package", "xmy.package:net", False),
        ("my", "my.package:net", True),
        ("my.package:net", "my.package:net", True),
        ("my.package:net", "my.package:net2", False),
        ("my.package:net", "my.package:net.sub", False),
        ("my.package:net", "my.package.net:net", False),
    ],
)
def test_a_package_is_trusted_with_all_below_it(trust: str, name: str, trusted: bool) -> None:
    try:
        check_trusted([("model.name", name, {})], names_of(trust), "the study")
    except ConfigError as error:
        assert not trusted and f"names model.name {name!r}" in str(error)
    else:
        assert trusted


@pytest.mark.parametrize("trust", ["", ".", "my.", "my package", "../my", "my:", "my:a:b"])
def test_a_name_that_is_none_cannot_be_trusted(trust: str) -> None:
    with pytest.raises(ConfigError, match=r"^--trust must name a package, .*, or a callable, .*, got "):
        names_of([trust])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_the_box_need_no_trust_and_take_no_callables(name: str) -> None:
    where = f"espalier.pruning.networks:{NETWORKS[name][0].__name__}"
    assert is_built_in(name) and is_built_in(where)
    check_trusted([("model.name", where, {})], (), "the study")
    for value in ("hostile:run", "/hostile", {"hostile": 1}, ["hostile"], -1, None):
        for argument in ("num_classes", "in_channels", "depth", "width", "shortcut", "form", "dropout", "pools"):
            with watched() as seen, pytest.raises(ConfigError):
                build(name, **{argument: value})
            assert innocent(seen)


# -------------------------------------------------------------------------------------------------- storages


@pytest.mark.parametrize("section", ["model", "data"])
@pytest.mark.parametrize("name", [name for name in HOSTILE if ":" in name and "//" not in name])
def test_a_study_cannot_name_what_is_imported(study: Study, hostile: Path, section: str, name: str) -> None:
    url = study(**{section: {"name": name, "kwargs": {"args": ["touch", str(hostile / "ran")]}}})
    rule = (
        rf"names {section}\.name '.*', called with args=.*, and nothing is imported on a storage's word: .*--trust "
    )
    for go in (lambda: resume(url, "s"), lambda: rescore(url, "s", 0)):
        with watched() as seen, pytest.raises(ConfigError, match=rule):
            go()
        assert innocent(seen), seen
    assert not list(hostile.rglob("ran")) and not list((hostile / "here").iterdir())


@pytest.mark.parametrize("name", [name for name in HOSTILE if ":" in name and "//" not in name])
def test_a_study_cannot_name_a_criterion_that_is_imported(study: Study, hostile: Path, name: str) -> None:
    url = study(search={"criterion": name})
    rule = r"names search\.criterion '.*', called with no arguments, and nothing is imported on a storage's word"
    for go in (lambda: resume(url, "s"), lambda: rescore(url, "s", 0)):
        with watched() as seen, pytest.raises(ConfigError, match=rule):
            go()
        assert innocent(seen), seen
    assert not list(hostile.rglob("ran")) and not list((hostile / "here").iterdir())


def test_all_that_is_not_trusted_is_named_at_once(study: Study, hostile: Path) -> None:
    called = {"kwargs": {"x": 1}}
    url = study(model={"name": "hostile:run", **called}, data={"name": "other:load", **called})
    with watched() as seen, pytest.raises(ConfigError, match=r"model\.name 'hostile:run'.*data\.name") as raised:
        resume(url, "s")
    assert innocent(seen) and str(raised.value).endswith(
        "names model.name 'hostile:run', called with x=1, and data.name 'other:load', called with x=1, and nothing "
        "is imported on a storage's word: if you know these packages, allow them with --trust hostile --trust "
        "other, or trust=['hostile', 'other'] in Python"
    )
    with watched() as seen, pytest.raises(ConfigError, match=r"names data\.name 'other:load'.* --trust other, or"):
        resume(url, "s", trust=["hostile"])
    assert innocent(seen)


def test_the_user_may_trust_a_package_a_callable_or_what_is_typed(study: Study, hostile: Path) -> None:
    url = study(model={"name": "hostile:run", "kwargs": {}})
    for allowed in (
        {"trust": "hostile"},
        {"trust": ["other", "hostile:run"]},
        {"overrides": ["model.name=hostile:run"]},
    ):
        assert config_of(url, "s", **allowed)[0].model.name == "hostile:run"
    with pytest.raises(ConfigError, match="--trust hostile, or trust='hostile' in Python"):
        config_of(url, "s", ["model.kwargs={}", "data.name=hostile:run"], trust="hostil")


def test_a_trusted_package_is_not_a_way_to_what_it_imports(study: Study, hostile: Path) -> None:
    code = "import os, subprocess\nfrom os import system\nfrom functools import partial\ndef net(): ...\n"
    code += "lazy = partial(system)\nclass Net:\n    @classmethod\n    def small(cls): ...\n"
    (hostile / "modules" / "mine.py").write_text(code)
    for attributes in ("os.system", "subprocess.check_output", "system", "lazy", "net.__class__", "os"):
        url = study(model={"name": f"mine:{attributes}", "kwargs": {}})
        said = rf"is not defined in mine but in .*: if you know it, allow it alone with --trust mine:{attributes}$"
        with pytest.raises(ConfigError, match=said):
            config_of(url, "s", trust="mine")
        assert config_of(url, "s", trust=f"mine:{attributes}")
        (hostile / "study.db").unlink()
    for attributes in ("net", "Net", "Net.small", "none"):  # building says that there is none
        url = study(model={"name": f"mine:{attributes}", "kwargs": {}})
        assert config_of(url, "s", trust="mine")
        (hostile / "study.db").unlink()
    sys.modules.pop("mine")


def test_a_study_cannot_choose_the_cluster(study: Study) -> None:
    url = study(cluster={"address": "hostile.example.org:6379", "time_budget": 1.0, "gpus_per_worker": 0.5})
    cluster = config_of(url, "s")[0].cluster
    assert (cluster.address, cluster.time_budget, cluster.gpus_per_worker) == (None, None, 0.5)
    assert config_of(url, "s", ["cluster.address=mine:1"])[0].cluster.address == "mine:1"


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything that a config holds."""
    yield path
    items = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    found = copy.copy(content)
    found[path[0]] = changed(found[path[0]], path[1:], value)
    return found


TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=12)
VALUES = (
    TEXTS | st.none() | st.integers(-2, 2) | st.lists(TEXTS, max_size=2) | st.dictionaries(TEXTS, TEXTS, max_size=2)
)
SLOW = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.data())
def test_whatever_a_storage_says_nothing_is_done_on_its_word(
    data: st.DataObject, tiny_text: str, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(yaml.safe_load(tiny_text), "tiny").model_dump(mode="json")
    paths = list(leaves(config))
    for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=4)):
        try:
            config = changed(config, path, data.draw(VALUES))
        except (TypeError, LookupError):  # an earlier change took its section away
            continue
    place = {"out": str(hostile / "elsewhere"), "root": "/hostile", "weights": "/hostile"}
    attributes = {
        PREFIX + "config": config,
        PREFIX + "fingerprint": data.draw(VALUES),
        PREFIX + "id": data.draw(VALUES),
        PREFIX + "mirror": data.draw(VALUES),
        PREFIX + "ladder": data.draw(VALUES),
        PREFIX + f"place:{socket.gethostname()}": data.draw(VALUES | st.just(place)),
        PREFIX + "place:another": data.draw(VALUES | st.just(place)),
    }
    name = data.draw(st.sampled_from(["s", "a/b"]) | TEXTS)
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(pipeline, "open_storage", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "find", lambda *_: SimpleNamespace(user_attrs=attributes))
    monkeypatch.setattr(pipeline, "run", lambda config, **options: ran.append({"config": config, **options}))
    with watched() as seen:
        try:
            resume("sqlite:///study.db", name)
        except EspalierError as error:
            assert "\n" not in str(error) or "\n" in name
    assert innocent(seen), seen
    for call in ran:
        settings = call["config"]
        assert ":" not in settings.model.name or is_built_in(settings.model.name)
        assert ":" not in settings.data.name
        assert settings.cluster.address is None and call["mirror"] is None
        out = Path(os.path.normpath(call["out"]))
        assert not out.is_absolute() and out.parts[0] == "runs" and len(out.parts) > 1


def test_a_config_that_is_none(study: Study) -> None:
    with pytest.raises(StorageError, match=r"^the config of study 's' in sqlite:.* is damaged: it is of type str$"):
        config_of(study({"config": "hostile"}), "s")


# --------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../b", "..", ".", "", "a\0b"])
def test_a_study_whose_name_leads_elsewhere_has_no_folder(
    name: str, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = r"^the name of a study must name a folder below another one, and '.*' leads elsewhere: give --out "
    with pytest.raises(ConfigError, match=said):
        folder_of(name)
    with pytest.raises(ConfigError, match=said):
        CheckpointMirror(tmp_path, str(tmp_path / "mirror"), name, Silent())
    if name:
        with pytest.raises(ConfigError, match=said):
            search_widths(tiny, study=name)
    assert not list(tmp_path.iterdir())


def test_a_study_may_name_a_folder_in_a_folder() -> None:
    assert folder_of("group/run..1") == Path("runs/group/run..1")


# ----------------------------------------------------------------------------------------------------- files


@pytest.fixture
def network() -> nn.Module:
    return build("resnet20", width=2, num_classes=3)


def written(folder: Path, network: nn.Module, **header: Any) -> Path:
    path = folder / "x.espalier"
    base = {"format": 1, "name": "resnet20", "kwargs": {"width": 2, "num_classes": 3}, "integers": []}
    save_tensors(path, tensors_of(network), base | header)
    return path


@pytest.mark.parametrize("name", [name for name in HOSTILE if ":" in name])
def test_a_file_cannot_name_what_is_imported(name: str, hostile: Path, network: nn.Module) -> None:
    path = written(hostile, network, name=name, kwargs={"args": ["touch", str(hostile / "ran")]})
    with (
        watched() as seen,
        pytest.raises(ArtefactError, match="nothing is imported on a file's word; give the network"),
    ):
        espalier.load(path)
    assert innocent(seen) and not list(hostile.rglob("ran"))


def test_the_user_gives_the_network_or_what_makes_it(hostile: Path, network: nn.Module) -> None:
    path = written(hostile, network, name="hostile:run", kwargs={"width": 9})
    dense = build("resnet20", width=2, num_classes=3)
    before = {name: tensor.clone() for name, tensor in tensors_of(dense).items()}
    images = torch.zeros(1, 3, 8, 8)
    for mine in (dense, lambda: build("resnet20", width=2, num_classes=3)):
        with watched() as seen:
            loaded = espalier.load(path, network=mine)
        assert innocent(seen) and torch.equal(loaded(images), network.eval()(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(dense).items()), "it is copied"
    with pytest.raises(ArtefactError, match=r"^network must give a torch\.nn\.Module, got an object of type int$"):
        espalier.load(path, network=lambda: 3)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "entry",
    [
        ["", "forward", None, 3],
        ["", "training", None, 0],
        ["conv1", "__class__", None, 3],
        ["conv1", "kernel_size", 0, "3"],
        ["conv1", "kernel_size", None, 3],
        ["conv1", "padding_mode", 0, 3],
        ["conv1", "weight", 0, 3],
        ["conv1", "out_channels", None, True],
        ["conv1", "out_channels", None, {"hostile": 1}],
        ["nowhere", "out_channels", None, 3],
        ["conv1", ["out_channels"], None, 3],
        ["conv1"],
        3,
    ],
    ids=str,
)
def test_a_file_sets_integers_and_nothing_else(entry: Any, tmp_path: Path, network: nn.Module) -> None:
    with pytest.raises(ArtefactError, match="does not fit the network 'resnet20': "):
        espalier.load(written(tmp_path, network, integers=[entry]))


@SLOW
@given(data=st.data())
def test_whatever_a_file_says_nothing_is_done_on_its_word(
    data: st.DataObject, hostile: Path, network: nn.Module
) -> None:
    header: Any = {"format": 1, "name": "resnet20", "kwargs": {"width": 2, "num_classes": 3}, "kept": {"a": [0]}}
    header |= {"integers": [["conv1", "out_channels", None, 2]], "notes": {"x": "y"}}
    for path in data.draw(st.lists(st.sampled_from(list(leaves(header))), min_size=1, max_size=3)):
        try:
            header = changed(header, path, data.draw(VALUES))
        except (TypeError, LookupError):
            continue
    file = hostile / "x.espalier"
    save_tensors(file, tensors_of(network), header)
    with watched() as seen:
        try:
            espalier.load(file)
        except ArtefactError:
            pass
    assert innocent(seen), seen


def test_a_header_too_deep_to_read(tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda _: "[" * 100_000)
    with pytest.raises(ArtefactError, match=r"^cannot read "):
        espalier.load(written(tmp_path, network))


# --------------------------------------------------------------------------------------------------- command


def test_the_command_says_how_and_takes_it(
    study: Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], hostile: Path
) -> None:
    def command(*words: str) -> str:
        answer = command_of(monkeypatch, capfd)(*words)
        assert answer.code == 2
        return answer.err.strip()

    (hostile / "modules" / "mine.py").write_text("def net():\n    raise ValueError('it was called')\n")
    url = study(model={"name": "mine:net", "kwargs": {}})
    for words in (["resume"], ["rescore", "--trial", "0"]):
        asked = [*words, "--storage", url, "--study", "s"]
        assert "if you know that package, allow it with --trust mine, or trust='mine' in Python" in command(*asked)
        assert "mine" not in sys.modules
        said = command(*asked, "--trust", "other", "--trust", "mine")
        assert "it was called" in said or "has no finished trial 0" in said
        sys.modules.pop("mine", None)


def test_the_command_imports_nothing_from_the_working_folder_in_the_place_of_a_package(tmp_path: Path) -> None:
    for name in ("optuna", "sqlalchemy", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('from the working folder')\n")
    program = "import sys; from espalier.cli import main; sys.path.remove(''); main()"
    for start in (["-c", program], ["-m", "espalier"]):
        ended = subprocess.run(
            [sys.executable, *start, "studies", "--storage", "none.db"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2 and "there is no storage at sqlite:///none.db" in ended.stderr, ended.stderr
