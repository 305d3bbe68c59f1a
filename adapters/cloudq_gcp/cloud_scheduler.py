"""Recurring messages by Cloud Scheduler: each schedule is a job that publishes to a Pub/Sub topic."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol, cast, runtime_checkable

from cloudq.broker import Outgoing
from cloudq.errors import CannotExpress, CloudQError, ConfigError, EntryTooLarge, TimerError, TimerUnavailable
from cloudq.schedules.naming import cloud_scheduler_job, cloud_scheduler_note
from cloudq.timer import Schedule, Trigger
from cloudq_gcp.client import Api, Client
from cloudq_gcp.cloud_tasks import too_large
from cloudq_gcp.errors import Refusal, Service, mapped_to
from cloudq_gcp.pubsub import refusal

__all__ = ["CloudScheduler", "Translated"]

SERVICE: Final = "Cloud Scheduler"

# Google Cloud, Cloud Scheduler reference, Job and RetryConfig: 1 MB a job (of which its names may take some), descriptions of up to 500
# characters, 5 retries at most and none by default. ListJobs: 500 a page.
_JOB: Final = 1_000_000
_NAMES: Final = 8_000
_DESCRIPTION: Final = 500
_RETRIES: Final = 5
_PAGE: Final = 500
_FIELDS: Final = ("description", "pubsub_target", "schedule", "time_zone", "retry_config")

_ANSWER: Final = 20.0
"""Seconds that a request with its repetitions may take: changing a job takes Google seconds."""
_PARTS: Final = 2
"""Expressions at most that a trigger is split into: a day of the month, or a weekday."""
_ROUNDS: Final = 5
"""How often creating and updating alternate while others change the same job."""

_CLOUD_SCHEDULER = Api(package="google.cloud.scheduler_v1.services.cloud_scheduler", name="CloudScheduler")


@runtime_checkable
class Translated(Protocol):
    """A trigger that says itself how Cloud Scheduler keeps it; those of ``cloudq.schedules`` are translated here."""

    def cloud_scheduler_expression(self) -> tuple[str, str]:
        """Five fields of unix cron as Google reads them ("Cron job format and time zone"), and the IANA time zone they are read in."""
        ...


class CloudScheduler:
    """The jobs of ``owner`` in ``location`` (``projects/P/locations/L``): those whose description is our note, and no others.

    A schedule is a job; one whose trigger takes two expressions (a day of the month or a weekday) is two.
    """

    def __init__(self, location: str, *, owner: str) -> None:
        self._location = location
        self._owner = owner
        self._client = Client(_CLOUD_SCHEDULER, emulator="CLOUD_SCHEDULER_EMULATOR_HOST")
        self._service = Service(
            name=SERVICE,
            emulator="CLOUD_SCHEDULER_EMULATOR_HOST",
            error=TimerError,
            unavailable=TimerUnavailable,
            refused=self._refused,
        )

    async def read(self) -> Sequence[Schedule]:
        """The app's schedules, by name."""
        parts: dict[str, list[_Part]] = {}
        token = ""
        while True:

            def request(token: str = token) -> Any:
                return _types().ListJobsRequest(parent=self._location, page_size=_PAGE, page_token=token)

            page = await self._call("list_jobs", request, routed_by="parent")
            for job in page.jobs:
                if (part := self._part(job)) is not None:
                    parts.setdefault(part.schedule.name, []).append(part)
            if not (token := page.next_page_token):
                return [_whole(parts[name]) for name in sorted(parts)]

    async def put(self, schedule: Schedule, topic: str) -> None:
        """Create the schedule's jobs, or change them in place. One that becomes paused may fire once more until it is."""
        try:
            expressions = _expressions(schedule.trigger)
        except CannotExpress as error:
            raise ConfigError(f"schedule {schedule.name!r}: {error}") from error
        if len(expressions) > _PARTS:
            raise ConfigError(
                f"schedule {schedule.name!r}: {schedule.trigger} takes {len(expressions)} expressions, and {_PARTS} is the most"
            )
        replaced = False
        for number, (expression, timezone) in enumerate(expressions, 1):
            description = cloud_scheduler_note(
                self._owner, schedule.name, schedule.queue, str(schedule.trigger), part=number, of=len(expressions)
            )
            self._check(schedule, topic, description)
            replaced |= await self._put(schedule, number, topic, description, expression, timezone)
        if replaced:
            await self._delete(schedule.name, len(expressions) + 1)

    async def _put(self, schedule: Schedule, number: int, topic: str, description: str, expression: str, timezone: str) -> bool:
        """Create one of its jobs, or change it in place; returns whether it was there."""
        name = self._name(schedule.name, number)

        def job() -> Any:
            types, message = _types(), schedule.message
            data = message.body.encode("utf-8", "surrogateescape")
            return types.Job(
                name=name,
                description=description,
                pubsub_target=types.PubsubTarget(topic_name=topic, data=data, attributes=dict(message.attributes)),
                schedule=expression,
                time_zone=timezone,
                retry_config=types.RetryConfig(retry_count=_RETRIES),
            )

        for _ in range(_ROUNDS):
            for action, request in (
                ("create_job", lambda: _types().CreateJobRequest(parent=self._location, job=job())),
                ("update_job", lambda: _types().UpdateJobRequest(job=job(), update_mask=_mask())),
            ):
                try:
                    found = await self._call(action, request)
                    paused = _paused(found)
                    if schedule.paused and not paused:
                        await self._call("pause_job", lambda: _types().PauseJobRequest(name=name))
                    if paused and not schedule.paused:
                        await self._call("resume_job", lambda: _types().ResumeJobRequest(name=name))
                    return action == "update_job"
                except (_There, _Gone):
                    continue  # _Gone: it was deleted since it was there
        raise TimerUnavailable(f"schedule {schedule.name!r} in {self._location} is being changed by others all the time; try again later")

    async def delete(self, name: str) -> None:
        """Delete the jobs of the schedule ``name``, if there are any."""
        await self._delete(name, 1)

    async def _delete(self, name: str, first: int) -> None:
        """Its jobs from the number ``first`` on, the last before the first."""
        for number in range(_PARTS, first - 1, -1):
            request = partial(_deletion, self._name(name, number))
            with suppress(_Gone):
                await self._call("delete_job", request)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    def _name(self, schedule: str, number: int = 1) -> str:
        return f"{self._location}/jobs/{cloud_scheduler_job(self._owner, schedule, number)}"

    def _check(self, schedule: Schedule, topic: str, description: str) -> None:
        """Refuse what Google would: at once, as nobody would be there to be told when it fires."""
        name, message = schedule.name, schedule.message
        if message.group is not None:
            raise TimerError(
                f"schedule {name!r}: Cloud Scheduler publishes without an ordering key; leave it out, or let its task send in order"
            )
        message = Outgoing(body=message.body, attributes=message.attributes)
        if (bad := refusal(schedule.queue, message)) is not None and not isinstance(bad, EntryTooLarge):
            raise TimerError(f"schedule {name!r}: {bad}") from bad
        project = self._location.split("/")[1]
        if topic.split("/")[1] != project:
            raise TimerError(f"schedule {name!r}: Cloud Scheduler publishes in its own project {project} only, not to {topic}")
        if len(description) > _DESCRIPTION:
            raise TimerError(
                f"schedule {name!r}: its app, name, queue and trigger have {len(description)} characters together; {_DESCRIPTION} fit"
            )
        size = len(message.body.encode("utf-8", "surrogateescape"))
        if size > _JOB - _NAMES:
            raise too_large(topic, size, _JOB - _NAMES, "a job of Cloud Scheduler")

    def _part(self, job: Any) -> _Part | None:
        """The schedule that a job is, or is part of; ``None`` for one of others."""
        from cloudq.schedules.kept import Kept

        try:
            said = json.loads(job.description)
        except ValueError:
            return None
        if not isinstance(said, dict):
            return None
        known = cast("Mapping[str, Any]", said)
        name = known.get("name")
        number, of = known.get("part", 1), known.get("of", 1)
        if known.get("app") != self._owner or not isinstance(name, str) or type(number) is not int or job.name != self._name(name, number):
            return None
        target, expression = job.pubsub_target, (job.schedule, job.time_zone)
        schedule = Schedule(
            name=name,
            queue=str(known.get("queue", target.topic_name)),
            message=Outgoing(body=target.data.decode("utf-8", "surrogateescape"), attributes=dict(target.attributes)),
            trigger=Kept((expression,), str(known.get("trigger", job.schedule)), SERVICE),
            paused=_paused(job),
        )
        return _Part(number, schedule, expression, of)

    async def _call(self, action: str, request: Callable[[], Any], *, routed_by: str = "") -> Any:
        with mapped_to(self._service, action, f"{action} in {self._location}"):
            return await self._client.request("CloudScheduler", action, request, within=_ANSWER, routed_by=routed_by)

    def _refused(self, refusal: Refusal) -> CloudQError | None:
        tried, action, status, detail = refusal.tried, refusal.action, refusal.status, refusal.detail
        if status == "NOT_FOUND" and action in ("create_job", "list_jobs"):
            return TimerError(f"{tried}: there is no such place or topic; correct the timer's URL, or create the queue first ({detail})")
        if status == "NOT_FOUND":
            return _Gone(f"{tried}: there is no such job")
        if status == "ALREADY_EXISTS":
            return _There(f"{tried}: {detail}")
        if status == "PERMISSION_DENIED":
            return TimerError(f"{tried}: access denied ({detail}); allow roles/cloudscheduler.admin (viewer to list) in the project")
        return None


class _There(TimerError):
    """A job of the name exists."""


class _Gone(TimerError):
    """There is no job of the name."""


class _Part(NamedTuple):
    """One job, which is a schedule, or a part of one."""

    number: int
    schedule: Schedule
    expression: tuple[str, str]
    of: object
    """How many parts there are by our note."""


def _whole(parts: Sequence[_Part]) -> Schedule:
    """The schedule that the parts make: with the trigger that our note tells of, where that is what they keep."""
    from cloudq.schedules.kept import read_back

    parts = sorted(parts, key=lambda part: part.number)
    first = parts[0]
    noted = str(first.schedule.trigger) if first.of == len(parts) and len({part.schedule.paused for part in parts}) == 1 else None
    trigger = read_back(noted, [part.expression for part in parts], SERVICE, _expressions)
    return replace(first.schedule, trigger=trigger, paused=all(part.schedule.paused for part in parts))


def _expressions(trigger: Trigger) -> list[tuple[str, str]]:
    """Expressions with their time zones, which together fire when the trigger does. Raises CannotExpress."""
    from cloudq.schedules import cloud_scheduler
    from cloudq.schedules.kept import Kept

    if isinstance(trigger, Kept):
        return list(trigger.parts)
    if isinstance(trigger, Translated):
        return [trigger.cloud_scheduler_expression()]

    return [(str(expression), expression.timezone) for expression in cloud_scheduler(trigger)]


def _paused(job: Any) -> bool:
    return bool(job.state == _types().Job.State.PAUSED)


def _deletion(job: str) -> Any:
    return _types().DeleteJobRequest(name=job)


def _types() -> Any:
    return import_module("google.cloud.scheduler_v1.types")


def _mask() -> Any:
    return import_module("google.protobuf.field_mask_pb2").FieldMask(paths=_FIELDS)
