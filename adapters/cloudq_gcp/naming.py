"""Which topic and which subscription a queue is: the rule that drivers, hosts and ``cloudq deploy`` share. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloudq.errors import ConfigError, QueueNotFound

ANY: Final = "*"
"""Stands for the topic's name in a subscription pattern."""

_FULL = re.compile(r"projects/(?P<project>[^/]+)/topics/(?P<name>[^/]+)")
_SUBSCRIPTION = re.compile(r"projects/[^/]+/subscriptions/(?P<name>[^/]+)")

# Google Cloud, "Create and manage topics", guidelines to name a topic or subscription: 3 to 255 characters.
_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Queue ``emails`` is topic ``prefix + emails``, and the subscription of that name, both in ``project``.

    A queue may be named by its topic in full, ``projects/p/topics/t``: no prefix is added then, and its subscription is in ``project``
    all the same. ``subscription`` is the pattern of subscription names: with ``*-worker`` topic ``emails`` has ``emails-worker``.
    """

    project: str
    prefix: str = ""
    subscription: str = ANY

    def __post_init__(self) -> None:
        if self.subscription.count(ANY) != 1:
            raise ConfigError(f"a subscription pattern holds {ANY} once, for the topic's name, as *-worker does; not {self.subscription!r}")

    def topic_of(self, queue: str) -> str:
        """The full name of the topic; raises QueueNotFound where Pub/Sub can have none of that name."""
        full = _FULL.fullmatch(queue)
        project, name = (full["project"], full["name"]) if full else (self.project, self.prefix + queue)
        return f"projects/{project}/topics/{_checked(name)}"

    def subscription_of(self, queue: str) -> str:
        """The full name of the subscription that workers pull; raises QueueNotFound as above."""
        name = self.topic_of(queue).rpartition("/")[2]
        return f"projects/{self.project}/subscriptions/{_checked(self.subscription.replace(ANY, name))}"

    def queue_of(self, subscription: str) -> str:
        """The queue that has a subscription, which is given in full: its name without prefix, or in full where it has another prefix."""
        found = _SUBSCRIPTION.fullmatch(subscription)
        before, _, after = self.subscription.partition(ANY)
        name = found["name"] if found else subscription
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            name = name[len(before) : len(name) - len(after)]
        return self.queue_of_topic(f"projects/{self.project}/topics/{name}")

    def queue_of_topic(self, topic: str) -> str:
        """The queue that a topic is, which is given in full: its name without prefix, or in full where it has another project or prefix."""
        name = topic.removeprefix(f"projects/{self.project}/topics/" + self.prefix)
        return name if name and name != topic else topic


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise QueueNotFound(
            f"Pub/Sub can have no queue named {name!r}: a name is 3 to 255 letters, digits and -._~+%, "
            "begins with a letter and not with goog"
        )
    return name
