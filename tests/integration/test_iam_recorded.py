"""Least privilege as it is: what each role really does against a local AWS is what its policy grants, no less and no more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import pytest

from cloudq import chord, group
from cloudq.clock import ManualClock
from cloudq.deploy.aws_iam import Place, policy
from cloudq.deploy.aws_sam import seams
from cloudq.deploy.plan import Plan, plan_of
from cloudq.deploy.settings import parse
from cloudq.errors import BrokerError
from cloudq.testing.suite import is_busy
from cloudq.worker import Worker, WorkerOptions
from tests.event_source import EventSource
from tests.iam import ACCOUNT, Call, Gateway, Policy, allows, arn, gateway, grants, without
from tests.integration import recorded_tasks as tasks
from tests.integration.recorded_tasks import HOURS, LARGE, QUEUES, TEXT, call, is_bare, to
from tests.integration.recording import APP, fresh, run, use_store_and_timer
from tests.runtime_api import function
from tests.schedule_firing import Firing
from tests.servers import AWS_ENV, REGION, aws_client, missing, moto, use
from tests.waiting import until

KEY = arn("kms", "key/11111111-2222-3333-4444-555555555555")
PLACE = Place(region=REGION, account=ACCOUNT, kms_key=KEY)
BARE: dict[str, Any] = {
    "store": False,
    "timer": False,
    "bodies": False,
    "aws": {"region": REGION},
    "queues": {"mails": {}, "orders.fifo": {}, "reports": {"runs_on": "container"}},
}
FULL: dict[str, Any] = {
    **BARE,
    "store": True,
    "timer": True,
    "bodies": True,
    "secrets": {"PASSWORD": "recorded/password"},
    "aws": {"region": REGION, "kms_key": KEY, "subnets": ["subnet-1"], "security_groups": ["sg-1"]},
}
FUNCTIONS = ("mails", "orders.fifo")
BY_LAMBDA = frozenset({
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
})  # fmt: skip
"""What Lambda itself does in a function's role, and no local server: it writes logs, and joins networks."""


@dataclass
class Site:
    """The plan's things at moto, and the gateway before them."""

    plan: Plan
    gate: Gateway
    clients: Mapping[str, Any]
    patch: pytest.MonkeyPatch
    folder: Path
    closing: ExitStack

    def __getitem__(self, service: str) -> Any:
        """A client that needs no role, for what nobody of the app does."""
        return self.clients[service]

    def become(self, role: str) -> None:
        """Have this process take on a role, with an app that knows nothing yet of the queues."""
        use({**AWS_ENV, **self.gate.env(role)}, self.patch)
        fresh(self.patch, environment(self.plan))

    def client(self, service: str, role: str) -> Any:
        """A client that has taken on a role, for what AWS does in it."""
        made = boto3.client(service, endpoint_url=self.gate.endpoint, aws_access_key_id=role, aws_secret_access_key="test")
        self.closing.callback(made.close)
        return made

    def role(self, queue: str) -> str:
        """Of what runs a queue."""
        return next(each.name for each in self.plan.roles if each.queue == queue)

    def url(self, queue: str) -> str:
        return str(self["sqs"].get_queue_url(QueueName=f"{self.plan.prefix}{queue}")["QueueUrl"])

    def depth(self, queue: str) -> int:
        counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]
        found = self["sqs"].get_queue_attributes(QueueUrl=self.url(queue), AttributeNames=counts)["Attributes"]
        return sum(int(each) for each in found.values())

    def receive(self, queue: str, **options: Any) -> list[Any]:
        found = self["sqs"].receive_message(QueueUrl=self.url(queue), MaxNumberOfMessages=10, **options)
        return list(found.get("Messages", ()))

    def empty(self, queue: str) -> None:
        while found := self.receive(queue):
            entries = [{"Id": str(at), "ReceiptHandle": each["ReceiptHandle"]} for at, each in enumerate(found)]
            self["sqs"].delete_message_batch(QueueUrl=self.url(queue), Entries=entries)

    def lose(self, id: str) -> None:
        """The body of a call is gone."""
        for each in self["s3"].list_objects_v2(Bucket=self.bucket)["Contents"]:
            if id.encode() in self["s3"].get_object(Bucket=self.bucket, Key=each["Key"])["Body"].read():
                self["s3"].delete_object(Bucket=self.bucket, Key=each["Key"])

    @property
    def bucket(self) -> str:
        assert self.plan.bodies is not None
        return f"{self.plan.bodies.resource}-{ACCOUNT}"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An app with everything, whose every role has done all that it does."""
    if find_spec("awslambdaric") is None:
        missing("awslambdaric", "pip install awslambdaric")
    with acted(FULL, (producer, functions, worker, scheduler, operator), tmp_path_factory.mktemp("full")) as site:
        yield site


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An app with queues only; functions and workers differ in nothing that is left."""
    queues = {"mails": {"runs_on": "none"}, "orders.fifo": {"runs_on": "none"}, "reports": {"runs_on": "container"}}
    with acted({**BARE, "queues": queues}, (producer, worker, operator), tmp_path_factory.mktemp("bare")) as site:
        yield site


@contextmanager
def acted(settings: Mapping[str, Any], roles: Sequence[Callable[[Site], None]], folder: Path) -> Iterator[Site]:
    with moto(folder) as server, ExitStack() as closing:
        patch = closing.enter_context(pytest.MonkeyPatch.context())
        fresh(patch, {})
        closing.callback(lambda: tasks.app.close())
        plan = plan_of(tasks.app, parse(dict(settings), "dev"), target="aws-sam", stage="dev")
        policies = {each.name: policy(each, plan, PLACE) for each in plan.roles}
        gate = closing.enter_context(gateway(server.endpoint, policies, settings["aws"].get("kms_key")))
        clients = {name: aws_client(name, server.endpoint) for name in ("sqs", "dynamodb", "s3", "scheduler", "secretsmanager")}
        for each in clients.values():
            closing.callback(each.close)
        site = Site(plan, gate, clients, patch, folder, closing)
        make(site)
        for role in roles:
            try:
                role(site)
            except Exception as error:
                error.add_note(f"refused so far: {sorted(gate.refused)}")
                raise
        yield site


def environment(plan: Plan) -> dict[str, str]:
    """What the template gives the app, with its references replaced; with short leases, so that they are renewed."""
    known = {"AWS::Region": REGION, "AWS::AccountId": ACCOUNT}
    if plan.store is not None:
        known["Store"] = plan.store.resource
    if plan.timer is not None:
        known |= {
            "ScheduleGroup": plan.timer.resource,
            "SchedulerRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/{plan.timer.role}",
            "UndeliveredQueue.Arn": arn("sqs", str(plan.timer.undelivered)),
        }
    found = seams(plan)
    for name, value in known.items():
        found = {key: text.replace(f"${{{name}}}", value) for key, text in found.items()}
    assert "$" not in "".join(found.values())
    return {**found, "CLOUDQ_BROKER": f"{found['CLOUDQ_BROKER']}&lease=2&wait=1"}


def make(site: Site) -> None:
    """What a deployment makes of the plan, as far as roles reach it."""
    plan, sqs = site.plan, site["sqs"]
    for queue in plan.queues:
        fifo = {"FifoQueue": "true"} if queue.fifo else {}
        sqs.create_queue(QueueName=queue.dead_letters.resource, Attributes=fifo)
        redrive = {"deadLetterTargetArn": arn("sqs", queue.dead_letters.resource), "maxReceiveCount": queue.max_receives}
        sqs.create_queue(QueueName=queue.resource, Attributes={**fifo, "RedrivePolicy": json.dumps(redrive)})
    if plan.store is not None:
        site["dynamodb"].create_table(
            TableName=plan.store.resource,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        )
    if plan.bodies is not None:
        site["s3"].create_bucket(Bucket=site.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    if plan.timer is not None:
        sqs.create_queue(QueueName=plan.timer.undelivered)
        site["scheduler"].create_schedule_group(Name=plan.timer.resource)
    if plan.secrets:
        site["secretsmanager"].create_secret(Name="recorded/password", SecretString="s3cret,")


# ---------------------------------------------------------------------- what roles do


def producer(site: Site) -> None:
    """An application that calls tasks, and waits for their results; then all that hosts and persons are to meet with."""
    site.become("producer")
    tasks.use_everything("mails")
    tasks.app.send_many([to("mails", "nothing", str(number)) for number in range(20)])
    call("mails", "nothing", countdown=1)
    if not is_bare():
        for queue in QUEUES:
            call(queue, "nothing", countdown=HOURS)
        call("reports", "nothing", TEXT, countdown=HOURS)
        several = group(to("mails", "nothing") for _ in range(2)).apply_async()
        assert not several.ready()
        several.revoke()
    for queue in QUEUES:
        site.empty(queue)
    if not is_bare():
        call("mails", "nothing", LARGE)
        until(lambda: not site.receive("mails", VisibilityTimeout=0), "SQS itself to make it a dead letter")
    for queue in QUEUES:
        call(queue, "everything", group="a")
        call(queue, "again", group="b")
        for text in ("", TEXT) if is_bare() else ("", TEXT, LARGE):
            call(queue, "fail", text, group="c")
        if not is_bare():
            ordered = {"ordering_key": "d"} if queue.endswith(".fifo") else {}
            chord([to(queue, "nothing", group="d") for _ in range(3)], tasks.app[f"sum {queue}"].s().set(**ordered)).apply_async()
            lost = call(queue, "nothing", f"lost {LARGE}", group="lost")
            site.lose(lost.id)


def functions(site: Site) -> None:
    """Lambda, and the functions that it runs in their roles."""
    for queue in FUNCTIONS:
        role, log = site.role(queue), site.folder / f"{queue}.log"
        secrets = json.dumps(FULL["secrets"])
        env = {**AWS_ENV, **site.gate.env(role), **environment(site.plan), "CLOUDQ_APP": APP, "CLOUDQ_SECRETS": secrets}
        with function("cloudq_aws.entry.handler", env=env, log=log, timeout=30) as running:
            source = EventSource(site.client("sqs", role), f"{site.plan.prefix}{queue}", running)
            deadline = time.monotonic() + 240
            while site.depth(queue):
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                source.poll(wait=0)
            for again in range(3 if queue == "mails" else 0):
                running.timeout = 3.0
                for number in range(3):  # while one takes all the time there is, the others cannot begin, and are given back
                    sleep = {"v": 1, "id": f"sleep-{again}-{number}", "task": queue, "args": ["sleep", "3"]}
                    site["sqs"].send_message(QueueUrl=source.url, MessageBody=json.dumps(sleep))
                source.poll(wait=0)
                site.empty(queue)
                if not source.failures or again == 2 or not is_busy():
                    break
                source.failures.clear()  # the machine was held up, and the time was over
        assert not source.failures, log.read_text()[-3000:]


def worker(site: Site) -> None:
    """A container with ``cloudq worker``."""
    sleep = {"v": 1, "id": "sleep", "task": "reports", "args": ["sleep", "2"]}
    site["sqs"].send_message(QueueUrl=site.url("reports"), MessageBody=json.dumps(sleep))
    site.become(site.role("reports"))
    running = Worker(tasks.app, WorkerOptions(queues={"reports": 1}, wait=1.0))
    running.start()
    try:
        until(lambda: site.depth("reports") == 0, "an empty queue")
    finally:
        running.stop()
        running.join(60)


def scheduler(site: Site) -> None:
    """EventBridge Scheduler in its role: it sends what is due, and what a queue refuses to the queue for that."""
    assert site.plan.timer is not None
    site["sqs"].set_queue_attributes(QueueUrl=site.url("reports"), Attributes={"MaximumMessageSize": "1024"})

    class Sends:
        """Looks as the test does, and sends in the role."""

        send_message = site.client("sqs", "scheduler").send_message

        def __getattr__(self, name: str) -> Any:
            return getattr(site["sqs"], name)

    Firing(site["scheduler"], Sends(), ManualClock(time.time()), site.plan.timer.resource).pass_time(2 * HOURS)
    assert site.depth("undelivered") == 1


def operator(site: Site) -> None:
    """A person with the command line."""
    for queue in site.plan.queues:
        if queue.runs_on == "none":  # a program in another language gave up on a call
            letter = {"v": 1, "id": f"given up by {queue.name}", "task": queue.name, "args": ["nothing"]}
            fifo = {"MessageGroupId": "f", "MessageDeduplicationId": "f"} if queue.fifo else {}
            url = site.url(queue.dead_letters.name)
            site["sqs"].send_message(QueueUrl=url, MessageBody=json.dumps(letter | ({"group": "f"} if fifo else {})), **fifo)
    site.become("operator")
    letter = next(each["id"] for each in run("dlq list reports --json")["queues"][0]["letters"] if each["error"])
    run("queue list")
    run(f"dlq show reports {letter}")
    if not is_bare():
        use_store_and_timer(letter)
    for queue in QUEUES:
        for command in ("dlq list", "dlq redrive --all --yes", "queue stats", "queue peek", "queue purge --yes"):
            run(f"{command} {queue}")
    if site.plan.timer is not None:
        run("queue peek undelivered")
        run("queue purge --yes undelivered")


# ---------------------------------------------------------------------- what is granted


def needless(policies: Mapping[str, Policy], calls: Iterable[Call]) -> list[Call]:
    """Each single grant without which all that was done would have been allowed just the same; its resource may be a pattern."""
    done = [*calls]
    return [
        Call(role, action, resource)
        for role, whole in policies.items()
        for action, resource in sorted(set(grants(whole)))
        if all(allows(without(whole, action, resource), each) for each in done if (each.role, each.action) == (role, action))
    ]


def by_aws(site: Site) -> set[Call]:
    """What is granted for what no local server does."""
    lambdas = {site.role(each.queue) for each in site.plan.functions}
    return {
        Call(role, action, resource)
        for role, whole in site.gate.policies.items()
        for action, resource in grants(whole)
        if role == "execution" or (role in lambdas and action in BY_LAMBDA)  # the former is all ECS's
    }


def check(site: Site) -> None:
    """What was done is what is granted."""
    assert site.gate.unknown == set()
    assert site.gate.refused == set(), "too narrow"
    assert set(needless(site.gate.policies, site.gate.calls)) == by_aws(site), "too wide, or an exception that is none"


def test_each_role_of_an_app_with_everything_is_allowed_what_it_does_and_nothing_else(full: Site) -> None:
    check(full)


def test_what_is_granted_beyond_what_is_done_is_found(full: Site) -> None:
    queue = arn("sqs", f"{full.plan.prefix}mails")
    whole = full.gate.policies["producer"]
    for action, resource in (("sqs:PurgeQueue", queue), ("sqs:ReceiveMessage", queue), ("sqs:SendMessage", "*")):
        more = {"Effect": "Allow", "Action": [action], "Resource": [resource]}
        wider = {"producer": {**whole, "Statement": [*whole["Statement"], more]}}
        assert Call("producer", action, resource) in needless(wider, full.gate.calls)


def test_what_is_taken_from_a_role_is_refused_to_it(full: Site) -> None:
    queue, gate = arn("sqs", f"{full.plan.prefix}mails"), full.gate
    gate.policies["less"] = without(gate.policies["producer"], "sqs:SendMessage", queue)
    try:
        full.become("less")
        call("reports", "nothing")
        with pytest.raises(BrokerError, match="access denied; allow sqs:SendMessage"):
            call("mails", "nothing")
        assert {each for each in gate.refused if each.role == "less"} == {Call("less", "sqs:SendMessage", queue)}
    finally:
        del gate.policies["less"]
        for noted in (gate.calls, gate.refused):
            noted -= {each for each in noted if each.role == "less"}


def test_each_role_of_an_app_with_queues_only_is_allowed_what_it_does_and_nothing_else(bare: Site) -> None:
    check(bare)


def test_what_waits_in_a_timer_may_be_fitted_to_its_queue_where_there_is_no_bucket(tmp_path: Path) -> None:
    def producer(site: Site) -> None:
        site.become("producer")
        call("mails", "nothing", TEXT, countdown=HOURS)

    with acted({**BARE, "timer": True}, (producer,), tmp_path) as site:
        assert site.gate.refused == set()
        assert Call("producer", "sqs:GetQueueAttributes", arn("sqs", f"{site.plan.prefix}mails")) in site.gate.calls
