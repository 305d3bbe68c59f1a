"""What follows the end of a task: its links, the next steps of its chain, and the chord that it is a member of.

Each function may be repeated, by another process too: ids are derived, documents are put once, and arriving twice changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cloudq import calls, chords, records, states
from cloudq.errors import CallError, DocumentTooLarge, EntryTooLarge, QueueNotFound, StoreRequired
from cloudq.launch import Launch, note
from cloudq.message import Message, derived_id

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.store import Store

T = TypeVar("T")
logger = logging.getLogger("cloudq.runner")

LANES: Final = 32
"""Documents that are written at once, where a store is not local."""

_REFUSED: Final = (CallError, QueueNotFound, EntryTooLarge, DocumentTooLarge, StoreRequired)


class Refused(Exception):
    """What follows a task cannot be sent, however often it is tried: too large, no such queue. What waits for it has been told."""


async def succeeded(app: CloudQ, message: Message, value: Any) -> None:
    """Start what a result starts. Call it once the result is durable. Raises Refused for what cannot be started at all."""
    refused: Exception | None = None
    if message.next or message.join is not None:
        launch = Launch(app, parent=message, flow=message.flow)
        if message.next:
            launch.start(message.next, message.next[-1]["id"], value=value, join=message.join)
        elif message.join is not None:
            launch.ended.append(message.join)
        try:
            await perform(app, launch)
        except _REFUSED as error:
            refused = error
            why = f"{_named(message)} is done, but what follows cannot be sent: {error}"
            await _stop(app, message.next, message.join, why, None, message)
    if message.link:
        links = Launch(app, parent=message, flow=message.flow)
        for index, link in enumerate(message.link):
            links.start(calls.link_steps(link), derived_id(message.id, "link", index), value=value)
        try:
            await perform(app, links)
        except _REFUSED as error:
            refused = refused or error
    if refused is not None:
        raise Refused(str(refused)) from refused


async def failed(app: CloudQ, message: Message, queue: str, reason: str, error: Mapping[str, Any] | None, *, quiet: bool = False) -> None:
    """Tell error links, and say of every later step that it will not come. Call it once the message's own end is durable.

    ``quiet``: the task asked to be ignored, which is no error.
    """
    if not quiet:
        await _error_links(app, message, queue, reason, error)
    if message.next or message.join is not None:
        await _stop(app, message.next, message.join, _said(message, reason, error), error, message)


async def perform(app: CloudQ, launch: Launch) -> None:
    """Make durable what a launch says. Raises BrokerError, StoreError or TimerError where it could not; doing it again is safe."""
    if launch.chords:
        await note(app.required_store("a chord"), launch)
    for call in launch.calls:
        app.sender.check(call.outgoing, what=f"task {call.message.task!r}" if call.message else "a call")
    if len(launch.calls) == 1:
        call = launch.calls[0]
        await app.sender.asend(call.queue, call.outgoing, call.id)
    elif launch.calls:
        refused = await app.sender.asend_many(launch.calls)
        if refused:
            raise next(iter(refused.values()))
    if (store := app.store) is not None:
        waiting = [(call.message, call) for call in launch.calls if call.message is not None and calls.is_waited_for(app, call)]
        await in_lanes(
            store,
            waiting,
            lambda each: records.record_queued(store, each[0], each[1].queue, ttl=chords.KEPT + each[1].outgoing.delay, waits=True),
        )
    await arrived(app, launch.ended)


async def in_lanes(store: Store, items: Sequence[T], write: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    """``write`` each of many; several at once where the store is not local."""

    async def some(part: Sequence[T]) -> None:
        for each in part:
            await write(each)

    if store.limits.local or len(items) < 2:
        await some(items)
    else:
        await asyncio.gather(*(some(items[lane::LANES]) for lane in range(min(LANES, len(items)))))


async def arrived(app: CloudQ, joins: Sequence[Mapping[str, Any]]) -> None:
    """Count members of chords that have their results; the last one calls the body."""
    for join in joins:
        await _arrive(app, join)


async def _arrive(app: CloudQ, join: Mapping[str, Any]) -> None:
    store = app.required_store("a chord")
    if not await chords.arrive(store, join):
        return
    chord = await chords.get(store, join["chord"])
    if chord is None or chord["of"] != join["of"]:
        why = "its document is gone" if chord is None else f"it has {chord['of']} members, and this one was told of {join['of']}"
        logger.error("chord %s seems complete, but %s: its body is not called", join["chord"], why)
        return
    if steps := chord.get("next"):
        launch = Launch(app, parent=_shell(join["chord"], "group", chord), flow=chord.get("flow"))
        if chord.get("called"):
            return
        launch.start(steps, steps[-1]["id"], results={"chord": join["chord"]}, join=chord.get("join"))
        await perform(app, launch)
        await chords.note_called(store, join["chord"])
    elif outer := chord.get("join"):
        await _arrive(app, outer)


async def _stop(
    app: CloudQ,
    steps: Sequence[Mapping[str, Any]],
    join: Mapping[str, Any] | None,
    why: str,
    error: Mapping[str, Any] | None,
    cause: Message,
) -> None:
    """Record of steps that will not come why, and of all that waits for them."""
    store = app.store
    if store is None:
        return
    now = app.clock.time()

    async def tell(step: Mapping[str, Any]) -> None:
        shell = _shell(step["id"], step.get("task", "group"), {"root": cause.root, "parent": cause.id})
        await records.finish_unclaimed(
            store, shell, step.get("queue", ""), states.FAILURE, at=now, ttl=chords.KEPT, reason=why, error=error, upstream=cause.id
        )

    await in_lanes(store, steps, tell)
    if join is None:
        return
    chord = await chords.fail(store, join, why)
    if chord is None:
        return
    following: Sequence[Mapping[str, Any]] = chord.get("next", ())
    why = f"member {join['index']} of the group before it: {why}"
    if following and (links := following[0].get("link_error")):
        body = _shell(following[0]["id"], following[0].get("task", "group"), {**chord, "link_error": links})
        await _error_links(app, body, following[0].get("queue", ""), why, error)
    group = {"id": join["chord"], "task": "group"}
    await _stop(app, [group, *following], chord.get("join"), why, error, cause)


async def _error_links(app: CloudQ, message: Message, queue: str, reason: str, error: Mapping[str, Any] | None) -> None:
    if not message.link_error:
        return
    told = {"id": message.id, "task": message.task, "queue": queue, "reason": reason, "error": error}
    launch = Launch(app, parent=message)
    for index, link in enumerate(message.link_error):
        launch.start(calls.link_steps(link), derived_id(message.id, "link_error", index), value=told)
    try:
        await perform(app, launch)
    except _REFUSED as refused:
        logger.error("%s: its error links cannot be sent: %s", _named(message), refused)


def _said(message: Message, reason: str, error: Mapping[str, Any] | None) -> str:
    detail = f": {error['type']}: {error['detail']}" if error else ""
    return f"{_named(message)} ended without a result: {reason}{detail}"


def _named(message: Message) -> str:
    return f"{message.task} [{message.id}]"


def _shell(id: str, task: str, fields: Mapping[str, Any]) -> Message:
    """As much of a message as lineage and records want of one that was never sent."""
    known = {key: fields[key] for key in ("root", "parent", "link_error") if fields.get(key) is not None}
    return Message({"v": 1, "id": id, "task": task, "args": [], **known})
