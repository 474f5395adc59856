"""Every trial of the record can be rebuilt and scored to the same number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from espalier.errors import StorageError, StudyMismatch
from espalier.search.analysis.rescoring import rescore
from espalier.search.config.loading import parse_config
from espalier.search.run.search_run import default_storage, run
from espalier.search.study.ledger import record_of
from espalier.search.study.storage import find_study, open_storage
from espalier.search.tasks.classification.measures import MEASURES


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "raced"])
def searched(tiny_text: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run folder; in a race some candidates stop early."""
    import yaml

    content: dict[str, Any] = yaml.safe_load(tiny_text)
    content["search"] |= {"trials": 14, "scoring_images": 200, "race": request.param, "batch_size": 50}
    content["search"]["measure"] = "cross_entropy"
    out = tmp_path_factory.mktemp("raced" if request.param else "whole")
    run(parse_config(content, "tiny"), study="s", out=out)
    return out


def test_every_trial_comes_out_the_same(searched: Path) -> None:
    url = default_storage(searched)
    study = find_study(open_storage(url, create=False), "s", url)
    assert study is not None
    records = [record_of(trial) for trial in study.trials]
    stopped = [record for record in records if record.score.against]
    assert bool(stopped) == searched.name.startswith("raced")
    for record in records[:3] + stopped[:3]:
        found = rescore(url, "s", record.number)
        assert found.same, found
        assert (found.candidate, found.recorded) == (record.candidate, record.score)
        assert found.now.value(MEASURES["cross_entropy"]) == record.value


def test_what_is_not_there_is_said(searched: Path, tmp_path: Path) -> None:
    url = default_storage(searched)
    with pytest.raises(StorageError, match="has no finished trial 99: those that are finished are 0 to 13"):
        rescore(url, "s", 99)
    with pytest.raises(StorageError, match="there is no study 'other'"):
        rescore(url, "other", 0)


def test_another_ladder_is_refused(searched: Path, tmp_path: Path) -> None:
    (tmp_path / "ladder").mkdir()
    for file in (searched / "ladder").glob("*.safetensors"):
        (tmp_path / "ladder" / file.name).write_bytes(file.read_bytes())
    rungs = sorted((tmp_path / "ladder").glob("rung*"))
    rungs[0].write_bytes(rungs[1].read_bytes())
    with pytest.raises(
        StudyMismatch, match=r"the study 's' searched over other networks .* rung0-\w+.safetensors from "
    ):
        rescore(default_storage(searched), "s", 0, tmp_path)
