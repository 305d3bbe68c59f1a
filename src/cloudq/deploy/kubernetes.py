"""The target ``kubernetes``: a Deployment for each queue of AWS or Google, with as many pods as its backlog asks for. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any
from urllib.parse import quote

from cloudq.deploy import container, gcp_terraform
from cloudq.deploy.aws_iam import partition_of
from cloudq.deploy.gcp_iam import accounts, email
from cloudq.deploy.plan import ContainerPlan, Plan, QueuePlan
from cloudq.deploy.settings import Settings


def values(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates are given."""
    seams = _aws_seams(plan, settings) if plan.provider == "aws" else _google_seams(plan, settings)
    config = dict(sorted({"CLOUDQ_APP": plan.reference or "", **seams, **settings.environment}.items()))
    return {
        "app": plan.name,
        "name": f"{plan.name}-{plan.stage}",
        "provider": plan.provider,
        "image": settings.image,
        "config": config,
        # Pods read their environment when they start: another one makes others of them
        "config_digest": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "secrets": dict(sorted(settings.secrets.items())),
        "user": container.USER,
        "healthy": ["sh", "-c", container.HEALTHY],
        "workers": [_worker(each, plan.queue(each.queue), plan, settings) for each in plan.containers],
    }


def _worker(each: ContainerPlan, queue: QueuePlan, plan: Plan, settings: Settings) -> dict[str, Any]:
    trigger = _sqs(each, queue, settings) if plan.provider == "aws" else _cloud_monitoring(each, queue, settings)
    return {
        "name": each.name,
        "queue": each.queue,
        "tasks": ", ".join(queue.tasks),
        "args": [*container.arguments(each), "--log-format=json"],
        "grace": each.grace,
        "cpu": f"{math.ceil(each.cpu * 1000)}m",
        "memory": f"{each.memory}Mi",
        "min": each.min_workers,
        "max": each.max_workers,
        # While the backlog cannot be read: able to work
        "fallback": max(each.min_workers, 1),
        "trigger": trigger,
        "role": _role(each.name, settings) if plan.provider == "aws" else None,
        "account": _account(each.name, plan, settings) if plan.provider == "gcp" else None,
    }


# ---------------------------------------------------------------------- AWS


def _aws_seams(plan: Plan, settings: Settings) -> dict[str, str]:
    region, account = _place(settings)
    partition, broker = partition_of(region), f"sqs://{region}/?prefix={quote(plan.prefix, safe='')}"
    if plan.bodies is not None:
        broker += f"&bodies=s3://{plan.bodies.resource}-{account}&bodies_days={plan.bodies.days}"
    found = {"AWS_REGION": region, "CLOUDQ_BROKER": broker}
    if plan.store is not None:
        found["CLOUDQ_STORE"] = f"dynamodb://{region}/{plan.store.resource}"
    if plan.timer is not None:
        role, undelivered = _role(plan.timer.role, settings), f"arn:{partition}:sqs:{region}:{account}:{plan.timer.undelivered}"
        found["CLOUDQ_TIMER"] = f"eventbridge://{region}/{plan.timer.resource}?role={role}&dead_letter={undelivered}"
    return found


def _place(settings: Settings) -> tuple[str, str]:
    """Region and account, which the checks ask for."""
    return settings.aws.region or "", settings.aws.account or ""


def _role(name: str, settings: Settings) -> str:
    region, account = _place(settings)
    return f"arn:{partition_of(region)}:iam::{account}:role/{name}"


def _sqs(each: ContainerPlan, queue: QueuePlan, settings: Settings) -> dict[str, Any]:
    region, account = _place(settings)
    url = queue.existing or ""
    if not url.startswith("http"):
        if url:  # an ARN, of whatever account
            region, account = url.split(":")[3:5]
        suffix = ".cn" if region.startswith("cn-") else ""
        url = f"https://sqs.{region}.amazonaws.com{suffix}/{account}/{queue.resource}"
    return {
        "type": "aws-sqs-queue",
        "metadata": {
            "queueURL": url,
            "awsRegion": region,
            "queueLength": str(each.backlog_per_worker),
            # What runs counts, too, so that its pods are still asked for
            "scaleOnInFlight": "true",
            "scaleOnDelayed": "false",
        },
    }


# ---------------------------------------------------------------------- Google Cloud


def _google_seams(plan: Plan, settings: Settings) -> dict[str, str]:
    project, region = settings.gcp.project or "", settings.gcp.region or ""
    broker = f"pubsub://{project}/?prefix={quote(plan.prefix, safe='')}"
    if plan.bodies is not None:
        broker += f"&bodies=gs://{gcp_terraform.bucket(plan, project)}&bodies_days={plan.bodies.days}"
    found = {"CLOUDQ_BROKER": broker, "GOOGLE_CLOUD_PROJECT": project}
    if plan.store is not None:
        store = gcp_terraform.variables(plan, settings)["store"]
        found["CLOUDQ_STORE"] = f"firestore://{project}/{store['collection']}?database={store['database']}"
    if plan.timer is not None:
        account = _account("scheduler", plan, settings)
        found["CLOUDQ_TIMER"] = f"cloudtasks://{project}/{region}/{plan.timer.resource}?service_account={account}"
    return found


def _account(role: str, plan: Plan, settings: Settings) -> str:
    """The address of a role's service account, as ``gcp-terraform`` names it."""
    return email(accounts(plan)[role], settings.gcp.project or "")


def _cloud_monitoring(each: ContainerPlan, queue: QueuePlan, settings: Settings) -> dict[str, Any]:
    # Its subscription has the topic's name (cloudq_gcp.naming). What is delivered and not yet acknowledged counts as undelivered.
    labels = f'monitored_resource="pubsub_subscription",subscription_id={json.dumps(queue.resource)}'
    return {
        "type": "prometheus",
        "metadata": {
            "serverAddress": f"https://monitoring.googleapis.com/v1/projects/{settings.gcp.project}/location/global/prometheus",
            "query": f"sum(pubsub_googleapis_com:subscription_num_undelivered_messages{{{labels}}})",
            "threshold": str(each.backlog_per_worker),
        },
    }
