"""Holds deliveries whose time has not come: under heartbeat, without a slot, where they cannot be sent again with a delay."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cloudq.broker import Limits
    from cloudq.outcome import Later
    from cloudq.worker.flight import Flight

HELD: Final = 1_000
"""Deliveries held at once at most, of all queues: some megabytes, and a heartbeat of one request on Pub/Sub and a hundred on SQS."""
ORDERED: Final = 60.0
"""Seconds that an ordered message is held at once at most; for longer its own lease keeps it away, which costs one request."""
RETRY: Final = 0.02
"""Seconds between looks for a free slot while what is due finds none."""


class Holding:
    """What waits here. For one event loop.

    A broker with ``limits.hold`` has no delays, so a message that is not due is neither sent again, for it would come back at once, nor
    does it keep others from their slots: it waits here. If the process dies it is delivered again, and waits there.

    Nor is an ordered message ever sent again, for it would lose its place. It waits here, too: if its lease kept it away, each look at it
    would be a delivery, and so an attempt where there is no store.
    """

    def __init__(self, limits: Limits, *, timer: bool, busy: Callable[[], bool], resume: Callable[[Flight], None]) -> None:
        """``timer``: longer waits have another place. ``busy``: nothing more can run. ``resume`` gets what is due, with no slot."""
        self._longest = limits.hold
        self._timer = timer
        self._busy = busy
        self._resume = resume
        self._held: dict[Flight, asyncio.TimerHandle] = {}
        self._due: deque[Flight] = deque()
        self._look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, flight: Flight, later: Later) -> bool:
        """Keep the flight until its time has come; false where that is not this worker's to do. Where it was kept its slot is free.

        Without a timer what waits longer than ``limits.hold`` is looked at again after that.
        """
        job, longest = flight.job, ORDERED if flight.job.ordered else self._longest
        elsewhere = later.delay > longest and (job.ordered or self._timer)  # it waits better there
        if not longest or job.claim is not None or len(self._held) >= HELD or elsewhere:
            return False
        self._held[flight] = asyncio.get_running_loop().call_later(min(later.delay, longest), self._is_due, flight)
        return True

    def withdraw(self) -> list[Flight]:
        """Let go of all, for the end: they are to be given back."""
        held = list(self._held)
        for handle in (*self._held.values(), *([self._look] if self._look is not None else [])):
            handle.cancel()
        self._held.clear()
        self._due.clear()
        self._look = None
        return held

    def _is_due(self, flight: Flight) -> None:
        self._due.append(flight)
        if self._look is None:
            self._go()

    def _go(self) -> None:
        self._look = None
        while self._due and not self._busy():
            flight = self._due.popleft()
            del self._held[flight]
            self._resume(flight)
        if self._due:
            self._look = asyncio.get_running_loop().call_later(RETRY, self._go)
