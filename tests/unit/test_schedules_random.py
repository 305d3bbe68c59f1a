"""Random crontabs: next fires against cronsim, and translations against AWS's rules (tests/eventbridge_rules.py)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from heapq import merge
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError

from cloudq.schedules import CannotExpress, Cron, Trigger, cloud_scheduler, cron, crontab, eventbridge, every, parse
from tests import eventbridge_rules

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe"]
EACH = 2_000
"""Crontabs a zone."""
DEEP = 40
"""Of these, those whose translation is followed over 2,000 fires."""
FIRES = 2_000
WEEK = 7 * 86_400
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
END = datetime(2199, 12, 1, tzinfo=UTC).timestamp()


def field(dice: random.Random, first: int, last: int, names: list[str] | None = None, *, plain: float = 0.3) -> str:
    """A field in one of cron's forms."""

    def number() -> str:
        value = dice.randint(first, last)
        if names is None or value - first >= len(names) or dice.random() < 0.7:
            return str(value)
        name = names[value - first]
        return dice.choice([name, name.lower()])

    def part() -> str:
        low, high = sorted(dice.sample(range(first, last + 1), 2))
        step = dice.randint(1, high - low)
        return dice.choice([number(), number(), f"{low}-{high}", f"{low}-{high}/{step}"])

    if dice.random() < plain:
        return "*"
    if dice.random() < 0.25:
        return f"*/{dice.randint(1, max(2, (last - first) // 2))}"
    return ",".join(part() for _ in range(dice.choice([1, 1, 1, 2, 3])))


def line(dice: random.Random) -> str:
    return " ".join(
        [
            field(dice, 0, 59, plain=0.1),
            field(dice, 0, 23, plain=0.2),
            field(dice, 1, 31, plain=0.5),
            field(dice, 1, 12, MONTHS, plain=0.6),
            field(dice, 0, 7, WEEKDAYS, plain=0.5),
        ]
    )


def changes(zone: str) -> list[float]:
    """The hours of 2026 to 2029 in which the zone's clocks are changed."""
    begin = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    offsets = [datetime.fromtimestamp(begin + hour * 3600, ZoneInfo(zone)).utcoffset() for hour in range(4 * 366 * 24)]
    return [float(begin + hour * 3600) for hour in range(1, len(offsets)) if offsets[hour] != offsets[hour - 1]]


def crontabs(zone: str, count: int) -> Iterator[tuple[str, float]]:
    """Crontabs that fire, each with an instant, which lies near a change of clocks half of the time."""
    dice, near = random.Random(f"schedules {zone}"), changes(zone)
    while count:
        text = line(dice)
        instant = dice.uniform(0, 3e9)
        if near and dice.random() < 0.5:
            instant = dice.choice(near) + dice.uniform(-2 * 86_400, 86_400)
        try:
            CronSim(text, datetime(2000, 1, 1))  # noqa: DTZ001  # a clock on the wall
        except CronSimError:
            with pytest.raises(ValueError, match="never fires"):
                cron(text, tz=zone)
            continue
        yield text, instant
        count -= 1


def simulated(text: str, zone: str, instant: float) -> Iterator[float]:
    """What cronsim fires by a clock on the wall, at the instants that AWS's rule gives those times."""
    wall = datetime.fromtimestamp(instant // 1, ZoneInfo(zone)).replace(tzinfo=None)
    for shown in CronSim(text, wall):
        fire = eventbridge_rules.instant_of(shown, zone)
        if fire is not None and fire > instant:
            yield fire


def following(trigger: Trigger, instant: float) -> Iterator[float]:
    while (fire := trigger.next_after(instant)) is not None:
        yield fire
        instant = fire


def translated(trigger: Trigger, instant: float) -> Iterator[float]:
    """The fires of a trigger's expressions together, each once."""
    start = trigger.next_after(instant)
    last = None
    for fire in merge(*(eventbridge_rules.fires(text, text.timezone, instant, start=start) for text in eventbridge(trigger))):
        if fire != last:
            yield fire
        last = fire


def until(end: float, fires: Iterator[float]) -> Iterator[float]:
    for fire in fires:
        if fire >= end:
            return
        yield fire


def agree(trigger: Trigger, instant: float, *, count: int) -> int:
    """The next ``count`` fires, or those until 2199, are those of the translation; returns how many they were."""
    ours = list(islice(until(END, following(trigger, instant)), count))
    theirs = list(islice(until(END, translated(trigger, instant)), count))
    assert ours == theirs, f"{trigger} after {instant}: {[str(text) for text in eventbridge(trigger)]}"
    return len(ours)


@pytest.mark.parametrize("zone", ZONES)
def test_the_next_ten_fires_are_those_of_cronsim(zone: str) -> None:
    for text, instant in crontabs(zone, EACH):
        ours = following(cron(text, tz=zone), instant)
        for expected in islice(simulated(text, zone, instant), 10):  # it gives up after 50 years
            assert next(ours) == expected, (text, zone, instant)


@pytest.mark.parametrize("zone", ZONES)
def test_each_crontab_fires_as_its_expressions_do_or_is_refused(zone: str) -> None:
    refused = split = 0
    for text, instant in crontabs(zone, EACH):
        trigger = cron(text, tz=zone)
        assert parse(str(trigger)) == trigger
        try:
            assert agree(trigger, instant, count=5)
            split += len(eventbridge(trigger)) > 1
        except CannotExpress:
            refused += 1
            assert not trigger.either
            both = text.split()[2] != "*" and text.split()[4] != "*"
            assert both
    assert split > EACH / 20
    assert 0 < refused < EACH / 5


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_expressions_fire_with_their_crontab_2000_times_and_round_each_change_of_clocks(zone: str) -> None:
    dice = random.Random(zone)
    triggers = [(cron(text, tz=zone), instant) for text, instant in crontabs(zone, DEEP)]
    blocks = ["1-7", "8-14,22-28", "29-31", "1-14", "1-28"]
    triggers += [
        (crontab(dice.randrange(60), dice.randrange(24), dice.randrange(7), days, tz=zone), dice.uniform(0, 3e9)) for days in blocks
    ]
    followed = 0
    for trigger, instant in triggers:
        try:
            followed += agree(trigger, instant, count=FIRES)
        except CannotExpress:
            continue
        for change in changes(zone)[:4]:
            week = change - WEEK / 2
            ours = list(until(week + WEEK, following(trigger, week)))
            assert ours == list(until(week + WEEK, translated(trigger, week))), f"{trigger} round {change}"
    assert followed > DEEP * FIRES / 2


@pytest.mark.parametrize("zone", ZONES)
def test_cloud_scheduler_jobs_are_crontabs_with_one_day_field_that_together_fire_the_same(zone: str) -> None:
    for text, instant in crontabs(zone, EACH // 2):
        trigger = cron(text, tz=zone)
        try:
            jobs = cloud_scheduler(trigger)
        except CannotExpress:
            assert not trigger.either
            continue
        assert all(job.split()[2] == "*" or job.split()[4] == "*" for job in jobs)
        together = merge(*(following(cron(job, tz=job.timezone), instant) for job in jobs))
        ours = list(islice(following(trigger, instant), 5))
        assert sorted(set(islice(together, 10)))[:5] == ours, text


def test_every_fires_as_its_expression_does() -> None:
    dice = random.Random("every")
    for minutes in [*range(1, 130), 180, 240, 360, 480, 600, 720, 1_440, 2_160, 2_880, 10_080, 20_160]:
        trigger = every(minutes * 60, anchor=dice.randrange(2_000_000) * 60)
        assert agree(trigger, dice.uniform(0, 3e9), count=300)


def test_celerys_crontab_fires_on_days_that_are_in_all_three_of_its_fields() -> None:
    dice = random.Random("celery")
    for _ in range(300):
        days, weekdays, months = (
            set(dice.sample(range(low, high), dice.randint(1, high - low))) for low, high in ((1, 29), (0, 7), (1, 13))
        )
        trigger = crontab(0, 12, weekdays, days, months)
        ours = [datetime.fromtimestamp(fire, UTC).date() for fire in islice(following(trigger, 1.8e9), 5)]
        assert ours == list(islice(_days(days, weekdays, months), 5))


def _days(days: set[int], weekdays: set[int], months: set[int]) -> Iterator[date]:
    day = datetime.fromtimestamp(1.8e9, UTC).date()
    if datetime.fromtimestamp(1.8e9, UTC).hour >= 12:
        day += timedelta(days=1)
    while True:
        if day.day in days and day.isoweekday() % 7 in weekdays and day.month in months:
            yield day
        day += timedelta(days=1)


def test_a_crontab_is_read_as_it_is_printed() -> None:
    for text, _ in crontabs("Europe/Berlin", 200):
        trigger = cron(text, tz="Europe/Berlin")
        assert isinstance(parse(str(trigger)), Cron)
        assert hash(parse(str(trigger))) == hash(trigger)
