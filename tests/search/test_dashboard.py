"""optuna-dashboard serves the storages as they are."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest

from espalier.search.study.storage import create_study, open_storage

pytestmark = pytest.mark.storages


@pytest.mark.parametrize(("url", "shown"), [("study.db", "sqlite:///study.db"), ("study.log", "study.log")])
def test_the_dashboard_serves_a_study(
    url: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = create_study(open_storage(url, create=True), "mine", {"config": {"seed": 3}})
    study.add_trial(optuna.trial.create_trial(value=0.5))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "optuna-dashboard"),
        shown,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        (summary,) = fetched(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert summary["study_name"] == "mine"
        whole = fetched(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}?after=0")
        assert [trial["values"] for trial in whole["trials"]] == [[0.5]]
    finally:
        server.terminate()
        server.wait(timeout=30)


def fetched(address: str) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.loads(answer.read())
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.3)
