"""The target aws-terraform under Terraform itself: formatted, valid, tested, scanned, and what it plans is what the Plan says.

The provider is a stand-in that serves the real one's recorded schema: ``schemas/aws.json`` has the resources that the recording leaves out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

import cloudq_templates
from cloudq import CloudQ
from cloudq.deploy import container
from cloudq.deploy.aws_iam import Place, policy, trust
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings
from cloudq.deploy.targets import values_of
from cloudq_aws import scheduler
from tests.infra import apps, tools
from tests.infra.checkov_exceptions import AWS

ACCOUNT, REGION = "123456789012", "eu-west-1"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:found-AbCdEf"
MOCKED = f"""
mock_provider "aws" {{
  override_during = plan

  mock_data "aws_caller_identity" {{
    defaults = {{ account_id = "{ACCOUNT}" }}
  }}
  mock_data "aws_partition" {{
    defaults = {{ partition = "aws", dns_suffix = "amazonaws.com" }}
  }}
  mock_data "aws_secretsmanager_secret" {{
    defaults = {{ arn = "{SECRET}" }}
  }}
}}

variables {{
  package = "tests/module.tftest.hcl"
}}
"""


def queue_arn(resource: str) -> str:
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{resource}"


def queue_url(resource: str) -> str:
    return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{resource}"


def role_arn(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


def overrides(plan: Plan) -> Iterator[str]:
    """What AWS answers for each queue and role."""
    queues = {f'aws_sqs_queue.queue["{each.name}"]': each.resource for each in plan.queues if each.existing is None}
    queues |= {f'aws_sqs_queue.dead_letters["{each.dead_letters.name}"]': each.dead_letters.resource
               for each in plan.queues if each.dead_letters.existing is None}  # fmt: skip
    if plan.timer is not None and plan.timer.undelivered is not None:
        queues["aws_sqs_queue.undelivered[0]"] = plan.timer.undelivered
    found = {target: {"arn": queue_arn(name), "url": queue_url(name)} for target, name in queues.items()}
    found |= {f'aws_iam_role.role["{each.name}"]': {"arn": role_arn(role_name(each.name, plan))} for each in plan.roles}
    for target, values in found.items():
        pairs = ", ".join(f'{name} = "{value}"' for name, value in values.items())
        yield f"override_resource {{\n  target          = {target}\n  override_during = plan\n  values          = {{ {pairs} }}\n}}\n"


def role_name(role: str, plan: Plan) -> str:
    return f"{plan.name}-{plan.stage}-{role}" if role in ("scheduler", "execution") else role


@dataclass
class Planned:
    """What Terraform is going to make of an app: attributes by the resource's type and key."""

    plan: Plan
    settings: Settings
    resources: dict[str, dict[str, dict[str, Any]]]

    def __getitem__(self, kind: str) -> dict[str, dict[str, Any]]:
        return self.resources.get(kind, {})


def rendered(name: str, more: Mapping[str, Any] | None = None) -> tuple[Plan, Settings, dict[str, str]]:
    plan, settings = apps.plan(name, "aws-terraform", more)
    return plan, settings, cloudq_templates.render("aws_terraform", values_of(plan, settings))


def write(files: Mapping[str, str], folder: Path) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module, which is the same for every app, made ready once."""
    folder = tmp_path_factory.mktemp("module")
    write(rendered("quickstart")[2], folder)
    ran = tools.terraform(folder, "init", "-input=false", "-no-color")
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_module_is_formatted_as_terraform_formats_and_valid(module: Path) -> None:
    ran = tools.terraform(module, "fmt", "-check", "-diff", "-recursive")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert json.loads(tools.terraform(module, "validate", "-json").stdout)["diagnostics"] == []


@pytest.fixture(scope="module", params=apps.APPS)
def planned(request: pytest.FixtureRequest, module: Path) -> Planned:
    """What Terraform plans for an app, where the module's own tests pass, too."""
    more = {"image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/shop/worker:1.2.3"} if request.param == "everything" else {}
    plan, settings, files = rendered(request.param, more)
    write(files, module)
    seen = [MOCKED, *overrides(plan), 'run "seen" {\n  command = plan\n}\n']
    (module / "tests" / "seen.tftest.hcl").write_text("".join(seen), "utf-8")
    ran = tools.terraform(module, "test", "-json", "-verbose")
    said = [json.loads(line) for line in ran.stdout.split("\n") if line]
    assert ran.returncode == 0, [each for each in said if each["type"] == "diagnostic"]
    (found,) = [each["test_plan"] for each in said if each["type"] == "test_plan" and each["@testrun"] == "seen"]
    resources: dict[str, dict[str, dict[str, Any]]] = {}
    for each in found["resource_changes"]:
        if each["mode"] == "managed":
            resources.setdefault(each["type"] + "." + each["name"], {})[each.get("index", "")] = each["change"]["after"]
    return Planned(plan, settings, resources)


def test_each_queue_is_made_as_planned_with_its_dead_letters_and_none_that_is_there_already(planned: Planned) -> None:
    made = planned["aws_sqs_queue.queue"]
    assert {
        name: (
            each["name"],
            each["fifo_queue"],
            each["message_retention_seconds"],
            each["visibility_timeout_seconds"],
            json.loads(each["redrive_policy"]),
        )
        for name, each in made.items()
    } == {
        each.name: (
            each.resource,
            each.fifo,
            each.retention,
            each.visibility,
            {
                "deadLetterTargetArn": each.dead_letters.existing or queue_arn(each.dead_letters.resource),
                "maxReceiveCount": each.max_receives,
            },
        )
        for each in planned.plan.queues
        if each.existing is None
    }
    letters = planned["aws_sqs_queue.dead_letters"]
    assert {(each["name"], each["fifo_queue"], each["message_retention_seconds"]) for each in letters.values()} == {
        (each.dead_letters.resource, each.fifo, each.dead_letters.retention)
        for each in planned.plan.queues
        if each.dead_letters.existing is None
    }
    for name, each in letters.items():
        sources = {queue.existing or queue_arn(queue.resource) for queue in planned.plan.queues if queue.dead_letters.name == name}
        allowed = json.loads(each["redrive_allow_policy"])
        assert (allowed["redrivePermission"], set(allowed["sourceQueueArns"])) == ("byQueue", sources)
    key = planned.settings.aws.kms_key
    for each in [*made.values(), *letters.values(), *planned["aws_sqs_queue.undelivered"].values()]:
        assert (each["kms_master_key_id"], bool(each["sqs_managed_sse_enabled"])) == (key, key is None)


def test_each_function_is_made_as_planned_and_fed_from_its_queue(planned: Planned) -> None:
    settings, functions = planned.settings, planned["aws_lambda_function.function"]
    assert functions.keys() == {each.name for each in planned.plan.functions}
    for each in planned.plan.functions:
        made, queue = functions[each.name], planned.plan.queue(each.queue)
        assert made["function_name"] == each.name
        assert made["handler"] == "cloudq_aws.entry.handler"
        assert (made["memory_size"], made["timeout"]) == (each.memory, each.timeout)
        assert made["reserved_concurrent_executions"] == each.reserved_concurrency
        assert (made["runtime"], made["architectures"]) == (f"python{settings.python}", [settings.architecture])
        assert made["role"] == role_arn(each.name)
        (environment,) = made["environment"]
        given = environment["variables"]
        assert given.items() >= settings.environment.items()
        assert given["CLOUDQ_APP"] == planned.plan.reference
        assert given["CLOUDQ_CONCURRENCY"] == str(each.concurrency)
        assert json.loads(given.get("CLOUDQ_SECRETS", "{}")) == settings.secrets
        assert [(tuple(vpc["subnet_ids"]), tuple(vpc["security_group_ids"])) for vpc in made["vpc_config"]] == (
            [(settings.aws.subnets, settings.aws.security_groups)] if settings.aws.subnets else []
        )
        source = planned["aws_lambda_event_source_mapping.function"][each.name]
        assert source["event_source_arn"] == (queue.existing or queue_arn(queue.resource))
        assert source["batch_size"] == each.batch_size
        assert (source["maximum_batching_window_in_seconds"] or 0) == each.batch_window
        assert source["function_response_types"] == ["ReportBatchItemFailures"]
        limits = [] if each.max_concurrency is None else [{"maximum_concurrency": each.max_concurrency}]
        assert source["scaling_config"] == limits
        assert planned["aws_lambda_function_recursion_config.function"][each.name]["recursive_loop"] == "Allow"
        logs = planned["aws_cloudwatch_log_group.function"][each.name]
        assert (logs["name"], logs["retention_in_days"]) == (f"/aws/lambda/{each.name}", settings.log_retention)


def test_each_container_is_made_as_planned_and_scaled_by_its_backlog(planned: Planned) -> None:
    settings, tasks = planned.settings, planned["aws_ecs_task_definition.worker"]
    assert tasks.keys() == {each.name for each in planned.plan.containers}
    assert len(planned["aws_ecs_cluster.cluster"]) == bool(tasks)
    for each in planned.plan.containers:
        task, service = tasks[each.name], planned["aws_ecs_service.worker"][each.name]
        assert (task["cpu"], task["memory"]) == (str(int(each.cpu * 1024)), str(each.memory))
        assert (task["task_role_arn"], task["execution_role_arn"]) == (role_arn(each.name), role_arn(role_name("execution", planned.plan)))
        (worker,) = json.loads(task["container_definitions"])
        assert worker["image"] == planned.plan.image
        assert worker["stopTimeout"] == min(each.grace, 120)
        assert [(each["name"], each["valueFrom"]) for each in worker["secrets"]] == [(name, SECRET) for name in settings.secrets]
        given = {each["name"]: each["value"] for each in worker["environment"]}
        assert given.items() >= settings.environment.items()
        assert worker["readonlyRootFilesystem"]
        assert worker["healthCheck"]["command"] == ["CMD-SHELL", container.HEALTHY]
        assert {f"--queues={each.queue}", f"--concurrency={each.concurrency}", f"--health-file={container.HEALTH}"} <= set(
            worker["command"]
        )
        takes(worker["entryPoint"], worker["command"])
        (network,) = service["network_configuration"]
        assert (tuple(network["subnets"]), tuple(network["security_groups"])) == (settings.aws.subnets, settings.aws.security_groups)
        target = planned["aws_appautoscaling_target.worker"][each.name]
        assert (target["min_capacity"], target["max_capacity"]) == (each.min_workers, each.max_workers)
        (tracking,) = planned["aws_appautoscaling_policy.backlog"][each.name]["target_tracking_scaling_policy_configuration"]
        assert tracking["target_value"] == each.backlog_per_worker
        said = [found["expression"] for found in tracking["customized_metric_specification"][0]["metrics"] if found["id"] == "backlog"]
        assert [text.partition(" / ")[2] for text in said] == ["IF(FILL(workers, REPEAT) < 1, 1, FILL(workers, REPEAT))"]
        logs = planned["aws_cloudwatch_log_group.container"][each.name]
        assert (logs["name"], logs["retention_in_days"]) == (f"/ecs/{each.name}", settings.log_retention)
    alone = {each.name for each in planned.plan.containers if each.min_workers == 0}
    assert planned["aws_cloudwatch_metric_alarm.first"].keys() == planned["aws_appautoscaling_policy.first"].keys() == alone
    # What counts workers is late, and would start one more each time
    assert all(found["evaluation_periods"] == 3 for found in planned["aws_cloudwatch_metric_alarm.first"].values())


def takes(entry: list[str], command: list[str]) -> None:
    """cloudq reads the command, and only then finds that there is no such app."""
    assert entry == ["cloudq"]
    env = {**os.environ, "CLOUDQ_APP": "there_is_none:app"}
    ran = subprocess.run([sys.executable, "-m", "cloudq", *command], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "there is no module 'there_is_none'" in ran.stderr


def test_the_seams_of_hosts_and_callers_are_what_the_drivers_read(planned: Planned) -> None:
    plan = planned.plan
    given = [each["environment"][0]["variables"] for each in planned["aws_lambda_function.function"].values()]
    for task in planned["aws_ecs_task_definition.worker"].values():
        (worker,) = json.loads(task["container_definitions"])
        given.append({each["name"]: each["value"] for each in worker["environment"]})
    for each in given:
        app = CloudQ("seams", broker=each["CLOUDQ_BROKER"], store=each.get("CLOUDQ_STORE"), timer=each.get("CLOUDQ_TIMER"))
        assert app.broker is not None
        assert (app.store is None, app.timer is None) == (plan.store is None, plan.timer is None)
        assert f"prefix={plan.prefix}" in each["CLOUDQ_BROKER"]
        bodies = "" if plan.bodies is None else f"&bodies=s3://{plan.bodies.resource}-{ACCOUNT}&bodies_days={plan.bodies.days}"
        assert each["CLOUDQ_BROKER"].endswith(bodies)


def test_each_policy_is_that_of_cloudq_iam_and_each_role_is_bounded(planned: Planned) -> None:
    plan, aws = planned.plan, planned.settings.aws
    here = Place(region=REGION, account=ACCOUNT, kms_key=aws.kms_key)
    made = {name: each["policy"] for name, each in planned["aws_iam_role_policy.role"].items()}
    made |= {name: each["policy"] for name, each in planned["aws_iam_policy.offered"].items()}
    assert {name: json.loads(text) for name, text in made.items()} == {each.name: policy(each, plan, here) for each in plan.roles}
    trusts = {each.name: trusted for each in plan.roles if (trusted := trust(each, plan, here)) is not None}
    roles = planned["aws_iam_role.role"]
    assert {name: json.loads(each["assume_role_policy"]) for name, each in roles.items()} == trusts
    assert {each["permissions_boundary"] for each in roles.values()} == {aws.permission_boundary}
    assert {name: each["name"] for name, each in roles.items()} == {name: role_name(name, plan) for name in trusts}


def test_each_schedule_is_what_the_driver_would_have_created(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned.plan
    asked = driven(planned, monkeypatch)
    made = planned["aws_scheduler_schedule.schedule"]
    assert made.keys() == {part.name for each in plan.schedules for part in each.parts} == asked.keys()
    for name, each in made.items():
        (target,) = each["target"]
        (retries,) = target["retry_policy"]
        (letters,) = target["dead_letter_config"]
        wanted = asked[name]
        assert {
            "Name": each["name"],
            "GroupName": each["group_name"],
            "Description": each["description"],
            "ScheduleExpression": each["schedule_expression"],
            "ScheduleExpressionTimezone": each["schedule_expression_timezone"],
            "FlexibleTimeWindow": {"Mode": each["flexible_time_window"][0]["mode"]},
            "Target": {
                "Arn": target["arn"],
                "RoleArn": target["role_arn"],
                "Input": target["input"],
                "RetryPolicy": {
                    "MaximumRetryAttempts": retries["maximum_retry_attempts"],
                    "MaximumEventAgeInSeconds": retries["maximum_event_age_in_seconds"],
                },
                "DeadLetterConfig": {"Arn": letters["arn"]},
            },
        } == {key: value for key, value in wanted.items() if key not in ("State", "ActionAfterCompletion", "StartDate")}


def driven(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the driver asks EventBridge Scheduler for, by name, to keep the app's schedules."""
    plan, asked = planned.plan, dict[str, Any]()
    if plan.timer is None:
        return asked

    class Client:
        async def request(self, action: str, *, within: float, **parameters: Any) -> dict[str, Any]:
            assert action == "CreateSchedule"
            asked[parameters["Name"]] = parameters
            return {}

        async def region(self) -> str:
            return REGION

    class Broker:
        async def url(self, queue: str) -> str:
            return queue_url(plan.queue(queue).resource)

        async def body_limit(self, queue: str) -> int:
            return 1 << 20

    monkeypatch.setattr(scheduler, "client_for", lambda *_, **__: Client())
    timer = scheduler.EventBridgeTimer(
        plan.timer.resource,
        role=role_arn(plan.timer.role),
        dead_letter=queue_arn(cast("str", plan.timer.undelivered)),
        broker=cast("scheduler.SQSQueues", Broker()),
    )
    app = next(made for make in apps.APPS.values() if (made := make()).schedules.keys() == {each.name for each in plan.schedules})

    async def put() -> None:
        for each in app.schedules.values():
            await timer.put_schedule(each.schedule(app))

    asyncio.run(put())
    return asked


def test_what_is_kept_and_what_wakes_somebody_is_as_planned(planned: Planned) -> None:
    plan, settings = planned.plan, planned.settings
    tables = [each["name"] for each in planned["aws_dynamodb_table.store"].values()]
    assert tables == ([] if plan.store is None else [plan.store.resource])
    keys = [each["kms_key_arn"] for table in planned["aws_dynamodb_table.store"].values() for each in table["server_side_encryption"]]
    assert keys == ([settings.aws.kms_key] if plan.store and settings.aws.kms_key else [])
    buckets = [each["bucket"] for each in planned["aws_s3_bucket.bodies"].values()]
    assert buckets == ([] if plan.bodies is None else [f"{plan.bodies.resource}-{ACCOUNT}"])
    rules = [each["rule"][0] for each in planned["aws_s3_bucket_lifecycle_configuration.bodies"].values()]
    assert [each["expiration"][0]["days"] for each in rules] == ([] if plan.bodies is None else [plan.bodies.days])
    groups = [each["name"] for each in planned["aws_scheduler_schedule_group.timer"].values()]
    assert groups == ([] if plan.timer is None else [plan.timer.resource])
    queues = {each.name: each.resource for each in plan.queues} | {
        each.dead_letters.name: each.dead_letters.resource for each in plan.queues
    }
    undelivered = "" if plan.timer is None else plan.timer.undelivered
    wanted = {
        (each.kind, undelivered if each.kind == "timer-undelivered" else queues.get(each.on, each.on), each.above) for each in plan.alarms
    }
    alarms = planned["aws_cloudwatch_metric_alarm.alarm"]
    assert {(key.partition(" ")[0], *each["dimensions"].values(), each["threshold"]) for key, each in alarms.items()} == wanted
    topics = [] if settings.alarms_topic is None else [settings.alarms_topic]
    assert all(each["alarm_actions"] == topics for each in alarms.values())
    assert len({each["alarm_name"] for each in alarms.values()}) == len(alarms)


def test_what_is_paused_or_scaled_stays_so_and_what_holds_work_is_not_destroyed(module: Path) -> None:
    write(rendered("everything", {"secrets": {}})[2], module)
    write({"build/function.zip": ""}, module)
    ran = tools.terraform(module, "apply", "-auto-approve", "-input=false", "-no-color")
    assert ran.returncode == 0, ran.stderr
    state = module / "terraform.tfstate"
    there = json.loads(state.read_text("utf-8"))
    moved = {"aws_scheduler_schedule": {"state": "DISABLED", "start_date": "2026-01-01T00:00:00Z"}, "aws_ecs_service": {"desired_count": 7}}
    for resource in there["resources"]:
        for each in resource["instances"]:
            each["attributes"] |= moved.get(resource["type"], {})
    state.write_text(json.dumps(there), "utf-8")
    ran = tools.terraform(module, "plan", "-detailed-exitcode", "-input=false", "-no-color")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran = tools.terraform(module, "plan", "-destroy", "-input=false", "-no-color")
    kept = set(re.findall(r"Resource\s(aws_\w+\.\w+)\S*\s+has\s+lifecycle.prevent_destroy", ran.stderr))
    assert kept == {"aws_sqs_queue.dead_letters", "aws_sqs_queue.undelivered", "aws_dynamodb_table.store", "aws_s3_bucket.bodies"}


def test_a_security_scanner_finds_nothing_beyond_what_is_reasoned(tmp_path: Path) -> None:
    for name in apps.APPS:
        write({path: text for path, text in rendered(name)[2].items() if not path.startswith("tests/")}, tmp_path / name)
    tools.checkov(tmp_path, "terraform", skipped=AWS)
