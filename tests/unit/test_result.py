"""A result shows what became of a call, by the task's types, and says how it ended otherwise."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from cloudq import CloudQ, TaskExpired, TaskFailed, TaskRevoked, records, states
from cloudq.errors import ResultTimeout
from cloudq.io import drive
from cloudq.memory import MemoryBroker, MemoryStore


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
    assert app.result("x").get(timeout=5) == Decimal(2)


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
