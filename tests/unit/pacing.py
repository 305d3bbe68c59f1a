"""A clock that goes with an app's I/O loop: where the machine stands still, no lease ends before its heartbeat has come."""

from __future__ import annotations

import asyncio

from cloudq import CloudQ
from cloudq.clock import ManualClock

ROUND = 0.01


class PacedClock(ManualClock):
    """Moves a little in each round of the loop that keeps the leases, ``speed`` times as fast as the machine's own at most."""

    def __init__(self, speed: float = 1.0) -> None:
        super().__init__()
        self._step = ROUND * speed

    def go_with(self, app: CloudQ) -> None:
        """Begin to move, until the app is closed."""
        app.io.submit(self._go())

    async def _go(self) -> None:
        while True:
            await asyncio.sleep(ROUND)
            self.advance(self._step)
