"""The image that containers run: one for every queue, and what a worker in it is told. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from cloudq import __version__
from cloudq.deploy.plan import ROOM, ContainerPlan, Plan
from cloudq.deploy.providers import FARGATE_STOP
from cloudq.deploy.settings import Settings

FOLDER: Final = "container"
"""Of its templates."""
USER: Final = 10001
"""Whom it runs as: a number, so that Kubernetes can see that it is not root."""
DATA: Final = "/data"
"""A folder of that user's, for a volume."""
HEALTH: Final = "/tmp/alive"  # in the container
"""What a worker touches every two seconds while all is well."""
HEALTHY: Final = f'test -n "$(find {HEALTH} -mmin -1)"'
"""A shell's way to say whether it did so within the last minute. A Python would take longer to start than to answer."""

_EXTRAS: Final = {"aws": "aws", "gcp": "gcp", "local": "aws"}


def needed(plan: Plan) -> bool:
    """Whether anything of the plan runs in containers. Google's functions do, and the queues of compose."""
    return plan.target == "compose" or bool(plan.containers) or (plan.provider == "gcp" and bool(plan.functions))


def values(plan: Plan, settings: Settings, folder: str) -> dict[str, Any]:
    """What the templates of the image are given; ``folder`` is where they go, as seen from the project."""
    extras = f"cloudq-tasks[{_EXTRAS[plan.provider]},cli]"
    return {
        "python": settings.python,
        "version": __version__,
        "platform": _platform(plan, settings),
        "folder": folder,
        "ignored": folder if re.fullmatch(r"\w[\w./-]*", folder, re.ASCII) else None,
        "tag": settings.image or f"{plan.name}-{plan.stage}",
        "user": USER,
        "data": DATA,
        "health": HEALTH,
        "healthy": HEALTHY,
        # Beside what the project itself asks for: a service that is pushed to needs a server
        "requires": [extras, "uvicorn"] if plan.functions else [extras],
    }


def _platform(plan: Plan, settings: Settings) -> str | None:
    """What the image must be built for; ``None``: for where it is built, or for the cluster's nodes, which nobody here knows."""
    if plan.target == "gcp-terraform":
        return "linux/amd64"  # Cloud Run runs nothing else
    if not plan.target.startswith("aws"):
        return None
    return "linux/arm64" if settings.architecture == "arm64" else "linux/amd64"


def arguments(each: ContainerPlan) -> list[str]:
    """``cloudq`` with these works on one queue; what is left of the time to stop is for its end."""
    return [
        "worker",
        f"--queues={each.queue}",
        f"--concurrency={each.concurrency}",
        f"--grace={each.grace - ROOM}s",
        f"--health-file={HEALTH}",
    ]


def on_fargate(each: ContainerPlan) -> dict[str, Any]:
    """Seconds to stop, and what ``cloudq`` is told, where Fargate leaves no longer than it does."""
    stop = min(each.grace, FARGATE_STOP)
    return {"stop": stop, "command": [*arguments(replace(each, grace=stop)), "--log-format=json"]}
