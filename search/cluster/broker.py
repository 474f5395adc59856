"""Between a driver and its workers: what is to be scored next, who has it in hand, and what came of it.

A worker takes a chunk of candidates at a time, and says of each what came of it as soon as it is done. So a worker
that is lost loses the one candidate that it was at; the others of its chunk go to the next worker.

Whatever is handed out has a holder, and comes back: with its score, when the driver says that the holder is lost,
or when the holder asks for more without a word of it, because then it never heard of it. A dead worker gets nothing
more, whenever its request arrives, and no request waits for longer than `TAKE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

QueuedTrial = tuple[int, str]
"""Number of a trial and key of its candidate."""

TAKE_SECONDS = 10.0
"""A worker that waits for tasks is answered after this long, and asks again."""


@dataclass(frozen=True)
class News:
    """What came of a candidate.

    Attributes:
        number: of the trial.
        score: as JSON; None where there is none.
        error: why there is none.
        last: whether the worker ends with this: what else it has in hand goes to others.
    """

    number: int
    score: dict[str, Any] | None
    error: str = ""
    last: bool = False


@dataclass(frozen=True)
class Held:
    """Where every trial is that the broker knows of.

    Attributes:
        numbers: of the trials that wait for a worker, that a worker has in hand, or whose news wait for the driver.
        silent: worker -> seconds since it was last heard; of those that are not dead.
    """

    numbers: frozenset[int]
    silent: dict[str, float]


class Broker:
    """An actor on the driver's node; each call is short or waits without holding up the others.

    Args:
        clock: seconds, by which workers are silent.
        take_seconds: after which `take` answers in any case.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, take_seconds: float = TAKE_SECONDS) -> None:
        self._clock, self._take_seconds = clock, take_seconds
        self._stock: deque[QueuedTrial] = deque()
        self._in_hand: dict[str, dict[int, QueuedTrial]] = {}  # by worker, in the order in which it scores them
        self._heard: dict[str, float] = {}  # worker -> when
        self._dead: set[str] = set()
        self._request: dict[str, object] = {}  # worker -> its latest `take`
        self._news: list[News] = []
        self._chunk, self._closed = 1, False
        self._changed = asyncio.Condition()

    # -- what a driver calls

    async def exchange(self, tasks: list[QueuedTrial], chunk: int, timeout: float) -> tuple[list[News], int]:
        """Adds tasks and collects news.

        Args:
            tasks: that nobody has in hand.
            chunk: candidates that a worker takes at a time.
            timeout: seconds to wait for news.

        Returns:
            The news since the last call, and how many tasks nobody has taken.
        """
        async with self._changed:
            self._stock.extend(tasks)
            self._chunk = chunk
            self._changed.notify_all()
            await self._wait(lambda: bool(self._news), timeout)
            news, self._news = self._news, []
        return news, len(self._stock)

    async def lost(self, worker: str, dead: bool = True) -> int | None:
        """Puts back what a lost worker had in hand.

        Args:
            worker: that is lost.
            dead: whether it is known to be dead, and gets nothing more; else it is silent, and may ask again.

        Returns:
            The trial that it was at, which is not put back; None if it was at none.
        """
        async with self._changed:
            if dead:
                self._dead.add(worker)
            left = list(self._in_hand.pop(worker, {}).values())
            self._put_back(left[1:])
        return left[0][0] if left else None

    async def knows(self, worker: str) -> bool:
        """Whether a worker has ever asked for tasks."""
        return worker in self._heard

    async def held(self) -> Held:
        """Where everything is."""
        in_hand = (number for tasks in self._in_hand.values() for number in tasks)
        numbers = {*(number for number, _ in self._stock), *in_hand, *(news.number for news in self._news)}
        now = self._clock()
        return Held(
            frozenset(numbers),
            {worker: now - heard for worker, heard in self._heard.items() if worker not in self._dead},
        )

    async def close(self) -> None:
        """Sends the workers home."""
        async with self._changed:
            self._closed = True
            self._stock.clear()
            self._changed.notify_all()

    # -- what a worker calls

    async def take(self, worker: str, told: Sequence[News] = ()) -> list[QueuedTrial] | None:
        """The next chunk, as soon as there is one.

        Args:
            worker: that asks.
            told: what it has told since it last asked: Ray does not keep calls in order, and a `tell` may be lost.

        Returns:
            Tasks; none when the work is over; None where there were none in `take_seconds`: ask again.
        """
        async with self._changed:
            self._request[worker] = request = object()
            self._heard[worker] = self._clock()
            in_hand = self._in_hand.get(worker, {})
            self._news += [news for news in told if in_hand.pop(news.number, None)]
            self._changed.notify_all()
            if unheard := self._in_hand.pop(worker, None):
                self._put_back(list(unheard.values()))

            def over() -> bool:
                return self._closed or worker in self._dead or self._request[worker] is not request

            await self._wait(lambda: bool(self._stock) or over(), self._take_seconds)
            if over():
                return []
            chunk = [self._stock.popleft() for _ in range(min(self._chunk, len(self._stock)))]
            self._in_hand[worker] = {task[0]: task for task in chunk}
        return chunk or None

    async def tell(self, worker: str, news: News) -> None:
        """What came of the candidate that a worker was at."""
        async with self._changed:
            self._heard[worker] = self._clock()
            self._in_hand.get(worker, {}).pop(news.number, None)
            self._news.append(news)
            self._put_back(list(self._in_hand.pop(worker, {}).values()) if news.last else [])

    async def alive(self, worker: str) -> None:
        """A worker lives, whatever it is at."""
        self._heard[worker] = self._clock()

    async def _wait(self, until: Callable[[], bool], seconds: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait_for(until), seconds)
        except TimeoutError:
            pass

    def _put_back(self, tasks: list[QueuedTrial]) -> None:
        """Tasks are the next to be taken again; whoever waits for a change is told."""
        self._stock.extendleft(reversed(tasks))
        self._changed.notify_all()
