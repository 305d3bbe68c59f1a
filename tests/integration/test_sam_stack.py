"""The template as a real stack: what calls tasks, functions and schedules find in it, and what becomes of the messages."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cloudq import CloudQ, states
from cloudq.clock import ManualClock
from cloudq.deploy.doctor import findings
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import Settings, Target, parse
from cloudq.deploy.targets import folder_of, values_of
from cloudq.loading import load_app
from cloudq.syncing import Step, changes
from cloudq_aws import observing
from cloudq_templates import render
from tests.acceptance.ledger import Ledger
from tests.cloudformation import load
from tests.event_source import EventSource
from tests.infra import tools
from tests.runtime_api import function
from tests.schedule_firing import Firing
from tests.servers import AWS_ENV, REGION, aws_client, missing, moto_cloudformation, use

ROOT = Path(__file__).parents[2]
STACK = "stack-dev"
SERVICES = ("cloudformation", "dynamodb", "iam", "lambda", "s3", "scheduler", "secretsmanager", "sqs")
SETTINGS: dict[str, Any] = {
    "store": True,
    "timer": True,
    "bodies": True,
    "environment": {"GREETING": 'hello "${AWS::Region}" {{x}} é\n'},
    "secrets": {"API_PASSWORD": "stack/password"},
    "alarms_topic": f"arn:aws:sns:{REGION}:123456789012:alarms",
    "aws": {"region": REGION, "kms_key": f"arn:aws:kms:{REGION}:123456789012:key/11111111-2222-3333-4444-555555555555"},
    "queues": {
        "mails": {"max_concurrency": 5},
        "orders.fifo": {"batch_size": 3},
        "reports": {"runs_on": "container", "min_workers": 0},
    },
}


@dataclass
class Stack:
    """The stack, as it is there."""

    plan: Plan
    settings: Settings
    app: CloudQ
    template: dict[str, Any]
    endpoint: str
    clients: dict[str, Any]
    outputs: dict[str, str]
    folder: Path

    def __getitem__(self, service: str) -> Any:
        return self.clients[service]

    def depth(self, queue: str) -> int:
        """Messages in a queue of the stack, in flight and delayed ones too."""
        counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
        url = self["sqs"].get_queue_url(QueueName=queue)["QueueUrl"]
        return sum(int(each) for each in self["sqs"].get_queue_attributes(QueueUrl=url, AttributeNames=counts)["Attributes"].values())

    def wrote(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.folder.glob("*.log"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if find_spec("awslambdaric") is None:
        missing("awslambdaric", "pip install awslambdaric")
    folder = tmp_path_factory.mktemp("stack")
    template = translated(folder)
    with moto_cloudformation(folder, tools.folder()) as endpoint, ExitStack() as closing, pytest.MonkeyPatch.context() as patch:
        use({**AWS_ENV, "AWS_ENDPOINT_URL": endpoint}, patch)
        patch.setenv("STACK_LEDGER", str(folder / "ledger"))
        clients = {name: aws_client(name, endpoint) for name in SERVICES}
        for client in clients.values():
            closing.callback(client.close)
        # What is not the stack's: the code that `sam deploy` uploads, and the secret
        clients["s3"].create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
        clients["s3"].put_object(Bucket="bucket", Key="function.zip", Body=b"PK\x05\x06" + bytes(18))
        clients["secretsmanager"].create_secret(Name="stack/password", SecretString="s3cret,")
        clients["cloudformation"].create_stack(StackName=STACK, TemplateBody=json.dumps(template), Capabilities=["CAPABILITY_NAMED_IAM"])
        (made,) = clients["cloudformation"].describe_stacks(StackName=STACK)["Stacks"]
        assert made["StackStatus"] == "CREATE_COMPLETE", made
        outputs = {each["OutputKey"]: each["OutputValue"] for each in made["Outputs"]}
        for key in ("Broker", "Store", "Timer"):
            patch.setenv(f"CLOUDQ_{key.upper()}", outputs[key])
        plan, settings = planned()
        app = load_app("tests.integration.stack_tasks:app")
        closing.callback(app.close)
        yield Stack(plan, settings, app, template, endpoint, clients, outputs, folder)


def planned(target: Target = "aws-sam", stage: str = "dev") -> tuple[Plan, Settings]:
    settings = parse(SETTINGS, stage)
    return plan_of(load_app("tests.integration.stack_tasks:app"), settings, target=target, stage=stage), settings


def translated(folder: Path) -> dict[str, Any]:
    """The rendered template, as SAM hands it to CloudFormation."""
    with pytest.MonkeyPatch.context() as patch:
        for seam in ("BROKER", "STORE", "TIMER"):
            patch.delenv(f"CLOUDQ_{seam}", raising=False)
        plan, settings = planned()
    text = render(folder_of(plan.target), values_of(plan, settings))["template.yaml"]
    source, made = folder / "template.json", folder / "translated.json"
    source.write_text(json.dumps(load(text)), "utf-8")
    tools.accepted(tools.python(), ROOT / "tests/infra/translate_sam.py", source, made)
    return _with_parameters(json.loads(made.read_text("utf-8")))


def _with_parameters(found: dict[str, Any]) -> dict[str, Any]:
    defaults = {"Image": "image", "Subnets": "subnet-1", "SecurityGroups": "sg-1"}
    for name, parameter in found.get("Parameters", {}).items():
        parameter |= {"Type": "String", "Default": defaults[name]}  # moto knows no subnet
    return found


@pytest.fixture
def functions(stack: Stack) -> Iterator[list[EventSource]]:
    """Every function of the stack, as it is configured there, fed as its event source mapping says."""
    sources: list[EventSource] = []
    with ExitStack() as running:
        for mapping in stack["lambda"].list_event_source_mappings()["EventSourceMappings"]:
            made = stack["lambda"].get_function_configuration(FunctionName=mapping["FunctionArn"].rpartition(":")[2])
            env = {**AWS_ENV, "AWS_ENDPOINT_URL": stack.endpoint, "STACK_LEDGER": str(stack.folder / "ledger")}
            env |= made["Environment"]["Variables"]
            log = stack.folder / f"{made['FunctionName']}.log"
            environment = running.enter_context(function(made["Handler"], env=env, log=log, timeout=made["Timeout"]))
            queue = mapping["EventSourceArn"].rpartition(":")[2]
            partial = mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
            sources.append(EventSource(stack["sqs"], queue, environment, batch_size=mapping["BatchSize"], partial=partial))
        yield sources


def serve(stack: Stack, functions: list[EventSource]) -> None:
    """Have the functions work until their queues are empty."""
    deadline = time.monotonic() + 240
    while any(stack.depth(each.queue) for each in functions):
        assert time.monotonic() < deadline, stack.wrote()
        for each in functions:
            each.poll(wait=0)
    assert not [failure for each in functions for failure in each.failures], stack.wrote()


def test_the_stack_has_every_resource_of_the_template(stack: Stack) -> None:
    pages = stack["cloudformation"].get_paginator("list_stack_resources").paginate(StackName=STACK)
    made = {each["LogicalResourceId"]: each["ResourceType"] for page in pages for each in page["StackResourceSummaries"]}
    assert made == {id: each["Type"] for id, each in stack.template["Resources"].items()}


def test_messages_go_through_the_stack_s_queues_and_come_to_exact_results(stack: Stack, functions: list[EventSource]) -> None:
    app, ledger = stack.app, Ledger(stack.folder / "ledger")
    doubled = [app["double"].delay(number) for number in range(20)]
    flaky = app["flaky"].delay(1)
    hopeless = [app["hopeless"].delay(number) for number in (1, 2)]
    large = app["large"].delay("x" * 1_100_000)  # over what SQS takes: its body goes to the stack's bucket
    secret = app["secret"].delay()
    ordered = [app["follow"].options(ordering_key=group).delay(group, number) for number in range(4) for group in ("a", "b")]
    assert stack["s3"].list_objects_v2(Bucket="stack-dev-bodies-123456789012")["KeyCount"] == 1
    serve(stack, functions)

    assert [each.get(timeout=60) for each in doubled] == [2 * number for number in range(20)]
    assert flaky.get(timeout=60) == 1
    assert ledger.counts("flaky") == {"1": 3}
    assert large.get(timeout=60) == 1_100_000
    assert secret.get(timeout=60) == "s3cret," + SETTINGS["environment"]["GREETING"]
    assert [each.get(timeout=60) for each in ordered] == [number for number in range(4) for _ in range(2)]
    for group in ("a", "b"):
        assert [int(each.id) for each in ledger.entries(f"follow-{group}")] == [0, 1, 2, 3]
    assert ledger.counts("double") == {str(number): 1 for number in range(20)} | {str(100 + number): 2 for number in range(4)}
    assert [each.state for each in hopeless] == [states.FAILURE] * 2
    ledger.close()

    url = stack["sqs"].get_queue_url(QueueName="stack-dev-mails-dlq")["QueueUrl"]
    letters = stack["sqs"].receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert sorted(json.loads(each["Body"])["id"] for each in letters) == sorted(each.id for each in hopeless)
    assert stack.depth("stack-dev-orders-dlq.fifo") == stack.depth("stack-dev-undelivered") == 0


def test_schedules_of_the_stack_fire_into_its_queues(stack: Stack, functions: list[EventSource]) -> None:
    # A Thursday to come: ticks of the past would count as missed, and those of the future run at once
    ledger, clock = Ledger(stack.folder / "ledger"), ManualClock(datetime(2100, 1, 28, 20, tzinfo=UTC).timestamp())
    before = ledger.counts("double")
    firing = Firing(stack["scheduler"], stack["sqs"], clock, STACK)
    assert len(firing.read()) == 5  # a day of the month or a weekday are two
    firing.pass_time(86_400)
    assert len(firing.fired) == 3
    serve(stack, functions)
    assert ledger.counts("double") - before == {"7": 1, "9": 1, "101": 1}
    assert ledger.counts("follow-tick") == {"1": 1}
    firing.pass_time(4 * 86_400)  # over a Monday that is the first: both parts of a schedule fire, and it runs once
    serve(stack, functions)
    assert (ledger.counts("double") - before)["8"] == 1
    assert (ledger.counts("double") - before)["16"] == 1
    ledger.close()


def test_what_the_template_says_of_schedules_is_what_cloudq_itself_would_write(stack: Stack) -> None:
    app, timer = stack.app, stack.app.timer
    assert timer is not None
    declared = [each.schedule(app) for each in app.schedules.values()]
    assert {each.step for each in changes(declared, app.io.run(timer.schedules()))} == {Step.KEEP}

    def read() -> dict[str, Any]:
        pages = stack["scheduler"].get_paginator("list_schedules").paginate(GroupName=STACK)
        names = [each["Name"] for page in pages for each in page["Schedules"]]
        found = {name: stack["scheduler"].get_schedule(GroupName=STACK, Name=name) for name in names}
        dated = ("ResponseMetadata", "CreationDate", "LastModificationDate")
        return {name: {key: value for key, value in each.items() if key not in dated} for name, each in found.items()}

    before = read()
    for each in declared:
        app.io.run(timer.put_schedule(each))
    after = read()
    assert before.keys() == after.keys()
    for name in before:
        for target in (before[name]["Target"], after[name]["Target"]):
            if target["Arn"].endswith("sendMessage"):
                target["Input"] = json.loads(target["Input"])
                target["Input"]["QueueUrl"] = urlsplit(target["Input"]["QueueUrl"]).path  # the stack's URLs are AWS's, and others moto's
        assert after[name] == before[name]


def test_a_long_delay_waits_in_the_stack_s_schedule_group(stack: Stack) -> None:
    result = stack.app["double"].apply_async((1,), countdown=7200)
    firing = Firing(stack["scheduler"], stack["sqs"], ManualClock(time.time()), STACK)
    once = [each for each in firing.read() if each["ScheduleExpression"].startswith("at(")]
    assert [json.loads(each["Target"]["Input"])["id"] for each in once] == [result.id]
    assert once[0]["Target"]["RoleArn"] == "arn:aws:iam::123456789012:role/stack-dev-scheduler"
    result.revoke()


def test_the_doctor_finds_nothing_wrong_with_the_stack(stack: Stack) -> None:
    found = findings(stack.plan, stack.settings, asyncio.run(observing.observe(stack.plan, stack.settings)))
    assert [each for each in found if each.level != "unread"] == []
    assert {each.where for each in found} <= {"recursive loops"}, found  # which moto does not keep


def test_a_deleted_stack_leaves_messages_results_and_bodies_behind(stack: Stack) -> None:
    plan, settings = planned("aws-cloudformation", "old")
    template = _with_parameters(load(render(folder_of(plan.target), values_of(plan, settings))["template.yaml"]))
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Lambda::Function":  # as `aws cloudformation package` does
            resource["Properties"]["Code"] = {"S3Bucket": "bucket", "S3Key": "function.zip"}
    made = stack["cloudformation"]
    made.create_stack(StackName="stack-old", TemplateBody=json.dumps(template), Capabilities=["CAPABILITY_NAMED_IAM"])
    letters = stack["sqs"].get_queue_url(QueueName="stack-old-mails-dlq")["QueueUrl"]
    stack["sqs"].send_message(QueueUrl=letters, MessageBody="evidence")
    before = stack["sqs"].list_queues(QueueNamePrefix="stack-old-")["QueueUrls"]
    made.delete_stack(StackName="stack-old")
    assert (len(before), stack["sqs"].list_queues(QueueNamePrefix="stack-old-")["QueueUrls"]) == (7, before)
    assert stack.depth("stack-old-mails-dlq") == 1
    assert "stack-old" in stack["dynamodb"].list_tables()["TableNames"]
    assert stack["s3"].head_bucket(Bucket="stack-old-bodies-123456789012")
    assert not [each for each in stack["lambda"].list_functions()["Functions"] if each["FunctionName"].startswith("stack-old")]
