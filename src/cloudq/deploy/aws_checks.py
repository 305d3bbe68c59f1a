"""What AWS, and above all CloudFormation, cannot hold of a plan, each with its fix; for the targets that write for AWS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

from cloudq.deploy import aws_sam
from cloudq.deploy.aws_iam import Place, policy
from cloudq.deploy.plan import Plan
from cloudq.deploy.problems import Problem
from cloudq.deploy.settings import Settings, key_path
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


def check(plan: Plan, settings: Settings) -> Iterable[Problem]:
    """Every problem; nothing where a plan has one that another check tells of, and that this cannot see beyond."""
    yield from _letters(plan)
    yield from _lengths(plan)
    try:
        yield from _policies(plan)
        if plan.target in ("aws-sam", "aws-cloudformation"):
            yield from _cloudformation(plan, settings)
    except ConfigError:  # a name that no policy can hold, which no queue can have either
        return


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
