"""On a broker without delays what is not due is held by the worker: no slot, no new delivery, nothing lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from cloudq import CloudQ, Retry
from cloudq.broker import Delivery, Limits, Outgoing
from cloudq.errors import DelayError
from cloudq.memory import MemoryBroker
from cloudq.outcome import Later
from cloudq.runner import Job
from cloudq.worker import Worker, WorkerOptions, holding
from cloudq.worker.flight import Flight
from cloudq.worker.holding import Holding

LIMITS = Limits(
    batch=10,
    batch_bytes=100_000,
    body=100_000,
    receive=10,
    wait=20.0,
    delay=0.0,
    hold=60.0,
    lease=1.0,
    extend=600.0,
    max_lease=3_600.0,
    ordering=True,
)


@pytest.fixture
def app() -> Iterator[CloudQ]:
    app = CloudQ("held", broker=MemoryBroker(limits=LIMITS), store=None)
    yield app
    app.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def working(app: CloudQ, **options: int) -> Worker:
    worker = Worker(app, WorkerOptions(**{"concurrency": 1, **options}))  # a receive waits for 20 s, and has all slots meanwhile
    worker.start()
    return worker


def left(app: CloudQ, queue: str = "default") -> list[Delivery]:
    return list(app.io.run(app.broker.receive(queue, max_messages=10, wait=0)))


def test_a_message_that_is_not_due_waits_in_the_worker_while_others_run(app: CloudQ) -> None:
    ran: list[tuple[str, float, int]] = []

    @app.task(bind=True, ignore_result=True)
    def note(self: object, name: str) -> None:
        ran.append((name, time.time(), self.request.receives))  # type: ignore[attr-defined]

    worker = working(app)
    try:
        began = time.time()
        note.apply_async(("late",), countdown=2.5)  # over two leases
        until(lambda: len(worker._holding) == 1)
        note.delay("now")
        until(lambda: len(ran) == 2)
    finally:
        worker.stop(hurry=True)
        worker.join(10)
    assert [(name, receives) for name, _, receives in ran] == [("now", 1), ("late", 1)]
    assert 2.5 <= ran[1][1] - began < 4
    assert not left(app)
    assert worker._slots.free == worker._slots.total


def test_a_retry_is_sent_again_at_once_and_held_until_its_time(app: CloudQ) -> None:
    ran: list[float] = []

    @app.task(retry=Retry(max_retries=1, delay=1.0, jitter=False), ignore_result=True)
    def fail_once() -> None:
        ran.append(time.time())
        if len(ran) == 1:
            raise RuntimeError("at first")

    worker = working(app)
    try:
        fail_once.delay()
        until(lambda: len(ran) == 2)
    finally:
        worker.stop(hurry=True)
        worker.join(10)
    assert 1.0 <= ran[1] - ran[0] < 2.5
    assert not left(app)


def test_a_stop_gives_back_what_is_held(app: CloudQ) -> None:
    @app.task(ignore_result=True)
    def note() -> None:
        raise AssertionError("it was not due")

    note.apply_async(countdown=50)
    worker = working(app)
    until(lambda: len(worker._holding) == 1)
    worker.stop(hurry=True)
    worker.join(10)
    assert len(left(app)) == 1
    assert worker._slots.free == worker._slots.total


def test_a_drain_does_not_wait_for_what_is_held(app: CloudQ) -> None:
    @app.task(ignore_result=True)
    def note() -> None: ...

    note.apply_async(countdown=50)
    worker = Worker(app, WorkerOptions(drain=True))
    worker.start()
    worker.join(10)
    assert len(left(app)) == 1


def test_what_finds_no_room_stays_away_by_its_lease(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "HELD", 1)
    ran: list[str] = []

    @app.task(ignore_result=True)
    def note(name: str) -> None:
        ran.append(name)

    for name in "abc":
        note.apply_async((name,), countdown=1.5)
    worker = working(app)
    try:
        until(lambda: worker.handled == 2)  # let go of, to come back
        assert ran == []
        until(lambda: len(ran) == 3)
    finally:
        worker.stop(hurry=True)
        worker.join(10)
    assert sorted(ran) == ["a", "b", "c"]


def test_an_unknown_task_is_remembered_as_unknown_while_it_is_held(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.unknown_task_grace = 1.5
    app.io.run(app.broker.send("default", [Outgoing(body='{"v":1,"id":"a","task":"nobody.knows","args":[],"sent":1}')]))
    app.broker.create_queue("default-dlq")  # type: ignore[attr-defined]
    worker = working(app)
    try:
        until(lambda: app.io.run(app.broker.stats(app.dead_letter_queue("default"))).ready == 1)
    finally:
        worker.stop(hurry=True)
        worker.join(10)
    assert not left(app)


def test_a_longer_delay_than_can_be_held_is_refused_at_the_call_without_a_timer(app: CloudQ) -> None:
    @app.task(ignore_result=True)
    def note() -> None: ...

    with pytest.raises(DelayError, match="60 s"):
        note.apply_async(countdown=61)


def test_nothing_is_held_that_a_timer_can_keep_or_that_belongs_to_a_group() -> None:
    def flight(group: str | None = None) -> Flight:
        return Flight(Job(Delivery(queue="q", body="", receipt=None, group=group)))

    def refuse(timer: bool, group: str | None, delay: float) -> bool:
        kept = Holding(LIMITS, timer=timer, busy=lambda: False, resume=lambda _: None)
        return not kept.hold(flight(group), Later(delay, "not due"))

    assert refuse(timer=True, group=None, delay=61)
    assert refuse(timer=False, group="g", delay=1)
