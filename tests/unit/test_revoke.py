"""A revoked task leaves the timer, does not start, and stops where it runs; nothing else is hit."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cloudq import CloudQ, Retry, states
from cloudq.clock import ManualClock
from cloudq.errors import StoreRequired, TaskRevoked
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Done, Dropped, Outcome
from cloudq.runner import Revoked
from cloudq.worker import StopReason, Worker, WorkerOptions, stopping
from tests.unit.pacing import PacedClock
from tests.waiting import until

LEASE = 0.3
"""So that heartbeats come several times a second."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


@pytest.fixture
def app() -> Iterator[CloudQ]:
    clock = PacedClock()
    app = CloudQ("shop", broker=MemoryBroker(clock=clock, lease=LEASE), store=MemoryStore(clock), clock=clock)
    clock.go_with(app)
    yield app
    app.close()


@pytest.fixture
def work(app: CloudQ) -> Iterator[Callable[[], Worker]]:
    """Starts a worker, once the tasks are there."""
    workers: list[Worker] = []

    def start() -> Worker:
        workers.append(Worker(app, WorkerOptions(wait=0.1, grace=5.0, concurrency=2)))
        workers[0].start()
        return workers[0]

    yield start
    for worker in workers:
        worker.stop()
        worker.join(30)


# ---------------------------------------------------------------------------------------------- before it starts


def test_a_task_that_waits_three_days_is_gone_from_the_timer_once_it_is_revoked() -> None:
    clock = ManualClock(1_000_000.0)
    broker = MemoryBroker(clock=clock)
    app = CloudQ("shop", broker=broker, store=MemoryStore(clock=clock), clock=clock)
    ran: list[str] = []

    @app.task(name="t")
    def t(word: str) -> None:
        ran.append(word)

    result, other = t.options(delay="3d").delay("revoked"), t.options(delay="3d").delay("other")
    waiting: dict[Any, Any] = cast("Any", app.timer)._entries
    assert {("at", result.id), ("at", other.id)} <= waiting.keys()
    result.revoke()
    assert ("at", result.id) not in waiting
    assert ("at", other.id) in waiting
    assert result.state == states.REVOKED
    with pytest.raises(TaskRevoked):
        result.get(timeout=1)
    clock.advance(3 * 86_400.0)
    stats = asyncio.run(app.broker.stats("default"))
    assert stats.ready == 1
    app.close()


@pytest.mark.parametrize("options", [{"delay": "3d"}, {"delay": "1m", "ordering_key": "k"}])
def test_a_step_that_is_revoked_in_the_timer_ends_what_waits_for_it(options: Any) -> None:
    clock = ManualClock(1_000_000.0)
    app = CloudQ("shop", broker=MemoryBroker(clock=clock), store=MemoryStore(clock=clock), clock=clock)

    @app.task(name="t")
    def t() -> None: ...

    @app.task(name="told")
    def told(failure: Any) -> None: ...

    later = t.options(**options, link_error=told.s())
    result = (later.s() | t.si()).delay()
    assert result.parent is not None
    result.parent.revoke()
    assert result.parent.state == states.REVOKED
    assert result.state == states.FAILURE, "the step after it will not come"
    assert asyncio.run(app.broker.stats("default")).ready == 1, "its error link"
    app.close()


def test_revoking_needs_a_store() -> None:
    app = CloudQ("shop", broker=MemoryBroker())
    with pytest.raises(StoreRequired, match="revoking a task needs a store"):
        app.result("x").revoke()
    app.close()


# ---------------------------------------------------------------------------------------------- while it runs


def test_an_async_task_that_runs_is_cancelled_at_a_heartbeat(app: CloudQ, work: Callable[[], Worker]) -> None:
    began, told, may_end = threading.Event(), threading.Event(), threading.Event()

    @app.task(name="t")
    async def t() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            told.set()
            while not may_end.is_set():
                await asyncio.sleep(0.005)

    work()
    result = t.delay()
    assert began.wait(30)
    assert result.state == states.STARTED
    result.revoke()
    assert result.state == states.REVOKING
    assert told.wait(30)
    asyncio.run(app.clock.sleep(LEASE))  # more heartbeats, that cancel it no second time
    assert result.state == states.REVOKING
    assert not result.ready()
    may_end.set()
    with pytest.raises(TaskRevoked):
        result.get(timeout=30)
    assert result.state == states.REVOKED


def test_a_sync_task_that_runs_is_ended_inside_and_its_thread_goes_on(app: CloudQ, work: Callable[[], Worker]) -> None:
    began, ended = threading.Event(), threading.Event()
    passed: list[BaseException] = []

    @app.task(name="t")
    def t() -> None:
        began.set()
        try:
            while True:
                try:
                    time.sleep(0.002)
                except Exception as error:
                    passed.append(error)
        finally:
            ended.set()

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    worker = work()
    result = t.delay()
    assert began.wait(30)
    result.revoke()
    with pytest.raises(TaskRevoked):
        result.get(timeout=30)
    assert ended.is_set()
    assert passed == []
    assert [add.delay(i, i).get(timeout=30) for i in range(5)] == [0, 2, 4, 6, 8]
    until(lambda: worker._slots.free == worker._slots.total or not worker._flights)


def test_what_a_revoked_run_raises_on_its_way_out_is_neither_retried_nor_a_dead_letter(app: CloudQ, work: Callable[[], Worker]) -> None:
    began, runs = threading.Event(), []

    @app.task(name="t", retry=Retry(max_retries=3, delay=0))
    async def t() -> None:
        runs.append(1)
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise ConnectionError

    work()
    result = t.delay()
    assert began.wait(30)
    result.revoke()
    with pytest.raises(TaskRevoked):
        result.get(timeout=30)
    assert len(runs) == 1
    assert asyncio.run(app.broker.stats("default-dlq")).ready == 0


def test_a_run_may_go_on_where_that_is_asked_for(app: CloudQ, work: Callable[[], Worker]) -> None:
    began = threading.Event()

    @app.task(name="t")
    async def t() -> str:
        began.set()
        await app.clock.sleep(2 * LEASE)
        return "done"

    work()
    result = t.delay()
    assert began.wait(30)
    result.revoke(terminate=False)
    assert result.state == states.STARTED
    assert result.get(timeout=30) == "done"


def test_what_runs_of_a_revoked_workflow_stops_too(app: CloudQ, work: Callable[[], Worker]) -> None:
    began, after = threading.Event(), []

    @app.task(name="t")
    async def t() -> None:
        began.set()
        await asyncio.sleep(60)

    @app.task(name="then")
    def then() -> None:
        after.append(1)

    work()
    result = (t.s() | then.si()).delay()
    assert began.wait(30)
    result.revoke()
    assert result.parent is not None
    first = result.parent
    until(lambda: first.state == states.REVOKED)
    with pytest.raises(Exception, match="revoked"):
        result.get(timeout=30)
    assert after == []


def test_a_drain_waits_for_a_revoked_run(app: CloudQ) -> None:
    @app.task(name="t")
    def t() -> None:
        while True:
            time.sleep(0.002)

    result = t.delay()
    worker = Worker(app, WorkerOptions(wait=0.1, drain=True))
    worker.start()
    until(lambda: result.state == states.STARTED)
    result.revoke()
    assert worker.join(30) is StopReason.DRAINED
    assert result.state == states.REVOKED


# ---------------------------------------------------------------------------------------------- the exception in a thread


class Spinning:
    """A runner whose runs take a few bytecodes, or for ever."""

    def run_isolated(self, job: Any) -> Outcome:
        for _ in range(job.steps):
            pass
        return Done("ran")


class Job:
    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.revoked = False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # within a run it may hit a callback of the collector
def test_whenever_the_end_is_asked_for_it_hits_the_run_or_nothing() -> None:
    """The thread's own code between runs would die of it, and be seen."""
    rounds = 3_000
    begun: list[tuple[Job, stopping.Stop]] = []
    outcomes: list[Outcome] = []
    stray: list[BaseException] = []

    def serve() -> None:
        try:
            end = time.monotonic() + 60
            for number in itertools.count():  # a busy machine may need more until both have been seen
                if number >= rounds and ({*map(type, outcomes)} == {Done, Dropped} or time.monotonic() > end):
                    break
                job = Job(steps=number % 97 * 5)
                outcomes.append(stopping.run(cast("Any", Spinning()), cast("Any", job), lambda stop, job=job: begun.append((job, stop))))
                sum(range(50))
        except BaseException as error:
            stray.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread = threading.Thread(target=serve)
        thread.start()
        while thread.is_alive():
            if begun:
                job, stop = begun[-1]
                job.revoked = True
                stop()
                stop()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert stray == []
    assert len(outcomes) >= rounds
    assert {type(outcome) for outcome in outcomes} == {Done, Dropped}, "some were hit and some were over already"


def test_the_exception_is_no_exception_that_tasks_catch() -> None:
    assert not issubclass(Revoked, Exception)
