"""Keeps what a worker says of itself in the store; whatever goes wrong with that is none of the worker's business."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from cloudq import heartbeats
from cloudq.outcome import Outcome
from cloudq.store import Store
from cloudq.worker.flight import Flight

if TYPE_CHECKING:
    from cloudq.app import CloudQ

logger = logging.getLogger("cloudq.worker")

HASTE: Final = 1.0
"""Seconds between two reports at least, however much happens."""
FAREWELL: Final = 2.0
"""Seconds that the last word may take."""


class Reporter:
    """Reports what ``describe()`` says, again and again; on the I/O loop."""

    def __init__(self, store: Store, describe: Callable[[], dict[str, Any]]) -> None:
        self.key = heartbeats.new_key()
        self.counts: Counter[str] = Counter()
        """Outcomes made durable, by name."""
        self._store = store
        self._describe = describe
        self._interval = heartbeats.interval(store.limits)
        self._nudged = asyncio.Event()
        self._well = True

    def count(self, outcome: Outcome) -> None:
        """Note what a message came to."""
        self.counts[type(outcome).__name__.lower()] += 1

    def nudge(self) -> None:
        """Something notable has changed: report soon."""
        self._nudged.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._nudged.clear()
            await self._try(heartbeats.report(self._store, self.key, {**self._describe(), "counts": dict(self.counts)}))
            await asyncio.sleep(min(HASTE, self._interval))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._interval - HASTE)):
                    await self._nudged.wait()

    async def end(self) -> None:
        """Take the report back; where that fails it expires."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self._try(heartbeats.withdraw(self._store, self.key))

    async def _try(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await call
        except Exception as error:  # a fault of ours, too, must not end the worker
            if self._well:
                logger.warning("what this worker does could not be reported, trying again: %s", error)
            self._well = False
        else:
            self._well = True


def describe_app(app: CloudQ) -> dict[str, Any]:
    """Who works here, and what it can run."""
    names = sorted(app.tasks)
    return {
        "app": app.name,
        "version": _version(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "known": len(names),
        "tasks": names[: heartbeats.NAMES],
    }


@cache
def _version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # with what it imports, 10 ms

    try:
        return version("cloudq-tasks")
    except PackageNotFoundError:  # run from its sources
        return None


def describe_runs(flights: Iterable[Flight], now: float) -> dict[str, Any]:
    """What runs at ``now`` (Unix time, seconds), the longest first."""
    runs = sorted((each for each in flights if each.started and not each.concluded), key=lambda each: each.started_at)
    past = now - time.monotonic()
    named = [(run, message) for run in runs[: heartbeats.RUNS] if (message := run.job.message) is not None]
    running = [
        {
            "id": message.id,
            "task": message.task,
            "queue": run.job.delivery.queue,
            "attempt": message.attempt,
            "since": round(past + run.started_at, 3),
        }
        for run, message in named
    ]
    return {"busy": len(runs), "running": running}
