"""Fetches one queue's deliveries: only as many as there are slots, with more receives at once only while they come back full."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cloudq.broker import Delivery
from cloudq.errors import CloudQError, QueueNotFound

if TYPE_CHECKING:
    from cloudq.broker import Broker
    from cloudq.worker.slots import Slots

logger = logging.getLogger("cloudq.worker")

MAX_RECEIVERS: Final = 16
AWAY: Final = 1.0
"""Seconds between looks at an idle queue while others wait for slots: it holds none meanwhile."""
OVERDUE: Final = 30.0
"""Seconds beyond its own wait after which a receive counts as stuck and is started anew."""


class Poller:
    """Receives from one queue until cancelled.

    One receive is always there, with a long poll; while receives come back full and slots are free, others join it, so that a
    backlog is drained as fast as slots allow and an idle queue costs one request per long poll.

    An ordered queue, unless ``attempts`` are known by other means than deliveries, is received from one by one: what is delivered behind
    one that fails comes back with it, and would have used up an attempt. One is known by its ``.fifo``, or by what first comes of it.
    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        slots: Slots,
        accept: Callable[[Sequence[Delivery]], None],
        *,
        alone: bool,
        wait: float,
        attempts: bool = True,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._slots = slots
        self._accept = accept
        self._attempts = attempts
        self._batch = 1 if queue.endswith(".fifo") and not attempts else min(broker.limits.receive, slots.total)
        self._alone = alone
        self._wait = min(wait, broker.limits.wait)
        self._helpers: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._going = asyncio.Event()
        self._going.set()
        self._waiting = False
        self._answered = True
        self.alive_at = time.monotonic()
        """When a receive was last answered, or began after one that was (monotonic seconds)."""
        self.empty = False
        """Whether the last receive found nothing."""
        self.looked_at = 0.0
        """When that receive began (monotonic seconds)."""

    @property
    def healthy(self) -> bool:
        """Whether receives are answered as they should be. Waiting for a free slot is no illness."""
        return self._waiting or self.paused or time.monotonic() - self.alive_at < self._wait + 2 * OVERDUE

    @property
    def paused(self) -> bool:
        """Whether it begins no receive until ``resume``."""
        return not self._going.is_set()

    def pause(self) -> None:
        """Begin no more receives for now; those that are out end by themselves."""
        self._going.clear()

    def resume(self) -> None:
        """Receive again; what it knew of the queue has aged."""
        if self.paused:
            self.empty, self.alive_at = False, time.monotonic()
            self._going.set()

    def stop(self) -> None:
        """Begin no more receives; those that are out end by themselves."""
        self._stopped = True
        self._going.set()

    async def run(self) -> None:
        """Receive until stopped; a receive that fails or hangs is tried again, with growing pauses."""
        failures = 0
        try:
            while not self._stopped:
                try:
                    await self._going.wait()
                    await self._receive(self._wait, lead=True)
                    failures = 0
                except TimeoutError:
                    failures += 1
                    await asyncio.sleep(min(1.0, 0.1 * failures))  # should a driver raise it at once
                    logger.error("a receive from %r hung for over %.0f s beyond its wait; starting it anew", self._queue, OVERDUE)
                except QueueNotFound as error:
                    failures += 1
                    logger.error("%s", error)
                    await asyncio.sleep(min(10.0, 0.5 * 2**failures))
                except CloudQError as error:
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
        idle = self.empty and not self._alone
        if idle and lead and self._slots.contended:
            await asyncio.sleep(min(wait, AWAY))
        want = 1 if idle else self._batch  # among several queues an idle one holds a single slot
        if lead:
            self._waiting = True
        count = await self._slots.take(self._queue, want)
        if lead:
            self._waiting = False
        if self._stopped or self.paused:
            self._slots.give(count)
            return False
        if idle and self._slots.contended:
            wait = 0.0
        if count > 1 and not self._alone:
            wait = min(wait, 0.1)  # other queues need these slots: they are not held while nothing comes
        received: Sequence[Delivery] = ()
        began = time.monotonic()
        if self._answered:
            self._answered, self.alive_at = False, began
        try:
            async with asyncio.timeout(wait + OVERDUE):
                received = await self._broker.receive(self._queue, max_messages=count, wait=wait)
            self._answered, self.alive_at = True, time.monotonic()
        finally:
            if len(received) < count:
                self._slots.give(count - len(received))
        full = len(received) == count
        if lead:
            self.empty, self.looked_at = not received, began
        if received:
            if received[0].group is not None and not self._attempts:
                self._batch = 1
            self._accept(received)
        if full and self._slots.free >= self._batch and len(self._helpers) < MAX_RECEIVERS - 1:
            helper = asyncio.get_running_loop().create_task(self._help())
            self._helpers.add(helper)
            helper.add_done_callback(self._helpers.discard)
        return full

    async def _help(self) -> None:
        try:
            while not self._stopped and not self.paused and await self._receive(0.0, lead=False):
                pass
        except (CloudQError, TimeoutError) as error:
            logger.debug("a further receive from %r ended: %s", self._queue, error)
