"""Triggers as expressions of EventBridge Scheduler, exactly or not at all. Source: AWS, "Schedule types in EventBridge Scheduler"."""

from __future__ import annotations

from datetime import UTC, datetime

from cloudq.errors import CannotExpress
from cloudq.schedules.expressions import Expression, any_day_of_month, as_cron, day_sets
from cloudq.schedules.fields import DAY, HOUR, LONGEST, MINUTE, MONTH, WEEKDAY, Field, listed, members, span
from cloudq.schedules.triggers import At, Cron, Every
from cloudq.timer import Trigger

_WEEKS = (span(1, 7), span(8, 14), span(15, 21), span(22, 28), span(29, 31))
"""The days of month on which a weekday comes for the first to the fifth time."""


def eventbridge(trigger: Trigger) -> list[Expression]:
    """``cron(…)``, ``rate(…)`` or ``at(…)``, each with its ``timezone``, which together fire when ``trigger`` does.

    Where there are several, two of them may fire at the same instant: whoever takes the ticks tells doubles by schedule and slot.
    A ``rate(…)`` counts from its schedule's StartDate: it is exact with ``trigger.next_after(now)`` for one, and wrong without.
    Raises CannotExpress.
    """
    if isinstance(trigger, Cron):
        return [_cron(trigger, days) for days in _days(trigger)]
    if isinstance(trigger, At):
        if trigger.instant % 60:
            raise _refused(trigger, "it fires within a minute, not at a second of it", str(At(-(-trigger.instant // 60) * 60)))
        return [Expression(datetime.fromtimestamp(trigger.instant, UTC).strftime("at(%Y-%m-%dT%H:%M:%S)"), "UTC")]
    if not isinstance(trigger, Every):
        raise _refused(trigger, f"{type(trigger).__name__} is a kind of trigger of its own", None)
    if trigger.interval % 60 or trigger.anchor % 60:
        near = Every(max(1, round(trigger.interval / 60)) * 60, trigger.anchor // 60 * 60)
        raise _refused(trigger, "it counts whole minutes, and fires within one", str(near))
    if (same := as_cron(trigger)) is not None:
        return eventbridge(same)
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        count, rest = divmod(trigger.interval, length)
        if not rest:  # one of a unit is a crontab, so the unit is plural
            return [Expression(f"rate({count} {unit})", "UTC")]
    raise AssertionError(trigger)


def _cron(trigger: Cron, days: tuple[str, str]) -> Expression:
    minute, hour, month = _field(MINUTE, trigger.minutes), _field(HOUR, trigger.hours), _field(MONTH, trigger.months)
    return Expression(f"cron({minute} {hour} {days[0]} {month} {days[1]} *)", trigger.tz)


def _days(trigger: Cron) -> list[tuple[str, str]]:
    """The day fields of the expressions: in each exactly one is ``?``."""
    pairs = [
        (_field(DAY, days), "?") if weekdays == WEEKDAY.every else ("?", listed(weekdays << 1, 1, 7, None))  # Sunday is 1; no steps here
        for days, weekdays in day_sets(trigger)
    ]
    if pairs:
        return pairs
    exist = span(1, max(LONGEST[month] for month in members(trigger.months)))
    weeks = [week for week, block in enumerate(_WEEKS, 1) if block & exist and block & exist & ~trigger.days == 0]
    if sum(_WEEKS[week - 1] & exist for week in weeks) != trigger.days & exist:
        reason = "a day must be in both day fields, and it takes one of them; only whole weeks (1-7, 8-14, 15-21, 22-28, 29-31) can be said"
        raise _refused(trigger, reason, any_day_of_month(trigger))
    return [("?", f"{weekday + 1}#{week}") for week in weeks for weekday in members(trigger.weekdays)]


def _field(field: Field, numbers: int) -> str:
    return listed(numbers, field.first, field.last, lambda begin, step: f"{begin}/{step}")


def _refused(trigger: Trigger, reason: str, nearest: str | None) -> CannotExpress:
    return CannotExpress(str(trigger), "EventBridge Scheduler", reason, nearest=nearest)
