"""What becomes of prepared calls: held back, told from their doubles, sent, recorded. Written once, for blocking callers and coroutines."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cloudq import calls, records
from cloudq.bulk import Bulk, bulk_of
from cloudq.calls import Prepared
from cloudq.errors import BatchSendError, ConfigError, StoreError
from cloudq.io import drive
from cloudq.message import waits_for_members
from cloudq.middleware import call_quietly
from cloudq.result import AsyncResult
from cloudq.signature import Canvas, Signature

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.broker import Outgoing
    from cloudq.store import Store
    from cloudq.task import Task

T = TypeVar("T")
logger = logging.getLogger("cloudq")

_LANES = 32
"""Calls whose QUEUED is recorded at once."""


class Way(Protocol):
    """How a caller waits for the sender, the store, the timer, the I/O thread and time."""

    async def send(self, queue: str, outgoing: Outgoing, id: str) -> None: ...
    async def send_many(self, bulk: Bulk) -> Mapping[int, Exception]: ...
    async def store(self, call: Callable[[Store], Coroutine[Any, Any, T]], why: str = "a result") -> T: ...
    async def run(self, call: Coroutine[Any, Any, T]) -> T: ...
    async def timer(self, call: Coroutine[Any, Any, T]) -> T: ...
    async def sleep(self, seconds: float) -> None: ...


class Blocking:
    """Waits by blocking the calling thread: what is written over it never suspends, and ``io.drive`` runs it to its end."""

    def __init__(self, app: CloudQ) -> None:
        self._app = app

    async def send(self, queue: str, outgoing: Outgoing, id: str) -> None:
        self._app.sender.send(queue, outgoing, id)

    async def send_many(self, bulk: Bulk) -> Mapping[int, Exception]:
        return self._app.sender.send_many(bulk)

    async def store(self, call: Callable[[Store], Coroutine[Any, Any, T]], why: str = "a result") -> T:
        return self._app.use_store(call, why=why)

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._app.io.run(call)

    async def timer(self, call: Coroutine[Any, Any, T]) -> T:
        timer = self._app.timer
        return drive(call) if timer is None or timer.limits.local else self._app.io.run(call, timeout=self._app.conf.send_timeout)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # blocking is its purpose


class Awaiting:
    """Waits as a coroutine does, on any loop."""

    def __init__(self, app: CloudQ) -> None:
        self._app = app

    async def send(self, queue: str, outgoing: Outgoing, id: str) -> None:
        await self._app.sender.asend(queue, outgoing, id)

    async def send_many(self, bulk: Bulk) -> Mapping[int, Exception]:
        return await self._app.sender.asend_many(bulk)

    async def store(self, call: Callable[[Store], Coroutine[Any, Any, T]], why: str = "a result") -> T:
        return await self._app.ause_store(call, why=why)

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        return await self._app.io.arun(call)

    async def timer(self, call: Coroutine[Any, Any, T]) -> T:
        timer = self._app.timer
        if timer is None or timer.limits.local:
            return await call
        async with asyncio.timeout(self._app.conf.send_timeout):
            return await self._app.io.arun(call)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(slots=True, eq=False, repr=False)
class Held:
    """The calls that ``with app.batch()`` holds back."""

    calls: list[Prepared] = field(default_factory=lambda: [])
    ended: bool = False
    """The block is over; coroutines and threads that inherited its context send by themselves."""


class Dispatch:
    """The calls of one app, from prepared to accepted."""

    def __init__(self, app: CloudQ) -> None:
        self._app = app
        self._batch: ContextVar[Held | None] = ContextVar(f"cloudq_batch_{app.name}", default=None)
        self.blocking = Blocking(app)
        self.awaiting = Awaiting(app)

    async def one(self, way: Way, prepared: Prepared) -> AsyncResult[Any]:
        """Send one call; with ``unique=`` its result is the one of a call that waits already."""
        task = prepared.task
        if self._held_back(prepared):
            return AsyncResult(prepared.id, self._app)
        if task is None or task.settings.unique is None:
            await self._send(way, prepared)
            return AsyncResult(prepared.id, self._app)
        return AsyncResult(await self._send_unique(way, prepared, task, task.settings.unique), self._app)

    async def many(self, way: Way, prepared: Sequence[Prepared] | Bulk) -> list[AsyncResult[Any]]:
        """Send calls together, whatever batch is open; raises BatchSendError."""
        bulk = bulk_of(prepared)
        failed = await way.send_many(bulk)
        if tracked := self.tracked(bulk, failed):
            try:
                await way.store(lambda store: self._record_many(store, tracked))
            except StoreError:  # the calls are accepted: that QUEUED cannot be shown must not fail them
                logger.warning("QUEUED could not be recorded for all of %d tasks", len(tracked), exc_info=True)
        return self._sent(bulk, failed)

    async def signatures(self, way: Way, signatures: Iterable[Signature[Any]]) -> list[AsyncResult[Any]]:
        """Check and send many calls; the results of all, with those that are held back."""
        bulk = calls.prepare_many(self._app, signatures, bare=self._open is None)
        whole = {index: calls.prepared_of(self._app, each) for index, each in bulk.whole.items()}
        later = {index: each for index, each in whole.items() if each.after_commit}
        now = {index: each for index, each in whole.items() if index not in later}
        held = {index for part in (later, now) if self._held_back(*part.values()) for index in part}
        if not held:
            return await self.many(way, bulk)
        await self.many(way, Bulk(bulk.entry(index) for index in range(len(bulk)) if index not in held))
        return [AsyncResult(id, self._app) for id in bulk.ids]

    async def canvas(self, way: Way, canvas: Canvas[Any]) -> AsyncResult[Any]:
        """Note the groups of a workflow that are waited for, then send what starts it."""
        from cloudq import follow
        from cloudq import launch as launches

        id, launch = launches.plan(self._app, canvas)
        if launch.chords:
            await way.store(lambda store: launches.note(store, launch), "a chord")
        if not self._held_back(*launch.calls):
            await self.many(way, launch.calls)
        if launch.ended:
            await way.run(follow.arrived(self._app, launch.ended))
        return launches.handle(self._app, canvas, id)

    async def revoke(self, way: Way, id: str, *, terminate: bool) -> None:
        """Ask that a task does not run any more."""
        from cloudq import revoking

        await revoking.revoke(self._app, way, id, terminate=terminate)

    @contextmanager
    def holding(self) -> Generator[list[Prepared], None, None]:
        """Hold back the calls inside the block: they are in the list, which stays empty in a block within another."""
        if self._open is not None:
            yield []
            return
        batch = Held()
        token = self._batch.set(batch)
        try:
            yield batch.calls
        finally:
            self._batch.reset(token)
            batch.ended = True

    @property
    def _open(self) -> Held | None:
        batch = self._batch.get()
        return None if batch is None or batch.ended else batch

    def _held_back(self, *prepared: Prepared) -> bool:
        """Whether a batch or a transaction sends them later. Raises StoreRequired where what follows them needs a store."""
        app = self._app
        if app.store is None:
            for each in prepared:
                if each.message is not None and waits_for_members(each.message.fields):
                    app.required_store("a chord (a group with a step after it)")
        if prepared and prepared[0].after_commit:
            if app.conf.after_commit is None:
                raise ConfigError("after_commit needs CloudQ(after_commit=…), e.g. django.db.transaction.on_commit")
            app.conf.after_commit(lambda: self._send_committed(prepared))
            return True
        batch = self._open
        if batch is None:
            return False
        batch.calls.extend(prepared)
        return True

    def _send_committed(self, prepared: Sequence[Prepared]) -> None:
        drive(self._send(self.blocking, prepared[0]) if len(prepared) == 1 else self.many(self.blocking, prepared))

    async def _send(self, way: Way, prepared: Prepared) -> None:
        app = self._app
        await way.send(prepared.queue, prepared.outgoing, prepared.id)
        if app.store is not None and self._is_tracked(prepared):
            try:
                await way.store(lambda store: self._record(store, prepared))
            except StoreError:  # the call is accepted: that QUEUED cannot be shown must not fail it
                logger.warning("task %s: QUEUED could not be recorded", prepared.id, exc_info=True)
        if app.hooks.after_send:
            call_quietly(app.hooks.after_send, calls.message_of(prepared), prepared.queue)

    async def _send_unique(self, way: Way, prepared: Prepared, task: Task[..., Any], unique: float) -> str:
        """Send it unless its like is on its way; the id of the one that is."""
        from cloudq import idempotency

        message, name, id = calls.message_of(prepared), task.name, prepared.id
        key = task.call_key(message.args, message.kwargs)
        # No longer than its document is kept, without which nobody would know that it has ended.
        lasts = min(unique, self._app.conf.result_expires) + prepared.outgoing.delay
        now, sending = self._app.clock.time(), 2 * self._app.conf.send_timeout
        waits = await way.store(
            lambda store: idempotency.reserve(store, name, key, id, now=now, sending=sending, ttl=lasts), f"unique= of the task {name!r}"
        )
        if waits is None:
            try:
                await self._send(way, prepared)
            except BaseException:
                with suppress(StoreError):  # then it expires
                    await way.store(lambda store: idempotency.release(store, name, key, id))
                raise
        return waits or id

    def tracked(self, bulk: Bulk, failed: Mapping[int, Exception]) -> list[Prepared]:
        """The accepted calls whose QUEUED is to be recorded."""
        if self._app.store is None:
            return []
        some = range(len(bulk)) if self._tracks_queued else bulk.whole  # a bare call has nothing else to be recorded for
        accepted = (calls.prepared_of(self._app, bulk.entry(index)) for index in some if index not in failed)
        return [each for each in accepted if self._is_tracked(each)]

    def _sent(self, bulk: Bulk, failed: Mapping[int, Exception]) -> list[AsyncResult[Any]]:
        app = self._app
        if app.hooks.after_send:
            for index, each in enumerate(bulk):
                if index not in failed:
                    call_quietly(app.hooks.after_send, calls.message_of(each), each.queue)
        handles: list[AsyncResult[Any]] = [AsyncResult(id, app) for id in bulk.ids]
        if failed:
            first = next(iter(failed.values()))
            raise BatchSendError(
                f"{len(failed)} of {len(bulk)} messages were not accepted; the first: {first}", failed=failed, results=handles
            ) from first
        return handles

    def _is_tracked(self, prepared: Prepared) -> bool:
        if prepared.outgoing.delay and calls.is_waited_for(self._app, prepared):
            return True
        if prepared.task is not None and prepared.task.settings.unique is not None:
            return True  # by which later calls know that it waits
        ignored = prepared.task is not None and prepared.task.settings.ignore_result
        return self._tracks_queued and not ignored and not (prepared.message is not None and prepared.message.ignore_result)

    @property
    def _tracks_queued(self) -> bool:
        """Whether QUEUED is recorded, but for tasks and calls without a result."""
        store, wanted = self._app.store, self._app.conf.track_queued
        return store is not None and not store.limits.metered if wanted is None else wanted

    async def _record(self, store: Store, prepared: Prepared) -> None:
        app, delay = self._app, prepared.outgoing.delay
        await records.record_queued(
            store,
            calls.message_of(prepared),
            prepared.queue,
            ttl=app.conf.result_expires + delay,
            due=app.clock.time() + delay if delay else None,
            waits=calls.is_waited_for(app, prepared),
        )

    async def _record_many(self, store: Store, prepared: Sequence[Prepared]) -> None:
        async def some(part: Sequence[Prepared]) -> None:
            for each in part:
                await self._record(store, each)

        if store.limits.local:
            await some(prepared)
        else:
            await asyncio.gather(*(some(prepared[lane::_LANES]) for lane in range(_LANES)))
