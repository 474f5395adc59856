"""The broker: what a dead worker had in hand, and in what order things are given out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from espalier.search.broker import Broker, News, Task


def tasks(*numbers: int) -> list[Task]:
    return [(number, f"0:{number}") for number in numbers]


def play(scene: Callable[[Broker], Awaitable[None]]) -> None:
    async def go() -> None:
        await asyncio.wait_for(scene(Broker()), 10)

    asyncio.run(go())


def test_chunks_are_taken_in_order_and_news_come_back_one_by_one() -> None:
    async def scene(broker: Broker) -> None:
        assert await broker.exchange(tasks(0, 1, 2, 3, 4), 2, 0) == ([], 5)
        assert [await broker.take("a"), await broker.take("b"), await broker.take("c")] == [
            tasks(0, 1),
            tasks(2, 3),
            tasks(4),
        ]
        await broker.tell("b", News(2, {"top1": 1.0}))
        assert await broker.exchange([], 2, 5) == ([News(2, {"top1": 1.0})], 0)
        assert await broker.exchange([], 2, 0.01) == ([], 0)

    play(scene)


def test_a_worker_waits_for_tasks_and_a_driver_for_news() -> None:
    async def scene(broker: Broker) -> None:
        taking = asyncio.create_task(broker.take("a"))
        await asyncio.sleep(0.01)
        assert not taking.done()
        await broker.exchange(tasks(7), 3, 0)
        assert await taking == tasks(7)
        asking = asyncio.create_task(broker.exchange([], 1, 60))
        await asyncio.sleep(0.01)
        await broker.tell("a", News(7, None, "no luck"))
        assert (await asking)[0] == [News(7, None, "no luck")]

    play(scene)


def test_a_worker_that_says_that_it_ends_loses_nothing_else() -> None:
    async def scene(broker: Broker) -> None:
        await broker.exchange(tasks(0, 1, 2), 3, 0)
        await broker.take("a")
        await broker.tell("a", News(0, None, "too slow", last=True))
        assert await broker.lost("a") is None
        assert await broker.take("b") == tasks(1, 2)

    play(scene)


def test_what_a_dead_worker_had_goes_to_the_next_but_for_the_one_it_was_at() -> None:
    async def scene(broker: Broker) -> None:
        await broker.exchange(tasks(0, 1, 2, 3, 9), 4, 0)
        await broker.take("a")
        await broker.tell("a", News(0, {}))
        assert await broker.lost("a") == 1
        assert await broker.lost("a") is None and await broker.lost("never seen") is None
        assert await broker.take("b") == tasks(2, 3, 9)

    play(scene)


def test_workers_are_sent_home() -> None:
    async def scene(broker: Broker) -> None:
        waiting = asyncio.create_task(broker.take("a"))
        await asyncio.sleep(0.01)
        await broker.close()
        assert await waiting == [] and await broker.take("b") == []

    play(scene)
    play(lambda broker: _stock_is_dropped(broker))


async def _stock_is_dropped(broker: Broker) -> None:
    await broker.exchange(tasks(0, 1), 1, 0)
    await broker.close()
    assert await broker.take("a") == []
