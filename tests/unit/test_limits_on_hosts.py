"""Limits on every kind of host: what they send away is never counted as a crash, and what was unique stays so."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator

import pytest

from cloudq import CloudQ, limits
from cloudq.broker import Delivery, Limits
from cloudq.clock import ManualClock
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Later
from cloudq.runner import Runner
from cloudq.settle import settle
from cloudq.worker import Worker, WorkerOptions
from cloudq_aws.server import SQSServer, serve_in_thread
from tests.servers import AWS_ENV, use
from tests.unit.test_lambda_handler import Shop

WITHOUT_DELAYS = Limits(
    batch=10,
    batch_bytes=100_000,
    body=100_000,
    receive=10,
    wait=20.0,
    delay=0.0,
    hold=60.0,
    lease=60.0,
    extend=600.0,
    max_lease=3_600.0,
    ordering=True,
)


def work(app: CloudQ, done: list[float], count: int) -> None:
    worker = Worker(app, WorkerOptions(concurrency=5, wait=0.2))
    worker.start()
    try:
        end = time.monotonic() + 60
        while len(done) < count and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        worker.stop(hurry=True)
        worker.join(60)


def test_on_a_broker_that_cannot_delay_each_message_keeps_its_turn_and_is_delivered_once_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LATE", 60.0)  # a machine that stands still loses no turn
    app = CloudQ("held", broker=MemoryBroker(limits=WITHOUT_DELAYS), store=MemoryStore())
    ran: list[float] = []
    deferrals: list[int] = []

    @app.task(name="t", bind=True, rate_limit="8/s", ignore_result=True)
    def t(self: object) -> None:
        ran.append(time.time())
        deferrals.append(self.request.message.deferrals)  # type: ignore[attr-defined]

    app.send_many(t.s() for _ in range(12))
    before = time.time()
    work(app, ran, 12)
    app.close()
    assert len(ran) == 12
    assert max(deferrals) <= 1
    assert max(ran) - before >= 11 / 8 * 0.9


def test_on_a_broker_that_cannot_delay_waiting_for_a_seat_is_no_crash() -> None:
    app = CloudQ("held", broker=MemoryBroker(limits=WITHOUT_DELAYS), store=MemoryStore(), crash_cap=2)
    ran: list[float] = []

    @app.task(name="t", max_running=1, ignore_result=True)
    def t() -> None:
        time.sleep(1.0)
        ran.append(time.time())

    app.send_many(t.s() for _ in range(3))
    work(app, ran, 3)
    app.close()
    assert len(ran) == 3


def test_a_unique_call_that_a_limit_sends_away_waits_still() -> None:
    app = CloudQ("unique", broker=MemoryBroker(), store=MemoryStore())

    @app.task(name="t", unique=True, rate_limit="1/h")
    def t(number: int) -> None: ...

    async def come() -> type[object]:
        (delivery,) = await app.broker.receive("default", max_messages=1, wait=0)
        runner = Runner(app)
        job = runner.admit(delivery)
        await runner.claim(job)
        outcome = job.outcome or runner.run_isolated(job)
        await settle(app, job, outcome)
        await app.broker.ack([delivery])
        return type(outcome)

    t.delay(1)
    assert asyncio.run(come()) is not Later
    waiting = t.delay(2)
    assert asyncio.run(come()) is Later
    assert t.delay(2) == waiting
    app.close()


@pytest.fixture(scope="module")
def server() -> Iterator[SQSServer]:
    with serve_in_thread() as running:
        yield running


def test_in_a_function_what_is_over_a_limit_goes_back_and_what_has_ended_leaves_its_seat(
    server: SQSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use({**AWS_ENV, "AWS_ENDPOINT_URL": server.endpoint}, monkeypatch)
    shop = Shop(server, store=MemoryStore())

    def note(name: str) -> None:
        shop.ran.append(name)

    for task in (shop.app.task(name="seated", max_running=1)(note), shop.app.task(name="paced", rate_limit="1/m")(note)):
        for _ in range(3):
            task.delay(task.name)
    try:
        assert shop.handle(shop.batch()) == []
        assert sorted(shop.ran) == ["paced", "seated"]
        end = time.monotonic() + 60
        while shop.ran.count("seated") < 3 and time.monotonic() < end:  # a free seat at each invocation
            shop.handle(shop.batch())
            time.sleep(0.1)
        assert sorted(shop.ran) == ["paced", "seated", "seated", "seated"]
    finally:
        shop.close()


def test_where_workers_are_so_busy_that_each_message_comes_late_for_its_turn_the_task_gets_on() -> None:
    clock = ManualClock(1_000_000.0)
    app = CloudQ("busy", broker=MemoryBroker(clock=clock), store=MemoryStore(clock=clock), clock=clock)
    ran: list[float] = []

    @app.task(name="t", rate_limit="10/m", ignore_result=True)
    def t() -> None:
        ran.append(clock.time())

    app.send_many(t.s() for _ in range(12))
    runner = Runner(app)

    async def scenario() -> None:
        queue: deque[tuple[float, Delivery]] = deque()
        for _ in range(600):
            clock.advance(1)
            queue.extend((clock.time() + 20, each) for each in await app.broker.receive("default", max_messages=10, wait=0))
            while queue and queue[0][0] <= clock.time():  # it was behind others for 20 s, over three turns
                delivery = queue.popleft()[1]
                job = runner.admit(delivery)
                if job.outcome is None:
                    await runner.claim(job)
                await settle(app, job, job.outcome or runner.run_isolated(job))
                await app.broker.ack([delivery])

    asyncio.run(scenario())
    app.close()
    assert len(ran) == 12
    assert all(sum(begin <= each < begin + 60 for each in ran) <= 10 for begin in ran)
