"""One run a key: which task has a key is one document, and how that task stands is its own."""

from __future__ import annotations

from typing import Any, Final

from cloudq import records, states
from cloudq.errors import Conflict
from cloudq.keyed import place
from cloudq.message import Message
from cloudq.outcome import Dropped, Later, growing_pause
from cloudq.store import MISSING, Document, Store, Value

KIND: Final = "claim"

LONGEST_RUN: Final = 86_400.0
"""Seconds that a run may take at most without losing its key: who has it is written when it begins, and not again."""

# The document of a key names the task that has it (``task``, an id, or null). That task's own document says the rest: while its claim is
# held it runs, with SUCCESS it holds the result, and anything else frees the key. So a key costs one write a run, and nothing has to be
# written while the run lasts (LONGEST_RUN) or when it ends, however it does.

# ---------------------------------------------------------------------------------------------------------------------
# One run a key


async def claim(
    store: Store, message: Message, key: str, *, now: float, window: float, ttl: float, deferrals: int = 0
) -> Later | Dropped | None:
    """Take the key for a task whose own claim is held already; ``None`` where it has it, else why it must not run.

    ``deferrals``: how often it has waited for it; it waits longer each time.
    The key is written also by who has it already: so whoever would take it over, having read of a run that was over, is refused.
    """
    where = place("key", message.task, key)
    expect: Any = MISSING
    while True:
        try:
            await store.put(KIND, where, {"task": message.id}, expect=expect, ttl=window + max(ttl, LONGEST_RUN))
        except Conflict as conflict:
            found = conflict.current
            if found is None:
                expect = MISSING
                continue
            if found.value["task"] != message.id and (refusal := await _refusal(store, found, now, window)) is not None:
                return Later(growing_pause(deferrals), refusal) if isinstance(refusal, str) else refusal
            expect = found.version
        else:
            return None


async def _refusal(store: Store, found: Document, now: float, window: float) -> str | Dropped | None:
    """Why the key cannot be had: for now, in words, or for good."""
    id: str = found.value["task"]
    first = await store.get(records.KIND, id)
    if first is None:
        return None
    value = first.value
    if records.is_held(value, now):
        return f"task {id} runs with the same idempotency key"
    if value["state"] != states.SUCCESS or value["finished"] + window <= now:
        return None
    if value.get("reason") == records.IGNORED:
        return Dropped(records.IGNORED, state=states.SUCCESS)
    return Dropped(f"task {id} has run with the same idempotency key", state=states.SUCCESS, value=value.get("value"), follow_ups=True)


# ---------------------------------------------------------------------------------------------------------------------
# One waiting call


async def reserve(store: Store, task: str, key: str, id: str, *, now: float, sending: float, ttl: float) -> str | None:
    """Note that the call ``id`` is about to wait; returns the id of the one that waits already, which it shall be instead.

    For ``sending`` seconds that is taken on trust. Then it waits if its QUEUED was recorded: a caller may have died before it was sent.
    """
    where = place("unique", task, key)
    expect: Any = MISSING
    while True:
        try:
            await store.put(KIND, where, {"task": id, "until": round(now + sending, 3)}, expect=expect, ttl=ttl)
        except Conflict as conflict:
            found = conflict.current
            if found is None:
                expect = MISSING
                continue
            holder: str | None = found.value["task"]
            if holder is not None and holder != id:
                known = await store.get(records.KIND, holder)
                if found.value.get("until", now) >= now if known is None else _waits(known.value):
                    return holder
            expect = found.version
        else:
            return None


def _waits(document: Value) -> bool:
    """Whether its run has not begun. STARTED has not either, while the place is its: a limit may be sending it away just now."""
    return document["state"] not in states.TERMINAL and not document.get("revoked")


async def release(store: Store, task: str, key: str, id: str) -> None:
    """The call ``id`` does not wait any more: its run begins, or it could not be sent."""
    where = place("unique", task, key)
    found = await store.get(KIND, where)
    if found is None or found.value["task"] != id:
        return
    try:
        await store.put(KIND, where, {"task": None}, expect=found.version, ttl=1.0)
    except Conflict:
        return  # it is another's now
