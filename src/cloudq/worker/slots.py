"""Who may receive how many: a worker's free slots, shared among its queues by weight."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LINGER: Final = 0.005
"""Seconds that free slots wait to become a full batch's worth: a receive of one costs as much as a receive of ten."""


@dataclass(slots=True, eq=False)
class _Waiter:
    queue: str
    want: int
    granted: asyncio.Future[int]


class Slots:
    """Counts free slots. For one event loop.

    A queue that asks gets what it wants once that many are free, or what is free once some have been for LINGER seconds. Among
    queues that ask at once, each is served in proportion to its weight (stride scheduling).
    """

    def __init__(self, total: int, weights: Mapping[str, int]) -> None:
        self.total = total
        self.free = total
        self._weights = weights
        self._passed = dict.fromkeys(weights, 0.0)
        self._now = 0.0  # the virtual time of start-time fair queueing: where the queue served last stood
        self._waiting: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def contended(self) -> bool:
        """Whether a queue waits for slots."""
        return bool(self._waiting)

    async def take(self, queue: str, want: int) -> int:
        """Wait for slots and take 1 to ``want`` of them."""
        self._passed[queue] = max(self._passed[queue], self._now)  # one that was away does not catch up on what it did not want
        if not self._waiting and self.free >= want:
            self._charge(queue, want)
            return want
        waiter = _Waiter(queue, want, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._grant()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.granted.done() and not waiter.granted.cancelled():
                self.give(waiter.granted.result())
            raise

    def borrow(self) -> None:
        """Take one slot at once, even where receives have taken all that were free: they get one less next time."""
        self.free -= 1

    def give(self, count: int) -> None:
        """Give slots back."""
        self.free += count
        if self._waiting:
            self._grant()

    def _grant(self, *, lingered: bool = False) -> None:
        while self._waiting and self.free > 0:
            waiter = min(self._waiting, key=lambda each: self._passed[each.queue])
            if self.free < waiter.want and not lingered and not waiter.granted.cancelled():
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(LINGER, self._elapsed)
                return
            self._waiting.remove(waiter)
            if waiter.granted.cancelled():  # its take() has yet to hear of it
                continue
            count = min(self.free, waiter.want)
            self._charge(waiter.queue, count)
            waiter.granted.set_result(count)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed(self) -> None:
        self._timer = None
        self._grant(lingered=True)

    def _charge(self, queue: str, count: int) -> None:
        self.free -= count
        self._now = max(self._now, self._passed[queue])
        self._passed[queue] += count / self._weights[queue]
