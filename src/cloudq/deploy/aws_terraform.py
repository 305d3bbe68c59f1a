"""The target ``aws-terraform``: the plan as the data that a static HCL module reads. Pure."""

from __future__ import annotations

import json
from typing import Any

from cloudq.deploy.aws_iam import Place, policy, trust
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings

def values(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates are given."""
    return {"variables": variables(plan, settings)}


def variables(plan: Plan, settings: Settings) -> dict[str, Any]:
    """The values of the module's variables. In policies the place is left to the module, in braces, which no name can have."""
    place = Place(partition="{partition}", region="{region}", account="{account}", kms_key=settings.aws.kms_key)
    return {
        "app": plan.name,
        "stage": plan.stage,
        "reference": plan.reference,
        "prefix": plan.prefix,
        "region": settings.aws.region,
        "python": settings.python,
        "architecture": settings.architecture,
        "environment": settings.environment,
        "tags": settings.tags,
        "kms_key": settings.aws.kms_key,
        "permission_boundary": settings.aws.permission_boundary,
        "subnets": settings.aws.subnets,
        "security_groups": settings.aws.security_groups,
        "alarms_topic": settings.alarms_topic,
        "log_retention": settings.log_retention,
        "queues": {
            each.name: {
                "resource": each.resource,
                "fifo": each.fifo,
                "retention": each.retention,
                "visibility": each.visibility,
                "max_receives": each.max_receives,
                "dead_letters": each.dead_letters.name,
                "existing": each.existing,
                "alarm_age": each.alarm_age,
            }
            for each in plan.queues
        },
        "dead_letters": {
            each.dead_letters.name: {
                "resource": each.dead_letters.resource,
                "fifo": each.fifo,
                "retention": each.dead_letters.retention,
                "existing": each.dead_letters.existing,
            }
            for each in plan.queues
        },
        "functions": {
            each.name: {
                "queue": each.queue,
                "memory": each.memory,
                "timeout": each.timeout,
                "concurrency": each.concurrency,
                "batch_size": each.batch_size,
                "batch_window": each.batch_window,
                "max_concurrency": each.max_concurrency,
                "reserved_concurrency": each.reserved_concurrency,
            }
            for each in plan.functions
        },
        "roles": {
            each.name: {
                "purpose": each.purpose,
                "trust": None if (trusted := trust(each, plan, place)) is None else json.dumps(trusted, sort_keys=True),
                "statements": policy(each, plan, place)["Statement"],
            }
            for each in plan.roles
        },
        "store": None if plan.store is None else {"resource": plan.store.resource},
        "timer": None
        if plan.timer is None
        else {"resource": plan.timer.resource, "undelivered": plan.timer.undelivered, "role": plan.timer.role},
        "bodies": None if plan.bodies is None else {"resource": plan.bodies.resource, "days": plan.bodies.days},
    }
