"""A call as a value: task, arguments and options, to be sent later or linked to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypedDict, TypeVar, Unpack, cast

from cloudq.durations import Duration
from cloudq.errors import ArgumentsError, NotBound

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.result import AsyncResult
    from cloudq.workflow import Chain

R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")


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
    link: Canvas[Any] | Sequence[Canvas[Any]]
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


def refuse_unknown(options: CallOptions, task: str) -> None:
    """Raise ArgumentsError for options that calls do not have."""
    if unknown := sorted(options.keys() - CallOptions.__annotations__.keys()):
        hint = " (priorities are queues here: send to a queue that workers give more weight)" if "priority" in unknown else ""
        raise ArgumentsError(f"task {task!r}: unknown call option {', '.join(unknown)}{hint}", task=task)


class Canvas(Generic[R_co]):
    """A call, or calls composed, as a value: it sends nothing until ``delay`` or ``apply_async``. ``|`` puts another after it.

    Treat it as frozen: all methods return another, but ``link``, ``link_error`` and ``on_error``, which add to it, as in Celery.
    """

    __slots__ = ()

    options: CallOptions
    depth: int = 0
    """How many groups are around its innermost member."""

    @property
    def app(self) -> CloudQ | None:
        """The app that sends it."""
        raise NotImplementedError

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Self:
        """The same, called with ``args`` before its own and ``kwargs`` over its own."""
        raise NotImplementedError

    def set(self, **options: Unpack[CallOptions]) -> Self:
        """The same with more options."""
        raise NotImplementedError

    def link(self, callback: Canvas[Any]) -> Self:
        """Call ``callback`` with the result."""
        raise NotImplementedError

    def link_error(self, errback: Signature[Any]) -> Self:
        """Call ``errback`` when there is no result."""
        raise NotImplementedError

    def on_error(self, errback: Signature[Any]) -> Self:
        """Celery's name for ``link_error`` where it returns the canvas."""
        return self.link_error(errback)

    def __or__(self, other: Canvas[S]) -> Chain[S]:
        """This, then ``other`` with its result. After a group, ``other`` gets the list of its results: a chord, which needs a store."""
        from cloudq.workflow import Chain

        return Chain((self, other))

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Send it, with more arguments before its own; returns the handle on its result."""
        return self._bound().send_canvas(self.clone(args, kwargs))

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """``delay`` for a coroutine."""
        return await self._bound().asend_canvas(self.clone(args, kwargs))

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> AsyncResult[R_co]:
        """Send it, Celery's way."""
        return self._bound().send_canvas(self.clone(args, kwargs).set(**options))

    def apply(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]) -> AsyncResult[R_co]:
        """Run it here and now, step by step, through codec and runner as workers would."""
        return self._bound().run_canvas_eagerly(self.clone(args, kwargs).set(**options))

    def _bound(self) -> CloudQ:
        app = self.app
        if app is None:
            raise NotBound(f"{self!r} belongs to no app; app.include(module) binds the tasks of a module")
        return app


class Signature(Canvas[R_co]):
    """``task.s(1, 2)``: one call as a value."""

    __slots__ = ("_app", "args", "each", "immutable", "kwargs", "options", "task")

    def __init__(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: CallOptions = NO_OPTIONS,
        *,
        immutable: bool = False,
        each: bool = False,
        app: CloudQ | None = None,
    ) -> None:
        self.task = task
        self.args = tuple(args)
        self.kwargs: Mapping[str, Any] = kwargs or {}
        self.options = options
        self.immutable = immutable or each
        """Whether it refuses the result of the task that it is linked to (``.si()``)."""
        self.each = each
        """Whether ``args`` are lists of arguments, for as many calls in one run (``map``, ``starmap``)."""
        self._app = app

    def __repr__(self) -> str:
        return f"{self.task}{'.each' if self.each else ''}(…)"  # arguments may be secrets

    def __eq__(self, other: object) -> bool:
        same: object = other
        return isinstance(other, Signature) and all(getattr(self, name) == getattr(same, name) for name in _COMPARED)

    __hash__ = None  # type: ignore[assignment]  # it can change, by link

    @property
    def app(self) -> CloudQ | None:
        return self._app

    def set(self, **options: Unpack[CallOptions]) -> Signature[R_co]:
        """The same call with more options."""
        return self._with(options=cast("CallOptions", {**self.options, **options}))

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Signature[R_co]:
        """The same call with ``args`` before its own and ``kwargs`` over its own; an immutable one ignores them."""
        if self.immutable or not (args or kwargs):
            return self
        return self._with(args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})})

    def link(self, callback: Canvas[Any]) -> Signature[R_co]:
        """Call ``callback`` with the result. Adds to this signature and returns it."""
        return self._add("link", callback)

    def link_error(self, errback: Signature[Any]) -> Signature[R_co]:
        """Call ``errback`` with what went wrong, when it ends without a result. Adds to this signature and returns it."""
        return self._add("link_error", errback)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, as if it were no task."""
        call = self.clone(args, kwargs)
        return self._bound()[self.task].call(call.args, call.kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Send it, with more arguments before its own."""
        return self._bound().send_signature(self.clone(args, kwargs))

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """``delay`` for a coroutine."""
        return await self._bound().asend_signature(self.clone(args, kwargs))

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> AsyncResult[R_co]:
        """Send it, Celery's way."""
        return self._bound().send_signature(self.clone(args, kwargs).set(**options))

    def _with(self, **changes: Any) -> Signature[R_co]:
        fields: dict[str, Any] = {name: getattr(self, name) for name in _COMPARED}
        return Signature(**{**fields, **changes}, app=self._app)

    def _add(self, kind: Literal["link", "link_error"], canvas: Canvas[Any]) -> Signature[R_co]:
        present: Any = self.options.get(kind, ())
        several: list[Any] = [present] if isinstance(present, Canvas) else [*present]
        self.options = cast("CallOptions", {**self.options, kind: [*several, canvas]})
        return self


_COMPARED: Final = ("task", "args", "kwargs", "options", "immutable", "each")
