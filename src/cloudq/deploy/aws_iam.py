"""A plan's roles as IAM policies: the actions that each driver's docstring says it needs, on the ARNs of this app and stage. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloudq.deploy.plan import DEAD_LETTERS, UNDELIVERED, Action, Plan, RolePlan
from cloudq.errors import ConfigError

_SEND: Final = ("sqs:GetQueueUrl", "sqs:SendMessage")
_ATTRIBUTES: Final = "sqs:GetQueueAttributes"
# cloudq_aws.sqs.SQSBroker, .dynamodb.DynamoDBStore, .s3.Bodies, .scheduler.EventBridgeTimer, .kms; Lambda, "Execution role".
ACTIONS: Final[Mapping[tuple[Action, str], tuple[str, ...]]] = {
    ("send", "queue"): _SEND,
    ("consume", "queue"): (
        "sqs:ChangeMessageVisibility",
        "sqs:DeleteMessage",
        _ATTRIBUTES,
        "sqs:GetQueueUrl",
        "sqs:ReceiveMessage",
    ),
    ("inspect", "queue"): (_ATTRIBUTES, "sqs:GetQueueUrl"),
    ("use", "store"): (
        "dynamodb:BatchGetItem",
        "dynamodb:DeleteItem",
        "dynamodb:GetItem",
        "dynamodb:PutItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
    ),
    ("use", "bodies"): ("s3:GetObject", "s3:PutObject"),
    ("leave", "bodies"): ("s3:PutObject",),
    ("set", "timer"): ("scheduler:CreateSchedule", "scheduler:DeleteSchedule", "scheduler:UpdateSchedule"),
    ("sync", "timer"): ("scheduler:CreateSchedule", "scheduler:DeleteSchedule", "scheduler:GetSchedule", "scheduler:UpdateSchedule"),
    ("pass", "scheduler"): ("iam:PassRole",),
    ("encrypt", "key"): ("kms:Decrypt", "kms:GenerateDataKey"),
    ("write", "logs"): ("logs:CreateLogStream", "logs:PutLogEvents"),
    ("join", "network"): (
        "ec2:AssignPrivateIpAddresses",
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ec2:UnassignPrivateIpAddresses",
    ),
}
"""What a role may do with a kind of thing, in IAM's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the app is: what its ARNs begin with."""

    region: str
    account: str
    partition: str = "aws"
    kms_key: str | None = None

    def arn(self, service: str, resource: str) -> str:
        """The ARN of a resource here. Raises ConfigError where the name would stand for more than itself."""
        if re.search(r"[*?$\s]", resource):
            raise ConfigError(f"{resource!r} cannot be in a policy: it would stand for more than one thing")
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"


def policy(role: RolePlan, plan: Plan, place: Place) -> dict[str, Any]:
    """The policy of a role. Raises ConfigError for names that no policy can hold."""
    statements: list[dict[str, Any]] = []
    for grant in role.grants:
        for kind, things in _kinds(grant.on).items():
            actions = ACTIONS[grant.action, kind]
            if grant.action == "send" and plan.bodies is not None and role.purpose != "scheduler":
                actions = (_ATTRIBUTES, *actions)  # a queue's own size decides whether a body is left elsewhere
            statements.append({
                "Sid": grant.action.title() + kind.title(),
                "Effect": "Allow",
                "Action": list(actions if role.purpose != "scheduler" else [each for each in actions if each != "sqs:GetQueueUrl"]),
                "Resource": sorted({arn for thing in things for arn in _arns(thing, kind, role, plan, place)}, key=_own_name),
                **_condition(kind),
            })  # fmt: skip
    if any(grant.action == "use" and "bodies" in grant.on for grant in role.grants) and plan.bodies is not None:
        # Without it S3 calls what is gone "denied".
        statements.append({
            "Sid": "ListBodies",
            "Effect": "Allow",
            "Action": ["s3:ListBucket"],
            "Resource": [f"arn:{place.partition}:s3:::{_bucket(plan, place)}"],
        })  # fmt: skip
    if any(grant.action == "sync" for grant in role.grants):
        statements.append({"Sid": "ListSchedules", "Effect": "Allow", "Action": ["scheduler:ListSchedules"], "Resource": ["*"]})
    return {"Version": "2012-10-17", "Statement": statements}


def trust(role: RolePlan, plan: Plan, place: Place) -> dict[str, Any] | None:
    """Who may take the role on; ``None`` where that is the user's to say (producer and operator)."""
    service = {"function": "lambda", "worker": "ecs-tasks", "scheduler": "scheduler"}.get(role.purpose)
    if service is None:
        return None
    condition: dict[str, Any] = {}
    if role.purpose == "scheduler" and plan.timer is not None:
        group = place.arn("scheduler", f"schedule-group/{plan.timer.resource}")
        condition = {"Condition": {"StringEquals": {"aws:SourceAccount": place.account, "aws:SourceArn": group}}}
    allow = {"Effect": "Allow", "Principal": {"Service": f"{service}.amazonaws.com"}, "Action": "sts:AssumeRole", **condition}
    return {"Version": "2012-10-17", "Statement": [allow]}


_OTHERS: Final = frozenset({"store", "bodies", "timer", "scheduler", "key", "logs", "network"})


def _kinds(things: Iterable[str]) -> dict[str, list[str]]:
    """Things by their kind: a queue, unless it is one of the others."""
    found: dict[str, list[str]] = {}
    for thing in things:
        found.setdefault(thing if thing in _OTHERS else "queue", []).append(thing)
    return found


def _condition(kind: str) -> dict[str, Any]:
    return {"Condition": {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}} if kind == "scheduler" else {}


def _arns(thing: str, kind: str, role: RolePlan, plan: Plan, place: Place) -> list[str]:
    timer = plan.timer
    match kind:
        case "queue":
            return [_queue(thing, plan, place)]
        case "store":
            return [place.arn("dynamodb", f"table/{plan.store.resource}")] if plan.store else []
        case "bodies":
            return [f"arn:{place.partition}:s3:::{_bucket(plan, place)}/*"]
        case "timer":
            return [place.arn("scheduler", f"schedule/{timer.resource}/") + "*"] if timer else []
        case "scheduler":
            return [f"arn:{place.partition}:iam::{place.account}:role/{timer.role}"] if timer else []
        case "key":
            return [place.kms_key or place.arn("kms", "key/KEY")]
        case "logs":
            return [place.arn("logs", f"log-group:/aws/lambda/{role.name}:") + "*"]
        case _:
            return ["*"]  # network interfaces have no names before they are there


def _queue(thing: str, plan: Plan, place: Place) -> str:
    if thing == UNDELIVERED and plan.timer is not None and plan.timer.undelivered is not None:
        return place.arn("sqs", plan.timer.undelivered)
    queue = plan.queue(thing.removeprefix(DEAD_LETTERS))
    existing, resource = queue.existing, queue.resource
    if thing.startswith(DEAD_LETTERS):
        existing, resource = queue.dead_letters.existing, queue.dead_letters.resource
    return existing if existing is not None and existing.startswith("arn:") else place.arn("sqs", resource)


def _own_name(arn: str) -> tuple[str, str]:
    """The order of resources is by their names, so that it is the same at every place."""
    return arn.rpartition(":")[2], arn


def _bucket(plan: Plan, place: Place) -> str:
    """Bucket names are the whole world's: the account is in it."""
    assert plan.bodies is not None
    return f"{plan.bodies.resource}-{place.account}"
