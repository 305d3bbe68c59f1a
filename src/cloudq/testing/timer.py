"""The tests that a timer driver passes before it is finished.

::

    class TestMyTimer(TimerConformance):
        async def make_broker(self) -> Broker: ...
        async def make_queue(self) -> str: ...
        async def make_timer(self) -> Timer: ...
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import ClassVar

import pytest

from cloudq.broker import Broker, Delivery, Outgoing
from cloudq.errors import TimerError
from cloudq.schedules import every
from cloudq.testing.suite import Suite, scenario, unless
from cloudq.timer import Schedule, Timer, Trigger


class TimerConformance(Suite):
    """Subclass it as ``Test…`` in a test module. Each test has a broker and a timer of its own, closed at its end, and fresh queues."""

    step: ClassVar[int] = 2
    """Seconds that one time of the tests is ahead of another; a minute for a timer that counts in minutes."""

    fires: ClassVar[bool] = True
    """Whether the server really fires; what needs it is skipped where an emulator does not."""

    broker: Broker
    timer: Timer

    @abstractmethod
    async def make_broker(self) -> Broker:
        """The broker that the timer sends to, made on the test's loop."""

    @abstractmethod
    async def make_queue(self) -> str:
        """The name of a new, empty queue of ``self.broker``."""

    @abstractmethod
    async def make_timer(self) -> Timer:
        """A timer without schedules; ``self.broker`` is there."""

    def make_trigger(self, seconds: int) -> Trigger:
        """A trigger that fires every ``seconds``."""
        return every(seconds)

    def now(self) -> float:
        """The driver's present instant, Unix time in seconds."""
        return time.time()

    async def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        self.broker = await self.make_broker()
        try:
            self.timer = await self.make_timer()
            try:
                await super().play(scenario)
            finally:
                await self.timer.close()
        finally:
            await self.broker.close()

    # What the tests do again and again.

    async def taken(self, queue: str, least: int = 1) -> list[Delivery]:
        """What is in the queue now, taken out: looked for until ``least`` are there, however slow the server."""
        found: list[Delivery] = []
        for _ in range(1000 if least else 10):
            while batch := await self.broker.receive(queue, max_messages=self.broker.limits.receive, wait=0):
                found += batch
                await self.broker.ack(batch)
            if found and len(found) >= least:
                break
            await asyncio.sleep(0.01)
        return found

    async def arrived(self, queue: str, least: int = 1) -> list[str]:
        """The bodies of what is ``taken``, sorted."""
        return sorted(delivery.body for delivery in await self.taken(queue, least))

    async def fire_time(self, steps: int = 1) -> None:
        """Let ``steps`` times pass, and what a timer may be late."""
        await self.pass_time(steps * self.step + self.timer.limits.late + self.slack)

    async def set(self, queue: str, body: str, *, key: str, steps: int = 1) -> None:
        """Set a message ``steps`` times ahead."""
        await self.timer.at(self.now() + steps * self.step, queue, Outgoing(body=body), key=key)

    def schedule(self, queue: str, name: str = "tick", body: str = "tick") -> Schedule:
        """A schedule that fires each ``step``."""
        return Schedule(name=name, queue=queue, message=Outgoing(body=body), trigger=self.make_trigger(self.step))

    def needs_fires(self) -> None:
        """Skip where nothing fires."""
        unless(self.fires, "the server does not fire")

    # One message.

    @scenario
    async def test_it_is_a_timer_with_sane_limits(self) -> None:
        assert isinstance(self.timer, Timer)
        assert self.timer.limits == self.timer.limits
        assert self.timer.limits.horizon > 0
        assert self.timer.limits.late >= 0

    @scenario
    async def test_a_message_is_sent_at_its_time_and_not_before(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.timer.at(self.now() + 2 * self.step, queue, Outgoing(body="x", attributes={"k": "v"}), key="one")
        await self.pass_time(self.step)
        assert await self.arrived(queue, 0) == []
        await self.fire_time()
        (delivery,) = await self.taken(queue)
        assert delivery.body == "x"
        assert delivery.attributes.get("k") == "v"
        await self.fire_time()
        assert await self.arrived(queue, 0) == []

    @scenario
    async def test_a_message_for_the_past_is_sent_now(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.timer.at(self.now() - 3600, queue, Outgoing(body="x"), key="past")
        if self.timer.limits.late or self.slack:
            await self.pass_time(self.timer.limits.late + self.slack)
        assert await self.arrived(queue) == ["x"]

    @scenario
    async def test_the_messages_own_delay_is_ignored(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.timer.at(self.now() + self.step, queue, Outgoing(body="x", delay=600), key="delayed")
        await self.fire_time()
        assert await self.arrived(queue) == ["x"]

    @scenario
    async def test_each_key_has_its_own_message(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.set(queue, "b", key="two", steps=2)
        await self.set(queue, "a", key="one")
        await self.fire_time(2)
        assert await self.arrived(queue, 2) == ["a", "b"]

    @scenario
    async def test_the_same_key_replaces_what_it_had_set(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.set(queue, "old", key="one")
        await self.set(queue, "new", key="one", steps=2)
        await self.fire_time(2)
        assert await self.arrived(queue) == ["new"]

    @scenario
    async def test_a_cancelled_message_is_not_sent(self) -> None:
        queue = await self.make_queue()
        await self.set(queue, "x", key="one")
        assert await self.timer.cancel("one") is True
        assert await self.timer.cancel("one") is False
        await self.fire_time()
        assert await self.arrived(queue, 0) == []

    @scenario
    async def test_a_key_that_nothing_waits_under_is_not_cancelled(self) -> None:
        assert await self.timer.cancel("never-set") is False

    @scenario
    async def test_what_was_sent_is_not_cancelled(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.set(queue, "x", key="one")
        await self.fire_time()
        assert await self.timer.cancel("one") is False
        assert await self.arrived(queue) == ["x"]

    @scenario
    async def test_a_time_beyond_the_horizon_is_refused(self) -> None:
        queue = await self.make_queue()
        with pytest.raises(TimerError):
            await self.timer.at(self.now() + self.timer.limits.horizon + 3600, queue, Outgoing(body="x"), key="far")
        assert await self.timer.cancel("far") is False

    # Schedules.

    @scenario
    async def test_schedules_are_listed_by_name(self) -> None:
        queue = await self.make_queue()
        assert list(await self.timer.schedules()) == []
        for name in ("b", "a"):
            await self.timer.put_schedule(replace(self.schedule(queue, name=name), paused=name == "a"))
        listed = await self.timer.schedules()
        assert [(found.name, found.queue, found.paused) for found in listed] == [("a", queue, True), ("b", queue, False)]
        assert {str(found.trigger) for found in listed} == {str(self.make_trigger(self.step))}
        assert {found.message.body for found in listed} == {"tick"}

    @scenario
    async def test_a_schedule_fires_again_and_again(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.timer.put_schedule(self.schedule(queue))
        await self.fire_time(3)
        assert len(await self.arrived(queue, 2)) >= 2

    @scenario
    async def test_the_slot_is_put_into_the_body_where_the_timer_can(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        begin = self.now()
        await self.timer.put_schedule(self.schedule(queue, body="<slot>"))
        await self.fire_time(2)
        bodies = await self.arrived(queue)
        assert bodies
        for body in bodies:
            assert body == "<slot>" or begin < _instant(body) <= self.now()

    @scenario
    async def test_a_schedule_is_replaced_by_its_name(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.timer.put_schedule(self.schedule(queue, body="old"))
        await self.timer.put_schedule(self.schedule(queue, body="new"))
        assert len(await self.timer.schedules()) == 1
        await self.fire_time(2)
        assert set(await self.arrived(queue)) == {"new"}

    @scenario
    async def test_a_paused_schedule_does_not_fire_until_it_goes_on(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.timer.put_schedule(replace(self.schedule(queue), paused=True))
        await self.fire_time(2)
        assert await self.arrived(queue, 0) == []
        await self.timer.put_schedule(self.schedule(queue))
        await self.fire_time(2)
        assert await self.arrived(queue)

    @scenario
    async def test_a_deleted_schedule_is_gone(self) -> None:
        queue = await self.make_queue()
        await self.timer.put_schedule(self.schedule(queue))
        await self.timer.delete_schedule("tick")
        await self.timer.delete_schedule("tick")
        assert list(await self.timer.schedules()) == []
        await self.fire_time(2)
        assert await self.arrived(queue, 0) == []

    @scenario
    async def test_what_was_set_fires_after_close(self) -> None:
        self.needs_fires()
        queue = await self.make_queue()
        await self.set(queue, "x", key="one")
        await self.timer.close()
        await self.timer.close()
        await self.fire_time()
        assert await self.arrived(queue) == ["x"]


def _instant(slot: str) -> float:
    """A slot's Unix time: whole seconds, or ISO 8601 with its zone."""
    return float(slot) if slot.isdigit() else datetime.fromisoformat(slot).timestamp()
