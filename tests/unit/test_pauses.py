"""A paused queue: in the store and in the worker."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cloudq import CloudQ, pauses
from cloudq.clock import ManualClock
from cloudq.errors import StoreUnavailable
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.worker import Worker, WorkerOptions
from cloudq.worker import pausing as module
from tests.waiting import until


def test_all_pauses_are_listed_and_a_second_pause_keeps_the_first_ones_time() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        names = [f"q{number:03}" for number in range(150)]
        for name in names:
            assert await pauses.pause(store, name, now=1.0)
        assert not await pauses.pause(store, names[0], now=2.0)
        assert await pauses.paused(store) == dict.fromkeys(names, 1.0)
        assert await pauses.resume(store, names[0])
        assert not await pauses.resume(store, names[0])
        assert set(await pauses.paused(store)) == set(names[1:])

    asyncio.run(scenario())


def test_a_worker_leaves_a_paused_queue_alone_from_its_start_and_takes_it_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.02)
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore(), queues=["other"])
    ran: list[int] = []

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    app.use_store(lambda store: pauses.pause(store, "default", now=1.0))
    worker = Worker(app, WorkerOptions(wait=0.1))
    worker.start()
    try:
        note.delay(1)
        note.options(queue="other").delay(2)
        until(lambda: ran == [2])
        assert worker._pollers["default"].paused
        app.use_store(lambda store: pauses.resume(store, "default"))
        until(lambda: ran == [2, 1])
        app.use_store(lambda store: pauses.pause(store, "default", now=1.0))
        until(lambda: worker._pollers["default"].paused)
        note.delay(3)
        note.options(queue="other").delay(4)
        until(lambda: ran == [2, 1, 4])
        assert worker._pollers["default"].healthy
    finally:
        worker.stop()
        worker.join(60)
        app.close()
    assert ran == [2, 1, 4]


def test_a_drain_does_not_wait_for_a_paused_queue() -> None:
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore())

    @app.task
    def never() -> None:
        raise AssertionError("it ran")

    never.delay()
    app.use_store(lambda store: pauses.pause(store, "default", now=1.0))
    worker = Worker(app, WorkerOptions(drain=True))
    worker.start()
    worker.join(60)
    assert worker.handled == 0
    app.close()


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a fault in a driver")])
def test_while_the_store_does_not_say_what_it_said_last_holds(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Poller:
        paused = False

        def pause(self) -> None:
            self.paused = True

        def resume(self) -> None:
            self.paused = False

    answers: list[Any] = [["q"], error, []]

    async def paused(_: object) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module.pauses, "paused", paused)
    poller, changes = Poller(), list[None]()
    pausing = module.Pausing(MemoryStore(), cast("Any", {"q": poller}), ManualClock(), lambda: changes.append(None))
    for is_paused, changed in ((True, 1), (True, 1), (False, 2)):
        drive(pausing.look())
        assert (poller.paused, bool(pausing.queues), len(changes)) == (is_paused, is_paused, changed)
