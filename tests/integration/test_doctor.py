"""``cloudq doctor`` on real servers: silent on what the plan says, and one finding for each thing that somebody has changed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloudq import CloudQ, cron, every
from cloudq.deploy.doctor import Finding, findings
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, Target, parse
from cloudq.errors import SeamError
from cloudq_aws import observing
from cloudq_aws.client import client_for
from cloudq_aws.undelivered import SCHEDULED_TIME
from tests.proxy import Answer, Proxy, proxy
from tests.servers import AWS_ENV, REGION, aws_client, moto, use

ACCOUNT = "123456789012"
TABLE: Mapping[str, Any] = {
    "store": True,
    "bodies": True,
    "environment": {"MODE": "fast"},
    "aws": {"region": REGION},
    "queues": {
        "emails": {"max_concurrency": 20, "reserved_concurrency": 30},
        "orders.fifo": {"runs_on": "container"},
        "old": {"runs_on": "none", "existing": f"arn:aws:sqs:{REGION}:{ACCOUNT}:shop-dev-old"},
    },
}


def shop() -> CloudQ:
    app = CloudQ("shop")
    app.reference = "shop.tasks:app"
    app.task(name="mail", queue="emails", timeout=30, schedule=cron("0 9 1 * 1", tz="Europe/Berlin"))(lambda: None)
    app.task(name="order", queue="orders.fifo", timeout=45)(lambda: None)
    app.task(name="legacy", queue="old", timeout=90)(lambda: None)
    app.schedule("sweep", app["mail"].si(), every("1h"))
    return app


@pytest.fixture(autouse=True)
def no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for seam in ("BROKER", "STORE", "TIMER"):
        monkeypatch.delenv(f"CLOUDQ_{seam}", raising=False)


def planned(target: Target = "aws-sam", table: Mapping[str, Any] = TABLE) -> tuple[Plan, Settings]:
    settings = parse(table, "dev")
    return plan_of(shop(), settings, target=target, stage="dev"), settings


# ---------------------------------------------------------------------- AWS


@dataclass
class Cloud:
    """moto, empty at the beginning of each test."""

    endpoint: str
    clients: dict[str, Any]

    def __getitem__(self, service: str) -> Any:
        if service not in self.clients:
            self.clients[service] = aws_client(service, self.endpoint)
        return self.clients[service]

    def url(self, queue: str) -> str:
        return str(self["sqs"].get_queue_url(QueueName=queue)["QueueUrl"])

    def set(self, queue: str, **attributes: object) -> None:
        values = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in attributes.items()}
        self["sqs"].set_queue_attributes(QueueUrl=self.url(queue), Attributes=values)

    def source(self, **changes: Any) -> None:
        (found,) = self["lambda"].list_event_source_mappings()["EventSourceMappings"]
        self["lambda"].update_event_source_mapping(UUID=found["UUID"], **changes)

    def environment(self, **changes: str | None) -> None:
        there = self["lambda"].get_function_configuration(FunctionName="shop-dev-emails")["Environment"]["Variables"]
        merged = {name: value for name, value in {**there, **changes}.items() if value is not None}
        self["lambda"].update_function_configuration(FunctionName="shop-dev-emails", Environment={"Variables": merged})

    def schedule(self, name: str, **changes: Any) -> None:
        there = self["scheduler"].get_schedule(Name=name, GroupName="shop-dev")
        kept = ("ScheduleExpression", "ScheduleExpressionTimezone", "Target", "FlexibleTimeWindow", "Description", "State")
        request = {key: there[key] for key in kept if key in there} | changes
        self["scheduler"].update_schedule(Name=name, GroupName="shop-dev", **request)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with moto(tmp_path_factory.mktemp("doctor")) as running, ExitStack() as stack:
        cloud = Cloud(running.endpoint, {})
        yield cloud
        for client in cloud.clients.values():
            stack.callback(client.close)


@pytest.fixture
def cloud(servers: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    with urllib.request.urlopen(urllib.request.Request(f"{servers.endpoint}/moto-api/reset", method="POST"), timeout=60):
        use({**AWS_ENV, "AWS_ENDPOINT_URL": servers.endpoint}, monkeypatch)
    return servers


@pytest.fixture(scope="module", autouse=True)
def runner() -> Iterator[asyncio.Runner]:
    """One loop and one client of each service for all tests: to open them takes the SDK half a second."""
    opened: dict[str, Any] = {}

    async def stay_open() -> None: ...

    def kept(service: str, region: str | None, **options: Any) -> Any:
        if service not in opened:
            opened[service] = client_for(service, region, **options)
            opened[service].close = stay_open
        return opened[service]

    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(observing, "client_for", kept)
        yield runner
        for client in opened.values():
            runner.run(type(client).close(client))


def create(plan: Plan, settings: Settings, cloud: Cloud) -> None:
    """Exactly what the plan says, made by hand."""
    arns: dict[str, str] = {}

    def queue(name: str, fifo: bool, **attributes: object) -> None:
        values = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in attributes.items()}
        values |= {"FifoQueue": "true"} if fifo else {}
        url = cloud["sqs"].create_queue(QueueName=name, Attributes={"SqsManagedSseEnabled": "true", **values})["QueueUrl"]
        arns[name] = cloud["sqs"].get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]

    for each in plan.queues:
        letters = each.dead_letters
        queue(letters.resource, each.fifo, MessageRetentionPeriod=letters.retention)
        redrive = {"deadLetterTargetArn": arns[letters.resource], "maxReceiveCount": each.max_receives}
        hidden = each.visibility if each.existing is None else 90
        queue(each.resource, each.fifo, VisibilityTimeout=hidden, MessageRetentionPeriod=each.retention, RedrivePolicy=redrive)
    timer, store, bodies = plan.timer, plan.store, plan.bodies
    assert timer is not None
    assert timer.undelivered is not None
    assert store is not None
    assert bodies is not None
    queue(timer.undelivered, False, MessageRetentionPeriod=1_209_600)
    trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "*"}, "Action": "sts:AssumeRole"}]}
    role = cloud["iam"].create_role(RoleName=timer.role, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    bucket = f"{bodies.resource}-{ACCOUNT}"
    seams = {
        "CLOUDQ_BROKER": f"sqs://{REGION}/?prefix={plan.prefix}&bodies=s3://{bucket}&bodies_days={bodies.days}",
        "CLOUDQ_STORE": f"dynamodb://{REGION}/{store.resource}",
        "CLOUDQ_TIMER": f"eventbridge://{REGION}/{timer.resource}?role={role}&dead_letter={arns[timer.undelivered]}",
    }
    for function in plan.functions:
        cloud["lambda"].create_function(
            FunctionName=function.name,
            Runtime=f"python{settings.python}",
            Architectures=[settings.architecture],
            Role=role,
            Handler="cloudq_aws.entry.handler",
            Code={"ZipFile": _package()},
            Timeout=function.timeout,
            Environment={"Variables": {**settings.environment, **seams, "CLOUDQ_APP": plan.reference or ""}},
        )
        if function.reserved_concurrency is not None:
            cloud["lambda"].put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=function.reserved_concurrency)
        cloud["lambda"].create_event_source_mapping(
            FunctionName=function.name,
            EventSourceArn=arns[plan.queue(function.queue).resource],
            BatchSize=function.batch_size,
            FunctionResponseTypes=["ReportBatchItemFailures"],
            ScalingConfig={"MaximumConcurrency": function.max_concurrency},
        )
    cloud["dynamodb"].create_table(
        TableName=store.resource,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
    )
    _ttl(cloud, store.resource, True)
    cloud["scheduler"].create_schedule_group(Name=timer.resource)
    for schedule in plan.schedules:
        for part in schedule.parts:
            cloud["scheduler"].create_schedule(
                Name=part.name,
                GroupName=timer.resource,
                Description=part.description,
                ScheduleExpression=part.expression,
                ScheduleExpressionTimezone=part.timezone,
                FlexibleTimeWindow={"Mode": "OFF"},
                Target={
                    "Arn": arns[plan.queue(schedule.queue).resource],
                    "RoleArn": role,
                    "Input": schedule.body.replace("<slot>", SCHEDULED_TIME),
                    "DeadLetterConfig": {"Arn": arns[timer.undelivered]},
                },
            )
    cloud["s3"].create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    _lifecycle(cloud, bucket, bodies.days)


def _package() -> bytes:
    with io.BytesIO() as written:
        with zipfile.ZipFile(written, "w") as package:
            package.writestr("shop.py", "")
        return written.getvalue()


def _ttl(cloud: Cloud, table: str, enabled: bool) -> None:
    specification = {"Enabled": enabled, "AttributeName": "ttl"}
    cloud["dynamodb"].update_time_to_live(TableName=table, TimeToLiveSpecification=specification)


def _lifecycle(cloud: Cloud, bucket: str, days: int) -> None:
    rule = {"ID": "gone", "Status": "Enabled", "Filter": {}, "Expiration": {"Days": days}}
    cloud["s3"].put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})


def examined(runner: asyncio.Runner, plan: Plan, settings: Settings) -> list[Finding]:
    """What the doctor finds, without what moto cannot be asked."""
    found = findings(plan, settings, runner.run(observing.observe(plan, settings)))
    assert {each.where for each in found if each.level == "unread"} <= {"recursive loops"}, found
    return [each for each in found if each.level != "unread"]


def test_a_fresh_deployment_on_aws_has_no_findings(cloud: Cloud, runner: asyncio.Runner) -> None:
    plan, settings = planned()
    create(plan, settings, cloud)
    assert examined(runner, plan, settings) == []


def _delete_queue(name: str) -> Callable[[Cloud], Any]:
    return lambda cloud: cloud["sqs"].delete_queue(QueueUrl=cloud.url(name))


def _keys(cloud: Cloud) -> None:
    cloud["dynamodb"].delete_table(TableName="shop-dev")
    cloud["dynamodb"].create_table(
        TableName="shop-dev",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    )
    _ttl(cloud, "shop-dev", True)


def _another_function(cloud: Cloud) -> None:
    there = cloud["lambda"].get_function_configuration(FunctionName="shop-dev-emails")
    cloud["lambda"].create_function(
        FunctionName="intruder", Runtime="python3.13", Role=there["Role"], Handler="a.b", Code={"ZipFile": _package()}
    )
    arn = cloud["sqs"].get_queue_attributes(QueueUrl=cloud.url("shop-dev-emails"), AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    cloud["lambda"].create_event_source_mapping(FunctionName="intruder", EventSourceArn=arn)


def _no_source(cloud: Cloud) -> None:
    (found,) = cloud["lambda"].list_event_source_mappings()["EventSourceMappings"]
    cloud["lambda"].delete_event_source_mapping(UUID=found["UUID"])


def _orphan(cloud: Cloud) -> None:
    there = cloud["scheduler"].get_schedule(Name="every-sweep", GroupName="shop-dev")
    kept = {key: there[key] for key in ("ScheduleExpression", "Target", "FlexibleTimeWindow")}
    cloud["scheduler"].create_schedule(Name="every-forgotten", GroupName="shop-dev", **kept)


def _target(cloud: Cloud, **changes: Any) -> dict[str, Any]:
    return {**cloud["scheduler"].get_schedule(Name="every-sweep", GroupName="shop-dev")["Target"], **changes}


def _lambda(**changes: Any) -> Callable[[Cloud], Any]:
    return lambda cloud: cloud["lambda"].update_function_configuration(FunctionName="shop-dev-emails", **changes)


def _send(queue: str) -> Callable[[Cloud], Any]:
    return lambda cloud: cloud["sqs"].send_message(QueueUrl=cloud.url(queue), MessageBody="{}")


EMAILS, ORDERS, OLD = "queue shop-dev-emails", "queue shop-dev-orders.fifo", "queue shop-dev-old"
LETTERS, FUNCTION, SOURCE = "dead letters shop-dev-emails-dlq", "function shop-dev-emails", "event source of shop-dev-emails"
AWS_FAULTS: Mapping[str, tuple[Callable[[Cloud], Any], str, str, str]] = {
    "a queue is missing": (_delete_queue("shop-dev-orders.fifo"), "error", ORDERS, "it is not there"),
    "a function's queue hides messages too briefly": (
        lambda cloud: cloud.set("shop-dev-emails", VisibilityTimeout=359),
        "error", EMAILS, "hidden for 359s, and a function of 1m needs 6m",
    ),
    "a worker's queue hides messages too briefly": (
        lambda cloud: cloud.set("shop-dev-orders.fifo", VisibilityTimeout=30), "warning", ORDERS, "hidden for 30s",
    ),
    "an existing queue hides messages for less than its longest task": (
        lambda cloud: cloud.set("shop-dev-old", VisibilityTimeout=89), "warning", OLD, "its longest task has 90s",
    ),
    "a function takes longer than its queue hides": (_lambda(Timeout=90), "error", EMAILS, "a function of 90s needs 9m"),
    "there is no redrive policy": (lambda cloud: cloud.set("shop-dev-old", RedrivePolicy=""), "error", OLD, "it has no RedrivePolicy"),
    "dead letters go elsewhere": (
        lambda cloud: cloud.set(
            "shop-dev-emails",
            RedrivePolicy={"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:shop-dev-old-dlq", "maxReceiveCount": 10},
        ),
        "error", EMAILS, "its dead letters go to 'shop-dev-old-dlq'",
    ),
    "a message is given up after too few deliveries": (
        lambda cloud: cloud.set(
            "shop-dev-emails",
            RedrivePolicy={"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:shop-dev-emails-dlq", "maxReceiveCount": 3},
        ),
        "warning", EMAILS, "after 3 deliveries",
    ),
    "a dead-letter queue is missing": (_delete_queue("shop-dev-emails-dlq"), "error", LETTERS, "their queue is not there"),
    "dead letters are kept for less than messages": (
        lambda cloud: cloud.set("shop-dev-emails-dlq", MessageRetentionPeriod=86_400), "error", LETTERS, "they are kept for 1d",
    ),
    "dead letters are kept for less than planned": (
        lambda cloud: cloud.set("shop-dev-emails-dlq", MessageRetentionPeriod=604_800), "warning", LETTERS, "for 7d, and not for 14d",
    ),
    "dead letters wait": (_send("shop-dev-emails-dlq"), "note", LETTERS, "1 waits there"),
    "messages are kept too briefly": (
        lambda cloud: cloud.set("shop-dev-emails", MessageRetentionPeriod=3600), "warning", EMAILS, "messages are kept for 1h",
    ),
    "a queue is not encrypted": (
        lambda cloud: cloud.set("shop-dev-emails", SqsManagedSseEnabled="false"), "warning", EMAILS, "it is not encrypted",
    ),
    "a function is missing": (
        lambda cloud: cloud["lambda"].delete_function(FunctionName="shop-dev-emails"), "error", FUNCTION, "it is not there",
    ),
    "a function is too short for its longest task": (
        _lambda(Timeout=20),
        "error", FUNCTION, "it has 20s, and the task 'mail' may take 30s",
    ),
    "a function's runtime is retired": (_lambda(Runtime="python3.9"), "error", FUNCTION, "its runtime is python3.9"),
    "a function's runtime is another": (_lambda(Runtime="python3.12"), "error", FUNCTION, "packages are built for python3.13"),
    "a function does not know its app": (lambda cloud: cloud.environment(CLOUDQ_APP=None), "error", FUNCTION, "CLOUDQ_APP is not set"),
    "a function sends to another stage": (
        lambda cloud: cloud.environment(CLOUDQ_BROKER=f"sqs://{REGION}/?prefix=shop-prod-"),
        "error", FUNCTION, "CLOUDQ_BROKER is not as planned",
    ),
    "a function has no store": (lambda cloud: cloud.environment(CLOUDQ_STORE=None), "error", FUNCTION, "CLOUDQ_STORE is not set"),
    "a function uses another timer": (
        lambda cloud: cloud.environment(CLOUDQ_TIMER=f"eventbridge://{REGION}/others?role=x"),
        "error", FUNCTION, "CLOUDQ_TIMER is not as planned",
    ),
    "a setting differs": (
        lambda cloud: cloud.environment(MODE="slow"),
        "warning", FUNCTION, "MODE is another than in tool.cloudq.environment",
    ),
    "a function may run less often than its source asks": (
        lambda cloud: cloud["lambda"].put_function_concurrency(FunctionName="shop-dev-emails", ReservedConcurrentExecutions=10),
        "error", FUNCTION, "10 of it may run at once",
    ),
    "nothing gives a function its messages": (_no_source, "error", EMAILS, "no event source mapping"),
    "another function takes them": (_another_function, "error", EMAILS, "the function intruder takes its messages, too"),
    "the event source is disabled": (lambda cloud: cloud.source(Enabled=False), "error", SOURCE, "it is disabled"),
    "a failure brings its whole batch back": (
        lambda cloud: cloud.source(FunctionResponseTypes=[]), "error", SOURCE, "it does not report failures one by one",
    ),
    "a large batch has no window": (lambda cloud: cloud.source(BatchSize=100), "error", SOURCE, "100 messages at once without a window"),
    "the event source is filtered": (
        lambda cloud: cloud.source(FilterCriteria={"Filters": [{"Pattern": "{}"}]}), "error", SOURCE, "it has a filter",
    ),
    "more may run at once than planned": (
        lambda cloud: cloud.source(ScalingConfig={"MaximumConcurrency": 25}), "warning", SOURCE, "its MaximumConcurrency is 25",
    ),
    "the table is missing": (
        lambda cloud: cloud["dynamodb"].delete_table(TableName="shop-dev"),
        "error", "table shop-dev", "it is not there",
    ),
    "the table's TTL is off": (lambda cloud: _ttl(cloud, "shop-dev", False), "warning", "table shop-dev", "its TTL is off"),
    "the table has other keys": (_keys, "error", "table shop-dev", "its keys are id S (HASH)"),
    "the schedule group is missing": (
        lambda cloud: cloud["scheduler"].delete_schedule_group(Name="shop-dev"), "error", "schedule group shop-dev", "it is not there",
    ),
    "a schedule is missing": (
        lambda cloud: cloud["scheduler"].delete_schedule(Name="every-sweep", GroupName="shop-dev"),
        "error", "schedule sweep", "it is not there",
    ),
    "a part of a schedule is missing": (
        lambda cloud: cloud["scheduler"].delete_schedule(Name="every2-mail", GroupName="shop-dev"),
        "error", "schedule mail", "a part of it is not there: cron(0 9 ? * 2 *)",
    ),
    "a schedule fires at other times": (
        lambda cloud: cloud.schedule("every-sweep", ScheduleExpression="rate(2 hours)"),
        "error", "schedule sweep", "its expression is not as declared",
    ),
    "a schedule is in another zone": (
        lambda cloud: cloud.schedule("every-mail", ScheduleExpressionTimezone="UTC"),
        "error", "schedule mail", "its time zone is not as declared",
    ),
    "a schedule sends elsewhere": (
        lambda cloud: cloud.schedule("every-sweep", Target=_target(cloud, Arn=f"arn:aws:sqs:{REGION}:{ACCOUNT}:shop-dev-old")),
        "error", "schedule sweep", "its queue is not as declared",
    ),
    "a schedule sends something else": (
        lambda cloud: cloud.schedule("every-sweep", Target=_target(cloud, Input="{}")),
        "error", "schedule sweep", "its message is not as declared",
    ),
    "a schedule is paused": (lambda cloud: cloud.schedule("every-sweep", State="DISABLED"), "warning", "schedule sweep", "it is paused"),
    "a schedule has no dead letters": (
        lambda cloud: cloud.schedule("every-sweep", Target=_target(cloud, DeadLetterConfig={})),
        "warning", "schedule sweep", "could not be sent",
    ),
    "a schedule is forgotten": (_orphan, "warning", "schedule every-forgotten", "the code declares none of its name"),
    "the timer's own dead letters have no queue": (
        _delete_queue("shop-dev-undelivered"),
        "error", "queue shop-dev-undelivered", "it is not there",
    ),
    "the timer could not send": (_send("shop-dev-undelivered"), "warning", "queue shop-dev-undelivered", "could not send 1 message"),
    "the bucket is missing": (
        lambda cloud: cloud["s3"].delete_bucket(Bucket=f"shop-dev-bodies-{ACCOUNT}"), "error", "bucket shop-dev-bodies", "it is not there",
    ),
    "the bucket deletes too early": (
        lambda cloud: _lifecycle(cloud, f"shop-dev-bodies-{ACCOUNT}", 7), "error", "bucket shop-dev-bodies", "it deletes after 7 days",
    ),
    "the bucket never deletes": (
        lambda cloud: cloud["s3"].delete_bucket_lifecycle(Bucket=f"shop-dev-bodies-{ACCOUNT}"),
        "warning", "bucket shop-dev-bodies", "nothing deletes what is in it",
    ),
}  # fmt: skip
"""What somebody changes, and the one finding of it: its level, where, and the beginning or a part of what it says."""


@pytest.mark.parametrize("fault", AWS_FAULTS)
def test_one_fault_on_aws_is_one_finding(fault: str, cloud: Cloud, runner: asyncio.Runner) -> None:
    plan, settings = planned()
    create(plan, settings, cloud)
    inject, level, where, what = AWS_FAULTS[fault]
    inject(cloud)
    (found,) = examined(runner, plan, settings)
    assert (found.level, found.where) == (level, where)
    assert what in found.what
    assert found.consequence
    assert found.fix


def test_a_queue_that_an_older_plan_left_is_found_with_what_waits_there(cloud: Cloud, runner: asyncio.Runner) -> None:
    plan, settings = planned()
    create(plan, settings, cloud)
    left = cloud["sqs"].create_queue(QueueName="shop-dev-reports")["QueueUrl"]
    cloud["sqs"].create_queue(QueueName="shop-other-reports")
    cloud["sqs"].send_message(QueueUrl=left, MessageBody="{}")
    (found,) = examined(runner, plan, settings)
    assert (found.level, found.where) == ("warning", "queue shop-dev-reports")
    assert found.what.endswith("; 1 message waits there")


@pytest.fixture
def between(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A deployment behind a proxy that may refuse."""
    create(*planned(), cloud)
    monkeypatch.setattr(observing, "client_for", client_for)
    with proxy(cloud.endpoint) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        yield it


def test_what_may_not_be_read_on_aws_is_said_and_hides_nothing_else(between: Proxy, cloud: Cloud, runner: asyncio.Runner) -> None:
    plan, settings = planned()
    denied = Answer(400, {"__type": "AccessDeniedException", "message": "no"})
    between.decide = lambda request: denied if request.action in ("DescribeTimeToLive", "GetQueueAttributes") else None
    cloud["lambda"].update_function_configuration(FunctionName="shop-dev-emails", Timeout=20)
    found = findings(plan, settings, runner.run(observing.observe(plan, settings)))
    assert [(each.level, each.where) for each in found] == [
        ("error", FUNCTION),
        ("unread", "TTL of the table"),
        ("unread", "queue"),
        ("unread", "recursive loops"),
    ]
    assert "access denied; allow sqs:GetQueueAttributes" in found[2].what
    assert "shop-dev-emails, shop-dev-emails-dlq" in found[2].consequence


def test_a_queue_of_another_region_is_not_missed_but_not_looked_at(cloud: Cloud, runner: asyncio.Runner) -> None:
    create(*planned(), cloud)
    there = f"arn:aws:sqs:us-east-1:{ACCOUNT}:shop-dev-old"
    plan, settings = planned(table={**TABLE, "queues": {**TABLE["queues"], "old": {"runs_on": "none", "existing": there}}})
    found = findings(plan, settings, runner.run(observing.observe(plan, settings)))
    assert [(each.level, each.what) for each in found if each.where == "queue"] == [
        ("unread", f"could not be read: {there}: it is not in {REGION}, and is not looked at")
    ]
    assert not [each for each in found if each.level != "unread"]


def test_nothing_is_made_of_an_aws_that_does_not_answer(between: Proxy, runner: asyncio.Runner) -> None:
    between.decide = lambda _: Answer(503, b"<ErrorResponse><Error><Code>Down</Code></Error></ErrorResponse>")
    with pytest.raises(SeamError, match="AWS could not serve it now"):
        runner.run(observing.observe(*planned()))


def test_nothing_but_reading_is_asked_of_aws_and_what_is_asked_is_listed(
    cloud: Cloud, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(*planned(), cloud)
    asked: set[str] = set()

    def watched(service: str, region: str | None, **options: Any) -> Any:
        client: Any = client_for(service, region, **options)
        request = client.request

        async def recorded(action: str, **parameters: Any) -> Any:
            asked.add(action)
            return await request(action, **parameters)

        client.request = recorded
        return client

    monkeypatch.setattr(observing, "client_for", watched)
    runner.run(observing.observe(*planned()))
    assert all(action.startswith(("Get", "List", "Describe", "Head")) for action in asked), asked
    called_otherwise = {"HeadBucket": "ListBucket", "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration"}
    needed = {called_otherwise.get(action, action) for action in asked - {"GetCallerIdentity"}}  # which everybody may
    assert needed == set(re.findall(r"(?:Get|List|Describe)[A-Z]\w+", observing.__doc__ or ""))


APP = """
from cloudq import CloudQ, every
app = CloudQ("shop")
@app.task(name="mail", queue="emails", timeout=30, schedule=every("1h"))
def mail() -> None: ...
"""


def test_the_command_says_what_it_found_and_its_exit_code_tells(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.cloudq]\napp = "shop:app"\ntarget = "aws-sam"\nstore = true\nbodies = true\naws.region = "{REGION}"\n'
    )

    def doctor(*options: str, **seams: str) -> tuple[int, str, str]:
        env = {**os.environ, **seams, "AWS_ENDPOINT_URL": cloud.endpoint}
        command = [sys.executable, "-W", "error", "-m", "cloudq", "doctor", *options]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout, done.stderr

    code, text, _ = doctor()
    assert code == 1
    assert "✗ queue shop-dev-emails: it is not there\n  every call to it fails\n  apply what `cloudq deploy` writes" in text
    app = CloudQ("shop")
    app.reference = "shop:app"
    app.task(name="mail", queue="emails", timeout=30, schedule=every("1h"))(lambda: None)
    settings = parse({"store": True, "bodies": True, "queues": {"emails": {"max_concurrency": 2}}}, "dev")
    create(plan_of(app, settings, target="aws-sam", stage="dev"), settings, cloud)
    code, text, _ = doctor("--json")
    assert (code, [each["level"] for each in json.loads(text)["findings"]]) == (0, ["unread"]), text
    cloud.schedule("every-mail", State="DISABLED")
    code, text, _ = doctor("--json")
    assert (code, json.loads(text)["findings"][0]) == (
        1,
        {
            "level": "warning",
            "where": "schedule mail",
            "what": "it is paused",
            "consequence": "it does not fire",
            "fix": "cloudq schedule resume mail",
        },
    )
    cloud["sqs"].create_queue(QueueName="my-emails")
    code, text, _ = doctor("--here", "--json", CLOUDQ_BROKER=f"sqs://{REGION}/?prefix=my-")
    assert (code, [each["where"] for each in json.loads(text)["findings"] if each["what"] == "it has no RedrivePolicy"]) == (
        1,
        ["queue my-emails"],
    )
    code, _, text = doctor("compose")
    assert (code, "there is nothing to look at" in text) == (2, True)
