"""Many workers that do not exist, on a real storage: whatever dies, every trial is counted once."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import simulation

    module: ModuleType = simulation
    return module


def test_every_trial_is_counted_once(simulation: ModuleType, tmp_path: Path) -> None:
    scene = simulation.Scene(
        workers=16, candidates=60, drivers=2, seconds=60.0, worker_deaths=0.1, driver_deaths=2, seed=1
    )
    space = simulation.paced_evaluation(0.0, "asleep")[1]
    found = simulation.Simulation(scene, f"sqlite:///{tmp_path / 'study.db'}", space).play()
    assert (found.complete, found.running, found.repeated) == (60, 0, 0)
    assert found.evaluations > 60  # some died


def test_workers_of_a_quick_driver_are_always_busy(simulation: ModuleType, tmp_path: Path) -> None:
    scene = simulation.Scene(workers=10, candidates=30, drivers=1, worker_deaths=0.0, driver_deaths=0)
    space = simulation.paced_evaluation(0.0, "asleep")[1]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    found = simulation.Simulation(scene, url, space, cost=lambda *_: 0.0).play()
    assert found.evaluations == found.complete == 30 and found.makespan > found.ideal
    slow = simulation.Simulation(scene, url.replace("study", "slow"), space, cost=lambda *_: 30.0).play()
    assert slow.complete == 30 and slow.makespan > 30 * 30.0  # a driver's work takes its time
