"""How long networks take: in turn, on few cores, in whatever runs them."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest
import torch

from espalier.errors import ConfigError, ExportError, MissingPackage
from espalier.pruning.networks import CifarResNet
from espalier.pruning.runtimes import RUNTIMES, Latency, measure, pinned, timing


class Sensitive(torch.nn.Module):
    """Takes its time over images that are not laid out as it likes, or not like its own weights."""

    def __init__(self, likes: torch.memory_format) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3)
        self.likes = likes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alike = all(each.is_contiguous(memory_format=self.likes) for each in (x, self.conv.weight))
        time.sleep(0.001 if alike else 0.004)
        return x


def test_latency_is_that_of_the_faster_memory_format_however_weights_come() -> None:
    """Pruned networks come in channels last, the dense one as its file has it; neither is put at a disadvantage."""
    for comes in (torch.contiguous_format, torch.channels_last):
        networks = {
            "last": Sensitive(torch.channels_last).to(memory_format=comes),  # type: ignore[call-overload]
            "first": Sensitive(torch.contiguous_format).to(memory_format=comes),  # type: ignore[call-overload]
        }
        found = measure(networks, torch.rand(2, 4, 8, 8), batch=2, repeats=5)
        assert {name: took.layout for name, took in found.items()} == {
            "last": "channels_last",
            "first": "contiguous",
        }
        assert all(took.milliseconds >= 1 for took in found.values())
        assert networks["last"].conv.weight.is_contiguous(memory_format=comes), "left as they are"


def test_a_wider_network_takes_longer() -> None:
    wide, narrow = (torch.nn.Conv2d(width, width, 3, padding=1).eval() for width in (64, 4))
    networks = {
        "wide": torch.nn.Sequential(torch.nn.Conv2d(1, 64, 1), wide),
        "narrow": torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), narrow),
    }
    found = measure(networks, torch.rand(4, 1, 32, 32), batch=4, repeats=5)
    assert found["wide"].least > found["narrow"].least  # other work on the machine only adds > 0


NETWORKS = {
    "wide": CifarResNet(depth=8, width=8, in_channels=1).eval(),
    "narrow": CifarResNet(depth=8, width=2, in_channels=1).eval(),
}


@pytest.mark.parametrize(
    "name", ["eager", "onnxruntime", "openvino", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_every_runtime_is_timed(name: str) -> None:
    for package in RUNTIMES[name].packages:
        pytest.importorskip(package)
    found = measure(NETWORKS, torch.rand(3, 1, 16, 16), name, batch=8, repeats=20)
    for took in found.values():
        assert 0 < took.low <= took.milliseconds <= took.high
        assert (took.runtime, took.batch, took.threads) == (name, 8, 1)
        assert took.version == RUNTIMES[name]().version
        assert took.throughput == pytest.approx(8000 / took.milliseconds)
    assert found["wide"].least > found["narrow"].least  # other work on the machine only adds


@pytest.mark.parametrize(
    "name", ["eager", "onnxruntime", "openvino", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_a_session_gives_what_the_network_gives(name: str) -> None:
    for package in RUNTIMES[name].packages:
        pytest.importorskip(package)
    network, images = NETWORKS["wide"], torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        wanted = network(images)
    for layout in RUNTIMES[name].layouts:
        session = RUNTIMES[name]().prepare(network, images, layout=layout)
        assert session.layout == layout
        (got,) = session(images)
        assert torch.allclose(got, wanted, atol=1e-4)


def test_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Noting(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.weight = name, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order.append(self.name)
            return x

    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", lambda self, _: self, raising=False)
    measure({"a": Noting("a"), "b": Noting("b")}, torch.rand(1, 3), repeats=4)
    assert order == ["a", "a", "b", "b"] * (timing.WARM + 4)  # each in both memory formats


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system holds no process on cores")
def test_the_process_is_held_on_as_many_cores_as_threads_and_set_free_afterwards() -> None:
    before, stop = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        with pytest.raises(ZeroDivisionError), pinned(1) as held:
            assert held and len(os.sched_getaffinity(0)) == 1
            assert os.sched_getaffinity(other.native_id or 0) == os.sched_getaffinity(0)
            later = threading.Thread(target=stop.wait)
            later.start()
            raise ZeroDivisionError
        for thread in (0, other.native_id or 0, later.native_id or 0):
            assert os.sched_getaffinity(thread) == before
    finally:
        stop.set()


def test_a_system_that_holds_no_process_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refused, raising=False)
    found = measure({"one": NETWORKS["narrow"]}, torch.rand(1, 1, 8, 8), repeats=2)["one"]
    assert found.milliseconds > 0 and not found.pinned


def test_threads_of_torch_are_as_they_were() -> None:
    before = torch.get_num_threads()
    measure({"one": NETWORKS["narrow"]}, torch.rand(1, 1, 8, 8), repeats=2)
    assert torch.get_num_threads() == before


def test_a_machine_is_quiet_while_equal_work_takes_equal_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(times: list[float]) -> Latency:
        left = iter(times * 2)
        monkeypatch.setattr(timing, "_loop", lambda: next(left))
        return measure({"one": NETWORKS["narrow"]}, torch.rand(1, 1, 8, 8), repeats=len(times) - timing.WARM)["one"]

    even, disturbed = noise([1.0, 1.02] * 10), noise([1.0, 1.0, 1.0, 3.0] * 5)
    assert even.quiet and even.noise == pytest.approx(0.01)
    assert not disturbed.quiet and disturbed.noise == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnx_runtime"}, r"unknown runtime 'onnx_runtime', did you mean 'onnxruntime'\?"),
        ({"runtime": "x"}, "unknown runtime 'x', there are eager, compiled, onnxruntime"),
        ({"batch": 0}, "batch must be a whole number from 1, got 0"),
        ({"repeats": 0}, "repeats must be a whole number from 1, got 0"),
        ({"threads": 10**6}, r"threads must be a whole number from 1 to the \d+ cores here, got 1000000"),
        ({"threads": 0}, "threads must be a whole number from 1"),
    ],
)
def test_what_cannot_be_timed_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(NETWORKS, torch.rand(1, 1, 8, 8), **options)


def test_inputs_without_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match="dimension 0 of the first input must be the batch"):
        measure(NETWORKS, torch.tensor(1.0))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tensorrt"])
def test_a_runtime_that_is_not_installed_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (name, "onnx"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(MissingPackage, match=rf"the runtime {name} needs {name}.*pip install 'espalier\[.*onnx\]'"):
        measure(NETWORKS, torch.rand(1, 1, 8, 8), name)


def test_any_number_of_networks_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler would give up on a function that it has compiled eight times."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiler(function, backend=backend, **options)
    )
    networks = {number: torch.nn.Sequential(torch.nn.Linear(4, 4)) for number in range(10)}
    found = measure(networks, torch.rand(1, 4), "compiled", repeats=2)
    assert len(found) == 10 and len(compiled) == 10 * len(RUNTIMES["compiled"].layouts)


def test_what_the_compiler_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no C++ compiler\nand so on")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(ExportError, match=r"^torch\.compile cannot compile CifarResNet: no C\+\+ compiler$"):
        measure(NETWORKS, torch.rand(1, 1, 8, 8), "compiled")
