"""The broker: what a dead worker had in hand, and in what order things are given out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from espalier.search.cluster.broker import Broker, Held, News, QueuedTrial


def tasks(*numbers: int) -> list[QueuedTrial]:
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


def test_a_worker_that_dies_while_it_waits_takes_nothing_along() -> None:
    async def scene(broker: Broker) -> None:
        dead = asyncio.create_task(broker.take("a"))
        await asyncio.sleep(0.01)
        assert await broker.lost("a") is None
        await broker.exchange(tasks(0, 1), 1, 0)
        assert await broker.take("b") == tasks(0) and await broker.take("c") == tasks(1)
        assert await dead == []

    play(scene)


def test_a_dead_worker_whose_request_arrives_late_gets_nothing() -> None:
    async def scene(broker: Broker) -> None:
        await broker.lost("a")
        await broker.exchange(tasks(0), 1, 0)
        assert await broker.take("a") == []
        assert await broker.take("b") == tasks(0)

    play(scene)


def test_what_was_handed_to_a_worker_that_was_dead_already_comes_back_with_the_word_of_its_death() -> None:
    async def scene(broker: Broker) -> None:
        dead = asyncio.create_task(broker.take("a"))
        await asyncio.sleep(0.01)
        await broker.exchange(tasks(0, 1), 2, 0)
        await dead  # nobody hears it
        assert await broker.lost("a") == 0
        assert await broker.take("b") == tasks(1)

    play(scene)


def test_a_worker_that_asks_again_has_not_heard_what_it_was_given() -> None:
    async def scene(broker: Broker) -> None:
        await broker.exchange(tasks(0, 1, 2), 2, 0)
        assert await broker.take("a") == tasks(0, 1)
        assert await broker.take("a") == tasks(0, 1)
        await broker.tell("a", News(0, {}))
        assert await broker.take("a") == tasks(1, 2)

    play(scene)


def test_a_request_may_overtake_the_news_before_it() -> None:
    async def scene(broker: Broker) -> None:
        await broker.exchange(tasks(0, 1, 2), 2, 0)
        assert await broker.take("a") == tasks(0, 1)
        told = [News(0, {}), News(1, {})]
        assert await broker.take("a", told) == tasks(2)
        assert (await broker.exchange([], 2, 0))[0] == told
        await broker.tell("a", told[0])  # the driver takes what it knows for nothing new
        assert (await broker.held()).numbers == {0, 2}

    play(scene)


def test_of_two_requests_of_a_worker_the_later_one_is_served() -> None:
    async def scene(broker: Broker) -> None:
        earlier = asyncio.create_task(broker.take("a"))
        await asyncio.sleep(0.01)
        later = asyncio.create_task(broker.take("a"))
        await asyncio.sleep(0.01)
        await broker.exchange(tasks(0), 1, 0)
        assert (await earlier, await later) == ([], tasks(0))

    play(scene)


def test_no_request_waits_for_ever() -> None:
    async def scene(_: Broker) -> None:
        broker = Broker(take_seconds=0.02)
        assert await broker.take("a") is None
        await broker.exchange(tasks(0), 1, 0)
        assert await broker.take("b") == tasks(0)

    play(scene)


def test_a_silent_worker_gives_back_what_it_has_and_may_ask_again() -> None:
    async def scene(broker: Broker) -> None:
        await broker.exchange(tasks(0, 1), 2, 0)
        await broker.take("a")
        assert await broker.lost("a", dead=False) == 0
        assert await broker.take("a") == tasks(1)

    play(scene)


def test_the_broker_says_where_everything_is() -> None:
    now = [100.0]

    async def scene(_: Broker) -> None:
        broker = Broker(clock=lambda: now[0])
        await broker.exchange(tasks(0, 1, 2), 1, 0)
        await broker.take("a")
        await broker.take("b")
        await broker.tell("b", News(1, {}))
        now[0] = 107.0
        await broker.alive("b")
        assert await broker.held() == Held(frozenset((0, 1, 2)), {"a": 7.0, "b": 0.0})
        await broker.lost("a")
        assert await broker.held() == Held(frozenset((1, 2)), {"b": 0.0})
        assert await broker.knows("a") and not await broker.knows("c")

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
