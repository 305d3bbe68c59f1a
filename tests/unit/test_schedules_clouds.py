"""Triggers as EventBridge Scheduler and Cloud Scheduler say them, and what they refuse."""

from __future__ import annotations

import pytest

from cloudq.errors import ConfigError
from cloudq.schedules import CannotExpress, Trigger, at, cloud_scheduler, cron, crontab, eventbridge, every, parse
from tests import eventbridge_rules


@pytest.mark.parametrize(
    ("fields", "aws", "google"),
    [
        ("*/15 * * * *", ["cron(0/15 * * * ? *)"], ["*/15 * * * *"]),
        ("30 2 * * 1-5", ["cron(30 2 ? * 2-6 *)"], ["30 2 * * 1-5"]),
        ("0 0 * * 7", ["cron(0 0 ? * 1 *)"], ["0 0 * * 0"]),
        ("0 9 * * 5-7", ["cron(0 9 ? * 1,6,7 *)"], ["0 9 * * 0,5,6"]),
        ("0 9 * * MON,SAT-7", ["cron(0 9 ? * 1,2,7 *)"], ["0 9 * * 0,1,6"]),
        ("0 9 * * */2", ["cron(0 9 ? * 1,3,5,7 *)"], ["0 9 * * */2"]),
        ("0 9 */10 */6 *", ["cron(0 9 1/10 1,7 ? *)"], ["0 9 */10 1,7 *"]),
        ("0 */6 * feb-nov/3 *", ["cron(0 0/6 * 2/3 ? *)"], ["0 */6 * 2-12/3 *"]),
        ("10-40/10 * * * *", ["cron(10,20,30,40 * * * ? *)"], ["10,20,30,40 * * * *"]),
        ("0 9 1 * 1", ["cron(0 9 1 * ? *)", "cron(0 9 ? * 2 *)"], ["0 9 1 * *", "0 9 * * 1"]),
        ("0 9 1-31 * 1", ["cron(0 9 * * ? *)"], ["0 9 * * *"]),
        ("0 9 1 * 0-6", ["cron(0 9 * * ? *)"], ["0 9 * * *"]),
        ("0 9 30 2 1", ["cron(0 9 ? 2 2 *)"], ["0 9 * 2 1"]),  # 30 February adds nothing
        ("0 9 */1 * 1", ["cron(0 9 ? * 2 *)"], ["0 9 * * 1"]),
        ("* * * * *", ["cron(* * * * ? *)"], ["* * * * *"]),
    ],
)
def test_a_crontab_is_said_to_both(fields: str, aws: list[str], google: list[str]) -> None:
    trigger = cron(fields, tz="Europe/Berlin")
    assert eventbridge(trigger) == aws
    assert cloud_scheduler(trigger) == google
    assert {text.timezone for text in eventbridge(trigger) + cloud_scheduler(trigger)} == {"Europe/Berlin"}


@pytest.mark.parametrize(
    ("trigger", "aws"),
    [
        (crontab(0, 9, "mon", "1-7"), ["cron(0 9 ? * 2#1 *)"]),
        (crontab(0, 9, "mon", "1-7,15-21"), ["cron(0 9 ? * 2#1 *)", "cron(0 9 ? * 2#3 *)"]),
        (crontab(0, 9, "sat,sun", "29-31"), ["cron(0 9 ? * 1#5 *)", "cron(0 9 ? * 7#5 *)"]),
        (crontab(0, 9, "sat", "29", 2), ["cron(0 9 ? 2 7#5 *)"]),  # February has no more
        (crontab(0, 9, "sat", "22-30", "4,6"), ["cron(0 9 ? 4,6 7#4 *)", "cron(0 9 ? 4,6 7#5 *)"]),
    ],
)
def test_a_weekday_in_whole_weeks_of_the_month_is_said_by_its_number(trigger: Trigger, aws: list[str]) -> None:
    assert eventbridge(trigger) == aws


@pytest.mark.parametrize(
    ("text", "aws", "google"),
    [
        ("every 1m", ["cron(* * * * ? *)"], ["* * * * *"]),
        ("every 5m", ["cron(0/5 * * * ? *)"], ["*/5 * * * *"]),
        ("every 15m from 2027-01-01T00:05:00Z", ["cron(5/15 * * * ? *)"], ["5-59/15 * * * *"]),
        ("every 12h from 2027-01-01T07:05:00Z", ["cron(5 7,19 * * ? *)"], ["5 7,19 * * *"]),
        ("every 1d", ["cron(0 0 * * ? *)"], ["0 0 * * *"]),
        ("every 1w from 2027-01-04T06:00:00Z", ["cron(0 6 ? * 2 *)"], ["0 6 * * 1"]),
        ("every 7m", ["rate(7 minutes)"], None),
        ("every 90m", ["rate(90 minutes)"], None),
        ("every 36h", ["rate(36 hours)"], None),
        ("every 2d", ["rate(2 days)"], None),
        ("at 2027-01-15T08:00:00Z", ["at(2027-01-15T08:00:00)"], None),
    ],
)
def test_grids_and_instants_are_said_in_utc(text: str, aws: list[str], google: list[str] | None) -> None:
    trigger = parse(text)
    assert eventbridge(trigger) == aws
    assert {said.timezone for said in eventbridge(trigger)} == {"UTC"}
    if google is not None:
        assert cloud_scheduler(trigger) == google
    else:
        with pytest.raises(CannotExpress):
            cloud_scheduler(trigger)


def test_an_instant_fires_as_its_expression_does() -> None:
    trigger = at("2027-01-15T08:00:00Z")
    (said,) = eventbridge(trigger)
    assert list(eventbridge_rules.fires(said, said.timezone, 0)) == [trigger.next_after(0)]


@pytest.mark.parametrize(
    ("text", "reason", "nearest"),
    [
        ("0 9 */2 * 1", "a day must be in both day fields", "0 9 * * 1 UTC"),
        ("crontab 0 9 1-7 3 1 Europe/Berlin", "whole weeks|Google does not say", "0 9 * 3 1 Europe/Berlin"),
        ("crontab 0 9 13 * 5", "a day must be in both day fields", "0 9 * * 5 UTC"),
        ("every 30s", "whole minutes", "every 1m"),
        ("every 150s", "whole minutes", "every 2m"),
        ("every 1h from 2027-01-01T00:00:30Z", "whole minutes", "every 1h from 2027-01-01T00:00:00Z"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_reason_and_the_nearest_that_can(text: str, reason: str, nearest: str) -> None:
    for service in (eventbridge, cloud_scheduler):
        if text.startswith("crontab 0 9 1-7") and service is eventbridge:
            continue
        with pytest.raises(CannotExpress, match=reason) as refused:
            service(parse(text))
        assert refused.value.nearest == nearest
        assert str(refused.value).endswith(f"; the nearest that can: {nearest}")
        assert service(parse(nearest))
        assert isinstance(refused.value, ConfigError)


@pytest.mark.parametrize(("interval", "nearest"), [("7m", "6m"), ("45m", "30m"), ("90m", "1h"), ("5h", "4h"), ("2d", "1d"), ("30d", "1w")])
def test_an_uneven_interval_is_refused_by_cloud_scheduler_with_an_even_one(interval: str, nearest: str) -> None:
    with pytest.raises(CannotExpress, match="even only for minutes that divide an hour") as refused:
        cloud_scheduler(every(interval))
    assert refused.value.nearest == f"every {nearest}"
    assert cloud_scheduler(parse(f"every {nearest}"))


def test_one_instant_is_no_schedule_of_cloud_scheduler() -> None:
    with pytest.raises(CannotExpress, match="call the task with eta= instead") as refused:
        cloud_scheduler(at("2027-01-15T08:00:00Z"))
    assert refused.value.nearest is None


def test_an_instant_within_a_minute_is_refused_with_the_next_minute() -> None:
    with pytest.raises(CannotExpress) as refused:
        eventbridge(at("2027-01-15T08:00:10Z"))
    assert refused.value.nearest == "at 2027-01-15T08:01:00Z"


def test_a_trigger_of_another_kind_is_refused() -> None:
    class Odd:
        def next_after(self, instant: float) -> float | None:
            return None

    for service in (eventbridge, cloud_scheduler):
        with pytest.raises(CannotExpress, match="Odd is a kind of trigger of its own"):
            service(Odd())


@pytest.mark.parametrize(
    "undocumented",
    ["cron(*/5 * * * ? *)", "cron(0 0 ? * 1/2 *)", "cron(0 0 * * * *)", "cron(0 0 ? * ? *)", "cron(1-9/2 * * * ? *)", "cron(0 0 ? * 8 *)",
     "rate(1 minutes)", "rate(5 minute)"],
)  # fmt: skip
def test_the_reference_takes_only_what_aws_documents(undocumented: str) -> None:
    with pytest.raises(AssertionError):
        next(eventbridge_rules.fires(undocumented, "UTC", 0, start=0))
