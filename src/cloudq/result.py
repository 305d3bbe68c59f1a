"""What became of a call: reads the task's document in the store."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from cloudq import records, states
from cloudq.errors import ResultTimeout, TaskExpired, TaskFailed, TaskRevoked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cloudq.app import CloudQ
    from cloudq.store import Store, Value

R = TypeVar("R")

_FAILED = {states.REVOKED: TaskRevoked, states.EXPIRED: TaskExpired}


class AsyncResult(Generic[R]):
    """A handle on one call, by task id. It needs the app's store; without one everything but ``id`` raises StoreRequired."""

    __slots__ = ("_app", "_final", "_task", "id")

    def __init__(self, id: str, app: CloudQ, *, task: str | None = None) -> None:
        self.id = id
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
        """Ask that it does not start; durable, also when no worker is alive. What runs already goes on."""
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
            return cast("R", task.codec.decode_result(value) if task is not None and value is not None else value)
        error = cast("Mapping[str, str]", document.get("error") or {})
        kind = _FAILED.get(state, TaskFailed)
        failure = kind(
            error.get("type") or state,
            error.get("detail") or cast("str", document.get("reason", "")),
            task_id=self.id,
            traceback=error.get("traceback", ""),
        )
        if propagate:
            raise failure
        return cast("R", failure)

    def _late(self, timeout: float | None, document: Value | None) -> ResultTimeout:
        state = document["state"] if document else states.PENDING
        return ResultTimeout(f"no result of {self.id} within {timeout} s; its state is {state}")


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


async def _document(store: Store, id: str) -> Value | None:
    found = await store.get(records.KIND, id)
    return None if found is None else found.value


def _pauses() -> Iterator[float]:
    """Seconds between looks: quick at first, once a second later."""
    pause = 0.01
    while True:
        yield pause
        pause = min(pause * 1.5, 1.0)
