"""What became of a call: reads the task's document in the store."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from cloudq import records, states
from cloudq.errors import ResultTimeout, TaskExpired, TaskFailed, TaskRevoked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cloudq.app import CloudQ
    from cloudq.store import Store, Value

R = TypeVar("R")

_FAILED = {states.REVOKED: TaskRevoked, states.EXPIRED: TaskExpired}


class AsyncResult(Generic[R]):
    """A handle on one call, by task id. It needs the app's store; without one everything but ``id`` raises StoreRequired."""

    __slots__ = ("_app", "_final", "_task", "id", "parent")

    def __init__(self, id: str, app: CloudQ, *, task: str | None = None, parent: AsyncResult[Any] | None = None) -> None:
        self.id = id
        self.parent = parent
        """The result of the step before it, where this handle was made by calling a chain."""
        self._app = app
        self._task = task
        self._final: Value | None = None

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    # ------------------------------------------------------------------ waiting

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> R:
        """Wait for the result and return it, by the task's return type.

        ``timeout`` in seconds. Raises ResultTimeout; TaskFailed (or its kinds TaskRevoked, TaskExpired) when the task
        ended otherwise, unless ``propagate`` is false: then it returns that error.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            document = self._read()
            if document is not None and document["state"] in states.TERMINAL:
                return self._outcome(document, propagate)
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    raise self._late(timeout, document)
            time.sleep(pause)
        raise AssertionError("pauses never end")

    async def aget(self, timeout: float | None = None, *, propagate: bool = True) -> R:
        """``get`` for a coroutine."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            document = await self._aread()
            if document is not None and document["state"] in states.TERMINAL:
                return self._outcome(document, propagate)
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    raise self._late(timeout, document)
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    # ------------------------------------------------------------------ looking

    @property
    def state(self) -> str:
        """The state now: PENDING where nothing is known; see ``cloudq.states``. Tasks can set others by ``update_state``."""
        document = self._read()
        return states.PENDING if document is None else cast("str", document.get("progress", document["state"]))

    status = state

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

    def ready(self) -> bool:
        """Whether it has ended, however."""
        return self._state() in states.TERMINAL

    def successful(self) -> bool:
        """Whether it ended with a value."""
        return self._state() == states.SUCCESS

    def failed(self) -> bool:
        """Whether it ended in the dead-letter queue."""
        return self._state() in {states.FAILURE, states.DEAD}

    # ------------------------------------------------------------------ acting

    def revoke(self) -> None:
        """Ask that it does not start; durable, also when no worker is alive. What runs already goes on.

        On the result of a chain, group or chord it cancels the whole: no step of it starts any more.
        """
        self._app.use_store(lambda store: records.revoke(store, self.id, now=self._app.clock.time(), ttl=self._app.conf.result_expires))

    def forget(self) -> None:
        """Delete what the store holds of it. A duplicate delivery would then run again."""
        self._final = None
        self._app.use_store(lambda store: store.delete(records.KIND, self.id))

    # ------------------------------------------------------------------

    def _state(self) -> str:
        document = self._read()
        return states.PENDING if document is None else cast("str", document["state"])

    def _read(self) -> Value | None:
        return self._final or self._kept(self._app.use_store(lambda store: _document(store, self.id)))

    async def _aread(self) -> Value | None:
        return self._final or self._kept(await self._app.ause_store(lambda store: _document(store, self.id)))

    def _kept(self, document: Value | None) -> Value | None:
        if document is not None and document["state"] in states.TERMINAL:
            self._final = document  # it will not change any more
        return document

    def _outcome(self, document: Value, propagate: bool) -> R:
        state = document["state"]
        if state == states.SUCCESS:
            task = self._app.tasks.get(document.get("task") or self._task or "")
            value = document.get("value")
            if task is None or value is None:
                return cast("R", value)
            decode = task.codec.decode_result
            return cast("R", [decode(each) for each in value] if document.get("each") else decode(value))
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
        return cast("R", failure)

    def _late(self, timeout: float | None, document: Value | None) -> ResultTimeout:
        state = document["state"] if document else states.PENDING
        return ResultTimeout(f"no result of {self.id} within {timeout} s; its state is {state}")


class GroupResult(AsyncResult[list[R]]):
    """What became of a group: its result is the list of its members', in order."""

    __slots__ = ("children",)

    def __init__(self, id: str, app: CloudQ, children: Sequence[AsyncResult[R]], *, parent: AsyncResult[Any] | None = None) -> None:
        super().__init__(id, app, parent=parent)
        self.children: Sequence[AsyncResult[R]] = children
        """The members' results, in order; a member that is a group has a GroupResult."""

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
        return any(child._final is None for child in self.children)

    def forget(self) -> None:
        """Delete what the store holds of its members."""
        super().forget()
        for child in self.children:
            child.forget()

    # ------------------------------------------------------------------

    def _read(self) -> Value | None:
        if self._final is None and (ids := self._open()):
            return self._merged(self._app.use_store(lambda store: _documents(store, ids)))
        return self._merged({})

    async def _aread(self) -> Value | None:
        if self._final is None and (ids := self._open()):
            return self._merged(await self._app.ause_store(lambda store: _documents(store, ids)))
        return self._merged({})

    def _open(self) -> list[str]:
        """The ids of whose end nothing is known yet, its own among them: it is there where the group was never begun."""
        if self._final is not None or not self.children:
            return []
        ids = [self.id]
        for child in self.children:
            ids.extend(child._open() if isinstance(child, GroupResult) else [] if child._final is not None else [child.id])
        return ids

    def _merged(self, documents: Mapping[str, Value | None]) -> Value:
        """What its members' documents come to, as a document of its own."""
        if self._final is not None:
            return self._final
        own = documents.get(self.id)
        if own is not None and own["state"] in states.TERMINAL:
            self._final = own
            return own
        values: list[Any] = []
        ended, failure = True, None
        for child in self.children:
            if isinstance(child, GroupResult):
                found: Value | None = child._merged(documents)
            else:
                found = child._final or child._kept(documents.get(child.id))
            if found is None or found["state"] not in states.TERMINAL:
                ended = False
            elif found["state"] != states.SUCCESS:
                failure = failure or found
            else:
                values.append(found.get("value"))
        merged: dict[str, Any] = {"state": states.PENDING if own is None else own["state"]}
        if failure is not None:
            merged = dict(failure)
        elif ended:
            merged = {"state": states.SUCCESS, "value": values}
        if ended:
            self._final = merged
        return merged

    def _outcome(self, document: Value, propagate: bool) -> list[R]:
        if document["state"] != states.SUCCESS:
            return super()._outcome(document, propagate)
        return [child._outcome(cast("Value", child._final), propagate) for child in self.children]


class EagerResult(AsyncResult[R]):
    """The result of a call that ran here and now; it needs no store."""

    __slots__ = ()

    def __init__(self, id: str, app: CloudQ, document: Value) -> None:
        super().__init__(id, app)
        self._final = document

    def revoke(self) -> None:
        """It has run already: nothing to do."""

    def forget(self) -> None:
        """Nothing is stored."""


async def _documents(store: Store, ids: Sequence[str]) -> dict[str, Value | None]:
    found = await store.get_many(records.KIND, ids)
    return {id: None if each is None else each.value for id, each in zip(ids, found, strict=True)}


async def _document(store: Store, id: str) -> Value | None:
    found = await store.get(records.KIND, id)
    return None if found is None else found.value


def _pauses() -> Iterator[float]:
    """Seconds between looks: quick at first, once a second later."""
    pause = 0.01
    while True:
        yield pause
        pause = min(pause * 1.5, 1.0)
