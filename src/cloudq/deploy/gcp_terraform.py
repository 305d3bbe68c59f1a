"""The target ``gcp-terraform``: the plan as the data that a static HCL module reads. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from hashlib import sha256
from typing import Any, Final, get_args

from cloudq.deploy.gcp_iam import Kind, accounts, bindings, email, pods, subscribed
from cloudq.deploy.plan import Plan
from cloudq.deploy.settings import Settings

CPUS: Final = ((1, 4096), (2, 8192), (4, 16_384), (6, 24_576), (8, 32_768))
"""Whole vCPUs of Cloud Run, and the MB that each may have at most ("Configure CPU limits")."""
MEMORY_OF_CPUS: Final = {4: 2048, 6: 4096, 8: 4096}
"""MB that an instance with so many vCPUs must have ("Configure CPU limits")."""
LEAST_MEMORY: Final = 512
"""MB of an instance in the second generation's environment, which worker pools always have ("Configure memory limits")."""


def values(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates are given."""
    return {"variables": variables(plan, settings)}


def variables(plan: Plan, settings: Settings) -> dict[str, Any]:
    """The values of the module's variables."""
    gcp, may = settings.gcp, bindings(plan)
    return {
        "app": plan.name,
        "stage": plan.stage,
        "reference": plan.reference,
        "project": gcp.project,
        "region": gcp.region,
        "prefix": plan.prefix,
        "image": settings.image,
        "environment": settings.environment,
        "secrets": settings.secrets,
        "labels": settings.tags,
        "kms_key": gcp.kms_key,
        "network": gcp.network,
        "subnetwork": gcp.subnetwork,
        "notification_channel": settings.alarms_topic,
        "queues": {
            each.name: {
                "resource": each.resource,
                "ordered": each.fifo,
                "retention": each.retention,
                "ack_deadline": each.visibility,
                "max_deliveries": each.max_receives,
                "dead_letters": each.dead_letters.name,
                "existing": each.existing,
                "subscribed": subscribed(plan, each.name),
            }
            for each in plan.queues
        },
        "dead_letters": {
            each.dead_letters.name: {
                "resource": each.dead_letters.resource,
                "retention": each.dead_letters.retention,
                "existing": each.dead_letters.existing,
            }
            for each in plan.queues
        },
        "services": {
            each.name: {
                "queue": each.queue,
                "memory": each.memory,
                "cpu": cpu(0.0, each.memory),
                "timeout": each.timeout,
                "concurrency": each.concurrency,
                "max_instances": each.max_concurrency,
            }
            for each in plan.functions
        },
        "pools": {
            each.name: {
                "queue": each.queue,
                "memory": each.memory,
                "cpu": cpu(each.cpu, each.memory),
                "concurrency": each.concurrency,
                "workers": each.min_workers,
                "max_workers": each.max_workers,
                "backlog_per_worker": each.backlog_per_worker,
            }
            for each in plan.containers
        },
        "accounts": accounts(plan),
        "pods": pods(plan),
        "grants": {
            kind: [{"on": each.on, "account": each.account, "role": each.role} for each in may if each.kind == kind]
            for kind in get_args(Kind)
        },
        "schedules": {
            part.name: {
                "queue": each.queue,
                "expression": part.expression,
                "timezone": part.timezone,
                "description": part.description,
                "body": each.body,
            }
            for each in plan.schedules
            for part in each.parts
        },
        "store": None if plan.store is None else {"database": f"{plan.store.resource}-store", "collection": "cloudq"},
        "timer": None if plan.timer is None else {"resource": plan.timer.resource},
        "bodies": None if plan.bodies is None else {"bucket": bucket(plan, gcp.project or ""), "days": plan.bodies.days},
        "alarms": {f"{each.kind} {each.on}": asdict(each) for each in plan.alarms},
    }


def policies(plan: Plan, settings: Settings) -> dict[str, Any]:
    """For each role its service account, and the IAM roles that it has on single resources, by their whole names."""
    made, project = variables(plan, settings), settings.gcp.project or ""
    here = f"projects/{project}"
    place = f"{here}/locations/{settings.gcp.region}"
    letters = {each.dead_letters.name: each.dead_letters for each in plan.queues}
    found: dict[str, Any] = {name: {"account": email(account, project), "bindings": []} for name, account in accounts(plan).items()}
    for each in bindings(plan):
        match each.kind:
            case "topics":
                on = plan.queue(each.on).existing or f"{here}/topics/{plan.queue(each.on).resource}"
            case "subscriptions":
                on = f"{here}/subscriptions/{plan.queue(each.on).resource}"
            case "dead_letter_topics":
                on = letters[each.on].existing or f"{here}/topics/{letters[each.on].resource}"
            case "dead_letter_subscriptions":
                on = f"{here}/subscriptions/{letters[each.on].resource}"
            case "store":
                on = f"{here}/databases/{made['store']['database']}"
            case "bodies":
                on = f"gs://{made['bodies']['bucket']}"
            case "timer":
                on = f"{place}/queues/{made['timer']['resource']}"
            case "accounts":
                on = f"{here}/serviceAccounts/{found[each.on]['account']}"
            case "services":
                on = f"{place}/services/{each.on}"
            case "secrets":
                on = each.on if each.on.startswith("projects/") else f"{here}/secrets/{each.on}"
            case _:  # the project
                on = here
        found[each.account]["bindings"].append({"role": each.role, "on": on})
    return found


def cpu(asked: float, memory: int) -> int:
    """The fewest whole vCPUs that are no fewer than ``asked`` and may have ``memory`` MB; the most there are where none may."""
    return next((count for count, most in CPUS if count >= math.ceil(asked) and memory <= most), CPUS[-1][0])


def bucket(plan: Plan, project: str) -> str:
    """The name of the bucket for large bodies. Names are the whole world's: the project is in it, or in its hash."""
    assert plan.bodies is not None
    name = f"{re.sub('[^a-z0-9-]', '-', project)}-{plan.bodies.resource}"
    # Cloud Storage, "About buckets": 63 characters
    return name if len(name) <= 63 else f"{plan.bodies.resource[:52].rstrip('-')}-{sha256(name.encode()).hexdigest()[:10]}"
