"""Limits over all workers: how often tasks start, by turns that are given out ahead, and how many run at once, by seats."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cloudq.durations import seconds
from cloudq.errors import ConfigError, Conflict, StoreError, StoreUnavailable
from cloudq.store import MISSING, Document, Store

logger = logging.getLogger("cloudq.runner")

KIND: Final = "limit"

LATE: Final = 5.0
"""Seconds after which a turn that was not taken is lost, or the time between two turns where that is longer: after an outage all that wait
would start at once."""
AHEAD: Final = 900.0
"""Seconds that turns are given out ahead at most; what is beyond asks again. A purged queue must not leave a limit used up for days."""
BLOCK: Final = 0.25
"""Seconds of turns that a process takes at once at most, where it needs many; what it does not use is lost."""
METERED_BLOCK: Final = 1.5
"""The same on a store that is paid by the write, and takes few a second of one document (Firestore: one, DynamoDB: some hundred)."""
PATIENCE: Final = 0.25
"""Seconds that a message waits for its turn where it is: to be sent again would take as long, and three requests."""
MOST_SEATS: Final = 200
SEAT_KEPT: Final = 86_400.0
"""Seconds after which the document of a seat is deleted that nobody has renewed; leases are shorter (12 h on SQS)."""
TRIES: Final = 10
KEYS: Final = 10_000
"""Limits whose turns a process remembers."""

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Rate(NamedTuple):
    """``starts`` in ``period`` seconds, evenly spread."""

    starts: int
    period: float

    @property
    def interval(self) -> float:
        """Seconds between two turns."""
        return self.period / self.starts

    def __str__(self) -> str:
        return f"{self.starts} in {self.period:g} s"


def rate(value: str | float, task: str) -> Rate:
    """``"10/m"``, ``"100/5m"``, or a number a second, as Celery has it. Raises ConfigError."""
    try:
        if isinstance(value, str):
            number, slash, unit = value.partition("/")
            starts, unit = float(number), unit.strip()
            period = _UNITS[unit] if unit in _UNITS else seconds(unit, "period") if slash else 1.0
        else:
            starts, period = float(value), 1.0
        if starts < 1 and starts > 0:
            starts, period = 1.0, period / starts
        if not (math.isfinite(starts) and starts == int(starts) >= 1 and period > 0):
            raise ValueError
    except (ValueError, TypeError):
        raise ConfigError(f"task {task!r}: rate_limit={value!r} is none; write '10/s', '10/m', '100/5m' or a number a second") from None
    return Rate(int(starts), period)


def seats(value: object, task: str) -> int:
    """``max_running``, checked; raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SEATS:
        raise ConfigError(f"task {task!r}: max_running must be a whole number from 1 to {MOST_SEATS}, not {value!r}")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# How often: a document says when the next turn is that nobody has (GCRA)


class Turns:
    """The turns that this process has, and gives to its messages; for one event loop.

    They are ``rate.interval`` seconds apart over all processes, whose clocks are taken to agree. A process that needs many takes several
    with one write.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, _Block] = {}

    async def take(self, store: Store, place: str, rate: Rate, now: float, *, ahead: float = AHEAD) -> float | None:
        """The next turn, Unix time in seconds, at ``now`` or later; ``None`` where it is over ``ahead`` seconds away, and is not taken.

        Raises StoreError, also where others take turns all the time.
        """
        if (block := self._blocks.get(place)) is None:
            while len(self._blocks) >= KEYS:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[place] = _Block(rate.interval)
        async with block.lock:
            if (turn := block.first(now)) is None:
                longest = METERED_BLOCK if store.limits.metered else BLOCK
                size = min(2 * block.size, max(1, int(longest / rate.interval))) if block.after > now else 1
                turn = await _reserve(store, place, now, size, rate.interval, ahead)
                if turn is None:
                    return None
                block.fill(turn, size)
            return block.take() if turn <= now + ahead else None


class _Block:
    """Turns in a row, of which ``left`` are this process's to give away."""

    __slots__ = ("after", "interval", "left", "lock", "size")

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.size = self.left = 0
        self.after = 0.0
        """When the turn after the last would be."""
        self.lock = asyncio.Lock()

    def first(self, now: float) -> float | None:
        """The first that is not over: those of the past would be a burst, and are lost. ``None`` where none is left."""
        rest = math.floor((self.after - now) / self.interval + 1e-6)
        self.left = max(0, min(self.left, rest))
        return self.after - self.left * self.interval if self.left else None

    def fill(self, first: float, size: int) -> None:
        self.left = self.size = size
        self.after = first + size * self.interval

    def take(self) -> float:
        turn = self.after - self.left * self.interval
        self.left -= 1
        return turn


async def _reserve(store: Store, place: str, now: float, size: int, interval: float, ahead: float) -> float | None:
    """Take ``size`` turns; returns the first."""
    found = await store.get(KIND, place)
    for tried in range(TRIES):
        first = now if found is None else max(now, found.value["next"])
        if first > now + ahead:
            return None
        after = first + size * interval
        expect: Any = MISSING if found is None else found.version
        try:
            await store.put(KIND, place, {"next": after}, expect=expect, ttl=after - now + 3600.0)
        except Conflict as conflict:
            found = conflict.current
            if store.limits.metered:  # to lose again costs more than to wait, and to look
                await asyncio.sleep(random.uniform(0, min(max(size * interval, 0.005 * 2**tried), METERED_BLOCK)))
                found = await store.get(KIND, place)
            elif not store.limits.local:
                await asyncio.sleep(random.uniform(0, 0.005 * 2**tried))
        else:
            return first
    raise StoreUnavailable(f"the turns of a rate limit are taken by others all the time ({TRIES} tries)")


# ---------------------------------------------------------------------------------------------------------------------
# How many at once: each seat is a document, with who sits there and until when


@dataclass(slots=True, eq=False)
class Seat:
    """A place among those that may run; it is free again after ``leave``, or when its time is over. For one event loop."""

    store: Store
    key: str
    id: str
    version: str
    until: float

    async def renew(self, until: float) -> None:
        """Keep it until ``until``, Unix time in seconds; one that was lost meanwhile is not had back. Raises StoreError."""
        self.until = until
        try:
            self.version = await self.store.put(KIND, self.key, {"task": self.id, "until": until}, expect=self.version, ttl=SEAT_KEPT)
        except Conflict:
            logger.warning("task %s has lost its seat: more than max_running may run for a while", self.id)

    async def leave(self) -> None:
        """Let another have it. Never raises: else it is free once its time is over."""
        try:
            await self.store.put(KIND, self.key, {"task": self.id, "until": 0.0}, expect=self.version, ttl=SEAT_KEPT)
        except Conflict as conflict:
            found = conflict.current
            if found is not None and found.value == {"task": self.id, "until": self.until}:
                self.version = found.version  # of our own renewal, which was cut short
                await self.leave()
            # else another has it by now, or the task's next attempt, which was faster
        except StoreError as error:
            logger.warning("a seat of task %s could not be left, it is free when its lease ends: %s", self.id, error)


async def sit(store: Store, place: str, count: int, id: str, *, now: float, until: float) -> Seat | None:
    """A free one of ``count`` seats for the task ``id``, or the one that it has already; ``None`` where all are taken.

    Raises StoreError.
    """
    keys = [f"{place}-{number}" for number in range(count)]
    found = dict(zip(keys, await store.get_many(KIND, keys), strict=True))
    for key in _order(found, id, now):
        document = found[key]
        expect: Any = MISSING if document is None else document.version
        try:
            version = await store.put(KIND, key, {"task": id, "until": until}, expect=expect, ttl=SEAT_KEPT)
        except Conflict:
            continue
        return Seat(store, key, id, version, until)
    return None


def _order(found: Mapping[str, Document | None], id: str, now: float) -> Sequence[str]:
    """The seats to try: its own, then the free ones in any order, so that several who come at once try different ones."""
    own = [key for key, each in found.items() if each is not None and each.value["task"] == id]
    free = [key for key, each in found.items() if (each is None or each.value["until"] <= now) and key not in own]
    random.shuffle(free)
    return [*own, *free]
