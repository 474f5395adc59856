"""How long networks take for a pass: in turn, so that whatever slows the machine hits all of them alike.

Notation, for one network:
    t_1 .. t_n      seconds of its timed passes, after `WARM` that are not timed
    latency         median of t
    spread          first and third quartile of t
    throughput      batch / latency, examples per second

In each round a loop of a fixed amount of work is timed too. The machine is called quiet where the mean of these
times is at most `QUIET` above their tenth centile. Another process on the same cores, or for some of the time on
the other half of a core, raises the mean; one that takes half of a core throughout is not seen.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import nn

from espalier.errors import ConfigError
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.runtimes.examples import DYNAMIC, repeated
from espalier.pruning.runtimes.runtime import Batch, Session
from espalier.pruning.runtimes.runtime_table import runtime_named

WARM = 3
"""Passes before the clock is looked at."""
REPEATS = 30
"""Timed passes of each network, in each memory format where there are several."""
QUIET = 0.1
"""Share by which the mean time of the loop may exceed its tenth centile on a quiet machine."""
LOOP = 4000
"""Additions of the loop: about a tenth of a millisecond."""

Name = TypeVar("Name")


@dataclass(frozen=True)
class Latency:
    """How long one pass takes, float32 unless the network says otherwise.

    Attributes:
        milliseconds: median of the repeats.
        layout: memory format of weights and images, that in which the network is faster; empty where the runtime
            chooses it.
        low: first quartile, milliseconds.
        high: third quartile, milliseconds.
        least: the shortest pass, milliseconds: what a quiet machine would take.
        runtime: name in `RUNTIMES`.
        version: of it.
        batch: examples of a pass.
        threads: that a pass may use.
        pinned: whether the process was held on as many cores as threads.
        noise: share by which the mean time of a fixed loop exceeded its tenth centile meanwhile.
    """

    milliseconds: float
    layout: str = ""
    low: float = 0.0
    high: float = 0.0
    least: float = 0.0
    runtime: str = "eager"
    version: str = ""
    batch: int = 1
    threads: int = 1
    pinned: bool = False
    noise: float = 0.0

    @property
    def throughput(self) -> float:
        """Examples per second."""
        return 1000 * self.batch / self.milliseconds

    @property
    def quiet(self) -> bool:
        """Whether the machine was, as far as can be told."""
        return self.noise <= QUIET


@dataclass(frozen=True)
class Prepared:
    """A network that is ready to be timed.

    Attributes:
        sessions: one for each memory format.
        runtime: its name.
        version: of it.
        threads: that a pass may use.
    """

    sessions: Sequence[Session]
    runtime: str
    version: str
    threads: int


def measure(
    networks: Mapping[Name, nn.Module],
    inputs: Inputs,
    runtime: str = "eager",
    batch: int = 1,
    threads: int = 1,
    repeats: int = REPEATS,
) -> dict[Name, Latency]:
    """Latency of a forward pass, in eval mode, of every network.

    Args:
        networks: left as they are.
        inputs: what they take; the first examples over and over make a batch.
        runtime: name in `RUNTIMES`.
        batch: examples of a pass.
        threads: that a pass may use; the process is held on as many cores meanwhile, where the system allows it.
        repeats: timed passes of each.

    Raises:
        ConfigError: there is no such runtime, or a number is out of range.
        MissingPackage: the runtime is not installed.
        ExportError: it cannot take a network.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} must be a whole number from 1, got {value!r}")
    made = {name: prepared(each, inputs, runtime, (batch,), threads) for name, each in networks.items()}
    return time_in_turn(made, inputs, batch, repeats)


def prepared(
    network: nn.Module, inputs: Inputs, runtime: str, batches: Sequence[int], threads: int = 1
) -> Prepared:
    """Makes a network ready to be timed at some batch sizes.

    Raises:
        ConfigError, MissingPackage, ExportError: as of `measure`.
    """
    own = runtime_named(runtime)
    check_threads(threads)
    examples = repeated(inputs, batches[0])
    batch: Batch = DYNAMIC if len(set(batches)) > 1 else batches[0]
    sessions = [own.prepare(network, examples, threads, batch=batch, layout=each) for each in own.layouts]
    return Prepared(sessions, runtime, own.version, threads)


def time_in_turn(
    networks: Mapping[Name, Prepared], inputs: Inputs, batch: int = 1, repeats: int = REPEATS
) -> dict[Name, Latency]:
    """Times networks that are ready, pass by pass in turn.

    Args:
        networks: of one runtime and number of threads.
        inputs: what they take.
        batch: examples of a pass.
        repeats: timed passes of each.
    """
    examples = repeated(inputs, batch)
    threads = max(each.threads for each in networks.values())
    seconds: dict[tuple[Name, int], list[float]] = {}
    loops: list[float] = []
    turns = [  # before the process is held: OpenVINO remembers the cores that it finds as it starts
        ((name, number), session, session.place(examples))
        for name, each in networks.items()
        for number, session in enumerate(each.sessions)
    ]
    with pinned(threads) as held:
        for repeat in range(-WARM, repeats):
            for key, session, placed in turns:
                with session.active():
                    start = time.perf_counter()
                    session.run(placed)
                    took = time.perf_counter() - start
                if repeat >= 0:
                    seconds.setdefault(key, []).append(took)
            loops.append(_loop())
    noise = statistics.fmean(loops) / float(np.quantile(loops, 0.1)) - 1
    found = {}
    for name, each in networks.items():
        times = [np.array(seconds[name, number]) * 1000 for number in range(len(each.sessions))]
        best = min(range(len(times)), key=lambda number: float(np.median(times[number])))
        low, middle, high = (float(value) for value in np.quantile(times[best], (0.25, 0.5, 0.75)))
        found[name] = Latency(
            milliseconds=middle,
            layout=each.sessions[best].layout,
            low=low,
            high=high,
            least=float(times[best].min()),
            runtime=each.runtime,
            version=each.version,
            batch=batch,
            threads=each.threads,
            pinned=held,
            noise=noise,
        )
    return found


@contextmanager
def pinned(threads: int) -> Iterator[bool]:
    """Holds this process on as many cores as threads; gives whether the system allows it.

    All threads of the process are moved, and moved back afterwards, those started meanwhile too.

    Raises:
        ConfigError: the process may not use that many cores.
    """
    check_threads(threads)
    available = cores_here()
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    before = {thread: os.sched_getaffinity(thread) for thread in _threads()}
    with ExitStack() as stack:
        stack.callback(_restore, before, available)
        yield all(_move(thread, set(sorted(available)[-threads:])) for thread in before)


def check_threads(threads: int) -> None:
    """Refuses a number of threads that this process has no cores for.

    Raises:
        ConfigError: it has not.
    """
    cores = len(cores_here())
    if type(threads) is not int or not 1 <= threads <= cores:
        raise ConfigError(f"threads must be a whole number from 1 to the {cores} cores here, got {threads!r}")


def cores_here() -> set[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _threads() -> list[int]:
    """Of this process; 0, the one that asks, where the system does not list them."""
    try:
        return [int(each.name) for each in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]


def _move(thread: int, cores: set[int]) -> bool:
    try:
        os.sched_setaffinity(thread, cores)
    except ProcessLookupError:  # it has ended
        return True
    except OSError:
        return False
    return True


def _restore(before: Mapping[int, set[int]], available: set[int]) -> None:
    for thread in _threads():
        _move(thread, before.get(thread, available))


def _loop() -> float:
    """Seconds that a fixed amount of work takes."""
    start, total = time.perf_counter(), 0
    for number in range(LOOP):
        total += number
    return time.perf_counter() - start
