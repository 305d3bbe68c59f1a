"""The target ``aws-terraform``: the plan as the data that a static HCL module reads. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from cloudq.deploy import aws_schedules, container
from cloudq.deploy.aws_iam import Place, policy, trust
from cloudq.deploy.plan import ContainerPlan, Plan, SchedulePlan
from cloudq.deploy.settings import Settings


def values(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates are given: ``variables``, the module's, without those that are the user's to set."""
    # In policies the place is left to the module, in braces, which no name can have.
    place = Place(partition="{partition}", region="{region}", account="{account}", kms_key=settings.aws.kms_key)
    variables = {
        "app": plan.name,
        "stage": plan.stage,
        "reference": plan.reference,
        "prefix": plan.prefix,
        "region": settings.aws.region,
        "account": settings.aws.account,
        "python": settings.python,
        "architecture": settings.architecture,
        "environment": settings.environment,
        "secrets": settings.secrets,
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
        "functions": {each.name: _without_name(each) for each in plan.functions},
        "containers": {each.name: _container(each) for each in plan.containers},
        "schedules": {name: part for each in plan.schedules for name, part in _parts(each, plan)},
        "alarms": {f"{each.kind} {each.on}": asdict(each) for each in plan.alarms},
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
        "bodies": None if plan.bodies is None else asdict(plan.bodies),
    }
    if plan.image is not None:  # else it is the user's to give: data would come before their terraform.tfvars
        variables["image"] = plan.image
    return {"variables": variables}


def _without_name(each: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(each).items() if key != "name"}


def _container(each: ContainerPlan) -> dict[str, Any]:
    """A service, and what ``cloudq`` is told in it."""
    return {
        **{key: value for key, value in _without_name(each).items() if key not in ("concurrency", "grace")},
        **container.on_fargate(each),
    }


def _parts(schedule: SchedulePlan, plan: Plan) -> list[tuple[str, dict[str, Any]]]:
    """What EventBridge Scheduler keeps of a schedule, by name. A ``request`` is what SendMessage is asked after the queue's URL."""
    request = aws_schedules.request(schedule, ordered=plan.queue(schedule.queue).fifo)
    shared = {
        "queue": schedule.queue,
        "body": aws_schedules.text(schedule.body) if request is None else None,
        "request": None if request is None else aws_schedules.text(request).removeprefix("{"),
    }
    return [
        (part.name, {"expression": part.expression, "timezone": part.timezone, "description": part.description, **shared})
        for part in schedule.parts
    ]
