"""The app: a registry of tasks, the settings, the three seams opened on first use, and the ways to call."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar, Unpack, cast, overload

from cloudq import adapters, calls, forks, signals
from cloudq import result as results
from cloudq.broker import Broker, CreatesQueues
from cloudq.clock import Clock, SystemClock
from cloudq.config import Config, Queue
from cloudq.dispatch import Dispatch
from cloudq.errors import (
    ConfigError,
    DuplicateTask,
    StoreRequired,
    StoreUnavailable,
    UnknownSchedule,
    UnknownTask,
)
from cloudq.io import IOThread, drive
from cloudq.middleware import Hooks, Middleware
from cloudq.request import current
from cloudq.sending import Sender
from cloudq.signature import CallOptions, Canvas, Signature
from cloudq.task import AsyncTask, BoundDecorator, Decorator, P, R, SyncTask, Task, TaskOptions, make_task

if TYPE_CHECKING:
    from cloudq.events import Events
    from cloudq.recurring import CatchUp, Recurring, TriggerLike
    from cloudq.seal import Sealing
    from cloudq.store import Store
    from cloudq.timer import Timer

T = TypeVar("T")
logger = logging.getLogger("cloudq")

MAX_RECEIVES: Final = 1_000
"""Deliveries after which a local broker itself dead-letters a message: the last resort, and SQS's most."""

EagerHost = Callable[["CloudQ", Task[..., Any], Sequence[Any], Mapping[str, Any], CallOptions], results.AsyncResult[Any]]


class CloudQ:
    """A task queue. ``broker``, ``store`` and ``timer`` are URLs or drivers; nothing connects until it is used.

    Without them ``CLOUDQ_BROKER``, ``CLOUDQ_STORE`` and ``CLOUDQ_TIMER`` count; without a broker ``memory://`` does. ``queues``
    names those that no task names. ``include``: modules with tasks, imported when a worker starts or by ``load()``.
    ``beat_schedule``: schedules as Celery has them, by name.
    ``signing`` and ``encryption``: keys as ``id:base64,id:base64``, the first of which seals and all of which open messages
    (``CLOUDQ_SIGNING_KEYS``, ``CLOUDQ_ENCRYPTION_KEYS``; docs/security.md), with ``accept_unsigned`` while they are rolled in.
    Other keywords are the fields of ``Config``. Raises ConfigError for what is set wrongly.
    """

    eager_host: ClassVar[EagerHost]
    """Runs a call here and now; the host layer sets it."""
    eager_canvas_host: ClassVar[Callable[[CloudQ, Canvas[Any]], results.AsyncResult[Any]]]
    """The same for a canvas."""

    def __init__(
        self,
        name: str,
        *,
        broker: str | Broker | None = None,
        store: str | Store | None = None,
        timer: str | Timer | None = None,
        queues: Iterable[str | Queue] = (),
        include: Sequence[str] = (),
        middleware: Iterable[Middleware] = (),
        beat_schedule: Mapping[str, Mapping[str, Any]] | None = None,
        clock: Clock | None = None,
        signing: str | None = None,
        encryption: str | None = None,
        accept_unsigned: bool | None = None,
        **settings: Any,
    ) -> None:
        if not name or not name.isprintable():
            raise ConfigError("an app needs a name: CloudQ('shop', …)")
        self.name = name
        self.reference: str | None = None
        """Where it was found by name, ``module:attribute``; child processes load it from there."""
        self.conf = Config.of(settings)
        self.clock: Clock = clock or SystemClock()
        self.sealing = _sealing(signing, encryption, accept_unsigned, self.clock.time)
        """Signs and encrypts messages; ``None`` without keys."""
        self.tasks: dict[str, Task[..., Any]] = {}
        self._queues: dict[str, Queue] = {}
        self.schedules: dict[str, Recurring] = {}
        """What recurs, by name."""
        self.io = IOThread(name)
        self.dispatch = Dispatch(self)
        self.given: Mapping[str, object] = {"broker": broker, "store": store, "timer": timer}
        """What the seams were set to: URLs, drivers or ``None``."""
        self._broker: Broker | None = None
        self._store: Store | None = None
        self._store_known = False
        self._timer: Timer | None = None
        self._sender: Sender | None = None
        self._events: Events | None = None
        self._opened = threading.RLock()
        self._include = list(include)
        self._middleware = list(middleware)
        self._hooks: Hooks | None = None
        self._hooks_epoch: int = -1
        self.io.at_close(self._close_seams)
        forks.protect(self, row=-1)
        for queue in queues:
            self.declare_queue(queue)
        for schedule, entry in (beat_schedule or {}).items():
            self._schedule_entry(schedule, entry)

    def __repr__(self) -> str:
        return f"<CloudQ {self.name}: {len(self.tasks)} tasks>"

    # ------------------------------------------------------------------ tasks

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def task(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def task(self, /, *, bind: Literal[True], **options: Unpack[TaskOptions]) -> BoundDecorator: ...
    @overload
    def task(self, /, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]) -> Decorator: ...
    def task(self, function: Callable[..., Any] | None = None, /, *, bind: bool = False, **options: Unpack[TaskOptions]) -> Any:
        """Make a function a task of this app: ``@app.task`` or ``@app.task(queue="emails", retry=Retry(...))``.

        Raises ConfigError for options that make no sense, DuplicateTask where another function has the name.
        """
        if function is not None:
            return self.add(make_task(function, bind=bind, options=options, app=self))

        def decorate(decorated: Callable[..., Any]) -> Task[..., Any]:
            return self.add(make_task(decorated, bind=bind, options=options, app=self))

        return decorate

    def add(self, task: Task[P, R]) -> Task[P, R]:
        """Register a task made by ``cloudq.task``; returns the one that belongs to this app."""
        task = task.bound_to(self)
        known = self.tasks.get(task.name)
        if known is not None and not _same_function(known.function, task.function):
            raise DuplicateTask(
                f"two tasks are named {task.name!r}: {_place(known.function)} and {_place(task.function)}; give one a name=…"
            )
        self.tasks[task.name] = task
        if task.settings.queue is not None:
            self.declare_queue(task.settings.queue)
        elif callable(self.conf.task_routes) and (queue := self.conf.route(task.name)) is not None:
            self.declare_queue(queue)
        if task.settings.schedule is not None:
            from cloudq import recurring

            found = recurring.of_task(task, self.conf.catch_up, self.schedules)
            self.schedules |= {each.name: each for each in found}
        return task

    def schedule(self, name: str, call: Canvas[Any], trigger: TriggerLike, *, catch_up: CatchUp | None = None) -> Recurring:
        """Have ``call``, a signature or a chain, recur: ``app.schedule("report", report.s(7), cron("0 9 * * 1-5", tz="Europe/Berlin"))``.

        ``catch_up``: which of the fires run that were missed while no worker was there, ``"latest"`` (one at most, the app's
        default), ``"all"`` or ``"none"``. The memory timer fires it in its process; in a cloud ``cloudq schedule sync`` makes it an
        entry of the provider's scheduler. Raises ConfigError for a name that is taken and for what cannot recur.
        """
        from cloudq import recurring

        made = recurring.recurring(name, call, trigger, catch_up or self.conf.catch_up, known=self.schedules)
        self.schedules[name] = made
        if (queue := recurring.queue_named(made)) is not None:
            self.declare_queue(queue)
        return made

    def required_schedule(self, name: str) -> Recurring:
        """The schedule of that name; raises UnknownSchedule."""
        try:
            return self.schedules[name]
        except KeyError:
            raise UnknownSchedule(f"the app {self.name!r} declares no schedule {name[:100]!r}; {_hint(name, self.schedules)}") from None

    def _schedule_entry(self, name: str, entry: Mapping[str, Any]) -> None:
        from cloudq import recurring

        call, trigger = recurring.of_celery(name, entry, self)
        self.schedule(name, call, trigger)

    def include(self, module: str | ModuleType) -> None:
        """Import a module and bind the tasks in it that have no app (``from cloudq import task``)."""
        loaded = importlib.import_module(module) if isinstance(module, str) else module
        for value in list(vars(loaded).values()):
            if isinstance(value, Task) and value.app is not self:
                found = cast("Task[..., Any]", value)
                if found.app is None or found.name not in self.tasks:
                    self.add(found)

    def autodiscover_tasks(self, packages: Iterable[str], related_name: str = "tasks") -> None:
        """Include ``package.tasks`` of each package that has one."""
        for package in packages:
            name = f"{package}.{related_name}"
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"autodiscover_tasks: there is no package {package!r}")
            if importlib.util.find_spec(name) is not None:
                self.include(name)

    def load(self) -> None:
        """Import the modules of ``include=``; workers and commands do so at their start."""
        while self._include:
            self.include(self._include.pop(0))

    def __getitem__(self, name: str) -> Task[..., Any]:
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTask(f"the app {self.name!r} has no task {name!r}; {_hint(name, self.tasks)}") from None

    @property
    def queues(self) -> dict[str, Queue]:
        """The queues that settings, ``queues=``, tasks and schedules name, by name."""
        for queue in (self.conf.default_queue, *self.conf.routed_queues()):
            if queue not in self._queues:
                self.declare_queue(queue)
        return self._queues

    def declare_queue(self, queue: str | Queue) -> Queue:
        """Make a queue known to the app (and create it where the broker is local); returns it with its dead-letter queue filled in."""
        declared = queue if isinstance(queue, Queue) else Queue(name=queue)
        if declared.name in self._queues and isinstance(queue, str):
            return self._queues[declared.name]
        if declared.dead_letter is None:
            declared = Queue(name=declared.name, dead_letter=self.conf.dead_letter_queue(declared.name))
        self._queues[declared.name] = declared
        if self._broker is not None:
            self._create(self._broker, declared)
        return declared

    def dead_letter_queue(self, queue: str) -> str:
        """Where dead letters of a queue go."""
        declared = self.queues.get(queue)
        return declared.dead_letter if declared is not None and declared.dead_letter else self.conf.dead_letter_queue(queue)

    @property
    def hooks(self) -> Hooks:
        """The overridden hooks of the middleware, and the signals' once one has a receiver."""
        if self._hooks is None or self._hooks_epoch != signals.epoch:
            self._hooks_epoch = signals.epoch
            extra: list[Middleware] = [signals.SignalMiddleware()] if signals.connected() else []
            if (events := self.events) is not None:
                from cloudq.events import NotesSent

                extra.append(NotesSent(events))
            self._hooks = Hooks([*self._middleware, *extra])
        return self._hooks

    def add_middleware(self, middleware: Middleware) -> None:
        """Add middleware after the present ones."""
        self._middleware.append(middleware)
        self._hooks = None

    # ------------------------------------------------------------------ seams

    @property
    def broker(self) -> Broker:
        """The broker, opened on first use."""
        if self._broker is None:
            with self._opened:
                if self._broker is None:
                    given = self.given["broker"] or os.environ.get("CLOUDQ_BROKER") or "memory://"
                    broker = adapters.open_broker(given, self._context()) if isinstance(given, str) else cast("Broker", given)
                    for queue in self.queues.values():
                        self._create(broker, queue)
                    self._broker = broker
        return self._broker

    @property
    def store(self) -> Store | None:
        """The store, opened on first use; ``None`` where none is set."""
        if not self._store_known:
            with self._opened:
                given = self.given["store"] or os.environ.get("CLOUDQ_STORE") or None
                if given is not None and self._store is None:
                    self._store = adapters.open_store(given, self._context()) if isinstance(given, str) else cast("Store", given)
                self._store_known = True
        return self._store

    @property
    def timer(self) -> Timer | None:
        """The timer, opened on first use; a local broker brings its own, elsewhere it is ``None`` where none is set."""
        if self._timer is None:
            with self._opened:
                given = self.given["timer"] or os.environ.get("CLOUDQ_TIMER") or None
                if given is None and self.broker.limits.local:
                    given = "memory://"
                if given is not None and self._timer is None:
                    context = self._context(self.broker)
                    self._timer = adapters.open_timer(given, context) if isinstance(given, str) else cast("Timer", given)
        return self._timer

    @property
    def sender(self) -> Sender:
        """Sends messages; made on first use."""
        if self._sender is None:
            with self._opened:
                if self._sender is None:
                    self._sender = Sender(self.broker, self.timer, self.io, self.clock.time, self.conf.send_timeout, self.sealing)
        return self._sender

    @property
    def events(self) -> Events | None:
        """Where events are noted; ``None`` where ``events`` is off. Raises StoreRequired."""
        if self._events is None and self.conf.events:
            from cloudq.events import Events  # few apps have them

            with self._opened:
                if self._events is None:
                    self._events = Events(self)
        return self._events

    def required_store(self, why: str = "this") -> Store:
        """The store; raises StoreRequired where none is set."""
        store = self.store
        if store is None:
            url = '"memory://"' if self.broker.limits.local else "…"
            raise StoreRequired(
                f"{why} needs a store, and the app {self.name!r} has none: write CloudQ({self.name!r}, store={url}), or set CLOUDQ_STORE"
            )
        return store

    def check(self) -> None:
        """Refuse, when a host starts, what could not be kept once a task runs; raises StoreRequired, ArgumentsError."""
        if self.conf.events:
            self.required_store("events")
        for task in self.tasks.values():
            if (option := task.settings.needs_store) is not None:
                self.required_store(f"{option}= of the task {task.name!r}")
        for each in self.schedules.values():
            each.steps(self)
            if each.task not in self.tasks:
                logger.warning(
                    "schedule %r calls %r, which this process has no task of; %s", each.name, each.task, _hint(each.task, self.tasks)
                )

    def use_store(self, call: Callable[[Store], Coroutine[Any, Any, T]], *, why: str = "a result") -> T:
        """Run ``call(store)`` where the store belongs and wait; from any thread but the I/O thread. Raises StoreUnavailable after
        ``send_timeout`` seconds."""
        store = self.required_store(why)
        if store.limits.local:
            return drive(call(store))
        try:
            return self.io.run(call(store), timeout=self.conf.send_timeout)
        except TimeoutError as error:
            raise self._store_silent() from error

    async def ause_store(self, call: Callable[[Store], Coroutine[Any, Any, T]], *, why: str = "a result") -> T:
        """``use_store`` for a coroutine on any loop."""
        store = self.required_store(why)
        if store.limits.local:
            return await call(store)
        try:
            async with asyncio.timeout(self.conf.send_timeout):
                return await self.io.arun(call(store))
        except TimeoutError as error:
            raise self._store_silent() from error

    def _store_silent(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store did not answer within {self.conf.send_timeout:g} s (send_timeout of the app {self.name!r})")

    def use_broker(self, call: Callable[[Broker], Coroutine[Any, Any, T]]) -> T:
        """Run ``call(broker)`` on the I/O thread and wait; from any thread but that one."""
        return self.io.run(call(self.broker))

    def close(self) -> None:
        """Close connections and end the I/O thread; a later call starts them again. Optional: it happens at exit by itself."""
        if self.io.running:
            self.io.close()
        else:
            for seam in (self._timer, self._store, self._broker):
                if seam is not None and seam.limits.local:
                    drive(seam.close())

    async def _close_seams(self) -> None:
        failed: Exception | None = None
        try:
            if self._sender is not None:
                await self._sender.drain()
        finally:  # also where there was no time to wait for all that is out
            for seam in (self._timer, self._store, self._broker, self.sealing):
                try:
                    if seam is not None:
                        await seam.close()
                except Exception as error:  # the others are closed all the same
                    failed = error
        if failed is not None:
            raise failed

    def _context(self, broker: Broker | None = None) -> adapters.AdapterContext:
        return adapters.AdapterContext(app=self.name, clock=self.clock, broker=broker)

    def _create(self, broker: Broker, queue: Queue) -> None:
        if isinstance(broker, CreatesQueues):
            dead_letter = queue.dead_letter or self.conf.dead_letter_queue(queue.name)
            broker.create_queue(dead_letter)
            broker.create_queue(queue.name, dead_letter=dead_letter, max_receives=MAX_RECEIVES)

    @property
    def fork_lock(self) -> forks.Lock:
        """What guards the opening of the seams. A fork waits for it: a child of one amid an import would wait for that import for ever."""
        return self._opened

    def after_fork(self) -> None:
        """Be as new in a forked child."""
        self._opened = threading.RLock()

    # ------------------------------------------------------------------ sending

    def send_call(
        self, task: Task[..., R], args: Sequence[Any], kwargs: Mapping[str, Any], options: CallOptions | None
    ) -> results.AsyncResult[R]:
        """What ``task.delay`` and its kin do."""
        if self.conf.task_always_eager:
            return self.run_eagerly(task, args, kwargs, options or CallOptions())
        return drive(self.dispatch.one(self.dispatch.blocking, calls.prepare(self, task.name, task, args, kwargs, options)))

    async def asend_call(
        self, task: Task[..., R], args: Sequence[Any], kwargs: Mapping[str, Any], options: CallOptions | None
    ) -> results.AsyncResult[R]:
        """What ``task.adelay`` does."""
        if self.conf.task_always_eager:
            return self.run_eagerly(task, args, kwargs, options or CallOptions())
        return await self.dispatch.one(self.dispatch.awaiting, calls.prepare(self, task.name, task, args, kwargs, options))

    def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> results.AsyncResult[Any]:
        """Call a task by name, without its code: arguments are then plain JSON values, checked only where it runs."""
        task = self.tasks.get(name)
        if task is not None:
            return self.send_call(task, args, kwargs or {}, options)
        return drive(self.dispatch.one(self.dispatch.blocking, calls.prepare(self, name, None, args, kwargs or {}, options)))

    async def asend_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> results.AsyncResult[Any]:
        """``send_task`` for a coroutine."""
        task = self.tasks.get(name)
        if task is not None:
            return await self.asend_call(task, args, kwargs or {}, options)
        return await self.dispatch.one(self.dispatch.awaiting, calls.prepare(self, name, None, args, kwargs or {}, options))

    def send_signature(self, signature: Signature[R]) -> results.AsyncResult[R]:
        """What ``signature.delay`` does."""
        if signature.each:
            return self.send_canvas(signature)
        return self.send_task(signature.task, signature.args, signature.kwargs, **signature.options)

    async def asend_signature(self, signature: Signature[R]) -> results.AsyncResult[R]:
        """What ``signature.adelay`` does."""
        if signature.each:
            return await self.asend_canvas(signature)
        return await self.asend_task(signature.task, signature.args, signature.kwargs, **signature.options)

    def send_canvas(self, canvas: Canvas[R]) -> results.AsyncResult[R]:
        """What ``chain.delay`` and its kin do: everything is checked, groups that are waited for are noted, then what starts is sent.

        Raises what ``task.delay`` raises; BatchSendError where some members of a group were not accepted.
        """
        if self.conf.task_always_eager:
            return self.run_canvas_eagerly(canvas)
        return drive(self.dispatch.canvas(self.dispatch.blocking, canvas))

    async def asend_canvas(self, canvas: Canvas[R]) -> results.AsyncResult[R]:
        """What ``chain.adelay`` and its kin do."""
        if self.conf.task_always_eager:
            return self.run_canvas_eagerly(canvas)
        return await self.dispatch.canvas(self.dispatch.awaiting, canvas)

    def run_canvas_eagerly(self, canvas: Canvas[R]) -> results.AsyncResult[R]:
        """Run a canvas here and now, through codec and runner."""
        return type(self).eager_canvas_host(self, canvas)

    def signature(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Signature[Any]:
        """A call by the task's name, as a value."""
        return Signature(name, args, kwargs, options, app=self)

    def send_many(self, signatures: Iterable[Signature[R]]) -> list[results.AsyncResult[R]]:
        """Send many calls in full batches: ``app.send_many(add.s(i, i) for i in range(10_000))``; returns their results in order.

        Every call is checked before the first is sent. Raises BatchSendError where some were not accepted, naming which.
        """
        if self.conf.task_always_eager:
            return [self.send_signature(each) for each in signatures]
        return drive(self.dispatch.signatures(self.dispatch.blocking, signatures))

    async def asend_many(self, signatures: Iterable[Signature[R]]) -> list[results.AsyncResult[R]]:
        """``send_many`` for a coroutine."""
        if self.conf.task_always_eager:
            return [self.send_signature(each) for each in signatures]
        return await self.dispatch.signatures(self.dispatch.awaiting, signatures)

    @contextmanager
    def batch(self) -> Generator[None, None, None]:
        """Hold the calls inside the block back and send them together at its end: ``with app.batch(): ...``.

        Calls are checked at once, and their results can be kept. Leaving the block by an exception sends nothing; otherwise
        BatchSendError says which calls were not accepted. An inner block belongs to the outer one.
        """
        with self.dispatch.holding() as held:
            yield
        drive(self.dispatch.many(self.dispatch.blocking, held))

    @asynccontextmanager
    async def abatch(self) -> AsyncGenerator[None, None]:
        """``batch`` for a coroutine: ``async with app.abatch(): ...``."""
        with self.dispatch.holding() as held:
            yield
        await self.dispatch.many(self.dispatch.awaiting, held)

    def revoke(self, id: str, *, terminate: bool = True) -> None:
        """What ``result.revoke`` does, by task id."""
        drive(self.dispatch.revoke(self.dispatch.blocking, id, terminate=terminate))

    async def arevoke(self, id: str, *, terminate: bool = True) -> None:
        """``revoke`` for a coroutine."""
        await self.dispatch.revoke(self.dispatch.awaiting, id, terminate=terminate)

    def progress(self, done: float, total: float | None = None) -> None:
        """``task.progress`` of the task that runs here, for code that it calls. Raises RuntimeError outside of one."""
        run = current.get()
        message = None if run is None else run.message
        if message is None:
            raise RuntimeError("app.progress is there only while a task runs")
        self[message.task].progress(done, total)

    def result(self, id: str) -> results.AsyncResult[Any]:
        """The result of a call by its task id."""
        return results.AsyncResult(id, self)

    def AsyncResult(self, id: str) -> results.AsyncResult[Any]:
        """Celery's spelling of ``result``."""
        return self.result(id)

    def run_eagerly(
        self, task: Task[..., R], args: Sequence[Any], kwargs: Mapping[str, Any], options: CallOptions
    ) -> results.AsyncResult[R]:
        """Run a call here and now, through codec and runner."""
        return type(self).eager_host(self, task, args, kwargs, options)


def _sealing(signing: str | None, encryption: str | None, accept_unsigned: bool | None, now: Callable[[], float]) -> Sealing | None:
    if not (signing or encryption or os.environ.get("CLOUDQ_SIGNING_KEYS") or os.environ.get("CLOUDQ_ENCRYPTION_KEYS")):
        return None
    from cloudq import seal

    return seal.configured(signing, encryption, accept_unsigned, now)


def _hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    near = [each for each in known if each.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"did you mean {near[0]!r}?" if near else "is its module imported, or in include=?"


def _same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether both are the same definition, perhaps imported or reloaded twice."""
    if one is other:
        return True
    if (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
        return False
    return all(map(_same_content, _closed_over(one), _closed_over(other)))


def _closed_over(function: Callable[..., Any]) -> list[Any]:
    """What a function made by another one holds of it."""
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


def _same_content(one: Any, other: Any) -> bool:
    if callable(one) and callable(other):
        return _same_function(one, other)
    try:
        return bool(one == other)
    except Exception:  # an array, whose comparison is no truth
        return True


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{function.__module__}.{function.__qualname__}" + (f" (line {code.co_firstlineno})" if code else "")
