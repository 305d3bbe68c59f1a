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
LETTERS: Final = "dead letters "
"""Before the names of queues of dead letters, which Terraform alone has to be told of: a stack keeps them by itself."""
_KINDS: Final = {"aws": ("aws_sqs_queue", "aws_sqs_queue_policy"), "gcp": ("google_pubsub_topic", "google_pubsub_subscription")}
"""What a queue consists of in Terraform."""


def made(plan: Plan) -> tuple[str, ...]:
    """What the files of a plan make and must not lose in silence: queues by their whole names, dead letters, or a cluster's workers."""
    if plan.target == "kubernetes":
        return tuple(each.name for each in plan.containers)
    if plan.provider == "local":
        return ()
    found = [each.resource for each in plan.queues if each.existing is None]
    if plan.target.endswith("terraform"):
        found += sorted({LETTERS + each.dead_letters.name for each in plan.queues if each.dead_letters.existing is None})
    return tuple(found)


def check(before: Iterable[str], plan: Plan, *, drop: bool = False) -> Iterable[Problem]:
    """What goes, of all that was there ``before``: errors unless it is to be dropped; where nothing is lost it is a warning."""
    here = {each.resource: each.name for each in plan.queues}
    for name in sorted(set(before).difference(made(plan))):
        if plan.target == "kubernetes":
            words = ("kubectl", "delete", WORKER, "--namespace", f"{plan.name}-{plan.stage}", "--selector", workers(plan, f"={name}"))
            yield Problem(f"worker {name}", "it goes, and kubectl apply leaves it running", shlex.join(words), "warning")
            continue
        if name.startswith(LETTERS):
            what = "they stay: before you apply, have Terraform forget them, or it refuses all of it"
            yield Problem(name, what, _forget(_KINDS[plan.provider], "dead_letters", name.removeprefix(LETTERS)), "warning")
            continue
        dry = "by a deploy under the name and the prefix that it has"
        if name.startswith(plan.prefix):
            dry = f"by a deploy with {name.removeprefix(plan.prefix)!r} in the app's queues=[…]"
        fix = f"let it run dry first, {dry}" + ("" if drop else ", or let go of it by --drop")
        if plan.target in ("aws-sam", "aws-cloudformation"):  # there queues outlive the stack
            if name in here:
                continue
            what = "it leaves the stack, and nobody works off what waits there"
        elif name in here:
            kinds: tuple[str, ...] = _KINDS[plan.provider]
            if plan.provider == "gcp" and subscribed(plan, here[name]):
                kinds = kinds[:1]
            what = "it was made here and is there already now, by existing: Terraform destroys it, with what waits there"
            fix = f"have Terraform forget it first, by {_forget(kinds, 'queue', here[name])}" + ("" if drop else ", and then say --drop")
        else:
            what = "it goes, with what waits there"
        yield Problem(f"queue {name}", what, fix, "warning" if drop else "error")


def _forget(kinds: Iterable[str], resource: str, key: str) -> str:
    """The command by which Terraform leaves something as it is, and knows of it no more."""
    return shlex.join(("terraform", "state", "rm", *(f'{kind}.{resource}["{key}"]' for kind in kinds)))


def workers(plan: Plan, which: str) -> str:
    """The labels of an app's workers on Kubernetes, those whose name is ``which``."""
    own = f"app.kubernetes.io/name={plan.name},app.kubernetes.io/component=worker,app.kubernetes.io/managed-by=cloudq"
    return f"{own},app.kubernetes.io/instance{which}"
