"""A timer in one process: a heap on the clock, which sends through the memory broker."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cloudq.broker import Broker, Outgoing
from cloudq.clock import Clock
from cloudq.errors import CloudQError, ConfigError, TimerError
from cloudq.forks import Lock, protect
from cloudq.io import drive
from cloudq.timer import Schedule, TimerLimits, last_fire

RETRY_SECONDS: Final = 1.0
"""How long after a refused send it is tried again."""

SLOT: Final = "<slot>"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """What waits: a message under a key, or the next fire of a schedule."""

    number: int
    queue: str
    message: Outgoing
    schedule: Schedule | None = None
    slot: float = 0.0


class MemoryTimer:
    """Sends later, and again and again, in the clock's thread. What is set lives as long as this object, also after ``close``.

    A send that the broker refuses is tried again each second until it is taken. When the clock jumps over several fires of a schedule,
    the last is sent, and the others are skipped.
    """

    def __init__(self, broker: Broker, clock: Clock) -> None:
        """``broker`` must have ``limits.local``: there is no loop here to run another on."""
        if not broker.limits.local:
            raise ConfigError("the memory timer sends through a memory broker only; use the timer that belongs to the broker")
        self.limits: Final = TimerLimits(horizon=365 * 86_400.0, late=0.0, local=True)
        self._broker = broker
        self._clock = clock
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, tuple[str, str]]] = []
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._schedules: dict[str, Schedule] = {}
        self._alarm = math.inf
        protect(self, row=0)

    @property
    def fork_lock(self) -> Lock:
        return self._lock

    def after_fork(self) -> None:
        """Set the alarm anew: the clock's thread is not in the child."""
        self._alarm = math.inf
        self._arm()

    async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
        """Send ``message`` at ``when``; see Timer."""
        now = self._clock.time()
        if not when - now <= self.limits.horizon:
            raise TimerError(f"the memory timer is set at most {self.limits.horizon:g} s ahead, not {when - now:g} s")
        with self._lock:
            self._set(when, ("at", key), queue, replace(message, delay=0.0))
        self._fire()

    async def cancel(self, key: str) -> bool:
        """Take back what ``at`` set; see Timer."""
        with self._lock:
            return self._entries.pop(("at", key), None) is not None

    async def schedules(self) -> Sequence[Schedule]:
        """The schedules, by name."""
        with self._lock:
            return [self._schedules[name] for name in sorted(self._schedules)]

    async def put_schedule(self, schedule: Schedule) -> None:
        """Create or replace; see Timer."""
        with self._lock:
            self._entries.pop(("schedule", schedule.name), None)
            self._schedules[schedule.name] = schedule
            if not schedule.paused:
                self._set_fire(schedule, self._clock.time())

    async def delete_schedule(self, name: str) -> None:
        """Delete; see Timer."""
        with self._lock:
            self._entries.pop(("schedule", name), None)
            self._schedules.pop(name, None)

    async def close(self) -> None:
        """Do nothing: what was set still fires."""

    def _set_fire(self, schedule: Schedule, after: float) -> None:
        slot = schedule.trigger.next_after(after)
        if slot is not None:
            self._set(slot, ("schedule", schedule.name), schedule.queue, _tick(schedule, slot), schedule, slot)

    def _set(
        self,
        when: float,
        key: tuple[str, str],
        queue: str,
        message: Outgoing,
        schedule: Schedule | None = None,
        slot: float = 0.0,
    ) -> None:
        entry = _Entry(next(self._numbers), queue, message, schedule, slot)
        self._entries[key] = entry
        self._push(when, entry.number, key)

    def _push(self, when: float, number: int, key: tuple[str, str]) -> None:
        heapq.heappush(self._heap, (when, number, key))
        self._arm()

    def _arm(self) -> None:
        if self._heap and self._heap[0][0] < self._alarm:
            when = self._alarm = self._heap[0][0]
            self._clock.call_at(when, lambda: self._ring(when))

    def _ring(self, when: float) -> None:
        with self._lock:
            if self._alarm == when:  # else an earlier alarm has rung, and set the next
                self._alarm = math.inf
                self._fire()

    def _fire(self) -> None:
        """Send all that is due, in the order of its time. Sending under the lock makes ``cancel`` and replacing exact."""
        with self._lock:
            now = self._clock.time()
            while self._heap and self._heap[0][0] <= now:
                _, number, key = heapq.heappop(self._heap)
                entry = self._entries.get(key)
                if entry is None or entry.number != number:  # cancelled or replaced
                    continue
                if entry.schedule is not None:  # of those that the clock has jumped over the last counts
                    slot = last_fire(entry.schedule.trigger, now)
                    if slot is not None and slot > entry.slot:
                        entry.slot, entry.message = slot, _tick(entry.schedule, slot)
                if not self._send(entry):
                    self._push(now + RETRY_SECONDS, number, key)
                    continue
                del self._entries[key]
                if entry.schedule is not None:
                    self._set_fire(entry.schedule, max(entry.slot, now))
            self._arm()

    def _send(self, entry: _Entry) -> bool:
        try:
            error: Exception | None = drive(self._broker.send(entry.queue, [entry.message]))[0]
        except CloudQError as failure:
            error = failure
        if error is not None:
            _log.warning("the memory timer could not send to %s and tries again: %s", entry.queue, error)
        return error is None


def _tick(schedule: Schedule, slot: float) -> Outgoing:
    """The message of one fire."""
    return replace(schedule.message, body=schedule.message.body.replace(SLOT, str(int(slot))), delay=0.0)
