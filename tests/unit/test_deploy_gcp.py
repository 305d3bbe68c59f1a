"""The data of the Terraform module for Google Cloud: names as the drivers make them, roles no wider than their drivers need, and checks.

``tests/infra/snapshots/gcp_terraform`` has the quickstart's, for readers. ``UPDATE_SNAPSHOTS=1 pytest tests/unit/test_deploy_gcp.py``
writes it anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudq import CloudQ, every
from cloudq.deploy import checks, kubernetes
from cloudq.deploy.gcp_iam import PUSH, accounts, bindings, email, subscribed
from cloudq.deploy.gcp_terraform import bucket, cpu, policies, values
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, parse
from cloudq_gcp.naming import Naming
from cloudq_templates import render
from tests.infra import apps

DATA = "cloudq.auto.tfvars.json"
SNAPSHOT = Path(__file__).parents[1] / "infra" / "snapshots" / "gcp_terraform" / DATA
BASE: dict[str, Any] = {
    "gcp": {"project": "shop-123456", "region": "europe-west1"},
    "image": "registry/shop@sha256:0",
    "alarms_topic": None,
}
WHOLE: dict[str, Any] = {
    "store": True,
    "timer": True,
    "bodies": True,
    "secrets": {"KEY": "prod-key"},
    "queues": {"slow": {"runs_on": "container"}},
}


def an_app(queues: tuple[str, ...] = ("emails", "slow")) -> CloudQ:
    app = CloudQ("shop")
    app.reference = "shop:app"
    for queue in queues:
        app.task(name=f"in {queue}", queue=queue, timeout=30)(lambda: None)
    app.task(name="hourly", queue=queues[0], timeout=30, schedule=every("1h"))(lambda: None)
    return app


def planned(table: dict[str, Any] | None = None, *, queues: tuple[str, ...] = ("emails", "slow")) -> tuple[Plan, Settings]:
    settings = parse({**BASE, **(table or {})}, "dev")
    return plan_of(an_app(queues), settings, target="gcp-terraform", stage="dev"), settings


def rendered(table: dict[str, Any] | None = None) -> dict[str, str]:
    return render("gcp_terraform", values(*planned(table)))


def data(table: dict[str, Any] | None = None) -> Any:
    return json.loads(rendered(table)[DATA])


def errors(table: dict[str, Any], **options: Any) -> dict[str, str]:
    return {each.where: each.fix for each in checks.check(*planned(table, **options)) if each.level == "error"}


# ---------------------------------------------------------------------- data


def test_the_data_has_every_variable_that_the_module_declares_but_the_user_s_own() -> None:
    files = rendered()
    declared = set(re.findall(r'^variable "(\w+)"', files["variables.tf"], re.MULTILINE))
    assert json.loads(files[DATA]).keys() == declared - {"enable_apis", "workload_pool"}
    used = set(re.findall(r"\bvar\.(\w+)", "".join(text for name, text in files.items() if name.endswith(".tf"))))
    assert used == declared


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"queues": {"emails": {"memory": 1024}}}, ["services/shop-dev-emails/memory"]),
        ({"queues": {"emails": {"memory": 8192}}}, ["services/shop-dev-emails/cpu", "services/shop-dev-emails/memory"]),
        ({"queues": {"emails": {"concurrency": 3}}}, ["services/shop-dev-emails/concurrency"]),
        ({"queues": {"emails": {"max_concurrency": 3}}}, ["services/shop-dev-emails/max_instances"]),
        ({"queues": {"emails": {"timeout": 300}}}, ["queues/emails/ack_deadline", "services/shop-dev-emails/timeout"]),
        ({"queues": {"emails": {"retention": "1d"}}}, ["queues/emails/retention"]),
        ({"queues": {"emails": {"max_receives": 50}}}, ["queues/emails/max_deliveries"]),
        ({"queues": {"emails": {"fifo": True}}}, ["queues/emails/ordered"]),
        ({"queues": {"emails": {"alarm_age": 60}}}, ["alarms/age emails/above"]),
        ({"tags": {"team": "a"}}, ["labels/team"]),
        ({"image": "other"}, ["image"]),
        ({"environment": {"A": "b"}}, ["environment/A"]),
        ({"store": True}, ["grants/store", "store"]),
        ({"bodies": True}, ["bodies", "grants/bodies"]),
        ({"secrets": {"KEY": "k"}}, ["grants/secrets", "secrets/KEY"]),
        ({"alarms_topic": "projects/p/notificationChannels/1"}, ["notification_channel"]),
        ({"gcp": {**BASE["gcp"], "kms_key": "k"}}, ["kms_key"]),
        ({"gcp": {**BASE["gcp"], "network": "n", "subnetwork": "s"}}, ["network", "subnetwork"]),
        ({"log_retention": 90}, []),
    ],
)
def test_a_setting_changes_only_what_it_should(change: dict[str, Any], where: list[str]) -> None:
    before, after = rendered(), rendered(change)
    assert {name for name in before if before[name] != after[name]} == ({DATA} if where else set())
    assert sorted(differences(json.loads(before[DATA]), json.loads(after[DATA]))) == where


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two structures differ; a list is one thing."""
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [found for key in keys for found in differences(one.get(key), other.get(key), f"{path}/{key}" if path else key)]
    return [path]


def test_two_runs_give_the_same_bytes() -> None:
    assert rendered(WHOLE) == rendered(WHOLE)


def test_the_quickstart_s_data_is_as_readers_find_it() -> None:
    text = render("gcp_terraform", values(*apps.plan("quickstart", "gcp-terraform")))[DATA]
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
        SNAPSHOT.write_text(text, "utf-8")
    assert text == SNAPSHOT.read_text("utf-8")


@given(st.text(), st.text())
def test_hostile_values_are_data_and_never_code(name: str, value: str) -> None:
    files = rendered({"environment": {name: value}, "tags": {name: value}, "secrets": {name: value}, "image": f"i{value}"})
    found = json.loads(files[DATA])
    assert found["environment"] == found["labels"] == found["secrets"] == {name: value}
    assert found["image"] == f"i{value}"
    assert {each: text for each, text in files.items() if each != DATA} == {each: text for each, text in rendered().items() if each != DATA}


def test_topics_are_those_that_the_drivers_look_for() -> None:
    plan, settings = planned({"prefix": "a+b-"}, queues=("emails", "projects/other-1/topics/theirs"))
    made = values(plan, settings)["variables"]
    naming = Naming(project="shop-123456", prefix=made["prefix"])
    for name, queue in made["queues"].items():
        assert naming.topic_of(name) == queue["existing"] or f"projects/shop-123456/topics/{queue['resource']}"
        assert naming.subscription_of(name) == f"projects/shop-123456/subscriptions/{queue['resource']}"
        assert naming.topic_of(queue["dead_letters"]).endswith(f"/topics/{made['dead_letters'][queue['dead_letters']]['resource']}")
    assert made["queues"]["projects/other-1/topics/theirs"]["existing"] == "projects/other-1/topics/theirs"


def test_an_existing_topic_is_subscribed_to_only_where_something_here_runs_it() -> None:
    topic = "projects/shop-123456/topics/shop-dev-emails"
    for runs_on, wanted in (("function", True), ("container", True), ("none", False)):
        made = data({"queues": {"emails": {"existing": topic, "runs_on": runs_on}}})
        assert made["queues"]["emails"]["subscribed"] is wanted
        assert any(each["on"] == "emails" for each in made["grants"]["subscriptions"]) is wanted


# ---------------------------------------------------------------------- roles


def may(plan: Plan, role: str) -> set[tuple[str, str, str]]:
    return {(each.kind, each.on, each.role.removeprefix("roles/")) for each in bindings(plan) if each.account == role}


TIMER = {("timer", "", f"cloudtasks.{each}") for each in ("enqueuer", "taskDeleter", "viewer")} | {
    ("accounts", "scheduler", "iam.serviceAccountUser")
}
SENDS = {("topics", "emails", "pubsub.publisher"), ("topics", "slow", "pubsub.publisher")}
KEEPS = {("store", "", "datastore.user"), ("bodies", "", "storage.objectUser"), ("secrets", "prod-key", "secretmanager.secretAccessor")}


def test_each_role_may_do_what_its_drivers_need_and_no_more() -> None:
    made, _ = planned(WHOLE)
    assert may(made, "producer") == SENDS | TIMER | {("store", "", "datastore.user"), ("bodies", "", "storage.legacyBucketWriter")}
    assert may(made, "shop-dev-emails") == SENDS | TIMER | KEEPS | {("dead_letter_topics", "emails-dlq", "pubsub.publisher")}
    assert may(made, "shop-dev-slow") == SENDS | TIMER | KEEPS | {
        ("subscriptions", "slow", "pubsub.subscriber"),
        ("subscriptions", "slow", "pubsub.viewer"),
        ("dead_letter_topics", "slow-dlq", "pubsub.publisher"),
        ("dead_letter_subscriptions", "slow-dlq", "pubsub.viewer"),
    }
    assert may(made, "scheduler") == SENDS
    assert may(made, PUSH) == {("services", "shop-dev-emails", "run.invoker")}
    letters = {
        ("dead_letter_subscriptions", f"{name}-dlq", f"pubsub.{role}") for name in ("emails", "slow") for role in ("subscriber", "viewer")
    }
    assert may(made, "operator") == SENDS | letters | {
        ("subscriptions", "emails", "pubsub.viewer"),  # it is pushed
        ("subscriptions", "slow", "pubsub.subscriber"),
        ("subscriptions", "slow", "pubsub.viewer"),
        ("store", "", "datastore.user"),
        ("bodies", "", "storage.objectUser"),
        ("timer", "", "cloudtasks.taskDeleter"),
        ("project", "", "cloudscheduler.admin"),
    }


def test_workers_in_pods_have_accounts_here_and_kubernetes_names_them_as_such() -> None:
    whole = {**WHOLE, "target": "kubernetes", "queues": {}}
    plan, settings = planned(whole)
    assert (plan.functions, plan.containers) == ((), ())
    topic = "projects/shop-123456/topics/shop-dev-slow"
    again, _ = planned({**whole, "queues": {"slow": {"existing": topic}}})
    assert subscribed(again, "slow"), "somebody works on it, though not here"
    assert may(plan, "shop-dev-slow") == SENDS | TIMER | (KEEPS - {("secrets", "prod-key", "secretmanager.secretAccessor")}) | {
        ("subscriptions", "slow", "pubsub.subscriber"),
        ("subscriptions", "slow", "pubsub.viewer"),
        ("dead_letter_topics", "slow-dlq", "pubsub.publisher"),
        ("dead_letter_subscriptions", "slow-dlq", "pubsub.viewer"),
    }
    made = values(plan, settings)["variables"]
    there = plan_of(an_app(), settings, target="kubernetes", stage="dev")
    assert made["pods"] == {each.name: f"shop-dev/{each.name}" for each in there.containers}
    assert (accounts(there), may(there, "shop-dev-slow")) == (accounts(plan), may(plan, "shop-dev-slow")), (
        "and `cloudq iam` prints the same"
    )
    assert {
        name: f"{account}@shop-123456.iam.gserviceaccount.com" for name, account in made["accounts"].items() if name in made["pods"]
    } == {each["name"]: each["account"] for each in kubernetes.values(there, settings)["workers"]}
    assert not [each for each in checks.check(plan, settings) if "nobody consumes it" in each.what]
    assert planned({**whole, "queues": {"slow": {"runs_on": "none"}, "emails": {"runs_on": "none"}}})[0].roles == tuple(
        each for each in plan.roles if each.queue is None
    ), "and those that are somebody else's have none"


def test_iam_names_each_thing_in_full() -> None:
    plan, settings = planned({**WHOLE, "secrets": {"KEY": "prod-key", "OTHER": "projects/p/secrets/s"}})
    made = policies(plan, settings)
    assert made.keys() == accounts(plan).keys()
    assert sum(len(each["bindings"]) for each in made.values()) == len(bindings(plan))
    assert made["scheduler"]["account"] == "shop-dev-scheduler@shop-123456.iam.gserviceaccount.com"
    here = "projects/shop-123456"
    assert {each["on"] for each in made["shop-dev-slow"]["bindings"]} == {
        f"{here}/databases/shop-dev-store",
        f"{here}/locations/europe-west1/queues/shop-dev",
        f"{here}/secrets/prod-key",
        f"{here}/serviceAccounts/shop-dev-scheduler@shop-123456.iam.gserviceaccount.com",
        f"{here}/subscriptions/shop-dev-slow",
        f"{here}/subscriptions/shop-dev-slow-dlq",
        f"{here}/topics/shop-dev-emails",
        f"{here}/topics/shop-dev-slow",
        f"{here}/topics/shop-dev-slow-dlq",
        "gs://shop-123456-shop-dev-bodies",
        "projects/p/secrets/s",
    }
    assert made[PUSH]["bindings"] == [{"role": "roles/run.invoker", "on": f"{here}/locations/europe-west1/services/shop-dev-emails"}]
    assert {"role": "roles/cloudscheduler.admin", "on": here} in made["operator"]["bindings"]


def test_the_command_prints_google_s_roles_for_an_app_that_runs_there(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from cloudq import CloudQ\napp = CloudQ('shop')\napp.task(name='t', timeout=30)(lambda: None)\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}
    for target in ("gcp-terraform", "kubernetes"):
        (tmp_path / "pyproject.toml").write_text(
            f'[tool.cloudq]\napp = "shop:app"\ntarget = "{target}"\nimage = "shop"\n'
            'gcp = { project = "shop-123456", region = "europe-west1" }\n'
        )
        command = [sys.executable, "-m", "cloudq.cli", "iam", "shop-dev-default"]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(ran.stdout)["shop-dev-default"]["account"] == "shop-dev-default@shop-123456.iam.gserviceaccount.com"
        assert "sqs" not in ran.stdout


def test_the_address_of_an_account_has_a_domain_s_project_turned_around() -> None:
    assert email("push", "shop-123456") == "push@shop-123456.iam.gserviceaccount.com"
    assert email("push", "example.com:shop") == "push@shop.example.com.iam.gserviceaccount.com"


def test_sends_to_narrows_a_role() -> None:
    made, _ = planned({"queues": {"slow": {"runs_on": "container", "sends_to": []}}})
    assert [each for each in may(made, "shop-dev-slow") if each[0] == "topics"] == [("topics", "slow", "pubsub.publisher")]


def test_a_queue_named_like_another_thing_is_a_queue() -> None:
    plan, _ = planned(queues=("store", "timer"))
    assert {each.on for each in bindings(plan) if each.kind == "topics"} == {"store", "timer"}


names = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789._-", min_size=1, max_size=60).map(lambda name: f"q{name}")


@given(st.sets(names | st.sampled_from(["producer", "operator", "scheduler", "push"]), min_size=1, max_size=8), st.sampled_from(["", None]))
def test_service_accounts_have_ids_that_google_takes_and_no_two_have_one(queues: set[str], prefix: str | None) -> None:
    table = {} if prefix is None else {"prefix": prefix}
    plan, _ = planned(table, queues=tuple(sorted(queues)))
    ids = accounts(plan)
    assert all(re.fullmatch("[a-z][a-z0-9-]{4,28}[a-z0-9]", each) for each in ids.values())
    assert len(set(ids.values())) == len(ids)
    assert ids.keys() == {each.name for each in plan.roles} | {PUSH}


# ---------------------------------------------------------------------- sizes and checks


def test_cpus_are_the_fewest_that_are_enough() -> None:
    assert [cpu(0.25, 512), cpu(1, 4096), cpu(1, 4097), cpu(2.5, 512), cpu(5, 512), cpu(1, 32_768)] == [1, 1, 2, 4, 6, 8]


def test_the_bucket_s_name_fits_and_is_the_project_s() -> None:
    plan, _ = planned({**WHOLE, "name": "a" * 30})
    long, other = bucket(plan, "p" * 30), bucket(plan, "q" * 30)
    assert re.fullmatch("[a-z0-9-]{3,63}", long)
    assert long != other
    assert bucket(planned(WHOLE)[0], "example.com:shop") == "example-com-shop-shop-dev-bodies"


@pytest.mark.parametrize(
    ("table", "where", "fix"),
    [
        ({"image": None}, "tool.cloudq.image", "write image ="),
        ({"gcp": {"project": "My Shop", "region": "europe-west1"}}, "tool.cloudq.gcp.project", "write the project's id"),
        ({"gcp": {"project": "shop-123456", "region": "eu-west-1"}}, "tool.cloudq.gcp.region", 'write one like "europe-west1"'),
        (
            {"gcp": {**BASE["gcp"], "kms_key": "projects/p/locations/us-east1/keyRings/r/cryptoKeys/k"}},
            "tool.cloudq.gcp.kms_key",
            "make a key where the app is",
        ),
        ({"alarms_topic": "arn:aws:sns:x"}, "tool.cloudq.alarms_topic", "write projects/PROJECT/notificationChannels/NUMBER"),
        ({"tags": {"Team": "a"}}, "tool.cloudq.tags.Team", "change it"),
        ({"tags": {"team": 'a "quoted" ${x}'}}, "tool.cloudq.tags.team", "change it"),
        ({"tags": {"cloudq-app": "x"}}, "tool.cloudq.tags.cloudq-app", "take it out"),
        ({"tags": {f"t{number}": "" for number in range(63)}}, "tool.cloudq.tags", "leave some out"),
        ({"secrets": {"KEY": "arn:aws:x"}}, "tool.cloudq.secrets.KEY", "write its name"),
        (
            {"queues": {"emails": {"existing": "projects/shop-123456/topics/t"}}},
            "tool.cloudq.queues.emails.existing",
            "write projects/shop-123456/topics/shop-dev-emails",
        ),
        (
            {"queues": {"emails": {"existing_dead_letter": "t"}}},
            "tool.cloudq.queues.emails.existing_dead_letter",
            "write projects/shop-123456/topics/shop-dev-emails-dlq",
        ),
        ({"queues": {"emails": {"concurrency": 1001}}}, "tool.cloudq.queues.emails.concurrency", "set 1 to 1000"),
        ({"queues": {"slow": {"runs_on": "container", "cpu": 9.0}}}, "tool.cloudq.queues.slow.cpu", "set 8 or less"),
        ({"queues": {"slow": {"runs_on": "container", "cpu": 2.5}}}, "tool.cloudq.queues.slow.memory", "set 2048 or more"),
        ({"queues": {"slow": {"runs_on": "container", "memory": 256}}}, "tool.cloudq.queues.slow.memory", "set 512 to 32768"),
    ],
)
def test_what_google_would_refuse_is_said_with_its_fix(table: dict[str, Any], where: str, fix: str) -> None:
    assert errors({}) == {}
    found = errors(table)
    assert list(found) == [where]
    assert found[where].startswith(fix)


def test_a_schedule_cannot_publish_in_another_project() -> None:
    assert list(errors({}, queues=("projects/other-1/topics/theirs", "emails"))) == ["schedule hourly"]


def test_what_a_worker_pool_and_its_logs_do_otherwise_is_a_warning() -> None:
    table = {
        "log_retention": 90,
        "architecture": "arm64",
        "queues": {"slow": {"runs_on": "container", "min_workers": 0}, "emails": {"batch_size": 5}},
    }
    found = {each.where for each in checks.check(*planned(table)) if each.level == "warning"}
    assert found == {
        "tool.cloudq.alarms_topic",
        "tool.cloudq.architecture",
        "tool.cloudq.log_retention",
        "tool.cloudq.queues.emails.batch_size",
        "tool.cloudq.queues.slow.min_workers",
        "queue slow",  # its task has 30 s, and a pool 10
    }
    assert {each.where for each in checks.check(*planned())} == {"tool.cloudq.alarms_topic"}, "arm64 is what is usual elsewhere"
