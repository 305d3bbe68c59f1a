"""A task: a function with a name that can be called here, or sent to run elsewhere."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from cloudq.config import CELERY
from cloudq.durations import Duration, seconds
from cloudq.errors import ArgumentsError, ConfigError, NotBound, RetryRequested, StoreRequired
from cloudq.request import Request, current
from cloudq.retry import NO_RETRY, Retry
from cloudq.signature import CallOptions, Signature, refuse_unknown
from cloudq.values import ArgumentCodec, dumps

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.keyed import Key
    from cloudq.limits import Rate
    from cloudq.recurring import TriggerLike
    from cloudq.result import AsyncResult
    from cloudq.workflow import Group

P = ParamSpec("P")
R = TypeVar("R")


class TaskOptions(TypedDict, total=False):
    """What ``@task(...)`` takes; Celery's spellings map onto ours."""

    name: str
    """How messages name it; by default the module and the function's qualified name."""
    queue: str
    retry: Retry
    timeout: Duration
    """Time limit of one run; ``time_limit`` is Celery's name for it."""
    time_limit: Duration
    expires: Duration
    ignore_result: bool
    autoretry_for: tuple[type[Exception], ...]
    dont_autoretry_for: tuple[type[Exception], ...]
    max_retries: int | None
    default_retry_delay: Duration
    retry_backoff: bool | float
    """True: waits of 1, 2, 4 … s; a number: the first wait in seconds."""
    retry_backoff_max: Duration
    retry_jitter: bool
    idempotency_key: str | Callable[..., object]
    """One run a key: a format string over the parameters (``"{order.id}"``), or a function of the arguments. Needs a store."""
    window: Duration
    """How long after a run its duplicates get its result instead of running; one day unless set."""
    unique: bool | Duration
    """While a call waits, the same call again is not sent. A duration: for so long at most, instead of a day. Needs a store."""
    schedule: TriggerLike | Sequence[TriggerLike]
    """When it recurs: ``cron(…)``, ``every(…)``, their text, seconds; or several. It is called without arguments."""
    rate_limit: str | float
    """How often it starts, over all workers: ``"10/m"``, ``"100/5m"``, or a number a second. Needs a store."""
    max_running: int
    """How many of it run at once, over all workers. Needs a store."""
    limit_key: str | Callable[..., object]
    """For each of which these two hold: a format string over the parameters (``"{tenant}"``), or a function of the arguments."""
    acks_late: Literal[True]
    """Always so in cloudq; accepted for code that comes from Celery."""


class Settings(NamedTuple):
    """A task's options, checked and in one spelling; durations in seconds, ``None`` where the app's default counts."""

    queue: str | None = None
    retry: Retry | None = None
    timeout: float | None = None
    expires: float | None = None
    ignore_result: bool = False
    idempotency_key: str | Callable[..., object] | None = None
    window: float | None = None
    """Seconds; there where ``idempotency_key`` is."""
    unique: float | None = None
    schedule: TriggerLike | Sequence[TriggerLike] | None = None
    rate_limit: Rate | None = None
    max_running: int | None = None
    limit_key: str | Callable[..., object] | None = None

    @property
    def needs_store(self) -> str | None:
        """The option that cannot be kept without a store, if there is one."""
        wanting = ("idempotency_key", "unique", "rate_limit", "max_running")
        return next((option for option in wanting if getattr(self, option) is not None), None)

    @classmethod
    def of(cls, name: str, options: TaskOptions) -> Settings:
        """Check the options of ``@task``; raises ConfigError that names the task."""
        known = TaskOptions.__annotations__.keys()
        if unknown := sorted(options.keys() - known):
            hints = [f"{each} is {CELERY[each]} here" for each in unknown if each in CELERY]
            hint = f" ({'; '.join(hints)})" if hints else ""
            raise ConfigError(f"task {name!r} has no option {', '.join(unknown)}{hint}; it takes {', '.join(known)}")
        if (queue := cast("object", options.get("queue"))) is not None and not (isinstance(queue, str) and queue):
            raise ConfigError(f"task {name!r}: queue= takes a queue's name, not {queue!r}")
        if options.get("acks_late", True) is not True:
            raise ConfigError(f"task {name!r}: cloudq always acknowledges after the outcome is durable; take acks_late out")
        if "timeout" in options and "time_limit" in options:
            raise ConfigError(f"task {name!r}: timeout and time_limit are the same; give one")
        if "window" in options and "idempotency_key" not in options:
            raise ConfigError(f"task {name!r}: window= belongs to idempotency_key=; give that too")
        if "limit_key" in options and not options.keys() & {"rate_limit", "max_running"}:
            raise ConfigError(f"task {name!r}: limit_key= belongs to rate_limit= and max_running=; give one of them too")
        unique = options.get("unique", False)
        try:
            limit = options.get("timeout", options.get("time_limit"))
            return cls(
                queue=options.get("queue"),
                retry=_retry(options),
                timeout=None if limit is None else seconds(limit, "timeout") or None,
                expires=None if "expires" not in options else seconds(options["expires"], "expires"),
                ignore_result=options.get("ignore_result", False),
                idempotency_key=options.get("idempotency_key"),
                window=seconds(options.get("window", WINDOW), "window") if "idempotency_key" in options else None,
                unique=None if unique is False else WAITING if unique is True else seconds(unique, "unique"),
                schedule=options.get("schedule"),
                limit_key=options.get("limit_key"),
                **_limits(name, options),
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"task {name!r}: {error}") from error


PROGRESS: Final = 0.5
"""Seconds between two counts that ``progress`` records."""
WINDOW: Final = 86_400.0
"""Seconds after a run within which its key's duplicates do not run, unless ``window=`` says otherwise."""
WAITING: Final = 86_400.0
"""Seconds that ``unique=True`` lasts at most, beyond the call's own delay."""


def _limits(name: str, options: TaskOptions) -> dict[str, Any]:
    """``rate_limit`` and ``max_running``, checked, where they are given."""
    if not options.keys() & {"rate_limit", "max_running"}:
        return {}
    from cloudq import limits  # most tasks have none

    found: dict[str, Any] = {}
    if (given := options.get("rate_limit")) is not None:
        found["rate_limit"] = limits.rate(given, name)
    if "max_running" in options:
        found["max_running"] = limits.seats(options["max_running"], name)
    return found


def _key(task: Task[..., Any]) -> Key | None:
    settings = task.settings
    if settings.idempotency_key is None and settings.unique is None:
        return None
    from cloudq.keyed import Key  # most tasks have none

    return Key(task.function, settings.idempotency_key, bind=task.bind, task=task.name, option="idempotency_key")


def _limit_key(task: Task[..., Any]) -> Key | None:
    if task.settings.limit_key is None:
        return None
    from cloudq.keyed import Key

    return Key(task.function, task.settings.limit_key, bind=task.bind, task=task.name, option="limit_key")


_CELERY_RETRY = (
    "autoretry_for",
    "dont_autoretry_for",
    "max_retries",
    "default_retry_delay",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
)


def _retry(options: TaskOptions) -> Retry | None:
    """The Retry that the options say, in our spelling or in Celery's."""
    celery = [name for name in _CELERY_RETRY if name in options]
    if "retry" in options:
        if celery:
            raise ValueError(f"give retry=Retry(…) or {', '.join(celery)}, not both")
        if not isinstance(cast("object", options["retry"]), Retry):
            raise TypeError(f"retry takes a Retry, not {options['retry']!r}; write retry=Retry(max_retries=3), or Celery's max_retries=3")
        return options["retry"]
    if not celery:
        return None
    backoff = options.get("retry_backoff", False)
    delay = options.get("default_retry_delay", 180.0)  # Celery's default
    if backoff is not False:
        delay = 1.0 if backoff is True else backoff
    return Retry(
        on=options.get("autoretry_for", ()),
        never=options.get("dont_autoretry_for", ()),
        max_retries=options.get("max_retries", 3),
        delay=delay,
        backoff=1.0 if backoff is False else 2.0,
        max_delay=options.get("retry_backoff_max", 600.0) if backoff is not False else delay,
        jitter=options.get("retry_jitter", True) if backoff is not False else False,
    )


class Task(Generic[P, R]):
    """What ``@task`` makes of a function. Calling it runs the function here and now; ``delay`` and its kin send a message.

    ``R`` is what the function returns; for an ``async def``, what awaiting it gives.
    """

    def __init__(self, function: Callable[..., Any], *, name: str | None, settings: Settings, bind: bool, app: CloudQ | None) -> None:
        self.function = function
        self.name = name or task_name(function)
        self.settings = settings
        self.bind = bind
        self.app = app
        self.is_async = inspect.iscoroutinefunction(function)
        self.codec = ArgumentCodec(function, task=self.name, skip_first=bind)
        self.name_json = dumps(self.name)
        self.key = _key(self)
        """What makes calls the same, where that matters."""
        self.limit_key = _limit_key(self)
        """What calls have in common that count for one limit; ``None``: all."""
        self.is_limited = settings.rate_limit is not None or settings.max_running is not None
        self.is_plain = settings.expires is None
        """Whether a call without options needs nothing in its message but the arguments."""
        self.__name__ = getattr(function, "__name__", self.name)
        self.__qualname__ = getattr(function, "__qualname__", self.name)
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<Task {self.name}{'' if self.app else ' (no app)'}>"

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the function with decoded arguments, ``self`` first where it is bound."""
        return self.function(self, *args, **kwargs) if self.bind else self.function(*args, **kwargs)

    def call_key(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """What a call with these arguments, JSON values, has in common with its duplicates. Runs user code; raises what that raises."""
        assert self.key is not None
        decoded = self.codec.decode(args, kwargs)
        return self.key.of(decoded if self.settings.idempotency_key is not None else (args, kwargs))

    # ------------------------------------------------------------------ sending

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call; returns once the broker has it. From any thread, also inside a running loop (which it blocks for the request).

        Raises ArgumentsError, MessageTooLarge or DelayError before sending; QueueNotFound, BrokerUnavailable or SendError when the
        broker refuses, or no key to encrypt with can be had; TimerError when a timer, which a long delay goes by, refuses; SendUnknown
        when no answer comes in time. With ``unique=`` also StoreError.
        """
        return self.bound_app.send_call(self, args, kwargs, None)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """``delay`` for a coroutine on any loop; raises the same."""
        return await self.bound_app.asend_call(self, args, kwargs, None)

    def options(self, **options: Unpack[CallOptions]) -> Call[P, R]:
        """This task with options for one call: ``task.options(delay="5m", queue="slow").delay(x)``."""
        return Call(self, options)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> AsyncResult[R]:
        """Send a call, Celery's way: ``task.apply_async((x,), countdown=60)``."""
        return self.bound_app.send_call(self, args, kwargs or {}, options)

    def apply(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]) -> AsyncResult[R]:
        """Run the call here and now, through codec and runner as a worker would, retries included (without their waits)."""
        return self.bound_app.run_eagerly(self, args, kwargs or {}, options)

    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """``delay`` when the current database transaction commits, by the app's ``after_commit`` hook; arguments are checked now."""
        return self.bound_app.send_call(self, args, kwargs, {"after_commit": True})

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call as a value. Arguments may be partial: what it is linked to adds its result in front."""
        return Signature(self.name, args, kwargs, app=self.app)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """The call as a value that takes nothing from what it is linked to."""
        return Signature(self.name, args, kwargs, immutable=True, app=self.app)

    def map(self, items: Iterable[Any]) -> Signature[list[R]]:
        """One message that calls it with each item in turn: ``task.map(urls)``; its result is the list."""
        return self.starmap((item,) for item in items)

    def starmap(self, items: Iterable[Sequence[Any]]) -> Signature[list[R]]:
        """``map`` for items that are lists of arguments: ``add.starmap([(1, 2), (3, 4)])``."""
        return Signature(self.name, tuple(items), each=True, app=self.app)

    def chunks(self, items: Iterable[Sequence[Any]], n: int) -> Group[list[R]]:
        """A group of ``starmap``s of ``n`` items each; its result is a list of lists."""
        if n < 1:
            raise ArgumentsError(f"task {self.name!r}: chunks of {n} items; give 1 or more", task=self.name)
        from cloudq.workflow import Group

        rest = iter(items)
        return Group([self.starmap(chunk) for chunk in iter(lambda: tuple(islice(rest, n)), ())])

    # ------------------------------------------------------------------ inside a run

    @property
    def request(self) -> Request:
        """The present run. Raises RuntimeError outside of one."""
        run = current.get()
        request = None if run is None else run.request
        if request is None:
            raise RuntimeError(f"task.request of {self.name!r} is there only while the task runs")
        return request

    def retry(
        self,
        *,
        exc: BaseException | None = None,
        countdown: Duration | None = None,
        delay: Duration | None = None,
        max_retries: int | None = None,
    ) -> NoReturn:
        """Give up this run and run again later: ``raise self.retry(exc=error, countdown=10)``.

        ``countdown`` or ``delay``: the wait, by default as the task's Retry says. With no retry left the task fails with ``exc``.
        """
        wait = countdown if countdown is not None else delay
        request = self.request
        policy = self.policy
        most = policy.max_retries if max_retries is None else max_retries
        if most is not None and request.retries >= most and exc is not None:
            raise exc
        detail = f"{type(exc).__name__}: {exc}" if exc is not None else "the task asked for a retry"
        raise RetryRequested(detail, delay=None if wait is None else seconds(wait, "countdown"), max_retries=max_retries) from exc

    def update_state(self, state: str | None = None, meta: Any = None) -> None:
        """Record progress of the present run for ``result.info``: a state of your own (``"PROGRESS"``) and JSON values.

        Raises StoreRequired where the app has no store, ArgumentsError where ``meta`` is no JSON. In an eager call, and where the claim is
        lost meanwhile, it does nothing.
        """
        request = self.request
        if request.report is not None:
            try:
                request.report(state or "PROGRESS", json.loads(dumps(meta)))  # as it is now
            except (ValueError, TypeError, RecursionError) as error:
                raise ArgumentsError(f"update_state of {self.name!r}: meta takes plain JSON values: {error}", task=self.name) from error
        elif not request.is_eager:
            raise StoreRequired(f"update_state of {self.name!r} needs a store; set CloudQ(store=…) or CLOUDQ_STORE")

    def progress(self, done: float, total: float | None = None) -> None:
        """Record how far the present run is: ``update_state("PROGRESS", {"done": done, "total": total})``, which commands show as a bar.

        Cheap enough for every round of a loop: it is recorded at most twice a second, and always where ``done`` reaches ``total``.
        Raises what ``update_state`` raises.
        """
        request, now = self.request, time.monotonic()
        if now - request.progressed >= PROGRESS or (total is not None and done >= total):
            self.update_state(meta={"done": done, "total": total})
            request.progressed = now

    @property
    def policy(self) -> Retry:
        """Its Retry, else the app's, else none."""
        return self.settings.retry or (self.app.conf.retry if self.app else None) or NO_RETRY

    # ------------------------------------------------------------------ belonging

    @property
    def bound_app(self) -> CloudQ:
        """Its app; raises NotBound."""
        if self.app is None:
            raise NotBound(f"the task {self.name!r} belongs to no app yet: call app.include({self.function.__module__!r}) first")
        return self.app

    def bound_to(self, app: CloudQ) -> Task[P, R]:
        """This task in ``app``: itself where it had none, else a copy."""
        if self.app is None or self.app is app:
            self.app = app
            return self
        return type(self)(self.function, name=self.name, settings=self.settings, bind=self.bind, app=app)


class SyncTask(Task[P, R]):
    """A task made of a ``def``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, as if it were no task."""
        return cast("R", self.call(args, kwargs))


class AsyncTask(Task[P, R]):
    """A task made of an ``async def``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run the coroutine function here and now, as if it were no task."""
        return cast("Coroutine[Any, Any, R]", self.call(args, kwargs))


class Call(Generic[P, R]):
    """A task with options for one call. Immutable and reusable."""

    __slots__ = ("_options", "_task")

    def __init__(self, task: Task[P, R], options: CallOptions) -> None:
        refuse_unknown(options, task.name)
        self._task = task
        self._options = options

    def options(self, **options: Unpack[CallOptions]) -> Call[P, R]:
        """With more options."""
        return Call(self._task, cast("CallOptions", {**self._options, **options}))

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """As ``Task.delay``."""
        return self._task.bound_app.send_call(self._task, args, kwargs, self._options)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """As ``Task.adelay``."""
        return await self._task.bound_app.asend_call(self._task, args, kwargs, self._options)

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call as a value."""
        return Signature(self._task.name, args, kwargs, self._options, app=self._task.app)


class Decorator(Protocol):
    """What ``@task(...)`` with options returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


class BoundDecorator(Protocol):
    """What ``@task(bind=True, ...)`` returns: the function's first parameter is the task itself."""

    @overload
    def __call__(self, function: Callable[Concatenate[Task[..., Any], P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[Concatenate[Task[..., Any], P], R], /) -> SyncTask[P, R]: ...


def make_task(function: Callable[..., Any], *, bind: bool, options: TaskOptions, app: CloudQ | None) -> Task[..., Any]:
    """Build the task of a function; raises ConfigError for what cannot be one."""
    if isinstance(function, Task):
        raise ConfigError(f"{function!r} is a task already; decorate the function once")
    if not callable(function):
        raise ConfigError("@task decorates a function; for options write @task(queue=…)")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{task_name(function)!r} is a generator; a task returns its result: return a list")
    name = options.get("name") or task_name(function)
    kind = AsyncTask[..., Any] if inspect.iscoroutinefunction(function) else SyncTask[..., Any]
    return kind(function, name=name, settings=Settings.of(name, options), bind=bind, app=app)


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
@overload
def task(function: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(*, bind: Literal[True], **options: Unpack[TaskOptions]) -> BoundDecorator: ...
@overload
def task(*, bind: Literal[False] = False, **options: Unpack[TaskOptions]) -> Decorator: ...
def task(function: Callable[..., Any] | None = None, /, *, bind: bool = False, **options: Unpack[TaskOptions]) -> Any:
    """Make a task without an app, for libraries: ``app.include(module)`` or ``app.autodiscover_tasks()`` binds it."""
    if function is not None:
        return make_task(function, bind=bind, options=options, app=None)

    def decorate(decorated: Callable[..., Any]) -> Task[..., Any]:
        return make_task(decorated, bind=bind, options=options, app=None)

    return decorate


shared_task = task
"""Celery's name for it."""


def task_name(function: Callable[..., Any]) -> str:
    """``module.qualname``; for a script run as ``__main__`` the name under which a worker would import it."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        path = getattr(main, "__file__", None)
        module = spec.name.removesuffix(".__main__") if spec else Path(path).stem if path else module
    return f"{module}.{getattr(function, '__qualname__', repr(function))}".replace(".<locals>", "")
