"""Crontabs in words for people, and warnings of what in them may surprise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cloudq.schedules.fields import DAY, HOUR, MINUTE, MONTH, WEEKDAY, Field, listed, members
from cloudq.schedules.zones import changes

if TYPE_CHECKING:
    from datetime import datetime

    from cloudq.schedules.triggers import Cron

_YEARS = 10 * 365.25 * 86_400
_FEW = 4
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = (
    "", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def cron_in_words(trigger: Cron) -> str:
    """See Cron.describe."""
    month = "" if trigger.months == MONTH.every else f" in {_named(_MONTHS, MONTH, trigger.months)}"
    return f"{_times(trigger)}{_days(trigger)}{month}, {trigger.tz}"


def cron_warnings(trigger: Cron, now: float | None) -> tuple[str, ...]:
    """See Cron.warnings."""
    minute, hour, *_ = trigger.fields.split()
    uneven: list[str | None] = []
    if trigger.hours == HOUR.every:
        uneven.append(_uneven(MINUTE, minute, "m"))
    if trigger.minutes.bit_count() == 1:
        uneven.append(_uneven(HOUR, hour, "h"))
    return (*filter(None, uneven), *_changes(trigger, time.time() if now is None else now))


def _uneven(field: Field, text: str, unit: str) -> str | None:
    step = int(text[2:]) if text.startswith("*/") and text[2:].isdigit() else 1
    if not (field.last + 1) % step:
        return None
    last = field.last // step * step
    gap = field.last + 1 - last
    return f"{field.name} {text} begins anew at 0, {gap}{unit} after {last}; every('{step}{unit}') keeps an even distance"


def _changes(trigger: Cron, now: float) -> list[str]:
    """The first fire that is skipped, and the first that could have come twice."""
    found: dict[bool, str] = {}
    for change in changes(trigger.zone, now, now + _YEARS):
        forward = change.after > change.before
        low, high = sorted((change.before, change.after))
        wall = trigger.next_wall(_wall(low))
        if forward in found or wall is None or wall >= _wall(high):
            continue
        shown = f"{wall[0]}-{wall[1]:02}-{wall[2]:02} {wall[3]:02}:{wall[4]:02}"
        between = f"take a time outside {low:%H:%M} to {high:%H:%M}, or tz='UTC'"
        found[forward] = (
            f"{shown} in {trigger.tz} does not exist, because clocks go forward: nothing fires then; {between}"
            if forward
            else f"{shown} in {trigger.tz} comes twice, because clocks go back: it fires the first time only; {between}"
        )
    return [found[forward] for forward in sorted(found, reverse=True)]


def _wall(shown: datetime) -> tuple[int, int, int, int, int]:
    return shown.year, shown.month, shown.day, shown.hour, shown.minute


def _times(trigger: Cron) -> str:
    minutes, hours = members(trigger.minutes), members(trigger.hours)
    if len(minutes) * len(hours) <= _FEW:
        return "at " + _joined([f"{hour:02}:{minute:02}" for hour in hours for minute in minutes])
    minute = _steps("minute", MINUTE, trigger.minutes) or f"at minute {_numbers(MINUTE, trigger.minutes)}"
    if trigger.hours == HOUR.every:
        return minute if minute.startswith("every") else f"{minute} of every hour"
    return f"{minute} of {_steps('hour', HOUR, trigger.hours) or f'hour {_numbers(HOUR, trigger.hours)}'}"


def _steps(unit: str, field: Field, numbers: int) -> str | None:
    text = listed(numbers, field.first, field.last, lambda begin, step: f"*/{step}" if begin == field.first else "")
    if text == "*":
        return f"every {unit}"
    return f"every {text[2:]} {unit}s" if text.startswith("*/") and not (field.last + 1) % int(text[2:]) else None


def _days(trigger: Cron) -> str:
    any_day, any_weekday = trigger.days == DAY.every, trigger.weekdays == WEEKDAY.every
    if (any_day and any_weekday) or (trigger.either and (any_day or any_weekday)):
        return "" if _times(trigger).startswith("every") else " every day"
    day = f"on day {_numbers(DAY, trigger.days)} of the month"
    if any_weekday:
        return f" {day}"
    weekday = f"on {_named(_WEEKDAYS, WEEKDAY, trigger.weekdays)}"
    return f" {weekday}" if any_day else f" {day} {'or' if trigger.either else 'if it falls'} {weekday}"


def _numbers(field: Field, numbers: int) -> str:
    return listed(numbers, field.first, field.last, None).replace(",", ", ")


def _named(names: tuple[str, ...], field: Field, numbers: int) -> str:
    parts = listed(numbers, field.first, field.last, None).split(",")
    return _joined([" to ".join(names[int(number)] for number in part.split("-")) for part in parts])


def _joined(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
