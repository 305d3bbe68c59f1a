"""Time as a parameter: the system's clock, and one that tests move by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time as _time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from cloudq.forks import Lock, protect

Cancel = Callable[[], None]
"""Call it to take back what ``call_at`` set; calling it twice, or late, does nothing."""


@runtime_checkable
class Clock(Protocol):
    """Where core code reads the time and waits. Instants are Unix time in seconds, as ``time.time()`` gives them."""

    def time(self) -> float:
        """The present instant, Unix time in seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling coroutine for ``seconds`` on this clock; safe on any event loop and in any thread."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Cancel:
        """Call ``callback()`` once at ``when`` or soon after, in a thread of the clock's choice; it must be short and not raise.

        Safe to call from any thread, also from a callback.
        """
        ...


class SystemClock:
    """The machine's own clock."""

    def __init__(self) -> None:
        self._alarms = _Alarms()

    def time(self) -> float:
        return _time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_at(self, when: float, callback: Callable[[], None]) -> Cancel:
        return self._alarms.add(when, callback)


class _Alarms:
    """A heap of callbacks and one daemon thread that sleeps until the next; the thread starts at the first use."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        protect(self, row=2)

    @property
    def fork_lock(self) -> Lock:
        return self._ready

    def after_fork(self) -> None:
        self._ready, self._thread = threading.Condition(), None  # the old one would wake the parent's thread, which is not here

    def add(self, when: float, callback: Callable[[], None]) -> Cancel:
        with self._ready:
            number = next(self._numbers)
            heapq.heappush(self._heap, (when, number, callback))
            if self._thread is None or not self._thread.is_alive():  # not alive: we are a forked child
                self._thread = threading.Thread(target=self._run, name="cloudq-clock", daemon=True)
                self._thread.start()
            self._ready.notify()

        def cancel() -> None:
            with self._ready:
                if any(entry[1] == number for entry in self._heap):
                    self._cancelled.add(number)
                    self._ready.notify()

        return cancel

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._heap:
                    self._ready.wait()
                when, number, callback = self._heap[0]
                if number in self._cancelled:
                    self._cancelled.discard(number)
                    heapq.heappop(self._heap)
                    continue
                left = when - _time.time()
                if left > 0:
                    self._ready.wait(min(left, 3600.0))
                    continue
                heapq.heappop(self._heap)
            callback()


class ManualClock:
    """A clock that stands still until a test moves it with ``advance``. Thread-safe."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start
        self._lock = threading.RLock()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._cancelled: set[int] = set()

    def time(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            def finish() -> None:
                if not woken.done():
                    woken.set_result(None)

            if not loop.is_closed():
                loop.call_soon_threadsafe(finish)

        cancel = self.call_at(self._now + seconds, wake)
        try:
            await woken
        finally:
            cancel()

    def call_at(self, when: float, callback: Callable[[], None]) -> Cancel:
        with self._lock:
            number = next(self._numbers)
            heapq.heappush(self._heap, (when, number, callback))

        def cancel() -> None:
            with self._lock:
                if any(entry[1] == number for entry in self._heap):
                    self._cancelled.add(number)

        return cancel

    def next_alarm(self) -> float | None:
        """The instant of the earliest alarm that is set, or ``None``; a test can jump straight there."""
        with self._lock:
            live = [when for when, number, _ in self._heap if number not in self._cancelled]
        return min(live, default=None)

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``, firing every alarm on the way at its own instant, in order, in the calling thread."""
        with self._lock:
            target = self._now + seconds
        while True:
            with self._lock:
                if not self._heap or self._heap[0][0] > target:
                    self._now = target
                    return
                when, number, callback = heapq.heappop(self._heap)
                if number in self._cancelled:
                    self._cancelled.discard(number)
                    continue
                self._now = max(self._now, when)
            callback()
