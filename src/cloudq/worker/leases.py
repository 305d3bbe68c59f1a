"""Keeps what a worker has taken its own, and lets go of it: the leases of deliveries, and the claims of their tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import TYPE_CHECKING, Any, Final

from cloudq.errors import CloudQError, LeaseLost
from cloudq.worker.flight import batches

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.runner import Runner
    from cloudq.worker.flight import Flight

logger = logging.getLogger("cloudq.worker")

HASTE: Final = 2.0
"""Seconds that each step of letting go may take: a stop must not wait for what does not answer."""


class Leases:
    """``flights`` are the worker's, as they are at each moment. ``begin`` starts a coroutine beside, ``revoked`` ends a run."""

    def __init__(
        self,
        app: CloudQ,
        runner: Runner,
        flights: Set[Flight],
        *,
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        revoked: Callable[[Flight], None],
    ) -> None:
        self._app = app
        self._runner = runner
        self._flights = flights
        self._begin = begin
        self._revoked = revoked

    async def keep(self) -> None:
        """Extend what is held, well before it ends, until cancelled; a third of a lease is time for two more tries."""
        limits, clock = self._app.broker.limits, self._app.clock
        interval = max(limits.lease / 6, 0.05)
        patience = max(interval, 3.0)  # one request that hangs must not cost the others their leases
        while True:
            await clock.sleep(interval)
            try:
                horizon = clock.time() + limits.lease * 2 / 3
                due = [flight for flight in self._flights if not flight.lost and flight.job.delivery.lease_until < horizon]
                await asyncio.gather(*(self._extend(batch, patience) for batch in batches(due, limits.batch)))
            except Exception:
                logger.exception("extending leases failed in an unforeseen way")

    async def _extend(self, flights: Sequence[Flight], patience: float) -> None:
        """Extend leases; their claims are renewed beside that: a store that is slow or away must not cost a lease."""
        try:
            async with asyncio.timeout(patience):
                answers = await self._app.broker.extend([flight.job.delivery for flight in flights], self._app.broker.limits.lease)
        except (CloudQError, TimeoutError) as error:
            logger.warning("extending %d leases failed, trying again: %s", len(flights), _said(error))
            return
        for flight, answer in zip(flights, answers, strict=True):
            if isinstance(answer, LeaseLost):
                if flight in self._flights and not flight.concluded:
                    logger.error("%s: its lease was lost while it ran; it may be running elsewhere too", flight.job.label)
                flight.lost = True
            elif flight in self._flights and flight.job.claim is not None and flight.renewal is None and not flight.concluded:
                flight.renewal = self._begin(self.renew(flight))

    async def renew(self, flight: Flight) -> None:
        """Renew a claim, and see whether its task was revoked."""
        job = flight.job
        known = job.revoked
        try:
            async with asyncio.timeout(max(self._app.broker.limits.lease, HASTE)):
                await self._runner.renew(job, job.delivery.lease_until)
            if job.revoked and not known and not flight.concluded:
                logger.info("%s was revoked: its run is ended", job.label)
                self._revoked(flight)
        except LeaseLost:
            if not flight.concluded:  # else it has ended meanwhile, and its claim with it
                flight.lost = True
                logger.error("%s: its claim was lost while it ran; its result will be discarded", job.label)
        except (CloudQError, TimeoutError) as error:
            logger.warning("%s: its claim could not be renewed, trying again: %s", job.label, _said(error))
        finally:
            flight.renewal = None

    async def let_go(self, flights: Sequence[Flight], delay: float) -> None:
        """Make deliveries available to others in ``delay`` seconds; what does not answer leaves them to come back when their leases end."""
        await asyncio.gather(*(self.release(flight) for flight in flights))
        await asyncio.gather(*(self._hide(batch, delay) for batch in batches(flights, self._app.broker.limits.batch)))

    async def release(self, flight: Flight) -> None:
        """Let go of a claim; at worst it ends with the lease."""
        if flight.renewal is not None:
            flight.renewal.cancel()  # else it could be renewed after that
        if flight.job.claim is not None:
            try:
                async with asyncio.timeout(HASTE):
                    await flight.job.claim.release()
            except Exception as error:  # a stop goes on, whatever it is
                logger.warning("%s: its claim could not be released: %s", flight.job.label, _said(error))

    async def _hide(self, flights: Sequence[Flight], delay: float) -> None:
        try:
            async with asyncio.timeout(HASTE):
                await self._app.broker.extend([flight.job.delivery for flight in flights], delay)
        except Exception as error:  # a stop goes on, whatever it is
            logger.warning("giving back failed; they come back when their leases end: %s", _said(error))


def _said(error: Exception) -> str:
    return str(error) or "no answer in time"
