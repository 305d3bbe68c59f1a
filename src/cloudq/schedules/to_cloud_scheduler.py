"""Triggers as schedules of Cloud Scheduler jobs, exactly or not at all. Source: Google Cloud, "Cron job format and time zone"."""

from __future__ import annotations

from cloudq.errors import CannotExpress
from cloudq.schedules.expressions import EVEN, Expression, any_day_of_month, as_cron, day_sets
from cloudq.schedules.fields import DAY, HOUR, MINUTE, MONTH, WEEKDAY, unix
from cloudq.schedules.triggers import At, Cron, Every
from cloudq.timer import Trigger


def cloud_scheduler(trigger: Trigger) -> list[Expression]:
    """Five fields of unix cron for each job, each with its ``timezone``, which together fire when ``trigger`` does.

    Where there are several, two of them may fire at the same instant: whoever takes the ticks tells doubles by schedule and slot.
    In the hours of a change of clocks Google promises nothing; ``trigger.warnings()`` says whether a fire lies there.
    Raises CannotExpress.
    """
    if isinstance(trigger, At):
        raise _refused(trigger, "its jobs all recur; call the task with eta= instead", None)
    if isinstance(trigger, Every):
        same, interval = as_cron(trigger), trigger.interval
        if same is None:
            near = Every(min(EVEN, key=lambda minutes: abs(minutes * 60 - interval)) * 60, trigger.anchor // 60 * 60)
            even = "crontabs are even only for minutes that divide an hour, hours that divide a day, and a week"
            reason = "crontabs count whole minutes" if interval % 60 or trigger.anchor % 60 else even
            raise _refused(trigger, reason, str(near))
        trigger = same
    if not isinstance(trigger, Cron):
        raise _refused(trigger, f"{type(trigger).__name__} is a kind of trigger of its own", None)
    pairs = day_sets(trigger)
    if not pairs:
        reason = "a day must be in both day fields, and Google does not say what it makes of both"
        raise _refused(trigger, reason, any_day_of_month(trigger))
    minute, hour, month = unix(MINUTE, trigger.minutes), unix(HOUR, trigger.hours), unix(MONTH, trigger.months)
    return [Expression(f"{minute} {hour} {unix(DAY, days)} {month} {unix(WEEKDAY, weekdays)}", trigger.tz) for days, weekdays in pairs]


def _refused(trigger: Trigger, reason: str, nearest: str | None) -> CannotExpress:
    return CannotExpress(str(trigger), "Cloud Scheduler", reason, nearest=nearest)
