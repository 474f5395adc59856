"""What workers are given: of the storage nothing in a search, and its URL in a comparison, as the docs say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from espalier.search.cluster.jobs import InProcess
from espalier.search.compare import protocol
from espalier.search.config.loading import parse_config
from espalier.search.evaluation.candidate_networks import CandidateNetworks
from espalier.search.evaluation.proxies import PROXIES
from espalier.search.methods import Material, choose
from espalier.search.run import search_run as pipeline
from espalier.search.spaces.candidate import Candidate
from tests.search.conftest import OnCall

SECRET = "open-sesame"
PAGE = " ".join((Path(__file__).resolve().parents[2] / "docs" / "storages.md").read_text().split())


class Stop(Exception):
    """Enough is seen."""


class Pickling(InProcess):
    """Keeps what would be sent to a worker."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def keep(self, name: str, *what: Any) -> None:
        from ray import cloudpickle

        self.sent.append((name, cloudpickle.dumps(what)))

    def map(self, function: Callable[..., Any], shared: Any, jobs: Iterable[Any]) -> Iterator[Any]:
        """Here, once it is kept."""
        jobs = list(jobs)
        self.keep(function.__name__, function, shared, jobs)
        if function is choose:
            assert isinstance(shared, Material) and SECRET not in repr(shared)
            raise Stop
        yield from super().map(function, shared, jobs)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a file whose name is the secret, as SQLite has no passwords."""
    return f"sqlite:///{tmp_path / SECRET}.db"


def test_workers_of_a_search_never_see_the_storage(
    tiny: dict[str, Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Workers of `espalier search` never see the storage: only the driver connects to it." in PAGE
    workers = Pickling()
    monkeypatch.setattr(pipeline, "join", lambda *_, **__: workers)
    name = parse_config(tiny, "tiny").search.proxy

    class Keeping(OnCall):
        def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> nn.Module | float:
            workers.keep("candidates", networks.spec)
            return super().prepare(networks, candidate)

    monkeypatch.setitem(PROXIES, name, Keeping(name, lambda _: None))
    tiny["training"] |= {"epochs": 0.5}
    tiny["regularizer"] |= {"start": "dense", "epochs": 0.5}
    tiny["search"] |= {"memory_format": "auto", "trials": 3, "finalists": 1}
    tiny["finetune"] |= {"epochs": 0.1, "seeds": 1}
    pipeline.run(parse_config(tiny, "tiny"), study="s", out=tmp_path / "run", storage=url)
    assert {name for name, _ in workers.sent} >= {"candidates", "_aside", "_execution_here", "_finetune", "read"}
    assert [name for name, sent in workers.sent if SECRET.encode() in sent] == []
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_workers_of_a_comparison_are_handed_the_storage(
    tiny: dict[str, Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Workers of `espalier compare` do: each runs a whole search and records it" in PAGE
    assert "so it is handed the storage's URL with its password." in PAGE
    workers = Pickling()
    monkeypatch.setattr(protocol, "join", lambda *_, **__: workers)
    tiny["training"] |= {"epochs": 0.5}
    tiny["regularizer"] |= {"strengths": [0.01], "epochs": 0.5}
    tiny["compare"] = {"methods": ["greedy", "random"], "seeds": 1, "trials": 5}
    with pytest.raises(Stop):
        protocol.compare(
            parse_config(tiny, "tiny"), name="c", out=tmp_path / "run", command="espalier compare", storage=url
        )
    assert {name for name, sent in workers.sent if SECRET.encode() in sent} == {"choose"}
    plan = tmp_path / "run" / "compare" / "plan.json"
    assert plan.is_file() and SECRET not in plan.read_text()
