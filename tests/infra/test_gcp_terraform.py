"""The module for Google Cloud with the data of three apps: what Terraform and checkov say, and whether what it makes is the plan's."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from cloudq.adapters import AdapterContext, open_broker, open_store, open_timer
from cloudq.cli.app import cli
from cloudq.clock import SystemClock
from cloudq.deploy.gcp_iam import accounts, bindings, subscribed
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings
from cloudq.deploy.targets import values_of
from cloudq_gcp.firestore import FirestoreStore
from cloudq_gcp.pubsub import PubSubBroker
from cloudq_gcp.timer import GoogleTimer
from cloudq_templates import render
from tests.infra import apps, checkov_exceptions, tools


@dataclass(frozen=True)
class Made:
    """An app's module, and what its apply made: resources by type and key, and outputs. No cloud was asked."""

    folder: Path
    plan: Plan
    settings: Settings
    resources: dict[str, dict[str, Any]]
    outputs: dict[str, Any]

    def of(self, name: str) -> dict[str, Any]:
        """The values of all resources of an address ``type.name``, by their keys."""
        return self.resources.get(name, {})

    def environment(self, resource: str, key: str) -> dict[str, Any]:
        (container,) = self.of(resource)[key]["template"][0]["containers"]
        return {each["name"]: each["value_source"] or each["value"] for each in container["env"]}


@pytest.fixture(scope="module", params=sorted(apps.APPS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    # A prefix whose characters mean something in URLs, where no topic is there already
    plan, settings = apps.plan(request.param, "gcp-terraform", {"prefix": "a+b%7e~-"} if request.param == "adversarial" else None)
    folder = tmp_path_factory.mktemp(request.param)
    for name, text in render("gcp_terraform", values_of(plan, settings)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    terraform(folder, "init", "-input=false")
    terraform(folder, "apply", "-input=false", "-auto-approve")
    state = json.loads(terraform(folder, "show", "-json"))["values"]
    resources: dict[str, dict[str, Any]] = {}
    for each in state["root_module"]["resources"]:
        resources.setdefault(f"{each['type']}.{each['name']}", {})[each.get("index", 0)] = each["values"]
    return Made(folder, plan, settings, resources, {name: each["value"] for name, each in state["outputs"].items()})


def terraform(folder: Path, *arguments: str) -> str:
    ran = tools.terraform(folder, *arguments, *([] if arguments[0] == "fmt" else ["-no-color"]))
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout


def test_it_is_formatted_and_valid_and_its_own_tests_pass(made: Made) -> None:
    terraform(made.folder, "fmt", "-check", "-recursive")
    terraform(made.folder, "validate")
    assert "Success! 2 passed" in terraform(made.folder, "test")


# The module is the same for all, and that app has all of it
whole = pytest.mark.parametrize("made", ["everything"], indirect=True)


@whole
def test_checkov_finds_nothing_but_the_reasoned_exceptions(made: Made) -> None:
    tools.checkov(made.folder, "terraform", skipped=checkov_exceptions.GCP)


def test_queues_and_dead_letters_are_the_plan_s(made: Made) -> None:
    topics, subscriptions = made.of("google_pubsub_topic.queue"), made.of("google_pubsub_subscription.queue")
    key = made.settings.gcp.kms_key
    for queue in made.plan.queues:
        assert (queue.name in topics) == (queue.existing is None)
        if queue.existing is None:
            assert (topics[queue.name]["name"], topics[queue.name]["kms_key_name"]) == (queue.resource, key)
        assert (queue.name in subscriptions) == subscribed(made.plan, queue.name)
        found = subscriptions[queue.name]
        assert found["name"] == queue.resource
        assert found["topic"] == made.outputs["topics"][queue.name]
        assert found["ack_deadline_seconds"] == queue.visibility
        assert found["message_retention_duration"] == f"{queue.retention}s"
        assert found["enable_message_ordering"] == queue.fifo
        assert found["dead_letter_policy"][0]["max_delivery_attempts"] == queue.max_receives
        dead, letters = queue.dead_letters, made.of("google_pubsub_subscription.dead_letters")
        topic = dead.existing or made.of("google_pubsub_topic.dead_letters")[dead.name]["id"]
        assert found["dead_letter_policy"][0]["dead_letter_topic"] == topic
        assert (dead.name in letters) == (dead.existing is None)
        if dead.existing is None:
            assert letters[dead.name]["name"] == made.of("google_pubsub_topic.dead_letters")[dead.name]["name"] == dead.resource
            assert letters[dead.name]["message_retention_duration"] == f"{dead.retention}s"


def test_services_are_pushed_to_and_pools_pull(made: Made) -> None:
    services, pools = made.of("google_cloud_run_v2_service.service"), made.of("google_cloud_run_v2_worker_pool.pool")
    assert services.keys() == {each.name for each in made.plan.functions}
    assert pools.keys() == {each.name for each in made.plan.containers}
    for function in made.plan.functions:
        service = services[function.name]
        template, said = service["template"][0], made.environment("google_cloud_run_v2_service.service", function.name)
        push = made.of("google_pubsub_subscription.queue")[function.queue]["push_config"][0]
        assert push["push_endpoint"] == service["uri"] + "/"
        assert service["custom_audiences"] == [push["oidc_token"][0]["audience"]] == [said["CLOUDQ_PUSH_AUDIENCE"]]
        assert push["oidc_token"][0]["service_account_email"] == said["CLOUDQ_PUSH_SERVICE_ACCOUNT"]
        assert template["timeout"] == f"{said['CLOUDQ_ACK_DEADLINE']}s" == f"{function.timeout}s"
        assert template["max_instance_request_concurrency"] == int(said["CLOUDQ_CONCURRENCY"]) == function.concurrency
        assert template["scaling"][0]["max_instance_count"] == function.max_concurrency
        assert template["containers"][0]["resources"][0]["limits"]["memory"] == f"{function.memory}Mi"
    for container in made.plan.containers:
        assert pools[container.name]["scaling"][0]["manual_instance_count"] == container.min_workers
        assert made.outputs["scaling"][container.name]["max_workers"] == container.max_workers
        assert made.of("google_pubsub_subscription.queue")[container.queue]["push_config"] == []
        found = pools[container.name]["template"][0]["containers"][0]
        worker = typer.main.get_command(cli).commands["worker"]  # type: ignore[attr-defined]
        given = worker.make_context("worker", list(found["args"][1:])).params
        assert (given["concurrency"], given["grace"], given["queues"]) == (container.concurrency, 8.0, [container.queue])


def test_the_drivers_take_the_environment_and_find_what_was_made(made: Made) -> None:
    hosts = [("google_cloud_run_v2_service.service", each.name) for each in made.plan.functions]
    hosts += [("google_cloud_run_v2_worker_pool.pool", each.name) for each in made.plan.containers]
    context = AdapterContext(app="shop", clock=SystemClock())
    for resource, name in hosts:
        said = made.environment(resource, name)
        assert said["CLOUDQ_APP"] == made.plan.reference
        assert {key: said[key] for key in made.settings.environment} == dict(made.settings.environment)
        for key, secret in made.settings.secrets.items():
            assert said[key] == [{"secret_key_ref": [{"secret": secret, "version": "latest"}]}]
        broker = open_broker(said["CLOUDQ_BROKER"], context)
        assert isinstance(broker, PubSubBroker)
        for queue in made.plan.queues:
            assert broker.naming.subscription_of(queue.name).endswith(f"/subscriptions/{queue.resource}")
        assert ("CLOUDQ_STORE" in said) == (made.plan.store is not None)
        if made.plan.store is not None:
            assert isinstance(open_store(said["CLOUDQ_STORE"], context), FirestoreStore)
        assert ("CLOUDQ_TIMER" in said) == (made.plan.timer is not None)
        if made.plan.timer is not None:
            assert isinstance(open_timer(said["CLOUDQ_TIMER"], context._replace(broker=broker)), GoogleTimer)


@whole
def test_a_service_starts_with_its_environment(made: Made, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "tasks.py").write_text("from tests.infra.apps import everything\napp = everything('6m')\n")
    said = made.environment("google_cloud_run_v2_service.service", made.plan.functions[0].name)
    given = {key: value for key, value in said.items() if isinstance(value, str)}
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    program = "from cloudq_gcp.entry import app; print(app.app.name, app.app.broker.naming.prefix, app.app.timer is not None)"
    ran = subprocess.run([sys.executable, "-c", program], env=given | path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == f"shop {made.plan.prefix} True\n", ran.stderr


def test_schedules_are_the_jobs_that_the_driver_would_make(made: Made) -> None:
    jobs = made.of("google_cloud_scheduler_job.schedule")
    parts = {part.name: (schedule, part) for schedule in made.plan.schedules for part in schedule.parts}
    assert jobs.keys() == parts.keys()
    for name, (schedule, part) in parts.items():
        job = jobs[name]
        assert (job["name"], job["description"], job["schedule"], job["time_zone"]) == (
            name,
            part.description,
            part.expression,
            part.timezone,
        )
        assert base64.b64decode(job["pubsub_target"][0]["data"]).decode() == schedule.body
        assert job["pubsub_target"][0]["topic_name"] == made.outputs["topics"][schedule.queue]
        assert job["retry_config"][0]["retry_count"] == 5


def test_roles_grants_and_alarms_are_the_plan_s(made: Made) -> None:
    assert {name: each["account_id"] for name, each in made.of("google_service_account.role").items()} == accounts(made.plan)
    given = {
        key: (each["role"], each["member"])
        for name, several in made.resources.items()
        if name.partition(".")[0].endswith("_iam_member") and name.partition(".")[2] in ("grant", "dead_letters", "store")
        for key, each in several.items()
    }
    members = {name: each["member"] for name, each in made.of("google_service_account.role").items()}
    assert given == {f"{each.account} {each.role} {each.on}": (each.role, members[each.account]) for each in bindings(made.plan)}
    alarms = made.of("google_monitoring_alert_policy.alarm")
    assert {key: each["conditions"][0]["condition_threshold"][0]["threshold_value"] for key, each in alarms.items()} == {
        f"{each.kind} {each.on}": each.above for each in made.plan.alarms
    }
    channel = made.settings.alarms_topic
    assert all(each["notification_channels"] == ([channel] if channel else []) for each in alarms.values())


def test_store_bodies_and_timer_are_there_where_the_plan_has_them(made: Made) -> None:
    plan, key = made.plan, made.settings.gcp.kms_key
    assert len(made.of("google_firestore_database.store")) == (plan.store is not None)
    assert [each["field"] for each in made.of("google_firestore_field.expires").values()] == ["expires"] * (plan.store is not None)
    assert [each["name"] for each in made.of("google_cloud_tasks_queue.timer").values()] == ([plan.timer.resource] if plan.timer else [])
    for bucket in made.of("google_storage_bucket.bodies").values():
        assert plan.bodies is not None
        assert bucket["lifecycle_rule"][0]["condition"][0]["age"] == plan.bodies.days
        assert [each["default_kms_key_name"] for each in bucket["encryption"]] == ([key] if key else [])
    assert len(made.of("google_storage_bucket.bodies")) == (plan.bodies is not None)
    agents = {"pubsub", "run"} | ({"firestore"} if plan.store else set()) | ({"storage"} if plan.bodies else set())
    assert made.of("google_kms_crypto_key_iam_member.agent").keys() == (agents if key else set())


@whole
def test_what_holds_work_or_results_is_not_destroyed(made: Made) -> None:
    ran = tools.terraform(made.folder, "plan", "-destroy", "-input=false", "-no-color")
    kept = set(re.findall(r"Resource\s(google_\w+\.\w+)\S*\s+has\s+lifecycle.prevent_destroy", ran.stderr))
    assert kept == {"google_firestore_database.store", "google_pubsub_subscription.dead_letters", "google_storage_bucket.bodies"}


def test_pods_of_kubernetes_may_act_as_their_queue_s_account(tmp_path: Path) -> None:
    plan, settings = apps.plan("quickstart", "gcp-terraform", {"target": "kubernetes"})
    for name, text in render("gcp_terraform", values_of(plan, settings)).items():
        if name.endswith((".tf", ".json")):
            (tmp_path / name).write_text(text)
    terraform(tmp_path, "init", "-input=false")
    for options, pool in (((), "shop-123456.svc.id.goog"), (("-var=workload_pool=other.svc.id.goog",), "other.svc.id.goog")):
        terraform(tmp_path, "plan", "-input=false", "-out=planned", *options)
        found = json.loads(terraform(tmp_path, "show", "-json", "planned"))["planned_values"]["root_module"]["resources"]
        (granted,) = [each["values"] for each in found if each["address"].startswith("google_service_account_iam_member.pods")]
        assert granted["role"] == "roles/iam.workloadIdentityUser"
        assert granted["member"] == f"serviceAccount:{pool}[shop-dev/shop-dev-default]"


@whole
def test_what_was_made_is_kept_by_a_second_run(made: Made) -> None:
    ran = tools.terraform(made.folder, "plan", "-input=false", "-detailed-exitcode", "-no-color")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
