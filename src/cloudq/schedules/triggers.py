"""The triggers: cron, every and at. Each says when it fires next, and prints as a text that ``parse`` reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, tzinfo
from typing import cast

from cloudq.durations import Duration, seconds
from cloudq.schedules.fields import FIELDS, LONGEST, members, parse_field, span
from cloudq.schedules.zones import Wall, instant_of, zone_named

__all__ = ["At", "Cron", "Every", "at", "cron", "every"]

_LAST_YEAR = 9998
"""The last whole one that datetime counts in every zone."""
_EXISTING = tuple(span(1, days) for days in LONGEST)
_UNITS = (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields of unix cron in a time zone; made by ``cron`` and ``crontab``, which say more.

    ``both_days``: a day must be in both day fields, as Celery has it. It is false where Vixie's rule says the same.
    The sets (``minutes`` …) are ints: bit n stands for the number n. ``either``: a day of one day field is enough.
    """

    fields: str
    tz: str = "UTC"
    both_days: bool = False
    minutes: int = field(init=False, repr=False, compare=False)
    hours: int = field(init=False, repr=False, compare=False)
    days: int = field(init=False, repr=False, compare=False)
    months: int = field(init=False, repr=False, compare=False)
    weekdays: int = field(init=False, repr=False, compare=False)
    either: bool = field(init=False, repr=False, compare=False)
    zone: tzinfo = field(init=False, repr=False, compare=False)
    _month_days: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The days that fit in a month of 31 days, by the weekday of its first (Monday is 0)."""

    def __post_init__(self) -> None:
        texts = self.fields.split()
        if len(texts) != len(FIELDS):
            raise ValueError(
                f"cron {self.fields!r} has {len(texts)} fields; write five: minute, hour, day of month, month, day of week, as in "
                "'0 9 * * 1-5', and the time zone as tz='Europe/Berlin'"
            )
        try:
            minutes, hours, days, months, weekdays = map(parse_field, FIELDS, texts)
        except ValueError as error:
            raise ValueError(f"cron {self.fields!r}: {error}") from None
        both = not texts[2].startswith("*") and not texts[4].startswith("*")  # Vixie's rule looks at the first character
        either = both and not self.both_days
        if not either and not any(days & _EXISTING[month] for month in members(months)):
            raise ValueError(f"cron {self.fields!r} never fires: no month in {texts[3]!r} has a day in {texts[2]!r}; write another")
        put = object.__setattr__
        put(self, "fields", " ".join(texts))
        put(self, "both_days", both and self.both_days)
        put(self, "minutes", minutes)
        put(self, "hours", hours)
        put(self, "days", days)
        put(self, "months", months)
        put(self, "weekdays", weekdays)
        put(self, "either", either)
        put(self, "zone", zone_named(self.tz))
        put(self, "_month_days", tuple(self._days_from(first) for first in range(7)))

    def next_after(self, instant: float) -> float | None:
        """The first fire strictly after ``instant`` (Unix time, seconds), or ``None`` beyond the year 9998."""
        try:
            shown = datetime.fromtimestamp(math.floor(instant), self.zone)
        except (OverflowError, ValueError, OSError):  # beyond what datetime counts
            return None
        wall = self.next_wall((shown.year, shown.month, shown.day, shown.hour, shown.minute + 1))
        while wall is not None:
            fire = instant_of(wall, self.zone)
            if fire is not None and fire > instant:  # neither skipped, nor the second time that clocks show it
                return float(fire)
            year, month, day, hour, minute = wall
            wall = self.next_wall((year, month, day, hour, minute + 1))
        return None

    def next_wall(self, wall: Wall) -> Wall | None:
        """The first wall clock time of the schedule at or after ``wall``, whose minute may be one too many."""
        year, month, day, hour, minute = wall
        while year <= _LAST_YEAR:
            if self.months >> month & 1:
                length = 28 if month == 2 and (year % 4 or (year % 100 == 0 and year % 400)) else LONGEST[month]
                days = self._month_days[date(year, month, 1).weekday()] & ((2 << length) - 1)
                while (rest := days >> day) > 0:
                    if not rest & 1:
                        day, hour, minute = day + _lowest(rest), 0, 0
                    if self.hours >> hour & 1 and (rest := self.minutes >> minute) > 0:
                        return year, month, day, hour, minute + _lowest(rest)
                    hour += 1
                    if (rest := self.hours >> hour) > 0:
                        return year, month, day, hour + _lowest(rest), _lowest(self.minutes)
                    day, hour, minute = day + 1, 0, 0
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
            day, hour, minute = 1, 0, 0
        return None

    def describe(self) -> str:
        """In words: ``at 09:00 on Monday to Friday, Europe/Berlin``."""
        from cloudq.schedules.describing import cron_in_words

        return cron_in_words(self)

    def warnings(self, now: float | None = None) -> tuple[str, ...]:
        """What may surprise: fires that a change of clocks in the ten years after ``now`` (Unix time) drops, and uneven steps."""
        from cloudq.schedules.describing import cron_warnings

        return cron_warnings(self, now)

    def __str__(self) -> str:
        return f"{'crontab ' if self.both_days else ''}{self.fields} {self.tz}"

    def _days_from(self, first: int) -> int:
        weekly = 0
        for day in range(1, 32):
            weekly |= (self.weekdays >> (first + day) % 7 & 1) << day
        if self.either:
            return self.days | weekly
        return self.days & weekly


@dataclass(frozen=True, slots=True)  # no tuple: a task may take a list of triggers
class Every:
    """A grid of instants ``interval`` seconds apart that goes through ``anchor`` (Unix time); made by ``every``."""

    interval: int
    anchor: int = 0

    def next_after(self, instant: float) -> float | None:
        """The first instant of the grid strictly after ``instant`` (Unix time, seconds)."""
        past = (math.floor(instant) - self.anchor) // self.interval
        return float(self.anchor + (past + 1) * self.interval)

    def describe(self) -> str:
        """In words."""
        fixed = f", counted from {_written(self.anchor)}" if self.anchor else ""
        return f"every {_duration(self.interval)}{fixed}"

    def warnings(self, now: float | None = None) -> tuple[str, ...]:
        """Nothing: a grid of instants knows no clocks."""
        return ()

    def __str__(self) -> str:
        fixed = f" from {_written(self.anchor)}" if self.anchor else ""
        return f"every {_duration(self.interval)}{fixed}"


@dataclass(frozen=True, slots=True)  # no tuple: a task may take a list of triggers
class At:
    """Once, at ``instant`` (Unix time); made by ``at``."""

    instant: int

    def next_after(self, instant: float) -> float | None:
        """The instant, if it is strictly after ``instant``."""
        return float(self.instant) if self.instant > instant else None

    def describe(self) -> str:
        """In words."""
        return f"once, at {_written(self.instant)}"

    def warnings(self, now: float | None = None) -> tuple[str, ...]:
        """Nothing: an instant knows no clocks."""
        return ()

    def __str__(self) -> str:
        return f"at {_written(self.instant)}"


def cron(fields: str, *, tz: str | tzinfo = "UTC") -> Cron:
    """The trigger of a line of a crontab: ``cron("0 9 * * 1-5", tz="Europe/Berlin")``.

    The fields are minute, hour, day of month, month, day of week, in the grammar of Vixie cron: ``*``, numbers, names (JAN, MON), ranges,
    steps, lists; 0 and 7 are Sunday. Where both day fields are restricted, a day of either fires; a field that begins with ``*``, as
    ``*/2`` does, counts as not restricted, and then a day must be in both. ``tz`` is an IANA name or a ``ZoneInfo``.

    A time that is skipped when clocks go forward does not fire; one that comes twice when they go back fires the first time.
    Raises ValueError, which names the field, its value and what to write; also for what never fires (30 February).
    """
    given = cast("object", fields)
    if not isinstance(given, str):
        raise TypeError(f"cron takes its five fields as one text, such as '0 9 * * 1-5', not {type(given).__name__}")
    return Cron(fields, zone_name(tz))


def every(interval: Duration, *, anchor: datetime | float = 0) -> Every:
    """The trigger of a fixed interval: ``every("5m")``, ``every(timedelta(hours=36))``, seconds as a number.

    Fires lie on a fixed grid through ``anchor`` (Unix time, or a datetime with a zone), by default midnight UTC of 1 January 1970: when the
    process starts or the schedule is deployed does not matter. A day is 24 hours. Raises ValueError for parts of seconds and for nothing.
    """
    length = seconds(interval, "every")
    if length < 1 or length != int(length):
        raise ValueError(f"every {interval!r} is {length:g} s; write whole seconds, 1 or more")
    return Every(int(length), _whole(anchor, "anchor"))


def at(instant: datetime | str) -> At:
    """The trigger that fires once: a datetime with a zone, or its ISO text. Raises ValueError for one without, or with parts of seconds."""
    if isinstance(instant, str):
        try:
            instant = datetime.fromisoformat(instant)
        except ValueError:
            raise ValueError(f"at {instant!r} is no instant; write it as '2027-01-15T08:00:00Z'") from None
    return At(_whole(instant, "at"))


def zone_name(tz: str | tzinfo) -> str:
    """The IANA name of a zone; raises TypeError for one that has none."""
    if isinstance(tz, str):
        return tz
    name = "UTC" if tz is UTC else getattr(tz, "key", None)
    if not isinstance(name, str):
        raise TypeError(f"tz must be an IANA name such as 'Europe/Berlin', or a ZoneInfo, not {tz!r}")
    return name


def _whole(instant: datetime | float, what: str) -> int:
    if isinstance(instant, datetime):
        if instant.utcoffset() is None:
            raise ValueError(f"{what} {instant.isoformat()} has no time zone; write datetime(…, tzinfo=UTC), or Z at the end of a text")
        instant = instant.timestamp()
    if not math.isfinite(instant) or instant != int(instant):
        raise ValueError(f"{what} {instant!r} has parts of a second; write whole seconds")
    return int(instant)


def _lowest(numbers: int) -> int:
    """The smallest number of a set."""
    return (numbers & -numbers).bit_length() - 1


def _written(instant: int) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat().replace("+00:00", "Z")


def _duration(interval: int) -> str:
    if interval % 604_800:
        text = ""
        for unit, length in _UNITS[1:]:
            count, interval = divmod(interval, length)
            text += f"{count}{unit}" if count else ""
        return text
    return f"{interval // 604_800}w"
