"""What the translations for the clouds share: an expression with its zone, and grids of time as crontabs."""

from __future__ import annotations

from cloudq.schedules.fields import DAY, HOUR, LONGEST, MINUTE, WEEKDAY, members, of, span, unix
from cloudq.schedules.triggers import Cron, Every

_THURSDAY = 4
"""The weekday of 1 January 1970."""

_DAY = 1_440
_WEEK = 10_080
EVEN = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, _DAY, _WEEK)
"""Minutes between fires that a crontab in UTC can keep: what divides an hour or a day, and a week."""


class Expression(str):
    """The text of a provider's expression, with ``timezone``, the IANA name of the zone that it is read in."""

    __slots__ = ("timezone",)

    timezone: str

    def __new__(cls, text: str, timezone: str) -> Expression:
        made = super().__new__(cls, text)
        made.timezone = timezone
        return made


def as_cron(trigger: Every) -> Cron | None:
    """The crontab in UTC that fires at the same instants; ``None`` where there is none."""
    interval, uneven = divmod(trigger.interval, 60)
    anchor, off = divmod(trigger.anchor, 60)
    if uneven or off or interval not in EVEN:
        return None
    phase = anchor % interval
    hour, minute = divmod(phase % _DAY, 60)
    minutes, hours, weekdays = 1 << minute, HOUR.every, WEEKDAY.every
    if interval <= 60:
        minutes = span(minute, MINUTE.last, interval)
    elif interval <= _DAY:
        hours = span(hour, HOUR.last, interval // 60)
    else:
        hours, weekdays = 1 << hour, of([(_THURSDAY + phase // _DAY) % 7])
    return Cron(f"{unix(MINUTE, minutes)} {unix(HOUR, hours)} * * {unix(WEEKDAY, weekdays)}")


def day_sets(trigger: Cron) -> list[tuple[int, int]]:
    """The days of a crontab as pairs of days of the month and weekdays, of which at most one is restricted: the union of all.

    Empty where a day must be in both.
    """
    days, weekdays = trigger.days, trigger.weekdays
    if days == DAY.every or weekdays == WEEKDAY.every:
        return [(DAY.every, WEEKDAY.every) if trigger.either else (days, weekdays)]
    if not trigger.either:
        return []
    comes = days & span(1, max(LONGEST[month] for month in members(trigger.months)))
    return [*([(days, WEEKDAY.every)] if comes else []), (DAY.every, weekdays)]


def any_day_of_month(trigger: Cron) -> str:
    """The same without its day of month: the nearest that has one day field."""
    minute, hour, _, month, weekday = trigger.fields.split()
    return str(Cron(f"{minute} {hour} * {month} {weekday}", trigger.tz))
