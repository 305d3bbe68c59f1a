"""Mistakes that type checkers find: each line marked ``# refused`` is an error in mypy and in basedpyright, and no other line is."""

from __future__ import annotations

from typing import Any

from cloudq import CloudQ, Task, chain, chord, group, shared_task, task

app = CloudQ("shop", broker="memory://")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(queue="slow")
async def fetch(url: str, *, limit: int) -> bytes:
    return url.encode()[:limit]


@app.task(bind=True)
def bound(self: Task[..., Any], x: int) -> float:
    return x / len(self.request.id)


@task
def library(name: str) -> None:
    print(name)


@shared_task(max_retries=3)
def other(name: str) -> str:
    return name


@app.task(colour="red")  # refused
def painted() -> None: ...


@app.task(timeout=[1])  # refused
def timed() -> None: ...


def calls() -> None:
    add("1")  # refused
    add.delay("1")  # refused
    add.delay()  # refused
    add.delay(1, 2, 3)  # refused
    add.delay(1, z=2)  # refused
    add.delay(1, y="2")  # refused
    add.delay_on_commit("1")  # refused
    add.si("1")  # refused
    add.options(delay="5m").delay("1")  # refused
    add.options(priority=1)  # refused
    add.options(delay=[1])  # refused
    add.apply_async((1,), nonsense=1)  # refused
    fetch.delay("u")  # refused
    fetch.delay("u", limit="1")  # refused
    bound.delay("1")  # refused
    bound.delay(bound, 1)  # refused
    library.delay(1)  # refused
    other.delay(None)  # refused
    text: str = add.delay(1).get()  # refused
    data: str = fetch.delay("u", limit=1).get()  # refused
    print(text, data)


def workflows() -> None:
    add.s(1) | 5  # refused
    add | add  # refused
    chain(add.s(1), 5)  # refused
    group(add, add)  # refused
    group(5)  # refused
    chord(group(add.s(1)), add)  # refused
    chord([add])  # refused
    (add.s(1) | add.s(2)).set(nonsense=1)  # refused
    numbers: list[int] = (add.s(1) | add.s(2)).delay().get()  # refused
    texts: list[str] = group(add.s(1)).delay().get()  # refused
    print(numbers, texts)


async def acalls() -> None:
    await add.adelay("1")  # refused
    await add.options(queue="slow").adelay("1")  # refused
    await fetch.adelay(1, limit=1)  # refused
    await fetch(1, limit=1)  # refused
    text: str = await fetch("u", limit=1)  # refused
    print(text)
