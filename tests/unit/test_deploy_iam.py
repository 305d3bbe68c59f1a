"""The policies of a plan's roles: what the drivers say that they need, on this app's things, and nothing else."""

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
from cloudq.deploy.aws_iam import ACTIONS, Place, policy, trust
from cloudq.deploy.checks import check
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import parse
from cloudq.errors import ConfigError
from cloudq_aws.dynamodb import DynamoDBStore
from cloudq_aws.scheduler import EventBridgeTimer
from cloudq_aws.sqs import SQSBroker

HERE = Place(region="eu-west-1", account="123456789012", kms_key="arn:aws:kms:eu-west-1:123456789012:key/k-1")
ALL: dict[str, Any] = {
    "store": True,
    "bodies": True,
    "queues": {"slow.fifo": {"runs_on": "container"}},
    "aws": {"kms_key": HERE.kms_key, "subnets": ["s"], "security_groups": ["g"]},
}


def planned(table: dict[str, Any] | None = None) -> Plan:
    app = CloudQ("shop")
    app.task(name="t", queue="emails", timeout=30, schedule=every("1h"))(lambda: None)
    app.task(name="u", queue="slow.fifo", timeout=30)(lambda: None)
    return plan_of(app, parse(table or {}, "dev"), target="aws-sam", stage="dev")


def policies(plan: Plan) -> dict[str, Any]:
    return {each.name: policy(each, plan, HERE) for each in plan.roles}


def allowed(document: dict[str, Any], action: str) -> list[str]:
    return sorted(each for found in document["Statement"] if action in found["Action"] for each in found["Resource"])


@pytest.mark.parametrize(
    ("driver", "kinds"), [(SQSBroker, {"queue"}), (DynamoDBStore, {"store"}), (EventBridgeTimer, {"timer", "scheduler"})]
)  # fmt: skip
def test_what_is_granted_is_what_the_driver_s_docstring_asks_for(driver: type, kinds: set[str]) -> None:
    granted = {action for (_, kind), actions in ACTIONS.items() if kind in kinds for action in actions}
    asked = re.sub(r"\s+", " ", driver.__doc__ or "")
    names = {action.partition(":")[2] for action in granted}
    missing = {name for name in names if not re.search(rf"\b{name}\b", asked)}
    assert missing == set(), "granted, and the driver does not say that it needs it"
    mentioned = set(re.findall(r"\b(?:Get|Put|Create|Update|Delete|Send|Receive|Change|Batch|Pass)[A-Z][A-Za-z]+\b|\bQuery\b", asked))
    assert mentioned - names <= {"PutObject", "GetObject", "SendMessage"}, "asked for, and granted nowhere"


def test_a_function_works_off_its_own_queue_and_reaches_no_other_s_messages() -> None:
    found = policies(planned(ALL))["shop-dev-emails"]
    queue = "arn:aws:sqs:eu-west-1:123456789012:shop-dev-"
    assert allowed(found, "sqs:ReceiveMessage") == [f"{queue}emails"]
    assert allowed(found, "sqs:SendMessage") == [f"{queue}emails", f"{queue}emails-dlq", f"{queue}slow.fifo"]
    assert allowed(found, "dynamodb:PutItem") == ["arn:aws:dynamodb:eu-west-1:123456789012:table/shop-dev"]
    assert allowed(found, "s3:GetObject") == ["arn:aws:s3:::shop-dev-bodies-123456789012/*"]
    assert allowed(found, "s3:ListBucket") == ["arn:aws:s3:::shop-dev-bodies-123456789012"]
    assert allowed(found, "kms:Decrypt") == [HERE.kms_key]
    assert allowed(found, "logs:PutLogEvents") == ["arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/shop-dev-emails:*"]
    (passes,) = [each for each in found["Statement"] if "iam:PassRole" in each["Action"]]
    assert passes["Resource"] == ["arn:aws:iam::123456789012:role/shop-dev-scheduler"]
    assert passes["Condition"] == {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}


def test_a_producer_sends_and_neither_receives_nor_reads_bodies() -> None:
    found = policies(planned(ALL))["producer"]
    assert allowed(found, "sqs:ReceiveMessage") == allowed(found, "s3:GetObject") == allowed(found, "s3:ListBucket") == []
    assert len(allowed(found, "sqs:SendMessage")) == 2
    assert allowed(found, "s3:PutObject") == ["arn:aws:s3:::shop-dev-bodies-123456789012/*"]


def test_the_scheduler_only_sends_and_only_its_own_group_may_use_it() -> None:
    plan = planned()
    (role,) = [each for each in plan.roles if each.purpose == "scheduler"]
    (statement,) = policy(role, plan, HERE)["Statement"]
    assert statement["Action"] == ["sqs:SendMessage"]
    assert "arn:aws:sqs:eu-west-1:123456789012:shop-dev-undelivered" in statement["Resource"]
    allows = (trust(role, plan, HERE) or {})["Statement"][0]
    assert allows["Condition"]["StringEquals"] == {
        "aws:SourceAccount": "123456789012",
        "aws:SourceArn": "arn:aws:scheduler:eu-west-1:123456789012:schedule-group/shop-dev",
    }


def test_only_what_has_no_name_before_it_is_there_is_allowed_everywhere() -> None:
    for found in policies(planned(ALL)).values():
        assert len({each["Sid"] for each in found["Statement"]}) == len(found["Statement"])
        for each in found["Statement"]:
            assert not any("*" in action for action in each["Action"])
            if "*" in each["Resource"]:
                assert each["Sid"] in {"JoinNetwork", "ListSchedules", "LogInToRegistry"}


def test_what_is_not_planned_is_not_granted() -> None:
    text = json.dumps(policies(planned({"timer": False})))
    assert not any(service in text for service in ("dynamodb:", "s3:", "kms:", "scheduler:", "iam:", "ec2:"))


def test_the_policies_are_those_of_existing_queues_and_other_partitions() -> None:
    arn = "arn:aws:sqs:eu-west-1:999999999999:shop-dev-emails"
    plan = planned({"queues": {"emails": {"existing": arn}}})
    assert arn in allowed(policies(plan)["producer"], "sqs:SendMessage")
    china = Place(region="cn-north-1", account="1" * 12, partition="aws-cn")
    assert "arn:aws:" not in json.dumps([policy(each, planned(), china) for each in plan.roles if each.purpose == "function"])


@pytest.mark.parametrize("name", ["store", "bodies", "timer", "key", "logs", "network", "secrets", "image", "undelivered"])
def test_a_queue_may_be_named_like_what_else_there_is(name: str) -> None:
    app = CloudQ("shop")
    app.task(name="t", queue=name, timeout=30)(lambda: None)
    found = policies(plan_of(app, parse({**ALL, **SECRETS, "timer": True, "prefix": "x-"}, "dev"), target="aws-terraform", stage="dev"))
    queue = f"arn:aws:sqs:eu-west-1:123456789012:x-{name}"
    assert allowed(found[f"x-{name}"], "sqs:ReceiveMessage") == [queue]
    assert queue in allowed(found["producer"], "sqs:SendMessage")


SECRETS: dict[str, Any] = {"secrets": {"A": "prod/a", "B": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:b-AbCdEf"}}


def test_secrets_are_read_one_by_one_by_functions_and_by_what_starts_containers_and_by_nobody_else() -> None:
    found = policies(planned({**ALL, **SECRETS}))
    named = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"
    readers = {name: allowed(each, "secretsmanager:GetSecretValue") for name, each in found.items()}
    assert {name: arns for name, arns in readers.items() if arns} == {
        reader: [f"{named}b-AbCdEf", f"{named}prod/a-??????"] for reader in ("shop-dev-emails", "execution")
    }
    assert allowed(found["execution"], "kms:Decrypt") == [HERE.kms_key]
    assert "execution" not in policies(planned(SECRETS))


@pytest.mark.parametrize(
    ("image", "repositories"),
    [
        (None, ["arn:aws:ecr:eu-west-1:123456789012:repository/*"]),
        ("210987654321.dkr.ecr.us-east-1.amazonaws.com/shop/worker:1", ["arn:aws:ecr:us-east-1:210987654321:repository/shop/worker"]),
        ("210987654321.dkr.ecr.us-east-1.amazonaws.com/shop@sha256:00", ["arn:aws:ecr:us-east-1:210987654321:repository/shop"]),
        ("registry.example.com/shop:1", []),
    ],
)
def test_what_starts_containers_pulls_their_image_and_writes_their_logs(image: str | None, repositories: list[str]) -> None:
    found = policies(planned({**ALL, **({} if image is None else {"image": image})}))["execution"]
    assert allowed(found, "ecr:BatchGetImage") == repositories
    assert allowed(found, "ecr:GetAuthorizationToken") == (["*"] if repositories else [])
    assert allowed(found, "logs:PutLogEvents") == ["arn:aws:logs:eu-west-1:123456789012:log-group:/ecs/shop-dev-slow-fifo:*"]
    assert allowed(found, "sqs:ReceiveMessage") == []


@given(st.text(min_size=1) | st.text("abz09-_.*?$", min_size=1))
def test_no_name_that_a_user_writes_widens_a_policy(name: str) -> None:
    app = CloudQ("shop", queues=[name])
    settings = parse({}, "dev")
    plan = plan_of(app, settings, target="aws-sam", stage="dev")
    sound = not any(each.level == "error" for each in check(plan, settings) if each.where.startswith("queue"))
    try:
        made = policies(plan)
    except ConfigError:
        assert not sound
        return
    if sound:
        assert all(each.count("*") == 0 for each in allowed(made["producer"], "sqs:SendMessage"))


def test_a_pod_s_role_trusts_whom_its_cluster_does_and_no_task_of_ecs() -> None:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="emails")(lambda: None)
    settings = {"image": "x.example.com/shop:1", "aws": {"region": "eu-west-1", "account": "123456789012"}}
    plan = plan_of(app, parse(settings, "dev"), target="kubernetes", stage="dev")
    (worker,) = [each for each in plan.roles if each.purpose == "worker"]
    place = Place(region="eu-west-1", account="123456789012")
    assert trust(worker, plan, place) is None
    assert policy(worker, plan, place)["Statement"]


def test_the_command_takes_the_account_that_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from cloudq import CloudQ\napp = CloudQ('shop')\napp.task(name='t', timeout=30)(lambda: None)\n")
    table = '[tool.cloudq]\napp = "shop:app"\naws = { region = "eu-west-1", account = "123456789012" }\n'
    (tmp_path / "pyproject.toml").write_text(table, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDQ_")}
    for asked, account in (((), "123456789012"), (("--account", "210987654321"), "210987654321")):
        command = [sys.executable, "-m", "cloudq.cli", "iam", "producer", *asked]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert f"arn:aws:sqs:eu-west-1:{account}:shop-dev-default" in ran.stdout
        assert "stands for yours" not in ran.stderr
