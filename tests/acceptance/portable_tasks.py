"""One task module, run unchanged on every host and broker; ``build()`` registers its tasks in an app for whoever calls them."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from cloudq import CloudQ, Ignore, Reject, Retry, Task
from tests.acceptance.ledger import Ledger


class Order(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    id: UUID
    total: Decimal
    placed: datetime
    seal: bytes


def build(ledger: Ledger, **settings: Any) -> CloudQ:
    """The app, with its tasks; each notes its runs."""
    app = CloudQ("portable", unknown_task_grace=1.5, **settings)

    def note(task: Task[..., Any]) -> int:
        """Note a run of this call; how many there were before."""
        id = task.request.id
        before = ledger.counts("run")[id]
        ledger.note("run", id)
        return before

    @app.task(name="add", bind=True)
    def add(self: Task[..., Any], x: int, y: int) -> int:
        note(self)
        return x + y

    @app.task(name="aadd", bind=True)
    async def aadd(self: Task[..., Any], x: int, y: int) -> int:
        note(self)
        await asyncio.sleep(0.01)
        return x + y

    @app.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="echo", bind=True)
    def echo(self: Task[..., Any], order: Order) -> Order:
        note(self)
        return order

    @app.task(name="flaky", bind=True, retry=Retry(max_retries=5, delay=0, on=(ConnectionError,)))
    def flaky(self: Task[..., Any]) -> int:
        before = note(self)
        if before < 2:
            raise ConnectionError("not yet")
        return self.request.retries

    @app.task(name="hopeless", bind=True, retry=Retry(max_retries=1, delay=0))
    def hopeless(self: Task[..., Any]) -> None:
        note(self)
        raise ValueError("it never works")

    @app.task(name="picky", bind=True, retry=Retry(max_retries=5, delay=0, never=(KeyError,)))
    async def picky(self: Task[..., Any]) -> None:
        note(self)
        raise KeyError("final")

    @app.task(name="refuses", bind=True)
    def refuses(self: Task[..., Any]) -> None:
        note(self)
        raise Reject("not for me")

    @app.task(name="ignores", bind=True)
    def ignores(self: Task[..., Any]) -> None:
        note(self)
        raise Ignore("nothing to do")

    @app.task(name="postpones", bind=True, retry=Retry(max_retries=3))
    def postpones(self: Task[..., Any]) -> float:
        if not note(self):
            ledger.note(f"at-{time.time():.3f}", self.request.id)
            raise self.retry(countdown=1)
        return time.time()

    @app.task(name="sleeps", bind=True, timeout=0.4)
    def sleeps(self: Task[..., Any]) -> None:
        note(self)
        for _ in range(100):  # so long that its time is over first, though the machine be held up
            time.sleep(0.05)

    @app.task(name="asleeps", bind=True, timeout=0.4)
    async def asleeps(self: Task[..., Any]) -> None:
        note(self)
        await asyncio.sleep(20)

    @app.task(name="big", bind=True)
    def big(self: Task[..., Any], size: int) -> str:
        note(self)
        return "x" * size

    @app.task(name="tells", bind=True)
    def tells(self: Task[..., Any], info: dict[str, Any]) -> str:
        note(self)
        return str(info["reason"])

    @app.task(name="parent", bind=True)
    def parent(self: Task[..., Any], child: str) -> None:
        note(self)
        add.apply_async((20, 22), task_id=child)

    app.schedule("sum", add.s(20, 3), "0 0 * * *")
    app.schedule("sums", add.s(20, 3) | aadd.s(1), "0 0 * * *")
    return app


if "PORTABLE_LEDGER" in os.environ:
    app = build(Ledger(Path(os.environ["PORTABLE_LEDGER"])), default_queue=os.environ["PORTABLE_QUEUE"])
