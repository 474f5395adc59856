"""The files of docs/clusters/ are what Ray, Kubernetes, Slurm and the command itself take."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from espalier import cli

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "clusters"
PAGE = ROOT / "docs" / "clusters.md"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
COMMANDS = re.compile(r"espalier (?:search|resume) [^'`\n|]+")


def text_of(path: Path) -> str:
    """A file with its continued lines joined, comments among them."""
    text = re.sub(r"\\\n#?\s*", " ", path.read_text())
    if path.suffix == ".yaml" and "entrypoint" in text:
        return str(yaml.safe_load(text)["spec"]["entrypoint"])
    return text


@pytest.mark.parametrize("path", [PAGE, *sorted(FOLDER.iterdir())], ids=lambda path: path.name)
def test_commands_are_the_commands_there_are(path: Path) -> None:
    found = COMMANDS.findall(text_of(path))
    assert found, f"{path} shows no command"
    group = typer.main.get_command(cli.app)
    for line in found:
        _, name, *arguments = shlex.split(line.replace("...", ""), comments=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("RAY_ADDRESS", raising=False)
            patch.setenv("OPTUNA_STORAGE", "sqlite:///study.db")
            group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_ray_takes_its_cluster() -> None:
    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    assert {"head_ip", "worker_ips"} <= config["provider"].keys()


def test_the_rayjob_is_whole() -> None:
    job: dict[str, Any] = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    containers = [group["template"]["spec"]["containers"][0] for group in (head, workers)]
    assert len({container["image"] for container in containers}) == 1
    for group, container in zip((head, workers), containers, strict=True):
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert head["rayStartParams"] == {"num-cpus": "0"}  # the driver's alone
    assert int(job["spec"]["entrypoint"].split("--workers ")[1].split()[0]) == workers["maxReplicas"] * int(
        containers[1]["resources"]["limits"]["cpu"]
    )
    assert cluster["rayVersion"] in (ROOT / "constraints.txt").read_text()


def test_slurm_gives_a_core_to_the_driver() -> None:
    script = (FOLDER / "slurm.sh").read_text()
    nodes, cores = (int(re.search(rf"--{key}=(\d+)", script)[1]) for key in ("nodes", "cpus-per-task"))  # type: ignore[index]
    assert f"--workers {nodes * cores - 1} " in script
    assert "ray symmetric-run" in script and " -- " in script


def test_the_sums_are_those_that_were_printed() -> None:
    page = (ROOT / "docs" / "measurements" / "clusters.md").read_text()
    results = ROOT / "benchmarks" / "results"
    played = json.loads((results / "simulation_sqlite.json").read_text())
    outcome, sent = played["outcome"], json.loads((results / "cluster_bytes.json").read_text())
    assert (played["scene"]["workers"], played["scene"]["candidates"]) == (1000, 10_000)
    for row in (
        f"| {outcome['complete']:,}, {outcome['running']}, {outcome['repeated']} |",
        f"| {outcome['driver_ms']:.1f} ms |",
        f"| {outcome['transactions']:.1f} |",
        f"| {outcome['bound']:.0f} |",
        f"| {outcome['busy']:.0%} |".replace("%", " %"),
        f"| {sent['once_per_node']:,} bytes |",
        f"| {sent['candidate_to_worker']} and {sent['score_to_driver']} bytes |",
    ):
        assert row in page, row
    assert f"up with {outcome['bound']:.0f} trials a second" in " ".join(PAGE.read_text().split())
    agreed = json.loads((results / "simulation_agreement.json").read_text())
    real, simulated = (agreed[f"{what}_candidates_per_second"] for what in ("real", "simulated"))
    assert f"{real:.1f} a second in earnest, {simulated:.1f} simulated" in page
    assert abs(real - simulated) < 0.15 * real
