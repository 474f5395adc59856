"""Independent jobs, here or on Ray: rungs of the ladder, fine-tuning, test readings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers(ABC):
    """Runs one function over many jobs."""

    @abstractmethod
    def map(
        self, function: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yields each job with its result, in the order in which they finish.

        Args:
            function: of a module, so that it can be sent elsewhere.
            shared: what every job needs; sent once.
            jobs: what each needs of its own.
        """

    @abstractmethod
    def ready(self) -> None:
        """Makes what the jobs run on ready, if it is not; `map` does so where there are jobs."""


class InProcess(Workers):
    """One after another, in this process."""

    def map(
        self, function: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """In the order given."""
        for job in jobs:
            yield job, function(shared, job)

    def ready(self) -> None:
        """It is."""


class OnRay(Workers):
    """Tasks on a Ray cluster; a task whose worker dies is run again.

    Args:
        join: joins the cluster, the first time that there is something to do; None where it was joined before.
    """

    def __init__(self, join: Callable[[], object] | None = None) -> None:
        self._join = join

    def ready(self) -> None:
        """Joins the cluster."""
        join, self._join = self._join, None
        if join is not None:
            join()

    def map(
        self, function: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """In the order in which they finish."""
        if not jobs:
            return
        self.ready()
        import ray

        task: Any = ray.remote(num_cpus=1, max_retries=3)(_on_one_thread)
        reference = ray.put(shared)
        waiting: dict[Any, Job] = {task.remote(function, reference, job): job for job in jobs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(done), ray.get(done)


def _on_one_thread(function: Callable[[Shared, Job], Result], shared: Shared, job: Job) -> Result:
    torch.set_num_threads(1)
    return function(shared, job)
