"""The one document that a task has in the store: claim, attempt, revoke flag, progress and result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from cloudq import states
from cloudq.errors import Conflict, LeaseLost
from cloudq.message import Message
from cloudq.outcome import Dropped, Failure, Later
from cloudq.store import MISSING, Document, Store, Value

if TYPE_CHECKING:
    from cloudq.limits import Seat

KIND: Final = "task"

IGNORED: Final = "the task raised Ignore"
"""The reason in a SUCCESS that has no value and calls no links."""

JOINED: Final = 30 * 86400.0
"""Seconds that chords and their members' results are kept: longer than any queue keeps a message and its dead letter (14 days each)."""

EARLY: Final = 1.0
"""Seconds by which an ordered message may be early. Its lease keeps it away, which no broker ends to the moment, nor holds for days."""

PAGE: Final = 500
"""Documents that a listing asks for at once."""

Edit: TypeAlias = Callable[[dict[str, Any]], None]

# The fields of the document; all but the first three may be absent. Instants are Unix time in seconds.
#   task, state, attempt     what it is, how it stands, the highest attempt known
#   queue, root, parent      where its message goes, and what it belongs to
#   each                     its value is the list of several calls
#   sent, started, finished  instants
#   due                      the instant before which it does not start, where it waits for one
#   owner, until             the claim: who runs this attempt, and until when the claim holds unless renewed
#   crashes                  how many claims before it ended without an outcome, one after another
#   revoked                  true: it must not start, and stops where it runs; with spared it may go on there
#   waits                    its message, where revoking it while it is in the timer has to tell others
#   progress, meta           what the task recorded by update_state
#   value | error, reason    how it ended
#   followed                 what follows its end was done once more for a repeated delivery; an instant: until then somebody is at it
#   upstream                 it never ran: the id of the task before it that ended without a result


async def record_queued(store: Store, message: Message, queue: str, *, ttl: float, due: float | None = None, waits: bool = False) -> None:
    """Note a call that was sent, unless a worker has noted more already. ``waits``: in the timer, and others wait for its end."""
    value = {**_identity(message, queue), "state": states.QUEUED}
    if due is not None:
        value["due"] = round(due, 3)
    if waits:
        value["waits"] = dict(message.fields)
    try:
        await store.put(KIND, message.id, value, expect=MISSING, ttl=ttl)
    except Conflict:
        return


async def revoke(store: Store, id: str, *, now: float, ttl: float, terminate: bool = True) -> Value:
    """Set the revoke flag, also of a task that nothing is known of yet; one that has ended stays as it is. Returns the document.

    Without ``terminate`` what runs already goes on.
    """
    document = await store.get(KIND, id)
    while True:
        if document is not None and document.value["state"] in states.TERMINAL:
            return document.value
        value: dict[str, Any] = {
            **(document.value if document else {"task": "", "state": states.PENDING, "attempt": 0}),
            "revoked": True,
            "revoked_at": now,
        }
        value.pop("spared", None)
        if not terminate:
            value["spared"] = True
        try:
            await store.put(KIND, id, value, expect=document.version if document else MISSING, ttl=ttl)
        except Conflict as conflict:
            document = conflict.current
        else:
            return value


async def listing(store: Store, *, after: str | None = None) -> AsyncIterator[tuple[str, Value]]:
    """All tasks that the store knows, by id, from the one after ``after`` on."""
    while True:
        page = await store.list(KIND, limit=PAGE, cursor=after)
        for id, document in page.items:
            yield id, document.value
        after = page.cursor
        if after is None:
            return


def must_stop(document: Value) -> bool:
    """Whether a run is asked to end."""
    return bool(document.get("revoked")) and not document.get("spared")


def is_held(document: Value, now: float) -> bool:
    """Whether somebody runs it."""
    return bool(document["state"] == states.STARTED and document.get("until", 0.0) > now)


def shown(document: Value) -> str:
    """The state that a person sees, but for those that the task itself has set."""
    stopping = document["state"] == states.STARTED and must_stop(document) and document.get("until")
    return states.REVOKING if stopping else document["state"]


async def is_revoked(store: Store, id: str, *, running: bool = False) -> bool:
    """Whether the revoke flag of a task, or of a workflow, is set; with ``running`` whether what runs of it is to end."""
    found = await store.get(KIND, id)
    return found is not None and (must_stop(found.value) if running else bool(found.value.get("revoked")))


class Claim:
    """This process's right to run one attempt, and to write how it ended. For one event loop."""

    __slots__ = ("_store", "_ttl", "_version", "id", "owner", "seat", "value")

    def __init__(self, store: Store, id: str, owner: str, value: dict[str, Any], version: str, ttl: float) -> None:
        self._store = store
        self._ttl = ttl
        self._version: Any = version
        self.id = id
        self.owner = owner
        self.value = value
        self.seat: Seat | None = None
        """Its place among those that may run, where their number is limited: kept and left with the claim."""

    @property
    def crashes(self) -> int:
        """Claims before this one that ended without an outcome."""
        found: int = self.value.get("crashes", 0)
        return found

    async def change(self, edit: Edit) -> None:
        """Apply ``edit`` to the document by compare-and-set, as often as others get in between; raises LeaseLost once it is not ours.

        Where it was deleted meanwhile (``result.forget()``) it is written anew: else the run would be taken for one that died.
        """
        while True:
            value = dict(self.value)
            edit(value)
            try:
                version = await self._store.put(KIND, self.id, value, expect=self._version, ttl=self._ttl)
            except Conflict as conflict:
                current = conflict.current
                if current is None:
                    self._version = MISSING
                    continue
                if current.value.get("owner") != self.owner or current.value["state"] in states.TERMINAL:
                    raise LeaseLost(f"task {self.id}: the claim on this attempt has passed to another worker") from None
                self.value, self._version = dict(current.value), current.version
            else:
                self.value, self._version = value, version
                return

    async def renew(self, until: float) -> bool:
        """Hold the claim until ``until``; returns whether the run is to end, because the task was revoked meanwhile."""

        def edit(value: dict[str, Any]) -> None:
            value["until"] = until

        await self.change(edit)
        if self.seat is not None:
            await self.seat.renew(until)
        return must_stop(self.value)

    async def report(self, state: str, meta: Any) -> None:
        """Record progress."""

        def edit(value: dict[str, Any]) -> None:
            value["progress"], value["meta"] = state, meta

        await self.change(edit)

    async def release(self, due: float | None = None) -> None:
        """Let another worker take this attempt up, once it is ``due``; until then it waits."""

        def edit(value: dict[str, Any]) -> None:
            value.update(state=states.QUEUED, until=0.0)
            if due is not None:
                value["due"] = round(due, 3)

        await self._end(edit)

    async def retry(self, error: Failure, due: float | None = None, *, crashes: int = 0) -> None:
        """Note that the next attempt, which begins with so many ``crashes``, is on its way, for ``due``; only once that is durable."""

        def edit(value: dict[str, Any]) -> None:
            value.update(state=states.RETRY, attempt=value["attempt"] + 1, error=error.as_json())
            value.pop("crashes", None)
            if crashes:
                value["crashes"] = crashes
            if due is not None:
                value["due"] = round(due, 3)
            for key in ("owner", "until"):
                value.pop(key, None)

        await self._end(edit)

    async def finish(self, state: str, *, at: float, value: Any = None, error: Failure | None = None, reason: str | None = None) -> None:
        """Write the terminal state."""

        def edit(document: dict[str, Any]) -> None:
            for key in ("until", "progress", "error"):
                document.pop(key, None)
            document.update(state=state, finished=at)
            if value is not None:
                document["value"] = value
            if error is not None:
                document["error"] = error.as_json()
            if reason is not None:
                document["reason"] = reason

        await self._end(edit)

    async def _end(self, edit: Edit) -> None:
        try:
            await self.change(edit)
        finally:
            if self.seat is not None:
                await self.seat.leave()


async def claim(
    store: Store, message: Message, queue: str, *, owner: str, now: float, until: float, ttl: float, ordered: bool = False
) -> Claim | Later | Dropped:
    """Take the right to run an attempt: one conditional write, a second one where something is known of the task already.

    An ``ordered`` message is never sent again, so its attempt is the one in the document: ``claim.value["attempt"]``. Claims that
    ended without an outcome, one after another, are counted in ``claim.value["crashes"]``.
    """
    fresh = {**_identity(message, queue), "state": states.STARTED, "started": now, "owner": owner, "until": until}
    expect: Any = MISSING
    value: dict[str, Any] = fresh
    while True:
        try:
            version = await store.put(KIND, message.id, value, expect=expect, ttl=ttl)
        except Conflict as conflict:
            found = conflict.current
            if found is None:  # it expired or was forgotten meanwhile
                value, expect = fresh, MISSING
                continue
            if ordered and found.value["attempt"] > message.attempt and message.first <= found.value["attempt"]:
                message = message.copy(attempt=found.value["attempt"])
            refusal = _refusal(found, message, owner, now, ordered=ordered)
            if refusal is not None:
                return refusal
            fields = ("sent", "revoked", "spared", *(("crashes",) if found.value["state"] not in states.TERMINAL else ()))
            kept = {key: found.value[key] for key in fields if key in found.value}
            if found.value["state"] == states.STARTED and found.value["attempt"] == message.attempt and found.value.get("until"):
                kept["crashes"] = kept.get("crashes", 0) + 1  # it ran out: a release sets it to 0
            value, expect = {**fresh, "attempt": message.attempt, **kept}, found.version
        else:
            return Claim(store, message.id, owner, value, version, ttl)


def _refusal(found: Document, message: Message, owner: str, now: float, *, ordered: bool) -> Later | Dropped | None:
    """Why this attempt must not start, given what is known of the task; ``None`` if it may."""
    document: Value = found.value
    state, attempt = document["state"], document["attempt"]
    if state in states.TERMINAL and "upstream" not in document:  # its message did come: what had failed before it was redriven
        if state in states.REOPENED_BY_REDRIVE and message.first > attempt:
            return None
        return has_ended(document)
    if message.attempt < attempt:
        return Dropped(f"attempt {message.attempt} is superseded by attempt {attempt}")
    if document.get("revoked"):
        return Dropped(states.WAS_REVOKED, state=states.REVOKED)
    until = document.get("until", 0.0)
    if attempt == message.attempt and until > now and document.get("owner") != owner:
        return Later(min(until - now, 60.0) + 0.1, "another worker runs this attempt")
    due = document.get("due", 0.0)
    if ordered and state in (states.QUEUED, states.RETRY) and due > now + EARLY:
        return Later(due - now, "its time has not come")
    return None


def has_ended(document: Value) -> Dropped:
    """The outcome of a delivery whose work has ended before: what follows is done once more, lest whoever ended it had died just then."""
    state = document["state"]
    ended = None if state == states.SUCCESS and document.get("reason") != IGNORED else document
    return Dropped(f"it has ended already: {state}", value=document.get("value"), follow_ups=True, ended=ended)


async def follow_again(store: Store, id: str, *, now: float, until: float) -> Later | bool:
    """Whether a repeated delivery of an ended task is to do once more what follows it.

    One of them is, for whoever ended it may have died just then. Not each of them: what follows would be repeated too, each time with all
    that follows it in turn, and a long chain would drown in copies. Nobody else does it before ``until``; call ``note_followed`` once it
    is durable.
    """
    while True:
        found = await store.get(KIND, id)
        if found is None:
            return True
        known = found.value.get("followed", 0.0)
        if known is True:
            return False
        if known > now:
            return Later(min(known - now, 60.0) + 0.1, "another worker sends what follows")
        try:
            await store.put(KIND, id, {**found.value, "followed": until}, expect=found.version, ttl=_left(found, now))
        except Conflict:
            continue
        return True


async def note_followed(store: Store, id: str, *, now: float) -> None:
    """Note that what follows an ended task was done once more."""
    found = await store.get(KIND, id)
    if found is None or "followed" not in found.value:
        return
    try:
        await store.put(KIND, id, {**found.value, "followed": True}, expect=found.version, ttl=_left(found, now))
    except Conflict:
        return  # whoever has changed it does it again at worst


def _left(found: Document, now: float) -> float | None:
    return None if found.expires is None else max(found.expires - now, 1.0)


async def before(store: Store, message: Message, now: float) -> Later | Dropped | None:
    """What is known of a message that must not run, and whose task this delivery has not claimed: another may run it, or have run it."""
    found = await store.get(KIND, message.id)
    if found is None or found.value["attempt"] < message.attempt:
        return None
    if is_held(found.value, now):
        return Later(min(found.value["until"] - now, 60.0) + 0.1, "another worker runs this attempt")
    return has_ended(found.value) if found.value["state"] == states.SUCCESS else None


def _identity(message: Message, queue: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"task": message.task, "attempt": message.attempt, "queue": queue}
    for name in ("sent", "root", "parent", "each"):
        if name in message.fields:
            fields[name] = message.fields[name]
    return fields


async def finish_unclaimed(
    store: Store,
    message: Message,
    queue: str,
    state: str,
    *,
    at: float,
    ttl: float,
    reason: str,
    error: Mapping[str, Any] | None = None,
    upstream: str | None = None,
) -> None:
    """Write the terminal state of a message that never ran; the first terminal state wins.

    ``upstream``: it was not even sent, because of the task with that id; should it come after all, it runs.
    """
    ended: dict[str, Any] = {"state": state, "finished": at, "reason": reason}
    if error is not None:
        ended["error"] = error
    if upstream is not None:
        ended["upstream"] = upstream
    expect: Any = MISSING
    value = {**_identity(message, queue), **ended}
    while True:
        try:
            await store.put(KIND, message.id, value, expect=expect, ttl=ttl)
        except Conflict as conflict:
            found = conflict.current
            if found is None:
                expect = MISSING
                continue
            stale = found.value["attempt"] > message.attempt
            running = found.value["state"] == states.STARTED and found.value.get("until", 0.0) > at  # who runs it says how it ends
            ended_already = (
                found.value["state"] in states.TERMINAL
                and not message.first > found.value["attempt"]
                and (upstream is not None or "upstream" not in found.value)
            )
            if stale or running or ended_already:
                return
            value, expect = {**found.value, **_identity(message, queue), **ended}, found.version
            if upstream is not None and found.value.get("revoked"):
                value["state"] = states.REVOKED
        else:
            return
