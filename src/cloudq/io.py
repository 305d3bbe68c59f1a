"""The I/O thread: one event loop in a thread of its own, where every broker, store and timer call of an app runs."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar, cast

from cloudq.errors import Closed, ConfigError

T = TypeVar("T")
logger = logging.getLogger("cloudq")


def drive(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of a ``limits.local`` driver to its end in the calling thread; it must not suspend."""
    try:
        call.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    call.close()
    raise RuntimeError("a driver with limits.local suspended; only a receive that waits may")


class IOThread:
    """Owns the loop: starts it at the first use and again in a forked child, and ends it at interpreter exit.

    Thread-safe. User code never runs on the loop, so that a task that blocks cannot stall a heartbeat.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._forgetters: list[Callable[[], None]] = []
        _instances.add(self)

    def at_close(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``closer()`` on the loop before it ends; the last one added runs first."""
        self._closers.append(closer)

    def after_fork(self, forget: Callable[[], None]) -> None:
        """Call ``forget()`` in a forked child, before anything else runs there."""
        self._forgetters.append(forget)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, started if need be. Raises Closed after ``close``."""
        loop = self._loop
        return loop if loop is not None and self._pid == os.getpid() else self._start()

    @property
    def running(self) -> bool:
        """Whether the loop was started in this process and has not ended."""
        return self._loop is not None and self._pid == os.getpid()

    def owns_this_thread(self) -> bool:
        """Whether the caller is on the I/O thread."""
        return self._thread is not None and threading.get_ident() == self._thread.ident

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop from any other thread."""
        try:
            if self.owns_this_thread() and self.running:
                raise Closed("this would wait for the I/O thread on the I/O thread itself; await the async form there")
            return asyncio.run_coroutine_threadsafe(call, self.loop)
        except BaseException:
            call.close()
            raise

    def run(self, call: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it, at most ``timeout`` seconds (TimeoutError; it is then cancelled)."""
        future = self.submit(call)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    async def arun(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine on the loop from any other loop, or from this one."""
        if self.running and asyncio.get_running_loop() is self._loop:
            return await call
        return await asyncio.wrap_future(self.submit(call))

    def close(self, timeout: float = 10.0) -> None:
        """Run the closers, cancel what is left and end the thread, within about ``timeout`` seconds. Later use starts afresh."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or self._pid != os.getpid():
                self._loop = self._thread = None
                return
            if self.owns_this_thread():
                raise Closed("the I/O thread cannot close itself")
            self._loop = self._thread = None
        try:
            asyncio.run_coroutine_threadsafe(self._wind_down(timeout * 0.6), loop).result(timeout * 0.8)
        except TimeoutError:
            pass
        finally:
            loop.call_soon_threadsafe(loop.stop)
            if thread is not None:
                thread.join(timeout * 0.2)

    async def _wind_down(self, timeout: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for closer in reversed(self._closers):
                    try:
                        await closer()
                    except Exception as error:
                        print(f"cloudq: closing failed: {error!r}", file=sys.stderr)  # noqa: T201  # logging may be gone at exit
        await _cancel_all(within=1.0)

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None and self._pid == os.getpid():
                return self._loop
            if self._closed:
                raise Closed("the interpreter is exiting: cloudq has closed its I/O, nothing can be sent any more")
            _refuse_uwsgi_without_threads()
            loop = asyncio.new_event_loop()
            started = threading.Event()
            thread = threading.Thread(target=_serve, args=(loop, started), name=f"cloudq-io-{self._name}", daemon=True)
            self._pid = os.getpid()
            thread.start()
            started.wait()
            self._loop, self._thread = loop, thread
            return loop

    def forked(self) -> None:
        """The process is a forked child: nothing of the parent's loop is here."""
        self._lock = threading.Lock()  # the old one may have been held by a thread that is not here
        self._loop = self._thread = None
        for forget in self._forgetters:
            forget()

    def exiting(self) -> None:
        """The interpreter is about to end."""
        self.close(timeout=5.0)
        self._closed = True


def _serve(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    try:
        run_until_stopped(loop)
        loop.run_until_complete(_cancel_all(within=0.5))  # what was begun between the winding down and the stop
    finally:
        loop.close()


def run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    """``run_forever``, whatever a task on it raises: SystemExit and KeyboardInterrupt end a loop, and with it all that others do there."""
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            logger.exception("a task on the event loop of %s tried to end the process; it goes on", threading.current_thread().name)
        else:
            return


async def _cancel_all(within: float) -> None:
    """Cancel every other task of this loop once, and those that the ending ones begin, and wait for them ``within`` seconds."""
    asked: set[asyncio.Task[Any]] = set()
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            while rest := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in rest - asked:
                    task.cancel()
                asked |= rest
                await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)


def _refuse_uwsgi_without_threads() -> None:
    uwsgi = sys.modules.get("uwsgi")
    options: Any = getattr(uwsgi, "opt", None)
    if options is not None and not (options.get("enable-threads") or options.get("threads")):
        raise ConfigError("uWSGI runs without threads, so cloudq's I/O thread would never run: add enable-threads = true")


_instances: weakref.WeakSet[IOThread] = weakref.WeakSet()


def _after_fork() -> None:
    for instance in list(_instances):
        instance.forked()


def _at_exit() -> None:
    for instance in list(_instances):
        instance.exiting()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
