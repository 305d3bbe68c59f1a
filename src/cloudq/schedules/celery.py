"""Celery's crontab: its spellings of the five fields, and its meaning."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo

from cloudq.schedules.fields import DAY, HOUR, MINUTE, MONTH, WEEKDAY, Field, folded, of, parse_number, unix
from cloudq.schedules.triggers import Cron, zone_name

Spelling = int | str | Iterable[int]
"""A number, a text (``*/15``, ``mon-fri``, ``0,8-17/2``), or some numbers."""


def crontab(
    minute: Spelling = "*",
    hour: Spelling = "*",
    day_of_week: Spelling = "*",
    day_of_month: Spelling = "*",
    month_of_year: Spelling = "*",
    *,
    tz: str | tzinfo = "UTC",
) -> Cron:
    """The trigger of a Celery ``crontab(…)``, with its arguments in its order: ``crontab(hour=7, minute=30, day_of_week="mon-fri")``.

    As in Celery a day must be in all of ``day_of_week``, ``day_of_month`` and ``month_of_year``, ranges may go round (``fri-mon``), and
    names may be written out. Unlike it, 7 is Sunday too. Raises ValueError, which names the field, its value and what to write.
    """
    spelled = ((MINUTE, minute), (HOUR, hour), (DAY, day_of_month), (MONTH, month_of_year), (WEEKDAY, day_of_week))
    return Cron(" ".join(unix(field, _numbers(field, given)) for field, given in spelled), zone_name(tz), both_days=True)


def _numbers(field: Field, given: Spelling) -> int:
    if isinstance(given, str):
        numbers = 0
        for part in given.replace(" ", "").split(","):
            numbers |= _part(field, part)
        return folded(field, numbers)
    found = [given] if isinstance(given, int) else list(given)
    if not found:
        raise ValueError(f"crontab: {field.name} {given!r} names nothing; write '*' for all")
    return folded(field, of(_number(field, str(number), str(number)) for number in found))


def _part(field: Field, part: str) -> int:
    numbers, slash, step = part.partition("/")
    low, dash, high = numbers.partition("-")
    if numbers == "*":
        found = list(range(field.first, field.last + 1))
    else:
        first = _number(field, low, part)
        last = _number(field, high, part) if dash else first
        round_ = field.last - field.first + 1
        found = [(number - field.first) % round_ + field.first for number in range(first, last + (round_ if last < first else 0) + 1)]
    if slash and numbers != "*" and not dash:
        raise ValueError(f"crontab: {field.name} {part!r} steps from a single number; write {low}-{field.last}/{step}")
    if slash and not (step.isascii() and step.isdigit() and int(step)):
        raise ValueError(f"crontab: {field.name} {part!r} has the step {step!r}; write a whole number of 1 or more")
    return of(found[:: int(step)] if slash else found)


def _number(field: Field, text: str, part: str) -> int:
    """Names count by their first three letters, as in Celery."""
    try:
        return parse_number(field, text[:3] if field.names and text.isalpha() else text, part)
    except ValueError as error:
        raise ValueError(f"crontab: {error}") from None
