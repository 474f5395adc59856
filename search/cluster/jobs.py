"""Independent jobs, here or on Ray: rungs of the ladder, judgements, fine-tuning, test readings."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from espalier.errors import ConfigError, EspalierError, raised
from espalier.search.tasks.device import in_worker
from espalier.search.tasks.module_path import DriversPath

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Share:
    """What a worker gets of its node.

    Attributes:
        cpus: cores; a worker computes on as many threads, one at least.
        gpus: GPUs; fractions share one between workers.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Threads that a worker computes on."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> dict[str, float]:
        """As Tune wants them."""
        return {"cpu": self.cpus} | ({"gpu": self.gpus} if self.gpus else {})


class Workers(ABC):
    """Runs one function over many jobs."""

    @abstractmethod
    def map(
        self, function: Callable[[Shared, Job], Result], shared: Shared, jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yields each job with its result, in the order in which they finish.

        Args:
            function: of a module, so that it can be sent elsewhere.
            shared: what every job needs; sent once, and not again where the next call shares the same.
            jobs: what each needs of its own; the next is taken when there is somebody free to do it.
        """

    @abstractmethod
    def ready(self) -> None:
        """Makes what the jobs run on ready, if it is not; `map` does so where there are jobs."""


def check_sent(parts: Mapping[str, Any]) -> None:
    """Refuses what cannot be sent to workers, before anything is done.

    Raises:
        ConfigError: names it.
    """
    from ray import cloudpickle

    for name, part in parts.items():
        try:
            cloudpickle.dumps(part)
        except Exception as error:  # whatever an object of the user's own raises
            raise ConfigError(
                f"the task's {name} cannot be sent to workers: {raised(error)}; keep it out of the function, or "
                "search in this process, workers=0"
            ) from error


class InProcess(Workers):
    """One after another, in this process."""

    def map(
        self, function: Callable[[Shared, Job], Result], shared: Shared, jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """In the order given."""
        for job in jobs:
            yield job, function(shared, job)

    def ready(self) -> None:
        """It is."""


class OnRay(Workers):
    """Tasks on a Ray cluster; a task whose worker or node dies is run again.

    An error of ours that a job raises is raised here as it is there, one of the file system too; any other, as an
    EspalierError that names it and where it was raised.

    Args:
        join: joins the cluster, the first time that there is something to do; None where it was joined before.
        workers: jobs at a time.
        share: of a node that each gets.
    """

    def __init__(
        self, join: Callable[[], object] | None = None, workers: int = 2, share: Share | None = None
    ) -> None:
        self._join, self._workers, self._share = join, workers, share or Share()
        self._sent: tuple[Any, Any] = (None, None)  # what was shared last, and Ray's reference to it

    def ready(self) -> None:
        """Joins the cluster."""
        join, self._join = self._join, None
        if join is not None:
            join()

    def map(
        self, function: Callable[[Shared, Job], Result], shared: Shared, jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """In the order in which they finish."""
        waiting = iter(jobs)
        upcoming = list(islice(waiting, 1))
        if not upcoming:
            return
        self.ready()
        import ray

        from espalier.search.cluster.ray_errors import WATCH_SECONDS, ClusterWatch, cluster_errors

        share = self._share
        task: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=3)(_on_threads)
        if self._sent[0] is not shared:
            self._sent = (shared, ray.put(shared))
        watch, path, running = ClusterWatch(), DriversPath(), dict[Any, Job]()
        while upcoming or running:
            while upcoming and len(running) < self._workers:
                job = upcoming.pop()
                running[task.remote(path, share.threads, function, self._sent[1], job)] = job
                upcoming = list(islice(waiting, 1))
            with cluster_errors():
                while not (ready := ray.wait(list(running), num_returns=1, timeout=WATCH_SECONDS)[0]):
                    watch.check()
                result: Result = ray.get(ready[0])
            yield running.pop(ready[0]), result


def _on_threads(
    path: DriversPath, threads: int, function: Callable[[Shared, Job], Result], shared: Shared, job: Job
) -> Result:
    torch.set_num_threads(threads)
    in_worker()
    try:
        return function(shared, job)
    except Exception as error:
        if isinstance(error, (EspalierError, OSError)) and _travels(error):
            raise
        raise EspalierError(f"a job on Ray failed: {raised(error)}") from error


def _travels(error: Exception) -> bool:
    """Whether an error can be sent to the driver: one with arguments of its own may not."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
