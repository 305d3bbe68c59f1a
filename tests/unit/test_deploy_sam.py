"""The CloudFormation template, with SAM and without: what it says is what the plan says, whatever names and values are.

``tests/infra/snapshots/aws_sam`` has the quickstart's files, for readers. ``UPDATE_SNAPSHOTS=1 pytest tests/unit/test_deploy_sam.py``
writes them anew.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudq import CloudQ, Queue, cron, every
from cloudq.deploy import aws_sam, checks
from cloudq.deploy.aws_iam import Place, policy, trust
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, Target, parse
from cloudq.deploy.targets import folder_of, values_of
from cloudq_templates import render
from tests.cloudformation import ACCOUNT, REGION, load, resolved
from tests.infra.apps import APPS, HOSTILE, plan

TARGETS: tuple[Target, ...] = ("aws-sam", "aws-cloudformation")
FIRST_APPS = [(name, target) for name in APPS for target in TARGETS]
SNAPSHOT = Path(__file__).parents[1] / "infra" / "snapshots" / "aws_sam"
SEND = "arn:aws:scheduler:::aws-sdk:sqs:sendMessage"


def files(planned: tuple[Plan, Settings]) -> dict[str, str]:
    return render(folder_of(planned[0].target), values_of(*planned))


def template(planned: tuple[Plan, Settings]) -> dict[str, Any]:
    return load(files(planned)["template.yaml"])


def whole(planned: tuple[Plan, Settings]) -> dict[str, Any]:
    """The template with its references replaced, and SAM's globals put into each function."""
    found = resolved(template(planned), {"Image": "image", "Subnets": ["subnet-1"], "SecurityGroups": ["sg-1"]})
    shared = found.get("Globals", {}).get("Function", {})
    for each in of(found, "AWS::Serverless::Function"):
        variables = {**shared["Environment"]["Variables"], **each["Environment"]["Variables"]}
        each |= {**shared, **each, "Environment": {"Variables": variables}}
    return found


def of(found: dict[str, Any], *types: str) -> list[dict[str, Any]]:
    """The properties of all resources of a type."""
    return [each["Properties"] for each in found["Resources"].values() if each["Type"] in types]


def planned(table: dict[str, Any], target: Target = "aws-sam") -> tuple[Plan, Settings]:
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="t", queue="emails", timeout=30, schedule=every("1h"))(lambda: None)
    made = parse(table, "dev")
    return plan_of(app, made, target=target, stage="dev"), made


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_queues_and_their_dead_letters_are_those_of_the_plan(name: str, target: Target) -> None:
    made, found = plan(name, target), whole(plan(name, target))
    queues = {each["QueueName"]: each for each in of(found, "AWS::SQS::Queue")}
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:"
    wanted = {each.resource for each in made[0].queues if each.existing is None}
    wanted |= {each.dead_letters.resource for each in made[0].queues if each.dead_letters.existing is None}
    assert queues.keys() == wanted | ({made[0].timer.undelivered} if made[0].timer else set())
    for queue in made[0].queues:
        if queue.existing is None:
            said = queues[queue.resource]
            assert (said["VisibilityTimeout"], said["MessageRetentionPeriod"]) == (queue.visibility, queue.retention)
            assert said.get("FifoQueue", False) == queue.fifo
            letters = queue.dead_letters.existing or arn + queue.dead_letters.resource
            assert said["RedrivePolicy"] == {"deadLetterTargetArn": letters, "maxReceiveCount": queue.max_receives}
            if queue.dead_letters.existing is None:
                assert arn + queue.resource in queues[queue.dead_letters.resource]["RedriveAllowPolicy"]["sourceQueueArns"]
    for said in queues.values():
        assert ("KmsMasterKeyId" in said) != ("SqsManagedSseEnabled" in said)
    denied = {"Sid": "OnlyByTls", "Effect": "Deny", "Principal": "*", "Action": "sqs:*"}
    denied |= {"Condition": {"Bool": {"aws:SecureTransport": "false"}}}
    for each in of(found, "AWS::SQS::QueuePolicy"):
        (url,), (statement,) = each["Queues"], each["PolicyDocument"]["Statement"]
        resource = url.removeprefix(f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/")
        assert queues.pop(resource)
        assert statement == denied | {"Resource": arn + resource}
    assert queues == {}


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_what_outlives_the_stack_is_messages_results_and_bodies(name: str, target: Target) -> None:
    made, found = plan(name, target)[0], template(plan(name, target))["Resources"]
    kept = {id for id, each in found.items() if each.get("DeletionPolicy") == "RetainExceptOnCreate"}
    queues = {id for id, each in found.items() if each["Type"] == "AWS::SQS::Queue"}
    others = [("Store", made.store), ("BodiesBucket", made.bodies)]
    assert kept == queues | {id for id, there in others if there}
    assert all(each["UpdateReplacePolicy"] == "Retain" for each in found.values() if "DeletionPolicy" in each)


@pytest.mark.parametrize("target", TARGETS)
def test_results_expire_and_bodies_are_nobody_else_s_and_gone_in_time(target: Target) -> None:
    made, found = plan("everything", target), whole(plan("everything", target))
    (table,), (bucket,), (policy_,) = of(found, "AWS::DynamoDB::Table"), of(found, "AWS::S3::Bucket"), of(found, "AWS::S3::BucketPolicy")
    assert (table["TableName"], table["BillingMode"]) == ("shop-dev", "PAY_PER_REQUEST")
    assert {each["AttributeName"]: each["KeyType"] for each in table["KeySchema"]} == {"pk": "HASH", "sk": "RANGE"}
    assert table["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["SSESpecification"]["KMSMasterKeyId"] == made[1].aws.kms_key

    assert bucket["BucketName"] == f"shop-dev-bodies-{ACCOUNT}"
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": made[1].aws.kms_key}
    (rule,) = bucket["LifecycleConfiguration"]["Rules"]
    assert made[0].bodies is not None
    assert (rule["ExpirationInDays"], rule["Status"]) == (made[0].bodies.days, "Enabled")
    (statement,) = policy_["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    assert statement["Resource"] == [f"arn:aws:s3:::{bucket['BucketName']}", f"arn:aws:s3:::{bucket['BucketName']}/*"]


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_roles_and_policies_are_what_cloudq_iam_prints(name: str, target: Target) -> None:
    made, found = plan(name, target), whole(plan(name, target))
    place = Place(region=REGION, account=ACCOUNT, kms_key=made[1].aws.kms_key)
    roles = {each["RoleName"]: each for each in of(found, "AWS::IAM::Role")}
    offered = {each["ManagedPolicyName"]: each for each in of(found, "AWS::IAM::ManagedPolicy")}
    assert len(roles) + len(offered) == len(made[0].roles)
    for role in made[0].roles:
        assumed = trust(role, made[0], place)
        if assumed is None:
            assert offered[f"{made[0].name}-dev-{role.name}"]["PolicyDocument"] == policy(role, made[0], place)
        else:
            at = roles[role.name if role.queue else f"{made[0].name}-dev-{role.name}"]
            assert at["AssumeRolePolicyDocument"] == assumed
            assert at["Policies"] == [{"PolicyName": "cloudq", "PolicyDocument": policy(role, made[0], place)}]
            assert at.get("PermissionsBoundary") == made[1].aws.permission_boundary


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_functions_are_those_of_the_plan_and_read_their_own_queue(name: str, target: Target) -> None:
    made, found = plan(name, target), whole(plan(name, target))
    functions = {each["FunctionName"]: each for each in of(found, "AWS::Serverless::Function", "AWS::Lambda::Function")}
    assert functions.keys() == {each.name for each in made[0].functions}
    for function in made[0].functions:
        said, queue = functions[function.name], made[0].queue(function.queue)
        assert (said["MemorySize"], said["Timeout"]) == (function.memory, function.timeout)
        assert (said["Runtime"], said["Handler"], said["RecursiveLoop"]) == ("python3.13", "cloudq_aws.entry.handler", "Allow")
        assert said["LoggingConfig"] == {"LogFormat": "JSON", "LogGroup": f"/aws/lambda/{function.name}"}
        assert said["Role"] == f"arn:aws:iam::{ACCOUNT}:role/{function.name}"
        assert said.get("CodeUri", said.get("Code")) == "build/function.zip"
        variables = said["Environment"]["Variables"]
        assert variables["CLOUDQ_APP"] == made[0].reference
        assert {key: variables[key] for key in made[1].environment} == made[1].environment
        assert json.loads(variables.get("CLOUDQ_SECRETS", "{}")) == made[1].secrets
        if target == "aws-sam":
            (event,) = (each["Properties"] for each in said["Events"].values())
            source = event["Queue"]
        else:
            (event,) = (each for each in of(found, "AWS::Lambda::EventSourceMapping") if each["FunctionName"] == function.name)
            source = event["EventSourceArn"]
        assert source == (queue.existing or f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.resource}")
        assert event["BatchSize"] == function.batch_size
        assert event.get("MaximumBatchingWindowInSeconds") == (None if queue.fifo else function.batch_window)
        assert event["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert event.get("ScalingConfig", {}).get("MaximumConcurrency") == function.max_concurrency


@pytest.mark.parametrize("target", TARGETS)
def test_containers_are_those_of_the_plan_and_grow_with_their_queue(target: Target) -> None:
    made, found = plan("everything", target), whole(plan("everything", target))
    tasks = {each["Family"]: each for each in of(found, "AWS::ECS::TaskDefinition")}
    services = {each["ServiceName"]: each for each in of(found, "AWS::ECS::Service")}
    scaled = of(found, "AWS::ApplicationAutoScaling::ScalableTarget")
    assert tasks.keys() == services.keys() == {each.name for each in made[0].containers}
    policies = {each["PolicyName"]: each for each in of(found, "AWS::ApplicationAutoScaling::ScalingPolicy")}
    assert {name for name in policies if name.endswith("-first")} == {"shop-dev-reports-first"}  # the one that may have no worker
    for container, bounds in zip(made[0].containers, scaled, strict=True):
        scaling = policies[f"{container.name}-backlog"]
        (worker,) = tasks[container.name]["ContainerDefinitions"]
        assert worker["Command"][:3] == ["worker", f"--queues={container.queue}", f"--concurrency={container.concurrency}"]
        assert (tasks[container.name]["Cpu"], tasks[container.name]["Memory"]) == (str(int(container.cpu * 1024)), str(container.memory))
        assert tasks[container.name]["TaskRoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/{container.name}"
        assert tasks[container.name]["ExecutionRoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/shop-dev-execution"
        assert worker["StopTimeout"] == min(container.grace, 120)
        assert worker["Image"] == made[1].image
        assert {"Name": "LOG_LEVEL", "Value": "INFO"} in worker["Environment"]
        assert worker["Secrets"] == [{"Name": "STRIPE_KEY", "ValueFrom": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:prod-stripe"}]
        assert (bounds["MinCapacity"], bounds["MaxCapacity"]) == (container.min_workers, container.max_workers)
        assert bounds["ResourceId"] == f"service/shop-dev/{container.name}"
        tracked = scaling["TargetTrackingScalingPolicyConfiguration"]
        assert tracked["TargetValue"] == container.backlog_per_worker
        metrics = {each["Id"]: each for each in tracked["CustomizedMetricSpecification"]["Metrics"]}
        queue = made[0].queue(container.queue).resource
        assert metrics["waiting"]["MetricStat"]["Metric"]["Dimensions"] == [{"Name": "QueueName", "Value": queue}]
        assert metrics["backlog"]["Expression"].endswith("/ IF(FILL(workers, REPEAT) < 1, 1, FILL(workers, REPEAT))")
    alone = [each for each in of(found, "AWS::CloudWatch::Alarm") if each["AlarmName"].endswith("-has-no-worker")]
    assert [each["EvaluationPeriods"] for each in alone] == [3], "what counts workers is late, and would start one more each time"


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_schedules_are_the_plan_s_parts_and_send_their_ticks(name: str, target: Target) -> None:
    made, found = plan(name, target)[0], whole(plan(name, target))
    said = {each["Name"]: each for each in of(found, "AWS::Scheduler::Schedule")}
    assert said.keys() == {part.name for each in made.schedules for part in each.parts}
    for schedule in made.schedules:
        queue = made.queue(schedule.queue)
        for part in schedule.parts:
            entry = said[part.name]
            assert (entry["ScheduleExpression"], entry["ScheduleExpressionTimezone"]) == (part.expression, part.timezone)
            assert (entry["Description"], entry["GroupName"]) == (part.description, made.timer.resource if made.timer else "")
            target_ = entry["Target"]
            assert "<slot>" not in target_["Input"]
            sent = target_["Input"].replace("<aws.scheduler.scheduled-time>", "<slot>")
            if target_["Arn"] == SEND:
                assert target_["Input"].count("<aws.scheduler.") == target_["Input"].count("<aws.scheduler.scheduled-time>")
                sent = json.loads(sent)
                assert sent["QueueUrl"] == f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{queue.resource}"
                assert sent.get("MessageGroupId") == (schedule.group or schedule.tenant)
                sent = sent["MessageBody"]
            else:
                assert schedule.group is None
                assert schedule.tenant is None
                assert target_["Arn"] == f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.resource}"
            assert sent == schedule.body
            assert target_["DeadLetterConfig"]["Arn"].endswith("-undelivered")


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_alarms_are_those_of_the_plan_and_tell_the_topic(name: str, target: Target) -> None:
    made, found = plan(name, target), whole(plan(name, target))
    metrics = {
        "age": "ApproximateAgeOfOldestMessage",
        "dead-letters": "ApproximateNumberOfMessagesVisible",
        "throttles": "Throttles",
        "timer-undelivered": "ApproximateNumberOfMessagesVisible",
    }
    letters = {each.dead_letters.name: each.dead_letters.resource for each in made[0].queues}
    queues = {each.name: each.resource for each in made[0].queues}
    undelivered = {made[0].timer.resource: made[0].timer.undelivered} if made[0].timer else {}
    names = {"age": queues, "dead-letters": letters, "throttles": {}, "timer-undelivered": undelivered}
    wanted = [(metrics[each.kind], names[each.kind].get(each.on, each.on), each.above) for each in made[0].alarms]
    alarms = [each for each in of(found, "AWS::CloudWatch::Alarm") if "Metrics" not in each]  # those start workers, and tell nobody
    assert sorted((each["MetricName"], each["Dimensions"][0]["Value"], each["Threshold"]) for each in alarms) == sorted(wanted)
    topic = [made[1].alarms_topic] if made[1].alarms_topic else None
    assert all(each.get("AlarmActions") == each.get("OKActions") == topic for each in alarms)


@pytest.mark.parametrize(("name", "target"), FIRST_APPS)
def test_two_runs_give_the_same_bytes_and_the_count_of_resources_is_right(name: str, target: Target) -> None:
    made = plan(name, target)
    assert files(made) == files(plan(name, target))
    text = files(made)["template.yaml"]
    count = len(load(text)["Resources"]) + (len(made[0].functions) if target == "aws-sam" else 0)
    assert aws_sam.resources(made[0]) == count
    assert len(text.encode()) / 1.6 < aws_sam.size(*made) < 1.6 * len(text.encode())
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "\n\n\n" not in text


def places(one: Any, other: Any, at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Where two templates differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {place for key in one.keys() | other.keys() for place in places(one.get(key), other.get(key), (*at, str(key)))}
    return set() if one == other else {at}


KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
NET = {"subnets": ["subnet-0a1b2c3d"], "security_groups": ["sg-0a1b2c3d"]}
MUTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "memory": ({"queues": {"emails": {"memory": 1024}}}, r"FunctionEmails MemorySize"),
    "timeout": ({"queues": {"emails": {"timeout": "2m"}}}, r"FunctionEmails Timeout|QueueEmails VisibilityTimeout"),
    "concurrency": ({"queues": {"emails": {"concurrency": 3}}}, r"FunctionEmails Environment Variables CLOUDQ_CONCURRENCY"),
    "batch_size": ({"queues": {"emails": {"batch_size": 5}}}, r"FunctionEmails Events SQS Properties BatchSize"),
    "max_concurrency": ({"queues": {"emails": {"max_concurrency": 5}}}, r"FunctionEmails Events SQS Properties ScalingConfig"),
    "reserved": (
        {"queues": {"emails": {"reserved_concurrency": 9}}},
        r"FunctionEmails (ReservedConcurrentExecutions|Events SQS Properties ScalingConfig)",
    ),
    "retention": ({"queues": {"emails": {"retention": "1d"}}}, r"QueueEmails MessageRetentionPeriod"),
    "max_receives": ({"queues": {"emails": {"max_receives": 20}}}, r"QueueEmails RedrivePolicy maxReceiveCount"),
    "alarm_age": ({"queues": {"emails": {"alarm_age": "1h"}}}, r"LateEmails (Threshold|AlarmDescription)"),
    "tags": ({"tags": {"team": "a"}}, r"\w+ Tags( team)?"),
    "log_retention": ({"log_retention": 7}, r"LogsEmails RetentionInDays"),
    "alarms_topic": (
        {"alarms_topic": "arn:aws:sns:eu-west-1:123456789012:a"},
        r"(Late|Letters|Throttled|Undelivered)\w+ (Alarm|OK)Actions",
    ),
    "environment": ({"environment": {"A1": "b"}}, r"FunctionEmails Environment Variables A1"),
    "python": ({"python": "3.12"}, r"FunctionEmails Runtime"),
    "architecture": ({"architecture": "x86_64"}, r"FunctionEmails Architectures"),
    "secrets": ({"secrets": {"S1": "s"}}, r"FunctionEmails Environment Variables CLOUDQ_SECRETS|RoleEmails Policies"),
    "boundary": ({"aws": {"permission_boundary": "arn:aws:iam::123456789012:policy/b"}}, r"(Scheduler)?Role\w* PermissionsBoundary"),
    "network": ({"aws": NET}, r"FunctionEmails VpcConfig|RoleEmails Policies"),
    "key": (
        {"aws": {"kms_key": KEY}},
        r"\w+ (KmsMasterKeyId|KmsDataKeyReusePeriodSeconds|SqsManagedSseEnabled|KmsKeyArn|KmsKeyId|Policies)|\w+Policy PolicyDocument.*",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_setting_changes_only_its_own(name: str) -> None:
    more, where = MUTATIONS[name]
    changed = places(whole(planned({}))["Resources"], whole(planned(more))["Resources"])
    told = {" ".join(part for index, part in enumerate(each) if index != 1) for each in changed}  # without "Properties"
    assert told
    assert {each for each in told if not re.fullmatch(where, each)} == set()


def test_the_quickstart_s_template_is_as_readers_know_it() -> None:
    for name, text in files(plan("quickstart", "aws-sam")).items():
        if os.environ.get("UPDATE_SNAPSHOTS"):
            SNAPSHOT.mkdir(parents=True, exist_ok=True)
            (SNAPSHOT / name).write_text(text, "utf-8")
        assert text == (SNAPSHOT / name).read_text("utf-8")


def test_what_is_not_known_yet_is_a_parameter_and_nothing_else() -> None:
    assert "Parameters" not in template(plan("everything", "aws-sam"))
    assert "Parameters" not in template(planned({}))
    found = template(planned({"queues": {"emails": {"runs_on": "container"}}}))
    assert found["Parameters"].keys() == {"Image", "Subnets", "SecurityGroups"}
    assert "Globals" not in found


def test_sam_is_told_how_to_deploy_and_plain_cloudformation_is_not() -> None:
    said = tomllib.loads(files(plan("everything", "aws-sam"))["samconfig.toml"])["default"]["deploy"]["parameters"]
    assert (said["stack_name"], said["region"], said["resolve_s3"]) == ("shop-dev", "eu-west-1", True)
    assert (said["template_file"], said["fail_on_empty_changeset"]) == ("template.yaml", False)
    asking = files(planned({"queues": {"emails": {"runs_on": "container"}}, "image": "shop:1"}))["samconfig.toml"]
    assert "sam deploy --parameter-overrides Subnets=subnet-… SecurityGroups=sg-…\n" in asking
    assert "--parameter-overrides" not in files(plan("everything", "aws-sam"))["samconfig.toml"]
    assert "samconfig.toml" not in files(plan("everything", "aws-cloudformation"))
    assert "Transform" not in template(plan("everything", "aws-cloudformation"))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text()), st.text(), st.text())
def test_hostile_values_arrive_as_they_are(target: Target, environment: dict[str, str], tag: str, name: str) -> None:
    environment = {**environment, "HOSTILE": HOSTILE}
    made = planned({"environment": environment, "tags": {tag: HOSTILE}, "queues": {"emails": {"sends_to": []}}}, target)
    found = whole(made)
    (function,) = of(found, "AWS::Serverless::Function", "AWS::Lambda::Function")
    assert {key: function["Environment"]["Variables"][key] for key in environment} == environment
    assert {each["Key"]: each["Value"] for each in of(found, "AWS::SQS::Queue")[0]["Tags"]}[tag] == HOSTILE


_SCHEDULE = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="@"), min_size=1, max_size=100)


@settings(max_examples=25, deadline=None)
@given(_SCHEDULE, st.text(min_size=1), st.sampled_from(["tenants", "orders.fifo"]))
def test_hostile_schedules_groups_and_tenants_arrive_as_they_are(name: str, key: str, queue: str) -> None:
    app = CloudQ("shop")
    app.reference = "shop:app"
    task = app.task(name="t", queue=queue, timeout=30)(lambda: None)
    ordered = queue.endswith(".fifo")
    app.schedule(name, task.si().set(**{"ordering_key" if ordered else "tenant": key}), cron("5 4 * * *"))
    made = parse({}, "dev")
    plan = plan_of(app, made, target="aws-sam", stage="dev")
    (entry,) = of(whole((plan, made)), "AWS::Scheduler::Schedule")
    assert json.loads(entry["Description"])["name"] == name
    request = json.loads(entry["Target"]["Input"].replace("<aws.scheduler.scheduled-time>", "<slot>"))
    assert request["MessageBody"] == plan.schedules[0].body
    if key.isascii() and key.isprintable() and " " not in key and len(key) <= 128:
        assert request["MessageGroupId"].replace("<aws.scheduler.scheduled-time>", "<slot>") == key
    assert ("MessageDeduplicationId" in request) == ordered


@given(st.lists(st.text(min_size=1, max_size=40) | st.from_regex(r"[a-z-]{1,5}(\.fifo)?", fullmatch=True), min_size=2, unique=True))
def test_no_two_names_have_one_logical_id(names: list[str]) -> None:
    ids = [aws_sam.logical(kind, name) for kind in ("Queue", "DeadLetters") for name in names]
    assert len({*ids, *(f"{id}SQS" for id in ids)}) == 2 * len(ids)
    assert all(id.isascii() and id.isalnum() and len(id) < 255 for id in ids)


def problems(table: dict[str, Any], app: CloudQ | None = None, target: Target = "aws-sam", stage: str = "dev") -> list[str]:
    if app is None:
        app = CloudQ("shop")
        app.task(name="t", queue="emails", timeout=30)(lambda: None)
    app.reference, made = "shop:app", parse(table, stage)
    found = checks.check(plan_of(app, made, target=target, stage=stage), made)
    return [f"{each.where}: {each.what}" for each in found if each.level == "error"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_cloudformation_would_replace_is_refused(target: Target) -> None:
    bad = "x{{resolve:ssm:/key}}"
    (found,) = problems({"environment": {"KEY": bad}}, target=target)
    assert found.startswith("tool.cloudq.environment.KEY: CloudFormation would replace")
    app = CloudQ("shop")
    app.task(name="t", queue="emails", timeout=30)(lambda: None)
    app.schedule(bad, app["t"].si(), every("1h"))
    (found,) = problems({}, app, target)
    assert found.startswith(f"schedule {bad}: CloudFormation would replace")
    assert problems({"aws": {"region": "eu-west-1"}, "environment": {"KEY": bad}}, target="aws-terraform") == []


def test_what_is_too_much_for_a_stack_a_policy_or_a_name_is_refused() -> None:
    many = problems({}, CloudQ("shop", queues=[Queue(name=f"queue-{n:03}") for n in range(160)]))
    assert [each for each in many if "500 at most" in each]
    assert [each for each in many if each.startswith("role operator: its policy has")]
    assert [each for each in many if each.startswith("role shop-dev-queue-000: its policy has")]

    tags = {f"{'k' * 100}{n}": "v" * 256 for n in range(45)}
    app = CloudQ("shop", queues=[Queue(name=f"queue-{n:02}") for n in range(15)])
    (found,) = problems({"tags": tags}, app)
    assert found.startswith("the app: the template would have about")
    assert problems({"tags": dict(list(tags.items())[:5])}, app) == []

    (found,) = problems({"bodies": True, "name": "n" * 30}, stage="production-in-europe")
    assert "71 characters, and 63 is the most" in found
    (found,) = problems({"queues": {"emails": {"existing_dead_letter": "arn:aws:sqs:eu-west-1:123456789012:other"}}})
    assert "cloudq looks for a queue named 'shop-dev-emails-dlq'" in found

    app = CloudQ("shop")
    app.task(name="t", queue="q" * 50, timeout=30)(lambda: None)
    fields = [",".join(map(str, each)) for each in (range(59), range(23), range(1, 31), range(1, 12))]
    app.schedule("x" * 100, app["t"].si(), cron(f"{' '.join(fields)} *"))
    (found,) = problems({}, app)
    assert "EventBridge Scheduler keeps 512" in found
