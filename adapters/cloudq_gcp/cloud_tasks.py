"""One-time messages by Cloud Tasks: each is a task that publishes to a Pub/Sub topic at its time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Final

from cloudq.broker import Outgoing
from cloudq.errors import CloudQError, ConfigError, EntryTooLarge, MessageTooLarge, TimerError, TimerUnavailable
from cloudq_gcp.client import Api, Client
from cloudq_gcp.errors import Refusal, Service, mapped_to
from cloudq_gcp.pubsub import refusal

__all__ = ["AHEAD", "CloudTasks", "publication", "too_large"]

# Google Cloud, "Cloud Tasks quotas and limits": a task has 1 MB at most (its names take some of it) and is set 30 days ahead at most.
_TASK: Final = 1_000_000
_NAMES: Final = 4_000
AHEAD: Final = 30 * 86_400.0
"""Seconds that a task can be set ahead."""

# Cloud Tasks, reference of Task.name: ids of projects, locations, queues.
_PLACE = re.compile(r"projects/[A-Za-z0-9.:-]+/locations/[a-z0-9-]+/queues/[A-Za-z0-9-]{1,100}")
_EMAIL = re.compile(r"[^@\s/]+@[^@\s/]+\.[^@\s/]+")

_PUBLISH: Final = "https://pubsub.googleapis.com/v1/{topic}:publish"
_SCOPE: Final = "https://www.googleapis.com/auth/pubsub"

_SLOTS: Final = 4
"""Names that a key has. Once used, a name is blocked for up to 24 h (Cloud Tasks, CreateTaskRequest.task)."""
_ROUNDS: Final = 5
"""How often one key is set anew while others set it, too."""
_ANSWER: Final = 10.0
"""Seconds that a request with its repetitions may take."""

_CLOUD_TASKS = Api(package="google.cloud.tasks_v2.services.cloud_tasks", name="CloudTasks")


class CloudTasks:
    """The tasks of the queue ``place`` (``projects/P/locations/L/queues/Q``), which publish as ``service_account``.

    A key has a few names, because a task cannot be changed and its name cannot be used again for up to a day. A message takes the first
    that is free, then the tasks of the others are deleted. What is set for the fifth time within that day is sent like all others, but its
    task has a name that Google chose: it can neither be replaced nor cancelled any more.
    """

    def __init__(self, place: str, *, service_account: str, app: str) -> None:
        if not _PLACE.fullmatch(place):
            raise ConfigError(
                f"there can be no Cloud Tasks queue {place}: write cloudtasks://project-id/europe-west1/queue?service_account=…"
            )
        if not _EMAIL.fullmatch(service_account):
            raise ConfigError(
                "cloudtasks:// needs service_account=NAME@PROJECT.iam.gserviceaccount.com, as which tasks publish to Pub/Sub, "
                f"not {service_account!r}"
            )
        self._place = place
        self._service_account = service_account
        self._app = app
        self._client = Client(_CLOUD_TASKS, emulator="CLOUD_TASKS_EMULATOR_HOST")
        self._service = Service(
            name="Cloud Tasks",
            emulator="CLOUD_TASKS_EMULATOR_HOST",
            error=TimerError,
            unavailable=TimerUnavailable,
            refused=self._refused,
        )

    async def set(self, when: float, topic: str, message: Outgoing, *, key: str) -> None:
        """Publish ``message`` to ``topic`` (full name) at ``when``, and not what ``key`` had set. Raises MessageTooLarge, TimerError."""
        body, names = publication(topic, message, room=_TASK - _NAMES), self._names(key)
        for _ in range(_ROUNDS):
            name = await self._create(when, topic, body, names)
            replaced = await self._delete(other for other in names if other != name)
            # Who sets the key at the same time may have deleted ours as we deleted theirs: then none would be left.
            if not replaced or not name or await self._waits(name):
                return
        raise TimerUnavailable(f"{key!r} in {self._place} is being set by others all the time; try again later")

    async def cancel(self, key: str) -> bool:
        """Delete the key's task; false where none waits."""
        return await self._delete(self._names(key))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    def _names(self, key: str) -> Sequence[str]:
        """Hashes, because Cloud Tasks spreads tasks by their names and takes few characters."""
        digest = hashlib.sha256(f"{self._app}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return [f"{self._place}/tasks/{digest}-{slot}" for slot in range(_SLOTS)]

    async def _create(self, when: float, topic: str, body: bytes, names: Sequence[str]) -> str:
        """Create a task of the first name that is free; empty where it had to be one of Google's choice."""
        # Upwards: Cloud Tasks cuts what is below a microsecond, and nothing may be sent too early.
        seconds, micros = divmod(math.ceil(max(when, 0.0) * 1e6), 1_000_000)
        for name in (*names, ""):

            def request(name: str = name) -> Any:
                types: Any = import_module("google.cloud.tasks_v2.types")
                timestamp: Any = import_module("google.protobuf.timestamp_pb2")
                call = types.HttpRequest(
                    url=_PUBLISH.format(topic=topic),
                    http_method=types.HttpMethod.POST,
                    headers={"Content-Type": "application/json"},
                    body=body,
                    oauth_token=types.OAuthToken(service_account_email=self._service_account, scope=_SCOPE),
                )
                due = timestamp.Timestamp(seconds=seconds, nanos=micros * 1000)
                return types.CreateTaskRequest(parent=self._place, task=types.Task(name=name, http_request=call, schedule_time=due))

            try:
                await self._call("create_task", request)
            except _Taken:
                continue
            return name
        raise AssertionError("a name of Google's choice is never taken")

    async def _delete(self, names: Iterable[str]) -> bool:
        """Delete tasks by name; whether there was one."""
        return any(await asyncio.gather(*(self._found("delete_task", name) for name in names)))

    async def _waits(self, name: str) -> bool:
        return await self._found("get_task", name)

    async def _found(self, action: str, name: str) -> bool:
        def request() -> Any:
            types: Any = import_module("google.cloud.tasks_v2.types")
            return (types.DeleteTaskRequest if action == "delete_task" else types.GetTaskRequest)(name=name)

        try:
            await self._call(action, request)
        except _Gone:
            return False
        return True

    async def _call(self, action: str, request: Callable[[], Any]) -> Any:
        with mapped_to(self._service, action, f"{action} in {self._place}"):
            return await self._client.request("CloudTasks", action, request, within=_ANSWER)

    def _refused(self, refusal: Refusal) -> CloudQError | None:
        tried, action, status, detail = refusal.tried, refusal.action, refusal.status, refusal.detail
        missing = status == "NOT_FOUND" or (status == "FAILED_PRECONDITION" and "no longer exists" in detail)
        if missing and (action == "create_task" or "queue" in detail.lower()):
            return TimerError(
                f"{tried}: there is no such queue; create it ('cloudq deploy' writes the template), or correct the timer's URL ({detail})"
            )
        if missing:
            return _Gone(f"{tried}: there is no such task")
        if status == "ALREADY_EXISTS":
            return _Taken(f"{tried}: {detail}")
        if status == "PERMISSION_DENIED":
            passing = f", and roles/iam.serviceAccountUser on {self._service_account}" if action == "create_task" else ""
            role = {"create_task": "enqueuer", "delete_task": "taskDeleter"}.get(action, "viewer")
            return TimerError(f"{tried}: access denied ({detail}); allow roles/cloudtasks.{role} on the queue{passing}")
        if status == "INVALID_ARGUMENT" and "too large" in detail:
            return MessageTooLarge(f"{tried}: {detail}; pass a reference (a key, a URL) instead")
        return None


class _Taken(TimerError):
    """A task has the name, or had it not long ago."""


class _Gone(TimerError):
    """There is no task of the name, or no more."""


def publication(topic: str, message: Outgoing, *, room: int) -> bytes:
    """What publishes ``message`` as the body of a request to Pub/Sub's REST API; its delay is left out.

    Raises TimerError for what Pub/Sub would refuse, since nobody would be there to be told, and MessageTooLarge over ``room`` bytes.
    """
    message = Outgoing(body=message.body, group=message.group, attributes=message.attributes)
    bad = refusal(topic, message)
    if bad is not None and not isinstance(bad, EntryTooLarge):
        raise TimerError(str(bad)) from bad
    published: dict[str, Any] = {"data": base64.b64encode(message.body.encode("utf-8", "surrogateescape")).decode()}
    if message.attributes:
        published["attributes"] = dict(message.attributes)
    if message.group is not None:
        published["orderingKey"] = message.group
    body = json.dumps({"messages": [published]}, separators=(",", ":")).encode()
    if len(body) > room:
        raise too_large(topic, len(body), room, "a task of Cloud Tasks")
    return body


def too_large(topic: str, size: int, room: int, what: str) -> MessageTooLarge:
    """The error for a message that ``what`` has no room for; sizes in bytes."""
    return MessageTooLarge(
        f"a message to {topic} for later takes {size:,} bytes in {what}, which has room for {room:,}; "
        "name a place for large bodies in the broker's URL (bodies=gs://bucket/prefix), or pass a reference (a key, a URL) instead"
    )
