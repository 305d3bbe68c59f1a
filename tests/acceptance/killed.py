"""Tasks and seams of a worker that dies: at the step that KILL_AT names, at its third message there, it ends itself by SIGKILL."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudq import CloudQ, Retry, states
from cloudq.adapters import AdapterContext, open_broker, open_store
from cloudq.broker import Broker, Delivery, Limits, Outgoing, QueueStats, SendError, SettleError
from cloudq.clock import SystemClock
from cloudq.middleware import Middleware
from cloudq.request import Request
from cloudq.store import ANY, Document, Expect, Page, Store, StoreLimits, Value
from tests.acceptance.ledger import Ledger

_FATAL = 3
"""So that some calls are past the step, and some have not come to it."""


class Fuse:
    """Counts the messages that come to the fatal step."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._seen = 0
        self._lock = threading.Lock()

    def reached(self, step: str, messages: int = 1) -> None:
        if step == self._step:
            with self._lock:
                self._seen += messages
                if self._seen >= _FATAL:
                    os.kill(os.getpid(), signal.SIGKILL)


fuse = Fuse(os.environ.get("KILL_AT", ""))
ledger = Ledger(Path(os.environ["LEDGER"]))
_context = AdapterContext(app="killed", clock=SystemClock())


class MortalBroker:
    """The broker that the environment names; sending and acking can be fatal."""

    def __init__(self, inner: Broker) -> None:
        self._inner = inner

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    async def send(self, queue: str, messages: Sequence[Outgoing]) -> Sequence[SendError | None]:
        answers = await self._inner.send(queue, messages)
        fuse.reached("after follow-up", len(messages))  # a link, the next attempt or a dead letter: a worker sends nothing else here
        return answers

    async def receive(self, queue: str, *, max_messages: int, wait: float) -> Sequence[Delivery]:
        return await self._inner.receive(queue, max_messages=max_messages, wait=wait)

    async def ack(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        fuse.reached("before ack", len(deliveries))
        answers = await self._inner.ack(deliveries)
        fuse.reached("after ack", len(deliveries))
        return answers

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[SettleError | None]:
        return await self._inner.extend(deliveries, seconds)

    async def stats(self, queue: str) -> QueueStats:
        return await self._inner.stats(queue)

    async def close(self) -> None:
        await self._inner.close()


class MortalStore:
    """The store that the environment names; having written what became of a task can be fatal."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def limits(self) -> StoreLimits:
        return self._inner.limits

    async def get(self, kind: str, key: str) -> Document | None:
        return await self._inner.get(kind, key)

    async def get_many(self, kind: str, keys: Sequence[str]) -> Sequence[Document | None]:
        return await self._inner.get_many(kind, keys)

    async def put(self, kind: str, key: str, value: Value, *, expect: Expect = ANY, ttl: float | None = None) -> str:
        version = await self._inner.put(kind, key, value, expect=expect, ttl=ttl)
        if value["state"] in states.TERMINAL and "followed" not in value:
            ledger.note("result", key)
        if value["state"] in states.TERMINAL | {states.RETRY}:
            fuse.reached("after result")
        return version

    async def add_member(self, kind: str, key: str, member: str, *, ttl: float | None = None) -> int:
        return await self._inner.add_member(kind, key, member, ttl=ttl)

    async def members(self, kind: str, key: str) -> frozenset[str]:
        return await self._inner.members(kind, key)

    async def delete(self, kind: str, key: str) -> None:
        await self._inner.delete(kind, key)

    async def list(self, kind: str, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        return await self._inner.list(kind, prefix=prefix, limit=limit, cursor=cursor)

    async def close(self) -> None:
        await self._inner.close()


class Mortality(Middleware):
    """Being about to run a task can be fatal."""

    def before_run(self, request: Request) -> None:
        fuse.reached("before run")


app = CloudQ(
    "killed",
    broker=MortalBroker(open_broker(os.environ["CLOUDQ_BROKER"], _context)),
    store=MortalStore(open_store(os.environ["CLOUDQ_STORE"], _context)),
    middleware=[Mortality()],
)


def _work(self: Any) -> None:
    ledger.note("run", self.request.id)
    time.sleep(0.03)
    fuse.reached("during")


@app.task(name="done", bind=True)
def done(self: Any, number: int) -> int:
    _work(self)
    return number * number


@app.task(name="retry", bind=True, retry=Retry(max_retries=2, delay=0))
def retry(self: Any, number: int) -> int:
    _work(self)
    if not self.request.retries:
        raise ConnectionError("the first attempt always fails")
    return number * number


@app.task(name="dead", bind=True)
def dead(self: Any, number: int) -> int:
    _work(self)
    raise ValueError("it always fails")


@app.task(name="follow", bind=True)
def follow(self: Any, square: int) -> int:
    ledger.note("follow", self.request.id)
    return square + 1
