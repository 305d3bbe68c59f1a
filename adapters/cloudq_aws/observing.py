"""Reads what a plan's queues, functions, table, schedules and bucket are at AWS. It changes nothing, and receives no message.

Needs, on the things of the plan: sqs:GetQueueUrl and GetQueueAttributes, and ListQueues on ``*``; lambda:GetFunctionConfiguration,
GetFunctionConcurrency, GetFunctionRecursionConfig, and ListEventSourceMappings on ``*``; dynamodb:DescribeTable and DescribeTimeToLive;
scheduler:GetScheduleGroup, GetSchedule, and ListSchedules on ``*``; s3:ListBucket and GetLifecycleConfiguration. What is not allowed is
told of, and the rest is read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Container, Mapping
from typing import Any, Final, cast

from cloudq.deploy.observed import Bucket, Function, Looking, Missing, Observed, Queue, Schedule, Source, Store, Timer
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings
from cloudq.errors import CloudQError, SeamError
from cloudq.schedules.naming import EVENTBRIDGE_PREFIX
from cloudq_aws.client import Requests, client_for
from cloudq_aws.errors import DENIED, Refusal, Service, mapped_to
from cloudq_aws.undelivered import SCHEDULED_TIME, SEND_MESSAGE

__all__ = ["observe"]

_ANSWER: Final = 15.0
"""Seconds that a request with its SDK retries may take."""
_SILENCE: Final = 5.0
"""Seconds without an answer after which the SDK tries again."""
_AT_ONCE: Final = 10
"""Requests under way: the account's quotas are those of its work, too."""
_PAGES: Final = 100
"""Of a listing at most, each with a hundred."""

_GONE: Final = frozenset({"NoSuchLifecycleConfiguration", "NonExistentQueue", "QueueDoesNotExist", "ResourceNotFoundException"})


async def observe(plan: Plan, settings: Settings) -> Observed:
    """What is there of the plan, in the settings' region, else the SDK's own. Raises ConfigError without region or credentials, and
    SeamError where AWS cannot be reached at all."""
    reader = _Reader(settings.aws.region)
    try:
        return await _observe(plan, reader)
    finally:
        await reader.close()


async def _observe(plan: Plan, reader: _Reader) -> Observed:
    account: str = (await reader.ask("sts", "GetCallerIdentity"))["Account"]
    look, timer = Looking(), plan.timer
    elsewhere = {each.resource: each.existing for each in plan.queues if each.existing}
    elsewhere |= {each.dead_letters.resource: each.dead_letters.existing for each in plan.queues if each.dead_letters.existing}
    names = [name for each in plan.queues for name in (each.resource, each.dead_letters.resource)]
    if timer is not None and timer.undelivered is not None:
        names.append(timer.undelivered)

    async def queue(name: str) -> tuple[Queue, str]:
        return await reader.queue(name, elsewhere.get(name))

    async def function(name: str) -> Function:
        return await reader.function(name, look)

    async def table(name: str) -> Store:
        return await reader.table(name, look)

    async def bucket(name: str) -> Bucket:
        return await reader.bucket(f"{name}-{account}")

    group = timer.resource if timer is not None else None
    queues, functions, stores, timers, (schedules, listed), buckets = await asyncio.gather(
        look.each("queue", names, queue),
        look.each("function", [each.name for each in plan.functions], function),
        look.each("table", [plan.store.resource] if plan.store else [], table),
        look.each("schedule group", [group] if group else [], reader.group),
        look.one("schedules", group or "", reader.schedules(group)),
        look.each("bucket", [plan.bodies.resource] if plan.bodies else [], bucket),
    )
    arns = {name: found[1] for name, found in queues.items() if found is not None}

    async def sources(name: str) -> tuple[Source, ...]:
        return await reader.sources(arns[name])

    consumed = [each.resource for each in plan.queues if each.runs_on != "none" and each.resource in arns]
    fed, (beside, _) = await asyncio.gather(
        look.each("event sources", consumed, sources),
        look.one("other queues of the prefix", plan.prefix, reader.beside(plan.prefix, names)),
    )
    return Observed(
        place=f"{await reader.region()}, account {account}",
        queues={name: found and found[0] for name, found in queues.items()},
        topics={},
        functions=functions,
        sources={name: found or () for name, found in fed.items()},
        stores=stores,
        timers=timers,
        schedules={} if listed and schedules is None else schedules,
        buckets=buckets,
        beside=beside or {},
        unread=tuple(look.unread),
    )


class _Reader:
    """Requests to several services of one region, some at once."""

    def __init__(self, region: str | None) -> None:
        self._region = region
        self._clients: dict[str, Requests] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, service: str, action: str, **parameters: Any) -> Mapping[str, Any]:
        """One answer. Raises Missing where there is no such thing, and SeamError where it cannot be had."""
        about = next((str(value) for value in parameters.values()), "this account")
        async with self._turns:
            with mapped_to(_service(service), action, f"{action} of {about}"):
                return await self._client(service).request(action, within=_ANSWER, **parameters)

    async def region(self) -> str:
        return await self._client("sts").region()

    async def close(self) -> None:
        await asyncio.gather(*(each.close() for each in self._clients.values()))

    def _client(self, service: str) -> Requests:
        if service not in self._clients:
            self._clients[service] = client_for(service, self._region, read_timeout=_SILENCE)
        return self._clients[service]

    async def queue(self, name: str, existing: str | None) -> tuple[Queue, str]:
        """A queue, and its ARN."""
        url, owner = existing, dict[str, str]()
        if existing is not None and existing.startswith("arn:"):
            _, _, _, region, account, _ = existing.split(":", 5)
            if region != (here := await self.region()):
                raise SeamError(f"{existing}: it is not in {here}, and is not looked at")
            url, owner = None, {"QueueOwnerAWSAccountId": account}
        if url is None:
            url = str((await self.ask("sqs", "GetQueueUrl", QueueName=name, **owner))["QueueUrl"])
        said: Mapping[str, str] = (await self.ask("sqs", "GetQueueAttributes", QueueUrl=url, AttributeNames=["All"]))["Attributes"]
        redrive: Mapping[str, Any] = json.loads(said.get("RedrivePolicy") or "{}")
        key = said.get("KmsMasterKeyId") or None
        return Queue(
            visibility=int(said["VisibilityTimeout"]),
            retention=int(said["MessageRetentionPeriod"]),
            fifo=said.get("FifoQueue") == "true",
            encrypted=key is not None or said.get("SqsManagedSseEnabled") == "true",
            key=key,
            dead_letters=_plain(redrive["deadLetterTargetArn"]) if "deadLetterTargetArn" in redrive else None,
            max_receives=int(redrive["maxReceiveCount"]) if "maxReceiveCount" in redrive else None,
            waiting=int(said["ApproximateNumberOfMessages"]),
        ), said["QueueArn"]

    async def beside(self, prefix: str, known: Container[str]) -> Mapping[str, int]:
        """Queues of the prefix that are not known, with how many messages wait there; of those that are gone by then, nothing."""
        if not prefix:  # then it would be the account's
            return {}
        listed = await self._pages("sqs", "ListQueues", "QueueUrls", ("NextToken", "NextToken"), QueueNamePrefix=prefix, MaxResults=1_000)
        urls = {name: str(url) for url in listed if (name := _plain(str(url))) not in known}

        async def waiting(url: str) -> int:
            try:
                said = await self.ask("sqs", "GetQueueAttributes", QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
            except Missing:
                return 0
            return int(said["Attributes"]["ApproximateNumberOfMessages"])

        return dict(zip(urls, await asyncio.gather(*map(waiting, urls.values())), strict=True))

    async def function(self, name: str, look: Looking) -> Function:
        said = await self.ask("lambda", "GetFunctionConfiguration", FunctionName=name)
        (reserved, _), (loops, _) = await asyncio.gather(
            look.one("reserved concurrency", name, self.ask("lambda", "GetFunctionConcurrency", FunctionName=name)),
            look.one("recursive loops", name, self.ask("lambda", "GetFunctionRecursionConfig", FunctionName=name)),
        )
        return Function(
            state=said.get("State", "Active"),
            timeout=int(said["Timeout"]),
            runtime=said.get("Runtime"),
            architecture=(said.get("Architectures") or ["x86_64"])[0],
            environment=_part(_part(said, "Environment"), "Variables"),
            reserved=reserved.get("ReservedConcurrentExecutions") if reserved else None,
            loops=loops.get("RecursiveLoop") if loops else None,
        )

    async def sources(self, arn: str) -> tuple[Source, ...]:
        found = await self._pages("lambda", "ListEventSourceMappings", "EventSourceMappings", ("Marker", "NextMarker"), EventSourceArn=arn)
        return tuple(
            Source(
                function=str(each["FunctionArn"]).split(":function:")[-1].split(":")[0],
                state=each.get("State", ""),
                batch_size=int(each.get("BatchSize", 10)),
                window=int(each.get("MaximumBatchingWindowInSeconds") or 0),
                partial="ReportBatchItemFailures" in (each.get("FunctionResponseTypes") or ()),
                max_concurrency=_part(each, "ScalingConfig").get("MaximumConcurrency"),
                filtered=bool(_part(each, "FilterCriteria").get("Filters")),
            )
            for each in found
        )

    async def table(self, name: str, look: Looking) -> Store:
        table = (await self.ask("dynamodb", "DescribeTable", TableName=name))["Table"]
        types = {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]}
        ttl, _ = await look.one("TTL of the table", name, self.ask("dynamodb", "DescribeTimeToLive", TableName=name))
        return Store(
            state=table["TableStatus"],
            keys={each["KeyType"]: f"{each['AttributeName']} {types.get(each['AttributeName'])}" for each in table["KeySchema"]},
            ttl=None if ttl is None else _ttl(ttl["TimeToLiveDescription"]),
        )

    async def group(self, name: str) -> Timer:
        return Timer(state=(await self.ask("scheduler", "GetScheduleGroup", Name=name))["State"], attempts=None)

    async def schedules(self, group: str | None) -> Mapping[str, Schedule]:
        """The recurring ones of the group; all of them are the app's."""
        if group is None:
            return {}
        tokens = ("NextToken", "NextToken")
        try:
            listed = await self._pages("scheduler", "ListSchedules", "Schedules", tokens, GroupName=group, NamePrefix=EVENTBRIDGE_PREFIX)
        except Missing:  # the group, which is looked for by itself
            return {}
        read = await asyncio.gather(*(self.ask("scheduler", "GetSchedule", Name=each["Name"], GroupName=group) for each in listed))
        return {each["Name"]: _schedule(each) for each in read}

    async def bucket(self, name: str) -> Bucket:
        await self.ask("s3", "HeadBucket", Bucket=name)
        try:
            rules: list[Mapping[str, Any]] = (await self.ask("s3", "GetBucketLifecycleConfiguration", Bucket=name))["Rules"]
        except Missing:
            rules = []
        days = [int(rule["Expiration"]["Days"]) for rule in rules if rule.get("Status") == "Enabled" and _of_all(rule)]
        return Bucket(days=min(days, default=None))

    async def _pages(self, service: str, action: str, what: str, token: tuple[str, str], **parameters: Any) -> list[Any]:
        """What a listing has, whole."""
        found: list[Any] = []
        given, answered = token
        more: dict[str, str] = {}
        for _ in range(_PAGES):
            page = await self.ask(service, action, **parameters, **more)
            found += page.get(what, ())
            if not page.get(answered):
                break
            more = {given: page[answered]}
        return found


def _schedule(said: Mapping[str, Any]) -> Schedule:
    target: Mapping[str, Any] = said["Target"]
    text = str(target.get("Input", "")).replace(SCHEDULED_TIME, "<slot>")
    request: dict[str, Any] = {"MessageBody": text, "QueueUrl": target["Arn"]}
    if str(target["Arn"]).endswith(SEND_MESSAGE):
        try:
            request = cast("dict[str, Any]", json.loads(text))
        except ValueError:
            request = {}
    group = request.get("MessageGroupId") or _part(target, "SqsParameters").get("MessageGroupId")
    letters = _part(target, "DeadLetterConfig").get("Arn")
    return Schedule(
        expression=said["ScheduleExpression"],
        timezone=said.get("ScheduleExpressionTimezone") or "UTC",
        enabled=said.get("State") != "DISABLED",
        queue=_plain(str(request.get("QueueUrl", ""))),
        body=str(request.get("MessageBody", "")),
        group=group,
        undelivered=_plain(letters) if letters else None,
    )


def _ttl(said: Mapping[str, str]) -> str:
    return said.get("AttributeName", "") if said["TimeToLiveStatus"] in ("ENABLED", "ENABLING") else ""


def _of_all(rule: Mapping[str, Any]) -> bool:
    """Whether a lifecycle rule deletes any object after days."""
    return "Days" in _part(rule, "Expiration") and not (rule.get("Prefix") or any(_part(rule, "Filter").values()))


def _part(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of an answer, empty where there is none."""
    found: Mapping[str, Any] = said.get(name) or {}
    return found


def _plain(place: str) -> str:
    """The name at the end of an ARN or a URL."""
    return place.replace("/", ":").rpartition(":")[2]


def _service(service: str) -> Service:
    def refused(refusal: Refusal) -> CloudQError | None:
        if refusal.code in _GONE or (refusal.action, refusal.code) == ("HeadBucket", "404"):  # a HEAD has no words
            return Missing(f"{refusal.tried}: there is none")
        if refusal.code in DENIED or refusal.code == "403":
            return SeamError(f"{refusal.tried}: access denied; allow {service}:{_PERMISSIONS.get(refusal.action, refusal.action)}")
        return None

    return Service(name=service, url="sqs://eu-west-1/", error=SeamError, unavailable=SeamError, refused=refused)


_PERMISSIONS: Final = {"HeadBucket": "ListBucket", "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration"}
"""Of actions that have another name in IAM."""
