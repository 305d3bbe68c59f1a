"""What became of a call: reads the task's document in the store."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from cloudq import records, states
from cloudq.errors import ResultTimeout, TaskExpired, TaskFailed, TaskRevoked
from cloudq.io import drive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cloudq.app import CloudQ
    from cloudq.dispatch import Way
    from cloudq.store import Store, Value

PART: Final = 100
"""Documents that ``get`` reads at a look, of a group with more members."""
ALL_EVERY: Final = 15.0
"""Seconds between looks of ``get`` at all members of a larger group."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_FAILED = {states.REVOKED: TaskRevoked, states.EXPIRED: TaskExpired}


class AsyncResult(Generic[R_co]):
    """A handle on one call, by task id. It needs the app's store; without one everything but ``id`` raises StoreRequired."""

    __slots__ = ("_app", "_final", "_task", "_whole", "id", "parent")

    def __init__(self, id: str, app: CloudQ, *, task: str | None = None, parent: AsyncResult[Any] | None = None) -> None:
        self.id = id
        self.parent = parent
        """The result of the step before it, where this handle was made by calling a chain."""
        self._app = app
        self._task = task
        self._final: Value | None = None
        self._whole: GroupResult[Any] | None = None
        """Of which group it is a member: where that was never begun, its document says so for all."""

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    # ------------------------------------------------------------------ waiting

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> R_co:
        """Wait for the result and return it, by the task's return type.

        ``timeout`` in seconds. Raises ResultTimeout; TaskFailed (or its kinds TaskRevoked, TaskExpired) when the task
        ended otherwise, unless ``propagate`` is false: then it returns that error.
        """
        return drive(self._wait(self._app.dispatch.blocking, timeout, propagate))

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> R_co:
        """``get`` for a coroutine."""
        return await self._wait(self._app.dispatch.awaiting, timeout, propagate)

    async def _wait(self, way: Way, timeout: float | None, propagate: bool) -> R_co:
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            document = await self._glance(way)
            if document is not None and self._is_over(document, propagate):
                return self._outcome(document, propagate)
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    raise self._late(timeout, document)
            await way.sleep(pause)
        raise AssertionError("pauses never end")

    # ------------------------------------------------------------------ looking

    @property
    def state(self) -> str:
        """The state now: PENDING where nothing is known; see ``cloudq.states``. Tasks can set others by ``update_state``."""
        return self._shown(self._read())

    status = state

    async def astate(self) -> str:
        """``state`` for a coroutine."""
        return self._shown(await self.arecord())

    def _shown(self, document: Value | None) -> str:
        if document is None:
            return states.PENDING
        shown = records.shown(document)
        return shown if shown == states.REVOKING else cast("str", document.get("progress", shown))

    @property
    def info(self) -> Any:
        """What the task last recorded by ``update_state``, the value when it succeeded, the error when it failed, else ``None``."""
        document = self._read()
        if document is None:
            return None
        return self._outcome(document, propagate=False) if document["state"] in states.TERMINAL else document.get("meta")

    @property
    def result(self) -> Any:
        """The value, or the error, or ``None`` while there is none."""
        document = self._read()
        return self._outcome(document, propagate=False) if document is not None and document["state"] in states.TERMINAL else None

    @property
    def traceback(self) -> str | None:
        """The traceback's text when the task failed."""
        document = self._read()
        return cast("str | None", (document or {}).get("error", {}).get("traceback") or None)

    @property
    def record(self) -> Value | None:
        """All that the store holds of the task: state, attempt, times (Unix, seconds), queue, error, progress."""
        return self._read()

    async def arecord(self) -> Value | None:
        """``record`` for a coroutine."""
        return await self._fetch(self._app.dispatch.awaiting)

    def ready(self) -> bool:
        """Whether it has ended, however."""
        return self._state() in states.TERMINAL

    async def aready(self) -> bool:
        """``ready`` for a coroutine."""
        document = await self.arecord()
        return document is not None and self._is_over(document, propagate=False)

    def successful(self) -> bool:
        """Whether it ended with a value."""
        return self._state() == states.SUCCESS

    def failed(self) -> bool:
        """Whether it ended in the dead-letter queue."""
        return self._state() in {states.FAILURE, states.DEAD}

    # ------------------------------------------------------------------ acting

    def revoke(self, *, terminate: bool = True) -> None:
        """Ask that it does not start, and that it stops where it runs; durable, also when no worker is alive.

        A call that waits in the timer is taken out of it. A run is stopped at its worker's next heartbeat: an async task is cancelled, in a
        sync one an exception is raised that ``except Exception`` lets pass; with ``terminate=False`` it goes on. Until it has ended its
        state is REVOKING. On the result of a chain, group or chord it cancels the whole: no step of it starts any more.
        """
        drive(self._revoke(self._app.dispatch.blocking, terminate))

    async def arevoke(self, *, terminate: bool = True) -> None:
        """``revoke`` for a coroutine."""
        await self._revoke(self._app.dispatch.awaiting, terminate)

    async def _revoke(self, way: Way, terminate: bool) -> None:
        revoke = self._app.dispatch.revoke
        await revoke(way, self.id, terminate=terminate)
        if begun := self._begun_with():  # what of it waits in the timer is taken out
            for id, document in (await way.store(lambda store: _documents(store, begun))).items():
                if document is not None and "waits" in document and document["state"] not in states.TERMINAL:
                    await revoke(way, id, terminate=terminate)

    def _begun_with(self) -> list[str]:
        """The ids of the calls that begin it, where these are not itself."""
        first: AsyncResult[Any] = self
        while first.parent is not None:
            first = first.parent
        if isinstance(first, GroupResult):
            children: Sequence[AsyncResult[Any]] = cast("Any", first).children
            return [id for child in children for id in child._begun_with() or [child.id]]
        return [] if first is self else [first.id]

    def forget(self) -> None:
        """Delete what the store holds of it; what still runs writes it anew. A duplicate delivery of what has ended would run again."""
        self._final = None
        self._app.use_store(lambda store: store.delete(records.KIND, self.id))

    # ------------------------------------------------------------------

    def _state(self) -> str:
        document = self._read()
        return states.PENDING if document is None else cast("str", document["state"])

    def _read(self) -> Value | None:
        return drive(self._fetch(self._app.dispatch.blocking))

    async def _fetch(self, way: Way) -> Value | None:
        return self._final or self._kept(await way.store(self._look))

    async def _glance(self, way: Way) -> Value | None:
        """What tells ``get`` whether to go on waiting."""
        return await self._fetch(way)

    async def _look(self, store: Store) -> Value | None:
        found = await store.get(records.KIND, self.id)
        if found is not None or self._whole is None:
            return None if found is None else found.value
        whole = await self._whole._look(store)
        return whole if whole is not None and whole["state"] in states.TERMINAL else None

    def _is_over(self, document: Value, propagate: bool) -> bool:
        """Whether there is nothing more to wait for."""
        return document["state"] in states.TERMINAL

    def _kept(self, document: Value | None) -> Value | None:
        if document is not None and document["state"] in states.TERMINAL:
            self._final = document  # which a redrive alone changes, and then a new handle tells of it
        return document

    def _outcome(self, document: Value, propagate: bool) -> R_co:
        state = document["state"]
        if state == states.SUCCESS:
            task = self._app.tasks.get(document.get("task") or self._task or "")
            value = document.get("value")
            if task is None or value is None:
                return cast("R_co", value)
            decode = task.codec.decode_result
            return cast("R_co", [decode(each) for each in value] if document.get("each") else decode(value))
        error = cast("Mapping[str, str]", document.get("error") or {})
        kind = _FAILED.get(state, TaskFailed)
        failure = kind(
            error.get("type") or state,
            (None if "upstream" in document else error.get("detail")) or cast("str", document.get("reason", "")),
            task_id=self.id,
            traceback=error.get("traceback", ""),
        )
        if propagate:
            raise failure
        return cast("R_co", failure)

    def _late(self, timeout: float | None, document: Value | None) -> ResultTimeout:
        state = document["state"] if document else states.PENDING
        return ResultTimeout(f"no result of {self.id} within {timeout} s; its state is {state}")


class GroupResult(AsyncResult[list[R]]):
    """What became of a group: its result is the list of its members', in order.

    ``get`` raises as soon as a member has failed. With ``propagate=False`` it waits for all, and errors stand in the list in their places.
    """

    __slots__ = ("_began", "_looked_at", "children")

    def __init__(self, id: str, app: CloudQ, children: Sequence[AsyncResult[R]], *, parent: AsyncResult[Any] | None = None) -> None:
        super().__init__(id, app, parent=parent)
        self._began = False
        self._looked_at = -math.inf
        self.children: Sequence[AsyncResult[R]] = children
        """The members' results, in order; a member that is a group has a GroupResult."""
        for child in children:
            child._whole = self

    def __repr__(self) -> str:
        return f"<GroupResult {self.id}: {len(self.children)}>"

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self.children)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self.children[index]

    @property
    def results(self) -> Sequence[AsyncResult[R]]:
        """Celery's name for ``children``."""
        return self.children

    def ready(self) -> bool:
        """Whether all members have ended, however."""
        return not self.waiting()

    def join(self, timeout: float | None = None, *, propagate: bool = True) -> list[R]:
        """Celery's name for ``get``."""
        return self.get(timeout, propagate=propagate)

    def completed_count(self) -> int:
        """How many members have ended with a value."""
        self._read()
        return sum(child._final is not None and child._final["state"] == states.SUCCESS for child in self.children)

    def waiting(self) -> bool:
        """Whether a member has not ended yet."""
        self._read()
        return self._final is None

    def forget(self) -> None:
        """Delete what the store holds of its members."""
        super().forget()
        for child in self.children:
            child.forget()

    # ------------------------------------------------------------------

    async def _fetch(self, way: Way) -> Value | None:
        return await self._fetch_some(way, self._open())

    async def _fetch_some(self, way: Way, ids: Sequence[str]) -> Value:
        return self._merged(await way.store(lambda store: _documents(store, ids)) if ids else {})

    async def _glance(self, way: Way) -> Value | None:
        """The first open members tell it, one after another of a large group's parts, each with the documents of the groups that they are
        in; all are read now and then, for failures."""
        while len(ids := self._open()) > PART and time.monotonic() - self._looked_at < ALL_EVERY:
            merged = await self._fetch_some(way, part := ids[:PART])
            if set(part) & set(self._open(own=False)[:PART]):
                return merged
        found = await self._fetch(way)
        self._looked_at = time.monotonic()
        return found

    def _open(self, *, own: bool = True) -> list[str]:
        """The ids of whose end nothing is known yet; with ``own`` its own too: it is there where the group was never begun."""
        if self._final is not None or not self.children:
            return []
        ids = self._lineage() if own else []
        for child in self.children:
            ids.extend(child._open(own=own) if isinstance(child, GroupResult) else [] if child._final is not None else [child.id])
        return ids

    def _lineage(self) -> list[str]:
        return [self.id] if self._whole is None else [self.id, *self._whole._lineage()]

    def _own(self, documents: Mapping[str, Value | None]) -> Value | None:
        """Its own document, or that of the group that it is in: there where it was never begun."""
        found = documents.get(self.id)
        return self._whole._own(documents) if found is None and self._whole is not None else found

    def _merged(self, documents: Mapping[str, Value | None]) -> Value:
        """What its members' documents come to, as a document of its own."""
        if self._final is not None:
            return self._final
        values: list[Any] = []
        ended, failure = True, None
        for child in self.children:
            if isinstance(child, GroupResult):
                found: Value | None = child._merged(documents)
                self._began = self._began or child._began
            else:
                found = child._final or child._kept(documents.get(child.id))
                self._began = self._began or found is not None
            if found is None or found["state"] not in states.TERMINAL:
                ended = False
            elif found["state"] != states.SUCCESS:
                failure = failure or found
            else:
                values.append(found.get("value"))
        own = self._own(documents)
        if own is not None and own["state"] in states.TERMINAL and not self._began:  # it never will; redriven, it does
            self._final = own
            return own
        merged: dict[str, Any] = {"state": states.PENDING if own is None or own["state"] in states.TERMINAL else own["state"]}
        if failure is not None:
            merged = dict(failure)
        elif ended:
            merged = {"state": states.SUCCESS, "value": values}
        if ended:
            self._final = merged
        return merged

    def _outcome(self, document: Value, propagate: bool) -> list[R]:
        if propagate and document["state"] != states.SUCCESS:
            return super()._outcome(document, propagate)
        return [child._outcome(child._final or document, propagate) for child in self.children]

    def _is_over(self, document: Value, propagate: bool) -> bool:
        return self._final is not None or (propagate and document["state"] in states.TERMINAL)


class EagerGroupResult(GroupResult[R]):
    """The result of a group that ran here and now; it needs no store."""

    __slots__ = ()

    async def _revoke(self, way: Way, terminate: bool) -> None:
        """It has run already: nothing to do."""

    def forget(self) -> None:
        """Nothing is stored."""

    async def _fetch(self, way: Way) -> Value | None:
        return self._merged({})


class EagerResult(AsyncResult[R_co]):
    """The result of a call that ran here and now; it needs no store."""

    __slots__ = ()

    def __init__(self, id: str, app: CloudQ, document: Value) -> None:
        super().__init__(id, app)
        self._final = document

    async def _revoke(self, way: Way, terminate: bool) -> None:
        """It has run already: nothing to do."""

    def forget(self) -> None:
        """Nothing is stored."""


async def _documents(store: Store, ids: Sequence[str]) -> dict[str, Value | None]:
    found = await store.get_many(records.KIND, ids)
    return {id: None if each is None else each.value for id, each in zip(ids, found, strict=True)}


def _pauses() -> Iterator[float]:
    """Seconds between looks: quick at first, once a second later."""
    pause = 0.01
    while True:
        yield pause
        pause = min(pause * 1.5, 1.0)
