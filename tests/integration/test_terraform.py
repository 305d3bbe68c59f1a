"""The Terraform module under Terraform itself: formatted, valid, and what it makes of the data, without an account."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, every
from cloudq.deploy.aws_iam import Place, policy, trust
from cloudq.deploy.aws_terraform import render
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import parse
from tests.servers import missing

HOSTILE = 'a"b\\${var.app}%{if true}\n\u2028é'
SETTINGS: dict[str, Any] = {
    "store": True,
    "bodies": True,
    "environment": {"HOSTILE": HOSTILE},
    "tags": {"team": "a b"},
    "alarms_topic": "arn:aws:sns:eu-west-1:123456789012:alarms",
    "queues": {"old": {"existing": "arn:aws:sqs:eu-west-1:123456789012:shop-dev-old"}},
    "aws": {
        "region": "eu-west-1",
        "kms_key": "arn:aws:kms:eu-west-1:123456789012:key/k",
        "permission_boundary": "arn:aws:iam::123456789012:policy/boundary",
        "subnets": ["subnet-1"],
        "security_groups": ["sg-1"],
    },
}
HERE = Place(region="eu-west-1", account="123456789012", kms_key=SETTINGS["aws"]["kms_key"])

MOCKED = """
mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:eu-west-1:123456789012:function:mocked" }
  }
}
variables {
  package = "empty.zip"
}
run "apply" {
  command = apply
  assert {
    # As JSON, because a list and a tuple of the same values are not equal
    condition     = jsonencode(output.seen) == jsonencode(jsondecode(file("expected.json")))
    error_message = jsonencode({
      for key, value in output.seen : key => value if jsonencode(value) != jsonencode(jsondecode(file("expected.json"))[key])
    })
  }
}
"""
SEEN = """
output "seen" {
  value = {
    policies    = merge(
      { for name, role in aws_iam_role_policy.role : name => jsondecode(role.policy) },
      { for name, policy in aws_iam_policy.offered : name => jsondecode(policy.policy) },
    )
    trust       = { for name, role in aws_iam_role.role : name => jsondecode(role.assume_role_policy) }
    boundaries  = distinct([for role in aws_iam_role.role : role.permissions_boundary])
    hostile     = distinct([for each in aws_lambda_function.function : each.environment[0].variables["HOSTILE"]])
    broker      = local.seams["CLOUDQ_BROKER"]
    queues      = { for name, queue in aws_sqs_queue.queue : name => [queue.name, queue.fifo_queue] }
    receives    = { for name, queue in aws_sqs_queue.queue : name => jsondecode(queue.redrive_policy).maxReceiveCount }
    letters     = sort([for queue in aws_sqs_queue.dead_letters : queue.name])
    responses   = distinct([for each in aws_lambda_event_source_mapping.function : tolist(each.function_response_types)])
    source      = aws_lambda_event_source_mapping.function["shop-dev-old"].event_source_arn
  }
}
"""


def terraform(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["terraform", *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def plan() -> Plan:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="emails", timeout=30, schedule=every("1h"))(lambda: None)
    app.task(name="u", queue="orders.fifo", timeout=30)(lambda: None)
    app.task(name="v", queue="old", timeout=30)(lambda: None)
    return plan_of(app, parse(SETTINGS, "dev"), target="aws-terraform", stage="dev")


@pytest.fixture
def module(plan: Plan, tmp_path: Path) -> Path:
    if shutil.which("terraform") is None:
        missing("terraform", "https://developer.hashicorp.com/terraform/install")
    for name, text in render(plan, parse(SETTINGS, "dev")).items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_the_module_is_formatted_as_terraform_formats(module: Path) -> None:
    done = terraform(module, "fmt", "-check", "-diff")
    assert (done.returncode, done.stdout) == (0, "")


def test_terraform_takes_the_module_and_makes_of_the_data_what_the_plan_says(module: Path, plan: Plan) -> None:
    started = terraform(module, "init", "-input=false", "-no-color")
    if started.returncode:
        pytest.skip(f"terraform init reaches no provider: {started.stderr.strip()[:200]}")
    for name in ("bodies.tf", "recursion.tf"):  # a mirror may serve a part of the provider only
        checked = json.loads(terraform(module, "validate", "-json").stdout)
        if any(each["summary"] == "Invalid resource type" and each["range"]["filename"] == name for each in checked["diagnostics"]):
            (module / name).unlink()
    checked = json.loads(terraform(module, "validate", "-json").stdout)
    assert checked["diagnostics"] == []

    expected = {
        "policies": {each.name: policy(each, plan, HERE) for each in plan.roles},
        "trust": {each.name: trusted for each in plan.roles if (trusted := trust(each, plan, HERE)) is not None},
        "boundaries": [SETTINGS["aws"]["permission_boundary"]],
        "hostile": [HOSTILE],
        "broker": "sqs://eu-west-1/?prefix=shop-dev-&bodies=s3://shop-dev-bodies-123456789012&bodies_days=60",
        "queues": {"emails": ["shop-dev-emails", False], "orders.fifo": ["shop-dev-orders.fifo", True]},
        "receives": {"emails": 10, "orders.fifo": 10},
        "letters": ["shop-dev-emails-dlq", "shop-dev-old-dlq", "shop-dev-orders-dlq.fifo"],
        "responses": [["ReportBatchItemFailures"]],
        "source": "arn:aws:sqs:eu-west-1:123456789012:shop-dev-old",
    }
    (module / "expected.json").write_text(json.dumps(expected), "utf-8")
    (module / "seen.tf").write_text(SEEN, "utf-8")
    (module / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (module / "seen.tftest.hcl").write_text(MOCKED, "utf-8")
    done = terraform(module, "test", "-no-color")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
