"""A study is resumed from its storage alone: without the run folder, from another one, on another machine."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml

from espalier.errors import ConfigError, DataError, StudyMismatch, WeightsError
from espalier.search.config.loading import parse_config
from espalier.search.progress.reporter import Lines
from espalier.search.run.result import Result
from espalier.search.run.search_run import config_of, resume, run
from espalier.search.study import run_folder as place
from espalier.search.study.keys import PREFIX
from espalier.search.study.storage import create_study, open_storage


def made(content: dict[str, Any]) -> dict[str, Any]:
    """The tiny config, made tinier."""
    search = content["search"] | {"trials": 4, "finalists": 1}
    regularizer = content["regularizer"] | {"strengths": [0.01]}
    small = {"search": search, "regularizer": regularizer, "training": content["training"] | {"epochs": 1}}
    return content | small | {"finetune": content["finetune"] | {"seeds": 1}}


@pytest.fixture(scope="module")
def searched(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with the storage, the run folder and the mirror of a finished run."""
    home = tmp_path_factory.mktemp("home")
    config = parse_config(made(yaml.safe_load(tiny_text)), "tiny")
    out, mirror = home / "run", str(home / "mirror")
    result = run(config, study="s", out=out, storage=f"sqlite:///{home / 'study.db'}", mirror=mirror)
    return home, result


@pytest.fixture
def home(searched: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the storage and the mirror, in a folder where nothing has run."""
    for file in searched[0].glob("study.db*"):  # the write-ahead log too
        shutil.copy(file, tmp_path / file.name)
    shutil.copytree(searched[0] / "mirror", tmp_path / "mirror")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study_in(home: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{home / 'study.db'}")


def elsewhere(monkeypatch: pytest.MonkeyPatch, home: Path, *, mirrored: bool) -> None:
    """This is another machine now, to which the first one's folders are unknown."""
    monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")
    study = study_in(home)
    (key,) = (key for key in study.user_attrs if key.startswith(PREFIX + "place:"))
    study.set_user_attr(key, study.user_attrs[key] | {"out": "/nowhere/run"})
    study.set_user_attr(PREFIX + "mirror", str(home / "mirror") if mirrored else None)


def same(one: Result, other: Result) -> bool:
    return (one.dense, one.greedy, one.searched, one.verdict) == (
        other.dense,
        other.greedy,
        other.searched,
        other.verdict,
    )


def test_without_its_folder_a_run_makes_the_same_again_and_evaluates_nothing(
    searched: tuple[Path, Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, home, mirrored=False)
    before = study_in(home).trials
    result = resume(f"sqlite:///{home / 'study.db'}", "s")
    assert same(result, searched[1]) and study_in(home).trials == before
    assert result.artefact == "runs/s/pruned.espalier" and (home / result.artefact).is_file()
    assert config_of(str(home / "study.db"), "s")[1] == home / "runs" / "s"


@pytest.mark.usefixtures("no_training")
def test_a_mirror_brings_the_networks_and_nothing_is_trained(
    searched: tuple[Path, Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, home, mirrored=True)
    before = study_in(home).trials
    result = resume(f"sqlite:///{home / 'study.db'}", "s", out=home / "other", mirror=str(home / "mirror"))
    assert same(result, searched[1]) and study_in(home).trials == before
    files = sorted(path.relative_to(searched[0] / "run") for path in (searched[0] / "run").rglob("*.safetensors"))
    assert sorted(path.relative_to(home / "other") for path in (home / "other").rglob("*.safetensors")) == files
    assert sorted(path.relative_to(home / "mirror/s") for path in (home / "mirror").rglob("*.*")) == files


def test_a_machine_that_trains_to_other_numbers_says_which_files_it_needs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, home, mirrored=False)
    trainings, step = list[torch.optim.SGD](), torch.optim.SGD.step

    def other_numbers(optimizer: torch.optim.SGD, *how: Any) -> None:
        trainings.extend([optimizer] if optimizer not in trainings else [])
        step(optimizer, *how)
        optimizer.param_groups[0]["params"][0].data.mul_(1 + 1e-6)

    monkeypatch.setattr(torch.optim.SGD, "step", other_numbers)
    names = sorted(study_in(home).user_attrs[PREFIX + "ladder"])
    message = rf"put there the run's own {names[0]}, {names[1]} from \S+:/nowhere/run/ladder$"
    with pytest.raises(StudyMismatch, match=message):
        resume(f"sqlite:///{home / 'study.db'}", "s")
    assert len(trainings) == 1, "the first network tells"


def test_a_shared_run_folder_is_found_from_another_machine(
    searched: tuple[Path, Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")
    assert config_of(str(home / "study.db"), "s")[1] == searched[0] / "run"


def test_a_folder_or_a_mirror_is_not_used_on_the_storages_word(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, theirs = study_in(home), home / "theirs"
    (theirs / "ladder").mkdir(parents=True)
    (theirs / "result.json").write_text("kept")
    (key,) = (key for key in study.user_attrs if key.startswith(PREFIX + "place:"))
    study.set_user_attr(key, study.user_attrs[key] | {"out": str(theirs)})
    study.set_user_attr(PREFIX + "mirror", f"file://{theirs}")
    before = sorted(theirs.rglob("*"))
    result = resume(f"sqlite:///{home / 'study.db'}", "s", reporter=Lines())
    assert result.artefact == "runs/s/pruned.espalier" and (theirs / "result.json").read_text() == "kept"
    assert sorted(theirs.rglob("*")) == before
    said = capsys.readouterr().out
    assert f"the run folder is runs/s; the study says {theirs}, which --out {theirs} goes on in\n" in said
    assert f"an earlier run kept the checkpoints in file://{theirs} too: --mirror file://{theirs} fetches" in said


def test_a_recorded_folder_is_used_where_more_than_the_study_says_so(
    anywhere: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url, out = anywhere(), tmp_path / "somewhere"
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{url}")
    place.settle(study, out, root=None, weights=None)
    assert config_of(url, "s")[1] == out, "a run has left its mark there"
    (mark,) = (out / ".studies").iterdir()
    mark.rename(mark.with_name("another's"))
    assert config_of(url, "s")[1] == Path("runs/s")
    for id in ("another's", "../../somewhere", "", 5):
        study.set_user_attr(PREFIX + "id", id)
        assert config_of(url, "s")[1] == Path("runs/s")
    study.set_user_attr(f"{PREFIX}place:{socket.gethostname()}", {"out": str(tmp_path)})
    assert config_of(url, "s")[1] == config_of("study.db", "s")[1] == tmp_path, "the user's storage lies there"
    study.set_user_attr(f"{PREFIX}place:{socket.gethostname()}", {"out": str(tmp_path.parent)})
    assert config_of(url, "s")[1] == Path("runs/s")


@pytest.fixture
def anywhere(tiny: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """A study of a run on another machine, with the paths of that machine."""

    def make(**changes: Any) -> str:
        url = str(tmp_path / "study.db")
        config = parse_config(made(tiny) | changes, "tiny")
        attributes = {"config": config.model_dump(mode="json"), "fingerprint": config.fingerprint()}
        attributes |= {"place:first-machine": {"out": "/nowhere/run", "root": "/nowhere", "weights": None}}
        create_study(open_storage(url, create=True), "s", attributes)
        return url

    return make


def test_data_that_lie_elsewhere_are_asked_for_by_their_key(anywhere: Callable[..., str]) -> None:
    url = anywhere(data={"name": "cifar10", "root": "/nowhere"})
    hint = r"/nowhere is no folder.*; the study has run on first-machine so far: .* data\.root=FOLDER and"
    with pytest.raises(DataError, match=hint):
        resume(url, "s")
    with pytest.raises(DataError, match="not-here"):
        resume(url, "s", overrides=["data.root=not-here"])


def test_weights_that_lie_elsewhere_are_asked_for_by_their_key(
    anywhere: Callable[..., str], tiny: dict[str, Any]
) -> None:
    url = anywhere(model=tiny["model"] | {"weights": "/nowhere/w.pt"})
    with pytest.raises(WeightsError, match=r"first-machine so far: .* model\.weights=FILE"):
        resume(url, "s")


def test_a_mirror_that_cannot_be_is_refused_before_anything_is_written(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    for mirror in ("ftp://me:sesame@host/x", "nonsense://x"):
        with pytest.raises(ConfigError, match=r"mirror"):
            run(parse_config(tiny, "tiny"), study="s", out=tmp_path / "run", mirror=mirror)
    assert list(tmp_path.iterdir()) == []


def test_what_the_trials_depend_on_cannot_be_overridden(home: Path) -> None:
    url = f"sqlite:///{home / 'study.db'}"
    with pytest.raises(StudyMismatch, match=r"seed was 0, now 5, .*; choose another study name"):
        resume(url, "s", overrides=["seed=5"])
    with pytest.raises(ConfigError, match=r"the config of study 's': 1 fault: data: .*|unknown name 'rot'"):
        resume(url, "s", overrides=["data.rot=5"])


def test_each_machine_keeps_its_own_paths(
    anywhere: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = anywhere(data={"name": "cifar10", "root": "/first/data"})
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{url}")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for host, root in (("second", "data"), ("third", "/third/data")):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        config, folder = config_of(url, "s", [f"data.root={root}"])
        assert folder == Path("runs/s")
        place.settle(study, Path("runs") / host, root=config.data.root, weights=config.model.weights)
    found = {}
    for host in ("second", "third", "fourth"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        config, folder = config_of(url, "s")
        found[host] = (str(config.data.root), str(folder))
    assert found == {
        "second": (str(tmp_path / "data"), str(tmp_path / "runs/second")),
        "third": ("/third/data", str(tmp_path / "runs/third")),
        "fourth": ("/first/data", "runs/s"),
    }
