"""What follows the end of a task: its links, the next steps of its chain, and the chord that it is a member of.

Each function may be repeated, by another process too: ids are derived, documents are put once, and arriving twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cloudq import calls, chords, records, states
from cloudq.launch import Launch, note
from cloudq.message import Message, derived_id

if TYPE_CHECKING:
    from cloudq.app import CloudQ

logger = logging.getLogger("cloudq.runner")


async def succeeded(app: CloudQ, message: Message, value: Any) -> None:
    """Start what a result starts. Call it once the result is durable."""
    if not message.has_follow_ups:
        return
    launch = Launch(app, parent=message, flow=message.flow)
    for index, link in enumerate(message.link):
        launch.start(calls.link_steps(link), derived_id(message.id, "link", index), value=value)
    if message.next:
        launch.start(message.next, message.next[-1]["id"], value=value, join=message.join)
    await perform(app, launch)
    if message.join is not None and not message.next:
        await _arrive(app, message.join)


async def failed(app: CloudQ, message: Message, queue: str, reason: str, error: Mapping[str, Any] | None, *, quiet: bool = False) -> None:
    """Tell error links, and say of every later step that it will not come. Call it once the message's own end is durable.

    ``quiet``: the task asked to be ignored, which is no error.
    """
    if not quiet and message.link_error:
        await _error_links(app, message, queue, reason, error)
    if message.next or message.join is not None:
        await _stop(app, message.next, message.join, _said(message, reason, error), error, message)


async def perform(app: CloudQ, launch: Launch) -> None:
    """Make durable what a launch says. Raises BrokerError, StoreError or TimerError where it could not; doing it again is safe."""
    if launch.chords:
        store = app.required_store("a chord")
        await note(store, launch)
    if len(launch.calls) == 1:
        call = launch.calls[0]
        await app.sender.asend(call.queue, call.outgoing, call.id)
    elif launch.calls:
        refused = await app.sender.asend_many(launch.calls)
        if refused:
            raise next(iter(refused.values()))
    await arrived(app, launch.ended)


async def arrived(app: CloudQ, joins: Sequence[Mapping[str, Any]]) -> None:
    """Count members of chords that have their results; the last one calls the body."""
    for join in joins:
        await _arrive(app, join)


async def _arrive(app: CloudQ, join: Mapping[str, Any]) -> None:
    store = app.required_store("a chord")
    if not await chords.arrive(store, join):
        return
    chord = await chords.get(store, join["chord"])
    if chord is None:
        logger.error("chord %s is complete, but its document is gone: its body cannot be called", join["chord"])
        return
    if steps := chord.get("next"):
        launch = Launch(app, parent=_shell(join["chord"], "group", chord), flow=chord.get("flow"))
        results = {"chord": join["chord"], "of": join["of"]}
        launch.start(steps, steps[-1]["id"], results=results, join=chord.get("join"))
        await perform(app, launch)
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
    for step in steps:
        shell = _shell(step["id"], step.get("task", "group"), {"root": cause.root, "parent": cause.id})
        await records.finish_unclaimed(
            store, shell, step.get("queue", ""), states.FAILURE, at=now, ttl=chords.KEPT, reason=why, error=error, upstream=cause.id
        )
    if join is None:
        return
    chord = await chords.fail(store, join, why)
    if chord is None:
        return
    following: Sequence[Mapping[str, Any]] = chord.get("next", ())
    why = f"member {join['index']} of the group before it: {why}"
    if following and (links := following[0].get("link_error")):
        body = _shell(following[0]["id"], following[0]["task"], {**chord, "link_error": links})
        await _error_links(app, body, following[0]["queue"], why, error)
    group = {"id": join["chord"], "task": "group"}
    await _stop(app, [group, *following], chord.get("join"), why, error, cause)


async def _error_links(app: CloudQ, message: Message, queue: str, reason: str, error: Mapping[str, Any] | None) -> None:
    told = {"id": message.id, "task": message.task, "queue": queue, "reason": reason, "error": error}
    launch = Launch(app, parent=message)
    for index, link in enumerate(message.link_error):
        launch.start(calls.link_steps(link), derived_id(message.id, "link_error", index), value=told)
    await perform(app, launch)


def _said(message: Message, reason: str, error: Mapping[str, Any] | None) -> str:
    detail = f": {error['type']}: {error['detail']}" if error else ""
    return f"{message.task} [{message.id}] ended without a result: {reason}{detail}"


def _shell(id: str, task: str, fields: Mapping[str, Any]) -> Message:
    """As much of a message as lineage and records want of one that was never sent."""
    known = {key: fields[key] for key in ("root", "parent", "link_error") if fields.get(key) is not None}
    return Message({"v": 1, "id": id, "task": task, "args": [], **known})
