"""What a critical reading found: work that was lost or done twice where several things went wrong at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from cloudq import CloudQ, Retry, group, states
from cloudq.broker import Delivery
from cloudq.clock import ManualClock
from cloudq.errors import TimerError
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.outcome import Again, Done, Dropped, Later, Outcome
from cloudq.runner import Job, Runner
from cloudq.settle import settle
from cloudq.worker.serving import Answer, Serving

NINE = 1_800_003_600  # a whole hour


class World:
    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock(NINE)
        self.app = CloudQ("read", broker=MemoryBroker(clock=self.clock), store=MemoryStore(clock=self.clock), clock=self.clock, **settings)
        self.ran: list[Any] = []

        @self.app.task(name="note")
        def note(what: Any = "ran") -> Any:
            self.ran.append(what)
            return what

    def delivery(self, body: str, *, receives: int = 1, sent: float | None = None) -> Delivery:
        now = self.clock.time()
        return Delivery(queue="default", body=body, receipt=None, receives=receives, sent=sent, received=now, lease_until=now + 30)

    def job(self, delivery: Delivery) -> Job:
        runner = Runner(self.app)
        job = runner.admit(delivery)
        if job.outcome is None:
            asyncio.run(runner.claim(job))  # keys are made in a thread
        return job

    def finish(self, job: Job, *, delay: float | None = None) -> Outcome:
        outcome = job.outcome or Runner(self.app).run_isolated(job)
        if isinstance(outcome, Again) and delay is not None:
            outcome = outcome._replace(delay=delay)
        drive(settle(self.app, job, outcome))
        return outcome

    def turn(self, *, delay: float | None = None) -> None:
        """Work off what is in the queue now."""
        for delivery in drive(self.app.broker.receive("default", max_messages=10, wait=0)):
            self.finish(self.job(delivery), delay=delay)
            drive(self.app.broker.ack([delivery]))


def tick(slot: object = NINE, **more: object) -> str:
    return json.dumps({"v": 1, "tick": "hourly", "slot": slot, **more})


@pytest.mark.parametrize(("trigger", "catch_up"), [("0 * * * *", "none"), ("* * * * *", "latest")])
def test_a_tick_whose_worker_was_killed_is_not_taken_for_a_missed_one(trigger: str, catch_up: Any) -> None:
    world = World()
    world.app.schedule("hourly", world.app["note"].s(), trigger, catch_up=catch_up)
    assert world.job(world.delivery(tick())).outcome is None  # and then it was killed
    world.clock.advance(310)
    assert isinstance(world.finish(world.job(world.delivery(tick(), receives=2))), Done)


def test_a_tick_that_was_missed_ends_as_expired() -> None:
    world = World()
    world.app.schedule("hourly", world.app["note"].s(), "0 * * * *", catch_up="none")
    world.clock.advance(300)
    assert isinstance(world.finish(world.job(world.delivery(tick()))), Dropped)
    assert world.app.result(f"hourly@{NINE}").state == states.EXPIRED


def test_a_tick_without_a_slot_is_for_its_first_sending_also_after_it_waited_for_a_deploy() -> None:
    world = World(unknown_task_grace=10_000)
    job = world.job(world.delivery(tick("<slot>"), sent=NINE + 2.0))
    assert isinstance(job.outcome, Later)
    world.finish(job)
    world.clock.advance(3700)
    world.app.schedule("hourly", world.app["note"].s(), "0 * * * *", catch_up="all")
    world.turn()
    assert world.app.result(f"hourly@{NINE}").get(timeout=1) == "ran"


def test_a_duplicate_has_the_value_of_a_run_whose_own_result_was_ignored() -> None:
    world = World()

    @world.app.task(name="charge", idempotency_key="{order}")
    def charge(order: int) -> str:
        return f"receipt-{order}"

    charge.options(ignore_result=True).delay(7)
    world.turn()
    (charge.s(7) | world.app["note"].s()).delay()
    world.turn()
    world.turn()
    assert world.ran == ["receipt-7"]


def test_revoking_a_chords_member_between_its_retries_fails_the_chord() -> None:
    world = World()

    @world.app.task(name="flaky", retry=Retry(max_retries=3, on=(ValueError,)))
    def flaky() -> None:
        raise ValueError

    result = (group(flaky.si(), world.app["note"].s(1)) | world.app["note"].s()).delay()
    world.turn(delay=3600.0)  # longer than a queue holds: in the timer
    assert result.parent is not None
    world.app.revoke(next(each.id for each in result.parent.children if each.state == states.RETRY))  # type: ignore[attr-defined]
    for _ in range(3):
        world.clock.advance(3600)
        world.turn()
    assert result.state == states.FAILURE


@pytest.mark.parametrize("lost", ["the answer", "the fact"])
def test_a_task_whose_timer_answers_strangely_is_revoked_all_the_same(lost: str) -> None:
    world = World()
    result = world.app["note"].options(delay="3d").delay()
    timer = world.app.timer
    assert timer is not None
    cancel = timer.cancel

    async def strange(key: str) -> bool:
        await cancel(key)
        if lost == "the answer":
            raise TimerError("no answer within 10 s")
        return False

    timer.cancel = strange  # type: ignore[method-assign]
    result.revoke()
    assert result.state == states.REVOKED


def test_an_async_task_that_had_not_begun_when_its_time_was_over_does_not_begin_later() -> None:
    app = CloudQ("served", broker=MemoryBroker(), store="memory://")
    app.declare_queue("work")
    ran: list[str] = []
    blocked, go_on = threading.Event(), threading.Event()

    @app.task(name="blocks")
    async def blocks() -> None:
        blocked.set()
        go_on.wait(60)  # a fault of this task, which holds up the others

    @app.task(name="charge")
    async def charge() -> None:
        ran.append("charged")

    def brought(task: str) -> Delivery:
        now = app.clock.time()
        body = json.dumps({"v": 1, "id": task, "task": task, "args": []})
        return Delivery(queue="work", body=body, receipt=None, received=now, lease_until=now + 30)

    serving = Serving(app, concurrency=4)
    first = app.io.submit(serving.serve(brought("blocks"), 200.0))
    assert blocked.wait(30)
    second = app.io.submit(serving.serve(brought("charge"), 0.5))
    assert second.result(30) is Answer.DONE  # sent again, as a crash
    go_on.set()
    assert first.result(30) is Answer.DONE
    time.sleep(0.2)
    assert ran == []
    serving.stop(0.0)
    app.io.submit(serving.close()).result(30)
    app.close()


def test_what_a_limit_sends_away_is_not_sent_again_meanwhile() -> None:
    world = World()

    @world.app.task(name="one", unique=True, max_running=1)
    def one() -> None: ...

    first = one.delay()
    job = world.job(*drive(world.app.broker.receive("default", max_messages=1, wait=0)))
    assert job.outcome is None  # it runs, so that another may wait
    second = one.delay()
    assert second.id != first.id
    away = world.job(*drive(world.app.broker.receive("default", max_messages=1, wait=0)))
    assert isinstance(away.outcome, Later)
    assert one.delay().id == second.id  # between the claim and the sending away
    world.finish(away)
    assert one.delay().id == second.id


def test_a_run_keeps_its_key_however_soon_results_expire() -> None:
    world = World(result_expires=600)

    @world.app.task(name="long", idempotency_key="{order}", window="1m")
    def long(order: int) -> None: ...

    long.delay(7)
    delivery = drive(world.app.broker.receive("default", max_messages=1, wait=0))[0]
    job = world.job(delivery)
    for _ in range(60):
        world.clock.advance(15)
        asyncio.run(Runner(world.app).renew(job, world.clock.time() + 30))
        drive(world.app.broker.extend([delivery], 30))
    long.delay(7)
    duplicate = world.job(*drive(world.app.broker.receive("default", max_messages=1, wait=0)))
    assert isinstance(duplicate.outcome, Later)
