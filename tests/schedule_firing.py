"""A stand-in for EventBridge Scheduler's clock, which no local server has: reads schedules back, checks them, fires them in time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from cloudq.clock import ManualClock
from tests.eventbridge_rules import fires

SEND = "arn:aws:scheduler:::aws-sdk:sqs:sendMessage"
_INPUT = 256 * 1024


class Firing:
    """Fires the schedules of ``group`` on a server, as ``clock`` is moved by ``pass_time``.

    ``scheduler`` and ``sqs`` are plain boto3 clients. AWS fires within the minute that a schedule names, and does not say what it makes of
    seconds: one-time schedules fire here at ``second`` of that minute, even before the second that they name, recurring ones at 0.
    """

    def __init__(self, scheduler: Any, sqs: Any, clock: ManualClock, group: str, *, second: int = 0) -> None:
        self.scheduler = scheduler
        self.sqs = sqs
        self.clock = clock
        self.group = group
        self.second = second
        self.fired: list[str] = []
        """Names, in the order fired."""
        self._seen: set[tuple[str, float]] = set()

    def read(self) -> Sequence[Mapping[str, Any]]:
        """All schedules of the group as the server has them, each checked."""
        pages = self.scheduler.get_paginator("list_schedules").paginate(GroupName=self.group)
        names = [found["Name"] for page in pages for found in page["Schedules"]]
        found = [self.scheduler.get_schedule(GroupName=self.group, Name=name) for name in sorted(names)]
        for schedule in found:
            self.check(schedule)
        return found

    def pass_time(self, seconds: float) -> None:
        """Move the clock on, firing at its own instant what becomes due on the way."""
        begin = self.clock.time()
        end = begin + seconds
        for schedule in self.read():
            if (once := _once(schedule)) is not None and (schedule["Name"], once) not in self._seen:
                self._seen.add((schedule["Name"], once))
                assert once > begin, f"{schedule['Name']} is set for the past, where AWS may refuse it"
        done: set[tuple[str, float]] = set()
        while True:
            due = [
                (instant, schedule, slot)
                for schedule in self.read()
                if schedule["State"] == "ENABLED"
                for instant, slot in [self._next(schedule, begin, done)]
                if instant <= end
            ]
            if not due:
                break
            instant, schedule, slot = min(due, key=lambda one: (one[0], one[1]["Name"]))
            self.clock.advance(max(0.0, instant - self.clock.time()))
            done.add((schedule["Name"], slot))
            self.fire(schedule, slot)
        self.clock.advance(end - self.clock.time())

    def _next(self, schedule: Mapping[str, Any], begin: float, done: set[tuple[str, float]]) -> tuple[float, float]:
        """When it fires next, and the time that it is scheduled for."""
        if (once := _once(schedule)) is not None:
            return once // 60 * 60 + self.second, once
        slot = next(slot for slot in _fires(schedule, begin) if (schedule["Name"], slot) not in done)
        return slot, slot

    def fire(self, schedule: Mapping[str, Any], slot: float) -> None:
        """Send what the schedule says to where it says; what SQS refuses goes to the schedule's dead-letter queue."""
        target = schedule["Target"]
        text: str = target["Input"]
        said = {
            "schedule-arn": schedule["Arn"],
            "scheduled-time": datetime.fromtimestamp(slot, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "execution-id": f"{len(self.fired):016x}",
            "attempt-number": "1",
        }
        for keyword, value in said.items():
            text = text.replace(f"<aws.scheduler.{keyword}>", value)
        try:
            request = json.loads(text) if target["Arn"] == SEND else {"QueueUrl": self._url(target["Arn"]), "MessageBody": text}
            self.sqs.send_message(**request)
        except self.sqs.exceptions.ClientError as error:
            why = {
                "ERROR_CODE": error.response["Error"]["Code"],
                "ERROR_MESSAGE": error.response["Error"]["Message"],
                "EXECUTION_ID": said["execution-id"],
                "EXHAUSTED_RETRY_CONDITION": "MaximumRetryAttempts",
                "IS_PAYLOAD_TRUNCATED": "false",
                "RETRY_ATTEMPTS": "185",
                "SCHEDULED_TIME": said["scheduled-time"],
                "SCHEDULE_ARN": schedule["Arn"],
                "TARGET_ARN": target["Arn"],
            }
            attributes = {name: {"DataType": "String", "StringValue": value} for name, value in why.items()}
            self.sqs.send_message(
                QueueUrl=self._url(target["DeadLetterConfig"]["Arn"]), MessageBody=target["Input"], MessageAttributes=attributes
            )
        if schedule["ActionAfterCompletion"] == "DELETE" and _once(schedule) is not None:
            self.scheduler.delete_schedule(GroupName=self.group, Name=schedule["Name"])
        self.fired.append(schedule["Name"])

    def check(self, schedule: Mapping[str, Any]) -> None:
        """Fail where AWS would not take the schedule, or would not do what cloudq promises."""
        model = self.scheduler.meta.service_model.operation_model("CreateSchedule").input_shape
        conforms(model, {name: value for name, value in schedule.items() if name in model.members})
        assert schedule["GroupName"] == self.group
        assert schedule["FlexibleTimeWindow"] == {"Mode": "OFF"}
        assert ZoneInfo(schedule["ScheduleExpressionTimezone"])
        once = _once(schedule)
        assert schedule["ActionAfterCompletion"] == ("NONE" if once is None else "DELETE")
        if once is None:
            assert next(_fires(schedule, 0)) > 0
        target = schedule["Target"]
        assert target["RetryPolicy"].keys() == {"MaximumRetryAttempts", "MaximumEventAgeInSeconds"}
        assert 0 < len(target["Input"].encode()) <= _INPUT
        self._check_arn(target["DeadLetterConfig"]["Arn"])
        assert not target["DeadLetterConfig"]["Arn"].endswith(".fifo")
        if target["Arn"] == SEND:
            send = self.sqs.meta.service_model.operation_model("SendMessage").input_shape
            request = json.loads(target["Input"])
            conforms(send, request)
            assert "DelaySeconds" not in request
            if request["QueueUrl"].endswith(".fifo"):
                assert request["MessageGroupId"]
                assert request["MessageDeduplicationId"]  # content-based deduplication would drop equal calls
        else:
            self._check_arn(target["Arn"])
            assert not target["Arn"].endswith(".fifo"), "a templated FIFO target has no deduplication id"

    def _check_arn(self, arn: str) -> None:
        found = self.sqs.get_queue_attributes(QueueUrl=self._url(arn), AttributeNames=["QueueArn"])
        assert found["Attributes"]["QueueArn"] == arn

    def _url(self, arn: str) -> str:
        return str(self.sqs.get_queue_url(QueueName=arn.rpartition(":")[2])["QueueUrl"])


def conforms(shape: Any, value: Any, where: str = "") -> None:
    """Check a value against AWS's own service model: names, required members, lengths, ranges, patterns."""
    rules, where = shape.metadata, where or shape.name
    match shape.type_name:
        case "structure":
            assert value.keys() <= shape.members.keys(), f"{where} has members that AWS does not know"
            assert value.keys() >= set(rules.get("required", ())), f"{where} lacks a required member"
            for name, member in value.items():
                conforms(shape.members[name], member, f"{where}.{name}")
        case "map":
            for name, member in value.items():
                conforms(shape.key, name, f"{where} key")
                conforms(shape.value, member, f"{where}[{name}]")
        case "string":
            assert isinstance(value, str), where
            assert rules.get("min", 0) <= len(value) <= rules.get("max", _INPUT), f"{where} has a wrong length"
            assert value in rules.get("enum", [value]), f"{where} is no {shape.name}"
            assert re.search(rules.get("pattern", ""), value), f"{where} does not match {rules.get('pattern')}"
        case "integer":
            assert rules.get("min", value) <= value <= rules.get("max", value), f"{where} is out of range"
        case _:
            pass


def _once(schedule: Mapping[str, Any]) -> float | None:
    """The instant of a one-time schedule."""
    expression: str = schedule["ScheduleExpression"]
    if not expression.startswith("at("):
        return None
    assert re.fullmatch(r"at\(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\)", expression)
    zone = ZoneInfo(schedule["ScheduleExpressionTimezone"])
    return datetime.fromisoformat(expression[3:-1]).replace(tzinfo=zone).timestamp()


def _fires(schedule: Mapping[str, Any], after: float) -> Iterator[float]:
    """The fires of a recurring schedule after an instant."""
    start = schedule.get("StartDate")
    zone = schedule["ScheduleExpressionTimezone"]
    return fires(schedule["ScheduleExpression"], zone, after, start=None if start is None else start.timestamp())
