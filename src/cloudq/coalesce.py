"""Merges single items into full requests: sends, acks and extends of one queue go through one of these."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

LINGER: Final = 0.005
"""Seconds that a partial batch waits for more while a request is in flight, where half a round trip is no longer."""
MOST_LINGER: Final = 0.1
"""Seconds that it waits at most, however slow the server."""
IN_FLIGHT: Final = 16
"""Requests at once; more gain nothing over a botocore client (its CPU is the ceiling)."""


FEW: Final = 1
"""Requests in flight up to which callers are few: with more, batches fill by themselves, and what went early would be left over again."""


class Coalescer(Generic[Item]):
    """Gathers items and hands them to ``perform`` in batches of at most ``count`` items and ``weight`` bytes. Not thread-safe: one loop.

    With nothing in flight an item goes at once (with those added in the same turn of the loop), unless ``eager`` is false. While a
    request is in flight later items gather: a full batch goes at once, a partial one waits ``linger`` seconds, or half of
    the present round trip where that is longer (up to MOST_LINGER): those whose requests are in flight call again within one, so the
    batch fills, a call takes one and a half round trips at worst, and a server that is slow because it is busy gets no half-empty requests.
    Where ``eager`` and callers are few (one request in flight), a partial batch goes as soon as as many have come as were answered since
    the last one: nobody else is known to come.
    ``perform`` answers for its items itself and must not raise.
    """

    def __init__(
        self,
        perform: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        count: int,
        weight: int | None = None,
        linger: float = LINGER,
        in_flight: int = IN_FLIGHT,
        eager: bool = True,
    ) -> None:
        self._perform = perform
        self._count = count
        self._weight = weight
        self._linger = linger
        self._limit = in_flight
        self._eager = eager
        self._waiting: deque[Item] = deque()
        self._weights: deque[int] = deque()  # beside, because a pair for each item is one more thing for the collector to walk
        self._total = 0
        self._requests: deque[Callable[[], Awaitable[None]]] = deque()
        self._request_next = False
        """Whether it is the turn of these: items and requests take turns, so that neither waits for all of the other."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._due = False
        self._trip = 0.0
        self._owed = 0
        """Of those answered since the last partial batch, how many may call again and have not yet."""

    @property
    def busy(self) -> bool:
        """Whether items wait or requests are in flight."""
        return bool(self._waiting or self._requests or self._tasks)

    @property
    def pending(self) -> list[Item]:
        """The items that wait; those in flight are not among them."""
        return list(self._waiting)

    def add(self, item: Item, weight: int = 0) -> None:
        """Queue an item that weighs ``weight`` bytes."""
        self._waiting.append(item)
        self._weights.append(weight)
        self._total += weight
        last = self._owed == 1
        self._owed -= self._owed > 0
        if len(self._waiting) >= self._count or (self._weight is not None and self._total >= self._weight):
            self._go()
        elif last and self._eager and len(self._tasks) <= FEW:
            self._wait(0.0)
        elif self._timer is None:
            self._wait(0.0 if self._eager and not self._tasks else self._pause)

    def add_request(self, perform: Callable[[], Awaitable[None]]) -> None:
        """Queue a request that is full already: it takes turns with the batches. It must not raise."""
        self._requests.append(perform)
        self._go()

    def flush(self) -> None:
        """Send what waits without lingering."""
        self._due = True
        self._go()

    def clear(self) -> None:
        """Let go of what waits."""
        self._waiting.clear()
        self._weights.clear()
        self._requests.clear()
        self._total = 0

    async def drain(self) -> None:
        """Send what waits and return when nothing waits and nothing is in flight."""
        while self.busy:
            self.flush()
            if self._tasks:
                await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)

    @property
    def _pause(self) -> float:
        return max(self._linger, min(self._trip / 2, MOST_LINGER))

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._elapsed) if seconds else loop.call_soon(self._elapsed)

    def _elapsed(self) -> None:
        self._timer, self._owed = None, 0
        self._due = True
        self._go()

    def _go(self) -> None:
        """Start a request for each full batch, and for the rest if its linger is over, as far as the limit allows."""
        while len(self._tasks) < self._limit:
            full = len(self._waiting) >= self._count or (self._weight is not None and self._total >= self._weight)
            ready = bool(self._waiting) and (full or self._due)
            if self._requests and (self._request_next or not ready):
                self._request_next = False
                self._start(self._request(self._requests.popleft()))
            elif ready:
                self._request_next = True
                self._due = self._due and full
                batch = self._take()
                self._start(self._request(partial(self._perform, batch), len(batch)))
            else:
                break
        if not self._waiting:
            self._due = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None and len(self._tasks) < self._limit:
            self._wait(self._pause)

    def _start(self, request: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(request)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _take(self) -> list[Item]:
        batch: list[Item] = []
        total = 0
        while self._waiting and len(batch) < self._count:
            weight = self._weights[0]
            if batch and self._weight is not None and total + weight > self._weight:
                break
            self._weights.popleft()
            batch.append(self._waiting.popleft())
            total += weight
        self._total -= total
        return batch

    async def _request(self, perform: Callable[[], Awaitable[None]], items: int = 0) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await perform()
        self._trip += (loop.time() - began - self._trip) / 4
        self._owed += items

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "a coalesced request failed", "exception": error, "task": task})
        if self._waiting or self._requests:
            self._go()
