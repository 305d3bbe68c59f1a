"""Turns the steps of a workflow into what is to be sent now: one planner for callers and for the settling of a step. No I/O.

A step travels as a JSON object: a linked call (``task``, ``queue``, …), or ``{"members": [[step, …], …]}``, whose branches run side by
side; each may name its ``id`` and what follows it (``next``). Ids are given from the top: the last step of a chain has the chain's id,
its earlier ones and the branches of a group have ids derived from it. So a repetition makes the same messages, and whoever knows the
workflow and its id knows every id inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from cloudq import calls, chords
from cloudq.calls import NOTHING, Prepared
from cloudq.errors import ArgumentsError, DelayError, MessageTooLarge
from cloudq.message import MAX_MEMBERS, Message, check_nesting, derived_id, new_id, waits_for_members
from cloudq.request import current
from cloudq.result import AsyncResult, GroupResult
from cloudq.signature import Canvas, Signature
from cloudq.workflow import Chain, Group

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.store import Store

Step: TypeAlias = Mapping[str, Any]
"""As above; at the call a first step may be ``{"signature": Signature}``, which is checked and encoded as a call of its own."""

LONGEST: Final = chords.KEPT / 2
"""Seconds that the members of a chord and its body may be delayed in all: results are kept for twice that, to leave time for retries and
redrives."""


OVERHEAD: Final = 2_000
"""Bytes of a chord's document, or of its body's message, beside the steps that follow."""


@dataclass(slots=True, eq=False, repr=False)
class Launch:
    """What is to be made durable to start some steps, in this order: ``chords``, ``calls``, and then ``ended`` joins."""

    app: CloudQ
    parent: Message | None = None
    """The message whose settling starts them; ``None`` at a call."""
    flow: str | None = None
    chords: list[tuple[str, dict[str, Any]]] = field(default_factory=lambda: [])
    """Ids and documents of groups that are waited for."""
    calls: list[Prepared] = field(default_factory=lambda: [])
    ended: list[Mapping[str, Any]] = field(default_factory=lambda: [])
    """Members of chords that are complete at once: groups without members."""

    def start(
        self,
        steps: Sequence[Step],
        id: str,
        *,
        value: object = NOTHING,
        results: Mapping[str, Any] | None = None,
        join: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a chain whose id is ``id``, with what goes before its first step's arguments: ``value``, or a chord's ``results``."""
        first, *rest = identified(steps, id)
        if "members" not in first:
            self._call(first, rest, value, results, join)
            return
        branches = cast("Sequence[Sequence[Step]]", first["members"])
        chord = cast("str", first["id"])
        ids = [branch[-1].get("id") or derived_id(chord, index) for index, branch in enumerate(branches)]
        waited_for = bool(rest) or join is not None
        if waited_for:
            own = {str(index): id for index, (id, branch) in enumerate(zip(ids, branches, strict=True)) if "id" in branch[-1]}
            document = {"of": len(branches), "ids": own, "next": rest, "join": join, "flow": self.flow, **self._lineage()}
            self.chords.append((chord, {key: each for key, each in document.items() if each or key == "of"}))
        for index, branch in enumerate(branches):
            member = {"chord": chord, "index": index, "of": len(branches)} if waited_for else None
            self.start(branch, ids[index], value=value, results=results, join=member)
        if not branches and rest:
            self.start(rest, id, value=[], join=join)
        elif not branches and join is not None:
            self.ended.append(join)

    def _call(
        self, step: Step, rest: Sequence[Step], value: object, results: Mapping[str, Any] | None, join: Mapping[str, Any] | None
    ) -> None:
        fields: dict[str, Any] = {"next": rest, "join": join, "flow": self.flow}
        if results is not None and not step.get("immutable"):
            fields["results"] = results
        fields = {key: each for key, each in fields.items() if each}
        signature = cast("Signature[Any] | None", step.get("signature"))
        if signature is None:
            parent = self.parent or Message({"id": self.flow, **self._lineage()})
            self.calls.append(calls.linked_message(self.app, step, id=step["id"], parent=parent, value=value, fields=fields))
            return
        task = self.app.tasks.get(signature.task)
        if self.flow is not None:
            fields |= self._lineage()
        options = {**signature.options, "task_id": step["id"]}
        self.calls.append(
            calls.prepare(
                self.app,
                signature.task,
                task,
                signature.args,
                signature.kwargs,
                cast("Any", options),
                fields=fields,
                each=signature.each,
            )
        )

    def _lineage(self) -> dict[str, Any]:
        """To which call the workflow's messages belong: the one that made it, else the workflow itself."""
        if self.parent is not None:
            return {"root": self.parent.root, "parent": self.parent.id}
        run = current.get()
        if run is not None and run.message is not None:
            return {"root": run.message.root, "parent": run.message.id}
        return {"root": self.flow}


def plan(app: CloudQ, canvas: Canvas[Any], *, stored: bool = True) -> tuple[str, Launch]:
    """Everything that calling ``canvas`` sends now, checked and encoded to its last step; and the id of its result.

    Raises ArgumentsError, MessageTooLarge or DelayError as ``task.delay`` does, naming the task; StoreRequired for a chord without a store.
    """
    id = own_id(canvas) or new_id()
    launch = Launch(app, flow=None if isinstance(canvas, Signature) else id)
    steps = calls.steps_of(app, canvas, now=True)
    store = app.store if stored else None
    _check(steps, joined=False, room=None if store is None else min(store.limits.value, app.sender.most) - OVERHEAD)
    launch.start(steps, id)
    for _, document in launch.chords:
        check_nesting(document, "a chord")
    if stored and (launch.chords or any(call.message and waits_for_members(call.message.fields) for call in launch.calls)):
        app.required_store("a chord (a group with a step after it)")
    if _after_commit(canvas):
        for call in launch.calls:
            call.after_commit = True
    return id, launch


def own_id(canvas: Canvas[Any]) -> str | None:
    """The id that the caller chose for its result, if one was chosen."""
    id = canvas.options.get("task_id")
    return own_id(canvas.steps[-1]) if id is None and isinstance(canvas, Chain) else id


def _after_commit(canvas: Canvas[Any]) -> bool:
    front: Sequence[Canvas[Any]] = ()
    if isinstance(canvas, Chain):
        front = canvas.steps[:1]
    elif isinstance(canvas, Group):
        front = cast("Sequence[Canvas[Any]]", canvas.branches)
    return canvas.options.get("after_commit", False) or any(map(_after_commit, front))


def _check(steps: Sequence[Step], *, joined: bool, room: int | None) -> float:
    """How long the steps are delayed in all, in seconds. Raises DelayError for a chord whose results would not be kept for so long.

    ``room``: bytes of what follows a group; more than that is MessageTooLarge.
    """
    total = 0.0
    if room is not None:
        _check_room(steps, joined, room)
    for step, after in zip(steps, (*steps[1:], None), strict=True):
        delay: float = step.get("delay", 0.0)
        if "members" in step:
            members: Sequence[Sequence[Step]] = step["members"]
            waited_for = joined or after is not None
            if len(members) > MAX_MEMBERS:
                raise ArgumentsError(f"a group has {len(members):,} members, and {MAX_MEMBERS:,} is the most", task="")
            delay += max((_check(branch, joined=waited_for, room=room) for branch in members), default=0.0)
            if waited_for and delay + (after or {}).get("delay", 0.0) > LONGEST:
                raise DelayError(
                    f"the members of a chord and its body may be delayed for {LONGEST / 86400:.0f} days in all: "
                    f"their results are kept for {chords.KEPT / 86400:.0f}"
                )
        total += delay
    return total


def _check_room(steps: Sequence[Step], joined: bool, room: int) -> None:
    """Refuse at the call the documents of chords that the store would refuse later, when a step is done."""
    groups = [at for at, step in enumerate(steps) if "members" in step and (joined or at < len(steps) - 1)]
    if not groups:
        return
    sizes = [0] * (groups[0] + 1) + [
        len(calls.encoded(step, step.get("task", "group"))) + 50 for step in steps[groups[0] + 1 :]
    ]  # and an id
    left = sum(sizes)
    for at, step in enumerate(steps):
        left -= sizes[at]
        if at in groups:
            size = left + sum(len(branch[-1].get("id", "")) + 12 for branch in step["members"] if "id" in branch[-1])
            if size > room:
                raise MessageTooLarge(
                    f"what follows a group of {len(step['members']):,} has {size:,} bytes, and the store and the broker take {room:,}; "
                    "pass references instead, or let a task start the large part"
                )


async def note(store: Store, launch: Launch) -> None:
    """Make the groups durable that are waited for; before any of their members is sent."""
    if store.limits.local:
        for id, document in launch.chords:
            await chords.put(store, id, document)
    else:
        await asyncio.gather(*(chords.put(store, id, document) for id, document in launch.chords))


def handle(app: CloudQ, canvas: Canvas[Any], id: str) -> AsyncResult[Any]:
    """The result of a canvas that was called with ``id``."""
    if isinstance(canvas, Group):
        branches = cast("Sequence[Canvas[Any]]", canvas.branches)
        children = [handle(app, branch, own_id(branch) or derived_id(id, index)) for index, branch in enumerate(branches)]
        return GroupResult(id, app, children)
    if not isinstance(canvas, Chain):
        return AsyncResult(id, app)
    steps = canvas.steps
    last: AsyncResult[Any] | None = None
    for at, step in enumerate(steps):
        own = id if at == len(steps) - 1 else own_id(step) or derived_id(id, "step", at)
        result = handle(app, step, own)
        result.parent, last = last, result
    assert last is not None
    return last


def identified(steps: Sequence[Step], id: str) -> list[Step]:
    """The steps of a chain whose id is ``id``, each with its own."""
    last = len(steps) - 1
    return [step if "id" in step else {**step, "id": id if at == last else derived_id(id, "step", at)} for at, step in enumerate(steps)]
