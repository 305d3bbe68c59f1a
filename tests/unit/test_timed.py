"""A delay that the broker cannot hold goes by the timer: a few at once, again while that may help, and told to the caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cloudq import CloudQ
from cloudq.broker import Outgoing, SendError
from cloudq.errors import BatchSendError, SendUnknown, TimerError, TimerUnavailable
from cloudq.fitting import Fitting
from cloudq.memory import MemoryBroker
from cloudq.memory.broker import DEFAULT
from cloudq.parcels import Answer, Parcel
from cloudq.timed import AT_ONCE, Timed
from cloudq.timer import Schedule, Timer, TimerLimits
from tests.waiting import until

HOUR = 3_600.0


class Busy:
    """``answer(number, key)`` may raise; nothing is answered while ``open`` is not set."""

    limits = TimerLimits(horizon=1e9, late=120.0)

    def __init__(self, answer: Callable[[int, str], None] = lambda number, key: None) -> None:
        self.answer = answer
        self.asked = self.now = self.most = 0
        self.set: dict[str, tuple[float, Outgoing]] = {}
        self.open = threading.Event()
        self.open.set()

    async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
        self.asked += 1
        number = self.asked
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.001)
            while not self.open.is_set():
                await asyncio.sleep(0.002)
            self.answer(number, key)
        finally:
            self.now -= 1
        self.set[key] = (when, message)

    async def cancel(self, key: str) -> bool:
        raise NotImplementedError

    async def schedules(self) -> Sequence[Schedule]:
        raise NotImplementedError

    async def put_schedule(self, schedule: Schedule) -> None:
        raise NotImplementedError

    async def delete_schedule(self, name: str) -> None:
        raise NotImplementedError

    async def close(self) -> None: ...


class Remote(MemoryBroker):
    def __init__(self) -> None:
        super().__init__(limits=DEFAULT._replace(local=False))
        self.sent: list[str] = []

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        self.sent += [message.body for message in messages]
        return await super().send(queue, messages)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CloudQ]]:
    monkeypatch.setattr("cloudq.parcels.PAUSES", (0.001, 0.01))
    apps: list[CloudQ] = []

    def make(timer: Timer, **settings: Any) -> CloudQ:
        app = CloudQ("timed", broker=Remote(), timer=timer, **settings)
        apps.append(app)

        @app.task(name="take")
        def take(n: int) -> None: ...

        return app

    yield make
    for app in apps:
        app.close()


def later(app: CloudQ, n: int = 0) -> Any:
    return app["take"].options(delay=HOUR).delay(n)


def throttled(times: int) -> Callable[[int, str], None]:
    def answer(number: int, key: str) -> None:
        if number <= times:
            raise TimerUnavailable(f"throttled for the {number}. time")

    return answer


def test_what_passes_is_tried_again_and_what_does_not_is_told_at_once(make: Any) -> None:
    timer = Busy(throttled(5))
    result = later(make(timer))
    assert (timer.asked, [*timer.set]) == (6, [result.id])

    def denied(number: int, key: str) -> None:
        raise TimerError("denied")

    timer = Busy(denied)
    with pytest.raises(TimerError, match="denied"):
        later(make(timer))
    assert timer.asked == 1


def test_a_timer_that_stays_away_is_given_up_with_its_last_error(make: Any) -> None:
    timer = Busy(throttled(10**9))
    with pytest.raises((TimerUnavailable, SendUnknown), match=r"throttled for the \d+\. time"):
        later(make(timer, send_timeout=0.5))
    assert timer.asked > 1


def test_a_coroutine_hears_it_too(make: Any) -> None:
    timer = Busy(throttled(3))
    app = make(timer)
    result = asyncio.run(app["take"].options(delay=HOUR).adelay(1))
    assert [*timer.set] == [result.id]


def test_many_are_set_a_few_at_a_time_and_all_of_them_in_the_end(make: Any) -> None:
    def now_and_then(number: int, key: str) -> None:
        if number % 3 == 0:
            raise TimerUnavailable("throttled")

    timer = Busy(now_and_then)
    app = make(timer)
    results = app.send_many(app["take"].s(n).set(delay=HOUR) for n in range(600))
    assert timer.set.keys() == {result.id for result in results}
    assert timer.most == AT_ONCE


def test_a_call_beside_many_does_not_wait_for_all_of_them(make: Any) -> None:
    timer = Busy()
    timer.open.clear()
    app = make(timer)
    with ThreadPoolExecutor(2) as pool:
        many = pool.submit(app.send_many, [app["take"].s(n).set(delay=HOUR) for n in range(400)])
        until(lambda: timer.now == AT_ONCE)
        alone = pool.submit(later, app)
        until(lambda: len(app.sender._callers) == 2 and not app.sender._inbox)
        timer.open.set()
        id = alone.result(30).id
        many.result(30)
    assert [*timer.set].index(id) < 3 * AT_ONCE


def test_those_whose_turn_comes_too_late_are_told_that_they_were_not_set_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudq.timed.AT_ONCE", 1)
    timer, told = Busy(throttled(1)), list[Answer]()

    async def scenario() -> None:
        timed = Timed(timer, Fitting(Remote()), time.time)
        for give_up in (time.monotonic() + 600, 0.0):
            outgoing = Outgoing(body="{}", delay=HOUR)
            timed.add(Parcel("q", outgoing, f"id-{give_up:.0f}", lambda _, answer: told.append(answer), give_up, {}))
        async with asyncio.timeout(30):
            while timed.busy:
                await asyncio.sleep(0)

    asyncio.run(scenario())
    first, second = told
    assert (first, timer.asked, len(timer.set)) == (None, 2, 1)
    assert isinstance(second, TimerUnavailable)
    assert "not asked for id-0" in str(second)
    assert "throttled" in str(second)


def test_an_app_that_is_idle_has_set_what_it_was_asked_for(make: Any) -> None:
    timer = Busy(throttled(3))
    timer.open.clear()
    app = make(timer)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(later, app)
        until(lambda: timer.now == 1)
        timer.open.set()
        app.io.run(app.sender.idle(), timeout=30)
        assert len(timer.set) == 1
        call.result(30)


def test_closing_tells_who_waits_for_the_timer(make: Any) -> None:
    timer = Busy()
    timer.open.clear()
    app = make(timer, send_timeout=600.0)
    with ThreadPoolExecutor(2) as pool:
        alone = pool.submit(later, app)
        until(lambda: timer.now == 1)
        many = pool.submit(app.send_many, [app["take"].s(n).set(delay=HOUR) for n in range(200)])
        until(lambda: timer.now == AT_ONCE)
        app.io.close(timeout=0.5)
        with pytest.raises(SendUnknown, match="before the app was closed"):
            alone.result(30)
        with pytest.raises(BatchSendError, match="before the app was closed") as caught:
            many.result(30)
    assert len(caught.value.failed) == 200
    assert timer.asked == AT_ONCE
    timer.open.set()
    later(app)  # as if nothing had been
    assert len(timer.set) == 1


def test_it_is_set_early_unless_that_would_hold_up_its_group(make: Any) -> None:
    timer = Busy()
    app = make(timer)
    for delay, key, ahead in ((HOUR, None, HOUR - 120), (HOUR, "g", HOUR), (10.0, "g", 10.0 - 120)):
        timer.set.clear()
        before = time.time()
        app["take"].options(delay=delay, ordering_key=key).delay(1)
        ((when, _),) = timer.set.values()
        assert before + ahead <= when <= time.time() + ahead
    assert app.broker.sent == []


def test_a_try_that_is_repeated_is_set_for_the_same_instant(make: Any) -> None:
    asked: list[float] = []

    class Noting(Busy):
        async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
            asked.append(when)
            await super().at(when, queue, message, key=key)

    later(make(Noting(throttled(3))))
    assert len(asked) == 4
    assert len(set(asked)) == 1
