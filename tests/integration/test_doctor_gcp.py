"""``cloudq doctor`` on Google's emulators: silent on what the plan says, and one finding for each thing that somebody has changed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from google.cloud.scheduler_v1.types import cloudscheduler, job, target
from google.cloud.tasks_v2.types import queue as tasks

from cloudq import CloudQ, cron, every
from cloudq.clock import ManualClock
from cloudq.deploy.doctor import Finding, findings
from cloudq.deploy.gcp_terraform import bucket
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, parse
from cloudq_gcp import observing
from tests.gcp_servers import PROJECT, PubSubServer, StorageServer
from tests.google_admin import GoogleAdmin, google_admin
from tests.google_api import GoogleAPI, google_api
from tests.servers import free_port, unique

PLACE = f"projects/{PROJECT}/locations/europe-west1"
_WEEK = 604_800
"""Seconds that the emulator keeps messages at most; Google itself does so for 31 days."""
FIELD = "collectionGroups/cloudq/fields/expires"


def shop() -> CloudQ:
    app = CloudQ("shop")
    app.reference = "shop.tasks:app"
    app.task(name="mail", queue="emails", timeout=30, schedule=cron("0 9 1 * 1", tz="Europe/Berlin"))(lambda: None)
    app.task(name="order", queue="orders.fifo", timeout=45)(lambda: None)
    app.schedule("sweep", app["mail"].si(), every("1h"))
    return app


@dataclass
class Site:
    """A deployment with names of its own, and where each part of it is."""

    plan: Plan
    settings: Settings
    pubsub: PubSubServer
    storage: StorageServer
    api: GoogleAPI
    admin: GoogleAdmin

    def make_otherwise(self, queue: str, *without: str, **fields: Any) -> None:
        """Make a subscription anew, without some of its fields and with others: some of it cannot be changed in place."""
        name = self.pubsub.subscription(self.name(queue))
        made = self.pubsub.subscriber.get_subscription(subscription=name)
        for each in (*without, *fields):
            type(made).pb(made).ClearField(each)
        self.pubsub.subscriber.delete_subscription(subscription=name)
        self.pubsub.subscriber.create_subscription(request=type(made)(made, **fields))

    def name(self, queue: str) -> str:
        return f"{self.plan.prefix}{queue}"

    @property
    def queue(self) -> str:
        assert self.plan.timer is not None
        return f"{PLACE}/queues/{self.plan.timer.resource}"

    @property
    def database(self) -> str:
        assert self.plan.store is not None
        return f"projects/{PROJECT}/databases/{self.plan.store.resource}-store"

    def job(self, schedule: str, part: int = 0) -> str:
        found = next(each for each in self.plan.schedules if each.name == schedule)
        return f"{PLACE}/jobs/{found.parts[part].name}"


@pytest.fixture(scope="module")
def stand_ins(pubsub_emulator: PubSubServer) -> Iterator[tuple[GoogleAPI, GoogleAdmin]]:
    with google_api(pubsub_emulator.address, ManualClock(1_800_000_000.0)) as api, google_admin(pubsub_emulator.address) as admin:
        yield api, admin


@pytest.fixture
def site(
    pubsub: PubSubServer, storage: StorageServer, stand_ins: tuple[GoogleAPI, GoogleAdmin], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    api, admin = stand_ins
    for seam in ("BROKER", "STORE", "TIMER"):
        monkeypatch.delenv(f"CLOUDQ_{seam}", raising=False)
    for variable in ("CLOUD_TASKS_EMULATOR_HOST", "CLOUD_SCHEDULER_EMULATOR_HOST"):
        monkeypatch.setenv(variable, api.address)
    for variable in ("PUBSUB_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, admin.address)
    table: Mapping[str, Any] = {
        "name": unique("shop"),
        "store": True,
        "bodies": True,
        "gcp": {"project": PROJECT, "region": "europe-west1"},
        "queues": {"orders.fifo": {"runs_on": "container"}},
    }
    settings = parse(table, "dev")
    plan = plan_of(shop(), settings, target="gcp-terraform", stage="dev")
    letters = {each.name: replace(each.dead_letters, retention=_WEEK) for each in plan.queues}
    plan = replace(plan, queues=tuple(replace(each, dead_letters=letters[each.name]) for each in plan.queues))
    made = Site(plan, settings, pubsub, storage, api, admin)
    create(made)
    yield made
    admin.denied.clear()
    api.jobs.clear()  # named after the app, and not its stage


def create(site: Site) -> None:
    """Exactly what the plan says, made by hand."""
    pubsub, plan = site.pubsub, site.plan
    functions = {each.queue: each.name for each in plan.functions}
    for each in plan.queues:
        for name in (each.resource, each.dead_letters.resource):
            pubsub.publisher.create_topic(name=pubsub.topic(name))
        letters = each.dead_letters
        made: list[dict[str, Any]] = [
            {"name": letters.resource, "ack_deadline_seconds": 60, "message_retention_duration": {"seconds": letters.retention}},
            {
                "name": each.resource,
                "ack_deadline_seconds": each.visibility,
                "message_retention_duration": {"seconds": each.retention},
                "enable_message_ordering": each.fifo,
                "retry_policy": {"minimum_backoff": {"seconds": 10}},
                "dead_letter_policy": {
                    "dead_letter_topic": pubsub.topic(letters.resource),
                    "max_delivery_attempts": each.max_receives,
                },
            },
        ]
        if (service := functions.get(each.name)) is not None:
            token = {"service_account_email": f"push@{PROJECT}.iam.gserviceaccount.com", "audience": f"https://{service}.{PROJECT}.cloudq"}
            made[1]["push_config"] = {"push_endpoint": "https://127.0.0.1:9/", "oidc_token": token}
        for subscription in made:
            names = {"name": pubsub.subscription(subscription["name"]), "topic": pubsub.topic(subscription["name"])}
            pubsub.subscriber.create_subscription(request={**subscription, **names, "expiration_policy": {}})
        site.admin.roles[pubsub.topic(letters.resource)] = "roles/pubsub.publisher"
        site.admin.roles[pubsub.subscription(each.resource)] = "roles/pubsub.subscriber"
    site.api.make_queue(site.queue)
    for schedule in plan.schedules:
        for part in schedule.parts:
            topic = pubsub.topic(plan.queue(schedule.queue).resource)
            made_job = job.Job(
                name=f"{PLACE}/jobs/{part.name}",
                description=part.description,
                schedule=part.expression,
                time_zone=part.timezone,
                pubsub_target=target.PubsubTarget(topic_name=topic, data=schedule.body.encode()),
            )
            site.api.create_job(cloudscheduler.CreateJobRequest(parent=PLACE, job=made_job))
    site.admin.databases.add(site.database)
    site.admin.expiring.add(f"{site.database}/{FIELD}")
    assert plan.bodies is not None
    site.storage.set_bucket(bucket(plan, PROJECT), days=plan.bodies.days)


def examined(site: Site) -> list[Finding]:
    return [*findings(site.plan, site.settings, asyncio.run(observing.observe(site.plan, site.settings)))]


def test_a_fresh_deployment_on_google_cloud_has_no_findings(site: Site) -> None:
    assert examined(site) == []


def _delete_topic(queue: str) -> Callable[[Site], Any]:
    return lambda site: site.pubsub.publisher.delete_topic(topic=site.pubsub.topic(site.name(queue)))


def _delete_subscription(queue: str) -> Callable[[Site], Any]:
    return lambda site: site.pubsub.subscriber.delete_subscription(subscription=site.pubsub.subscription(site.name(queue)))


def _push(**changes: Any) -> Callable[[Site], Any]:
    token = {"service_account_email": f"push@{PROJECT}.iam.gserviceaccount.com"}
    config = {"push_endpoint": "https://127.0.0.1:9/", "oidc_token": token, **changes}
    return lambda site: site.make_otherwise("emails", push_config={key: value for key, value in config.items() if value})


def _policy(letters: str, attempts: int) -> Callable[[Site], Any]:
    return lambda site: site.make_otherwise(
        "emails", dead_letter_policy={"dead_letter_topic": site.pubsub.topic(site.name(letters)), "max_delivery_attempts": attempts}
    )


def _job(name: str, **changes: Any) -> Callable[[Site], Any]:
    def change(site: Site) -> None:
        for key, value in changes.items():
            setattr(site.api.jobs[site.job(name)], key, value)

    return change


def _orphan(site: Site) -> None:
    there = site.api.jobs[site.job("sweep")]
    name = f"{PLACE}/jobs/{site.plan.prefix}forgotten"
    site.api.jobs[name] = job.Job(there, name=name)


def _queue(**changes: Any) -> Callable[[Site], Any]:
    def change(site: Site) -> None:
        settings = {"state": tasks.Queue.State.RUNNING, "retry_config": tasks.RetryConfig(max_attempts=-1), **changes}
        site.api.changed[site.queue] = tasks.Queue(name=site.queue, **settings)

    return change


def _days(days: int | None) -> Callable[[Site], Any]:
    return lambda site: site.storage.set_bucket(bucket(site.plan, PROJECT), days=days)


EMAILS, ORDERS = "queue PREFIXemails", "queue PREFIXorders.fifo"
LETTERS, TIMER, STORE, BODIES = "dead letters PREFIXemails-dlq", "Cloud Tasks queue TIMER", "collection TIMER", "bucket TIMER-bodies"
FAULTS: Mapping[str, tuple[Callable[[Site], Any], str, str, str]] = {
    "a subscription is missing": (_delete_subscription("emails"), "error", EMAILS, "its subscription is not there"),
    "a subscription is deleted when it is idle": (
        lambda site: site.make_otherwise("emails", expiration_policy={"ttl": {"seconds": 86_400}}),
        "error", EMAILS, "deleted after 1d without use",
    ),
    "the ack deadline is shorter than a push takes": (
        lambda site: site.make_otherwise("emails", ack_deadline_seconds=30), "error", EMAILS, "hidden for 30s",
    ),
    "the ack deadline is shorter than a worker's lease": (
        lambda site: site.make_otherwise("orders.fifo", ack_deadline_seconds=10), "warning", ORDERS, "hidden for 10s",
    ),
    "there is no dead-letter policy": (
        lambda site: site.make_otherwise("emails", "dead_letter_policy"), "error", EMAILS, "it has no dead-letter policy",
    ),
    "dead letters go elsewhere": (_policy("orders-dlq.fifo", 100), "error", EMAILS, "its dead letters go to"),
    "a message is given up after too few pushes": (_policy("emails-dlq", 5), "warning", EMAILS, "after 5 deliveries"),
    "dead letters have no subscription": (_delete_subscription("emails-dlq"), "error", LETTERS, "their topic has no subscription"),
    "dead letters are deleted when nobody reads them": (
        lambda site: site.make_otherwise("emails-dlq", expiration_policy={"ttl": {"seconds": 2_678_400}}),
        "error", LETTERS, "deleted after 31d without use",
    ),
    "dead letters are kept too briefly": (
        lambda site: site.make_otherwise("emails-dlq", message_retention_duration={"seconds": 86_400}), "warning", LETTERS, "kept for 1d",
    ),
    "Pub/Sub may not publish dead letters": (
        lambda site: site.admin.roles.pop(site.pubsub.topic(site.name("emails-dlq"))), "warning", LETTERS, "may not publish",
    ),
    "Pub/Sub may not acknowledge what it moves": (
        lambda site: site.admin.roles.pop(site.pubsub.subscription(site.name("emails"))), "warning", EMAILS, "may not acknowledge",
    ),
    "what is refused comes again at once": (
        lambda site: site.make_otherwise("emails", "retry_policy"), "warning", EMAILS, "its subscription has no retry policy",
    ),
    "nothing pushes": (lambda site: site.make_otherwise("emails", "push_config"), "error", EMAILS, "nothing pushes its messages"),
    "a worker's queue is pushed": (
        lambda site: site.make_otherwise("orders.fifo", push_config={"push_endpoint": "https://127.0.0.1:9/"}),
        "error", ORDERS, "its messages are pushed to https://127.0.0.1:9/",
    ),
    "pushes carry no token": (_push(oidc_token=None), "error", EMAILS, "its pushes carry no token"),
    "pushes are for another service": (
        _push(oidc_token={"service_account_email": "a@b.iam.gserviceaccount.com", "audience": "https://old-abc.a.run.app"}),
        "warning", EMAILS, "the tokens of its pushes are for https://old-abc.a.run.app",
    ),
    "pushes go in the open": (_push(push_endpoint="http://127.0.0.1:9/"), "error", EMAILS, "pushed to http://127.0.0.1:9/, in the open"),
    "an ordered queue keeps no order": (
        lambda site: site.make_otherwise("orders.fifo", enable_message_ordering=False), "error", ORDERS, "it keeps no order",
    ),
    "messages are kept too briefly": (
        lambda site: site.make_otherwise("emails", message_retention_duration={"seconds": 600}), "warning", EMAILS, "kept for 10m",
    ),
    "a subscription is filtered": (
        lambda site: site.make_otherwise("emails", filter='attributes.a = "b"'), "error", EMAILS, "its subscription has the filter",
    ),
    "the store is missing": (lambda site: site.admin.databases.remove(site.database), "error", STORE, "it is not there"),
    "nothing deletes old results": (lambda site: site.admin.expiring.clear(), "warning", STORE, "its TTL is off"),
    "the Cloud Tasks queue is missing": (lambda site: site.api.queues.remove(site.queue), "error", TIMER, "it is not there"),
    "the Cloud Tasks queue is paused": (_queue(state=tasks.Queue.State.PAUSED), "error", TIMER, "it is paused"),
    "the Cloud Tasks queue gives up": (
        _queue(retry_config=tasks.RetryConfig(max_attempts=5)), "warning", TIMER, "it gives up after 5 tries",
    ),
    "a job is missing": (lambda site: site.api.jobs.pop(site.job("sweep")), "error", "schedule sweep", "it is not there"),
    "a part of a schedule is missing": (
        lambda site: site.api.jobs.pop(site.job("mail", 1)), "error", "schedule mail", "a part of it is not there: 0 9 * * 1",
    ),
    "a job is paused": (_job("sweep", state=job.Job.State.PAUSED), "warning", "schedule sweep", "it is paused"),
    "a job fires at other times": (_job("sweep", schedule="0 0 * * *"), "error", "schedule sweep", "its expression is not as declared"),
    "a job publishes elsewhere": (
        _job("sweep", pubsub_target=target.PubsubTarget(topic_name=f"projects/{PROJECT}/topics/other", data=b"{}")),
        "error", "schedule sweep", "its queue and its message are not as declared",
    ),
    "a job is forgotten": (_orphan, "warning", "schedule PREFIXforgotten", "the code declares none of its name"),
    "the bucket never deletes": (_days(None), "warning", BODIES, "nothing deletes what is in it"),
    "the bucket deletes too early": (_days(30), "error", BODIES, "it deletes after 30 days"),
}  # fmt: skip
"""What somebody changes, and the one finding of it: its level, where, and a part of what it says."""


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_on_google_cloud_is_one_finding(fault: str, site: Site) -> None:
    inject, level, where, what = FAULTS[fault]
    inject(site)
    (found,) = examined(site)
    assert site.plan.timer is not None
    assert (found.level, found.where) == (level, where.replace("PREFIX", site.plan.prefix).replace("TIMER", site.plan.timer.resource))
    assert what in found.what
    assert found.consequence
    assert found.fix


def test_a_topic_that_is_gone_takes_its_subscription_s_messages_with_it(site: Site) -> None:
    _delete_topic("emails")(site)
    found = examined(site)
    assert [(each.level, each.what) for each in found] == [
        ("error", "its topic is not there"),
        ("error", f"its subscription is one of _deleted-topic_, and not of {site.pubsub.topic(site.name('emails'))}"),
    ]


def test_what_may_not_be_read_is_said_and_hides_nothing_else(site: Site) -> None:
    site.admin.denied |= {"GetIamPolicy", "GetField"}
    site.make_otherwise("emails", "retry_policy")
    found = examined(site)
    assert [(each.level, each.where) for each in found] == [
        ("warning", f"queue {site.name('emails')}"),
        ("unread", "TTL of the collection"),
        ("unread", "grants of Pub/Sub's service agent"),
    ]
    assert "allow datastore.indexes.get" in found[1].what


APP = """
from cloudq import CloudQ, cron, every
app = CloudQ("shop")
app.task(name="mail", queue="emails", timeout=30, schedule=cron("0 9 1 * 1", tz="Europe/Berlin"))(lambda: None)
app.task(name="order", queue="orders.fifo", timeout=45)(lambda: None)
app.schedule("sweep", app["mail"].si(), every("1h"))
"""


def test_the_command_does_the_same_in_a_process_that_has_loaded_nothing_yet(site: Site, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    settings = [
        f'[tool.cloudq]\napp = "shop:app"\nname = "{site.settings.name}"\nstore = true\nbodies = true',
        f'[tool.cloudq.gcp]\nproject = "{PROJECT}"\nregion = "europe-west1"',
        '[tool.cloudq.queues."orders.fifo"]\nruns_on = "container"',
    ]
    (tmp_path / "pyproject.toml").write_text("\n".join(settings))
    command = [sys.executable, "-m", "cloudq", "doctor", "gcp-terraform", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    found = {each["what"] for each in json.loads(done.stdout)["findings"]}
    assert (done.returncode, found) == (1, {"they are kept for 7d, and not for 31d"}), done.stderr  # as the emulator cannot


def test_what_the_emulators_cannot_be_asked_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PUBSUB_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, site.pubsub.address)
    assert {(each.level, each.where) for each in examined(site)} == {
        ("unread", "grants of Pub/Sub's service agent"),
        ("unread", "database"),
    }


def test_without_credentials_the_doctor_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from cloudq import CloudQ\napp = CloudQ('shop')\napp.task(name='t', timeout=30)(lambda: None)\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.cloudq]\napp = "shop:app"\ntarget = "gcp-terraform"\ngcp = { project = "shop-123456", region = "europe-west1" }\n'
    )
    nobody = f"127.0.0.1:{free_port()}"
    hidden = ("CLOUDQ_", "GOOGLE_", "GCE_", "PUBSUB_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"HOME": str(tmp_path), "GCE_METADATA_HOST": nobody, "GCE_METADATA_IP": nobody}
    command = [sys.executable, "-m", "cloudq.cli", "doctor"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    (line,) = ran.stderr.splitlines()
    assert (ran.returncode, "no Google credentials" in line) == (2, True)
