"""On a broker without delays what is not due is held by the worker: no slot, no new delivery, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudq import CloudQ, Retry
from cloudq.broker import Delivery, Limits, Outgoing
from cloudq.errors import DelayError
from cloudq.memory import MemoryBroker
from cloudq.outcome import Later
from cloudq.runner import Job
from cloudq.worker import Worker, WorkerOptions, holding
from cloudq.worker.flight import Flight
from cloudq.worker.groups import Groups
from cloudq.worker.holding import Holding
from tests.unit.pacing import PacedClock
from tests.waiting import until

LIMITS = Limits(
    batch=10,
    batch_bytes=100_000,
    body=100_000,
    receive=10,
    wait=20.0,
    delay=0.0,
    hold=60.0,
    lease=0.5,
    extend=600.0,
    max_lease=3_600.0,
    ordering=True,
)


@pytest.fixture
def app() -> Iterator[CloudQ]:
    clock = PacedClock()
    app = CloudQ("held", broker=MemoryBroker(clock=clock, limits=LIMITS), store=None, clock=clock)
    clock.go_with(app)
    yield app
    app.close()


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
        ran.append((name, app.clock.time(), self.request.receives))  # type: ignore[attr-defined]

    worker = working(app)
    try:
        began = app.clock.time()
        note.apply_async(("late",), countdown=1.2)  # over two leases
        until(lambda: len(worker._holding) == 1)
        note.delay("now")
        until(lambda: len(ran) == 2)
    finally:
        worker.stop(hurry=True)
        worker.join(30)
    assert [(name, receives) for name, _, receives in ran] == [("now", 1), ("late", 1)]
    assert ran[1][1] - began > 1.19
    assert not left(app)
    assert worker._slots.free == worker._slots.total


def test_a_retry_is_sent_again_at_once_and_held_until_its_time(app: CloudQ) -> None:
    ran: list[float] = []

    @app.task(retry=Retry(max_retries=1, delay=0.5, jitter=False), ignore_result=True)
    def fail_once() -> None:
        ran.append(app.clock.time())
        if len(ran) == 1:
            raise RuntimeError("at first")

    worker = working(app)
    try:
        fail_once.delay()
        until(lambda: len(ran) == 2)
    finally:
        worker.stop(hurry=True)
        worker.join(30)
    assert ran[1] - ran[0] > 0.49
    assert not left(app)


def test_a_stop_gives_back_what_is_held(app: CloudQ) -> None:
    @app.task(ignore_result=True)
    def note() -> None:
        raise AssertionError("it was not due")

    note.apply_async(countdown=50)
    worker = working(app)
    until(lambda: len(worker._holding) == 1)
    worker.stop(hurry=True)
    worker.join(30)
    assert len(left(app)) == 1
    assert worker._slots.free == worker._slots.total


def test_a_drain_does_not_wait_for_what_is_held(app: CloudQ) -> None:
    @app.task(ignore_result=True)
    def note() -> None: ...

    note.apply_async(countdown=50)
    worker = Worker(app, WorkerOptions(drain=True))
    worker.start()
    worker.join(30)
    assert len(left(app)) == 1


def test_what_finds_no_room_stays_away_by_its_lease(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "HELD", 1)
    ran: list[str] = []
    before: list[int] = []

    @app.task(ignore_result=True)
    def note(name: str) -> None:
        ran.append(name)
        before.append(worker.handled)

    for name in "abc":
        note.apply_async((name,), countdown=0.8)
    worker = Worker(app, WorkerOptions(concurrency=1))
    worker.start()
    try:
        until(lambda: len(ran) == 3)
    finally:
        worker.stop(hurry=True)
        worker.join(30)
    assert sorted(ran) == ["a", "b", "c"]
    assert before[0] == 2  # let go of, to come back


def test_an_unknown_task_is_remembered_as_unknown_while_it_is_held(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.unknown_task_grace = 0.8
    app.io.run(app.broker.send("default", [Outgoing(body='{"v":1,"id":"a","task":"nobody.knows","args":[],"sent":1}')]))
    app.broker.create_queue("default-dlq")  # type: ignore[attr-defined]
    worker = working(app)
    try:
        until(lambda: app.io.run(app.broker.stats(app.dead_letter_queue("default"))).ready == 1)
    finally:
        worker.stop(hurry=True)
        worker.join(30)
    assert not left(app)


def test_a_longer_delay_than_can_be_held_is_refused_at_the_call_without_a_timer(app: CloudQ) -> None:
    @app.task(ignore_result=True)
    def note() -> None: ...

    with pytest.raises(DelayError, match="60 s"):
        note.apply_async(countdown=61)


def test_nothing_is_held_that_waits_better_elsewhere() -> None:
    def flight(group: str | None = None) -> Flight:
        return Flight(Job(Delivery(queue="q", body="", receipt=None, group=group)))

    def refuse(timer: bool, group: str | None, delay: float) -> bool:
        kept = Holding(LIMITS, timer=timer, busy=lambda: False, resume=lambda _: None)
        return not kept.hold(flight(group), Later(delay, "not due"))

    assert refuse(timer=True, group=None, delay=61)
    assert refuse(timer=False, group="g", delay=61)


@pytest.mark.parametrize("store", [None, "memory://"])
def test_an_ordered_message_that_waits_for_a_deploy_is_held_and_keeps_its_attempts_and_its_place(store: str | None) -> None:
    clock = PacedClock(speed=40.0)
    broker = MemoryBroker(clock=clock)
    old = CloudQ("old", broker=broker, store=None, clock=clock)
    new = CloudQ("new", broker=broker, store=store, clock=clock)
    clock.go_with(new)
    ran: list[tuple[int, int]] = []

    @new.task(name="t", bind=True, ignore_result=True)
    def note(self: object, number: int) -> None:
        ran.append((number, self.request.receives))  # type: ignore[attr-defined]

    for number in range(3):
        note.options(ordering_key="k").delay(number)
    worker = working(old, concurrency=5)
    began = clock.time()
    until(lambda: clock.time() > began + 60)  # it has been looked at several times
    assert len(worker._holding) == 1
    worker.stop(hurry=True)
    worker.join(30)
    assert worker._slots.free == worker._slots.total
    worker = working(new, concurrency=5)
    until(lambda: len(ran) == 3)
    worker.stop(hurry=True)
    worker.join(30)
    old.close()
    new.close()
    assert [number for number, _ in ran] == [0, 1, 2]
    assert max(receives for _, receives in ran) <= 3


def test_what_waits_behind_a_held_one_is_let_go_of_once() -> None:
    head, second, third, other = (Flight(Job(Delivery(queue="q", body="", receipt=None, group=group))) for group in "ggga")
    groups = Groups()
    assert [groups.enter(each) for each in (head, second, third, other)] == [True, False, False, True]
    assert groups.clear(head) == [second, third]
    assert groups.clear(head) == []
    assert groups.leave(head, skip_rest=True) == []
    assert groups.enter(second), "the group is free"
    assert groups.clear(head) == [], "it has left"
    assert not groups.enter(third)


def test_a_held_one_that_is_due_at_once_gives_back_the_slots_behind_it_once(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    @app.task(name="t")
    def note(number: int) -> None:
        ran.append(number)

    for number in range(4):
        note.options(ordering_key="k").delay(number)
    go, early = Worker._go, [True]

    def holds_the_first(self: Worker, flight: Flight) -> None:
        if early:
            early.clear()
            self._conclude(flight, Later(0.0, "not due by a hair"))
        else:
            go(self, flight)

    monkeypatch.setattr(Worker, "_go", holds_the_first)
    worker = working(app, concurrency=5)
    until(lambda: ran == [0, 1, 2, 3])
    worker.stop(hurry=True)
    worker.join(30)
    assert worker._slots.free == worker._slots.total
