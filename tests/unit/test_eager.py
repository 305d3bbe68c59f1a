"""An eager call goes through codec and runner as a worker's would, here and now."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from cloudq import CloudQ, Ignore, Reject, Retry, TaskFailed, states
from cloudq.errors import ArgumentsError
from cloudq.memory import MemoryBroker


@pytest.fixture
def app() -> CloudQ:
    return CloudQ("eager", broker=MemoryBroker(), task_always_eager=True)


def test_values_go_through_the_codec_both_ways(app: CloudQ) -> None:
    seen: list[Any] = []

    @app.task(name="t")
    def t(when: datetime) -> datetime:
        seen.append(when)
        return when

    now = datetime.now(UTC)
    result = t.delay(now)
    assert result.get() == now
    assert seen[0] == now
    assert seen[0] is not now
    assert asyncio.run(app.broker.stats("default")).ready == 0
    with pytest.raises(ArgumentsError):
        t.delay("no time")  # type: ignore[arg-type]


def test_retries_run_at_once_and_the_last_error_is_the_result(app: CloudQ) -> None:
    runs: list[int] = []

    @app.task(name="t", retry=Retry(max_retries=3, delay="1h"))
    def t() -> None:
        runs.append(1)
        raise ValueError("always")

    result = t.delay()
    assert len(runs) == 4
    with pytest.raises(TaskFailed, match="always"):
        result.get()
    assert result.state == states.FAILURE


def test_an_endless_retry_ends_all_the_same(app: CloudQ) -> None:
    @app.task(name="t", retry=Retry(max_retries=None, delay=0, jitter=False))
    def t() -> None:
        raise ValueError

    assert "still retrying" in (t.delay().record or {})["reason"]


def test_links_run_with_the_result_and_error_links_with_the_error(app: CloudQ) -> None:
    seen: list[Any] = []

    @app.task(name="tell")
    def tell(value: Any, extra: str = "") -> None:
        seen.append((value if isinstance(value, str) else value["error"]["type"], extra))

    @app.task(name="t")
    def t(kind: str) -> str:
        match kind:
            case "bad":
                raise ValueError
            case "ignore":
                raise Ignore
            case "reject":
                raise Reject("no")
            case _:
                return "value"

    call = t.options(link=tell.s("link"), link_error=tell.s("error"))
    states_seen = [call.delay(kind).state for kind in ("good", "bad", "ignore", "reject")]
    assert states_seen == [states.SUCCESS, states.FAILURE, states.SUCCESS, states.DEAD]
    assert seen == [("value", "link"), ("ValueError", "error"), ("cloudq.errors.Reject", "error")]


def test_async_tasks_run_with_and_without_a_running_loop(app: CloudQ) -> None:
    @app.task(name="t")
    async def t(x: int) -> int:
        await asyncio.sleep(0)
        return x

    assert t.delay(1).get() == 1

    async def inside() -> None:
        assert t.delay(2).get() == 2
        result = await t.adelay(3)
        assert await result.aget() == 3
        assert [each.get() for each in await app.asend_many([t.s(4)])] == [4]

    asyncio.run(inside())


def test_delays_are_not_waited_for_and_what_is_over_is_over(app: CloudQ) -> None:
    @app.task(name="t")
    def t() -> int:
        return 1

    assert t.options(delay="3d").delay().get() == 1
    assert t.options(expires=datetime(2020, 1, 1, tzinfo=UTC)).delay().state == states.EXPIRED


def test_nested_calls_keep_their_own_request(app: CloudQ) -> None:
    @app.task(name="inner", bind=True)
    def inner(self: Any) -> str:
        assert self.request.is_eager
        return str(self.request.parent_id)

    @app.task(name="outer", bind=True)
    def outer(self: Any) -> bool:
        told = inner.delay().get()
        return bool(told == self.request.id)

    assert outer.delay().get() is True


def test_the_result_needs_no_store_and_a_batch_runs_at_once(app: CloudQ) -> None:
    @app.task(name="t", ignore_result=True)
    def t() -> int:
        return 1

    with app.batch():
        result = t.delay()
        assert result.successful()
    result.revoke()
    result.forget()
    assert [each.state for each in app.send_many([t.s(), t.s()])] == [states.SUCCESS] * 2
