"""Fetches one queue's deliveries: only as many as there are slots, with more receives at once only while they come back full."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cloudq.broker import Delivery
from cloudq.errors import BrokerError, QueueNotFound

if TYPE_CHECKING:
    from cloudq.broker import Broker
    from cloudq.worker.slots import Slots

logger = logging.getLogger("cloudq.worker")

MAX_RECEIVERS: Final = 16
OVERDUE: Final = 30.0
"""Seconds beyond its own wait after which a receive counts as stuck and is started anew."""


class Poller:
    """Receives from one queue until cancelled.

    One receive is always there, with a long poll; while receives come back full and slots are free, others join it, so that a
    backlog is drained as fast as slots allow and an idle queue costs one request per long poll.
    """

    def __init__(
        self, broker: Broker, queue: str, slots: Slots, accept: Callable[[Sequence[Delivery]], None], *, alone: bool, wait: float
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._slots = slots
        self._accept = accept
        self._batch = min(broker.limits.receive, slots.total)
        self._alone = alone
        self._wait = min(wait, broker.limits.wait)
        self._helpers: set[asyncio.Task[None]] = set()
        self.alive_at = time.monotonic()
        """When the last receive began or ended (monotonic seconds)."""
        self.empty = False
        """Whether the last receive found nothing."""

    @property
    def healthy(self) -> bool:
        """Whether receives begin and end as they should. Waiting for a free slot is no illness."""
        return self._slots.free == 0 or time.monotonic() - self.alive_at < self._wait + 2 * OVERDUE

    async def run(self) -> None:
        """Receive for ever; a receive that fails or hangs is tried again, with growing pauses."""
        failures = 0
        try:
            while True:
                try:
                    await self._receive(self._wait, lead=True)
                    failures = 0
                except TimeoutError:
                    logger.error("a receive from %r hung for over %.0f s beyond its wait; starting it anew", self._queue, OVERDUE)
                except QueueNotFound as error:
                    failures += 1
                    logger.error("%s", error)
                    await asyncio.sleep(min(10.0, 0.5 * 2**failures))
                except BrokerError as error:
                    failures += 1
                    pause = min(30.0, 0.1 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
                    logger.warning("receiving from %r failed, next try in %.1f s: %s", self._queue, pause, error)
                    await asyncio.sleep(pause)
                except Exception:
                    failures += 1
                    logger.exception("receiving from %r failed in an unforeseen way", self._queue)
                    await asyncio.sleep(min(30.0, 2.0 ** min(failures, 5)))
        finally:
            for helper in self._helpers:
                helper.cancel()

    async def _receive(self, wait: float, *, lead: bool) -> bool:
        """Take slots, receive once, and say whether it came back full."""
        want = self._batch if self._alone or not self.empty else 1  # among several queues an idle one holds a single slot
        count = await self._slots.take(self._queue, want)
        received: Sequence[Delivery] = ()
        self.alive_at = time.monotonic()
        try:
            async with asyncio.timeout(wait + OVERDUE):
                received = await self._broker.receive(self._queue, max_messages=count, wait=wait)
        finally:
            self.alive_at = time.monotonic()
            if len(received) < count:
                self._slots.give(count - len(received))
        full = len(received) == count
        if lead:
            self.empty = not received
        if received:
            self._accept(received)
        if full and self._slots.free >= self._batch and len(self._helpers) < MAX_RECEIVERS - 1:
            helper = asyncio.get_running_loop().create_task(self._help())
            self._helpers.add(helper)
            helper.add_done_callback(self._helpers.discard)
        return full

    async def _help(self) -> None:
        try:
            while await self._receive(0.0, lead=False):
                pass
        except (BrokerError, TimeoutError) as error:
            logger.debug("a further receive from %r ended: %s", self._queue, error)
