"""Kubernetes' manifests, read back and compared with the plan."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq import CloudQ
from cloudq.deploy.checks import check
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, parse
from cloudq.deploy.targets import also_of, folder_of, values_of
from cloudq_templates import render
from tests.infra.apps import plan as app_plan

Objects = dict[tuple[str, str], dict[str, Any]]

AWS: dict[str, Any] = {"image": "registry.example.com/shop:1", "aws": {"region": "eu-west-1", "account": "123456789012"}}
GCP: dict[str, Any] = {"image": "registry.example.com/shop:1", "gcp": {"project": "shop-123456", "region": "europe-west1"}}


def planned(table: dict[str, Any], *, task: str = "t") -> tuple[Plan, Settings]:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name=task, queue="emails", timeout="90s")(lambda: None)
    app.task(name="u", queue="slow" if "gcp" in table else "slow.fifo", timeout="5m")(lambda: None)
    read = parse(table, "dev")
    made = plan_of(app, read, target="kubernetes", stage="dev")
    assert [each for each in check(made, read) if each.level == "error"] == []
    return made, read


def files(plan: Plan, settings: Settings) -> dict[str, str]:
    return render(folder_of(plan.target), values_of(plan, settings), also=also_of(plan))


def objects(plan: Plan, settings: Settings) -> Objects:
    """All that is made, by kind and name."""
    texts = files(plan, settings)
    listed = yaml.safe_load(texts["kustomization.yaml"])["resources"]
    assert set(listed) == {name for name in texts if name.endswith(".yaml")} - {"kustomization.yaml"}
    found = [each for name in listed for each in yaml.safe_load_all(texts[name]) if each is not None]
    made = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(made) == len(found), "no two of a kind have one name"
    return made


@pytest.mark.parametrize("name", ["quickstart", "everything", "adversarial"])
def test_every_container_of_the_plan_is_a_deployment_that_its_backlog_scales(name: str) -> None:
    plan, settings = app_plan(name, "kubernetes")
    made = objects(plan, settings)
    names = {each.name for each in plan.containers}
    for kind in ("Deployment", "ScaledObject", "PodDisruptionBudget", "ServiceAccount"):
        assert {found for of, found in made if of == kind} == names
    for each in plan.containers:
        deployment, scaled = made["Deployment", each.name]["spec"], made["ScaledObject", each.name]["spec"]
        pod = deployment["template"]["spec"]
        (worker,) = pod["containers"]
        assert "replicas" not in deployment, "KEDA keeps that number"
        assert worker["image"] == settings.image
        told = f"worker --queues={each.queue} --concurrency={each.concurrency} --grace={each.grace - 10}s"
        assert " ".join(worker["args"][:4]) == told
        assert pod["terminationGracePeriodSeconds"] == each.grace
        assert worker["resources"]["requests"] == {"cpu": f"{round(each.cpu * 1000)}m", "memory": f"{each.memory}Mi"}
        assert worker["resources"]["limits"] == {"memory": f"{each.memory}Mi"}
        assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (each.min_workers, each.max_workers)
        (trigger,) = scaled["triggers"]
        assert trigger["metadata"]["queueLength"] == str(each.backlog_per_worker)
        assert trigger["metadata"]["queueURL"] == f"https://sqs.eu-west-1.amazonaws.com/123456789012/{plan.queue(each.queue).resource}"
        assert all(type(value) is str for value in trigger["metadata"].values())
        assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in made
        selected = deployment["selector"]["matchLabels"]
        assert selected.items() <= deployment["template"]["metadata"]["labels"].items()
        assert made["PodDisruptionBudget", each.name]["spec"]["selector"]["matchLabels"] == selected
        assert scaled["scaleTargetRef"]["name"] == pod["serviceAccountName"] == each.name


def test_a_worker_is_nobody_and_can_write_only_to_tmp() -> None:
    pod = objects(*planned(AWS))["Deployment", "shop-dev-emails"]["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert worker["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [each["mountPath"] for each in worker["volumeMounts"]] == ["/tmp"]
    health = next(each for each in worker["args"] if each.startswith("--health-file=")).partition("=")[2]
    assert health.startswith("/tmp/")
    assert all(health in worker[probe]["exec"]["command"][-1] for probe in ("startupProbe", "livenessProbe", "readinessProbe"))


def test_names_are_ones_that_kubernetes_takes() -> None:
    for name in ("quickstart", "everything", "adversarial"):
        for kind, found in objects(*app_plan(name, "kubernetes")):
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", found), kind  # RFC 1123


def test_a_worker_is_told_of_broker_store_and_timer_and_of_secrets_by_their_names_only() -> None:
    plan, settings = app_plan("everything", "kubernetes")
    made = objects(plan, settings)
    config = made["ConfigMap", "shop-dev"]["data"]
    assert config == {
        "AWS_REGION": "eu-west-1",
        "CLOUDQ_APP": "shop.tasks:app",
        "CLOUDQ_BROKER": "sqs://eu-west-1/?prefix=shop-dev-&bodies=s3://shop-dev-bodies-123456789012&bodies_days=60",
        "CLOUDQ_STORE": "dynamodb://eu-west-1/shop-dev",
        "CLOUDQ_TIMER": "eventbridge://eu-west-1/shop-dev?role=arn:aws:iam::123456789012:role/shop-dev-scheduler"
        "&dead_letter=arn:aws:sqs:eu-west-1:123456789012:shop-dev-undelivered",
        "LOG_LEVEL": "INFO",
    }
    (worker,) = made["Deployment", "shop-dev-emails"]["spec"]["template"]["spec"]["containers"]
    assert worker["envFrom"] == [{"configMapRef": {"name": "shop-dev"}}]
    assert worker["env"] == [{"name": "STRIPE_KEY", "valueFrom": {"secretKeyRef": {"name": "shop-dev", "key": "STRIPE_KEY"}}}]


def test_on_google_cloud_the_backlog_is_read_from_cloud_monitoring() -> None:
    plan, settings = planned({**GCP, "store": True, "timer": True, "bodies": True})
    made = objects(plan, settings)
    (trigger,) = made["ScaledObject", "shop-dev-emails"]["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"] == {
        "serverAddress": "https://monitoring.googleapis.com/v1/projects/shop-123456/location/global/prometheus",
        "query": "sum(pubsub_googleapis_com:subscription_num_undelivered_messages"
        '{monitored_resource="pubsub_subscription",subscription_id="shop-dev-emails"})',
        "threshold": "100",
    }
    assert made["TriggerAuthentication", "shop-dev"]["spec"]["podIdentity"] == {"provider": "gcp"}
    assert made["ServiceAccount", "shop-dev-emails"]["metadata"]["annotations"] == {
        "iam.gke.io/gcp-service-account": "shop-dev-emails@shop-123456.iam.gserviceaccount.com"
    }
    assert made["ConfigMap", "shop-dev"]["data"] == {
        "CLOUDQ_APP": "shop:app",
        "CLOUDQ_BROKER": "pubsub://shop-123456/?prefix=shop-dev-&bodies=gs://shop-123456-shop-dev-bodies&bodies_days=94",
        "CLOUDQ_STORE": "firestore://shop-123456/cloudq?database=shop-dev-store",
        "CLOUDQ_TIMER": "cloudtasks://shop-123456/europe-west1/shop-dev?service_account=shop-dev-scheduler@shop-123456.iam.gserviceaccount.com",
        "GOOGLE_CLOUD_PROJECT": "shop-123456",
    }


@pytest.mark.parametrize(
    ("region", "existing", "url"),
    [
        (
            "us-east-2",
            "arn:aws:sqs:us-east-2:999999999999:shop-dev-emails",
            "https://sqs.us-east-2.amazonaws.com/999999999999/shop-dev-emails",
        ),
        ("cn-north-1", None, "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/shop-dev-emails"),
        ("us-gov-west-1", None, "https://sqs.us-gov-west-1.amazonaws.com/123456789012/shop-dev-emails"),
    ],
)
def test_a_queue_is_named_where_it_is(region: str, existing: str | None, url: str) -> None:
    table = {**AWS, "aws": {**AWS["aws"], "region": region}, "queues": {"emails": {"existing": existing} if existing else {}}}
    (trigger,) = objects(*planned(table))["ScaledObject", "shop-dev-emails"]["spec"]["triggers"]
    assert trigger["metadata"]["queueURL"] == url
    assert trigger["metadata"]["awsRegion"] == url.split(".")[1]


@settings(max_examples=30)
@given(value=st.text(), task=st.text(min_size=1))
def test_whatever_a_value_holds_it_arrives_as_it_is_and_changes_nothing_else(value: str, task: str) -> None:
    value = value.replace("\0", "")  # no variable can hold one, which is told
    plain = objects(*planned({**AWS, "environment": {"OFF": "x"}}))
    odd = objects(*planned({**AWS, "environment": {"OFF": value}}, task=task))
    assert odd["ConfigMap", "shop-dev"]["data"]["OFF"] == value
    for made in (plain, odd):
        del made["ConfigMap", "shop-dev"]["data"]["OFF"]
        for name in ("shop-dev-emails", "shop-dev-slow-fifo"):
            del made["Deployment", name]["spec"]["template"]["metadata"]["annotations"]
    assert odd == plain


BOTH = {("Deployment", "shop-dev-emails"), ("Deployment", "shop-dev-slow-fifo")}


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({"queues": {"emails": {"min_workers": 0}}}, {("ScaledObject", "shop-dev-emails")}),
        ({"queues": {"emails": {"backlog_per_worker": 7}}}, {("ScaledObject", "shop-dev-emails")}),
        ({"queues": {"emails": {"memory": 1024}}}, {("Deployment", "shop-dev-emails")}),
        ({"queues": {"slow.fifo": {"concurrency": 3}}}, {("Deployment", "shop-dev-slow-fifo")}),
        # what pods read when they start starts them anew
        ({"environment": {"A_B": "1"}}, {("ConfigMap", "shop-dev"), *BOTH}),
        ({"secrets": {"A_B": "prod/a"}}, BOTH),
        ({"queues": {"emails": {"retention": "10d"}}}, set()),
        ({"python": "3.12"}, set()),
    ],
)
def test_a_setting_changes_only_what_it_should(more: dict[str, Any], kinds: set[tuple[str, str]]) -> None:
    before, after = objects(*planned(AWS)), objects(*planned({**AWS, **more}))
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == kinds


def test_two_runs_give_the_same_bytes_and_the_image_s_dockerfile_goes_along() -> None:
    plan, settings = planned(AWS)
    first = files(plan, settings)
    assert files(*planned(AWS)) == first
    assert {"Dockerfile", "Dockerfile.dockerignore"} <= first.keys()


def test_the_target_that_makes_the_queues_of_an_app_on_kubernetes_runs_none_of_them() -> None:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="emails", timeout="90s")(lambda: None)
    read = parse({**AWS, "target": "kubernetes"}, "dev")
    there = plan_of(app, read, target="kubernetes", stage="dev")
    beside = plan_of(app, read, target="aws-terraform", stage="dev")
    assert [each.resource for each in there.queues] == [each.resource for each in beside.queues]
    assert (len(there.containers), beside.containers, beside.functions) == (1, (), ())
    assert len(plan_of(app, read, target="compose", stage="dev").containers) == 1


def test_a_plan_without_containers_has_no_workers() -> None:
    plan, settings = planned({**AWS, "defaults": {"runs_on": "none"}})
    assert files(plan, settings).keys() == {"common.yaml", "kustomization.yaml", "namespace.yaml"}
    assert {kind for kind, _ in objects(plan, settings)} == {"Namespace", "ConfigMap", "TriggerAuthentication", "NetworkPolicy"}
