"""What this machine has for a search, and what would stop one: a finding per subject."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from espalier.errors import EspalierError, MissingPackage
from espalier.pruning.runtimes import RUNTIMES
from espalier.pruning.runtimes.timing import cores_here
from espalier.search.cluster.ray_cluster import probed
from espalier.search.cluster.ray_private import check_socket_paths
from espalier.search.study.run_folder import make_folder
from espalier.search.study.storage import check_writable, redact
from espalier.search.tasks.precision import has_bf16

_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Flags of x86 processors that say how fast networks run, the fastest first."""
_FOR_DEVELOPERS = {"dev", "docs"}


@dataclass(frozen=True)
class Finding:
    """What was found on one subject.

    Attributes:
        subject: in a word or two.
        words: what there is, in a line.
        stops: whether a search would not get past it.
    """

    subject: str
    words: str
    stops: bool = False


def machine(*, workers: int, address: str | None, storage: str, folder: Path) -> Iterator[Finding]:
    """What this machine has, and whether a search could begin.

    Args:
        workers: of the search; with 0 it does without Ray.
        address: of a Ray cluster that it would join.
        storage: its URL.
        folder: the run folder; left as it is.
    """
    yield Finding("cores", f"{usable_cores()} for this process")
    yield _memory()
    yield from _gpus()
    yield _bf16()
    yield from _runtimes()
    yield from _extras()
    yield from _ray(workers, address)
    with _folders_as_they_were(folder):
        try:
            make_folder(folder)
            yield Finding("run folder", f"{folder} can be written to")
        except EspalierError as error:
            yield Finding("run folder", str(error), stops=True)
        try:
            check_writable(storage)
            yield Finding("storage", f"{redact(storage)} can be opened and written to")
        except EspalierError as error:
            yield Finding("storage", str(error), stops=True)


def usable_cores() -> int:
    """Cores that this process may use: of those that it is held on, as many as its control group grants."""
    cores = len(cores_here())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.floor(int(quota) / int(period))))


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        free = None
    return Finding("memory", in_bytes(total) + (f", {in_bytes(1024 * int(free[1]))} free" if free else ""))


def in_bytes(count: float) -> str:
    """A number of bytes in words.

    >>> in_bytes(1_500_000), in_bytes(16e9)
    ('1.5 MB', '16.0 GB')
    """
    unit, scale = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / scale:.1f} {unit}"


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("GPU", "none: networks run on the processor")
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        capability = f"compute capability {found.major}.{found.minor}"
        bf16 = "computes in bf16" if has_bf16(torch.device("cuda", number)) else "no bf16 of its own"
        yield Finding(f"GPU {number}", f"{found.name}, {in_bytes(found.total_memory)}, {capability}, {bf16}")


def _bf16() -> Finding:
    flags = _processor_flags()
    words = f" ({', '.join(flags)})" if flags else ""
    if has_bf16(torch.device("cpu")):
        return Finding("bf16", f"the processor computes in it{words}: precision auto takes it")
    return Finding("bf16", f"not for this processor{words}, which only emulates it: precision auto takes fp32")


def _processor_flags() -> list[str]:
    """Those of `_FLAGS` that the processor has, where the system says so."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [flag for flag in _FLAGS if flag in flags]


def _runtimes() -> Iterator[Finding]:
    there, missing = [], []
    for name, kind in RUNTIMES.items():
        try:
            there.append(f"{name} {kind().version}")
        except MissingPackage as error:
            missing.append(Finding("runtimes", str(error)))
    yield Finding("runtimes", ", ".join(there))
    yield from missing


def _extras() -> Iterator[Finding]:
    there, missing = [], []
    for extra, packages in extras().items():
        lacking = [package for package in packages if not _is_installed(package)]
        if lacking:
            missing.append(f"pip install 'espalier[{extra}]' brings {', '.join(lacking)}")
        else:
            there.append(extra)
    yield Finding("extras", ", ".join(there) or "none is installed")
    for line in missing:
        yield Finding("extras", line)


def extras() -> dict[str, list[str]]:
    """Extra -> the packages that it brings, of those that are for users."""
    found = defaultdict[str, list[str]](list)
    for requirement in importlib.metadata.requires("espalier") or ():
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if package and extra and extra[1] not in _FOR_DEVELOPERS:
            found[extra[1]].append(package[0])
    return dict(found)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _ray(workers: int, address: str | None) -> Iterator[Finding]:
    version = importlib.metadata.version("ray")
    if not workers:
        yield Finding("Ray", f"{version}; not used, as workers is 0")
        return
    try:
        if address in (None, "local"):
            yield Finding(
                "Ray", f"{version}; starts on this machine, its temporary folder is {check_socket_paths()}"
            )
        else:
            yield Finding("Ray", f"{version}; a cluster answers at {probed(str(address))}")
    except EspalierError as error:
        unset = "; --address or RAY_ADDRESS names it" if address is not None else ""
        yield Finding("Ray", f"{error}{unset}", stops=True)


@contextmanager
def _folders_as_they_were(folder: Path) -> Iterator[None]:
    """Removes the folders again that are made on the way to one, where they are empty."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in missing:
            try:
                each.rmdir()
            except OSError:
                break
