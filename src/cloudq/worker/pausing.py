"""Has a worker's pollers stop and go on as the store says which queues are paused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from cloudq import pauses
from cloudq.errors import CloudQError

if TYPE_CHECKING:
    from cloudq.clock import Clock
    from cloudq.store import Store
    from cloudq.worker.poller import Poller

logger = logging.getLogger("cloudq.worker")

LOOK: Final = 3.0
"""Seconds between looks at which queues are paused."""


class Pausing:
    """What the store said last holds while it does not answer. ``changed`` is called after each change."""

    def __init__(self, store: Store | None, pollers: Mapping[str, Poller], clock: Clock, changed: Callable[[], None]) -> None:
        self._store = store
        self._pollers = pollers
        self._clock = clock
        self._changed = changed
        self._away = False
        self.queues: frozenset[str] = frozenset()
        """Those of the worker's that are paused."""

    async def keep(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self._clock.sleep(LOOK)
            await self.look()

    async def look(self) -> None:
        """Bring the pollers to what the store says now."""
        if self._store is None:
            return
        try:
            now = frozenset(await pauses.paused(self._store)).intersection(self._pollers)
        except CloudQError as error:
            if not self._away:
                logger.warning("which queues are paused could not be read; trying again until the store answers: %s", error)
            self._away = True
            return
        except Exception:
            logger.exception("which queues are paused could not be read, for an unforeseen reason")
            return
        self._away = False
        before, self.queues = self.queues, now
        for queue in now - before:
            logger.info("queue %r is paused", queue)
            self._pollers[queue].pause()
        for queue in before - now:
            logger.info("queue %r goes on", queue)
            self._pollers[queue].resume()
        if now != before:
            self._changed()
