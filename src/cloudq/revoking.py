"""Asking that a task does not run any more: noted in the store, and where its call waits in the timer, taken out of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cloudq import follow, records, states
from cloudq.errors import TimerError
from cloudq.message import Message

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.dispatch import Way

logger = logging.getLogger("cloudq")


async def revoke(app: CloudQ, way: Way, id: str, *, terminate: bool) -> None:
    """Note it, durably; what waits in the timer has its end said at once. Raises StoreRequired, StoreError."""
    now, ttl = app.clock.time(), max(app.conf.result_expires, records.JOINED)  # its steps may come for as long
    known = await way.store(lambda store: records.revoke(store, id, now=now, ttl=ttl, terminate=terminate), "revoking a task")
    timer = app.timer
    if timer is None or known["state"] in states.TERMINAL or records.is_held(known, now):
        return
    if "started" in known and "waits" not in known:  # a retry, or put off: only its message knows who waits for its end
        return
    try:
        waited = await way.timer(timer.cancel(id))
    except (TimerError, TimeoutError) as error:
        logger.warning("task %s is revoked, but stays in the timer: it will be dropped when it comes: %s", id, error)
        waited = False
    # Before it is due nobody runs it: its end can be said, whatever became of the timer's answer
    if waited or known.get("due", 0.0) > now:
        message = Message(known.get("waits") or {"id": id, "task": known["task"], "attempt": known["attempt"]})
        await way.store(
            lambda store: records.finish_unclaimed(
                store, message, known.get("queue", ""), states.REVOKED, at=now, ttl=ttl, reason=states.WAS_REVOKED
            )
        )
        if "waits" in known:
            await way.run(follow.failed(app, message, known["queue"], states.WAS_REVOKED, None))
