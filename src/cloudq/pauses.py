"""Which queues are paused: a document each in the store, which workers look at every few seconds."""

from __future__ import annotations

from typing import Final

from cloudq.errors import Conflict
from cloudq.store import MISSING, Store

KIND: Final = "pause"


async def pause(store: Store, queue: str, *, now: float) -> bool:
    """Pause a queue until it is resumed; returns whether it was not paused already. ``now`` is Unix time in seconds."""
    try:
        await store.put(KIND, queue, {"since": now}, expect=MISSING)
    except Conflict:
        return False
    return True


async def resume(store: Store, queue: str) -> bool:
    """Let a queue go on; returns whether it was paused."""
    found = await store.get(KIND, queue)
    await store.delete(KIND, queue)
    return found is not None


async def paused(store: Store) -> dict[str, float]:
    """The paused queues, each with the Unix time in seconds since when: one listing for all."""
    found: dict[str, float] = {}
    cursor: str | None = None
    while True:
        page = await store.list(KIND, cursor=cursor)
        found.update((queue, document.value["since"]) for queue, document in page.items)
        cursor = page.cursor
        if cursor is None:
            return found
