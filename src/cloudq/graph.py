"""A workflow as a tree: what a canvas is made of, and how far the workflow with an id has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, Final, Literal, cast

from cloudq import chords, launch, records, states
from cloudq.message import derived_id
from cloudq.signature import Canvas, Signature
from cloudq.store import Store, Value
from cloudq.workflow import Chain, Group

WINDOW: Final = 25
"""Ids that are looked for at once, where nothing says how many there are."""

UNKNOWN: Final = "…"
"""The name of a task that has not been sent yet, where nothing that is stored names it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A task, a chain of steps or a group of members."""

    kind: Literal["task", "chain", "group"]
    name: str = ""
    """The task's."""
    id: str | None = None
    parts: tuple[Node, ...] = ()
    state: str | None = None
    """``None``: nobody has looked."""
    reason: str | None = None
    """Why it ended as it did."""

    def as_json(self) -> dict[str, Any]:
        """The shape of ``cloudq graph --json``."""
        own = {"kind": self.kind, "id": self.id, "state": self.state, "reason": self.reason}
        if self.kind == "task":
            return {**own, "task": self.name}
        return {**own, "steps" if self.kind == "chain" else "members": [part.as_json() for part in self.parts]}


def of_canvas(canvas: Canvas[Any], id: str | None = None) -> Node:
    """What a canvas is made of; with the ``id`` of its result also the ids of all parts."""
    if isinstance(canvas, Signature):
        return Node("task", canvas.task, id)
    if isinstance(canvas, Group):
        branches = cast("Sequence[Canvas[Any]]", canvas.branches)
        ids = [id and (launch.own_id(branch) or derived_id(id, index)) for index, branch in enumerate(branches)]
        return Node("group", "", id, tuple(map(of_canvas, branches, ids)))
    assert isinstance(canvas, Chain)
    last = len(canvas.steps) - 1
    ids = [id and (id if at == last else launch.own_id(step) or derived_id(id, "step", at)) for at, step in enumerate(canvas.steps)]
    return Node("chain", "", id, tuple(map(of_canvas, canvas.steps, ids)))


async def look(store: Store, node: Node) -> Node:
    """The same with the states that the store knows."""
    ids = [each.id for each in _tasks(node) if each.id is not None]
    found = await store.get_many(records.KIND, ids)
    return _with_states(node, {id: document.value for id, document in zip(ids, found, strict=True) if document is not None})


async def of_id(store: Store, id: str) -> Node | None:
    """What the store knows of the call or workflow whose result has this id; ``None`` where it knows nothing.

    Steps after one that runs are known where a group is among the steps before them. Of others only the last is: it has the workflow's id.
    """
    (node,) = await _Search(store).nodes([id])
    return None if node.name == UNKNOWN else await look(store, node)


def alike(nodes: Sequence[Node]) -> Iterator[tuple[Node, int]]:
    """Neighbours that differ in their ids only, as one of them and their number."""
    for _, run in groupby(nodes, _shape):
        first, *rest = run
        yield first, 1 + len(rest)


def mermaid(node: Node) -> str:
    """The workflow as a Mermaid flowchart."""
    drawing = _Drawing()
    drawing.draw(node)
    return "\n".join(["flowchart LR", *(f"    {line}" for line in drawing.lines)])


# ---------------------------------------------------------------------------------------------------------------------


def _tasks(node: Node) -> Iterator[Node]:
    if node.kind != "chain":
        yield node  # a group that will not come has a document of its own
    for part in node.parts:
        yield from _tasks(part)


def _shape(node: Node) -> tuple[Any, ...]:
    return (node.kind, node.name, node.state, node.reason, tuple(map(_shape, node.parts)))


def _with_states(node: Node, documents: Mapping[str, Value]) -> Node:
    own = documents.get(node.id or "")
    if node.kind == "task":
        if own is None:
            return replace(node, state=states.PENDING)
        return replace(node, name=own["task"] or node.name, state=records.shown(own), reason=_reason(own))
    parts = tuple(_with_states(part, documents) for part in node.parts)
    if node.kind == "chain":
        ended = next((part for part in parts if part.state in states.TERMINAL - {states.SUCCESS}), parts[-1])
        begun = ended.state == states.PENDING and any(part.state != states.PENDING for part in parts)
        return replace(node, parts=parts, state=states.STARTED if begun else ended.state, reason=ended.reason)
    known = {part.state for part in parts}
    failed = next((part for part in parts if part.state in states.TERMINAL - {states.SUCCESS}), None)
    if failed is not None:
        return replace(node, parts=parts, state=failed.state, reason=failed.reason)
    if own is not None and own["state"] in states.TERMINAL and known <= {states.PENDING}:
        return replace(node, parts=parts, state=own["state"], reason=_reason(own))
    state = states.STARTED if len(known) > 1 else next(iter(known), states.SUCCESS)
    return replace(node, parts=parts, state=state)


def _reason(document: Value) -> str | None:
    reason, error = document.get("reason"), document.get("error")
    if document.get("revoked") and document["state"] not in states.TERMINAL:
        return "it is to be revoked"
    return f"{reason}: {error['detail']}" if reason and error and "upstream" not in document else reason


def _of_steps(steps: Sequence[launch.Step], id: str) -> Node:
    """What the steps of a message or of a chord come to."""
    parts: list[Node] = []
    for step in launch.identified(steps, id):
        if "members" in step:
            ids = [branch[-1].get("id") or derived_id(step["id"], index) for index, branch in enumerate(step["members"])]
            parts.append(Node("group", "", step["id"], tuple(map(_of_steps, step["members"], ids))))
        else:
            parts.append(Node("task", step["task"], step["id"]))
    return parts[0] if len(parts) == 1 else Node("chain", "", id, tuple(parts))


class _Search:
    """Finds what there is of a workflow by the ids that its parts must have."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: dict[str, Value | None] = {}
        self._chords: dict[str, Value | None] = {}

    async def nodes(self, ids: Sequence[str], *, joined: bool = False) -> list[Node]:
        """What has these ids: tasks, groups, or chains that end there. ``joined``: groups among them are waited for."""
        await self._fetch([trace for id in ids for trace in _traces(id, joined=joined)])
        return [await (self._chain(id, joined) if self._known(derived_id(id, "step", 0)) else self._part(id, joined)) for id in ids]

    async def _fetch(self, ids: Sequence[str]) -> None:
        for kind, known in ((records.KIND, self._tasks), (chords.KIND, self._chords)):
            wanted = [id for id in ids if id not in known]
            found = await self._store.get_many(kind, wanted) if wanted else ()
            known.update({id: document and document.value for id, document in zip(wanted, found, strict=True)})

    def _known(self, id: str) -> bool:
        """Whether it was begun, or refused; a group that only an earlier step has told of is as good as unknown."""
        task = self._tasks.get(id)
        return (task is not None and task["task"] not in ("", "group")) or self._chords.get(id) is not None

    async def _run(self, id: str, *parts: str) -> list[str]:
        """The ids that are derived from ``id`` and a number, up to the first of which nothing is known."""
        ids: list[str] = []
        while True:
            window = [derived_id(id, *parts, len(ids) + index) for index in range(WINDOW)]
            await self._fetch([trace for each in window for trace in _traces(each)])
            known = next((index for index, each in enumerate(window) if not any(map(self._known, _traces(each)))), WINDOW)
            ids += window[:known]
            if known < WINDOW:
                return ids

    async def _part(self, id: str, joined: bool) -> Node:
        """A task, or a group."""
        chord, task = self._chords.get(id), self._tasks.get(id)
        if chord is not None:
            return Node("group", "", id, tuple(await self.nodes(chords.members(id, chord), joined=True)))
        if not joined and not self._known(id) and (members := await self._run(id)):
            return Node("group", "", id, tuple(await self.nodes(members)))
        return Node("task", task["task"] if task is not None and task["task"] else UNKNOWN, id)

    async def _chain(self, id: str, joined: bool) -> Node:
        ids = await self._run(id, "step")
        steps = [await self._part(each, True) for each in ids]
        for at, each in reversed([*enumerate(ids)]):
            following = (self._chords[each] or {}).get("next")
            if following:
                await self._fetch([step["id"] for step in following])
                later = [await self._step(step, joined) for step in following]
                return Node("chain", "", id, (*steps[: at + 1], *later))
        await self._fetch(_traces(id))
        end = await self._part(id, joined)
        return Node("chain", "", id, (*steps, end) if end.name != UNKNOWN else (*steps, Node("task", UNKNOWN), end))

    async def _step(self, step: launch.Step, joined: bool) -> Node:
        id: str = step["id"]
        return await self._part(id, joined) if self._known(id) else _of_steps([step], id)


def _traces(id: str, *, joined: bool = False) -> list[str]:
    """Ids of which one is known where what ends in ``id`` has begun: its own, its first step's, its first member's."""
    member = derived_id(id, 0)
    own = [id, derived_id(id, "step", 0)]
    return own if joined else [*own, member, derived_id(member, "step", 0)]


@dataclass(slots=True)
class _Drawing:
    lines: list[str] = field(default_factory=lambda: [])
    _count: int = 0

    def draw(self, node: Node, times: int = 1) -> tuple[list[str], list[str]]:
        """Draw it; returns the boxes that it begins and ends with."""
        if node.kind == "task" or not node.parts:
            return self._box(node, times)
        if node.kind == "group":
            drawn = [self.draw(part, number) for part, number in alike(node.parts)]
            return [box for first, _ in drawn for box in first], [box for _, last in drawn for box in last]
        ends = [self.draw(part) for part in node.parts]
        for (_, before), (after, _) in pairwise(ends):
            self.lines += [f"{one} --> {other}" for one in before for other in after]
        return ends[0][0], ends[-1][1]

    def _box(self, node: Node, times: int) -> tuple[list[str], list[str]]:
        box, self._count = f"n{self._count}", self._count + 1
        name = (node.name or "empty group").replace("&", "#amp;").replace('"', "#quot;")
        label = name + (f" × {times:,}" if times > 1 else "") + (f"<br/>{node.state}" if node.state else "")
        self.lines.append(f'{box}["{label}"]')
        return [box], [box]
