"""A call as a value: task, arguments and options, to be sent later or linked to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, Unpack, cast

from cloudq.durations import Duration
from cloudq.errors import NotBound

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.result import AsyncResult

R = TypeVar("R")


class CallOptions(TypedDict, total=False):
    """What one call can set. Durations are seconds, a timedelta or text like ``"5m"``."""

    queue: str
    delay: Duration
    """Do not run before this much time has passed; ``countdown`` is Celery's name for it."""
    countdown: Duration
    eta: datetime
    """Do not run before this instant (an aware datetime)."""
    expires: Duration | datetime
    """Do not start after this."""
    timeout: Duration
    """Time limit of a run; ``time_limit`` is Celery's name for it."""
    time_limit: Duration
    task_id: str
    headers: Mapping[str, Any]
    link: Signature[Any] | Sequence[Signature[Any]]
    """To be called with the result."""
    link_error: Signature[Any] | Sequence[Signature[Any]]
    """To be called with what went wrong, when it ends without a result."""
    ignore_result: bool
    ordering_key: str
    """Calls with the same key run one after another, in the order sent (ordered queues)."""
    tenant: str
    """Calls of one tenant do not crowd out those of others (fair queues)."""
    after_commit: bool
    """Send when the current database transaction commits, by the app's ``after_commit`` hook."""


NO_OPTIONS: Final = CallOptions()


@dataclass(slots=True)
class Signature(Generic[R]):
    """``task.s(1, 2)``: sends nothing until ``delay`` or ``apply_async``. Treat it as frozen: ``set`` and ``clone`` return another."""

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: {})
    options: CallOptions = field(default_factory=lambda: NO_OPTIONS)
    immutable: bool = False
    """Whether it refuses the result of the task that it is linked to (``.si()``)."""
    app: CloudQ | None = field(default=None, compare=False, repr=False)

    def set(self, **options: Unpack[CallOptions]) -> Signature[R]:
        """The same call with more options."""
        return replace(self, options=cast("CallOptions", {**self.options, **options}))

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Signature[R]:
        """The same call with ``args`` before its own and ``kwargs`` over its own; an immutable one ignores them."""
        if self.immutable:
            return self
        return replace(self, args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})})

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """Send it, with more arguments before its own."""
        return self._bound().send_signature(self.clone(args, kwargs))

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R]:
        """``delay`` for a coroutine."""
        return await self._bound().asend_signature(self.clone(args, kwargs))

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> AsyncResult[R]:
        """Send it, Celery's way."""
        return self._bound().send_signature(self.clone(args, kwargs).set(**options))

    def _bound(self) -> CloudQ:
        if self.app is None:
            raise NotBound(f"the signature of {self.task!r} belongs to no app; app.include(module) binds the tasks of a module")
        return self.app
