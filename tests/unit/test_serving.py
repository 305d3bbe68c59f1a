"""Deliveries that others bring: each is answered once its outcome is durable, and what cannot be finished comes again."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from cloudq import CloudQ, Retry, cron, records, settle, states
from cloudq.broker import Delivery
from cloudq.errors import BrokerUnavailable, ConfigError, StoreUnavailable
from cloudq.memory import MemoryBroker
from cloudq.middleware import Middleware
from cloudq.worker import serving
from cloudq.worker.serving import Answer, Serving
from cloudq_gcp.pushed import of_request
from tests.push_host import push


class Broken(MemoryBroker):
    """Takes nothing while ``away``."""

    away = False

    async def send(self, queue: str, messages: Any) -> Any:
        if self.away:
            raise BrokerUnavailable("it is away")
        return await super().send(queue, messages)


class World:
    """An app on a memory broker, and a host for it."""

    def __init__(self, *, concurrency: int = 4, store: bool = True, **settings: Any) -> None:
        self.broker = Broken()
        self.app = CloudQ("served", broker=self.broker, store="memory://" if store else None, default_queue="work", **settings)
        self.ran: list[Any] = []
        self.go = threading.Event()
        self.serving = Serving(self.app, concurrency=concurrency)

        @self.app.task(name="note")
        def note(value: int) -> int:
            self.ran.append(value)
            return value

        @self.app.task(name="anote")
        async def anote(value: int) -> int:
            self.ran.append(value)
            return value

        @self.app.task(name="waits")
        def waits() -> str:
            self.ran.append("waits")
            self.go.wait(60)
            return "over"

        @self.app.task(name="awaits")
        async def awaits() -> None:
            self.ran.append("awaits")
            try:
                await asyncio.sleep(60)
            finally:
                self.ran.append("cancelled")

    def delivery(
        self, task: str, *args: Any, group: str | None = None, receives: int = 0, body: str | None = None, **fields: Any
    ) -> Delivery:
        now = self.app.clock.time()
        text = json.dumps({"v": 1, "id": f"id-{task}", "task": task, "args": args, **fields}) if body is None else body
        return Delivery(
            queue="work", body=text, receipt=None, receives=receives, message_id="m", received=now, lease_until=now + 30, group=group
        )

    def bring(self, delivery: Delivery, seconds: float = 30.0) -> Future[Answer]:
        return self.app.io.submit(self.serving.serve(delivery, seconds))

    def serve(self, *args: Any, seconds: float = 30.0, **fields: Any) -> Answer:
        return self.bring(self.delivery(*args, **fields), seconds).result(60)

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, self.ran
            time.sleep(0.005)

    def sent(self, queue: str = "work") -> list[dict[str, Any]]:
        """What can be received."""
        found = self.app.use_broker(lambda broker: broker.receive(queue, max_messages=10, wait=0))
        return [json.loads(each.body) for each in found]


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(**settings))
        return worlds[-1]

    yield make
    for world in worlds:
        world.go.set()
        world.serving.stop(0)
        with suppress(TimeoutError):
            world.app.io.run(world.serving.close(), timeout=5)
        world.app.close()


def test_both_kinds_run_off_the_loop_that_serves_and_their_results_are_there_when_they_are_answered(make: Callable[..., World]) -> None:
    world = make()
    assert world.serve("note", 1) is Answer.DONE
    assert world.serve("anote", 2) is Answer.DONE
    assert (world.app.result("id-note").get(timeout=0.1), world.app.result("id-anote").get(timeout=0.1)) == (1, 2)
    assert world.serve("note", 1) is Answer.DONE  # a redelivery
    assert world.ran == [1, 2]


def test_what_is_no_message_and_what_fails_is_a_dead_letter_before_it_is_answered(make: Callable[..., World]) -> None:
    dead: list[str] = []

    class Hook(Middleware):
        def on_dead(self, message: Any, queue: str, outcome: Any) -> None:
            dead.append(outcome.reason)

    world = make(middleware=[Hook()])
    assert world.serve("note", body="{no json") is Answer.DONE
    assert world.serve("note", "x") is Answer.DONE
    first, second = world.sent("work-dlq")
    assert (first["dead"]["raw"], second["task"]) == ("e25vIGpzb24=", "note")
    assert len(dead) == 2


def test_what_cannot_be_made_durable_must_come_again(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SETTLE_TRIES", 1)
    world = make(store=False)
    world.broker.away = True
    assert world.serve("note", "x", seconds=5.0) is Answer.KEPT  # no time is left for a long pause
    world.broker.away = False
    assert world.serve("note", "x") is Answer.DONE
    assert len(world.sent("work-dlq")) == 1


def test_what_has_run_is_settled_for_as_long_as_its_delivery_has_time(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "MOST_PAUSE", 0.01)
    world = make()
    finish, tried = records.Claim.finish, []

    async def fails_at_first(claim: records.Claim, *args: Any, **more: Any) -> None:
        tried.append(1)
        if len(tried) <= 10:
            raise StoreUnavailable("it is away")
        await finish(claim, *args, **more)

    monkeypatch.setattr(records.Claim, "finish", fails_at_first)
    assert world.serve("note", 1, seconds=60.0) is Answer.DONE
    assert (len(tried), world.ran, world.app.result("id-note").state) == (11, [1], states.SUCCESS)


def test_an_error_of_the_store_that_nobody_foresaw_there_is_one_that_passes(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def without_credentials(*args: Any, **more: Any) -> Any:
        raise ConfigError("no usable credentials")

    world = make()
    world.broker.limits = world.broker.limits._replace(lease=0.3)
    renew, renewed = records.Claim.renew, []

    async def fails_at_first(claim: records.Claim, until: float) -> bool:
        renewed.append(until)
        return await (without_credentials() if len(renewed) == 1 else renew(claim, until))

    monkeypatch.setattr(records.Claim, "renew", fails_at_first)
    run = world.bring(world.delivery("waits"))
    world.until(lambda: len(renewed) > 1)
    with monkeypatch.context() as patched:
        patched.setattr(records, "claim", without_credentials)
        assert world.serve("note", 1) is Answer.DONE  # sent again, for later
    assert world.ran == ["waits"]
    world.go.set()
    assert run.result(60) is Answer.DONE


def test_no_more_than_the_concurrency_run_at_once(make: Callable[..., World]) -> None:
    world = make(concurrency=2)
    brought = [world.bring(world.delivery("waits", id=str(number))) for number in range(2)]
    world.until(lambda: len(world.ran) == 2)
    assert world.serve("note", 1) is Answer.BUSY
    world.go.set()
    assert [each.result(60) for each in brought] == [Answer.DONE] * 2
    assert world.serve("note", 1) is Answer.DONE


def test_a_task_that_would_not_end_in_time_is_given_up_and_counts_as_a_crash(make: Callable[..., World]) -> None:
    world = make(concurrency=3, crash_cap=2)
    assert world.serve("awaits", seconds=0.5) is Answer.DONE
    world.until(lambda: world.ran.count("cancelled") == world.ran.count("awaits"))  # none, where it had no time to begin
    again: list[dict[str, Any]] = []
    world.until(lambda: again.extend(world.sent()) or again)
    assert (again[0]["attempt"], again[0]["crashes"]) == (1, 1)
    assert world.serve("waits", seconds=0.5, crashes=1) is Answer.DONE
    (letter,) = world.sent("work-dlq")
    assert "crash loop" in letter["dead"]["reason"]
    assert not world.serving.full
    world.go.set()
    world.until(lambda: not world.serving._lost)
    assert world.app.result("id-waits").state == states.DEAD  # what the thread came to later counts for nothing


def test_a_time_limit_is_kept_in_a_thread_too(make: Callable[..., World]) -> None:
    world = make()
    began = time.monotonic()
    assert world.serve("waits", timeout=0.2) is Answer.DONE
    assert world.serve("awaits", timeout=0.2) is Answer.DONE
    assert time.monotonic() - began < 50
    assert [letter["dead"]["error"]["type"] for letter in world.sent("work-dlq")] == ["cloudq.errors.TimeLimitExceeded"] * 2


def test_a_process_whose_slots_are_lost_ends_itself(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "OVERRUN", 0.05)
    asked: list[int] = []
    monkeypatch.setattr(serving.os, "kill", lambda pid, number: asked.append(number))
    world = make(concurrency=2)
    assert world.serve("waits", timeout=0.05) is Answer.DONE
    world.until(lambda: asked)
    assert world.serve("awaits", timeout=0.05) is Answer.DONE
    assert asked == [15]


def test_after_a_stop_nothing_is_taken_and_what_does_not_end_is_given_back(make: Callable[..., World]) -> None:
    world = make()
    slow, aslow = world.bring(world.delivery("waits")), world.bring(world.delivery("awaits"))
    world.until(lambda: len(world.ran) == 2)
    world.serving.stop(0.2)
    assert world.serve("note", 1) is Answer.STOPPING
    assert (slow.result(60), aslow.result(60)) == (Answer.KEPT, Answer.KEPT)
    world.until(lambda: "cancelled" in world.ran)
    assert world.app.result("id-waits").state == states.QUEUED  # its claim is free: another may run it at once
    assert not world.sent()


def test_what_ends_within_the_grace_time_is_settled(make: Callable[..., World]) -> None:
    world = make()
    slow = world.bring(world.delivery("waits"))
    world.until(lambda: world.ran)
    world.serving.stop(60)
    world.go.set()
    assert slow.result(60) is Answer.DONE
    assert world.app.result("id-waits").get(timeout=0.1) == "over"


def test_a_revoked_run_is_ended_at_the_next_heartbeat(make: Callable[..., World]) -> None:
    world = make()
    world.broker.limits = world.broker.limits._replace(lease=0.3)
    run = world.bring(world.delivery("awaits"))
    world.until(lambda: world.ran)
    world.app.result("id-awaits").revoke()
    assert run.result(60) is Answer.DONE
    assert world.app.result("id-awaits").state == states.REVOKED


def test_progress_is_recorded_while_it_runs(make: Callable[..., World]) -> None:
    world = make()

    @world.app.task(name="reports", bind=True)
    def reports(self: Any) -> None:
        self.update_state("LOADING", {"done": 5})
        world.go.wait(60)

    run = world.bring(world.delivery("reports"))
    world.until(lambda: world.app.result("id-reports").state == "LOADING")
    world.go.set()
    assert run.result(60) is Answer.DONE


def test_a_message_whose_claims_end_without_an_outcome_is_dead_at_the_cap(make: Callable[..., World]) -> None:
    """Pushes that were refused are attempts too, so it is the claims that tell of crashes."""
    world = make(crash_cap=3)
    now = world.app.clock.time()
    for _ in range(3):
        job = world.serving.runner.admit(world.delivery("note", 1))
        job.delivery.lease_until = now - 1  # the process dies, and its claim runs out
        world.app.io.run(world.serving.runner.claim(job))
        assert job.outcome is None
    assert world.serve("note", 1) is Answer.DONE
    assert not world.ran
    (letter,) = world.sent("work-dlq")
    assert letter["dead"]["reason"].startswith("crash loop")


def test_an_ordered_message_is_never_sent_again(make: Callable[..., World]) -> None:
    world = make()

    @world.app.task(name="fails", retry=Retry(max_retries=1, delay=0))
    def fails() -> None:
        world.ran.append("fails")
        raise ValueError("no")

    assert world.serve("fails", group="k", receives=1) is Answer.KEPT
    assert not world.sent()
    assert world.serve("fails", group="k", receives=2) is Answer.DONE
    assert world.ran == ["fails"] * 2
    assert len(world.sent("work-dlq")) == 1


def test_a_message_that_is_a_moment_early_is_waited_for(make: Callable[..., World]) -> None:
    world = make()
    eta = time.time() + 0.2
    assert world.serve("note", 1, eta=eta) is Answer.DONE
    assert time.time() >= eta
    assert world.ran == [1]


def test_a_tick_of_cloud_scheduler_is_for_the_fire_before_it_was_published(make: Callable[..., World]) -> None:
    world = make()
    world.app.schedule("minutely", world.app["note"].s(5), cron("* * * * *"))
    published = datetime.now(UTC)
    slot = int(published.timestamp() // 60 * 60)
    for _ in range(2):  # it fires once, and is delivered twice
        pushed = of_request({}, push('{"v":1,"tick":"minutely","slot":"<slot>"}', publishTime=published.isoformat()))
        assert world.bring(pushed.delivery("work", 0.0, time.time() + 30)).result(60) is Answer.DONE
    assert world.ran == [5]
    assert world.app.result(f"minutely@{slot}").get(timeout=0.1) == 5
