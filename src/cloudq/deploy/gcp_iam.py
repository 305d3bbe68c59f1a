"""A plan's roles on Google Cloud: a service account for each, and the IAM roles that its drivers need, on single things. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, TypeAlias

from cloudq.deploy.plan import DEAD_LETTERS, Action, Plan, RolePlan

Kind: TypeAlias = Literal[
    "topics", "subscriptions", "dead_letter_topics", "dead_letter_subscriptions", "store", "bodies", "timer", "accounts", "services",
    "secrets", "project",
]  # fmt: skip
"""What a role is granted on."""

PUSH: Final = "pub/sub"
"""The role that Pub/Sub pushes as: no role of a plan can have this name."""

# cloudq_gcp.pubsub.PubSubBroker, .firestore.FirestoreStore, .gcs.Bodies, .timer.GoogleTimer. A service is pushed to, and consumes nothing.
# To write a body again replaces it, which takes objects.delete; legacyBucketWriter has that without objects.get.
# Cloud Scheduler's jobs have no policies of their own: who syncs them may sync all of the project's.
ROLES: Final[Mapping[tuple[Action, Kind], tuple[str, ...]]] = {
    ("send", "topics"): ("pubsub.publisher",),
    ("send", "dead_letter_topics"): ("pubsub.publisher",),
    ("consume", "subscriptions"): ("pubsub.subscriber", "pubsub.viewer"),
    ("consume", "dead_letter_subscriptions"): ("pubsub.subscriber", "pubsub.viewer"),
    ("inspect", "subscriptions"): ("pubsub.viewer",),
    ("inspect", "dead_letter_subscriptions"): ("pubsub.viewer",),
    ("use", "store"): ("datastore.user",),
    ("use", "bodies"): ("storage.objectUser",),
    ("leave", "bodies"): ("storage.legacyBucketWriter",),
    ("set", "timer"): ("cloudtasks.enqueuer", "cloudtasks.taskDeleter", "cloudtasks.viewer"),
    ("pass", "accounts"): ("iam.serviceAccountUser",),
    ("sync", "project"): ("cloudscheduler.admin",),
    ("sync", "timer"): ("cloudtasks.taskDeleter",),
}
"""What an action on a kind of thing takes, in IAM's roles without their ``roles/``."""


@dataclass(frozen=True, slots=True, order=True)
class Binding:
    """An IAM role for an account on one thing: a queue's, dead-letter queue's, role's or secret's name; empty where there is only one."""

    kind: Kind
    on: str
    account: str
    role: str


def accounts(plan: Plan) -> dict[str, str]:
    """The id of each role's service account, and of the one that Pub/Sub pushes as; no two are the same.

    An id is 6 to 30 characters (IAM, "Create service accounts"); what does not fit ends in a hash of the whole.
    """
    wanted = {each.name: f"{plan.name}-{plan.stage}-{each.purpose}" for each in plan.roles if each.queue is None}
    if plan.functions:
        wanted[PUSH] = f"{plan.name}-{plan.stage}-push"
    wanted |= {each.name: each.name for each in plan.roles if each.queue is not None}
    found: dict[str, str] = {}
    for role, name in wanted.items():
        fits = re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", name) and name not in found.values()
        digest = sha256(f"{plan.name}\0{plan.stage}\0{role}".encode()).hexdigest()[:8]
        found[role] = name if fits else f"{name[:21].rstrip('-')}-{digest}"
    return found


def email(account: str, project: str) -> str:
    """The address of a service account, by its id. A project of a domain, ``example.com:shop``, is turned around in it."""
    return f"{account}@{'.'.join(reversed(project.split(':')))}.iam.gserviceaccount.com"


def pods(plan: Plan) -> dict[str, str]:
    """The Kubernetes service account, ``namespace/name``, of each role that is one of pods: as the target ``kubernetes`` names them."""
    found = (each.name for each in plan.roles if each.queue is not None and in_pod(each.queue, plan))
    return {name: f"{plan.name}-{plan.stage}/{name}" for name in found}


def in_pod(queue: str, plan: Plan) -> bool:
    """Whether what runs a queue is a pod of Kubernetes."""
    return plan.target == "kubernetes" or plan.queue(queue).runs_on == "none"


def bindings(plan: Plan) -> tuple[Binding, ...]:
    """What all roles may do, sorted."""
    found = {each for role in plan.roles for each in _of_role(role, plan)}
    for role in plan.roles:
        if role.queue is not None and not in_pod(role.queue, plan):  # which reads Kubernetes' own Secret
            found |= {Binding("secrets", secret, role.name, "roles/secretmanager.secretAccessor") for secret in plan.secrets}
    found |= {Binding("services", each.name, PUSH, "roles/run.invoker") for each in plan.functions}
    return tuple(sorted(found))


def subscribed(plan: Plan, queue: str) -> bool:
    """Whether a queue has a subscription of ours: an existing topic only where something here runs it."""
    found = plan.queue(queue)
    return found.existing is None or any(role.queue == queue for role in plan.roles)


def _of_role(role: RolePlan, plan: Plan) -> Iterable[Binding]:
    sets = any(grant.action == "set" for grant in role.grants)
    for grant in role.grants:
        if grant.action == "pass" and not sets:
            continue  # what recurs is published by Cloud Scheduler's own account
        for thing in grant.on:
            kind, on = _thing(grant.action, thing, plan)
            action = grant.action
            if kind == "subscriptions":
                if role.purpose == "function" or not subscribed(plan, on):
                    continue
                if plan.queue(on).runs_on == "function":  # what is pushed cannot be pulled, by a person either
                    action = "inspect"
            for name in ROLES.get((action, kind), ()):
                yield Binding(kind, on, role.name, f"roles/{name}")
        if grant.action == "sync":  # who may do that cancels tasks, too, which may be waiting
            yield from (Binding("timer", "", role.name, f"roles/{name}") for name in ROLES["sync", "timer"])


def _thing(action: Action, thing: str, plan: Plan) -> tuple[Kind, str]:
    """The kind and the name of what a grant of the plan is on."""
    if action in ("send", "consume", "inspect"):  # queues, whatever their names
        sends = action == "send"
        if thing.startswith(DEAD_LETTERS):
            name = plan.queue(thing.removeprefix(DEAD_LETTERS)).dead_letters.name
            return "dead_letter_topics" if sends else "dead_letter_subscriptions", name
        return "topics" if sends else "subscriptions", thing
    if action == "sync":
        return "project", ""
    return _ALONE.get(thing, ("project", ""))


_ALONE: Final[Mapping[str, tuple[Kind, str]]] = {
    "store": ("store", ""),
    "bodies": ("bodies", ""),
    "timer": ("timer", ""),
    "scheduler": ("accounts", "scheduler"),
}
