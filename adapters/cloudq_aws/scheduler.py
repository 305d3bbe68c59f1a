"""The EventBridge Scheduler timer: cloudq's timer seam by schedules that send to SQS queues, in one schedule group."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

from cloudq.adapters import Adapter, AdapterContext, Location
from cloudq.broker import Broker, Outgoing
from cloudq.claimcheck import SMALL
from cloudq.clock import Clock, SystemClock
from cloudq.errors import CannotExpress, CloudQError, ConfigError, MessageTooLarge, TimerError, TimerUnavailable
from cloudq.schedules.naming import EVENTBRIDGE_PREFIX, eventbridge_name, eventbridge_note, eventbridge_schedule
from cloudq.timer import Schedule, TimerLimits, Trigger
from cloudq_aws.client import client_for, open_now
from cloudq_aws.errors import DENIED, Refusal, Service, mapped_to
from cloudq_aws.sqs import entry, refusal, size_of, too_large
from cloudq_aws.undelivered import SCHEDULED_TIME, SEND_MESSAGE

__all__ = ["EventBridgeTimer", "Translated", "adapter"]

SERVICE: Final = "EventBridge Scheduler"

_MINUTE = 60
_LATE = 2.0 * _MINUTE
"""Up to a minute for rounding up, and one because a schedule fires within the minute that it names (AWS, "Schedule types": 60 second
precision). What it does with seconds is not said, so we give it whole minutes."""
_LEAD = 15.0
"""Seconds that an instant must lie ahead for a schedule of its own: AWS must have it before it is due, and our clock may be off."""
_HORIZON = 3650 * 86_400.0
"""Our own: AWS names no limit."""

# AWS EventBridge Scheduler, "Quotas": 256 KB of input. API reference: names up to 64 characters, descriptions up to 512, 100 a page, and a
# message is tried again for at most 185 times and 86,400 s.
_INPUT = 256 * 1024
_DESCRIPTION = 512
_PAGE = 100
_RETRIES: Final = {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86_400}

_KEYWORD = "<aws.scheduler."
"""What begins each text that Scheduler replaces in its input (AWS, "Adding context attributes")."""
_ESCAPED = _KEYWORD.replace("<", "\\u003c")
_SLOT = "<slot>"

_ONCE = "at"
"""What the names of one-time schedules begin with."""
_PARTS = 10
"""Expressions at most that a trigger is split into, each a schedule of AWS's."""

_ANSWER = 10.0
"""Seconds that a request with its SDK retries may take."""
_ROUNDS = 5
"""How often creating and updating alternate while others change the same schedule."""
_READERS = 10
"""Schedules that are read at once."""

_GROUP = re.compile(r"[0-9A-Za-z_.-]{1,64}")
_ROLE = re.compile(r"arn:(aws(?:-[a-z]+)*):iam::(\d{12}):role/[\w+=,.@/-]+")
_ARN = re.compile(r"arn:[a-z-]+:sqs:([a-z0-9-]+):(\d{12}):([A-Za-z0-9_-]+(?:\.fifo)?)")
_HOST = re.compile(r"(?:sqs\.)?([a-z0-9-]+)(?:\.queue)?\.amazonaws\.com(?:\.cn)?")


@runtime_checkable
class Translated(Protocol):
    """A trigger that says itself how EventBridge Scheduler keeps it; those of ``cloudq.schedules`` are translated here."""

    def eventbridge_expression(self) -> tuple[str, str]:
        """``cron(…)`` or ``rate(…)``, and the IANA time zone that it is read in."""
        ...


@runtime_checkable
class SQSQueues(Broker, Protocol):
    """A broker whose queues are SQS's."""

    async def url(self, queue: str) -> str:
        """The queue's URL; raises QueueNotFound."""
        ...

    async def body_limit(self, queue: str) -> int:
        """Bytes that the queue takes in a message; asked for once."""
        ...


class EventBridgeTimer:
    """A Timer of the schedule group ``group``, which must exist, as must ``role`` and ``dead_letter``; it creates schedules only.

    ``region`` ``None`` leaves it to the SDK, as are credentials and endpoint (``AWS_PROFILE``, ``AWS_ENDPOINT_URL`` …). ``role`` is the ARN
    of the role that Scheduler takes on to send. ``dead_letter`` is a standard queue for what could not be delivered within a day.
    Queues are named as ``broker`` names them; without a broker by ARN, or by plain name in ``account``, by default the role's.

    Instants are rounded up to the minute, and a schedule fires within its minute: up to two minutes late in all, which is
    ``limits.late``. What is due within 15 s, or was, goes through ``broker`` at its second (without one it becomes a schedule for the
    next minute). A one-time schedule deletes itself once fired; AWS takes a moment for it, in which ``cancel`` may still answer true.

    Names are ``at-KEY`` and ``every-NAME``, hashed where long or odd; a trigger that takes several expressions (a day of the month or a
    weekday) has further ones, ``every2-NAME`` and so on. A message is SQS's own, checked before it is set, of up to
    256 KB (quoted as JSON where it has attributes, a group or a tenant): MessageTooLarge beyond it.

    Who calls ``at`` needs scheduler:CreateSchedule, UpdateSchedule (the same key again) and DeleteSchedule (``cancel``, and what is due at
    once) on ``arn:…:schedule/GROUP/*``, and iam:PassRole on the role with iam:PassedToService=scheduler.amazonaws.com; who syncs schedules
    also GetSchedule, and ListSchedules on ``*``. The role needs sqs:SendMessage on the queues and the dead-letter queue, and a trust policy
    for scheduler.amazonaws.com with aws:SourceAccount and aws:SourceArn = ``arn:…:schedule-group/GROUP``.
    """

    def __init__(
        self,
        group: str,
        region: str | None = None,
        *,
        role: str,
        dead_letter: str,
        account: str | None = None,
        broker: SQSQueues | None = None,
        client: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not _GROUP.fullmatch(group):
            raise ConfigError(
                f"no schedule group is named {group!r}: a name is 1 to 64 letters, digits, _, - and . (eventbridge://eu-west-1/shop?role=…)"
            )
        if not (arn := _ROLE.fullmatch(role)):
            raise ConfigError(f"eventbridge:// needs role=arn:aws:iam::ACCOUNT:role/NAME, the role that Scheduler sends with, not {role!r}")
        if not dead_letter or dead_letter.endswith(".fifo"):
            raise ConfigError(
                "eventbridge:// needs dead_letter=, the standard queue (name or ARN) that keeps what Scheduler could not deliver; "
                f"{dead_letter!r} is none"
            )
        self._limits = TimerLimits(horizon=_HORIZON, late=_LATE)
        self._group = group
        self._role = role
        self._dead_letter = dead_letter
        self._partition = arn[1]
        self._account = account or arn[2]
        self._broker = broker
        self._clock = clock or SystemClock()
        self._client = client_for("scheduler", region, read_timeout=_ANSWER, sdk=client)
        self._service = Service(
            name=SERVICE,
            url="eventbridge://eu-west-1/group",
            error=TimerError,
            unavailable=TimerUnavailable,
            refused=self._refused,
        )

    @property
    def limits(self) -> TimerLimits:
        return self._limits

    async def at(self, when: float, queue: str, message: Outgoing, *, key: str) -> None:
        now = self._clock.time()
        if not when - now <= _HORIZON:
            raise TimerError(f"this timer is set at most {_HORIZON / 86_400:.0f} days ahead, not {(when - now) / 86_400:.0f}")
        if when - now < _LEAD and self._broker is not None:
            await self._send(self._broker, when - now, queue, message)
            await self.cancel(key)  # what the key had set, if anything
            return
        due = datetime.fromtimestamp(_minute(max(when, now + _LEAD)), UTC)
        await self._put(
            eventbridge_name(_ONCE, key),
            ScheduleExpression=due.strftime("at(%Y-%m-%dT%H:%M:%S)"),
            ScheduleExpressionTimezone="UTC",
            ActionAfterCompletion="DELETE",
            State="ENABLED",
            Target=await self._target(queue, message),
        )

    async def cancel(self, key: str) -> bool:
        return await self._delete(eventbridge_name(_ONCE, key))

    async def schedules(self) -> Sequence[Schedule]:
        names: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = await self._call("ListSchedules", EVENTBRIDGE_PREFIX, NamePrefix=EVENTBRIDGE_PREFIX, MaxResults=_PAGE, **token)
            names += (found["Name"] for found in page["Schedules"])
            if not page.get("NextToken"):
                break
            token = {"NextToken": page["NextToken"]}
        parts: dict[str, list[_Part]] = {}
        for start in range(0, len(names), _READERS):
            for part in await asyncio.gather(*map(self._read, names[start : start + _READERS])):
                if part is not None:
                    parts.setdefault(part.schedule.name, []).append(part)
        return [_whole(parts[name]) for name in sorted(parts)]

    async def put_schedule(self, schedule: Schedule) -> None:
        try:
            expressions = _expressions(schedule.trigger)
        except CannotExpress as error:
            raise ConfigError(f"schedule {schedule.name!r}: {error}") from error
        if len(expressions) > _PARTS:
            raise ConfigError(
                f"schedule {schedule.name!r}: {schedule.trigger} takes {len(expressions)} expressions, and {_PARTS} is the most"
            )
        name, message = eventbridge_schedule(schedule.name), schedule.message
        trigger, of = str(schedule.trigger), len(expressions)
        notes = [eventbridge_note(schedule.name, schedule.queue, trigger, part=number, of=of) for number in range(1, of + 1)]
        if (longest := max(map(len, notes))) > _DESCRIPTION:
            raise TimerError(f"schedule {name!r}: its name, queue and trigger have {longest} characters together; {_DESCRIPTION} fit")
        if message.group is not None:  # each tick is a message of its own, also within the 5 minutes of SQS's deduplication
            message = replace(message, dedup=f"{name}@{_SLOT}")
        target, replaced = await self._target(schedule.queue, message, slot=SCHEDULED_TIME), False
        from cloudq.schedules.kept import Kept

        for number, ((expression, timezone), note) in enumerate(zip(expressions, notes, strict=True), 1):
            counts = expression.startswith("rate(") and not isinstance(schedule.trigger, Kept)
            start = schedule.trigger.next_after(self._clock.time()) if counts else None
            replaced |= await self._put(
                eventbridge_schedule(schedule.name, number),
                Description=note,
                ScheduleExpression=expression,
                ScheduleExpressionTimezone=timezone,
                ActionAfterCompletion="NONE",
                State="DISABLED" if schedule.paused else "ENABLED",
                Target=target,
                **({} if start is None else {"StartDate": datetime.fromtimestamp(start, UTC)}),  # from which a rate counts
            )
        if replaced:
            await self._delete_parts(schedule.name, len(expressions) + 1)

    async def delete_schedule(self, name: str) -> None:
        await self._delete_parts(name, 1)

    async def _delete_parts(self, name: str, first: int) -> None:
        """The last before the first, so that none is left to be found without it."""
        await asyncio.gather(*(self._delete(eventbridge_schedule(name, number)) for number in range(max(first, 2), _PARTS + 1)))
        if first == 1:
            await self._delete(eventbridge_schedule(name))

    def open(self) -> None:
        """As ``cloudq_aws.client.Opens``."""
        open_now(self._client)

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, broker: Broker, wait: float, queue: str, message: Outgoing) -> None:
        """Send at once what is due within seconds."""
        if wait > 0 and message.group is not None and not broker.limits.ordered_delay:
            await self._clock.sleep(wait)
            wait = 0.0
        (answer,) = await broker.send(queue, [replace(message, delay=max(wait, 0.0))])
        if answer is not None:
            raise answer

    async def _target(self, queue: str, message: Outgoing, *, slot: str = _SLOT) -> Mapping[str, Any]:
        """Where a schedule sends, and what. In ``Input`` the text ``<slot>`` becomes ``slot``."""
        message = replace(message, delay=0.0)
        if (bad := refusal(queue, message)) is not None:  # days later nobody would be there to be told
            raise TimerError(str(bad)) from bad
        if self._broker is not None and (size := size_of(message)) > SMALL and size > (most := await self._broker.body_limit(queue)):
            raise too_large(queue, size, most)
        arn = await self._arn(queue)
        if message.attributes or message.group is not None or message.tenant or _KEYWORD in message.body:
            request = {"QueueUrl": await self._url(queue), **entry(queue, message)}
            text = json.dumps(request, separators=(",", ":")).replace(_KEYWORD, _ESCAPED)  # the message's own text is no keyword
            arn = f"arn:{self._partition}{SEND_MESSAGE}"
        else:
            text = message.body
        text = text.replace(_SLOT, slot)
        if (size := len(text.encode())) > _INPUT:
            raise MessageTooLarge(
                f"a message to {queue!r} for later has {size:,} bytes as input of EventBridge Scheduler, which takes {_INPUT:,}; "
                "name a place for large bodies in the broker's URL (bodies=s3://bucket/prefix), pass a reference (a key, a URL) instead, "
                "or a delay that the queue holds itself"
            )
        dead_letter = await self._arn(self._dead_letter)
        return {"Arn": arn, "RoleArn": self._role, "Input": text, "RetryPolicy": _RETRIES, "DeadLetterConfig": {"Arn": dead_letter}}

    async def _arn(self, queue: str) -> str:
        """The queue's ARN, which needs no request of its own: a queue's URL ends in its account and name."""
        region = await self._region()
        if named := _ARN.fullmatch(queue):
            arn, there = queue, named[1]
        else:
            url = urlsplit(await self._url(queue))
            account, name = url.path.split("/")[-2:]
            arn = f"arn:{self._partition}:sqs:{region}:{account}:{name}"
            home = _HOST.fullmatch(url.netloc)
            there = home[1] if home else region
        if there != region:
            raise TimerError(f"queue {queue!r} is in {there}, and this timer in {region}; Scheduler sends within its region only")
        return arn

    async def _url(self, queue: str) -> str:
        if self._broker is not None:
            return await self._broker.url(queue)
        if queue.startswith(("https://", "http://")):
            return queue
        named = _ARN.fullmatch(queue)
        account, name = (named[2], named[3]) if named else (self._account, queue)
        return f"https://sqs.{await self._region()}.amazonaws.com{'.cn' if self._partition == 'aws-cn' else ''}/{account}/{name}"

    async def _region(self) -> str:
        with mapped_to(self._service, "", "finding the region"):
            return await self._client.region()

    async def _put(self, name: str, **schedule: Any) -> bool:
        """Create the schedule, or replace it whole; returns whether it was there."""
        for _ in range(_ROUNDS):
            for action in ("CreateSchedule", "UpdateSchedule"):
                try:
                    await self._call(action, name, Name=name, FlexibleTimeWindow={"Mode": "OFF"}, **schedule)
                    return action == "UpdateSchedule"
                except (_There, _Gone):
                    continue  # _Gone: it has fired, or was deleted, since it was there
        raise TimerUnavailable(f"schedule {name!r} in group {self._group!r} is being changed by others all the time; try again later")

    async def _delete(self, name: str) -> bool:
        try:
            await self._call("DeleteSchedule", name, Name=name)
        except _Gone:
            return False
        return True

    async def _read(self, name: str) -> _Part | None:
        """One schedule of AWS's as it stands; ``None`` where it was deleted since it was listed, or is none of ours."""
        from cloudq.schedules.kept import Kept

        try:
            found = await self._call("GetSchedule", name, Name=name)
        except _Gone:
            return None
        note = _noted(found.get("Description") or "")
        number = note.get("part", 1)
        if not isinstance(note.get("name"), str) or type(number) is not int or eventbridge_schedule(note["name"], number) != name:
            return None
        target: dict[str, Any] = found["Target"]
        expression: str = found["ScheduleExpression"]
        text = target.get("Input", "").replace(SCHEDULED_TIME, _SLOT)
        sent: dict[str, Any] = json.loads(text) if target["Arn"].endswith(SEND_MESSAGE) else {"MessageBody": text}
        queue = note.get("queue") or sent.get("QueueUrl") or target["Arn"]
        group = sent.get("MessageGroupId")
        ordered = queue.endswith(".fifo")
        zone = found.get("ScheduleExpressionTimezone", "UTC")
        read = Schedule(
            name=note["name"],
            queue=queue,
            message=Outgoing(
                body=sent["MessageBody"],
                group=group if ordered else None,
                tenant=None if ordered else group,
                dedup=sent.get("MessageDeduplicationId"),
                attributes={key: value["StringValue"] for key, value in sent.get("MessageAttributes", {}).items()},
            ),
            trigger=Kept(((expression, zone),), note.get("trigger", expression), SERVICE),
            paused=found.get("State") == "DISABLED",
        )
        return _Part(number, read, (expression, zone), note.get("trigger"), note.get("of", 1))

    async def _call(self, action: str, name: str, **parameters: Any) -> Mapping[str, Any]:
        """Make one request about the group."""
        with mapped_to(self._service, action, f"{action} of {name!r} in schedule group {self._group!r}"):
            return await self._client.request(action, within=_ANSWER, GroupName=self._group, **parameters)

    def _refused(self, refusal: Refusal) -> CloudQError | None:
        tried, action, code, detail = refusal.tried, refusal.action, refusal.code, refusal.detail
        if code == "ResourceNotFoundException":
            if action in ("CreateSchedule", "ListSchedules") or detail.lower().startswith("schedule group"):
                return TimerError(
                    f"{tried}: there is no such group in this account and region; create it ('cloudq deploy' writes the template), "
                    "or correct the group or the region in the timer's URL"
                )
            return _Gone(f"{tried}: there is no such schedule")
        if code == "ConflictException":
            return _There(f"{tried}: {detail}")
        if code in DENIED:
            passing = (
                f", and iam:PassRole on {self._role} with iam:PassedToService=scheduler.amazonaws.com"
                if action in ("CreateSchedule", "UpdateSchedule")
                else ""
            )
            where = "*" if action == "ListSchedules" else f"arn:{self._partition}:scheduler:*:*:schedule/{self._group}/*"
            return TimerError(f"{tried}: access denied ({detail}); allow scheduler:{action} on {where}{passing}")
        if code == "ValidationException" and "role" in detail.lower():
            return TimerError(f"{tried}: {detail} Let scheduler.amazonaws.com assume {self._role} in its trust policy")
        if code == "ServiceQuotaExceededException":
            return TimerError(
                f"{tried}: the account has as many schedules as its quota allows ({detail}); have it raised in Service Quotas"
            )
        return None


class _There(TimerError):
    """A schedule of the name exists, or somebody else changes it right now."""


class _Gone(TimerError):
    """There is no schedule of the name."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One schedule of AWS's, which is a schedule of ours, or a part of one."""

    number: int
    schedule: Schedule
    expression: tuple[str, str]
    said: str | None
    """The trigger by our note."""
    of: int
    """How many parts there are by our note."""


def _noted(description: str) -> dict[str, Any]:
    """What a note says; nothing where it is none."""
    try:
        found = json.loads(description)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _whole(parts: Sequence[_Part]) -> Schedule:
    """The schedule that the parts make: with the trigger that our note tells of, where that is what they keep."""
    parts = sorted(parts, key=lambda part: part.number)
    from cloudq.schedules.kept import read_back

    first = parts[0]
    noted = first.said if first.of == len(parts) and len({part.schedule.paused for part in parts}) == 1 else None
    trigger = read_back(noted, [part.expression for part in parts], SERVICE, _expressions)
    return replace(first.schedule, trigger=trigger, paused=all(part.schedule.paused for part in parts))


def _expressions(trigger: Trigger) -> list[tuple[str, str]]:
    """Expressions with their time zones, which together fire when the trigger does. Raises CannotExpress."""
    from cloudq.schedules import eventbridge
    from cloudq.schedules.kept import Kept

    if isinstance(trigger, Kept):
        return list(trigger.parts)
    if isinstance(trigger, Translated):
        return [trigger.eventbridge_expression()]

    return [(str(expression), expression.timezone) for expression in eventbridge(trigger)]


def _minute(instant: float) -> int:
    """The first whole minute that is not before ``instant``."""
    return math.ceil(instant / _MINUTE) * _MINUTE


def _open(location: Location, context: AdapterContext) -> EventBridgeTimer:
    location.allow("role", "dead_letter", "account", "client")
    broker, options = context.broker, location.options
    if broker is not None and not isinstance(broker, SQSQueues):
        raise ConfigError("eventbridge:// sends to SQS queues; use it with a broker of sqs://, or the timer that belongs to your broker")
    return EventBridgeTimer(
        location.path,
        location.host or None,
        role=options.get("role", ""),
        dead_letter=options.get("dead_letter", ""),
        account=options.get("account"),
        broker=broker,
        client=options.get("client"),
        clock=context.clock,
    )


adapter = Adapter(timer=_open)
"""``eventbridge://eu-west-1/group?role=ARN&dead_letter=QUEUE``, or without the region for the SDK's own; ``account=`` as above."""
