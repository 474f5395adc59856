"""What the trials of a study depend on: every key of a config is in the fingerprint, or known to be free."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from pydantic import BaseModel

from espalier.errors import StudyMismatch
from espalier.search.config.loading import Config, comparable, parse_config
from espalier.search.run.search_run import default_storage, run
from espalier.search.study.overview import digest_of
from tests.search.watched import Stopped, Stops

OTHER: dict[str, Any] = {
    "model.name": "vgg11_bn",
    "model.kwargs": {"depth": 14},
    "data.name": "mnist",
    "data.search_images": 0.25,
    "data.train_images": 100,
    "data.mean": [0.5],
    "data.std": [0.5],
    "data.kwargs": {"size": 8},
    "data.augment.pad": 2,
    "data.augment.flip": True,
    "data.augment.crop": [0.2, 1.0],
    "data.augment.rand_augment": [2, 9],
    "data.augment.mixup": 0.2,
    "training.epochs": 3,
    "training.batch_size": 16,
    "training.lr": 0.3,
    "training.momentum": 0.5,
    "training.weight_decay": 0.1,
    "training.label_smoothing": 0.1,
    "training.clip_norm": 1.0,
    "training.optimizer": "adamw",
    "training.schedule": "step",
    "training.accumulate": 2,
    "training.processes": 2,
    "training.ema": 0.9,
    "regularizer.start": "dense",
    "training.warmup": 0.3,
    "training.precision": "bf16",
    "regularizer.name": "none",
    "regularizer.kwargs": {"share": 0.3},
    "regularizer.weighting": "sqrt_size",
    "regularizer.with_norms": True,
    "regularizer.step": "proximal",
    "regularizer.ramp": 0.5,
    "regularizer.strengths": [0.5],
    "regularizer.costs": [0.01],
    "regularizer.epochs": 4,
    "regularizer.lr": 0.01,
    "budget.keep": 0.5,
    "budget.min_width": 2,
    "budget.depth": True,
    "budget.bits": [8, 32],
    "budget.round_to": 8,
    "search.sampler": "tpe",
    "search.space": "ratios",
    "search.range": 1.0,
    "search.normalization": "max",
    "search.criterion": "folded_energy",
    "search.strength": "finetuned",
    "search.proxy": "ridge",
    "search.measure": "top1",
    "search.race": True,
    "budget.keep_params": 0.5,
    "budget.keep_bit_operations": 0.5,
    "budget.keep_weight_bytes": 0.5,
    "budget.max_memory": 10**6,
    "budget.min_widths": {"conv1": 2},
    "budget.frozen": ["conv1"],
    "search.scoring_images": 65,
    "search.calibration_images": 65,
    "search.batch_size": 8,
    "search.precision": "bf16",
    "search.memory_format": "contiguous",
    "seed": 1,
    "budget.keep_memory": 0.5,
    "budget.max_macs": 9000,
    "budget.max_params": 999,
    "budget.max_bit_operations": 10**9,
    "budget.max_weight_bytes": 9999,
    "budget.front": True,
    "budget.latency": 0.9,
    "budget.max_latency_ms": 9.0,
    "budget.device.runtime": "onnxruntime",
    "budget.device.batch": 2,
    "budget.device.threads": 2,
    "search.agent.pretrained": "agent.bin",
    "supernet.epochs": 2,
    "supernet.generator": True,
    "supernet.used_for": "both",
}
"""Another value for every key on which a study's trials depend; a new key must be put here or below."""

FINETUNE: dict[str, Any] = {
    "finetune.batch_size": 16,
    "finetune.lr": 0.9,
    "finetune.momentum": 0.5,
    "finetune.weight_decay": 0.1,
    "finetune.label_smoothing": 0.1,
    "finetune.warmup": 0.3,
    "finetune.precision": "bf16",
    "finetune.clip_norm": 1.0,
    "finetune.optimizer": "lamb",
    "finetune.schedule": "constant",
    "finetune.accumulate": 2,
    "finetune.processes": 2,
    "finetune.ema": 0.9,
    "finetune.distillation": 0.5,
    "finetune.temperature": 2.0,
    "finetune.attention": 1000.0,
}
"""Keys on which they depend where fine-tuning chooses the strength, or candidates take some of its steps."""

LENGTH: dict[str, Any] = {"finetune.epochs": 9, "finetune.halvings": 2, "finetune.reconstruct": True}
"""Keys on which they depend where fine-tuning chooses the strength."""

FREE: dict[str, Any] = {
    "model.weights": "elsewhere.safetensors",
    "data.root": "elsewhere",
    "search.trials": 99,
    "search.finalists": 9,
    "search.ladder": ["ridge", "sgd20"],
    "search.promote": 0.5,
    "finetune.seeds": 9,
    "finetune.selection_seeds": 3,
    "workers": 9,
    "budget.device.networks": 9,
    "budget.device.model": "phone.json",
    "compare.methods": ["greedy", "auto"],
    "compare.baseline": "auto",
    "compare.seeds": 9,
    "compare.trials": 9,
    "compare.scratch_epochs": 9,
    "compare.latency_batch": 9,
    "compare.latency.runtimes": ["onnxruntime"],
    "compare.latency.batches": [9, 1],
    "compare.latency.threads": 2,
    "cluster.address": "auto",
    "cluster.cpus_per_worker": 4,
    "cluster.gpus_per_worker": 0.25,
    "cluster.time_budget": 60,
    "cluster.candidate_timeout": "1m",
    "cluster.max_failures": 99,
    "prune.schedule": "soft",
    "prune.rounds": 9,
    "prune.strength": 0.5,
    "prune.criterion": "fpgm",
    "prune.normalization": "mean",
    "prune.most": 0.9,
    "prune.retrain": "scratch",
    "prune.reconstruct": True,
}
"""Keys that leave a study's trials as they are."""


TASK: dict[str, Any] = {"task.name": "own:task", "task.kwargs": {"rows": 3}}
"""Keys of a task that is not in the box."""

EVERY = {**OTHER, **FINETUNE, **LENGTH, **FREE, **TASK}

SUPERNET = ("epochs", "generator", "used_for")
NEEDS: dict[str, dict[str, Any]] = {
    "search.strength": {"regularizer.strengths": [0.01]},
    "search.race": {"search.measure": "cross_entropy"},
    "budget.front": {"search.sampler": "nsga2", "budget.keep": [0.6, 0.4]},
    "search.agent.pretrained": {"search.sampler": "agent"},
    "regularizer.kwargs": {"regularizer.name": "selective_decay"},
    "regularizer.costs": {"regularizer.strengths": "auto"},
    **{f"supernet.{key}": {"supernet.epochs": 1} for key in SUPERNET},
    "budget.latency": {"budget.latency": 0.8},
    "budget.max_latency_ms": {"budget.max_latency_ms": 8.0},
    **{
        f"budget.device.{key}": {"budget.latency": 0.8}
        for key in ("runtime", "batch", "threads", "networks", "model")
    },
}
"""What a key cannot do without."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agent.bin").write_bytes(b"an agent")
    monkeypatch.chdir(tmp_path)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Path of every key of a config."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def with_keys(content: Mapping[str, Any], values: Mapping[str, Any]) -> Config:
    changed = copy.deepcopy(dict(content))
    return parse_config(changed, "mine", [f"{path}={json.dumps(value)}" for path, value in values.items()])


def differing(tiny: dict[str, Any], path: str, **more: Any) -> set[str]:
    """Keys of the fingerprint that differ where one of the config does."""
    base = {key.replace("_", ".", 1): value for key, value in more.items()} | NEEDS.get(path, {})
    before = with_keys(tiny, base).fingerprint()
    after = with_keys(tiny, base | {path: EVERY[path]}).fingerprint()
    return {key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...)}


def test_every_key_has_an_entry() -> None:
    assert sorted(keys(Config)) == sorted(EVERY)
    assert len(EVERY) == len(OTHER) + len(FINETUNE) + len(LENGTH) + len(FREE) + len(TASK)


def test_it_changes_with_the_task(tiny: dict[str, Any]) -> None:
    del tiny["data"]
    made = [with_keys(tiny, {"task.name": "own:task", "task.kwargs": {"rows": rows}}) for rows in (3, 4)]
    fingerprints = [config.fingerprint() for config in made]
    assert fingerprints[0]["task.name"] == "own:task" and made[0].search.measure == "score"
    assert {key for key in fingerprints[0] if fingerprints[0][key] != fingerprints[1][key]} == {"task.kwargs.rows"}


@pytest.mark.parametrize("path", OTHER)
def test_it_changes_with(tiny: dict[str, Any], path: str) -> None:
    fingerprint = with_keys(tiny, NEEDS.get(path, {})).fingerprint()
    assert any(key == path or key.startswith(path + ".") for key in fingerprint)
    found = differing(tiny, path, search_strength="searched")
    same_thing = {"budget.max_macs": "budget.keep", "budget.front": "budget.keep"}.get(path, path)
    assert found and all(key in (path, same_thing) or key.startswith(path + ".") for key in found)


@pytest.mark.parametrize("path", FREE)
@pytest.mark.parametrize("proxy", ["recalibrated", "sgd10"])
def test_it_does_not_change_with(tiny: dict[str, Any], path: str, proxy: str) -> None:
    assert not differing(tiny, path, search_proxy=proxy)


@pytest.mark.parametrize("path", [*FINETUNE, *LENGTH])
def test_it_changes_with_fine_tuning_where_that_chooses_the_strength_or_takes_steps(
    tiny: dict[str, Any], path: str
) -> None:
    assert differing(tiny, path) == {path}
    assert differing(tiny, path, search_proxy="sgd10") == {path}
    assert not differing(tiny, path, search_strength="searched")
    assert not differing(tiny, path, regularizer_strengths=[0.01])  # one rung: there is nothing to choose
    takes = {path} if path in FINETUNE else set()
    assert differing(tiny, path, search_strength="searched", search_proxy="sgd10") == takes


def test_studies_that_knew_no_shared_weights_go_on_without(tiny: dict[str, Any]) -> None:
    now = parse_config(tiny, "mine").fingerprint()
    older = {key: value for key, value in now.items() if not key.startswith("supernet.")}
    assert comparable(now, older) == older != now
    unused = with_keys(tiny, {"supernet.used_for": "scores"}).fingerprint()
    assert unused == now
    shared = with_keys(tiny, {"supernet.epochs": 1}).fingerprint()
    assert comparable(shared, older)["supernet.epochs"] == 1


def test_another_budget_makes_other_shared_weights(tiny: dict[str, Any]) -> None:
    scored = tiny | {"supernet": {"epochs": 1, "used_for": "scores"}}
    one, two = (parse_config(scored | {"budget": {"keep": keep}}, "mine") for keep in ([0.4], [0.6, 0.4]))
    assert one.fingerprint() != two.fingerprint()


def test_the_recipe_of_fine_tuning_counts_where_shared_weights_are_scored(tiny: dict[str, Any]) -> None:
    scored = {"supernet.epochs": 1, "supernet.used_for": "scores", "search.strength": "searched"}
    lrs = [with_keys(tiny, scored | {"finetune.lr": lr}).fingerprint() for lr in (0.1, 0.2)]
    assert {key for key in lrs[0] if lrs[0][key] != lrs[1][key]} == {"finetune.lr"}


def test_budgets_that_share_a_search_leave_it_as_it_is(tiny: dict[str, Any]) -> None:
    before = parse_config(tiny, "mine").fingerprint()
    assert parse_config(tiny | {"budget": {"keep": [0.9, 0.6, 0.4]}}, "mine").fingerprint() == before
    assert parse_config(tiny | {"budget": {"keep": [0.9, 0.6, 0.3]}}, "mine").fingerprint() != before


def test_a_front_is_another_search_with_every_budget(tiny: dict[str, Any]) -> None:
    tiny["search"]["sampler"] = "nsga2"
    front = {"keep": [0.9, 0.6, 0.4], "front": True}
    before = parse_config(tiny | {"budget": front}, "mine").fingerprint()
    assert parse_config(tiny | {"budget": front | {"keep": [0.8, 0.6, 0.4]}}, "mine").fingerprint() != before


# ----------------------------------------------------------------------------------------------- in a study


def open_study(content: dict[str, Any], out: Path, *changes: str) -> None:
    """Begins a search, and stops it when it tells what it is of: then the study was accepted."""
    run(parse_config(content, "tiny", changes), study="s", out=out, reporter=Stops(line="s: "))


def opens(content: dict[str, Any], out: Path, *changes: str) -> str:
    """Why a study is refused with these changes; empty where it is accepted."""
    try:
        open_study(content, out, *changes)
    except Stopped:
        return ""
    except StudyMismatch as error:
        return str(error)
    raise AssertionError("neither accepted nor refused")


def test_a_study_accepts_what_it_does_not_depend_on_and_nothing_else(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        open_study(tiny, tmp_path)
    elsewhere = ("model.weights", "data.root")  # checked by what is in them: test_place.py
    for path in (path for path in FREE if path not in elsewhere):
        assert opens(tiny, tmp_path, f"{path}={json.dumps(FREE[path])}") == "", path
    for path in (
        *("finetune.lr", "finetune.epochs", "finetune.reconstruct"),
        *("search.precision", "search.batch_size", "seed"),
    ):
        said = opens(tiny, tmp_path, f"{path}={json.dumps(EVERY[path])}")
        assert "made with other settings: " in said and f"{path} was" in said


def test_a_study_that_reconstructed_goes_on_as_it_was(tiny: dict[str, Any], tmp_path: Path) -> None:
    asked = {**tiny, "finetune": tiny["finetune"] | {"reconstruct": True}}
    with pytest.raises(Stopped):
        open_study(asked, tmp_path)
    assert opens(asked, tmp_path) == ""
    assert "finetune.reconstruct was True" in opens(tiny, tmp_path)


@pytest.mark.parametrize("proxy", ["recalibrated", "sgd5"])
def test_a_study_of_0_1_goes_on(tiny: dict[str, Any], tmp_path: Path, proxy: str) -> None:
    """Its fingerprint has no key of fine-tuning, or not all of them."""
    tiny["search"]["proxy"] = proxy
    with pytest.raises(Stopped):
        open_study(tiny, tmp_path)
    study = optuna.load_study(study_name="s", storage=default_storage(tmp_path))
    older = dict(study.user_attrs["espalier:fingerprint"])
    for path in [*LENGTH, *(FINETUNE if proxy == "recalibrated" else [])]:
        older.pop(path, None)  # a key that is there only where it is asked for, is not
    study.set_user_attr("espalier:fingerprint", older)
    assert opens(tiny, tmp_path) == ""
    assert opens(tiny, tmp_path, "finetune.epochs=9") == ""
    assert "seed was 0, now 1" in opens(tiny, tmp_path, "seed=1")
    if proxy == "sgd5":
        assert "finetune.lr was 0.02, now 0.9" in opens(tiny, tmp_path, "finetune.lr=0.9")


def test_only_what_an_older_fingerprint_lacks_is_left_out() -> None:
    made = {"seed": 0, "finetune.lr": 1, "gone": 2}
    assert comparable({"seed": 1, "finetune.lr": 2, "finetune.epochs": 3, "new": 4}, made) == {
        "seed": 1,
        "finetune.lr": 2,
        "new": 4,
    }


def test_a_key_that_is_newer_than_the_study_counts_where_it_changes_something() -> None:
    newer = {"training.optimizer": "sgd", "training.ema": 0.9, "search.proxy": "ridge"}
    assert comparable(newer, {}) == {"training.ema": 0.9, "search.proxy": "ridge"}


def test_equal_digests_can_be_compared() -> None:
    ran = {"batch_size": 128, "memory_format": "channels_last", "precision": "fp32"}

    def digest(**others: Any) -> str:
        attributes = {"fingerprint": {"seed": 0}, "execution": ran, "checkpoints": ["a"]} | others
        return digest_of({f"espalier:{name}": value for name, value in attributes.items()})

    assert digest() == digest(config={}) == digest(execution=ran | {"milliseconds": 0.3})
    different = [
        digest(fingerprint={"seed": 1}),
        *(digest(execution=ran | {key: "other"}) for key in ran),
        digest(checkpoints=["b"]),
    ]
    assert len({digest(), *different}) == 1 + len(different)


@pytest.mark.timeout(600)
def test_results_depend_on_what_changes_it(tiny_text: str, tmp_path: Path) -> None:
    """Trials, or the strength that they are under, are others; without a change they are the same."""
    content = yaml.safe_load(tiny_text)
    content["search"]["trials"] = 3

    def found(study: str, *changes: str) -> tuple[Any, Any]:
        with pytest.raises(Stopped):
            config = parse_config(content, "tiny", changes)
            run(config, study=study, out=tmp_path, reporter=Stops(after="search"))
        made = optuna.load_study(study_name=study, storage=default_storage(tmp_path))
        tops = [value for name, value in made.user_attrs.items() if "strength:" in name]
        return tops, [trial.values for trial in made.trials]

    base = found("base")
    assert found("again", "finetune.seeds=3", "search.finalists=1", "search.ladder=[ridge]") == base
    for change in ("finetune.epochs=0.25", "finetune.lr=0.1"):
        assert found(change, change)[0] != base[0], change
    for change in ("search.batch_size=16", "search.precision=bf16", "search.calibration_images=32", "seed=1"):
        assert found(change, change)[1] != base[1], change
