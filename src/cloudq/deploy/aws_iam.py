"""A plan's roles as IAM policies: the actions that each driver's docstring says it needs, on the ARNs of this app and stage. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloudq.deploy.plan import DEAD_LETTERS, UNDELIVERED, Action, Grant, Plan, Purpose, RolePlan
from cloudq.errors import ConfigError

_SEND: Final = ("sqs:GetQueueUrl", "sqs:SendMessage")
_ATTRIBUTES: Final = "sqs:GetQueueAttributes"
# cloudq_aws.sqs.SQSBroker, .dynamodb.DynamoDBStore, .s3.Bodies, .scheduler.EventBridgeTimer, .kms, .secrets; Lambda, "Execution role";
# ECS, "Task execution IAM role".
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
    ("decrypt", "key"): ("kms:Decrypt",),
    ("read", "secrets"): ("secretsmanager:GetSecretValue",),
    ("pull", "image"): ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
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
_NEVER: Final[Mapping[Purpose, frozenset[str]]] = {
    "producer": frozenset({"dynamodb:Query", "dynamodb:UpdateItem"}),
    "function": frozenset({"dynamodb:Query"}),
    "operator": frozenset({"dynamodb:UpdateItem"}),
    "scheduler": frozenset({"sqs:GetQueueUrl"}),
}
"""What of that roles of a purpose do not do: who runs no task completes no chord, only workers and persons list documents, and
Scheduler is given URLs. ``tests/integration/test_iam_recorded.py`` compares what is left with what is done."""


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


def partition_of(region: str) -> str:
    """The partition of AWS that a region is in."""
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def policy(role: RolePlan, plan: Plan, place: Place) -> dict[str, Any]:
    """The policy of a role. Raises ConfigError for names that no policy can hold."""
    statements: list[dict[str, Any]] = []
    for grant in role.grants:
        for kind, things in _kinds(grant).items():
            actions = [each for each in ACTIONS[grant.action, kind] if each not in _NEVER.get(role.purpose, ())]
            if grant.action == "send" and (plan.bodies or plan.timer) and role.purpose != "scheduler":
                actions.insert(0, _ATTRIBUTES)  # what a queue takes decides whether a body is left elsewhere, and what may wait for it
            resources = sorted({arn for thing in things for arn in _arns(thing, kind, role, plan, place)}, key=_own_name)
            if not resources:  # an image elsewhere than in ECR
                continue
            statements.append({
                "Sid": grant.action.title() + kind.title(),
                "Effect": "Allow",
                "Action": actions,
                "Resource": resources,
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
    if any(each["Sid"] == "PullImage" for each in statements):
        statements.append({"Sid": "LogInToRegistry", "Effect": "Allow", "Action": ["ecr:GetAuthorizationToken"], "Resource": ["*"]})
    if any(grant.action == "sync" for grant in role.grants):
        statements.append({"Sid": "ListSchedules", "Effect": "Allow", "Action": ["scheduler:ListSchedules"], "Resource": ["*"]})
    return {"Version": "2012-10-17", "Statement": statements}


def trust(role: RolePlan, plan: Plan, place: Place) -> dict[str, Any] | None:
    """Who may take the role on; ``None`` where that is the user's to say: producer and operator, and pods, by their cluster's provider."""
    service = {"function": "lambda", "worker": "ecs-tasks", "execution": "ecs-tasks", "scheduler": "scheduler"}.get(role.purpose)
    if service is None or (role.purpose == "worker" and plan.target == "kubernetes"):
        return None
    condition: dict[str, Any] = {}
    if service == "ecs-tasks":  # nobody else's tasks (AWS ECS, "Task IAM role": confused deputy)
        condition = {"Condition": {"StringEquals": {"aws:SourceAccount": place.account}}}
    if role.purpose == "scheduler" and plan.timer is not None:
        group = place.arn("scheduler", f"schedule-group/{plan.timer.resource}")
        condition = {"Condition": {"StringEquals": {"aws:SourceAccount": place.account, "aws:SourceArn": group}}}
    allow = {"Effect": "Allow", "Principal": {"Service": f"{service}.amazonaws.com"}, "Action": "sts:AssumeRole", **condition}
    return {"Version": "2012-10-17", "Statement": [allow]}


_OF_QUEUES: Final = frozenset({"send", "consume", "inspect"})


def _kinds(grant: Grant) -> dict[str, list[str]]:
    """A grant's things by their kind. A queue may have the name of another kind."""
    if grant.action in _OF_QUEUES:
        return {"queue": list(grant.on)}
    return {thing: [thing] for thing in grant.on}


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
            groups = [f"/aws/lambda/{role.name}"] if role.purpose == "function" else [f"/ecs/{each.name}" for each in plan.containers]
            return [place.arn("logs", f"log-group:{each}:") + "*" for each in groups]
        case "secrets":
            return [secret(each, place) for each in plan.secrets]
        case "image":
            return _repository(plan.image, place)
        case _:
            return ["*"]  # network interfaces have no names before they are there


def _queue(thing: str, plan: Plan, place: Place) -> str:
    if thing == UNDELIVERED and plan.timer is not None and plan.timer.undelivered is not None:
        return place.arn("sqs", plan.timer.undelivered)
    name = thing.removeprefix(DEAD_LETTERS)
    queue = next((each for each in plan.queues if each.name == name), None)
    if queue is None:
        raise ConfigError(f"the plan has no queue {name!r}")
    existing, resource = queue.existing, queue.resource
    if thing.startswith(DEAD_LETTERS):
        existing, resource = queue.dead_letters.existing, queue.dead_letters.resource
    return existing if existing is not None and existing.startswith("arn:") else place.arn("sqs", resource)


def secret(name: str, place: Place) -> str:
    """The ARN of a secret by its name or ARN. Secrets Manager ends each with six characters of its own, which no name tells."""
    return name if name.startswith("arn:") else place.arn("secretsmanager", f"secret:{name}") + "-??????"


# AWS ECR, "Amazon ECR registries": ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY, then :TAG or @DIGEST.
_ECR: Final = re.compile(r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<name>[a-z0-9._/-]+)([:@].*)?")


def _repository(image: str | None, place: Place) -> list[str]:
    """The repository of an image: none outside of ECR, any of the account while no image is named."""
    if image is None:
        return [place.arn("ecr", "repository/") + "*"]
    found = _ECR.fullmatch(image)
    return [f"arn:{place.partition}:ecr:{found['region']}:{found['account']}:repository/{found['name']}"] if found else []


def _own_name(arn: str) -> tuple[str, str]:
    """The order of resources is by their names, so that it is the same at every place."""
    return arn.rpartition(":")[2], arn


def _bucket(plan: Plan, place: Place) -> str:
    """Bucket names are the whole world's: the account is in it."""
    assert plan.bodies is not None
    return f"{plan.bodies.resource}-{place.account}"
