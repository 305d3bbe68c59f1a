"""Runs sync tasks on threads and async tasks on a loop of their own, both away from the I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from cloudq.io import run_until_stopped
from cloudq.runner import Runner, revoked
from cloudq.worker import stopping
from cloudq.worker.flight import Complete, Flight

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudq.outcome import Outcome

logger = logging.getLogger("cloudq.worker")


class ThreadExecutor:
    """A pool that grows to ``size`` threads as work comes. Daemon threads: one that hangs does not keep the process alive.

    To wake a thread costs as much as to run a short task. So work that comes wakes one thread, and each that takes some wakes the next
    before it begins, while there is more: short tasks keep few threads busy, and those that block get a thread each all the same.
    """

    def __init__(self, runner: Runner, size: int, complete: Complete) -> None:
        self._runner = runner
        self._size = size
        self._complete = complete
        self._work: deque[Flight | Callable[[], None]] = deque()
        self._idle: list[threading.Lock] = []
        self._coming = False
        """A thread was woken or started, and has yet to look for work. Where there is work and nobody idle, it may be false."""
        self._closed = False
        self._threads = 0
        self._growing = threading.Lock()

    def submit(self, flight: Flight) -> None:
        self._work.append(flight)
        self._wake()

    def call(self, function: Callable[[], None]) -> None:
        """Run some other user code (a hook) on a thread."""
        self._work.append(function)
        self._wake()

    def _wake(self) -> None:
        """See to it that a thread looks for work; from any thread, once the work is there."""
        while self._work and not self._coming:
            self._coming = True
            try:
                self._idle.pop().release()
            except IndexError:
                if not self._grow():
                    self._coming = False
                    if self._idle:  # since we looked; who brought work meanwhile relied on us
                        continue
            return

    def _grow(self) -> bool:
        """Start one more thread; say whether there was room for it."""
        with self._growing:
            if self._threads >= self._size:
                return False
            self._threads += 1
            number = self._threads
        try:
            threading.Thread(target=self._serve, name=f"cloudq-task-{number}", daemon=True).start()
        except RuntimeError as error:  # the system has none left
            logger.error("a thread could not be started; those that there are go on: %s", error)
            with self._growing:
                self._threads -= 1
            return False
        return True

    def _serve(self) -> None:
        work, run, complete = self._work, self._runner.run_isolated, self._complete
        bell = threading.Lock()
        bell.acquire()
        self._coming = False
        while True:
            try:
                item = work.popleft()
            except IndexError:
                if self._closed:
                    return
                self._rest(bell)
                continue
            if work:
                self._wake()
            if isinstance(item, Flight):
                item.start()
                complete(item, self._run_stoppable(item) if item.stoppable else run(item.job))
            else:
                item()

    def _run_stoppable(self, flight: Flight) -> Outcome:
        def began(stop: stopping.Stop) -> None:
            flight.stop = stop

        return stopping.run(self._runner, flight.job, began)

    def revoke(self, flight: Flight) -> None:
        if flight.stop is not None:  # else it has not begun, and will see that it was revoked
            flight.stop()

    def _rest(self, bell: threading.Lock) -> None:
        """Wait to be woken."""
        self._idle.append(bell)
        if self._work or self._closed:  # it came before we could be found
            with contextlib.suppress(ValueError):  # found already
                self._idle.remove(bell)
                bell.release()
        bell.acquire()
        self._coming = False

    def withdraw(self) -> list[Flight]:
        taken: list[Flight] = []
        others: list[Callable[[], None]] = []
        with contextlib.suppress(IndexError):
            while True:
                item = self._work.popleft()
                if isinstance(item, Flight):
                    taken.append(item)
                else:
                    others.append(item)
        self._work.extend(others)  # user code too: it stays a thread's work
        self._wake()
        return taken

    def cancel(self) -> None:
        """A thread cannot be ended from outside."""

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().release()


class LoopExecutor:
    """An event loop in a thread, for async tasks; a task that blocks it delays its neighbours and no heartbeat."""

    def __init__(self, runner: Runner, size: int, complete: Complete) -> None:
        self._runner = runner
        self._size = size
        self._complete = complete
        self._inbox: deque[Flight] = deque()
        self._signalled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Flight, asyncio.Task[Any]] = {}
        """The tasks of flights that can be revoked."""
        self._ending = False

    def submit(self, flight: Flight) -> None:
        self._inbox.append(flight)
        if not self._signalled:
            self._signalled = True
            self._started().call_soon_threadsafe(self._begin)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            if sys.version_info >= (3, 12):
                self._loop.set_task_factory(asyncio.eager_task_factory)
            threading.Thread(target=_serve, args=(self._loop,), name="cloudq-tasks", daemon=True).start()
        return self._loop

    def _begin(self) -> None:
        """Make a task for each flight, up to the size; it takes its flight from the inbox when its turn comes.

        Until then the flight can be withdrawn.
        """
        self._signalled = False
        loop = asyncio.get_running_loop()
        for _ in range(min(len(self._inbox), self._size - len(self._tasks))):
            task: asyncio.Task[None] = loop.create_task(self._run())
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._ended)
        if self._inbox and not self._tasks:  # all of them ran at once, as eager tasks do: let others have a turn before the rest
            loop.call_soon(self._begin)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._inbox and not self._ending:
            self._begin()

    async def _run(self) -> None:
        try:
            flight = self._inbox.popleft()
        except IndexError:  # withdrawn, or taken by a task made for an earlier signal
            return
        job, own = flight.job, asyncio.current_task()
        if job.abandoned:  # its host has settled without it
            self._complete(flight, revoked())
            return
        flight.start()
        if flight.stoppable and own is not None:
            self._running[flight] = own
        try:
            outcome = revoked() if job.revoked else await self._runner.arun(job)
        except asyncio.CancelledError as error:
            if self._ending:
                return  # the worker gives it back
            outcome = self._runner.failed(job, error)  # the task has cancelled itself
        finally:
            self._running.pop(flight, None)
        self._complete(flight, outcome)

    def revoke(self, flight: Flight) -> None:
        def cancel() -> None:
            task = self._running.get(flight)
            if task is not None:
                task.cancel()

        if self._loop is not None:
            self._loop.call_soon_threadsafe(cancel)

    def withdraw(self) -> list[Flight]:
        taken: list[Flight] = []
        while self._inbox:
            try:
                taken.append(self._inbox.popleft())
            except IndexError:
                break
        return taken

    def cancel(self) -> None:
        self._ending = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def close(self) -> None:
        self._ending = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        run_until_stopped(loop)
        rest: set[asyncio.Task[Any]] = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.wait(rest, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
