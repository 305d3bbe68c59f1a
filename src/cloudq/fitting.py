"""Makes messages fit their queue: a body that is too large for it is left elsewhere, and a claim for it travels."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from cloudq import claimcheck
from cloudq.broker import Broker, Outgoing
from cloudq.bulk import weigh
from cloudq.coalesce import IN_FLIGHT
from cloudq.errors import BrokerUnavailable, SendError, StoreError, StoreUnavailable


class Fitting:
    """What each queue takes, asked for once, and the place for what it does not take."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.checks = claimcheck.of(broker)
        """Where bodies go; ``None`` where the broker names no place, and messages go as they are."""
        self._rooms: dict[str, int] = {}
        """Bytes of a message above which its body goes elsewhere, by queue."""
        self.forget()

    def forget(self) -> None:
        """The loop ends, or is another process's."""
        self._asking: dict[str, asyncio.Task[int]] = {}
        """The requests that ask for rooms."""
        self._hands = asyncio.Semaphore(IN_FLIGHT)
        """How many bodies may be on their way at once."""

    def known(self, queue: str, size: int) -> bool:
        """Whether it is known, without a request, that a message of ``size`` bytes goes as it is."""
        return size <= claimcheck.SMALL or size <= self._rooms.get(queue, 0)

    async def fitted(self, queue: str, outgoing: Outgoing) -> Outgoing:
        """The message, or where it is too large for its queue a claim for its body, which has been left. BrokerError, DelayError."""
        checks, size = self.checks, weigh(outgoing)
        if checks is None or size <= claimcheck.SMALL:
            return outgoing
        room = self._rooms.get(queue)
        if room is None:
            asking = self._asking.get(queue)
            if asking is None:
                asking = self._asking[queue] = asyncio.get_running_loop().create_task(self._ask_room(queue, checks))
                asking.add_done_callback(lambda _: self._asking.pop(queue, None))
            room = await asyncio.shield(asking)
        return outgoing if size <= room else await self.left(checks, queue, outgoing)

    async def left(self, checks: claimcheck.ClaimChecks, queue: str, outgoing: Outgoing) -> Outgoing:
        """A claim for its body, which has been left."""
        what = f"a message to {queue!r}"
        checks.allow(outgoing.delay, what)
        try:
            async with self._hands:
                return replace(outgoing, body=await checks.leave(outgoing.body))
        except StoreUnavailable as error:
            raise BrokerUnavailable(f"{what}: its body could not be left: {error}") from error
        except StoreError as error:
            raise SendError(f"{what}: its body could not be left: {error}", code="BodyRefused") from error

    async def _ask_room(self, queue: str, checks: claimcheck.ClaimChecks) -> int:
        broker = self._broker
        limit = await broker.body_limit(queue) if isinstance(broker, claimcheck.ChecksBodies) else checks.over
        self._rooms[queue] = room = min(limit, checks.over)
        return room
