"""Configs: every fault at once, overrides, and what the fingerprint of a study depends on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.errors import ConfigError
from espalier.search.config.loading import Config, find_config, load_config, parse_config, with_section

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The content with one key set."""
    section = content
    *parents, last = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return content


def write(folder: Path, content: Mapping[str, Any] | str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.stem))
def test_every_shipped_config_is_valid_and_found_by_its_name(path: Path) -> None:
    assert load_config(path) == load_config(path.stem) == load_config(f"configs/{path.name}")


@pytest.mark.parametrize("source", ["digits.yml", "digits.yaml", "configs/digits.txt", "mine/digits", "./digits"])
def test_a_file_that_is_not_there_is_no_shipped_config(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^no config at {source}: "):
        find_config(source)


def test_a_shipped_config_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("digits").read_bytes() == (ROOT / "configs" / "digits.yaml").read_bytes()


def test_a_file_wins_over_a_shipped_config_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(tiny | {"seed": 41}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config("digits.yaml").seed == 41


# ------------------------------------------------------------------------------------------------ faults


def test_all_faults_come_at_once_with_their_paths(tiny: dict[str, Any]) -> None:
    changed(tiny, "budget.keep", 1.5)
    changed(tiny, "search.trails", 10)
    changed(tiny, "training.lr", -1)
    changed(tiny, "regularizer.strengths", [0.1, 0.01])
    changed(tiny, "data.augment.filp", True)
    changed(tiny, "search.sampler", "cmeas")
    changed(tiny, "compare.methods", ["greedy", "autoo"])
    del tiny["model"]["name"]
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny, "mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml: 8 faults: ")
    assert "search.trails: unknown name 'trails', did you mean 'trials'?" in message
    assert "data.augment.filp: unknown name 'filp', did you mean 'flip'?" in message
    assert "model.name: is required" in message
    assert "training.lr: input should be greater than 0, got -1" in message
    assert "regularizer.strengths: strengths must rise" in message
    assert "search.sampler: unknown name 'cmeas', did you mean 'cmaes'?" in message
    assert "compare.methods.1: unknown name 'autoo', did you mean 'auto'?" in message
    assert "budget.keep: input should be less than or equal to 1, got 1.5: it is the fraction" in message
    assert "\n" not in message


def test_one_fault_is_counted_as_one(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^mine: 1 fault: seed: .* got -3$"):
        parse_config(tiny | {"seed": -3}, "mine")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "budget.keep",
            1.5,
            r"budget.keep: .*got 1.5: it is the fraction of MACs kept, so write 0.5 to halve them",
        ),
        ("budget.keep", 0, r"budget.keep: .*greater than 0, got 0"),
        ("budget.keep", float("nan"), r"budget.keep: .*finite number, got nan"),
        ("budget.max_macs", 1000, r"budget: give one of keep and max_macs, which limit the same thing"),
        ("budget.keep", [0.3, 0.5], r"budget: several fractions to keep must fall, such as"),
        ("budget.keep", [0.5, 1.5], r"budget.keep.1: .*got 1.5"),
        ("budget.min_width", 0, r"budget.min_width: .*greater than or equal to 1, got 0"),
        ("regularizer.strengths", [0.1, 0.1], r"regularizer.strengths: strengths must rise"),
        (
            "compare.methods",
            "greedy,auto",
            r'compare.methods: must be a list, such as "\[1, 2\]".*got .greedy',
        ),
        ("regularizer.strengths", [0.2, 0.1], r"regularizer.strengths: strengths must rise"),
        ("regularizer.strengths", [], r"regularizer.strengths: .*at least 1 item"),
        ("regularizer.strengths", [-1.0], r"regularizer.strengths.0: .*greater than or equal to 0, got -1.0"),
        ("regularizer.name", "oicsr_g", r"regularizer.name: unknown name 'oicsr_g', did you mean 'oicsr_gl'\?"),
        ("search.sampler", "cma-es", r"search.sampler: unknown name 'cma-es', did you mean 'cmaes'\?"),
        ("search.sampler", "zzz", r"search.sampler: unknown name 'zzz', valid names are .*cmaes, "),
        ("compare.methods", ["zzz"], r"unknown name 'zzz', valid names are greedy, [^\n]{,600} and \d+ more"),
        ("search.space", "ratio", r"search.space: unknown name 'ratio', did you mean 'ratios'\?"),
        (
            "search",
            {"race": True, "measure": "calibrated"},
            r"search: candidates cannot race by measure: calibrated",
        ),
        ("search.measure", "top5", r"search.measure: unknown name 'top5', did you mean 'top1'"),
        ("search.proxy", "sgd21", r"search.proxy: unknown name 'sgd21', did you mean 'sgd20'"),
        ("search.ladder", ["ridge", "rigde"], r"search.ladder.1: unknown name 'rigde', did you mean 'ridge'"),
        ("data.search_images", 10.5, r"data: search_images must be a fraction below 1 or a whole number"),
        ("training", 3, r"training: .*got 3"),
        ("qqq", 1, r"qqq: unknown name 'qqq', keys here are model, task, data"),
        ("workers", "many", r"workers: .*valid integer.*got 'many'"),
    ],
)
def test_a_value_that_breaks_a_rule(tiny: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(changed(tiny, path, value), "mine")


def test_unknown_names_of_all_tables_are_told_together(tiny: dict[str, Any]) -> None:
    changed(tiny, "search.sampler", "tp")
    changed(tiny, "search.space", "ratioz")
    with pytest.raises(ConfigError, match=r"2 faults: search.sampler: .*'tpe'\?; search.space: .*'ratios'\?"):
        parse_config(tiny, "mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [1, 2", r"mine.yaml is not YAML: .*line 1"),
        ("- a\n- b\n", r"must hold sections such as model: and data:, got list"),
        ("", r"must hold sections such as model: and data:, got NoneType"),
        ("model: {name: 'm:x'}\n", r"2 faults: data: is required; budget: is required"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match=r"cannot read the config .*mine.yaml|is not YAML"):
        load_config(tmp_path / "mine.yaml")


def test_a_config_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"no config at digit: did you mean the shipped digits\?"):
        load_config("digit")
    with pytest.raises(
        ConfigError, match=r"no config at nowhere/zzz.yaml: there is no such file; shipped .*digits"
    ):
        load_config("nowhere/zzz.yaml")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "budget.macs=0.3",
            "write budget.keep for a share .*, or budget.max_macs for a number",
        ),
        ("budget.params=9", "write budget.keep_params for a share .*, or budget.max_params for a number"),
        ("budget.max_macs=0.3", r"got 0\.3: a share is written budget\.keep"),
    ],
)
def test_a_budget_by_the_names_of_python_is_told_its_keys(override: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_config("digits", [override])


# --------------------------------------------------------------------------------------------- overrides


def test_overrides_win_and_are_yaml(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = write(tmp_path, tiny)
    settings = load_config(
        path,
        ["training.lr=1e-3", "regularizer.strengths=[0.0, 0.5]", "data.augment.flip=true", "model.kwargs.depth=14"],
    )
    assert settings.training.lr == 1e-3
    assert settings.regularizer.strengths == (0.0, 0.5)
    assert settings.data.augment.flip is True
    assert settings.model.kwargs == tiny["model"]["kwargs"] | {"depth": 14}
    assert settings.budget.keep == 0.4


def test_an_override_of_one_budget_replaces_the_other(tmp_path: Path, tiny: dict[str, Any]) -> None:
    path = write(tmp_path, tiny)
    budget = load_config(path, ["budget.max_macs=1000"]).budget
    assert (budget.keep, budget.max_macs, budget.words()) == (None, 1000, "1,000 MACs")
    both = load_config(path, ["budget.max_macs=1000", "budget.keep=0.25"]).budget
    assert (both.keep, both.max_macs, both.words()) == (0.25, None, "0.25 of the MACs")
    more = load_config(path, ["budget.max_params=5000"]).budget
    assert more.words() == "0.4 of the MACs and 5,000 parameters"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.keep", r"an override must read key.path=value, got 'budget.keep'"),
        ("=3", r"an override must read key.path=value, got '=3'"),
        ("seed=[1", r"the value of 'seed=\[1' is not YAML"),
        ("seed.deep=1", r"needs a section seed, which holds 7"),
        ("budget.keep=1.5", r"budget.keep: .*got 1.5"),
        ("search.trails=5", r"search.trails: unknown name 'trails', did you mean 'trials'\?"),
    ],
)
def test_an_override_that_cannot_be(tmp_path: Path, tiny: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, tiny | {"seed": 7}), [override])


# ---------------------------------------------------------------------------------------- where it runs


def test_a_config_survives_the_storage(tiny: dict[str, Any]) -> None:
    settings = parse_config(tiny, "mine")
    assert Config.model_validate(settings.model_dump(mode="json")) == settings


def test_where_and_how_long_a_search_runs_is_not_what_it_is(tiny: dict[str, Any]) -> None:
    plain = parse_config(tiny, "tiny")
    cluster = {"address": "auto", "gpus_per_worker": 0.5, "time_budget": "1.5h", "candidate_timeout": 90}
    elsewhere = parse_config(tiny | {"workers": 64, "cluster": cluster}, "tiny")
    assert elsewhere.fingerprint() == plain.fingerprint()
    assert (elsewhere.cluster.time_budget, elsewhere.cluster.candidate_timeout) == (5400.0, 90.0)
    assert with_section(plain, "cluster", {"time_budget": "30m"}).cluster.time_budget == 1800.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time_budget": "soon"}, r"cluster.time_budget: a duration is a number, of seconds .* got 'soon'$"),
        ({"time_budget": "-3m"}, r"cluster.time_budget: input should be greater than 0"),
        ({"gpus_per_worker": 1.5}, r"gpus_per_worker must be a whole number, or a fraction below 1, got 1.5"),
        ({"max_failures": 0}, r"cluster.max_failures: input should be greater than or equal to 1"),
    ],
)
def test_faults_of_the_cluster(tiny: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_section(parse_config(tiny, "tiny"), "cluster", values)


# ---------------------------------------------------------------------------------------------- keys twice


def test_a_key_that_is_written_twice_is_a_fault(tmp_path: Path, tiny_text: str) -> None:
    path = tmp_path / "mine.yaml"
    lines = len(tiny_text.splitlines())
    path.write_text(tiny_text + "seed: 1\nseed: 2\nfinetune: {lr: 0.1, 'lr': 0.2}\nworkers: -1\nseed: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: 6 faults: ")
    for part in (
        f"seed: is written twice, in line {lines + 1} and line {lines + 2}; ",
        f"seed: is written twice, in line {lines + 1} and line {lines + 5}; ",
        f"finetune.lr: is written twice, in line {lines + 3} and line {lines + 3}; ",
        f"finetune: is written twice, in line {lines - 1} and line {lines + 3}; ",
        f"workers: is written twice, in line {lines} and line {lines + 4}; ",
        "workers: input should be greater than or equal to 0, got -1",
    ):
        assert part in said


def test_a_key_twice_in_an_override_is_a_fault(tmp_path: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"1 fault: data\.kwargs\.a: is written twice in 'data\.kwargs=\{a: 1, a: 2\}'$"
    ):
        load_config(write(tmp_path, tiny), ["data.kwargs={a: 1, a: 2}"])


def test_what_an_anchor_brings_may_be_written_over(tmp_path: Path) -> None:
    text = "model: {name: resnet20}\ndata: {name: digits}\nbudget: {keep: 0.5}\n"
    text += "training: &recipe {epochs: 1, lr: 0.3}\nfinetune: {<<: *recipe, lr: 0.2}\n"
    (tmp_path / "mine.yaml").write_text(text)
    finetune = load_config(tmp_path / "mine.yaml").finetune
    assert (finetune.epochs, finetune.lr) == (1, 0.2)


def test_a_key_that_is_no_word_is_one_line(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny | {"bud\nget": {}}, "tiny")
    assert "\n" not in str(caught.value) and "'bud\\nget'" in str(caught.value)
