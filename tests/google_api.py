"""Stand-ins for Cloud Tasks and Cloud Scheduler, which have no emulator: gRPC servers that check what they take, and fire it in time.

They speak by Google's own generated messages, refuse what Google documents that it refuses, and publish to the Pub/Sub emulator by its
REST API, as the services do, on a clock that tests move.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import grpc
from google.cloud.scheduler_v1.types import cloudscheduler, job
from google.cloud.tasks_v2.types import cloudtasks, queue, task
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from cloudq.clock import ManualClock

DAY = 86_400.0

_TASK_NAME = re.compile(r"(projects/[A-Za-z0-9.:-]+/locations/[a-z0-9-]+/queues/[A-Za-z0-9-]{1,100})/tasks/[A-Za-z0-9_-]{1,500}")
_JOB_NAME = re.compile(r"(projects/[A-Za-z0-9.:-]+/locations/[a-z0-9-]+)/jobs/[A-Za-z0-9_-]{1,500}")
_TOPIC = re.compile(r"projects/([A-Za-z0-9.:-]+)/topics/[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_CRON = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*")


class Refused(Exception):
    """A request that Google would refuse, with a gRPC status."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def _must(holds: object, detail: str, code: str = "INVALID_ARGUMENT") -> None:
    if not holds:
        raise Refused(code, detail)


@dataclass
class GoogleAPI:
    """Both services. ``pubsub`` is the ``host:port`` of the Pub/Sub emulator.

    Tasks and jobs fire when ``pass_time`` moves ``clock`` to their time, ``late`` seconds after it. A refused publication is tried again
    as by a queue of Cloud Tasks with its default retry settings. Names of deleted and fired tasks are blocked for ``blocked`` seconds.
    """

    pubsub: str
    clock: ManualClock
    late: float = 0.0
    blocked: float = DAY
    address: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    """By method (``CreateTask``)."""
    before: Callable[[str], None] = lambda _: None
    """Called with each request's method before it is carried out; may raise Refused."""
    queues: set[str] = field(default_factory=set)
    changed: dict[str, queue.Queue] = field(default_factory=dict)
    """Of those, what somebody has set otherwise."""
    tasks: dict[str, task.Task] = field(default_factory=dict)
    jobs: dict[str, job.Job] = field(default_factory=dict)
    fired: list[str] = field(default_factory=list)
    """Names of what has been published, in order."""
    failed: list[tuple[str, int]] = field(default_factory=list)
    """Names of tasks and jobs, and the HTTP statuses of what was refused."""

    _tombstones: dict[str, float] = field(default_factory=dict)
    _slots: dict[str, float] = field(default_factory=dict)
    """Until when jobs have fired."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # ------------------------------------------------------------------ Cloud Tasks

    def make_queue(self, name: str) -> str:
        """Create a Cloud Tasks queue."""
        self.queues.add(name)
        return name

    def get_queue(self, request: cloudtasks.GetQueueRequest) -> queue.Queue:
        _must(request.name in self.queues, "Queue does not exist.", "NOT_FOUND")
        found = queue.Queue(name=request.name, state=queue.Queue.State.RUNNING, retry_config=queue.RetryConfig(max_attempts=-1))
        return self.changed.get(request.name, found)

    def create_task(self, request: cloudtasks.CreateTaskRequest) -> task.Task:
        made = task.Task(request.task)
        _must(request.parent in self.queues, "Queue does not exist.", "NOT_FOUND")
        self._check_task(made)
        made.name = made.name or f"{request.parent}/tasks/{len(self.tasks) + len(self._tombstones) + 10**18}"
        named = _TASK_NAME.fullmatch(made.name)
        _must(named and named[1] == request.parent, f"{made.name} is no name of a task in {request.parent}")
        _must(made.name not in self.tasks, "Requested entity already exists", "ALREADY_EXISTS")
        recently = self._tombstones.get(made.name, -DAY) + self.blocked > self.clock.time()
        _must(not recently, "The task cannot be created because a task with this name existed too recently.", "ALREADY_EXISTS")
        now = self.clock.time()
        if made.schedule_time is None or made.schedule_time.timestamp() < now:
            made.schedule_time = _stamp(now)
        made.create_time = _stamp(int(now))
        self.tasks[made.name] = made
        return self._basic(made)

    def _check_task(self, made: task.Task) -> None:
        _must(type(made).pb(made).ByteSize() <= 1_000_000, "Task size too large")
        _must("http_request" in made, "a message type is required")
        call = made.http_request
        url = urlsplit(call.url)
        _must(url.scheme == "https" and url.hostname and len(call.url) <= 2083, "the URL must be a full https one")
        _must(not call.body or call.http_method in (1, 3, 6), "a body needs POST, PUT or PATCH")
        _must(sum(len(name) + len(value) for name, value in call.headers.items()) < 80_000, "headers must be less than 80KB")
        if url.hostname and url.hostname.endswith(".googleapis.com"):
            _must("oauth_token" in call, "Google's APIs want an OAuth token")
            _must(re.fullmatch(r"[^@]+@[^@]+\.gserviceaccount\.com", call.oauth_token.service_account_email), "no such service account")
            _must(call.oauth_token.scope.startswith("https://www.googleapis.com/auth/"), "no such scope")
        if made.schedule_time is not None:
            ahead = made.schedule_time.timestamp() - self.clock.time()
            _must(
                ahead <= 30 * DAY, "The Task.scheduleTime is too far in the future. Schedule time must be no more than 720h in the future."
            )

    def get_task(self, request: cloudtasks.GetTaskRequest) -> task.Task:
        return self._basic(self._task(request.name))

    def delete_task(self, request: cloudtasks.DeleteTaskRequest) -> Empty:
        self._task(request.name)
        self._bury(request.name)
        return Empty()

    def _task(self, name: str) -> task.Task:
        named = _TASK_NAME.fullmatch(name)
        _must(named, f"{name} is no name of a task")
        assert named is not None
        _must(named[1] in self.queues, "Queue does not exist.", "NOT_FOUND")
        _must(name not in self._tombstones or name in self.tasks, "The task no longer exists, though one existed recently.", "NOT_FOUND")
        _must(name in self.tasks, "Requested entity was not found.", "NOT_FOUND")
        return self.tasks[name]

    def _bury(self, name: str) -> None:
        del self.tasks[name]
        self._tombstones[name] = self.clock.time()

    def _basic(self, made: task.Task) -> task.Task:
        """A task without its body, as it is shown to those who do not ask for all."""
        shown = task.Task(made)
        shown.http_request.body = b""
        return shown

    # ------------------------------------------------------------------ Cloud Scheduler

    def create_job(self, request: cloudscheduler.CreateJobRequest) -> job.Job:
        made = job.Job(request.job)
        named = _JOB_NAME.fullmatch(made.name)
        _must(named and named[1] == request.parent, f"{made.name} is no name of a job in {request.parent}")
        self._check_job(made)
        _must(made.name not in self.jobs, f"Job {made.name} already exists.", "ALREADY_EXISTS")
        made.state = job.Job.State.ENABLED
        return self._keep(made)

    def update_job(self, request: cloudscheduler.UpdateJobRequest) -> job.Job:
        made = job.Job(self._job(request.job.name))
        for path in request.update_mask.paths:
            _must(path in ("description", "pubsub_target", "schedule", "time_zone", "retry_config"), f"{path} cannot be changed")
            setattr(made, path, getattr(request.job, path))
        self._check_job(made)
        return self._keep(made)

    def _check_job(self, made: job.Job) -> None:
        _must(type(made).pb(made).ByteSize() <= 1_000_000, "Job size too large")
        _must(len(made.description) <= 500, "the description has more than 500 characters")
        _must("pubsub_target" in made, "a target is required")
        target, topic = made.pubsub_target, _TOPIC.fullmatch(made.pubsub_target.topic_name)
        _must(topic and topic[1] == made.name.split("/")[1], "the topic must be in the project of the job")
        _must(target.data or target.attributes, "a message needs data or an attribute")
        fields = made.schedule.split()
        _must(len(fields) == 5 and all(map(_CRON.fullmatch, fields)), f"Schedule or time zone is invalid: {made.schedule}")
        try:
            ZoneInfo(made.time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise Refused("INVALID_ARGUMENT", f"Schedule or time zone is invalid: {made.time_zone}") from error
        _must(0 <= made.retry_config.retry_count <= 5, "retry_count must be from 0 to 5")

    def _keep(self, made: job.Job) -> job.Job:
        made.user_update_time = _stamp(self.clock.time())
        self.jobs[made.name] = made
        self._slots[made.name] = self.clock.time()
        return made

    def _job(self, name: str) -> job.Job:
        _must(name in self.jobs, f"Job {name} not found.", "NOT_FOUND")
        return self.jobs[name]

    def get_job(self, request: cloudscheduler.GetJobRequest) -> job.Job:
        return self._job(request.name)

    def delete_job(self, request: cloudscheduler.DeleteJobRequest) -> Empty:
        self._job(request.name)
        del self.jobs[request.name]
        return Empty()

    def pause_job(self, request: cloudscheduler.PauseJobRequest) -> job.Job:
        found = self._job(request.name)
        _must(found.state == job.Job.State.ENABLED, "the job is not enabled", "FAILED_PRECONDITION")
        found.state = job.Job.State.PAUSED
        return found

    def resume_job(self, request: cloudscheduler.ResumeJobRequest) -> job.Job:
        found = self._job(request.name)
        _must(found.state == job.Job.State.PAUSED, "the job is not paused", "FAILED_PRECONDITION")
        found.state = job.Job.State.ENABLED
        self._slots[request.name] = self.clock.time()
        return found

    def list_jobs(self, request: cloudscheduler.ListJobsRequest) -> cloudscheduler.ListJobsResponse:
        names = sorted(name for name in self.jobs if name.startswith(f"{request.parent}/jobs/"))
        start, size = int(request.page_token or 0), min(request.page_size or 500, 500)
        more = str(start + size) if start + size < len(names) else ""
        return cloudscheduler.ListJobsResponse(jobs=[self.jobs[name] for name in names[start : start + size]], next_page_token=more)

    # ------------------------------------------------------------------ time

    def pass_time(self, seconds: float) -> None:
        """Move the clock on, firing at its own instant what becomes due on the way."""
        with self._lock:
            end = self.clock.time() + seconds
            while True:
                due = [(made.schedule_time.timestamp() + self.late, name) for name, made in self.tasks.items()]
                due += [
                    (_slot(made.schedule, self._slots[name]) + self.late, name)
                    for name, made in self.jobs.items()
                    if made.state == job.Job.State.ENABLED
                ]
                if not due or (first := min(due))[0] > end:
                    break
                self.clock.advance(max(0.0, first[0] - self.clock.time()))
                if first[1] in self.tasks:
                    self._fire_task(first[1])
                else:
                    self._slots[first[1]] = first[0] - self.late
                    self._fire_job(first[1])
            self.clock.advance(max(0.0, end - self.clock.time()))

    def _fire_task(self, name: str) -> None:
        made = self.tasks[name]
        if self._publish(name, made.http_request.url, made.http_request.body, dict(made.http_request.headers)):
            self._bury(name)
            return
        made.dispatch_count += 1
        if made.dispatch_count >= 100:
            self._bury(name)
        made.schedule_time = _stamp(self.clock.time() + min(0.1 * 2 ** min(made.dispatch_count - 1, 16), 3600.0))

    def _fire_job(self, name: str) -> None:
        target = self.jobs[name].pubsub_target
        message = {"data": base64.b64encode(target.data).decode(), "attributes": dict(target.attributes)}
        body = json.dumps({"messages": [message]}).encode()
        self._publish(name, f"https://pubsub.googleapis.com/v1/{target.topic_name}:publish", body, {"Content-Type": "application/json"})

    def _publish(self, name: str, url: str, body: bytes, headers: dict[str, str]) -> bool:
        """Make a request to Google's Pub/Sub of the emulator; whether it was carried out."""
        parts = urlsplit(url)
        assert parts.hostname == "pubsub.googleapis.com", f"{url} is none of Pub/Sub's"
        request = urllib.request.Request(f"http://{self.pubsub}{parts.path}", body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60):
                self.fired.append(name)
                return True
        except urllib.error.HTTPError as error:
            with error:
                self.failed.append((name, error.code))
            return False

    # ------------------------------------------------------------------ the wire

    def handler(self, service: str, methods: dict[str, Any]) -> Any:
        """A gRPC handler of a service: its methods by name, each with the type of its request."""

        def behaviour(method: str) -> Callable[[Any, Any], Any]:
            run = getattr(self, re.sub("(?<!^)([A-Z])", r"_\1", method).lower())

            def serve(request: Any, context: Any) -> Any:
                with self._lock:
                    self.requests[method] += 1
                    try:
                        self.before(method)
                        return run(request)
                    except Refused as refused:
                        _abort(context, refused)

            return serve

        return grpc.method_handlers_generic_handler(
            service,
            {
                method: grpc.unary_unary_rpc_method_handler(
                    behaviour(method),
                    request_deserializer=kind.deserialize,
                    response_serializer=lambda answer: (
                        answer.SerializeToString() if isinstance(answer, Empty) else type(answer).serialize(answer)
                    ),
                )
                for method, kind in methods.items()
            },
        )


def _abort(context: Any, refused: Refused) -> NoReturn:
    context.abort(getattr(grpc.StatusCode, refused.code), str(refused))
    raise AssertionError("abort raises")


def _stamp(instant: float) -> Timestamp:
    micros = round(instant * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def _slot(schedule: str, after: float) -> float:
    """The next fire of ``* * * * *`` and ``*/N * * * *``, which count minutes; the stand-in knows no others and never fires them."""
    found = re.fullmatch(r"\*(?:/(\d+))? \* \* \* \*", schedule)
    if not found:
        return float("inf")
    every, minute = int(found[1] or 1), int(after // 60) + 1
    while minute % 60 % every:
        minute += 1
    return minute * 60.0


@contextmanager
def google_api(pubsub: str, clock: ManualClock, **options: Any) -> Iterator[GoogleAPI]:
    """Both services on one port of this machine."""
    api = GoogleAPI(pubsub, clock, **options)
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(
            (
                api.handler(
                    "google.cloud.tasks.v2.CloudTasks",
                    {name: getattr(cloudtasks, f"{name}Request") for name in ("CreateTask", "GetTask", "DeleteTask", "GetQueue")},
                ),
                api.handler(
                    "google.cloud.scheduler.v1.CloudScheduler",
                    {
                        name: getattr(cloudscheduler, f"{name}Request")
                        for name in ("CreateJob", "UpdateJob", "GetJob", "DeleteJob", "PauseJob", "ResumeJob", "ListJobs")
                    },
                ),
            )
        )
        api.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield api
        finally:
            server.stop(None).wait(5)
