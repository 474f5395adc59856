"""A small network, its graph, and a config that runs from end to end in a few seconds."""

from __future__ import annotations

import copy
import getpass
import glob
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
import torch
import yaml
from torch import nn

from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.networks import CifarResNet
from espalier.pruning.slimming.int8_convolutions import has_int8
from espalier.pruning.torch_private import computes_in_bf16
from espalier.pruning.trace import trace
from espalier.search.evaluation.candidate_networks import CandidateNetworks, EvaluationSpec
from espalier.search.evaluation.proxies import PROXIES, Proxy
from espalier.search.spaces.candidate import Candidate
from espalier.search.spaces.named_spaces import Multipliers
from espalier.search.tasks.classification.data import InMemoryImages, Splits
from espalier.search.tasks.classification.scoring import ImageScoring
from espalier.search.tasks.classification.training_loop import Recipe
from espalier.search.tasks.execution import Execution

TINY = """
model:
  name: espalier.pruning.networks:CifarResNet
  kwargs: {depth: 8, width: 4, in_channels: 1, num_classes: 10}
data: {name: digits, search_images: 300, train_images: 256}
training: {epochs: 2, batch_size: 32, lr: 0.1}
regularizer: {name: oicsr_gl, strengths: [0.001, 0.01], epochs: 1, lr: 0.05}
budget: {keep: 0.4}
search:
  {sampler: random, trials: 6, scoring_images: 64, calibration_images: 64, finalists: 2,
   batch_size: 64, memory_format: channels_last, precision: fp32}
finetune: {epochs: 0.5, batch_size: 32, lr: 0.02, seeds: 2}
workers: 0
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may have set for the command line is not this test's."""
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes a step of training fails."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be trained")

    monkeypatch.setattr(torch.optim.SGD, "step", forbidden)


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Makes torch say whether this processor computes in bf16."""

    def says(built_for: bool) -> None:
        computes_in_bf16.cache_clear()
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: built_for)

    yield says
    computes_in_bf16.cache_clear()


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Makes torch say whether it convolves in 8-bit integers; skips a test that needs them where it does not."""
    real = has_int8()

    def says(there: bool) -> None:
        if there and not real:
            pytest.skip("PyTorch has no 8-bit convolutions here")
        has_int8.cache_clear()
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: there)

    yield says
    has_int8.cache_clear()


class OnCall(Proxy):
    """A proxy that does something else first.

    Args:
        name: of the proxy whose place it takes.
        first: is given the candidate, before that proxy is.
    """

    def __init__(self, name: str, first: Callable[[Candidate], object]) -> None:
        self._inner, self._first = PROXIES[name], first
        self.needs = self._inner.needs

    def prepare(self, networks: CandidateNetworks, candidate: Candidate) -> nn.Module | float:
        self._first(candidate)
        return self._inner.prepare(networks, candidate)


@pytest.fixture
def before_scoring(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Candidate], object]], None]:
    """Does something before each candidate that the proxy of a name scores."""
    return lambda name, first: monkeypatch.setitem(PROXIES, name, OnCall(name, first))


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """A config as a file: ResNet-8 of width 4 on the digits, in this process."""
    return TINY


@pytest.fixture
def tiny(tiny_text: str) -> dict[str, Any]:
    """The same as a dict of one's own to change."""
    content: dict[str, Any] = yaml.safe_load(tiny_text)
    return content


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def small_network() -> nn.Module:
    """A group behind a residual sum, one inside it, one free, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Block(),
        nn.Conv2d(6, 10, 3, stride=2, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


@pytest.fixture
def network() -> nn.Module:
    """Small, with norms that look trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = small_network()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return made.eval()


@pytest.fixture(scope="session")
def graph() -> ChannelGraph:
    """Of `small_network`."""
    return trace(small_network().eval(), torch.zeros(1, 1, 8, 8))


@pytest.fixture(scope="session")
def resnet8() -> ChannelGraph:
    """Six groups of 88 channels: so many candidates that two random ones are hardly ever the same."""
    return trace(CifarResNet(depth=8, width=8, in_channels=1), torch.zeros(1, 1, 8, 8))


@pytest.fixture
def splits() -> Splits:
    """Four classes that a few steps of training tell apart: a bright quarter of an 8 x 8 image each."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> InMemoryImages:
        labels = torch.arange(count) % 4
        pixels = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
        for number, label in enumerate(labels.tolist()):
            row, column = 4 * (label // 2), 4 * (label % 2)
            pixels[number, 0, row : row + 4, column : column + 4] += 120
        return InMemoryImages(pixels.to(torch.uint8), labels)

    return Splits(images(96), images(48), images(48), tuple("abcd"), (0.3,), (0.25,))


@pytest.fixture
def space(resnet8: ChannelGraph) -> Multipliers:
    """Two rungs of random energies under half of the MACs."""
    graph = resnet8
    draw = np.random.default_rng(0)
    return Multipliers(
        graph,
        [draw.uniform(0.1, 2, graph.n_channels) for _ in range(2)],
        normalization="mean",
        budget=int(graph.macs(graph.sizes)) // 2,
        floor=np.ones_like(graph.sizes),
        width=1.5,
    )


@pytest.fixture
def networks(network: nn.Module) -> list[nn.Module]:
    """The networks of two rungs."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return [network, other]


def images_of(spec: EvaluationSpec) -> ImageScoring:
    """What candidates are scored on."""
    assert isinstance(spec.scoring, ImageScoring)
    return spec.scoring


def scored_on(networks: CandidateNetworks) -> Sequence[torch.Tensor]:
    """Its batches."""
    return images_of(networks.spec).inputs(networks.runner)


def calibrated_on(networks: CandidateNetworks) -> Sequence[torch.Tensor]:
    """Those of the calibration images."""
    return images_of(networks.spec).calibration(networks.runner)


def run_as(spec: EvaluationSpec, **execution: Any) -> EvaluationSpec:
    """The spec, its candidates run otherwise."""
    return replace(spec, execution=replace(spec.execution, **execution))


@pytest.fixture
def spec(networks: list[nn.Module], graph: ChannelGraph, splits: Splits) -> EvaluationSpec:
    """Both rungs, judged after recalibration on 48 images."""
    draw = np.random.default_rng(1)
    return EvaluationSpec.of(
        graph,
        networks,
        [draw.random(graph.n_channels) for _ in range(2)],
        ImageScoring.of(
            splits,
            networks[0],
            torch.arange(48),
            calibration=80,
            steps=10,
            recipe=Recipe(epochs=1, batch_size=16, lr=0.05, warmup=0.0),
        ),
        Execution(batch_size=32, precision="fp32"),
        proxy="recalibrated",
    )


# ----------------------------------------------------------------------------------------------- storages

PASSWORD = "open-sesame"
_storages = pytest.mark.storages
KINDS = ["sqlite", *(pytest.param(kind, marks=_storages) for kind in ("journal", "postgresql", "mysql"))]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that is empty, of each kind."""
    return fresh_storage(request.param, request, tmp_path)


@pytest.fixture
def storage_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """From a kind of storage to the URL of one that is empty."""
    return lambda kind: fresh_storage(kind, request, tmp_path)


def fresh_storage(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a storage that is empty."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'study.db'}"
    if kind == "journal":
        return f"journal:///{folder / 'study.log'}"
    new_database: Callable[[], str] = request.getfixturevalue(f"{kind}_server")
    return new_database()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Callable[[], str]]:
    """A PostgreSQL server of this session's on the loopback address; makes an empty database and gives its URL."""
    binaries = [*sorted(glob.glob("/usr/lib/postgresql/*/bin")), os.path.dirname(shutil.which("initdb") or "")]
    if not binaries[0]:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    initdb, postgres = (os.path.join(binaries[0], name) for name in ("initdb", "postgres"))
    with _server_folder() as (folder, user):
        (folder / "password").write_text(PASSWORD)
        options = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=espalier", "--no-sync"]
        _run_as(user, [initdb, f"--pgdata={folder / 'data'}", *options])
        port = _free_port()
        settings = ["listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={folder}", "fsync=off"]
        arguments = [argument for setting in settings for argument in ("-c", setting)]
        base = f"postgresql://espalier:{PASSWORD}@127.0.0.1:{port}"
        with _serving(user, [postgres, "-D", str(folder / "data"), *arguments], folder):
            yield _databases(base.replace("postgresql:", "postgresql+psycopg:") + "/postgres", base)


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[Callable[[], str]]:
    """Likewise, MariaDB."""
    mariadbd = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    install = shutil.which("mariadb-install-db")
    if mariadbd is None or install is None or shutil.which("my_print_defaults") is None:
        pytest.skip("MariaDB is not installed: apt-get install mariadb-server-core mariadb-client-core")
    with _server_folder() as (folder, user):
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        _run_as(user, [install, "--no-defaults", f"--datadir={folder / 'data'}", *options])
        grants = f"CREATE USER espalier@localhost IDENTIFIED BY '{PASSWORD}';"
        grants += "GRANT ALL ON *.* TO espalier@localhost;"
        (folder / "init.sql").write_text("".join(f"{line};\n" for line in grants.split(";") if line))
        port = _free_port()
        settings = [f"--datadir={folder / 'data'}", f"--socket={folder / 'socket'}", f"--port={port}"]
        settings += ["--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0"]
        settings += [f"--init-file={folder / 'init.sql'}"]
        base = f"mysql://espalier:{PASSWORD}@127.0.0.1:{port}"
        with _serving(user, [mariadbd, "--no-defaults", *settings], folder):
            yield _databases(base.replace("mysql:", "mysql+pymysql:"), base)


@contextmanager
def _server_folder() -> Iterator[tuple[Path, str]]:
    """A folder and the user that owns it: no server wants to run as root."""
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="espalier-server-") as name:
        shutil.chown(name, user)
        yield Path(name), user


def _run_as(user: str, command: list[str]) -> None:
    done = subprocess.run(command, user=_other(user), cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _other(user: str) -> str | None:
    return user if os.geteuid() == 0 else None


@contextmanager
def _serving(user: str, command: list[str], folder: Path) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, user=_other(user), cwd="/", stdout=log, stderr=log)
    try:
        yield
    finally:
        server.send_signal(signal.SIGINT if "postgres" in command[0] else signal.SIGTERM)
        server.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _databases(server: str, base: str) -> Callable[[], str]:
    """Makes one database after another, once the server answers."""
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    deadline = time.monotonic() + 60
    while True:
        try:
            engine.connect().close()
            break
        except sqlalchemy.exc.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    numbers = itertools.count()

    def new_database() -> str:
        name = f"study{next(numbers)}"
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return f"{base}/{name}"

    return new_database
