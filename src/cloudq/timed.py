"""Sets on the timer what the broker cannot hold for so long: a few at a time, each tried again while that may help."""

from __future__ import annotations

import asyncio
import time as clocks
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from cloudq import claimcheck
from cloudq.broker import Outgoing
from cloudq.bulk import weigh
from cloudq.coalesce import Coalescer
from cloudq.errors import DelayError, MessageTooLarge, TimerUnavailable
from cloudq.fitting import Fitting
from cloudq.parcels import Answer, Parcel

if TYPE_CHECKING:
    from cloudq.timer import Timer

AT_ONCE: Final = 50
"""Requests to the timer at once: it takes one message a request, and clouds refuse what goes over their quota of requests a second."""

HELD: Final = 15.0
"""Seconds that an ordering key may wait for a message of its own that came before it is due."""


class Timed:
    """The way by the timer; on the I/O loop, but for ``set`` of a local one. ``time``: Unix time in seconds."""

    def __init__(self, timer: Timer | None, fitting: Fitting, time: Callable[[], float]) -> None:
        self._timer = timer
        self._fitting = fitting
        self._time = time
        self._last = ""
        """What was refused last, for those who wait for their turn in vain."""
        self._lane = self._new_lane()

    def _new_lane(self) -> Coalescer[Parcel]:
        return Coalescer(self._set_first, count=1, in_flight=AT_ONCE)

    def forget(self) -> None:
        """The loop ends, or is another process's: let go of what waits."""
        self._lane.clear()
        self._lane = self._new_lane()

    @property
    def busy(self) -> bool:
        """Whether anything waits, is under way or pauses before its next try."""
        return self._lane.busy

    def add(self, parcel: Parcel) -> None:
        """Set it when it is its turn. Those of ``send_many`` take turns with single calls, which do not wait for all of them."""
        parcel.due = self._time() + parcel.outgoing.delay
        if not self.busy:
            self._last = ""
        if parcel.among_many:
            self._lane.add_request(partial(self._set_repeatedly, parcel))
        else:
            self._lane.add(parcel)

    async def _set_first(self, parcels: Sequence[Parcel]) -> None:
        await self._set_repeatedly(parcels[0])

    async def _set_repeatedly(self, parcel: Parcel) -> None:
        """What pauses keeps its place among the few: a timer that cannot keep up is asked less."""
        if clocks.monotonic() >= parcel.give_up:
            why = self._last and f" ({self._last})"
            refusal = TimerUnavailable(f"the timer was not asked for {parcel.task_id}: those before it took all of the time{why}")
            parcel.tell(parcel.place, refusal)
            return
        while (answer := await self.set(parcel.queue, parcel.outgoing, parcel.task_id, parcel.due)) is not None:
            self._last = str(answer)
            if (pause := parcel.again(answer)) is None:
                return
            await asyncio.sleep(pause)
        parcel.tell(parcel.place, None)

    async def set(self, queue: str, outgoing: Outgoing, task_id: str, due: float) -> Answer:
        """Set one message for the instant ``due``."""
        if self._timer is None:
            return DelayError("the app has no timer for a delay that the broker cannot hold")
        # Who receives it early holds it until it is due. Its group would wait with it: then it is rather late, unless it is soon.
        early = outgoing.group is None or outgoing.delay <= HELD
        when = due - self._timer.limits.late if early else due
        checks = self._fitting.checks
        try:
            message = replace(await self._fitting.fitted(queue, outgoing), delay=0.0)
            try:
                await self._timer.at(when, queue, message, key=task_id)
            except MessageTooLarge:  # a timer may take less than its queue
                if checks is None or weigh(message) <= claimcheck.SMALL:
                    raise
                message = replace(await self._fitting.left(checks, queue, outgoing), delay=0.0)
                await self._timer.at(when, queue, message, key=task_id)
        except Exception as error:
            return error
        return None
