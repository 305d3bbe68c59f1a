"""What AWS, and above all CloudFormation, cannot hold of a plan or its settings, each problem with its fix."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from cloudq.deploy import aws_sam
from cloudq.deploy.aws_iam import Place, policy
from cloudq.deploy.plan import Plan
from cloudq.deploy.problems import Problem
from cloudq.deploy.providers import FARGATE_STOP
from cloudq.deploy.settings import Settings, key_path
from cloudq.durations import text
from cloudq.errors import ConfigError

# AWS IAM, "IAM and AWS STS quotas": characters, without white space, of a managed policy, and of a role's inline policies together.
_MANAGED: Final = 6_144
_INLINE: Final = 10_240
_DESCRIPTION: Final = 512
"""Characters of a schedule's description (EventBridge Scheduler, CreateSchedule)."""
_BUCKET: Final = 63
"""Characters of a bucket's name (AWS S3, "Bucket naming rules")."""
_TEMPLATE: Final = 1_000_000
"""Bytes of a template (CloudFormation, "Understand CloudFormation quotas"); what is over 51,200 goes by way of S3, as the tools do it."""
_RESOLVED: Final = "{{resolve:"
_LONGEST: Final = Place(region="ap-southeast-2", account="0" * 12, partition="aws-us-gov", kms_key=None)
"""Whose names are as long as any."""
_ARNS: Final = (
    ("kms_key", "a key", r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+", "arn:aws:kms:eu-west-1:123456789012:key/…"),
    ("permission_boundary", "a policy", r"arn:aws[a-z-]*:iam::(\d{12}|aws):policy/[\w+=,.@/-]+", "arn:aws:iam::123456789012:policy/…"),
)
_REGION: Final = r"[a-z]{2}(-[a-z]+)+-\d"
# AWS CloudWatch Logs, PutRetentionPolicy.
_LOG_DAYS: Final = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653)


def account(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """What settings say of an account, beside what each target for AWS asks: Kubernetes works on its queues, too."""
    yield from _named(settings)
    yield from _regions(plan, settings)


def check(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """Every problem; nothing where a plan has one that another check tells of, and that this cannot see beyond."""
    yield from _containers(plan, settings)
    yield from _letters(plan)
    yield from _lengths(plan)
    try:
        yield from _policies(plan)
        if plan.target in ("aws-sam", "aws-cloudformation"):
            yield from _cloudformation(plan, settings)
    except ConfigError:  # a name that no policy can hold, which no queue can have either
        return


def _named(settings: Settings) -> Iterable[Problem]:
    aws = settings.aws
    for key, what, pattern, example in _ARNS:
        value = getattr(aws, key)
        if value is not None and not re.fullmatch(pattern, value):
            yield Problem(key_path("aws", key), f"this is no ARN of {what}", f"write one like {example}")
    for key, names, begins in (("subnets", aws.subnets, "subnet-"), ("security_groups", aws.security_groups, "sg-")):
        for name in names:
            if not re.fullmatch(f"{begins}[A-Za-z0-9-]+", name):
                yield Problem(key_path("aws", key), f"{name!r} is no id of one", f"write its id: {begins}0123456789abcdef0")
    if settings.alarms_topic is not None and not re.fullmatch(
        r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[\w-]+(\.fifo)?", settings.alarms_topic
    ):
        yield Problem(
            key_path("alarms_topic"), "this is no ARN of an SNS topic", "write one like arn:aws:sns:eu-west-1:123456789012:alarms"
        )
    if aws.region is not None and not re.fullmatch(_REGION, aws.region):
        yield Problem(key_path("aws", "region"), "no region has this name", 'write one like "eu-west-1"')
    if aws.account is not None and not re.fullmatch(r"[0-9]{12}", aws.account):
        yield Problem(key_path("aws", "account"), "this is no account's number", "write its 12 digits")
    if bool(aws.subnets) != bool(aws.security_groups):
        missing = "security_groups" if aws.subnets else "subnets"
        yield Problem(key_path("aws", missing), "subnets and security_groups go together, and it is not set", f"write {missing} = […]")
    if settings.log_retention not in _LOG_DAYS:
        near = min(_LOG_DAYS, key=lambda days: abs(days - settings.log_retention))
        yield Problem(key_path("log_retention"), f"CloudWatch does not keep logs for {settings.log_retention} days", f"write {near}")
    if len(settings.tags) > 45:  # 50, of which CloudFormation and cloudq add some
        yield Problem(key_path("tags"), f"these are {len(settings.tags)} tags, and 45 is the most", "leave some out")
    for name, value in settings.tags.items():
        if not re.fullmatch(r"(?!aws:)[\w .:/=+@-]{1,128}", name, re.IGNORECASE) or not re.fullmatch(r"[\w .:/=+@-]{0,256}", value):
            what = (
                "AWS takes no such tag: a key has 1 to 128 and a value up to 256 letters, digits, spaces and _.:/=+-@, and no aws: in front"
            )
            yield Problem(key_path("tags", name), what, "change it")


def _regions(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """What is elsewhere is refused by its service, or not found, once it is deployed and not before."""
    named = {
        key_path("alarms_topic"): settings.alarms_topic,
        key_path("aws", "kms_key"): settings.aws.kms_key,
        **{key_path("secrets", name): secret for name, secret in settings.secrets.items()},
        **{key_path("queues", each.name, "existing"): each.existing for each in plan.queues},
        **{key_path("queues", each.name, "existing_dead_letter"): each.dead_letters.existing for each in plan.queues},
    }
    region = settings.aws.region
    if region is None or not re.fullmatch(_REGION, region):
        return
    for where, name in named.items():
        if name is not None and (found := re.match(rf"arn:aws[a-z-]*:[a-z]+:({_REGION}):", name)) and found[1] != region:
            yield Problem(where, f"it is in {found[1]}, and the app in {region}", f"name one in {region}, or deploy in {found[1]}")


# AWS ECS, "Task definition parameters for Fargate": vCPUs to MB, from, to and step.
_FARGATE: Final[Mapping[float, tuple[int, int, int]]] = {
    0.25: (512, 2048, 512),
    0.5: (1024, 4096, 1024),
    1.0: (2048, 8192, 1024),
    2.0: (4096, 16_384, 1024),
    4.0: (8192, 30_720, 1024),
    8.0: (16_384, 61_440, 4096),
    16.0: (32_768, 122_880, 8192),
}


def _containers(plan: Plan, settings: Settings) -> Iterable[Problem]:
    if plan.target == "aws-terraform" and plan.containers and not settings.aws.subnets:
        what = "containers on Fargate need a network, and none is named"
        yield Problem(key_path("aws", "subnets"), what, 'write subnets = ["subnet-…"], and security_groups')
    for each in plan.containers:
        where, sizes = key_path("queues", each.queue), _FARGATE.get(each.cpu)
        if sizes is None:
            near = min(_FARGATE, key=lambda cpu: abs(cpu - each.cpu))
            yield Problem(f"{where}.cpu", f"Fargate has no {each.cpu:g} vCPUs", f"set {near:g}")
        elif not sizes[0] <= each.memory <= sizes[1] or (each.memory % sizes[2] and not (each.cpu == 0.25 and each.memory == 1024)):
            what = f"Fargate has no {each.memory:,} MB with {each.cpu:g} vCPUs"
            yield Problem(f"{where}.memory", what, f"set {sizes[0]:,} to {sizes[1]:,} in steps of {sizes[2]:,}".replace(",", ""))
        if each.grace > FARGATE_STOP:
            what = (
                f"Fargate ends a container {text(FARGATE_STOP)} after it is told to stop, and tasks that take longer begin again elsewhere"
            )
            fix = "make them safe to repeat, or cut the work into tasks that follow each other"
            yield Problem(f"queue {each.queue}", what, fix, "warning")


def _letters(plan: Plan) -> Iterable[Problem]:
    for queue in plan.queues:
        letters = queue.dead_letters
        if letters.existing is not None and not re.fullmatch(
            rf"arn:aws[a-z-]*:sqs:[a-z0-9-]+:\d{{12}}:{re.escape(letters.resource)}", letters.existing
        ):
            where = key_path("queues", queue.name, "existing_dead_letter")
            what = f"cloudq looks for a queue named {letters.resource!r}, and this is no ARN of it"
            yield Problem(where, what, f"write arn:aws:sqs:REGION:ACCOUNT:{letters.resource}, or name another dead_letter=")


def _lengths(plan: Plan) -> Iterable[Problem]:
    for schedule in plan.schedules:
        longest = max((len(part.description) for part in schedule.parts), default=0)
        if longest > _DESCRIPTION:
            what = f"its name, queue and trigger have {longest} characters together, and EventBridge Scheduler keeps {_DESCRIPTION}"
            yield Problem(f"schedule {schedule.name}", what, "give it a shorter name or trigger, or declare several schedules")
    if plan.bodies is not None and (length := len(plan.bodies.resource) + 13) > _BUCKET:  # the account is added
        what = f"the bucket for large messages would have a name of {length} characters, and {_BUCKET} is the most"
        yield Problem(key_path("name"), what, f"use one that is {length - _BUCKET} shorter, or a shorter stage")


def _policies(plan: Plan) -> Iterable[Problem]:
    for role in plan.roles:
        offered = role.purpose in ("producer", "operator")
        size, most = len(json.dumps(policy(role, plan, _LONGEST), separators=(",", ":"))), _MANAGED if offered else _INLINE
        if size > most:
            what = f"its policy has {size:,} characters, and IAM takes {most:,}"
            fix = "make it two apps, or shorten the queues' names and prefix" if offered else f"set sends_to in {key_path('queues')}"
            yield Problem(f"role {role.name}", what, fix)


def _cloudformation(plan: Plan, settings: Settings) -> Iterable[Problem]:
    for name, value in settings.environment.items():
        if _RESOLVED in value:
            what = f"CloudFormation would replace what begins with {_RESOLVED}, and nothing can stop it"
            yield Problem(
                key_path("environment", name), what, f"name a secret under {key_path('secrets')}, or have the app build the value"
            )
    for schedule in plan.schedules:
        if any(_RESOLVED in text for text in (schedule.name, schedule.body, schedule.group or "", schedule.tenant or "")):
            what = f"CloudFormation would replace what begins with {_RESOLVED} in its name, its group or its tenant"
            yield Problem(f"schedule {schedule.name}", what, "name it otherwise")
    count = aws_sam.resources(plan)
    if count > aws_sam.RESOURCES:
        what = f"it takes {count} resources, and a CloudFormation stack has {aws_sam.RESOURCES} at most"
        yield Problem("the app", what, "make it two apps, or use the target aws-terraform")
    elif (size := aws_sam.size(plan, settings)) > _TEMPLATE:
        what = f"the template would have about {size:,} bytes, and CloudFormation takes {_TEMPLATE:,}"
        yield Problem("the app", what, "use fewer tags, which each resource has, or the target aws-terraform")
