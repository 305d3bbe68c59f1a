"""A result shows what became of a call, by the task's types, and says how it ended otherwise."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from cloudq import CloudQ, TaskExpired, TaskFailed, TaskRevoked, records, states
from cloudq import result as results
from cloudq.errors import ResultTimeout
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore
from cloudq.result import PART, GroupResult
from cloudq.store import Document


@pytest.fixture
def app() -> Iterator[CloudQ]:
    app = CloudQ("results", broker=MemoryBroker(), store=MemoryStore())

    @app.task(name="price")
    def price() -> Decimal:
        return Decimal("1.50")

    yield app
    app.close()


def _put(app: CloudQ, id: str, **document: Any) -> None:
    assert app.store is not None
    drive(app.store.put(records.KIND, id, {"task": "price", "attempt": 0, **document}))


def test_a_value_comes_back_by_the_tasks_return_type(app: CloudQ) -> None:
    _put(app, "x", state=states.SUCCESS, value="1.50")
    result = app.result("x")
    assert result.get() == Decimal("1.50")
    assert asyncio.run(app.AsyncResult("x").aget()) == Decimal("1.50")
    assert (result.state, result.status, result.ready(), result.successful(), result.failed()) == ("SUCCESS", "SUCCESS", True, True, False)
    assert result.result == result.info == Decimal("1.50")


@pytest.mark.parametrize(
    ("state", "kind"),
    [(states.FAILURE, TaskFailed), (states.DEAD, TaskFailed), (states.REVOKED, TaskRevoked), (states.EXPIRED, TaskExpired)],
)
def test_what_ended_otherwise_is_raised_or_handed_out(app: CloudQ, state: str, kind: type[TaskFailed]) -> None:
    _put(app, "x", state=state, reason="why", error={"type": "ValueError", "detail": "no", "traceback": "line 1"})
    result = app.result("x")
    with pytest.raises(kind) as caught:
        result.get()
    assert (caught.value.type, caught.value.detail, caught.value.task_id) == ("ValueError", "no", "x")
    error: Any = result.get(propagate=False)
    assert type(error) is kind
    assert result.traceback == "line 1"
    assert result.ready()
    assert not result.successful()


def test_nothing_known_is_pending_and_a_wait_for_it_ends_in_time(app: CloudQ) -> None:
    result = app.result("nobody")
    assert (result.state, result.info, result.result, result.traceback, result.record) == (states.PENDING, None, None, None, None)
    with pytest.raises(ResultTimeout, match="PENDING"):
        result.get(timeout=0.02)
    with pytest.raises(ResultTimeout):
        asyncio.run(result.aget(timeout=0.02))
    with pytest.raises(ResultTimeout):
        result.get(timeout=0)


def test_a_wait_ends_when_the_result_arrives(app: CloudQ) -> None:
    timer = threading.Timer(0.05, lambda: _put(app, "x", state=states.SUCCESS, value="2"))
    timer.start()
    assert app.result("x").get(timeout=30) == Decimal(2)


def test_progress_is_shown_while_it_runs(app: CloudQ) -> None:
    _put(app, "x", state=states.STARTED, progress="HALF", meta={"percent": 50})
    result = app.result("x")
    assert (result.state, result.info, result.ready()) == ("HALF", {"percent": 50}, False)


def test_what_has_ended_is_read_once(app: CloudQ) -> None:
    _put(app, "x", state=states.SUCCESS, value="1")
    result = app.result("x")
    assert result.ready()
    _put(app, "x", state=states.FAILURE)
    assert result.successful()
    assert not app.result("x").successful()


def test_forget_and_revoke_reach_the_store(app: CloudQ) -> None:
    _put(app, "x", state=states.SUCCESS, value="1")
    result = app.result("x")
    assert result.ready()
    result.forget()
    assert result.state == states.PENDING
    result.revoke()
    record = result.record
    assert record is not None
    assert record["revoked"] is True


def test_results_are_the_same_by_their_id(app: CloudQ) -> None:
    assert app.result("x") == app.result("x")
    assert len({app.result("x"), app.result("x"), app.result("y")}) == 2


def test_what_can_be_asked_can_be_awaited(app: CloudQ) -> None:
    _put(app, "x", state=states.STARTED, progress="HALF", until=9e12)

    async def ask() -> None:
        result = app.result("x")
        assert (await result.astate(), await result.aready(), (await result.arecord() or {})["state"]) == ("HALF", False, states.STARTED)
        await result.arevoke()
        assert await app.result("x").astate() == states.REVOKING
        await app.arevoke("y")
        assert (await app.result("y").arecord() or {})["revoked"]

    asyncio.run(ask())
    assert app.result("x").state == states.REVOKING


def test_of_a_large_group_that_nobody_works_off_only_a_part_is_read_at_each_look(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read, of = app.required_store(), list[int](), 10 * PART
    get_many = store.get_many

    async def counted(kind: str, ids: Sequence[str]) -> Sequence[Document | None]:
        read.append(len(ids))
        return await get_many(kind, ids)

    monkeypatch.setattr(store, "get_many", counted)
    whole: GroupResult[Decimal] = GroupResult("g", app, [app.result(f"g{index}") for index in range(of)])
    with pytest.raises(ResultTimeout):
        whole.get(timeout=0.2)
    assert read[0] == of + 1
    assert set(read[1:]) == {PART}
    for index in reversed(range(of)):
        _put(app, f"g{index}", state=states.SUCCESS, value="2")
    assert whole.get(timeout=0.2) == [Decimal(2)] * of
    assert sum(read[1:]) <= of + PART * (len(read) - 1)


@pytest.mark.parametrize("nested", [False, True])
def test_that_a_large_group_will_never_begin_is_seen_at_the_next_look(app: CloudQ, nested: bool) -> None:
    whole: GroupResult[Any] = GroupResult("g", app, [app.result(f"g{index}") for index in range(3 * PART)])
    asked = GroupResult("outer", app, [whole]) if nested else whole
    with pytest.raises(ResultTimeout):
        asked.get(timeout=0)
    _put(app, "g", state=states.FAILURE, reason="UPSTREAM", error={"type": "ValueError", "detail": "no", "traceback": ""})
    with pytest.raises(TaskFailed):
        asked.get(timeout=0)


def test_a_failure_outside_of_the_part_is_seen_at_the_next_look_at_all(app: CloudQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ALL_EVERY", 0.3)
    whole: GroupResult[Decimal] = GroupResult("g", app, [app.result(f"g{index}") for index in range(3 * PART)])
    with pytest.raises(ResultTimeout):
        whole.get(timeout=0)
    _put(app, f"g{3 * PART - 1}", state=states.FAILURE, error={"type": "ValueError", "detail": "no", "traceback": ""})
    with pytest.raises(TaskFailed):
        whole.get(timeout=30)
