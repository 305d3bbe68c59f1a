"""Runs sync tasks on threads and async tasks on a loop of their own, both away from the I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from cloudq.runner import Runner
from cloudq.worker.flight import Complete, Flight

if TYPE_CHECKING:
    from collections.abc import Callable


class ThreadExecutor:
    """A pool that grows to ``size`` threads as work comes. Daemon threads: one that hangs does not keep the process alive."""

    def __init__(self, runner: Runner, size: int, complete: Complete) -> None:
        self._runner = runner
        self._size = size
        self._complete = complete
        self._work: queue.SimpleQueue[Flight | Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0

    def submit(self, flight: Flight) -> None:
        self._put(flight)

    def call(self, function: Callable[[], None]) -> None:
        """Run some other user code (a hook) on a thread."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                function()
            finally:
                loop.call_soon_threadsafe(self.finished)

        self._put(run)

    def _put(self, item: Flight | Callable[[], None]) -> None:
        self._busy += 1  # an upper bound: ``finished`` lowers it on the I/O loop
        if self._busy > self._threads and self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"cloudq-task-{self._threads}", daemon=True).start()
        self._work.put(item)

    def finished(self) -> None:
        """The worker has seen one of the submitted flights complete."""
        self._busy -= 1

    def _serve(self) -> None:
        get, run, complete = self._work.get, self._runner.run_isolated, self._complete
        while True:
            item = get()
            if item is None:
                return
            if isinstance(item, Flight):
                item.start()
                complete(item, run(item.job))
            else:
                item()

    def withdraw(self) -> list[Flight]:
        taken: list[Flight] = []
        others: list[Callable[[], None] | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._work.get_nowait()
                if isinstance(item, Flight):
                    taken.append(item)
                else:
                    others.append(item)
        for other in others:  # user code too: it stays a thread's work
            self._work.put(other)
        self._busy -= len(taken)
        return taken

    def cancel(self) -> None:
        """A thread cannot be ended from outside."""

    def close(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)


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
        flight.start()
        try:
            outcome = await self._runner.arun(flight.job)
        except asyncio.CancelledError as error:
            if self._ending:
                return  # the worker gives it back
            outcome = self._runner.failed(flight.job, error)  # the task has cancelled itself
        self._complete(flight, outcome)

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
        loop.run_forever()
        rest: set[asyncio.Task[Any]] = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.wait(rest, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
