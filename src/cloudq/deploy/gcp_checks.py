"""What only the target ``gcp-terraform`` has to say against a plan: names, labels and sizes that Google would refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cloudq.deploy.gcp_terraform import CPUS, LEAST_MEMORY, MEMORY_OF_CPUS, cpu
from cloudq.deploy.plan import ContainerPlan, Plan
from cloudq.deploy.problems import Problem
from cloudq.deploy.settings import Settings, key_path

# Google Cloud: "Creating and managing projects", "Requirements for labels", Secret Manager's and Cloud Monitoring's REST references.
_PROJECT: Final = r"([a-z0-9.-]+\.[a-z]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_REGION: Final = r"[a-z]+-[a-z]+\d{1,2}"
_LABEL: Final = r"[a-z][a-z0-9_-]{0,62}"
_LABEL_VALUE: Final = r"[a-z0-9_-]{0,63}"
_LABELS: Final = 62
"""Of the 64 that a resource can have: two are cloudq's."""
_SECRET: Final = r"(projects/[^/]+/secrets/)?[A-Za-z0-9_-]{1,255}"
_CHANNEL: Final = r"projects/[^/]+/notificationChannels/[^/]+"
_DEFAULT_LOG_DAYS: Final = 30
"""What a project's log bucket ``_Default`` keeps."""
_CONCURRENCY: Final = 1_000
"""Requests at once for an instance of Cloud Run at most ("Maximum concurrent requests per instance")."""
_STOP: Final = 10
"""Seconds that Cloud Run leaves an instance after SIGTERM ("Container runtime contract")."""

_LAMBDA: Final = frozenset({"batch_size", "batch_window", "reserved_concurrency"})
"""Settings of a function that only AWS has."""


def check(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """Every problem of a plan for ``gcp-terraform``, beside those that all targets share."""
    gcp = settings.gcp
    if (plan.functions or plan.containers) and settings.image is None:
        fix = 'write image = "REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME@sha256:…"; terraform\'s -var image=… goes before it'
        yield Problem(key_path("image"), "it is not set, and services and worker pools run images", fix)
    if settings.architecture == "arm64" and "architecture" in settings.model_fields_set and (plan.functions or plan.containers):
        fix = 'build the image with --platform linux/amd64, and take it out, or write "x86_64"'
        yield Problem(key_path("architecture"), "Cloud Run runs images for linux/amd64 only", fix, "warning")
    if gcp.project and not re.fullmatch(_PROJECT, gcp.project):
        yield Problem(key_path("gcp", "project"), "no project has this id", "write the project's id, not its name or number")
    if gcp.region and not re.fullmatch(_REGION, gcp.region):
        yield Problem(key_path("gcp", "region"), "no region has this name", 'write one like "europe-west1"')
    place = re.fullmatch(r"projects/[^/]+/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+", gcp.kms_key or "")
    if place is not None and gcp.region and place[1] != gcp.region:
        yield Problem(key_path("gcp", "kms_key"), f"it lies in {place[1]}, and the app in {gcp.region}", "make a key where the app is")
    if settings.alarms_topic is not None and not re.fullmatch(_CHANNEL, settings.alarms_topic):
        yield Problem(key_path("alarms_topic"), "this is no notification channel", "write projects/PROJECT/notificationChannels/NUMBER")
    if settings.log_retention != _DEFAULT_LOG_DAYS:
        what = "Cloud Logging keeps logs by bucket, not by service: they stay as long as the project's others"
        fix = f"gcloud logging buckets update _Default --location=global --retention-days={settings.log_retention}"
        yield Problem(key_path("log_retention"), what, fix, "warning")
    yield from _labels_and_secrets(settings)
    yield from _queues(plan, settings)
    for function in plan.functions:
        if function.concurrency > _CONCURRENCY:
            what = f"Cloud Run gives an instance {_CONCURRENCY:,} messages at once at most"
            yield Problem(f"{key_path('queues', function.queue)}.concurrency", what, f"set 1 to {_CONCURRENCY}")
        for key in sorted(_LAMBDA & settings.queue(function.queue).model_fields_set):
            what = "it counts for nothing here: Pub/Sub pushes one message at a time"
            yield Problem(f"{key_path('queues', function.queue)}.{key}", what, "set concurrency and max_concurrency", "warning")
    for each in plan.containers:
        yield from _container(each)
        longest = max((task.timeout or 0.0 for task in plan.tasks if task.queue == each.queue), default=0.0)
        if longest > _STOP:
            what = f"Cloud Run ends a worker {_STOP} s after it is told to stop, and tasks that take longer begin again elsewhere"
            fix = "make them safe to repeat, or cut the work into tasks that follow each other"
            yield Problem(f"queue {each.queue}", what, fix, "warning")


def _labels_and_secrets(settings: Settings) -> Iterable[Problem]:
    if len(settings.tags) > _LABELS:
        yield Problem(key_path("tags"), f"these are {len(settings.tags)} labels, and {_LABELS} is the most", "leave some out")
    for name, value in settings.tags.items():
        if not re.fullmatch(_LABEL, name) or not re.fullmatch(_LABEL_VALUE, value):
            what = "Google takes no such label: key and value have up to 63 lower-case letters, digits, _ and -, a key a letter first"
            yield Problem(key_path("tags", name), what, "change it")
        elif name in ("cloudq-app", "cloudq-stage"):
            yield Problem(key_path("tags", name), "cloudq deploy sets this label itself", "take it out")
    for name, reference in settings.secrets.items():
        if not re.fullmatch(_SECRET, reference):
            yield Problem(
                key_path("secrets", name), "Secret Manager has no secret of this name", "write its name, or projects/P/secrets/NAME"
            )


def _queues(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """Topics that are there already must be those that the drivers will look for."""
    project = settings.gcp.project
    for queue in plan.queues:
        for what, key, name, resource, existing in (
            ("the topic", "existing", queue.name, queue.resource, queue.existing),
            ("the dead-letter topic", "existing_dead_letter", queue.dead_letters.name, queue.dead_letters.resource,
             queue.dead_letters.existing),
        ):  # fmt: skip
            topic = name if name.startswith("projects/") else f"projects/{project}/topics/{resource}"
            if existing is not None and existing != topic:
                named = f', or take this out and name it in the code, queue="{existing}"' if key == "existing" else ""
                problem = f"cloudq looks for {what} {topic!r}, and this is another"
                yield Problem(f"{key_path('queues', queue.name)}.{key}", problem, f"write {topic}{named}")
    for schedule in plan.schedules:
        existing = next((each.existing for each in plan.queues if each.name == schedule.queue), None)
        if schedule.parts and existing is not None and not existing.startswith(f"projects/{project}/"):
            what = f"Cloud Scheduler publishes in its own project, and {schedule.queue!r} is in another"
            yield Problem(f"schedule {schedule.name}", what, "send it to a queue here, whose task calls on")


def _container(each: ContainerPlan) -> Iterable[Problem]:
    where, (most_cpu, most_memory) = key_path("queues", each.queue), CPUS[-1]
    if each.cpu > most_cpu:
        yield Problem(f"{where}.cpu", f"Cloud Run has no {each.cpu:g} vCPUs", f"set {most_cpu} or less")
    cpus = cpu(each.cpu, each.memory)
    if not LEAST_MEMORY <= each.memory <= most_memory:
        yield Problem(f"{where}.memory", f"Cloud Run has no {each.memory:,} MB", f"set {LEAST_MEMORY} to {most_memory}")
    elif each.cpu <= most_cpu and each.memory < (least := MEMORY_OF_CPUS.get(cpus, LEAST_MEMORY)):
        yield Problem(f"{where}.memory", f"{each.memory:,} MB are too few for {cpus} vCPUs", f"set {least} or more, or a smaller cpu")
    if each.min_workers == 0:
        what = "a worker pool is not scaled by its backlog, and begins with no worker: nobody works until something else scales it"
        yield Problem(
            f"{where}.min_workers", what, "set 1 or more, or let something scale it (the output scaling has the numbers)", "warning"
        )
