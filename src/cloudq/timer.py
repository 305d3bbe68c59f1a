"""The timer seam: what must happen later than a broker's own delay allows, and what recurs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, runtime_checkable

from cloudq.broker import Outgoing
from cloudq.errors import TimerError

__all__ = ["Schedule", "Timer", "TimerError", "TimerLimits", "Trigger", "last_fire"]


class TimerLimits(NamedTuple):
    """What a timer can do; seconds."""

    horizon: float
    """How far ahead ``at`` can be set."""
    late: float
    """How late it may fire: the core sets it earlier by this, and the runner holds the exact remainder. What has an ordering key is set for
    its time, and may be so late: held, it would hold up the others of its key. (Within 15 seconds it is held all the same.)"""
    local: bool = False
    """Whether no call ever suspends: the core then calls in the caller's own thread."""
    hop: float = math.inf
    """What is set further ahead than this comes early, after so long: who receives it sees its ``eta``, and sets it again."""


@runtime_checkable
class Trigger(Protocol):
    """When a schedule fires; pure."""

    def next_after(self, instant: float) -> float | None:
        """The first fire strictly after ``instant`` (Unix time, seconds), or ``None`` when there is none any more."""
        ...

    def __str__(self) -> str:
        """As a person wrote it: ``every 5m``, ``0 9 * * 1-5 Europe/Berlin``."""
        ...


_SPANS: Final = (60.0, 3_600.0, 86_400.0, 32 * 86_400.0, 367 * 86_400.0, 3_660 * 86_400.0)
"""Seconds to look back for the latest fire, each span holding few more than those before it would have found."""


def last_fire(trigger: Trigger, instant: float) -> float | None:
    """The last fire at or before ``instant``; ``None`` where there was none for ten years."""
    for span in _SPANS:
        found, fire = None, trigger.next_after(instant - span)
        while fire is not None and fire <= instant:
            found, fire = fire, trigger.next_after(fire)
        if found is not None:
            return found
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A recurring send: at each fire of ``trigger``, ``message`` goes to ``queue``.

    The text ``<slot>`` in the body is replaced by the fire's instant where the timer can substitute: Unix time in whole seconds, or where
    the provider writes it (EventBridge Scheduler) ``2027-01-15T08:00:00Z``.
    """

    name: str
    queue: str
    message: Outgoing
    trigger: Trigger
    paused: bool = False


@runtime_checkable
class Timer(Protocol):
    """Sends a message to a queue of the app's broker later. A driver is finished when ``cloudq.testing.TimerConformance`` passes.

    Thread and loop rules are the Broker's. A set message is durable once ``at`` has returned, and is sent at least once,
    not before ``when`` (but for ``limits.hop``) and at most ``limits.late`` seconds after it (memory: at once). Provider errors are
    mapped to TimerError; to TimerUnavailable where the same call may be taken later (throttled, out of reach, no answer in time). The
    core then repeats it, for as long as its caller waits, and has at most 50 calls of ``at`` under way.
    """

    @property
    def limits(self) -> TimerLimits:
        """What this timer can do; constant, and known without a request."""
        ...

    async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
        """Send ``message`` (its own delay is ignored) to ``queue`` at ``when``, Unix time in seconds; a past instant sends now.

        The same key again replaces what it had set, if that has not fired. Raises TimerError beyond ``limits.horizon``, and
        MessageTooLarge where it takes less than the queue: the core then leaves the body elsewhere if it can (cloudq.claimcheck).
        """
        ...

    async def cancel(self, key: str) -> bool:
        """Take back what ``at`` set under ``key``; false where nothing waits there (any more)."""
        ...

    async def schedules(self) -> Sequence[Schedule]:
        """The app's schedules as they stand, by name."""
        ...

    async def put_schedule(self, schedule: Schedule) -> None:
        """Create the schedule, or replace the one of its name; fires before now are not made up. Raises ConfigError for a trigger that the
        provider cannot keep exactly."""
        ...

    async def delete_schedule(self, name: str) -> None:
        """Delete it; one that is not there is no error."""
        ...

    async def close(self) -> None:
        """Release connections; what was set still fires. Closing twice is no error."""
        ...
