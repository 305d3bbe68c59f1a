"""One run a key, whoever competes for it and however it ends; and one waiting call where calls are unique."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, Ignore, Retry, idempotency, records, states
from cloudq.broker import Delivery
from cloudq.clock import ManualClock
from cloudq.errors import ConfigError, QueueNotFound, StoreRequired
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.message import Message
from cloudq.outcome import Done, Dropped, Later, Outcome
from cloudq.runner import Job, Runner
from cloudq.settle import settle
from cloudq.sqlite import SQLiteStore
from cloudq.worker import Worker, WorkerOptions

LEASE = 30.0


@dataclass
class Order:
    id: int
    note: str = ""


class World:
    """An app on a clock that the test moves, and a host that does one step at a time."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock(1_000.0)
        self.app = CloudQ("shop", broker=MemoryBroker(clock=self.clock), store=MemoryStore(clock=self.clock), clock=self.clock)
        self.runs: Counter[str] = Counter()
        self.raising: list[BaseException] = []
        self.after: list[str] = []
        self.runner = Runner(self.app)

        @self.app.task(name="ship", **{"idempotency_key": "{order.id}", "window": "1h", **options})
        def ship(order: Order, place: str = "home") -> str:
            self.runs[str(order.id)] += 1
            if self.raising:
                raise self.raising.pop()
            return f"{order.id} to {place}, {self.runs[str(order.id)]}"

        @self.app.task(name="after")
        def after(value: str) -> None:
            self.after.append(value)

        self.ship, self.then = ship, after

    def next(self) -> Job:
        """Receive and claim what comes first."""
        (delivery,) = asyncio.run(self.app.broker.receive("default", max_messages=1, wait=0))
        return self.claimed(delivery)

    def claimed(self, delivery: Delivery) -> Job:
        job = self.runner.admit(delivery)
        if job.outcome is None:
            asyncio.run(self.runner.claim(job))
        return job

    def settle(self, job: Job) -> Outcome:
        outcome = job.outcome or self.runner.run_isolated(job)

        async def make_durable() -> None:
            await settle(self.app, job, outcome)
            await self.app.broker.ack([job.delivery])

        asyncio.run(make_durable())
        return outcome

    def ready(self) -> int:
        return asyncio.run(self.app.broker.stats("default")).ready


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.app.close()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "cloudq"):
        yield


# ---------------------------------------------------------------------------------------------- the key


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("{order.id", "is no format string"),
        ("{nobody.id}", "names 'nobody', which is no parameter of it"),
        ("{}", "which is no parameter"),
        ("{0}", "which is no parameter"),
        ("always", "all calls would have the same key"),
    ],
)
def test_a_key_that_cannot_be_filled_is_refused_where_the_task_is_made(key: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        World(idempotency_key=key)


def test_a_window_without_a_key_is_refused() -> None:
    app = CloudQ("shop", broker=MemoryBroker())
    with pytest.raises(ConfigError, match="window= belongs to idempotency_key="):
        app.task(name="t", window="1h")(lambda: None)


@pytest.mark.parametrize("options", [{"idempotency_key": "{x}"}, {"unique": True}])
def test_a_worker_of_an_app_without_a_store_does_not_start(options: Any) -> None:
    app = CloudQ("shop", broker=MemoryBroker())

    @app.task(name="t", **options)
    def t(x: int) -> None: ...

    with pytest.raises(StoreRequired, match=rf"{next(iter(options))}= of the task 't' needs a store"):
        Worker(app)


# ---------------------------------------------------------------------------------------------- one run


def test_a_duplicate_waits_while_the_first_runs_and_then_has_its_result(world: World) -> None:
    first = world.ship.delay(Order(7, "one"))
    second = world.ship.options(link=world.then.s()).delay(Order(7, "two"), place="work")
    one, two = world.next(), world.next()
    assert isinstance(two.outcome, Later)
    world.settle(two)
    assert second.state == states.QUEUED
    assert isinstance(world.settle(one), Done)
    world.clock.advance(two.outcome.delay)
    outcome = world.settle(world.next())
    assert isinstance(outcome, Dropped)
    assert first.get(timeout=1) == second.get(timeout=1) == "7 to home, 1"
    world.settle(world.next())
    assert world.after == ["7 to home, 1"], "its links are called"
    assert world.runs == {"7": 1}


def test_a_duplicate_delivered_twice_sends_the_same_links_and_never_runs(world: World) -> None:
    world.ship.delay(Order(7))
    world.settle(world.next())
    world.ship.options(link=world.then.s()).delay(Order(7))
    job = world.next()
    body, queue = job.delivery.body, job.delivery.queue
    world.settle(job)
    again = world.claimed(Delivery(queue=queue, body=body, receipt=None, receives=1, lease_until=world.clock.time() + LEASE))
    assert isinstance(again.outcome, Dropped)
    assert again.outcome.follow_ups
    assert world.runs == {"7": 1}


def test_other_keys_and_other_tasks_run(world: World) -> None:
    for order in (Order(7), Order(8)):
        world.ship.delay(order)

    @world.app.task(name="bill", idempotency_key=lambda order: str(order.id))
    def bill(order: Order) -> None:
        world.runs["billed"] += 1

    bill.delay(Order(7))
    bill.delay(Order(7))
    for _ in range(4):
        world.settle(world.next())
    assert world.runs == {"7": 1, "8": 1, "billed": 1}


def test_after_the_window_it_runs_again(world: World) -> None:
    for pause, runs in ((0, 1), (3_599, 1), (2, 2)):
        world.clock.advance(pause)
        world.ship.delay(Order(7))
        world.settle(world.next())
        assert world.runs["7"] == runs


def test_one_that_failed_frees_its_key(world: World) -> None:
    world.raising = [ValueError("no")]
    failed, second = world.ship.delay(Order(7)), world.ship.delay(Order(7))
    world.settle(world.next())
    assert failed.state == states.FAILURE
    assert isinstance(world.settle(world.next()), Done)
    assert second.get(timeout=1) == "7 to home, 2"


def test_a_duplicate_of_one_that_was_ignored_calls_no_links(world: World) -> None:
    world.raising = [Ignore()]
    world.ship.delay(Order(7))
    world.settle(world.next())
    second = world.ship.options(link=world.then.s()).delay(Order(7))
    assert isinstance(world.settle(world.next()), Dropped)
    assert second.get(timeout=1) is None
    assert world.ready() == 0


def test_a_retry_runs_with_the_key_that_its_first_attempt_had() -> None:
    world = World(retry=Retry(max_retries=2, delay=0))
    world.raising = [ConnectionError()]
    world.ship.delay(Order(7))
    world.settle(world.next())
    assert isinstance(world.settle(world.next()), Done)
    assert world.runs == {"7": 2}
    world.app.close()


def test_a_killed_claimant_frees_its_key_after_its_lease_and_one_that_lives_keeps_it(world: World) -> None:
    world.ship.delay(Order(7))
    killed = world.next()
    assert killed.claim is not None
    world.clock.advance(LEASE - 1)
    asyncio.run(world.runner.renew(killed, world.clock.time() + LEASE))
    world.clock.advance(LEASE - 1)
    duplicate = Message({"v": 1, "id": "dup", "task": "ship", "args": [{"id": 7}], "sent": 1.0}).encode()

    def deliver() -> Job:
        return world.claimed(Delivery(queue="default", body=duplicate, receipt=None, receives=1, lease_until=world.clock.time() + LEASE))

    waits = deliver()
    assert isinstance(waits.outcome, Later)
    assert waits.claim is not None
    drive(waits.claim.release())
    world.clock.advance(1.1)
    runs = deliver()
    assert runs.outcome is None
    assert isinstance(world.runner.run_isolated(runs), Done)


def test_a_key_whose_making_fails_is_a_failure_of_the_task() -> None:
    world = World(idempotency_key=lambda order, place="": 1 / 0)
    result = world.ship.delay(Order(7))
    world.settle(world.next())
    assert result.state == states.FAILURE
    assert world.runs == {}
    world.app.close()


class Yielding(MemoryStore):
    """Lets others in before each step, as a store over a network does."""

    async def put(self, *args: Any, **kwargs: Any) -> str:
        await asyncio.sleep(0)
        return await super().put(*args, **kwargs)

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return await super().get(*args, **kwargs)


def test_of_many_that_would_take_over_a_dead_claimants_key_one_does() -> None:
    """Among them the dead one's own message, delivered again."""
    clock = ManualClock(1_000.0)
    store = Yielding(clock=clock)

    async def enter(id: str, owner: str) -> bool:
        message, now = Message({"v": 1, "id": id, "task": "x"}), clock.time()
        claim = await records.claim(store, message, "q", owner=owner, now=now, until=now + LEASE, ttl=1e6)
        if not isinstance(claim, records.Claim):
            return False
        refusal = await idempotency.claim(store, message, "key", now=now, window=60.0, ttl=1e6)
        if refusal is not None:
            await claim.release()
        return refusal is None

    async def compete() -> list[bool]:
        return await asyncio.gather(*(enter(f"task-{number % 8}", f"owner-{number}") for number in range(16)))

    for _ in range(5):
        assert sum(asyncio.run(compete())) == 1
        clock.advance(LEASE + 1)  # it dies


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_sixteen_workers_that_hammer_one_key_run_it_once(kind: str, tmp_path: Path) -> None:
    broker, memory, runs, lock = MemoryBroker(), MemoryStore(), Counter[str](), threading.Lock()
    apps: list[CloudQ] = []
    for number in range(16):
        store = memory if kind == "memory" else SQLiteStore(tmp_path / "store.db", timeout=30)
        app = CloudQ(f"shop-{number}", broker=broker, store=store)

        @app.task(name="t", idempotency_key="{key}")
        def t(key: str) -> int:
            with lock:
                runs[key] += 1
            time.sleep(0.3)
            return runs[key]

        apps.append(app)
    workers = [Worker(app, WorkerOptions(concurrency=2, wait=0.1)) for app in apps]
    results = [apps[0]["t"].delay(key) for _ in range(24) for key in ("a", "b")]
    try:
        for worker in workers:
            worker.start()
        assert [result.get(timeout=60) for result in results] == [1] * len(results)
    finally:
        for worker in workers:
            worker.stop(hurry=True)
        for worker in workers:
            worker.join(60)
        for app in apps:
            app.close()
    assert runs == {"a": 1, "b": 1}


# ---------------------------------------------------------------------------------------------- unique


@pytest.fixture
def unique() -> Iterator[World]:
    world = World(idempotency_key="{order.id}", unique="10m")
    yield world
    world.app.close()


def test_a_call_that_waits_already_is_not_sent_again(unique: World) -> None:
    first = unique.ship.delay(Order(7))
    assert unique.ship.delay(Order(7), place="work") == first

    async def another() -> Any:
        return await unique.ship.adelay(Order(7))

    assert asyncio.run(another()) == first
    assert unique.ship.delay(Order(8)) != first
    assert unique.ready() == 2


def test_without_a_key_all_arguments_make_calls_the_same_however_they_are_given() -> None:
    app = CloudQ("shop", broker=MemoryBroker(), store=MemoryStore())

    @app.task(name="t", unique=True)
    def t(x: int, y: int) -> None: ...

    first = t.delay(1, 2)
    assert t.delay(1, y=2) == t.delay(y=2, x=1) == app.send_task("t", (1, 2)) == first
    assert t.delay(2, 1) != first
    app.close()


def test_it_is_freed_when_the_run_begins(unique: World) -> None:
    first = unique.ship.delay(Order(7))
    unique.next()
    assert unique.ship.delay(Order(7)) != first


def test_it_is_freed_by_a_failed_send(unique: World) -> None:
    with pytest.raises(QueueNotFound):
        unique.ship.options(queue="nowhere").delay(Order(7))

    async def again() -> None:
        await unique.ship.options(queue="nowhere").adelay(Order(7))

    with pytest.raises(QueueNotFound):
        asyncio.run(again())
    unique.ship.delay(Order(7))
    assert unique.ready() == 1


def test_a_caller_that_died_as_it_sent_holds_the_place_for_a_minute_only(unique: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        sys.exit()

    with monkeypatch.context() as dying:
        dying.setattr(type(unique.app.sender), "send", die)
        dying.setattr(idempotency, "release", _never)
        with pytest.raises(SystemExit):
            unique.ship.delay(Order(7))
    dead = unique.ship.delay(Order(7))
    assert unique.ready() == 0
    unique.clock.advance(61)
    assert unique.ship.delay(Order(7)) != dead
    assert unique.ready() == 1


async def _never(*_: object) -> None:
    """What a process that was killed does."""


def test_it_expires(unique: World) -> None:
    unique.ship.delay(Order(7))
    unique.clock.advance(601)
    unique.ship.delay(Order(7))
    assert unique.ready() == 2


def test_a_revoked_call_holds_no_place(unique: World) -> None:
    first = unique.ship.delay(Order(7))
    first.revoke()
    assert unique.ship.delay(Order(7)) != first


def test_of_calls_made_at_once_one_is_sent(tmp_path: Path) -> None:
    app = CloudQ("shop", broker=MemoryBroker(), store=SQLiteStore(tmp_path / "store.db", timeout=30))

    @app.task(name="t", unique=True)
    def t(x: int) -> None: ...

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(t.delay(1))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert asyncio.run(app.broker.stats("default")).ready == 1
    app.close()
