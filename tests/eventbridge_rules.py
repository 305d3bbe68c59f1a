"""When EventBridge Scheduler fires an expression, by AWS's documented rules alone; shares no code with cloudq.

AWS, "Schedule types in EventBridge Scheduler": ``cron(minutes hours day-of-month month day-of-week year)``, where one of the day fields is
``?``; ``rate(value unit)`` from the StartDate on, a day being 24 hours; ``at(yyyy-mm-ddThh:mm:ss)``. A time that a change of clocks skips
is skipped, one that comes twice fires once. What is not documented is refused: ``*/5``, ``1-9/2``, steps in the day of week, two ``#``.
L and W, which no crontab needs, are not known here.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
LAST_YEAR = 2199
_EPOCH = date(1970, 1, 1).toordinal()
_DAY = 86_400


def fires(expression: str, timezone: str, after: float, *, start: float | None = None) -> Iterator[float]:
    """The fires strictly after ``after``, until the end of 2199. ``start`` is a rate's StartDate."""
    kind, fields = re.fullmatch(r"(cron|rate|at)\(([^()]+)\)", expression).groups()  # type: ignore[union-attr]
    if kind == "cron":
        return _cron(fields, timezone, after)
    if kind == "rate":
        assert start is not None, "without a StartDate a rate begins whenever its schedule is made"
        return _rate(fields, start, after)
    instant = instant_of(datetime.strptime(fields, "%Y-%m-%dT%H:%M:%S"), timezone)  # noqa: DTZ007  # the zone is beside it
    return iter([instant] if instant is not None and instant > after else [])


def instant_of(wall: datetime, timezone: str) -> float | None:
    """The first instant at which clocks show ``wall``, which has no zone; ``None`` where they never do."""
    seconds = wall.hour * 3600 + wall.minute * 60 + wall.second
    return _first((wall.toordinal() - _EPOCH) * _DAY + seconds, _offsets(wall.toordinal(), timezone), timezone)


def _first(as_utc: int, offsets: tuple[int, ...], timezone: str) -> float | None:
    """The first instant at which clocks show what UTC's show at ``as_utc``: each offset that may be in force is tried."""
    if len(offsets) == 1:
        return float(as_utc - offsets[0])
    zone = ZoneInfo(timezone)
    found = [
        as_utc - offset for offset in offsets if datetime.fromtimestamp(as_utc - offset, zone).utcoffset() == timedelta(seconds=offset)
    ]
    return float(min(found)) if found else None


@cache
def _offsets(day: int, timezone: str) -> tuple[int, ...]:
    """The offsets from UTC (seconds) in force between the day before and the day after, as far as one change can bring."""
    noon = datetime.fromordinal(day).replace(hour=12, tzinfo=UTC)
    zone = ZoneInfo(timezone)
    return tuple({int((noon + timedelta(days=days * 1.5)).astimezone(zone).utcoffset().total_seconds()) for days in (-1, 1)})  # type: ignore[union-attr]


def _rate(fields: str, start: float, after: float) -> Iterator[float]:
    value, unit = fields.split(" ")
    assert re.fullmatch("[1-9][0-9]*", value)
    assert unit in ({"minute", "hour", "day"} if value == "1" else {"minutes", "hours", "days"}), f"rate({fields})"
    step = int(value) * {"minute": 60, "hour": 3600, "day": 86400}[unit.rstrip("s")]
    fire = start
    while fire < _utc(LAST_YEAR + 1):
        if fire > after:
            yield fire
        fire += step


def _cron(fields: str, timezone: str, after: float) -> Iterator[float]:
    minute, hour, day, month, weekday, year = fields.split(" ")
    assert (day == "?") != (weekday == "?"), f"exactly one day field must be ?: cron({fields})"
    minutes, hours = _numbers(minute, 0, 59), _numbers(hour, 0, 23)
    days, months = _numbers(day, 1, 31) if day != "?" else [], _numbers(month, 1, 12, MONTHS)
    years = _numbers(year, 1970, LAST_YEAR)
    times = [hour * 3600 + minute * 60 for hour in hours for minute in minutes]
    begin = datetime.fromtimestamp(after, ZoneInfo(timezone)).date() - timedelta(days=2)
    for current in years[max(0, begin.year - years[0]) :]:
        for number in months:
            if (current, number) < (begin.year, begin.month):
                continue
            for one in days_of(current, number, weekday) if day == "?" else days:
                if one > calendar.monthrange(current, number)[1] or date(current, number, one) < begin:
                    continue
                ordinal = date(current, number, one).toordinal()
                offsets, midnight = _offsets(ordinal, timezone), (ordinal - _EPOCH) * _DAY
                for time in times:
                    fire = _first(midnight + time, offsets, timezone)
                    if fire is not None and fire > after:
                        yield fire


def days_of(year: int, month: int, weekday: str) -> list[int]:
    """The days of a month that a day-of-week field names, with Sunday as 1; ``2#1`` is the first Monday."""
    first, length = calendar.monthrange(year, month)
    name, _, number = weekday.partition("#")
    if number:
        (wanted,) = _numbers(name, 1, 7, WEEKDAYS, steps=False)
        assert number in {"1", "2", "3", "4", "5"}
    else:
        wanted = 0
    sunday_is_1 = [(first + 1 + day - 1) % 7 + 1 for day in range(1, length + 1)]
    if number:
        return [day for day in range(1, length + 1) if sunday_is_1[day - 1] == wanted][int(number) - 1 : int(number)]
    named = _numbers(weekday, 1, 7, WEEKDAYS, steps=False)
    return [day for day in range(1, length + 1) if sunday_is_1[day - 1] in named]


def _numbers(field: str, first: int, last: int, names: list[str] | None = None, *, steps: bool = True) -> list[int]:
    """The numbers of a field, which names have from ``first`` on."""
    found: set[int] = set()
    for part in field.split(","):
        for index, name in enumerate(names or []):
            part = part.replace(name, str(index + first))
        if part == "*":
            found.update(range(first, last + 1))
        elif plain := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            low, high = int(plain[1]), int(plain[2] or plain[1])
            assert first <= low <= high <= last, f"{part} in {field}"
            found.update(range(low, high + 1))
        else:
            stepped = re.fullmatch(r"(\d+)/([1-9]\d*)", part)
            assert steps, f"{part} in {field}: there are no steps"
            assert stepped, f"{part} in {field} is not documented"
            assert first <= int(stepped[1]) <= last
            found.update(range(int(stepped[1]), last + 1, int(stepped[2])))
    return sorted(found)


def _utc(year: int) -> float:
    return datetime(year, 1, 1, tzinfo=UTC).timestamp()
