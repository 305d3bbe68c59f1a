"""What workers say of themselves, in the store and of a worker that runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cloudq import CloudQ, Retry, heartbeats
from cloudq.clock import ManualClock
from cloudq.errors import StoreUnavailable
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.store import StoreLimits
from cloudq.worker import Worker, WorkerOptions
from cloudq.worker import reporting as module
from tests.waiting import until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASTE", 0.0)
    monkeypatch.setattr(heartbeats, "interval", lambda limits: 0.02)


@pytest.fixture
def app() -> Iterator[CloudQ]:
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore(), retry=Retry(max_retries=1, delay=0))
    yield app
    app.close()


def _seen(app: CloudQ) -> list[Any]:
    return list(app.use_store(heartbeats.workers).values())


def test_a_worker_counts_as_gone_90_seconds_after_its_last_report() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        store = MemoryStore(clock)
        keys = [heartbeats.new_key() for _ in range(150)]
        assert len(set(keys)) == 150
        for key in keys:
            await heartbeats.report(store, key, {"pid": 1})
        assert set(await heartbeats.workers(store)) == set(keys)
        clock.advance(89)
        await heartbeats.report(store, keys[0], {"pid": 1})
        await heartbeats.withdraw(store, keys[1])
        clock.advance(2)
        assert set(await heartbeats.workers(store)) == {keys[0]}

    asyncio.run(scenario())


def test_a_store_that_is_paid_by_the_write_gets_a_report_each_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert heartbeats.interval(StoreLimits(value=1, members=1, metered=True)) == 30
    assert heartbeats.interval(StoreLimits(value=1, members=1)) == 5


def test_a_host_name_of_any_characters_makes_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "wörk 1")
    assert heartbeats.new_key().startswith("w-rk-1:")


def test_a_worker_says_what_runs_and_what_came_of_the_rest_and_takes_its_leave(app: CloudQ) -> None:
    began, go_on = threading.Event(), threading.Event()

    @app.task(name="holds")
    def holds() -> None:
        began.set()
        go_on.wait(60)

    @app.task(name="fails")
    def fails() -> None:
        raise ValueError

    worker = Worker(app, WorkerOptions(wait=0.1, concurrency=3))
    worker.start()
    try:
        until(lambda: _seen(app))
        fails.delay()
        held = holds.delay()
        assert began.wait(30)
        until(lambda: _seen(app)[0]["busy"] == 1 and _seen(app)[0]["counts"] == {"again": 1, "dead": 1})
        (found,) = _seen(app)
        assert (found["app"], found["queues"], found["concurrency"], found["state"]) == ("work", {"default": 1}, 3, "running")
        assert (found["tasks"], found["known"]) == (["fails", "holds"], 2)
        (run,) = found["running"]
        assert (run["id"], run["task"], run["queue"], run["attempt"]) == (held.id, "holds", "default", 0)
        assert abs(run["since"] - time.time()) < 60
        worker.stop()
        until(lambda: _seen(app)[0]["state"] == "stopping")
    finally:
        go_on.set()
        worker.stop()
        worker.join(60)
    assert _seen(app) == []


def test_a_worker_works_on_while_its_reports_go_nowhere_and_says_so_once(
    app: CloudQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[object] = []

    async def down(*given: object) -> None:
        tries.append(given)
        raise StoreUnavailable("no")

    @app.task
    def double(number: int) -> int:
        return number * 2

    worker = Worker(app, WorkerOptions(wait=0.1))
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING, "cloudq.worker"):
        broken.setattr(heartbeats, "report", down)
        worker.start()
        until(lambda: len(tries) >= 3)
        assert double.delay(4).get(30) == 8
        assert sum("could not be reported" in record.message for record in caplog.records) == 1
    until(lambda: _seen(app))
    worker.stop()
    worker.join(60)


def test_without_a_store_there_is_nothing_to_report_to() -> None:
    app = CloudQ("work", broker=MemoryBroker())
    worker = Worker(app, WorkerOptions(drain=True, wait=0.1))
    worker.start()
    worker.join(60)
    assert worker._reporter is None
    app.close()
