"""What users write: every line passes mypy --strict and basedpyright strict. Never run, only checked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from cloudq import (
    AsyncResult,
    Chain,
    CloudQ,
    Group,
    GroupResult,
    Retry,
    Signature,
    Task,
    TaskFailed,
    chain,
    chord,
    group,
    shared_task,
    task,
)

app = CloudQ("shop", broker="memory://", store="memory://")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(queue="emails", retry=Retry(max_retries=5, on=(ConnectionError,)), timeout="30s", expires=timedelta(hours=1))
def send(to: str, *, copies: int = 1) -> str:
    return to * copies


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(queue="slow")
async def crawl(url: str, depth: int = 1) -> list[bytes]:
    assert_type(await fetch(url), bytes)
    return [await fetch(url)] * depth


@app.task(bind=True, autoretry_for=(OSError,), retry_backoff=True, max_retries=5)
def bound(self: Task[..., Any], x: int) -> float:
    assert_type(self.request.retries, int)
    self.update_state("PROGRESS", {"done": x})
    if x < 0:
        raise self.retry(countdown=10)
    return x / 2


@app.task(bind=True)
async def abound(self: Task[..., Any], x: int) -> float:
    return x / len(self.request.id)


@task
def library(name: str) -> None:
    print(name)


@shared_task(name="library.other", ignore_result=True)
def other(name: str) -> str | None:
    return name or None


class Sums:
    """A task made of a method stays callable as one."""

    @staticmethod
    @app.task
    def total(values: list[int]) -> int:
        return sum(values)


def calls() -> None:
    assert_type(add(1, 2), int)
    assert_type(add.delay(1), AsyncResult[int])
    assert_type(add.delay(1, y=2).get(timeout=10), int)
    assert_type(send.delay("a@b.c", copies=2).get(), str)
    assert_type(fetch.delay("u"), AsyncResult[bytes])
    assert_type(bound.delay(3), AsyncResult[float])
    assert_type(bound(3), float)
    assert_type(abound.delay(3).get(), float)
    assert_type(library.delay("n"), AsyncResult[None])
    assert_type(other.delay("n").get(), str | None)
    assert_type(Sums.total.delay([1]).get(), int)
    assert_type(add.options(delay="5m", queue="slow").delay(1, 2), AsyncResult[int])
    assert_type(add.options(countdown=3).options(expires=60).delay(x=1), AsyncResult[int])
    assert_type(send.apply_async(("a@b.c",), {"copies": 2}, countdown=60), AsyncResult[str])
    assert_type(send.apply_async(("a@b.c",), eta=datetime.now(UTC) + timedelta(days=1), task_id="mine"), AsyncResult[str])
    assert_type(add.s(1, 2), Signature[int])
    assert_type(add.si(1, 2).delay(), AsyncResult[int])
    assert_type(add.apply((1, 2)).get(), int)
    assert_type(fetch.apply(("u",)).get(), bytes)
    assert_type(app.send_many(add.s(i, i) for i in range(3)), list[AsyncResult[int]])
    assert_type(app.send_task("elsewhere.task", [1]), AsyncResult[Any])
    add.apply_async((1, 2), link=send.s(), link_error=[library.si("x")], headers={"trace": "1"})
    with app.batch():
        add.delay(1, 2)
    result = add.delay(1)
    try:
        result.get(timeout=1)
    except TaskFailed as failure:
        assert_type(failure.task_id, str)
    print(result.ready(), result.state, result.id)


def workflows() -> None:
    assert_type(fetch.s("u") | send.s(copies=2), Chain[str])
    assert_type((fetch.s("u") | send.s() | add.s(2)).delay().get(timeout=10), int)
    assert_type(chain(add.s(1, 2), send.s()), Chain[str])
    assert_type(chain(add.s(1, 2)).delay(), AsyncResult[int])
    assert_type(chain(add.s(i) for i in range(3)), Chain[Any])
    assert_type(group(add.s(i, i) for i in range(10)), Group[int])
    assert_type(group(add.s(1, 1), add.s(2, 2)), Group[int])
    assert_type(group(add.s(1, 1) | send.s(), send.s("x")), Group[str])
    assert_type(group(add.s(i, i) for i in range(10)).delay(), GroupResult[int])
    assert_type(group(add.s(1, 1)).delay().get(timeout=10), list[int])
    assert_type([child.get() for child in group(add.s(1, 1)).delay().children], list[int])
    assert_type(group(add.s(1, 1)) | Sums.total.s(), Chain[int])
    assert_type(group(group(add.s(1, 1)), group(add.s(2, 2))), Group[list[int]])
    assert_type(add.s(1) | group(fetch.s(), fetch.s()), Chain[list[bytes]])
    assert_type(chord((add.s(i, i) for i in range(3)), send.s()), Chain[str])
    assert_type(chord([add.s(1, 1)])(Sums.total.s(), queue="slow"), AsyncResult[int])
    assert_type(chord(group(add.s(1, 1), send.s("x")), Sums.total.s().set(queue="slow")).apply_async(countdown=3).get(), int)
    assert_type(add.starmap([(1, 2), (3, 4)]), Signature[list[int]])
    assert_type(send.map(["a", "b"]).delay().get(), list[str])
    assert_type(add.chunks(zip(range(10), range(10), strict=True), 3), Group[list[int]])
    whole: Chain[int] = (fetch.s("u") | add.s(2)).on_error(library.s()).link(send.s()).set(queue="slow")
    assert_type(whole.clone().apply().get(), int)
    result = (add.s(1, 2) | send.s()).delay()
    assert_type(result.parent, AsyncResult[Any] | None)
    mixed = group(add.s(1, 1), fetch.s("u"), group(send.s("x")))
    print(len(mixed), mixed.delay().completed_count())


async def acalls() -> None:
    assert_type(await add.adelay(1, y=2), AsyncResult[int])
    assert_type(await (await crawl.adelay("u", depth=2)).aget(timeout=10), list[bytes])
    assert_type(await crawl("u"), list[bytes])
    assert_type(await abound(3), float)
    assert_type(await add.options(queue="slow").adelay(1), AsyncResult[int])
    assert_type(await (add.s(1, 2) | send.s()).adelay(), AsyncResult[str])
    assert_type(await (await group(add.s(1, 2)).adelay()).aget(), list[int])
    async with app.abatch():
        await fetch.adelay("u")
