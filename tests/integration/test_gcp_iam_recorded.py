"""Least privilege on Google Cloud: what callers, workers and persons really ask of Pub/Sub, Firestore, Cloud Tasks and Cloud Scheduler
is what the roles bound to their accounts permit, and each binding is needed.

Not here: services that are pushed to, which ask for what workers do but a subscription, and Cloud Storage, which is asked over HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from google import pubsub_v1
from google.cloud import tasks_v2
from google.cloud.firestore_v1.types import CommitRequest

from cloudq import chord, group
from cloudq.clock import ManualClock
from cloudq.deploy.gcp_iam import Binding, bindings
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import parse
from cloudq.errors import BrokerError
from cloudq.worker import Worker, WorkerOptions
from tests.gcp_servers import PROJECT, Emulator, PubSubServer, lead
from tests.google_api import GoogleAPI, google_api
from tests.grpc_proxy import Call, Refuse, grpc_proxy
from tests.integration import recorded_tasks as tasks
from tests.integration.recorded_tasks import HOURS, QUEUES, TEXT, call, to
from tests.integration.recording import fresh, run, use_store_and_timer
from tests.servers import unique
from tests.waiting import until

REGION: Final = "europe-west1"
SETTINGS: Final[dict[str, Any]] = {
    "store": True,
    "timer": True,
    "bodies": False,
    "image": "registry.example.com/shop:1",
    "gcp": {"project": PROJECT, "region": REGION},
    "queues": {
        "mails": {"runs_on": "none"},
        "orders.fifo": {"runs_on": "none"},
        "reports": {"runs_on": "container"},
    },
}

# Google's pages "IAM basic and predefined roles", of what its clients of these services can ask for
PERMITS: Final[Mapping[str, frozenset[str]]] = {
    "pubsub.publisher": frozenset({"pubsub.topics.publish"}),
    "pubsub.subscriber": frozenset({"pubsub.snapshots.seek", "pubsub.subscriptions.consume", "pubsub.topics.attachSubscription"}),
    "pubsub.viewer": frozenset({"pubsub.subscriptions.get", "pubsub.subscriptions.list", "pubsub.topics.get", "pubsub.topics.list"}),
    "datastore.user": frozenset(f"datastore.entities.{each}" for each in ("allocateIds", "create", "delete", "get", "list", "update")),
    "cloudtasks.enqueuer": frozenset({"cloudtasks.tasks.create", "cloudtasks.tasks.fullView"}),
    "cloudtasks.taskDeleter": frozenset({"cloudtasks.tasks.delete"}),
    "cloudtasks.viewer": frozenset(f"cloudtasks.{each}" for each in ("queues.get", "queues.list", "tasks.get", "tasks.list")),
    "iam.serviceAccountUser": frozenset(f"iam.serviceAccounts.{each}" for each in ("actAs", "get", "list")),
    "cloudscheduler.admin": frozenset(
        f"cloudscheduler.jobs.{each}" for each in ("create", "delete", "enable", "fullView", "get", "list", "pause", "run", "update")
    ),
}

_RESOURCES: Final[Mapping[str, Callable[[bytes], str]]] = {
    "Publish": lambda body: pubsub_v1.PublishRequest.deserialize(body).topic,
    "Pull": lambda body: pubsub_v1.PullRequest.deserialize(body).subscription,
    "Acknowledge": lambda body: pubsub_v1.AcknowledgeRequest.deserialize(body).subscription,
    "ModifyAckDeadline": lambda body: pubsub_v1.ModifyAckDeadlineRequest.deserialize(body).subscription,
    "GetSubscription": lambda body: pubsub_v1.GetSubscriptionRequest.deserialize(body).subscription,
    "CreateTask": lambda body: tasks_v2.CreateTaskRequest.deserialize(body).parent,
    "GetTask": lambda body: tasks_v2.GetTaskRequest.deserialize(body).name.partition("/tasks/")[0],
    "DeleteTask": lambda body: tasks_v2.DeleteTaskRequest.deserialize(body).name.partition("/tasks/")[0],
}
"""What the bindings of single things are on; the others are on the database, or on the project."""
_NEEDS: Final[Mapping[str, str]] = {
    "Publish": "pubsub.topics.publish",
    "Pull": "pubsub.subscriptions.consume",
    "Acknowledge": "pubsub.subscriptions.consume",
    "ModifyAckDeadline": "pubsub.subscriptions.consume",
    "GetSubscription": "pubsub.subscriptions.get",
    "BatchGetDocuments": "datastore.entities.get",
    "RunQuery": "datastore.entities.list",
    "RunAggregationQuery": "datastore.entities.list",
    "CreateTask": "cloudtasks.tasks.create",
    "GetTask": "cloudtasks.tasks.get",
    "DeleteTask": "cloudtasks.tasks.delete",
    "CreateJob": "cloudscheduler.jobs.create",
    "UpdateJob": "cloudscheduler.jobs.update",
    "GetJob": "cloudscheduler.jobs.get",
    "DeleteJob": "cloudscheduler.jobs.delete",
    "PauseJob": "cloudscheduler.jobs.pause",
    "ResumeJob": "cloudscheduler.jobs.enable",
    "ListJobs": "cloudscheduler.jobs.list",
}
"""The methods' references say it of each (Firestore's: "Access control for server client libraries")."""
_PROJECT: Final = f"projects/{PROJECT}"


@dataclass(frozen=True, order=True)
class Asked:
    """A permission that a role needed on a thing."""

    role: str
    permission: str
    resource: str


@dataclass
class Guard:
    """Google's own front door: who asks is told by whose turn it is."""

    bound: Mapping[Binding, str]
    """With what each is on, by its full name."""
    role: str = ""
    asked: set[Asked] = field(default_factory=set)
    refused: set[Asked] = field(default_factory=set)

    def decide(self, call: Call) -> Refuse | None:
        """Note it, and refuse what is not permitted."""
        for each in self._needed(call):
            if not any(permits(binding, on, each) for binding, on in self.bound.items()):
                self.refused.add(each)
                return Refuse("PERMISSION_DENIED", f"{each.permission} denied on {each.resource}")
            self.asked.add(each)
        return None

    def _needed(self, call: Call) -> Iterator[Asked]:
        resource = _RESOURCES[call.method](call.body) if call.method in _RESOURCES else _PROJECT
        if call.method == "Commit":
            for write in CommitRequest.pb(CommitRequest.deserialize(call.body)).writes:
                deletes = write.WhichOneof("operation") == "delete"
                for what in ("delete",) if deletes else ("create", "update"):  # unless a precondition says which
                    yield Asked(self.role, f"datastore.entities.{what}", resource)
            return
        yield Asked(self.role, _NEEDS[call.method], resource)
        if call.method == "CreateTask":
            token = tasks_v2.CreateTaskRequest.deserialize(call.body).task.http_request.oauth_token
            yield Asked(self.role, "iam.serviceAccounts.actAs", token.service_account_email)


def permits(binding: Binding, on: str, asked: Asked) -> bool:
    """Whether it is this binding that permits it."""
    role = binding.role.removeprefix("roles/")
    return binding.account == asked.role and on == asked.resource and asked.permission in PERMITS[role]


@dataclass
class Site:
    """The plan's things at emulators and stand-ins, and the guard before them."""

    plan: Plan
    guard: Guard
    pubsub: PubSubServer
    api: GoogleAPI
    patch: pytest.MonkeyPatch
    environment: Mapping[str, str]

    def become(self, role: str) -> None:
        """Have this process be of a role's account, with an app that knows nothing yet."""
        fresh(self.patch, self.environment)
        self.guard.role = role


@pytest.fixture(scope="module")
def site(pubsub_emulator: PubSubServer, firestore_emulator: Emulator) -> Iterator[Site]:
    """Every role has done all that it does."""
    with ExitStack() as closing:
        patch = closing.enter_context(pytest.MonkeyPatch.context())
        fresh(patch, {})
        closing.callback(lambda: tasks.app.close())
        plan = plan_of(tasks.app, parse({**SETTINGS, "name": unique("r")[:14]}, "dev"), target="gcp-terraform", stage="dev")
        assert plan.store is not None
        assert plan.timer is not None
        api = closing.enter_context(google_api(pubsub_emulator.address, ManualClock(time.time())))
        timer = api.make_queue(f"{_PROJECT}/locations/{REGION}/queues/{plan.timer.resource}")
        account = f"scheduler@{PROJECT}.iam.gserviceaccount.com"
        guard = Guard({each: _full(each, plan, timer, account) for each in bindings(plan)})
        lead({"GOOGLE_CLOUD_PROJECT": PROJECT}, patch)
        for variables, upstream in (
            (("PUBSUB_EMULATOR_HOST",), pubsub_emulator.address),
            (("FIRESTORE_EMULATOR_HOST",), firestore_emulator.address),
            (("CLOUD_TASKS_EMULATOR_HOST", "CLOUD_SCHEDULER_EMULATOR_HOST"), api.address),
        ):
            proxy = closing.enter_context(grpc_proxy(upstream))
            proxy.decide = guard.decide
            for variable in variables:
                patch.setenv(variable, proxy.address)
        for queue in plan.queues:
            pubsub_emulator.make_queue(queue.resource, ordered=queue.fifo, dead_letter=queue.dead_letters.resource)
        seams = {
            "CLOUDQ_BROKER": f"pubsub://{PROJECT}/?prefix={plan.prefix}&lease=10&wait=1",
            "CLOUDQ_STORE": f"firestore://{PROJECT}/{plan.store.resource}",
            "CLOUDQ_TIMER": f"cloudtasks://{PROJECT}/{REGION}/{plan.timer.resource}?service_account={account}",
        }
        made = Site(plan, guard, pubsub_emulator, api, patch, seams)
        for role in (producer, worker, scheduler, operator):
            try:
                role(made)
            except Exception as error:
                error.add_note(f"refused so far: {sorted(guard.refused)}")
                raise
        yield made


def _full(binding: Binding, plan: Plan, timer: str, account: str) -> str:
    """The full name of what a binding is on; of the database, as of the project, the project's."""
    names = {each.name: each.resource for each in plan.queues} | {
        each.dead_letters.name: each.dead_letters.resource for each in plan.queues
    }
    match binding.kind:
        case "topics" | "dead_letter_topics":
            return f"{_PROJECT}/topics/{names[binding.on]}"
        case "subscriptions" | "dead_letter_subscriptions":
            return f"{_PROJECT}/subscriptions/{names[binding.on]}"
        case "timer":
            return timer
        case "accounts":
            return account
        case _:
            return _PROJECT


def producer(site: Site) -> None:
    """An application that calls tasks; then all that the worker and the person are to meet with."""
    site.become("producer")
    tasks.use_everything("reports")
    group(to("mails", "nothing") for _ in range(2)).apply_async().revoke()
    for queue in QUEUES:
        call(queue, "nothing", countdown=HOURS)
    call("reports", "everything")
    call("reports", "again")
    call("reports", "fail", TEXT)
    call("reports", "sleep", "6")  # longer than half a lease
    chord([to("reports", "nothing") for _ in range(3)], tasks.app["sum reports"].s()).apply_async()
    for queue in ("mails", "orders.fifo"):  # a program in another language gave up on a call
        letter = {"v": 1, "id": f"given-up-by-{queue}", "task": queue, "args": ["nothing"]}
        topic = site.pubsub.topic(site.plan.queue(queue).dead_letters.resource)
        site.pubsub.publisher.publish(topic=topic, messages=[{"data": json.dumps(letter).encode()}])


def worker(site: Site) -> None:
    """A container with ``cloudq worker``."""
    site.become(next(each.name for each in site.plan.roles if each.purpose == "worker"))
    running = Worker(tasks.app, WorkerOptions(queues={"reports": 1}, wait=1.0))
    running.start()
    try:
        until(lambda: running.handled >= 10, "what was sent")
    finally:
        running.stop()
        running.join(60)


def scheduler(site: Site) -> None:
    """Cloud Tasks, as the account that its tasks name: it publishes where they say."""
    for each in site.api.tasks.values():
        topic = each.http_request.url.removeprefix("https://pubsub.googleapis.com/v1/").removesuffix(":publish")
        site.guard.asked.add(Asked("scheduler", "pubsub.topics.publish", topic))


def operator(site: Site) -> None:
    """A person with the command line."""
    site.become("operator")
    letter = run("dlq list reports --limit 1 --json")["queues"][0]["letters"][0]["id"]
    run("queue list")
    use_store_and_timer(letter)
    for queue in ("mails", "orders.fifo"):
        run(f"dlq redrive --yes {queue} given-up-by-{queue}")
    for queue in QUEUES:
        run(f"queue peek -n 1 {queue}")


def needless(bound: Mapping[Binding, str], asked: Iterable[Asked]) -> list[Binding]:
    """Each single binding without which all that was asked would have been permitted just the same."""
    done = [*asked]
    only = {tuple(found) for each in done if len(found := [one for one, on in bound.items() if permits(one, on, each)]) == 1}
    return sorted(each for each in bound if (each,) not in only)


def test_each_account_is_permitted_what_it_asks_for_and_nothing_else(site: Site) -> None:
    assert site.guard.refused == set(), "too narrow"
    assert needless(site.guard.bound, site.guard.asked) == [], "too wide"


def test_what_is_bound_beyond_what_is_asked_for_is_found(site: Site) -> None:
    for kind, on, role in (("subscriptions", "mails", "subscriber"), ("topics", "mails", "viewer")):
        more = Binding(kind, on, "producer", f"roles/pubsub.{role}")
        assert needless({**site.guard.bound, more: f"{_PROJECT}/{kind}/{site.plan.prefix}{on}"}, site.guard.asked) == [more]


def test_what_is_taken_from_an_account_is_refused_to_it(site: Site) -> None:
    bound = dict(site.guard.bound)
    topic = f"{_PROJECT}/topics/{site.plan.prefix}mails"
    taken = Asked("producer", "pubsub.topics.publish", topic)
    try:
        site.guard.bound = {each: on for each, on in bound.items() if not permits(each, on, taken)}
        site.become("producer")
        call("reports", "nothing")
        with pytest.raises(BrokerError, match="denied"):
            call("mails", "nothing")
        assert taken in site.guard.refused
    finally:
        site.guard.bound = bound
        site.guard.refused.discard(taken)
