"""The memory timer passes the conformance suite, never loses a message, and makes up for one missed fire at most."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from cloudq.adapters import AdapterContext, Location
from cloudq.broker import CreatesQueues, Outgoing
from cloudq.clock import ManualClock
from cloudq.errors import ConfigError
from cloudq.memory import LyingBroker, MemoryBroker, MemoryTimer, adapter
from cloudq.memory.broker import DEFAULT
from cloudq.memory.lies import Lies
from cloudq.schedules import every
from cloudq.testing import TimerConformance
from cloudq.timer import Schedule


class TestMemoryTimer(TimerConformance):
    patience = 20.0
    slack = 0.0

    async def make_broker(self) -> MemoryBroker:
        self.clock = ManualClock()
        self.names = (f"queue-{number}" for number in itertools.count())
        return MemoryBroker(clock=self.clock)

    async def make_queue(self) -> str:
        name = next(self.names)
        assert isinstance(self.broker, CreatesQueues)
        self.broker.create_queue(name)
        return name

    async def make_timer(self) -> MemoryTimer:
        return MemoryTimer(self.broker, self.clock)

    def now(self) -> float:
        return self.clock.time()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


async def _bodies(broker: MemoryBroker | LyingBroker, queue: str = "q") -> list[str]:
    return [delivery.body for delivery in await broker.receive(queue, max_messages=10, wait=0)]


def test_a_refused_send_is_tried_each_second_until_it_is_taken() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = MemoryBroker(clock=clock)
        timer = MemoryTimer(broker, clock)
        await timer.at(clock.time() + 5, "q", Outgoing(body="x"), key="one")
        clock.advance(60)
        broker.create_queue("q")
        assert await _bodies(broker) == []
        clock.advance(1)
        assert await _bodies(broker) == ["x"]
        assert await timer.cancel("one") is False
        clock.advance(20)
        assert await _bodies(broker) == []

    asyncio.run(scenario())


def test_a_message_that_is_being_tried_again_can_be_cancelled() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = MemoryBroker(clock=clock)
        timer = MemoryTimer(broker, clock)
        await timer.at(clock.time(), "q", Outgoing(body="x"), key="one")
        assert await timer.cancel("one") is True
        broker.create_queue("q")
        clock.advance(10)
        assert await _bodies(broker) == []

    asyncio.run(scenario())


def test_no_message_is_lost_by_a_broker_that_lies() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        truth = MemoryBroker(clock=clock)
        truth.create_queue("q")
        broker = LyingBroker(truth, seed=3, rates=Lies(send_lost=0.4, send_refused=0.4))
        timer = MemoryTimer(broker, clock)
        for number in range(50):
            await timer.at(clock.time() + number % 7, "q", Outgoing(body=str(number)), key=str(number))
        clock.advance(60)
        seen: set[str] = set()
        while bodies := await _bodies(truth):
            seen.update(bodies)
        assert seen == {str(number) for number in range(50)}

    asyncio.run(scenario())


def test_each_fire_carries_its_slot() -> None:
    async def scenario() -> None:
        clock = ManualClock(1_000_000_003.5)
        broker = MemoryBroker(clock=clock)
        broker.create_queue("q")
        timer = MemoryTimer(broker, clock)
        await timer.put_schedule(Schedule(name="t", queue="q", message=Outgoing(body="at <slot>"), trigger=every(10)))
        clock.advance(30)
        assert await _bodies(broker) == ["at 1000000010", "at 1000000020", "at 1000000030"]

    asyncio.run(scenario())


def test_a_clock_that_jumps_makes_up_for_one_fire() -> None:
    class JumpingClock(ManualClock):
        """One that was asleep: it fires its alarms only after the jump."""

        def jump(self, seconds: float) -> None:
            self._now += seconds
            self.advance(0)

    async def scenario() -> None:
        clock = JumpingClock(1_000_000_003.5)
        broker = MemoryBroker(clock=clock)
        broker.create_queue("q")
        timer = MemoryTimer(broker, clock)
        await timer.put_schedule(Schedule(name="t", queue="q", message=Outgoing(body="<slot>"), trigger=every(10)))
        clock.jump(1000)
        assert await _bodies(broker) == ["1000001000"]  # the last: a worker would take an earlier one for missed
        clock.advance(10)
        assert await _bodies(broker) == ["1000001010"]

    asyncio.run(scenario())


def test_a_schedule_that_has_no_fire_any_more_stays_listed() -> None:
    class Never:
        def next_after(self, instant: float) -> float | None:
            return None

        def __str__(self) -> str:
            return "never"

    async def scenario() -> None:
        clock = ManualClock()
        timer = MemoryTimer(MemoryBroker(clock=clock), clock)
        await timer.put_schedule(Schedule(name="t", queue="q", message=Outgoing(body="x"), trigger=Never()))
        clock.advance(1000)
        assert [schedule.name for schedule in await timer.schedules()] == ["t"]

    asyncio.run(scenario())


def test_alarms_do_not_pile_up() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        broker = MemoryBroker(clock=clock)
        broker.create_queue("q")
        timer = MemoryTimer(broker, clock)
        for number in range(100, 0, -1):
            await timer.at(clock.time() + number, "q", Outgoing(body="x"), key=str(number))
        clock.advance(1000)
        assert clock.next_alarm() is None
        assert (await broker.stats("q")).ready == 100

    asyncio.run(scenario())


def test_it_needs_a_local_broker() -> None:
    with pytest.raises(ConfigError, match="memory broker only"):
        MemoryTimer(MemoryBroker(limits=DEFAULT._replace(local=False)), ManualClock())


@pytest.mark.parametrize("url", ["memory://", "memory://name", "memory://?lie=1"])
def test_its_url_has_no_name_and_no_options_and_it_needs_the_apps_broker(url: str) -> None:
    assert adapter.timer is not None
    with pytest.raises(ConfigError):
        adapter.timer(Location.parse(url), AdapterContext(app="test", clock=ManualClock()))


def test_its_url_opens_it_on_the_apps_broker() -> None:
    assert adapter.timer is not None
    clock = ManualClock()
    context = AdapterContext(app="test", clock=clock, broker=MemoryBroker(clock=clock))
    assert isinstance(adapter.timer(Location.parse("memory://"), context), MemoryTimer)
