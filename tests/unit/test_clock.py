"""The manual clock moves by hand and the system clock by itself, with the same alarms."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from cloudq.clock import Clock, ManualClock, SystemClock


@pytest.mark.parametrize("clock", [ManualClock(), SystemClock()])
def test_both_are_clocks(clock: Clock) -> None:
    assert isinstance(clock, Clock)


def test_a_manual_clock_stands_still() -> None:
    clock = ManualClock(100.0)
    assert (clock.time(), clock.time()) == (100.0, 100.0)
    clock.advance(2.5)
    assert clock.time() == 102.5


def test_alarms_fire_in_order_each_at_its_own_instant() -> None:
    clock = ManualClock(0.0)
    fired: list[tuple[str, float]] = []
    for name, when in (("b", 2.0), ("a", 1.0), ("b2", 2.0), ("late", 9.0)):
        clock.call_at(when, lambda name=name: fired.append((name, clock.time())))  # type: ignore[misc]
    clock.advance(5)
    assert fired == [("a", 1.0), ("b", 2.0), ("b2", 2.0)]
    assert clock.time() == 5.0
    assert clock.next_alarm() == 9.0


def test_an_alarm_set_by_an_alarm_fires_in_the_same_advance() -> None:
    clock = ManualClock(0.0)
    fired: list[float] = []

    def again() -> None:
        fired.append(clock.time())
        clock.call_at(clock.time() + 1, again)

    clock.call_at(1.0, again)
    clock.advance(3)
    assert fired == [1.0, 2.0, 3.0]


def test_an_alarm_in_the_past_fires_at_the_next_advance_and_time_does_not_go_back() -> None:
    clock = ManualClock(100.0)
    fired: list[float] = []
    clock.call_at(50.0, lambda: fired.append(clock.time()))
    clock.advance(0)
    assert fired == [100.0]


def test_a_cancelled_alarm_does_not_fire() -> None:
    clock = ManualClock(0.0)
    fired: list[str] = []
    cancel = clock.call_at(1.0, lambda: fired.append("cancelled"))
    clock.call_at(1.0, lambda: fired.append("kept"))
    cancel()
    cancel()
    clock.advance(2)
    cancel()
    assert fired == ["kept"]
    assert clock.next_alarm() is None


def test_a_manual_sleep_ends_when_the_clock_is_moved_from_any_thread() -> None:
    clock = ManualClock()

    async def scenario() -> None:
        sleeper = asyncio.create_task(clock.sleep(10))
        await asyncio.sleep(0)
        clock.advance(9.5)
        await asyncio.sleep(0)
        assert not sleeper.done()
        await asyncio.to_thread(clock.advance, 0.5)
        async with asyncio.timeout(10):
            await sleeper

    asyncio.run(scenario())


def test_a_cancelled_sleep_leaves_no_alarm() -> None:
    clock = ManualClock()

    async def scenario() -> None:
        sleeper = asyncio.create_task(clock.sleep(10))
        await asyncio.sleep(0)
        sleeper.cancel()
        await asyncio.gather(sleeper, return_exceptions=True)

    asyncio.run(scenario())
    assert clock.next_alarm() is None


def test_no_sleep_at_all_needs_no_advance() -> None:
    asyncio.run(ManualClock().sleep(0))


def test_the_system_clock_is_the_machines() -> None:
    before = time.time()
    assert before - 5 <= SystemClock().time() <= time.time() + 5


def test_the_system_clock_fires_in_order_and_not_what_was_cancelled() -> None:
    clock = SystemClock()
    for unit in (0.02, 0.2, 2.0):
        fired: list[str] = []
        done = threading.Event()
        now = clock.time()
        clock.call_at(now + 3 * unit, done.set)
        clock.call_at(now + 2 * unit, lambda fired=fired: fired.append("second"))  # type: ignore[misc]
        clock.call_at(now - 1, lambda fired=fired: fired.append("first"))  # type: ignore[misc]
        cancel = clock.call_at(now + unit, lambda fired=fired: fired.append("cancelled"))  # type: ignore[misc]
        cancel()
        in_time = clock.time() < now + unit
        assert done.wait(30)
        if in_time:  # else a busy machine was too late to cancel it
            break
    assert fired == ["first", "second"]


def test_a_system_alarm_can_set_another() -> None:
    clock = SystemClock()
    done = threading.Event()

    def again() -> None:
        clock.call_at(0, done.set)

    clock.call_at(0, again)
    assert done.wait(30)


def test_a_cancelled_system_alarm_is_forgotten() -> None:
    clock = SystemClock()
    clock.call_at(clock.time() + 0.01, lambda: None)()
    clock.call_at(clock.time() + 3600, lambda: None)()
    asyncio.run(clock.sleep(0.001))
