"""What happens, as it happens: events that processes note, written in batches to the store, and read there by whoever follows them.

Off unless asked for, because a store may cost by the write. Noting blocks nothing and fails nothing; what cannot be written is lost.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cloudq import states
from cloudq.errors import Closed
from cloudq.message import new_id
from cloudq.middleware import Middleware
from cloudq.outcome import Again, Dead, Done, Dropped, Outcome
from cloudq.store import Store

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.message import Message

logger = logging.getLogger("cloudq.events")

KIND: Final = "event"
NAMES: Final = ("sent", "started", "succeeded", "retried", "failed", "dead", "revoked", "expired", "online", "offline")

TTL: Final = 3600.0
"""Seconds that events are kept."""
LINGER: Final = 0.5
"""Seconds that an event waits for others at most, to be written with them."""
BATCH: Final = 100
"""Events in one document."""
KEPT: Final = 10_000
"""Events that may wait to be written; what comes on top is lost."""
LAG: Final = 10.0
"""Seconds that a document may be late, by a slow write and by clocks that differ, to be seen by who follows."""
FAREWELL: Final = 2.0
"""Seconds that the last batches may take at the end."""

# A document holds {"events": [...]}. Its key says when it was written, so that a listing is in the order of time.
#   event, at                 one of NAMES; Unix time in seconds
#   id, task, queue, attempt  the task's, where the event is a task's
#   worker                    the key of the worker that notes it (cloudq.heartbeats)
#   took, error               how long its run took, in seconds; the type of its error


class Events:
    """The events of this process, on their way to the store."""

    def __init__(self, app: CloudQ) -> None:
        self._app = app
        self._store = app.required_store("events")
        self._waiting: deque[dict[str, Any]] = deque()
        self._scheduled = False
        self._task: asyncio.Task[None] | None = None
        self._name = new_id()[:8]
        self._numbers = itertools.count()
        self._lost = 0
        app.io.at_close(self.flush)
        app.io.after_fork(self._forget)

    def note(self, event: str, message: Message | None = None, queue: str | None = None, **facts: Any) -> None:
        """Note that something happened; from any thread."""
        if len(self._waiting) >= KEPT:
            self._lost += 1
            return
        noted: dict[str, Any] = {"event": event, "at": round(self._app.clock.time(), 3)}
        if message is not None:
            noted |= {"id": message.id, "task": message.task, "queue": queue, "attempt": message.attempt}
        self._waiting.append(noted | {name: fact for name, fact in facts.items() if fact is not None})
        if not self._scheduled:
            self._scheduled = True
            with suppress(RuntimeError, Closed):  # at the interpreter's end
                self._app.io.loop.call_soon_threadsafe(self._schedule)

    async def flush(self) -> None:
        """Write what waits, as far as that goes in ``FAREWELL`` seconds; on the I/O loop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self._write()

    def _schedule(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._write_soon())

    async def _write_soon(self) -> None:
        await asyncio.sleep(LINGER)
        await self._write()

    async def _write(self) -> None:
        self._scheduled = False  # first: what is noted from now on and missed below is written by another
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                key = _key(self._app.clock.time(), f"{self._name}-{next(self._numbers):04x}")
                await self._store.put(KIND, key, {"events": batch}, ttl=TTL)
            except Exception as error:
                if not self._lost:
                    logger.warning("events could not be written, and are lost: %s", error)
                self._lost += len(batch)
                continue
            if self._lost:
                logger.warning("%d events were lost; they are written again", self._lost)
                self._lost = 0

    def _forget(self) -> None:
        """In a forked child: what waits is the parent's."""
        self._waiting.clear()
        self._name, self._scheduled, self._task = new_id()[:8], False, None


class NotesSent(Middleware):
    """Notes each call that a broker has accepted."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def after_send(self, message: Message, queue: str) -> None:
        self._events.note("sent", message, queue, at=message.sent)  # when it was called: it may have begun since


class Follower:
    """Reads events as they are written."""

    def __init__(self, store: Store, since: float) -> None:
        self._store = store
        self._start = _key(since)
        self._seen: set[str] = set()

    async def look(self, now: float) -> list[Mapping[str, Any]]:
        """What is new at ``now`` (Unix time, seconds), by when it happened. One that was written over ``LAG`` seconds late is missed."""
        found: list[Mapping[str, Any]] = []
        cursor: str | None = self._start
        while cursor is not None:
            page = await self._store.list(KIND, limit=100, cursor=cursor)
            for key, document in page.items:
                if key not in self._seen:
                    self._seen.add(key)
                    found += document.value["events"]
            cursor = page.cursor
        self._start = max(self._start, _key(now - LAG))
        self._seen = {key for key in self._seen if key > self._start}
        return sorted(found, key=lambda event: event["at"])


def named(outcome: Outcome) -> str | None:
    """The event that an outcome is, once it is durable; ``None`` where nothing has changed."""
    match outcome:
        case Done():
            return "succeeded"
        case Again():
            return "retried"
        case Dead():
            return "failed" if outcome.state == states.FAILURE else "dead"
        case Dropped():
            return {states.REVOKED: "revoked", states.EXPIRED: "expired", states.SUCCESS: "succeeded"}.get(outcome.state or "")
        case _:
            return None


def error_of(outcome: Outcome) -> str | None:
    """The type of its error, where it has one."""
    error = outcome.error if isinstance(outcome, (Again, Dead)) else None
    return None if error is None else error.type


def _key(at: float, end: str = "") -> str:
    return f"{int(at * 1000):012x}-{end}"
