"""The five fields of unix cron: from text to a set of numbers, and back.

A set is an int whose bit n stands for the number n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple


class Field(NamedTuple):
    """One of the five; ``names`` begin at ``first``."""

    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()

    @property
    def every(self) -> int:
        """All its numbers."""
        return span(self.first, self.last)


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

MINUTE: Final = Field("minute", 0, 59)
HOUR: Final = Field("hour", 0, 23)
DAY: Final = Field("day-of-month", 1, 31)
MONTH: Final = Field("month", 1, 12, _MONTHS)
WEEKDAY: Final = Field("day-of-week", 0, 6, _WEEKDAYS)
FIELDS: Final = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)

LONGEST: Final = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Days that a month has at most."""


def span(first: int, last: int, step: int = 1) -> int:
    """The set of every ``step``-th number from ``first`` to ``last``."""
    return of(range(first, last + 1, step))


def of(numbers: Iterable[int]) -> int:
    """The set of some numbers."""
    return sum(1 << number for number in set(numbers))


def members(numbers: int) -> list[int]:
    """The numbers of a set, in order."""
    return [number for number in range(numbers.bit_length()) if numbers >> number & 1]


def parse_field(field: Field, text: str) -> int:
    """The numbers that a field of a crontab names. Vixie cron's grammar: ``*``, numbers, names, ranges, steps on either, and lists of them.

    Raises ValueError for anything else, and for a step so large that it leaves one number.
    """
    found = 0
    for part in text.split(","):
        found |= _parse_part(field, part)
    return folded(field, found)


def folded(field: Field, numbers: int) -> int:
    """The set with 7 as Sunday's other number."""
    return numbers & 0x7F | numbers >> 7 if field is WEEKDAY else numbers


def parse_number(field: Field, text: str, part: str) -> int:
    """A number or a name of the field; raises ValueError that quotes ``part``."""
    last = 7 if field is WEEKDAY else field.last
    if text.upper() in field.names:
        return field.first + field.names.index(text.upper())
    if text.isascii() and text.isdigit() and field.first <= int(text) <= last:
        return int(text)
    allowed = f"{field.first} to {last}" + (f" or {field.names[0]} to {field.names[-1]}" if field.names else "")
    raise ValueError(f"{field.name} {part!r}: {text!r} is not {allowed}; write a number, '*', a range (1-5), a step (*/2) or a list")


def _parse_part(field: Field, part: str) -> int:
    def wrong(what: str) -> ValueError:
        return ValueError(f"{field.name} {part!r} {what}")

    numbers, slash, step = part.partition("/")
    low, dash, high = numbers.partition("-")
    first, last = field.first, field.last
    if numbers != "*":
        first = last = parse_number(field, low, part)
        if dash:
            last = parse_number(field, high, part)
    if first > last:
        split = f"{first}-{field.last},{field.first}-{last}"
        raise wrong("ends before it begins; write " + (f"{first}-7" if field is WEEKDAY and last == 0 else split))
    if not slash:
        return span(first, last)
    if numbers != "*" and not dash:
        raise wrong(f"steps from a single number, which crons read in different ways; write {first}-{field.last}/{step}")
    if not (step.isascii() and step.isdigit() and int(step)):
        raise wrong(f"has the step {step!r}; write a whole number of 1 or more")
    if int(step) > last - first:
        raise wrong(f"has a step so large that only {first} is left; write {first}, or every('…') for a time between fires")
    return span(first, last, int(step))


def unix(field: Field, numbers: int) -> str:
    """The field as unix cron reads it."""

    def steps(first: int, step: int) -> str:
        return f"*/{step}" if first == field.first else f"{first}-{field.last}/{step}"

    return listed(numbers, field.first, field.last, steps)


def listed(numbers: int, first: int, last: int, steps: Callable[[int, int], str] | None) -> str:
    """``*``, a step to the end as ``steps(begin, step)`` writes it (``None``: it cannot be written), or a list of numbers and ranges."""
    found = members(numbers)
    if len(found) == last - first + 1:
        return "*"
    if steps is not None and len(found) > 2:
        step = found[1] - found[0]
        if step > 1 and found == list(range(found[0], last + 1, step)):
            return steps(found[0], step)
    runs: list[list[int]] = []
    for number in found:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
