"""Events: what workers and callers note, how it is written, and how it is followed."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cloudq import CloudQ, Retry, events
from cloudq.clock import ManualClock
from cloudq.errors import StoreRequired, StoreUnavailable
from cloudq.events import Events, Follower
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.store import Document
from cloudq.worker import Worker, WorkerOptions


@pytest.fixture
def app() -> Iterator[CloudQ]:
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore(), retry=Retry(max_retries=1, delay=0), events=True)
    yield app
    app.close()


def _documents(app: CloudQ) -> list[Document]:
    """What is written, once all is."""
    assert app.store is not None
    assert app.events is not None
    app.io.run(app.events.flush())
    return [document for _, document in drive(app.store.list(events.KIND, limit=1000)).items]


def _written(app: CloudQ) -> list[dict[str, Any]]:
    found = [event for document in _documents(app) for event in document.value["events"]]
    return sorted(found, key=lambda event: event["at"])


def _drain(app: CloudQ) -> None:
    worker = Worker(app, WorkerOptions(wait=0.1, drain=True))
    worker.start()
    worker.join(60)


def test_each_step_of_a_task_is_an_event_and_so_are_workers_that_come_and_go(app: CloudQ) -> None:
    @app.task(name="good")
    def good() -> None: ...

    @app.task(name="bad")
    def bad() -> None:
        raise KeyError("secret")

    fine, wrong, never = good.delay(), bad.delay(), good.delay()
    app.revoke(never.id)
    _drain(app)
    found = _written(app)

    def of(id: str) -> list[tuple[Any, ...]]:
        return [(each["event"], each["attempt"], each.get("error")) for each in found if each.get("id") == id]

    assert of(fine.id) == [("sent", 0, None), ("started", 0, None), ("succeeded", 0, None)]
    assert of(wrong.id) == [
        ("sent", 0, None),
        ("started", 0, None),
        ("retried", 0, "KeyError"),
        ("started", 1, None),
        ("failed", 1, "KeyError"),
    ]
    assert of(never.id) == [("sent", 0, None), ("revoked", 0, None)]
    (online,) = [each for each in found if each["event"] == "online"]
    assert found[-1]["event"] == "offline"
    assert {each["worker"] for each in found if "worker" in each} == {online["worker"]}
    assert {each["queue"] for each in found if "id" in each} == {"default"}
    assert "secret" not in str(found)


def test_what_many_threads_note_is_written_once_and_in_few_documents(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LINGER", 60.0)
    noted = app.events
    assert noted is not None

    def note(thread: int) -> None:
        for number in range(500):
            noted.note("sent", took=float(thread * 500 + number))

    threads = [threading.Thread(target=note, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["took"] for event in _written(app)) == [float(number) for number in range(4000)]
    assert len(_documents(app)) <= 4000 / events.BATCH + 10


def test_a_store_that_is_away_fails_no_call_and_no_task(
    app: CloudQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert app.store is not None
    put = app.store.put

    async def away(kind: str, *args: Any, **options: Any) -> str:
        if kind == events.KIND:
            raise StoreUnavailable("no")
        return await put(kind, *args, **options)

    monkeypatch.setattr(app.store, "put", away)

    @app.task
    def double(number: int) -> int:
        return number * 2

    with caplog.at_level(logging.WARNING, "cloudq.events"):
        result = double.delay(4)
        _drain(app)
        assert result.get(5) == 8
        app.io.run(app.events.flush()) if app.events else None
        assert [record.message for record in caplog.records] == ["events could not be written, and are lost: no"]
        monkeypatch.undo()
        double.delay(4)
        assert [event["event"] for event in _written(app)] == ["sent"]
        assert "were lost; they are written again" in caplog.records[-1].message


def test_what_waits_to_be_written_is_bounded(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 5)
    monkeypatch.setattr(events, "LINGER", 60.0)
    assert app.events is not None
    for number in range(9):
        app.events.note("sent", took=number)
    assert [event["took"] for event in _written(app)] == [0, 1, 2, 3, 4]


def test_closing_the_app_writes_what_waits(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LINGER", 60.0)
    assert app.events is not None
    assert app.store is not None
    app.events.note("online")
    app.close()
    assert len(drive(app.store.list(events.KIND)).items) == 1
    app.events.note("offline")
    app.close()
    assert len(drive(app.store.list(events.KIND)).items) == 2


def test_events_are_off_unless_asked_for_and_need_a_store() -> None:
    quiet = CloudQ("quiet", broker=MemoryBroker(), store=MemoryStore())
    assert quiet.events is None
    assert quiet.hooks.after_send == ()
    bare = CloudQ("bare", broker=MemoryBroker(), events=True)

    @bare.task
    def work() -> None: ...

    with pytest.raises(StoreRequired, match="events needs a store"):
        work.delay()
    with pytest.raises(StoreRequired, match="events needs a store"):
        Worker(bare)


def test_who_follows_sees_each_event_once_also_where_it_was_written_late() -> None:
    async def scenario() -> None:
        clock = ManualClock(1_000_000.0)
        store = MemoryStore(clock)

        async def write(name: str, at: float) -> None:
            await store.put(events.KIND, events._key(at, name), {"events": [{"event": name, "at": at}]}, ttl=events.TTL)

        async def look() -> list[str]:
            return [each["event"] for each in await follower.look(clock.time())]

        start = clock.time()
        await write("before", start - 1)
        follower = Follower(store, start)
        assert await look() == []
        await write("b", start + 2)
        await write("a", start + 1)
        clock.advance(3)
        assert await look() == ["a", "b"]
        await write("late", start + 0.5)
        assert await look() == ["late"]
        clock.advance(7)
        for second in range(30):
            await write(f"{second}", clock.time() - 5)
            assert await look() == [f"{second}"]
            clock.advance(1)
        assert len(follower._seen) <= events.LAG + 1
        many = [f"m{number:03}" for number in range(250)]
        for number, name in enumerate(many):
            await write(name, clock.time() + number / 1000)
        assert await look() == many
        assert next(each["event"] for each in await Follower(store, start - 2).look(clock.time())) == "before"

    asyncio.run(scenario())


def test_an_event_expires_after_an_hour() -> None:
    clock = ManualClock()
    app = CloudQ("work", broker=MemoryBroker(), store=MemoryStore(clock), clock=clock, events=True)
    assert isinstance(app.events, Events)
    app.events.note("online")
    assert len(_written(app)) == 1
    clock.advance(3601)
    assert _written(app) == []
    app.close()
