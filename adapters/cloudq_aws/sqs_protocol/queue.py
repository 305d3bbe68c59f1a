"""What SQS keeps of a queue beside its messages: attributes and their checks, receipt handles, deduplication ids."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloudq.broker import Delivery
from cloudq_aws.sqs_protocol.message import MIB, Envelope
from cloudq_aws.sqs_protocol.request import Refused, invalid

HOLD: Final = 43_200
"""Seconds of visibility at most (AWS ChangeMessageVisibility)."""
DELAY: Final = 900
WAIT: Final = 20
REMEMBERED: Final = 300.0
"""Seconds that a deduplication id, or a receive attempt's id, is remembered (AWS SendMessage, ReceiveMessage)."""

_NAME: Final = re.compile(r"(?=.{1,80}\Z)[A-Za-z0-9_-]+(\.fifo)?")
_ARN: Final = re.compile(r"arn:[a-z0-9-]+:sqs:[a-z0-9-]+:\d+:([A-Za-z0-9_.-]+)")
_SWEEP: Final = 1000

_RANGES: Final = {
    "DelaySeconds": (0, DELAY),
    "KmsDataKeyReusePeriodSeconds": (60, 86_400),
    "MaximumMessageSize": (1024, MIB),
    "MessageRetentionPeriod": (60, 1_209_600),
    "ReceiveMessageWaitTimeSeconds": (0, WAIT),
    "VisibilityTimeout": (0, HOLD),
}
_CHOICES: Final = {
    "ContentBasedDeduplication": ("true", "false"),
    "DeduplicationScope": ("queue", "messageGroup"),
    "FifoQueue": ("true",),
    "FifoThroughputLimit": ("perQueue", "perMessageGroupId"),
    "SqsManagedSseEnabled": ("true", "false"),
}
_KEPT: Final = ("KmsMasterKeyId", "Policy", "RedriveAllowPolicy")  # told back, and otherwise without effect here
_FIFO_ONLY: Final = ("ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit")
COUNTS: Final = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")
SETTABLE: Final = frozenset({*_RANGES, *_CHOICES, *_KEPT, "RedrivePolicy"})
READABLE: Final = SETTABLE | {*COUNTS, "All", "CreatedTimestamp", "LastModifiedTimestamp", "QueueArn"}


class Queue:
    """One queue. Its messages, and where its dead letters go, are the broker's."""

    def __init__(self, name: str, *, lease: float, now: float) -> None:
        self.name = name
        self.fifo = name.endswith(".fifo")
        self.attributes = {
            "DelaySeconds": "0",
            "MaximumMessageSize": str(MIB),
            "MessageRetentionPeriod": "345600",
            "ReceiveMessageWaitTimeSeconds": "0",
            "SqsManagedSseEnabled": "true",
            "VisibilityTimeout": str(math.ceil(lease)),
        }
        if self.fifo:
            self.attributes |= {
                "ContentBasedDeduplication": "false",
                "DeduplicationScope": "queue",
                "FifoQueue": "true",
                "FifoThroughputLimit": "perQueue",
            }
        self.tags: dict[str, str] = {}
        self.created = self.modified = int(now)
        self.purged = -math.inf
        self.moves: list[dict[str, Any]] = []
        """Move tasks from this queue, the latest first."""
        self.held: dict[str, Delivery] = {}
        """Deliveries by receipt handle. A handle that is not here belongs to a lease that has ended."""
        self._handles = secrets.token_hex(16)
        self._handed = 0
        self._sweep_at = _SWEEP
        self._seen: dict[tuple[str, ...], tuple[float, Envelope]] = {}
        self._attempts: dict[str, tuple[float, Sequence[str]]] = {}

    def number(self, name: str) -> int:
        """The value of an attribute that is a number."""
        return int(self.attributes[name])

    # Receipt handles.

    def hold(self, delivery: Delivery, now: float) -> str:
        """The receipt handle of a delivery that goes out."""
        if len(self.held) >= self._sweep_at:
            self.sweep(now)
        self._handed += 1
        handle = f"{self._handles}{self._handed:016x}"
        self.held[handle] = delivery
        return handle

    def sweep(self, now: float) -> None:
        """Forget the handles of leases that have ended."""
        self.held = {handle: delivery for handle, delivery in self.held.items() if delivery.lease_until > now}
        self._sweep_at = max(_SWEEP, 2 * len(self.held))

    def find(self, handle: str) -> Delivery | None:
        """The delivery of a handle, ``None`` where its lease has ended; ReceiptHandleIsInvalid for what is no handle of this queue."""
        delivery = self.held.get(handle)
        if delivery is None and not (handle.startswith(self._handles) and len(handle) == len(self._handles) + 16):
            raise Refused("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
        return delivery

    # Deduplication.

    def dedup_key(self, envelope: Envelope) -> tuple[str, ...]:
        """What makes two messages the same, in this queue's DeduplicationScope."""
        own = (envelope.dedup or "",)
        return (envelope.group or "", *own) if self.attributes["DeduplicationScope"] == "messageGroup" else own

    def seen(self, key: tuple[str, ...], now: float) -> Envelope | None:
        """The message that was taken under ``key`` in the last five minutes."""
        _forget(self._seen, now)
        return self._seen[key][1] if key in self._seen else None

    def remember(self, key: tuple[str, ...], envelope: Envelope, now: float) -> None:
        """``envelope`` is taken."""
        self._seen[key] = now + REMEMBERED, envelope

    def attempted(self, attempt: str, now: float) -> Sequence[str]:
        """The handles of what a receive with this ReceiveRequestAttemptId got, where all of it is still held as it was."""
        _forget(self._attempts, now)
        handles = self._attempts[attempt][1] if attempt in self._attempts else ()
        return handles if all(handle in self.held and self.held[handle].lease_until > now for handle in handles) else ()

    def remember_attempt(self, attempt: str, handles: Sequence[str], now: float) -> None:
        """A receive got these; an attempt that got nothing is no attempt."""
        self._attempts.pop(attempt, None)
        if handles:
            self._attempts[attempt] = now + REMEMBERED, handles

    def forget_attempts(self, handle: str) -> None:
        """The delivery was deleted or its visibility changed: its receive cannot be repeated."""
        if self._attempts:
            self._attempts = {attempt: entry for attempt, entry in self._attempts.items() if handle not in entry[1]}


def _forget(table: dict[Any, tuple[float, Any]], now: float) -> None:
    """Drop what is old from a table whose entries stand in the order of their ends."""
    while table and table[first := next(iter(table))][0] <= now:
        del table[first]


def check_name(name: str, attributes: Mapping[str, str]) -> None:
    """Refuse a name that SQS cannot give (AWS CreateQueue)."""
    if not _NAME.fullmatch(name):
        raise invalid("QueueName", name, "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length.")
    if name.endswith(".fifo") != ("FifoQueue" in attributes):
        raise invalid("QueueName", name, "The name of a FIFO queue ends with .fifo, and its attribute FifoQueue is true; no other queue's.")


def check_attributes(attributes: Mapping[str, Any], *, fifo: bool) -> dict[str, str]:
    """The attributes, where SQS would set them; RedrivePolicy is left to ``redrive_policy``."""
    checked: dict[str, str] = {}
    for name, given in attributes.items():
        value = str(given)
        if name not in SETTABLE or (name in _FIFO_ONLY and not fifo):
            raise Refused("InvalidAttributeName", f"Unknown Attribute {name}.")
        low, high = _RANGES.get(name, (0, 0))
        if name in _RANGES and not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise Refused("InvalidAttributeValue", f"Invalid value for the parameter {name}: an integer from {low} to {high}.")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise Refused("InvalidAttributeValue", f"Invalid value for the parameter {name}: {' or '.join(_CHOICES[name])}.")
        checked[name] = value
    return checked


def redrive_policy(value: str) -> tuple[str, int] | None:
    """Name of the dead-letter queue and the receives before it, ``None`` for the empty policy that ends redriving."""
    if not value:
        return None
    try:
        policy = json.loads(value)
        receives = int(policy["maxReceiveCount"])
        target = queue_of(str(policy["deadLetterTargetArn"]))
    except (ValueError, TypeError, KeyError):
        target, receives = None, 0
    if target is None or not 1 <= receives <= 1000:
        raise invalid("RedrivePolicy", value, "It has a deadLetterTargetArn and a maxReceiveCount from 1 to 1000.")
    return target, receives


def queue_of(arn: str) -> str | None:
    """The queue's name in an ARN, ``None`` where it is none."""
    found = _ARN.fullmatch(arn)
    return found[1] if found else None
