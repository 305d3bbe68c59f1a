"""Slots are counted exactly, whoever waits, gets, gives back or gives up; and queues share them by weight."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq.worker.slots import Slots


def test_a_queue_gets_what_it_wants_at_once_where_that_is_free() -> None:
    async def scenario() -> None:
        slots = Slots(10, {"q": 1})
        assert await slots.take("q", 7) == 7
        assert slots.free == 3
        slots.give(7)
        assert slots.free == slots.total == 10

    asyncio.run(scenario())


def test_free_slots_linger_to_become_a_batch_and_then_go_as_they_are() -> None:
    async def scenario() -> None:
        slots = Slots(10, {"q": 1})
        await slots.take("q", 10)
        waiting = asyncio.create_task(slots.take("q", 10))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        now = loop.time()
        loop.time = lambda: now  # type: ignore[method-assign]  # on a busy machine the linger would be over too soon
        slots.give(2)
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.give(1)
        now += 1.0
        assert await waiting == 3
        assert slots.free == 0

    asyncio.run(scenario())


def test_a_full_batch_does_not_linger() -> None:
    async def scenario() -> None:
        slots = Slots(10, {"q": 1})
        await slots.take("q", 10)
        waiting = asyncio.create_task(slots.take("q", 4))
        await asyncio.sleep(0)
        slots.give(4)
        await asyncio.sleep(0)
        assert waiting.done()
        assert waiting.result() == 4

    asyncio.run(scenario())


def test_a_wait_that_is_cancelled_takes_nothing() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"q": 1})
        await slots.take("q", 1)
        waiting = asyncio.create_task(slots.take("q", 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        slots.give(1)
        assert slots.free == 1
        assert not slots.contended

    asyncio.run(scenario())


def test_slots_that_come_free_in_the_turn_of_a_cancellation_go_to_the_next_who_waits() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"q": 1})
        await slots.take("q", 1)
        first, second = (asyncio.create_task(slots.take("q", 1)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        slots.give(1)  # before the first has run on and heard of its cancellation
        assert await second == 1
        assert slots.free == 0
        slots.give(1)
        assert slots.free == 1

    asyncio.run(scenario())


def test_slots_granted_in_the_turn_before_a_cancellation_come_back() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"q": 1})
        await slots.take("q", 1)
        waiting = asyncio.create_task(slots.take("q", 1))
        await asyncio.sleep(0)
        slots.give(1)  # grants
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert slots.free == 1

    asyncio.run(scenario())


def _shares(weights: dict[str, int], rounds: int, *, total: int = 4, want: int = 1) -> Counter[str]:
    """Who gets how many slots while every queue of ``weights`` always wants more."""

    async def scenario() -> Counter[str]:
        slots = Slots(total, weights)
        got: Counter[str] = Counter()

        async def busy(queue: str) -> None:
            while sum(got.values()) < rounds:
                count = await slots.take(queue, want)
                got[queue] += count
                asyncio.get_running_loop().call_soon(slots.give, count)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(busy(queue)) for queue in weights for _ in range(5 * total)]
        while sum(got.values()) < rounds:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert slots.free == total
        return got

    return asyncio.run(scenario())


def test_busy_queues_get_slots_in_proportion_to_their_weights() -> None:
    got = _shares({"heavy": 3, "light": 1}, 800)
    assert 2.7 <= got["heavy"] / got["light"] <= 3.3


def test_a_light_queue_is_not_starved_by_a_single_slot() -> None:
    got = _shares({"heavy": 9, "light": 1}, 400, total=1)
    assert got["light"] >= 20


def test_a_queue_that_was_away_does_not_catch_up_on_what_it_did_not_want() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"old": 1, "new": 1})
        for _ in range(100):
            slots.give(await slots.take("old", 1))
        await slots.take("old", 1)
        order: list[str] = []

        async def wants(queue: str) -> None:
            for _ in range(10):
                await slots.take(queue, 1)
                order.append(queue)
                slots.give(1)

        both = [asyncio.create_task(wants("old")), asyncio.create_task(wants("new"))]
        await asyncio.sleep(0)
        slots.give(1)
        await asyncio.gather(*both)
        assert "old" in order[:4]

    asyncio.run(scenario())


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "give", "cancel", "turn"]), st.sampled_from(["a", "b"]), st.integers(1, 5)),
        max_size=40,
    )
)
def test_whatever_happens_no_slot_is_lost_or_made(steps: list[tuple[str, str, int]]) -> None:
    async def scenario() -> None:
        slots = Slots(5, {"a": 3, "b": 1})
        tasks: list[asyncio.Task[int]] = []
        held: list[asyncio.Task[int]] = []
        for kind, queue, number in steps:
            match kind:
                case "take":
                    tasks.append(asyncio.create_task(slots.take(queue, number)))
                case "give":
                    for task in [task for task in tasks if task.done() and not task.cancelled() and task not in held][:1]:
                        held.append(task)
                        slots.give(task.result())
                case "cancel":
                    if tasks:
                        tasks[number % len(tasks)].cancel()
                case _:
                    await asyncio.sleep(0)
            assert 0 <= slots.free <= slots.total
        for _ in range(3):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and task not in held:
                slots.give(task.result())
        assert slots.free == slots.total
        assert not slots.contended

    asyncio.run(scenario())


def test_a_queue_keeps_its_share_though_it_asks_anew_each_time() -> None:
    async def scenario() -> None:
        slots = Slots(1, {"heavy": 3, "light": 1})
        await slots.take("light", 1)
        order: list[str] = []

        async def busy(queue: str) -> None:
            while len(order) < 400:
                await slots.take(queue, 1)
                order.append(queue)
                asyncio.get_running_loop().call_later(0, slots.give, 1)

        tasks = [asyncio.create_task(busy(queue)) for queue in ("heavy", "light")]
        await asyncio.sleep(0)
        slots.give(1)
        while len(order) < 400:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 2.9 <= order.count("heavy") / order.count("light") <= 3.1

    asyncio.run(scenario())
