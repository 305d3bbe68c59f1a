"""Triggers: what they take and refuse, when they fire, what they print, say and warn of."""

from __future__ import annotations

import doctest
import math
import pickle
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import cloudq
from cloudq.schedules import At, Cron, Trigger, at, cron, crontab, every, parse
from tests.unit.test_schedules_random import following

PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"


def unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def fires(trigger: Trigger, after: str, count: int = 3) -> list[str]:
    """The next fires, in UTC."""
    found = islice(following(trigger, unix(after)), count)
    return [datetime.fromtimestamp(fire, UTC).strftime("%Y-%m-%d %H:%M") for fire in found]


def test_a_fire_is_strictly_after_the_instant() -> None:
    trigger = cron("0 9 * * *")
    assert trigger.next_after(unix("2027-01-15T08:59:59.999999Z")) == unix("2027-01-15T09:00Z")
    assert trigger.next_after(math.nextafter(unix("2027-01-15T09:00Z"), 0)) == unix("2027-01-15T09:00Z")
    assert trigger.next_after(unix("2027-01-15T09:00Z")) == unix("2027-01-16T09:00Z")


@pytest.mark.parametrize(
    ("fields", "days"),
    [
        ("0 0 13 * FRI", ["2027-01-01", "2027-01-08", "2027-01-13"]),  # either
        ("0 0 */12 * FRI", ["2027-01-01", "2027-06-25", "2027-08-13"]),  # both: the first field begins with a star
        ("0 0 1,13 * */5", ["2027-01-01", "2027-06-13", "2027-08-01"]),  # both: the other does; Sundays and Fridays
        ("0 0 1-31 * FRI", ["2027-01-01", "2027-01-02", "2027-01-03"]),  # all days are a restriction all the same
        ("0 0 30 2 FRI", ["2027-02-05", "2027-02-12", "2027-02-19"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 31 */2 *", ["2027-01-31", "2027-03-31", "2027-05-31"]),
        ("0 0 * feb sun", ["2027-02-07", "2027-02-14", "2027-02-21"]),
        ("0 0 * * 6-7", ["2027-01-02", "2027-01-03", "2027-01-09"]),
    ],
)
def test_days_are_chosen_by_the_rule_of_vixie_cron(fields: str, days: list[str]) -> None:
    assert fires(cron(fields), "2026-12-31T12:00Z") == [f"{day} 00:00" for day in days]


def test_a_time_that_clocks_skip_does_not_fire() -> None:
    assert fires(cron("30 2 * * *", tz="Europe/Berlin"), "2027-03-27T00:00Z") == [
        "2027-03-27 01:30",
        "2027-03-29 00:30",
        "2027-03-30 00:30",
    ]
    assert fires(cron("*/30 1-3 * * *", tz="Europe/Berlin"), "2027-03-28T00:00Z", 4) == [
        "2027-03-28 00:30", "2027-03-28 01:00", "2027-03-28 01:30", "2027-03-28 23:00",
    ]  # fmt: skip


def test_a_time_that_comes_twice_fires_the_first_time() -> None:
    assert fires(cron("30 2 * * *", tz="Europe/Berlin"), "2027-10-30T12:00Z", 2) == ["2027-10-31 00:30", "2027-11-01 01:30"]
    assert fires(cron("30 2 * * *", tz="Europe/Berlin"), "2027-10-31T00:45Z", 1) == ["2027-11-01 01:30"]
    assert fires(cron("*/20 * * * *", tz="Europe/Berlin"), "2027-10-31T00:30Z", 3) == [
        "2027-10-31 00:40", "2027-10-31 02:00", "2027-10-31 02:20",
    ]  # fmt: skip


def test_a_zone_may_move_by_half_an_hour_at_midnight_or_by_a_whole_day() -> None:
    assert fires(cron("15 2 * * *", tz="Australia/Lord_Howe"), "2026-10-02T16:00Z", 2) == ["2026-10-04 15:15", "2026-10-05 15:15"]
    assert fires(cron("30 0 * * *", tz="America/Santiago"), "2026-09-05T05:00Z", 2) == ["2026-09-07 03:30", "2026-09-08 03:30"]
    assert fires(cron("0 12 30 12 *", tz="Pacific/Apia"), "2011-01-01T00:00Z", 1) == ["2012-12-29 22:00"]  # it had no 30 December 2011


def test_every_fires_on_a_grid_that_does_not_move() -> None:
    assert fires(every("7m"), "1970-01-01T00:00Z") == ["1970-01-01 00:07", "1970-01-01 00:14", "1970-01-01 00:21"]
    assert fires(every("1d", anchor=datetime(2027, 1, 1, 6, tzinfo=UTC)), "2026-12-30T06:00Z", 2) == [
        "2026-12-31 06:00",
        "2027-01-01 06:00",
    ]
    assert every(timedelta(hours=36)) == every("1d12h") == every(129_600)
    assert every(60).next_after(59.5) == 60.0
    assert every(60).next_after(60) == 120.0


def test_at_fires_once() -> None:
    trigger = at("2027-01-15T09:00:00+01:00")
    assert trigger == at(datetime(2027, 1, 15, 8, tzinfo=UTC)) == At(int(unix("2027-01-15T08:00Z")))
    assert trigger.next_after(0) == unix("2027-01-15T08:00Z")
    assert trigger.next_after(unix("2027-01-15T08:00Z")) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("61 * * * *", "minute '61': '61' is not 0 to 59"),
        ("0 24 * * *", "hour '24'"),
        ("0 0 0 * *", "day-of-month '0'"),
        ("0 0 * 13 *", "month '13': '13' is not 1 to 12 or JAN to DEC"),
        ("0 0 * * 8", "day-of-week '8': '8' is not 0 to 7 or SUN to SAT"),
        ("0 0 * * MONDAY", "day-of-week 'MONDAY'"),
        ("0 0 ? * 1", "day-of-month '[?]'"),
        ("0 0 L * *", "day-of-month 'L'"),
        ("0 0 * * 2#1", "day-of-week '2#1'"),
        ("1,,2 * * * *", "minute ''"),
        ("-1 * * * *", "minute '-1'"),
        ("٣ * * * *", "minute '٣'"),
        ("*-5 * * * *", "minute '[*]-5'"),
        ("30-10 * * * *", "minute '30-10' ends before it begins; write 30-59,0-10"),
        ("0 0 * * FRI-SUN", "day-of-week 'FRI-SUN' ends before it begins; write 5-7"),
        ("5/15 * * * *", "write 5-59/15"),
        ("*/0 * * * *", "has the step '0'; write a whole number of 1 or more"),
        ("*/x * * * *", "has the step 'x'"),
        ("*/90 * * * *", "only 0 is left; write 0"),
        ("0 0 30 2 *", "never fires: no month in '2' has a day in '30'"),
        ("0 0 31 4,6 *", "never fires"),
        ("0 9 * *", "has 4 fields; write five: minute, hour, day of month, month, day of week"),
        ("0 0 9 * * 1", "has 6 fields"),
        ("0 9 * * 1 Europe/Berlin", "the time zone as tz='Europe/Berlin'"),
        ("@daily", "has 1 fields"),
    ],
)
def test_what_is_no_crontab_is_refused_with_what_to_write(fields: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cron(fields)


@pytest.mark.parametrize("tz", ["Europe", "Mars/Olympus", "", "../etc/passwd", "right/Europe/Berlin", "localtime"])
def test_what_is_no_time_zone_is_refused(tz: str) -> None:
    with pytest.raises(ValueError, match=r"write an IANA name such as 'Europe/Berlin'|IANA"):
        cron("0 9 * * *", tz=tz)


def test_a_zone_may_be_an_object_that_has_a_name() -> None:
    assert cron("0 9 * * *", tz=ZoneInfo("Europe/Berlin")) == cron("0 9 * * *", tz="Europe/Berlin")
    assert cron("0 9 * * *", tz=UTC) == cron("0 9 * * *")
    with pytest.raises(TypeError, match="IANA"):
        cron("0 9 * * *", tz=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: every(0), lambda: every("500ms"), lambda: every(1.5), lambda: every("often"), lambda: every(-60),
        lambda: every("5m", anchor=0.5), lambda: every("5m", anchor=datetime(2027, 1, 1)),  # noqa: DTZ001
        lambda: at("tomorrow"), lambda: at("2027-01-15T08:00:00"), lambda: at("2027-01-15T08:00:00.5Z"),
        lambda: parse("@daily"), lambda: parse("every"), lambda: parse(""), lambda: parse("at"), lambda: parse("every 5m from noon"),
        lambda: parse("0 9 * *"), lambda: parse("crontab"), lambda: parse("0 9 * * 1 Mars/Olympus"),
    ],
)  # fmt: skip
def test_what_is_no_trigger_is_a_value_error(wrong: Any) -> None:
    with pytest.raises(ValueError):
        wrong()


def test_fields_are_one_text() -> None:
    wrong: Any = ["0", "9", "*", "*", "1-5"]
    with pytest.raises(TypeError, match="one text"):
        cron(wrong)


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        (cron("0  9 * * MON-fri", tz="Europe/Berlin"), "0 9 * * MON-fri Europe/Berlin"),
        (cron("*/15 * * * *"), "*/15 * * * * UTC"),
        (crontab(0, 9, "mon", "1-7"), "crontab 0 9 1-7 * 1 UTC"),
        (every("90m"), "every 1h30m"),
        (every(timedelta(weeks=2)), "every 2w"),
        (every("10d"), "every 10d"),
        (every(61), "every 1m1s"),
        (every("1d", anchor=unix("2027-01-15T08:00Z")), "every 1d from 2027-01-15T08:00:00Z"),
        (at("2027-01-15T08:00:00Z"), "at 2027-01-15T08:00:00Z"),
    ],
)
def test_a_trigger_prints_as_a_text_that_is_read_as_the_same_trigger(trigger: Cron, text: str) -> None:
    assert str(trigger) == text
    assert parse(text) == trigger
    assert hash(parse(text)) == hash(trigger)
    assert pickle.loads(pickle.dumps(trigger)) == trigger  # noqa: S301
    assert isinstance(trigger, Trigger)


@pytest.mark.parametrize(
    ("trigger", "fields"),
    [
        (crontab(), "* * * * *"),
        (crontab(minute=0, hour=0), "0 0 * * *"),
        (crontab(minute=0, hour="*/3"), "0 */3 * * *"),
        (crontab(minute=0, hour="0,3,6,9,12,15,18,21"), "0 */3 * * *"),
        (crontab(minute="*/15"), "*/15 * * * *"),
        (crontab(day_of_week="sunday"), "* * * * 0"),
        (crontab(minute="*", hour="*", day_of_week="sun"), "* * * * 0"),
        (crontab(minute="*/10", hour="3,17,22", day_of_week="thu,fri"), "*/10 3,17,22 * * 4,5"),
        (crontab(minute=0, hour="*/2,*/3"), "0 0,2-4,6,8-10,12,14-16,18,20-22 * * *"),
        (crontab(minute=0, hour="*/5"), "0 */5 * * *"),
        (crontab(minute=0, hour="*/3,8-17"), "0 0,3,6,8-18,21 * * *"),
        (crontab(0, 0, day_of_month="2"), "0 0 2 * *"),
        (crontab(0, 0, day_of_month="2-30/2"), "0 0 2-31/2 * *"),
        (crontab(0, 0, day_of_month="1-7,15-21"), "0 0 1-7,15-21 * *"),
        (crontab(0, 0, day_of_month="11", month_of_year="5"), "0 0 11 5 *"),
        (crontab(0, 0, month_of_year="*/3"), "0 0 * */3 *"),
        (crontab(0, 0, "fri-mon"), "0 0 * * 0,1,5,6"),
        (crontab(0, 0, "5-7"), "0 0 * * 0,5,6"),
        (crontab(0, "22-3"), "0 0-3,22,23 * * *"),
        (crontab({0, 30}, [8, 20], 1, month_of_year="january,jul"), "0,30 8,20 * 1,7 1"),
        (crontab(0, 0, "*/2"), "0 0 * * */2"),
        (crontab("*/90"), "0 * * * *"),
    ],
)  # most are from the table in Celery's guide
def test_celerys_spellings_mean_what_they_mean_there(trigger: Cron, fields: str) -> None:
    assert trigger == cron(fields)


def test_a_day_of_celerys_crontab_is_in_both_day_fields() -> None:
    mondays = crontab(0, 9, "mon", "1-7,15-21")
    assert mondays != cron("0 9 1-7,15-21 * 1")
    assert fires(mondays, "2027-01-01T00:00Z", 4) == ["2027-01-04 09:00", "2027-01-18 09:00", "2027-02-01 09:00", "2027-02-15 09:00"]
    assert parse("crontab 0 9 * * 1") == cron("0 9 * * 1")  # where one field is open there is no difference


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"minute": 60}, "crontab: minute '60'"),
        ({"minute": ""}, "crontab: minute ''"),
        ({"hour": []}, "hour .* names nothing"),
        ({"hour": "8/2"}, "write 8-23/2"),
        ({"hour": "*/0"}, "has the step '0'"),
        ({"day_of_week": "noday"}, "day-of-week 'noday'"),
        ({"day_of_month": 30, "month_of_year": 2}, "never fires"),
        ({"day_of_month": 30, "month_of_year": 2, "day_of_week": 1}, "never fires"),  # a day must be in both
    ],
)
def test_what_is_no_celery_crontab_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        crontab(**wrong)


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (cron("0 9 * * 1-5", tz="Europe/Berlin"), "at 09:00 on Monday to Friday, Europe/Berlin"),
        (cron("0,30 8,20 * * *"), "at 08:00, 08:30, 20:00 and 20:30 every day, UTC"),
        (cron("* * * * *"), "every minute, UTC"),
        (cron("*/15 * * * *"), "every 15 minutes, UTC"),
        (cron("5 * 1 * *"), "at minute 5 of every hour on day 1 of the month, UTC"),
        (cron("*/7 */2 * 1,7 *"), "at minute 0, 7, 14, 21, 28, 35, 42, 49, 56 of every 2 hours every day in January and July, UTC"),
        (cron("0 9 1 * 1"), "at 09:00 on day 1 of the month or on Monday, UTC"),
        (crontab(0, 9, 1, "1-7"), "at 09:00 on day 1-7 of the month if it falls on Monday, UTC"),
        (every("5m"), "every 5m"),
        (at("2027-01-15T08:00:00Z"), "once, at 2027-01-15T08:00:00Z"),
    ],
)
def test_a_trigger_says_in_words_when_it_fires(trigger: Cron, words: str) -> None:
    assert trigger.describe() == words


def test_warnings_name_the_first_fire_that_a_change_of_clocks_drops() -> None:
    now = unix("2027-01-01T00:00Z")
    (skipped, twice) = cron("30 2 * * *", tz="Europe/Berlin").warnings(now)
    assert skipped.startswith("2027-03-28 02:30 in Europe/Berlin does not exist")
    assert "outside 02:00 to 03:00, or tz='UTC'" in skipped
    assert twice.startswith("2027-10-31 02:30 in Europe/Berlin comes twice")
    assert len(cron("*/5 * * * *", tz="America/New_York").warnings(now)) == 2
    assert cron("30 2 * * 1-5", tz="Europe/Berlin").warnings(now) == ()  # clocks are changed on Sundays
    assert cron("0 9 * * *", tz="Europe/Berlin").warnings(now) == ()
    assert cron("30 2 * * *").warnings(now) == cron("30 2 * * *", tz="Asia/Kolkata").warnings(now) == ()
    assert every("1h").warnings() == at("2027-01-15T08:00:00Z").warnings() == ()
    assert cron("0 9 * * *", tz="Europe/Berlin").warnings() == ()


def test_warnings_name_steps_that_are_not_even() -> None:
    (warning,) = cron("*/7 * * * *").warnings()
    assert warning == "minute */7 begins anew at 0, 4m after 56; every('7m') keeps an even distance"
    assert len(cron("0 */5 * * *").warnings()) == 1
    assert cron("*/7 9 * * *").warnings() == cron("*/15 */6 * * *").warnings() == ()


def test_the_next_fire_is_found_by_fields_and_not_by_scanning_time() -> None:
    rare = cron("59 23 29 2 */6", tz="Europe/Berlin")  # 29 February on a Saturday or Sunday
    assert fires(rare, "2072-03-01T00:00Z", 1) == ["2076-02-29 22:59"]
    begin = time.process_time()
    for _ in range(2_000):
        rare.next_after(3.3e9)
    assert time.process_time() - begin < 1  # some 20 µs each on a busy machine; a scan of years of minutes takes seconds each


def test_there_is_no_fire_after_the_last_year_that_python_counts() -> None:
    last = cron("0 0 1 1 *", tz="Asia/Tokyo")
    assert last.next_after(unix("9998-06-01T00:00Z")) is None
    assert last.next_after(1e15) is None


def test_cloudq_loads_schedules_where_they_are_asked_for() -> None:
    code = (
        "import sys, cloudq; assert 'cloudq.schedules' not in sys.modules;"
        "from cloudq import cron, crontab, every; cron('0 9 * * *'); assert 'zoneinfo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=100)
    assert (cloudq.cron, cloudq.crontab, cloudq.every) == (cron, crontab, every)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cloudq.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_sessions_in_the_page_on_schedules_print_what_it_says() -> None:
    text = PAGE.read_text("utf-8")
    test = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 10
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    printed: list[str] = []
    assert runner.run(test, out=printed.append).failed == 0, "".join(printed)
