"""What was there by the last plan and is not by this one: queues, with what waits in them, and workers that Kubernetes goes on running."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

from cloudq.deploy.gcp_iam import subscribed
from cloudq.deploy.plan import Plan
from cloudq.deploy.problems import Problem

WORKER: Final = "scaledobject,deployment,poddisruptionbudget,serviceaccount"
"""What a worker consists of on Kubernetes."""


def made(plan: Plan) -> tuple[str, ...]:
    """What the files of a plan make and must not lose in silence: queues by their whole names, or a cluster's workers."""
    if plan.target == "kubernetes":
        return tuple(each.name for each in plan.containers)
    return () if plan.provider == "local" else tuple(each.resource for each in plan.queues if each.existing is None)


def check(before: Iterable[str], plan: Plan, *, drop: bool = False) -> Iterable[Problem]:
    """What goes, of all that was there ``before``: errors unless it is to be dropped; a worker loses nothing, and is a warning."""
    here = {each.resource: each.name for each in plan.queues}
    for name in sorted(set(before).difference(made(plan))):
        if plan.target == "kubernetes":
            words = ("kubectl", "delete", WORKER, "--namespace", f"{plan.name}-{plan.stage}", "--selector", workers(plan, f"={name}"))
            yield Problem(f"worker {name}", "it goes, and kubectl apply leaves it running", shlex.join(words), "warning")
            continue
        own = name.removeprefix(plan.prefix)
        fix = f"let it run dry first, by a deploy with {own!r} in the app's queues=[…], or let go of it by --drop"
        if plan.target in ("aws-sam", "aws-cloudformation"):  # there queues outlive the stack
            if name in here:
                continue
            what = "it leaves the stack, and nobody works off what waits there"
        elif name in here:
            kinds = ["aws_sqs_queue", "aws_sqs_queue_policy"] if plan.provider == "aws" else ["google_pubsub_topic"]
            if plan.provider == "gcp" and not subscribed(plan, here[name]):
                kinds.append("google_pubsub_subscription")
            addresses = shlex.join(f'{kind}.queue["{here[name]}"]' for kind in kinds)
            what = "it was made here and is there already now, by existing: Terraform destroys it, with what waits there"
            fix = f"have Terraform forget it first, by terraform state rm {addresses}, and then say --drop"
        else:
            what = "it goes, with what waits there"
        yield Problem(f"queue {name}", what, fix, "warning" if drop else "error")


def workers(plan: Plan, which: str) -> str:
    """The labels of an app's workers on Kubernetes, those whose name is ``which``."""
    own = f"app.kubernetes.io/name={plan.name},app.kubernetes.io/component=worker,app.kubernetes.io/managed-by=cloudq"
    return f"{own},app.kubernetes.io/instance{which}"
