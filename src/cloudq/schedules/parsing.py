"""Triggers from their texts: what ``str(trigger)`` wrote, read back."""

from __future__ import annotations

from cloudq.schedules.triggers import At, Cron, Every, at, cron, every


def parse(text: str) -> Cron | Every | At:
    """The trigger that ``text`` says: ``0 9 * * 1-5 Europe/Berlin``, ``every 5m``, ``every 1d from 2027-01-15T08:00:00Z``, ``at 2027-…Z``.

    A crontab without a zone is in UTC; after the word ``crontab`` a day must be in both day fields. Raises ValueError, which says what to
    write.
    """
    kind, _, rest = text.strip().partition(" ")
    if kind == "every":
        interval, _, anchor = rest.partition(" from ")
        return every(interval) if not anchor else every(interval, anchor=at(anchor.strip()).instant)
    if kind == "at":
        return at(rest.strip())
    if kind.startswith("@"):
        raise ValueError(f"{text!r} is a nickname that not every cron knows; write its five fields, such as '0 0 * * *' for @daily")
    *fields, last = (rest if kind == "crontab" else text).split() or [""]
    line, tz = (" ".join(fields), last) if len(fields) == 5 else (" ".join((*fields, last)), "UTC")
    return Cron(line, tz, both_days=True) if kind == "crontab" else cron(line, tz=tz)
