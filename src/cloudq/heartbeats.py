"""What workers say of themselves: a document each in the store, written anew while they live and gone soon after."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from typing import Any, Final

from cloudq.message import new_id
from cloudq.store import Store, StoreLimits, Value

KIND: Final = "worker"

TTL: Final = 90.0
"""Seconds after its last report at which a worker counts as gone."""
RUNS: Final = 50
"""Runs that a report names at most, those that have lasted longest; ``busy`` counts all."""
NAMES: Final = 200
"""Tasks that a report names at most; ``known`` counts all."""

# The fields of the document. Instants are Unix time in seconds.
#   app, version, host, pid, started, at   who it is, since when it works, and when it said so
#   state                                  "running" or "stopping"
#   queues, paused                         queue to weight; those that the store says are paused
#   concurrency, processes                 tasks at once; in how many child processes, or 0
#   busy, running                          how many tasks run; {id, task, queue, attempt, since} of each
#   known, tasks                           how many tasks it can run; their names
#   counts                                 outcome (done, again, later, dead, dropped) to how many were made durable


def interval(limits: StoreLimits) -> float:
    """Seconds between two reports: a store that costs by the write gets three in the life of a document."""
    return TTL / 3 if limits.metered else 5.0


def new_key() -> str:
    """A key for a worker in this process, made of host, pid and chance: ``web-1:4711:9f3c20d7``."""
    return f"{re.sub(r'[^!-~]', '-', socket.gethostname())}:{os.getpid()}:{new_id()[:8]}"


async def report(store: Store, key: str, value: Value) -> None:
    """Say what a worker does now."""
    await store.put(KIND, key, value, ttl=TTL)


async def withdraw(store: Store, key: str) -> None:
    """It works no more."""
    await store.delete(KIND, key)


async def workers(store: Store) -> dict[str, Mapping[str, Any]]:
    """What those say that have reported in the last ``TTL`` seconds, by key."""
    found: dict[str, Mapping[str, Any]] = {}
    cursor: str | None = None
    while True:
        page = await store.list(KIND, cursor=cursor)
        found.update((key, document.value) for key, document in page.items)
        cursor = page.cursor
        if cursor is None:
            return found
