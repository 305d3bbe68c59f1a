"""Time zones: what instant a clock on the wall means, and when such clocks are changed.

Where clocks go forward, the times between do not exist; where they go back, the times between come twice, and the first counts. That is
what EventBridge Scheduler does (AWS, "Schedule types", daylight savings time).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

Wall = tuple[int, int, int, int, int]
"""Year, month, day, hour, minute."""

_FORTNIGHT = 14 * 86_400
"""No zone's clocks have been changed twice within one since long ago; in Morocco twice within five weeks."""


class Change(NamedTuple):
    """At ``instant`` (Unix time) clocks go from ``before`` to ``after``, as they show."""

    instant: int
    before: datetime
    after: datetime


def zone_named(name: str) -> tzinfo:
    """The zone of an IANA name; raises ValueError. UTC needs no zone database."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # a cold start with schedules in UTC does without

    try:
        if name.startswith(("right/", "posix/")) or name == "localtime":
            raise ValueError(name)
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"tz {name!r} is no time zone here; write an IANA name such as 'Europe/Berlin' or 'UTC' "
            "(pip install tzdata where the system has no zone database)"
        ) from error


def instant_of(wall: Wall, zone: tzinfo) -> int | None:
    """The Unix time at which clocks first show ``wall``; ``None`` where they never do."""
    shown = datetime(*wall, tzinfo=zone)
    instant = int(shown.timestamp())
    if zone is not UTC:
        back = datetime.fromtimestamp(instant, zone)
        if back.minute != wall[4] or back.hour != wall[3] or back.day != wall[2]:
            return None
    return instant


def changes(zone: tzinfo, start: float, end: float) -> Iterator[Change]:
    """The changes of the zone's clocks after ``start``, up to ``end`` (Unix time)."""
    if zone is UTC:
        return
    low, last = int(start), int(end)
    while low < last:
        high = min(low + _FORTNIGHT, last)
        if _offset(zone, low) != _offset(zone, high):
            before, after = low, high
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if _offset(zone, middle) == _offset(zone, low) else (before, middle)
            utc = datetime.fromtimestamp(after, UTC).replace(tzinfo=None)
            yield Change(after, utc + _offset(zone, before), utc + _offset(zone, after))
            high = after
        low = high


def _offset(zone: tzinfo, instant: int) -> timedelta:
    offset = datetime.fromtimestamp(instant, zone).utcoffset()
    assert offset is not None
    return offset
