"""Between a driver and its workers: what is to be scored next, who has it in hand, and what came of it.

A worker takes a chunk of candidates at a time, and says of each what came of it as soon as it is done. So a worker
that is lost loses the one candidate that it was at; the others of its chunk go to the next worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

Task = tuple[int, str]
"""Number of a trial and key of its candidate."""


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


class Broker:
    """An actor on the driver's node; each call is short or waits without holding up the others."""

    def __init__(self) -> None:
        self._stock: deque[Task] = deque()
        self._in_hand: dict[str, dict[int, Task]] = {}  # by worker, in the order in which it scores them
        self._news: list[News] = []
        self._chunk, self._closed = 1, False
        self._changed = asyncio.Condition()

    # -- what a driver calls

    async def exchange(self, tasks: list[Task], chunk: int, patience: float) -> tuple[list[News], int]:
        """Adds tasks and collects news.

        Args:
            tasks: that nobody has in hand.
            chunk: candidates that a worker takes at a time.
            patience: seconds to wait for news.

        Returns:
            The news since the last call, and how many tasks nobody has taken.
        """
        async with self._changed:
            self._stock.extend(tasks)
            self._chunk = chunk
            self._changed.notify_all()
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: bool(self._news)), patience)
            except TimeoutError:
                pass
            news, self._news = self._news, []
        return news, len(self._stock)

    async def lost(self, worker: str) -> int | None:
        """Puts back what a dead worker had in hand.

        Returns:
            The trial that it was at when it died, which is not put back; None if it was at none.
        """
        async with self._changed:
            left = list(self._in_hand.pop(worker, {}).values())
            self._put_back(left[1:])
        return left[0][0] if left else None

    async def close(self) -> None:
        """Sends the workers home."""
        async with self._changed:
            self._closed = True
            self._stock.clear()
            self._changed.notify_all()

    # -- what a worker calls

    async def take(self, worker: str) -> list[Task]:
        """The next chunk, as soon as there is one; none when the work is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._stock) or self._closed)
            chunk = [self._stock.popleft() for _ in range(min(self._chunk, len(self._stock)))]
            self._in_hand[worker] = {task[0]: task for task in chunk}
        return chunk

    async def tell(self, worker: str, news: News) -> None:
        """What came of the candidate that a worker was at."""
        async with self._changed:
            self._in_hand.get(worker, {}).pop(news.number, None)
            self._news.append(news)
            self._put_back(list(self._in_hand.pop(worker, {}).values()) if news.last else [])

    def _put_back(self, tasks: list[Task]) -> None:
        """Tasks are the next to be taken again; whoever waits for a change is told."""
        self._stock.extendleft(reversed(tasks))
        self._changed.notify_all()
