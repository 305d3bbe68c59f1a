"""Reads what a plan's topics, subscriptions, store, timer, schedules and bucket are at Google Cloud. It changes nothing, and pulls nothing.

Needs, on the things of the plan or in the project: pubsub.topics.get and .getIamPolicy, pubsub.subscriptions.get and .getIamPolicy;
cloudtasks.queues.get; cloudscheduler.jobs.list; datastore.databases.getMetadata and datastore.indexes.get; storage.buckets.get. Those for
policies are in roles/iam.securityReviewer, most others in roles/viewer. What is not allowed is told of, and the rest is read.

Services of Cloud Run are not looked at.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, cast

from cloudq.deploy.gcp_iam import subscribed
from cloudq.deploy.gcp_terraform import variables
from cloudq.deploy.observed import Bucket, Looking, Missing, Observed, Queue, Schedule, Store, Subscription, Timer, Topic
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings
from cloudq.errors import CloudQError, ConfigError, SeamError
from cloudq_gcp.client import Api, Client
from cloudq_gcp.errors import Refusal, Service, mapped_to
from cloudq_gcp.gcs import Bodies

__all__ = ["observe"]

_ANSWER: Final = 15.0
"""Seconds that a request with its repetitions may take."""
_AT_ONCE: Final = 10
"""Requests under way."""
_PAGES: Final = 100
"""Of a listing at most, each with 500."""
_GRANTS: Final = "grants of Pub/Sub's service agent"
_AGENT: Final = re.compile(r"serviceAccount:service-\d+@gcp-sa-pubsub\.iam\.gserviceaccount\.com")

_CLIENTS: Final[Mapping[str, tuple[Api, str]]] = {
    "Publisher": (Api(package="google.pubsub_v1.services.publisher", name="Publisher"), "PUBSUB_EMULATOR_HOST"),
    "Subscriber": (Api(package="google.pubsub_v1.services.subscriber", name="Subscriber"), "PUBSUB_EMULATOR_HOST"),
    "CloudTasks": (Api(package="google.cloud.tasks_v2.services.cloud_tasks", name="CloudTasks"), "CLOUD_TASKS_EMULATOR_HOST"),
    "CloudScheduler": (
        Api(package="google.cloud.scheduler_v1.services.cloud_scheduler", name="CloudScheduler"),
        "CLOUD_SCHEDULER_EMULATOR_HOST",
    ),
    "FirestoreAdmin": (
        Api(package="google.cloud.firestore_admin_v1.services.firestore_admin", name="FirestoreAdmin"),
        "FIRESTORE_EMULATOR_HOST",
    ),
}
"""The clients, each with the variable that leads to its emulator."""

_PERMISSIONS: Final = {
    "get_topic": "pubsub.topics.get",
    "get_subscription": "pubsub.subscriptions.get",
    "get_queue": "cloudtasks.queues.get",
    "list_jobs": "cloudscheduler.jobs.list",
    "get_database": "datastore.databases.getMetadata",
    "get_field": "datastore.indexes.get",
    "get_iam_policy": "getIamPolicy there (roles/iam.securityReviewer)",
}


async def observe(plan: Plan, settings: Settings) -> Observed:
    """What is there of the plan, in the settings' project and region. Raises ConfigError without these, or without credentials."""
    project, region = settings.gcp.project, settings.gcp.region
    if not project or not region:
        raise ConfigError('where is it? set project = "my-project" and region = "europe-west1" under [tool.cloudq.gcp]')
    reader = _Reader(project, f"projects/{project}/locations/{region}")
    with mapped_to(_service("Google Cloud", "its emulators' variables"), "import", "loading Google's libraries"):
        await asyncio.to_thread(_load)
    try:
        return await _observe(plan, settings, reader)
    finally:
        await reader.close()


async def _observe(plan: Plan, settings: Settings, reader: _Reader) -> Observed:
    look, named = Looking(), variables(plan, settings)
    topics = {each.resource: reader.topic_name(each.resource, each.existing) for each in plan.queues}
    letters = {
        each.dead_letters.resource: reader.topic_name(each.dead_letters.resource, each.dead_letters.existing) for each in plan.queues
    }

    async def topic(name: str) -> Topic:
        return await reader.topic(name, (topics | letters)[name], look if name in letters else None)

    async def subscription(name: str) -> Queue:
        return await reader.subscription(name, None if name in letters else look)

    async def store(name: str) -> Store:
        return await reader.store(name, named["store"]["database"], named["store"]["collection"], look)

    async def bucket(_: str) -> Bucket:
        return await reader.bucket(named["bodies"]["bucket"])

    consumed = [each.resource for each in plan.queues if subscribed(plan, each.name)]
    timers = [plan.timer.resource] if plan.timer else []
    known = {part.name for each in plan.schedules for part in each.parts}
    found_topics, queues, stores, found_timers, (schedules, listed), buckets = await asyncio.gather(
        look.each("topic", topics | letters, topic),
        look.each("subscription", [*consumed, *letters], subscription),
        look.each("database", [plan.store.resource] if plan.store else [], store),
        look.each("Cloud Tasks queue", timers, reader.timer),
        look.one("schedules", "", reader.schedules(known, set(topics.values())) if timers else _none()),
        look.each("bucket", [plan.bodies.resource] if plan.bodies else [], bucket),
    )
    return Observed(
        place=f"{settings.gcp.project} ({settings.gcp.region})",
        queues=queues,
        topics=found_topics,
        functions={},
        sources={},
        stores=stores,
        timers=found_timers,
        schedules={} if listed and schedules is None else schedules,
        buckets=buckets,
        unread=tuple(look.unread),
    )


async def _none() -> Mapping[str, Schedule]:
    return {}


class _Reader:
    """Requests to several services of one project, some at once."""

    def __init__(self, project: str, location: str) -> None:
        self._project = project
        self._location = location
        self._clients: dict[str, Client] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, api: str, action: str, about: str, request: Callable[[], Any]) -> Any:
        """One answer. Raises Missing where there is no such thing, and SeamError where it cannot be had."""
        client, emulator = _CLIENTS[api]
        if api not in self._clients:
            self._clients[api] = Client(client, emulator=emulator)
        async with self._turns:
            with mapped_to(_service(api, emulator), action, f"{action} of {about}"):
                return await self._clients[api].request(api, action, request, within=_ANSWER)

    async def close(self) -> None:
        await asyncio.gather(*(each.close() for each in self._clients.values()))

    def topic_name(self, name: str, existing: str | None) -> str:
        """A topic in full."""
        return existing if existing is not None and existing.startswith("projects/") else f"projects/{self._project}/topics/{name}"

    async def topic(self, name: str, full: str, look: Looking | None) -> Topic:
        """A topic; with ``look`` one to which Pub/Sub itself publishes dead letters."""
        found = await self.ask("Publisher", "get_topic", name, lambda: _types("google.pubsub_v1.types").GetTopicRequest(topic=full))
        granted = None
        if look is not None:
            granted, _ = await look.one(_GRANTS, name, self._granted("Publisher", name, full, "roles/pubsub.publisher"))
        return Topic(key=found.kms_key_name or None, granted=granted)

    async def subscription(self, name: str, look: Looking | None) -> Queue:
        """A subscription; with ``look`` one whose messages Pub/Sub itself moves to dead letters."""
        full = f"projects/{self._project}/subscriptions/{name}"
        found = await self.ask(
            "Subscriber", "get_subscription", name, lambda: _types("google.pubsub_v1.types").GetSubscriptionRequest(subscription=full)
        )
        granted = None
        if look is not None:
            granted, _ = await look.one(_GRANTS, name, self._granted("Subscriber", name, full, "roles/pubsub.subscriber"))
        letters, push = found.dead_letter_policy, found.push_config
        # Without a policy it is Google's own of 31 days, and one without a time is never ("Subscription properties").
        forever = "expiration_policy" in found and not found.expiration_policy.ttl
        return Queue(
            visibility=int(found.ack_deadline_seconds),
            retention=int(found.message_retention_duration.total_seconds()),
            fifo=bool(found.enable_message_ordering),
            encrypted=True,
            key=None,
            dead_letters=letters.dead_letter_topic.rpartition("/")[2] or None,
            max_receives=int(letters.max_delivery_attempts) if letters.dead_letter_topic else None,
            waiting=None,
            subscription=Subscription(
                topic=found.topic,
                expires=None if forever else int(found.expiration_policy.ttl.total_seconds()) if found.expiration_policy.ttl else _EXPIRES,
                backoff="retry_policy" in found,
                filter=found.filter,
                detached=bool(found.detached),
                push=push.push_endpoint or None,
                account=push.oidc_token.service_account_email or None,
                audience=push.oidc_token.audience or None,
                granted=granted,
            ),
        )

    async def _granted(self, api: str, name: str, full: str, role: str) -> bool:
        """Whether the policy of a topic or subscription itself lets Pub/Sub's service agent do what the role may."""
        policy = await self.ask(
            api, "get_iam_policy", name, lambda: _types("google.iam.v1.iam_policy_pb2").GetIamPolicyRequest(resource=full)
        )
        return any(each.role == role and any(map(_AGENT.fullmatch, each.members)) for each in policy.bindings)

    async def store(self, name: str, database: str, collection: str, look: Looking) -> Store:
        full, types = f"projects/{self._project}/databases/{database}", "google.cloud.firestore_admin_v1.types"
        await self.ask("FirestoreAdmin", "get_database", name, lambda: _types(types).GetDatabaseRequest(name=full))
        field = f"{full}/collectionGroups/{collection}/fields/expires"
        reading = self.ask("FirestoreAdmin", "get_field", name, lambda: _types(types).GetFieldRequest(name=field))
        found, known = await look.one("TTL of the collection", name, reading)
        on = found is not None and "ttl_config" in found
        return Store(state="ACTIVE", keys=None, ttl="expires" if on else "" if known else None)

    async def timer(self, name: str) -> Timer:
        full = f"{self._location}/queues/{name}"
        found = await self.ask("CloudTasks", "get_queue", name, lambda: _types("google.cloud.tasks_v2.types").GetQueueRequest(name=full))
        attempts = int(found.retry_config.max_attempts)
        return Timer(state=found.state.name, attempts=attempts if attempts > 0 else None)

    async def schedules(self, known: set[str], topics: set[str]) -> Mapping[str, Schedule]:
        """The jobs of those names, and others of cloudq's that publish to those topics."""
        found: dict[str, Schedule] = {}
        token = ""
        for _ in range(_PAGES):

            def request(token: str = token) -> Any:
                types = _types("google.cloud.scheduler_v1.types")
                return types.ListJobsRequest(parent=self._location, page_size=500, page_token=token)

            page = await self.ask("CloudScheduler", "list_jobs", self._location, request)
            for job in page.jobs:
                name = job.name.rpartition("/")[2]
                if name in known or (job.pubsub_target.topic_name in topics and _noted(job.description)):
                    found[name] = _schedule(job)
            if not (token := page.next_page_token):
                break
        return found

    async def bucket(self, name: str) -> Bucket:
        bodies = Bodies(f"gs://{name}")
        try:
            async with self._turns:
                rules = await bodies.lifecycle()
        finally:
            await bodies.close()
        if rules is None:
            raise Missing(f"gs://{name}: there is none")
        days = [rule["condition"]["age"] for rule in rules if rule["action"]["type"] == "Delete" and rule["condition"].keys() == {"age"}]
        return Bucket(days=min(days, default=None))


_EXPIRES: Final = 31 * 86_400
"""Seconds of Google's own expiration policy."""


def _schedule(job: Any) -> Schedule:
    target = job.pubsub_target
    return Schedule(
        expression=job.schedule,
        timezone=job.time_zone,
        enabled=job.state.name not in ("PAUSED", "DISABLED"),
        queue=target.topic_name.rpartition("/")[2],
        body=target.data.decode("utf-8", "replace"),
        group=None,
        undelivered=None,
    )


def _noted(description: str) -> bool:
    """Whether a job's description is a note of cloudq's (cloudq.schedules.naming)."""
    try:
        said: object = json.loads(description)
    except ValueError:
        return False
    return isinstance(said, dict) and {"app", "name", "queue", "trigger"} <= cast("dict[str, object]", said).keys()


def _load() -> None:
    """One after the other: some import each other in a circle, and clients that open at once would do so in several threads."""
    for client, _ in _CLIENTS.values():
        import_module(client.package)


def _service(name: str, emulator: str) -> Service:
    return Service(name=name, emulator=emulator, error=SeamError, unavailable=SeamError, refused=_refused)


def _refused(refusal: Refusal) -> CloudQError | None:
    if refusal.status == "NOT_FOUND":
        return Missing(f"{refusal.tried}: there is none")
    if refusal.status == "PERMISSION_DENIED":
        return SeamError(f"{refusal.tried}: access denied ({refusal.detail}); allow {_PERMISSIONS[refusal.action]}")
    if refusal.status == "UNIMPLEMENTED":
        return SeamError(f"{refusal.tried}: the server there cannot be asked (emulators cannot)")
    return None


def _types(module: str) -> Any:
    return import_module(module)
