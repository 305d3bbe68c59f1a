"""The target ``compose``: the whole app on one machine, with its queues in memory and its store in a file. Pure."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from cloudq.deploy import container
from cloudq.deploy.plan import ContainerPlan, Plan
from cloudq.deploy.settings import Settings

PORT: Final = 9324
_REGION: Final = "us-east-1"


def values(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the templates are given."""
    region = settings.aws.region or _REGION
    environment = {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_ENDPOINT_URL_SQS": f"http://queues:{PORT}",
        "AWS_REGION": region,
        "AWS_SECRET_ACCESS_KEY": "local",
        "CLOUDQ_APP": plan.reference,
        "CLOUDQ_BROKER": f"sqs://{region}/?prefix={quote(plan.prefix, safe='')}",
        **({} if plan.store is None else {"CLOUDQ_STORE": f"sqlite:///{container.DATA}/{plan.store.resource}.sqlite3"}),
        **settings.environment,
    }
    resources = [name for each in plan.queues for name in (each.resource, each.dead_letters.resource)]
    return {
        "name": f"{plan.name}-{plan.stage}",
        "build": settings.image is None,
        "environment": dict(sorted(environment.items())),
        "secrets": dict(sorted(settings.secrets.items())),
        "port": PORT,
        "queues": [f"--queue={each}" for each in sorted(set(resources))],
        "store": plan.store is not None,
        "workers": [*(_service(each, each.name, max(each.min_workers, 1)) for each in plan.containers), *_scheduler(plan)],
    }


def _scheduler(plan: Plan) -> list[dict[str, Any]]:
    """The worker that fires the schedules: one, however many others there are. It works on the first one's queue, too."""
    queues = {step.queue for each in plan.schedules for step in each.steps[:1]}
    found = next((each for each in plan.containers if each.queue in queues), None)
    return [] if found is None else [_service(found, "schedules", 1, "--schedules")]


def _service(each: ContainerPlan, name: str, replicas: int, *more: str) -> dict[str, Any]:
    return {
        "name": name,
        "queue": each.queue,
        "command": [*container.arguments(each), *more],
        "replicas": replicas,
        "grace": f"{each.grace}s",
        "memory": f"{each.memory}m",
        "cpu_shares": max(2, round(each.cpu * 1024)),
    }
