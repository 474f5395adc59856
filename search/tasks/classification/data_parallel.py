"""One training by several processes, each with a device of its own and a share of every batch."""

from __future__ import annotations

import copy
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espalier.errors import ConfigError, EspalierError, MissingPackage

READY = b"espalier: ready\n"
"""What another process writes once it has read what it needs."""
SECONDS = 60.0
"""For the other processes to end once the first one has, or has lost them."""


@dataclass(frozen=True)
class Share:
    """What one process has of a training.

    Attributes:
        rank: of the process; 0 is the one that was asked to train, and keeps the result.
        count: of processes.
        accelerator: accelerate's; None for one process.
    """

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    def wrapped(self, model: nn.Module) -> nn.Module:
        """What gives outputs in training: gradients are averaged over the processes in its backward pass."""
        if self.accelerator is None:
            return model
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def backward(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """The context of a forward and backward pass; gradients are averaged in the last one of a step."""
        return nullcontext() if last or self.accelerator is None else self.accelerator.no_sync(wrapped)


ALONE = Share()


def check_accelerate() -> None:
    """Raises MissingPackage where accelerate is not installed."""
    try:
        importlib.import_module("accelerate")
    except ImportError as error:
        raise MissingPackage("processes > 1 needs accelerate: pip install 'espalier[huggingface]'") from error


@contextmanager
def together(
    processes: int, train: Callable[..., None], network: nn.Module, arguments: Mapping[str, Any]
) -> Iterator[Share]:
    """This process's share of a training, while others run theirs.

    Args:
        processes: this one among them.
        train: called in the others, as ``train(network, **arguments, share=share)``.
        network: to train; on a GPU, each process has its own.
        arguments: of `train`, which can be pickled.

    Raises:
        ConfigError: there are fewer GPUs.
        EspalierError: one of the others failed.
    """
    if processes == 1:
        yield ALONE
        return
    if torch.distributed.is_initialized():
        raise ConfigError("this process trains with others already: set processes to 1")
    device = next(network.parameters()).device.type
    if device == "cuda" and torch.cuda.device_count() < processes:
        raise ConfigError(f"{processes} processes need as many GPUs; this one has {torch.cuda.device_count()}")
    from ray import cloudpickle

    threads = torch.get_num_threads()
    each = max(1, threads // processes)
    port = _free_port()
    payload = cloudpickle.dumps((train, copy.deepcopy(network).cpu(), arguments))
    others = [_Other([rank, processes, port, device, each], payload) for rank in range(1, processes)]
    del payload
    try:
        for other in others:
            other.wait_until_ready()
        torch.set_num_threads(each)
        with _joined(0, processes, port, device) as share:
            yield share
        for other in others:
            other.wait()
    except (RuntimeError, _Ended) as error:
        if not isinstance(error, (_Ended, torch.distributed.DistError)) and "gloo" not in str(error):
            raise  # of this process's own
        raise EspalierError(f"a process that shared the training has ended: {_last_words(others)}") from error
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.end()


class _Ended(Exception):
    """Another process did, and failed."""


class _Other:
    """Another process, which has what it needs.

    Args:
        words: of its command.
        payload: what it reads.
    """

    def __init__(self, words: list[Any], payload: bytes) -> None:
        command = [sys.executable, "-c", f"from {__name__} import _elsewhere; _elsewhere()", *map(str, words)]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stream:
            stream.write(payload)

    def wait_until_ready(self) -> None:
        """Until it has read what it needs; raises _Ended where it fails."""
        assert self._process.stdout is not None
        if not any(line == READY for line in iter(self._process.stdout.readline, b"")):
            raise _Ended

    def wait(self) -> None:
        """Until it ends; raises _Ended where it fails."""
        try:
            failed = self._process.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _Ended from error
        if failed:
            raise _Ended

    def last_words(self) -> str | None:
        """The last line that it wrote, if it has failed."""
        if not self._process.poll():
            return None
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()


def _elsewhere() -> None:
    """The share of one of the other processes; it ends with the one that started it."""
    from ray import cloudpickle

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    rank, processes, port, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    train, network, arguments = cloudpickle.loads(sys.stdin.buffer.read())
    os.write(1, b"\n" + READY)
    os.dup2(2, 1)  # nobody reads what is printed from here on
    with _joined(int(rank), int(processes), int(port), device) as share:
        train(network.to(share.accelerator.device), **arguments, share=share)


@contextmanager
def _joined(rank: int, processes: int, port: int, device: str) -> Iterator[Share]:
    """A process among the others."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, patch_environment

    where = {"world_size": processes, "rank": rank, "local_rank": rank}
    with _state_of_its_own(), patch_environment(**where, master_addr="127.0.0.1", master_port=port):
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        try:
            yield Share(rank, processes, Accelerator(cpu=device == "cpu", kwargs_handlers=[unused]))
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@contextmanager
def _state_of_its_own() -> Iterator[None]:
    """Without what accelerate knows of this process, as for a trainer that was made before; it is given back."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, known in zip(states, before, strict=True):
            state.clear()
            state.update(known)


def _last_words(others: list[_Other]) -> str:
    """Of the first that failed."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for other in others:
            if (words := other.last_words()) is not None:
                return words
        time.sleep(0.1)
    return "it does not answer"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
